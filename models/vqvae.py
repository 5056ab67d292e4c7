"""The VQ-VAE of the CIFAR-10 random-order baseline (formats.md R7). Letters are those of models/autoencoder.py.

Small, of stride 4, with codes that are moving averages of latents. It computes with images in [-0.5, 0.5]. Module names
are the keys of the published file.
"""

import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder
from models.config import VQVAEConfig


class ResidualLayer(nn.Module):
    """As published: the first ReLU works in place, so the skip carries relu(x), not x."""

    def __init__(self, channels: int, residual_channels: int) -> None:
        super().__init__()
        narrow = nn.Conv2d(channels, residual_channels, 3, padding=1, bias=False)
        widen = nn.Conv2d(residual_channels, channels, 1, bias=False)
        self._block = nn.Sequential(nn.ReLU(), narrow, nn.ReLU(), widen)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return x + self._block(x)  # whose own first ReLU changes nothing now


class ResidualStack(nn.Module):
    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        layers = [ResidualLayer(config.channels, config.residual_channels) for _ in range(config.num_residual_layers)]
        self._layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._layers:
            x = layer(x)
        return x.relu()


class Encoder(nn.Module):
    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        width = config.channels
        self._conv_1 = nn.Conv2d(3, width // 2, 4, stride=2, padding=1)
        self._conv_2 = nn.Conv2d(width // 2, width, 4, stride=2, padding=1)
        self._conv_3 = nn.Conv2d(width, width, 3, padding=1)
        self._residual_stack = ResidualStack(config)

    def forward(self, x: Tensor) -> Tensor:
        x = self._conv_1(x).relu()
        x = self._conv_2(x).relu()
        return self._residual_stack(self._conv_3(x))


class Decoder(nn.Module):
    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        width = config.channels
        self._conv_1 = nn.Conv2d(config.embed_dim, width, 3, padding=1)
        self._residual_stack = ResidualStack(config)
        self._conv_trans_1 = nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1)
        self._conv_trans_2 = nn.ConvTranspose2d(width // 2, 3, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self._residual_stack(self._conv_1(z))
        return self._conv_trans_2(self._conv_trans_1(z).relu())


class AveragedCodebook(nn.Module):
    """Codes that no gradient moves: each is a moving average of the latents that chose it."""

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self._embedding = nn.Embedding(num_codes, dim).requires_grad_(False)  # N(0, 1) at first
        self.register_buffer("_ema_w", torch.randn(num_codes, dim))  # average of the sums of their latents
        self.register_buffer("_ema_cluster_size", torch.zeros(num_codes))  # and of their number

    def codebook(self) -> Tensor:
        return self._embedding.weight.float()

    @torch.no_grad()
    def begin(self, latents_VC: Tensor, size: float) -> None:
        """Put the codes onto latents, as if ``size`` of each had been seen."""
        self._embedding.weight.copy_(latents_VC)
        self._ema_w.copy_(latents_VC * size)
        self._ema_cluster_size.fill_(size)

    @torch.no_grad()
    def average(self, counts_V: Tensor, sums_VC: Tensor, decay: float, epsilon: float) -> None:
        """Take in how many latents of a batch chose each code, and their sums; of all ranks.

        As published, ``epsilon`` smooths the average numbers that are kept, not those that divide alone.
        """
        sizes = decay * self._ema_cluster_size + (1 - decay) * counts_V
        total = sizes.sum()
        self._ema_cluster_size.copy_((sizes + epsilon) / (total + len(sizes) * epsilon) * total)
        self._ema_w.mul_(decay).add_(sums_VC, alpha=1 - decay)
        self._embedding.weight.copy_(self._ema_w / self._ema_cluster_size[:, None])


class VQVAE(Autoencoder):
    """The baseline's VQ-VAE. The baseline itself decodes at half the contrast; here it is that of the images."""

    kind = "vqvae"
    decides_codes = ("_encoder.", "_pre_vq_conv.", "_vq_vae._embedding.")
    decodes = ("_decoder",)

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        self._encoder = Encoder(config)
        self._pre_vq_conv = nn.Conv2d(config.channels, config.embed_dim, 1)
        self._vq_vae = AveragedCodebook(config.n_embed, config.embed_dim)
        self._decoder = Decoder(config)

    def encode(self, images: Tensor) -> Tensor:
        return self._pre_vq_conv(self._encoder(images / 2))

    def codebook(self) -> Tensor:
        return self._vq_vae.codebook()

    def _decode(self, latents: Tensor) -> Tensor:
        return 2 * self._decoder(latents)

    def begin_codes(self, latents_VC: Tensor, size: float) -> None:
        """Put the codes onto latents, as if ``size`` of each had been seen."""
        self._vq_vae.begin(latents_VC, size)

    def average_codes(self, counts_V: Tensor, sums_VC: Tensor, decay: float, epsilon: float = 1e-5) -> None:
        """Move the codes towards the latents of a batch, see ``AveragedCodebook.average``."""
        self._vq_vae.average(counts_V, sums_VC, decay, epsilon)
