"""A patch discriminator and its training beside an autoencoder's: hinge losses (Isola et al., 2017; Lim and Ye, 2017).

Letters: B batch, H, W image sides in pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from models.autoencoder import GroupNorm
from runtime import distributed

BETAS = (0.5, 0.9)


class PatchDiscriminator(nn.Module):
    """A logit for each patch of 54 pixels, 8 apart: positive for real ones.

    Groups are normalized, not batches, so that a batch may be split.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for width, kernel, stride in ((channels, 4, 2), (2 * channels, 4, 2), (4 * channels, 3, 1)):
            conv = nn.Conv2d(width, 2 * width, kernel, stride, padding=1, bias=False)
            layers += [conv, GroupNorm(2 * width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * channels, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, H / 8, W / 8) of images (B, 3, H, W) in [-1, 1]."""
        return self.layers(images)


class Adversary:
    """The discriminator with its optimizer, which no trainer knows of.

    Args:
        lr: learning rate, constant.
        accum_steps: batches of each update.
        device: of this rank.
    """

    def __init__(self, lr: float, accum_steps: int, device: torch.device) -> None:
        self.network = PatchDiscriminator().to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, betas=BETAS)
        self.accum_steps = accum_steps

    def fooled(self, rebuilt: Tensor) -> Tensor:
        """The autoencoder's loss: how little its images (B, 3, H, W) pass for real ones.

        Of copies of the weights: its gradient must not reach them, and they change before it is computed.
        """
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
