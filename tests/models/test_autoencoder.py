"""The autoencoder against the published code's tensors, and its quantizer against brute force.

Letters: N vectors, V codebook size, C code dimension, S side of a scale.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models import autoencoder as autoencoders
from models.autoencoder import QUANTIZE_TABLE_CPU, quantizer_loss, resize_image, upsample_latents
from models.config import LlamaGenVQConfig
from models.llamagen_vq import LlamaGenVQ, Quantizer
from runtime.errors import UserError
from tests.factory import Reference, assert_near, load_reference, tiny_autoencoder

pytestmark = pytest.mark.quick

# Against the published code


def test_codes_of_every_scale(reference: Reference, device: torch.device) -> None:
    model = reference.model(device=device)
    assert model.scale_sizes == reference["scale_sizes"].tolist()
    for codes, expected in zip(model.tokenize(reference["images"].to(device)), reference.codes(), strict=True):
        different = int((codes.cpu() != expected).sum())
        assert different <= (0 if device.type == "cpu" else expected.numel() // 100)  # rounding may decide the odd code


@torch.no_grad()
def test_encoded_latents(reference: Reference, device: torch.device) -> None:
    encoded = reference.model(device=device).autoencoder.encode(reference["images"].to(device))
    assert_near(encoded, reference["encoded"], atol=1e-4)
    torch.testing.assert_close(encoded.norm(dim=1), torch.ones_like(encoded[:, 0]))


def test_decoded_images(reference: Reference, device: torch.device) -> None:
    assert_near(reference.model(device=device).decode(reference.codes(device)[-1]), reference["decoded"], atol=2e-4)


def test_upsampled_latents(reference: Reference, device: torch.device) -> None:
    sides = reference["scale_sizes"].tolist()
    for side, codes in zip(sides, reference.codes(device), strict=True):
        latents = reference.model(device=device).autoencoder.lookup(codes)
        assert_near(upsample_latents(latents, min(2 * side, sides[-1])), reference[f"upsampled_{side}"], atol=1e-6)


def test_quantizer_loss_and_its_gradient(reference: Reference) -> None:
    autoencoder = LlamaGenVQ(reference.model().autoencoder.config)
    autoencoder.load_state_dict(reference.model().autoencoder.state_dict())
    latents = reference["encoded"].clone().requires_grad_()
    loss = quantizer_loss(latents, autoencoder.lookup(autoencoder.quantize_latents(latents)))
    loss.backward()
    torch.testing.assert_close(loss.double(), reference["quantizer_loss"], atol=1e-7, rtol=0)
    gradient = autoencoder.quantize.embedding.grad
    torch.testing.assert_close(gradient, reference["quantizer_codebook_grad"], atol=1e-7, rtol=1e-4)
    assert latents.grad.abs().max() > 0  # the commitment term


# Quantizer


def near_ties(codebook: Tensor, count: int) -> Tensor:
    """Unit vectors halfway between two codes, off by 1e-3 to 1e-9: float32 alone cannot tell all of the pairs apart."""
    pairs = torch.randint(len(codebook), (2, count))
    halfway = F.normalize(codebook[pairs[0]].double() + codebook[pairs[1]].double(), dim=-1)
    offsets = 10.0 ** -torch.randint(3, 10, (count, 1)).double()
    return halfway + offsets * torch.randn_like(halfway)


@pytest.mark.parametrize("dim", [2, 8])
def test_nearest_is_exact(dim: int) -> None:
    """In two dimensions the pairs are often neighbours on the circle, so that a near-tie is for the first place."""
    quantizer = Quantizer(64, dim)
    with torch.no_grad():
        quantizer.embedding.mul_(torch.rand(64, 1) + 0.5)  # norms of the stored vectors must not matter
    codebook = quantizer.codebook()
    random = F.normalize(torch.randn(3000, dim), dim=-1).double()
    vectors = torch.cat([random, near_ties(codebook, 6000), codebook.double(), torch.zeros(1, dim).double()])
    distances = (vectors[:, None] - codebook.double()).square().sum(-1)
    nearest = quantizer.nearest(vectors)
    margins = distances.topk(2, largest=False).values.diff().squeeze(-1)
    decided = margins > 1e-13
    assert decided.sum() >= 8900
    assert (margins[decided] < 1e-7).sum() >= 50  # beyond float32
    assert torch.equal(nearest[decided], distances.argmin(-1)[decided])
    chosen = distances.gather(1, nearest[:, None]).squeeze(1)
    torch.testing.assert_close(chosen, distances.min(-1).values, atol=1e-12, rtol=0)


def test_nearest_takes_float32_latents_of_any_number() -> None:
    quantizer, chunk = Quantizer(16, 8), QUANTIZE_TABLE_CPU // 16
    for count in (1, chunk - 1, chunk, chunk + 1):
        latents = torch.randn(count, 8)
        expected = torch.cdist(latents.double(), quantizer.codebook().double()).argmin(-1)
        assert torch.equal(quantizer.nearest(latents), expected)


class LargestOutput(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_nearest_builds_one_chunk_of_the_distance_table_at_a_time() -> None:
    V, C = 128, 8
    N = 2 * QUANTIZE_TABLE_CPU // V + 5
    quantizer, latents = Quantizer(V, C), torch.randn(N, C)
    with LargestOutput() as largest:
        quantizer.nearest(latents)
    assert N * C < largest.numel <= QUANTIZE_TABLE_CPU
    with LargestOutput() as naive:
        _ = (latents[:10, None] - quantizer.codebook()).square()
    assert naive.numel == 10 * V * C  # the recorder sees such a tensor


def test_codebook_is_normalized_and_differentiable() -> None:
    quantizer = Quantizer(16, 8)
    with torch.no_grad():
        quantizer.embedding.mul_(3.0)
    torch.testing.assert_close(quantizer.codebook().norm(dim=-1), torch.ones(16))
    quantizer.codebook()[3, 0].backward()
    gradient = quantizer.embedding.grad
    assert gradient[3].abs().max() > 0
    assert gradient[:3].abs().max() == 0
    # Orthogonal to the stored vector: its length changes nothing.
    torch.testing.assert_close((gradient[3] * quantizer.embedding[3]).sum(), torch.tensor(0.0), atol=1e-6, rtol=0)


# Pyramid


def test_upsampling_zeros_gives_zeros() -> None:
    assert torch.equal(upsample_latents(torch.zeros(2, 8, 2, 2), 5), torch.zeros(2, 8, 5, 5))


@pytest.mark.parametrize(("side", "size"), [(1, 2), (2, 5), (3, 8), (4, 16)])
def test_upsampled_latents_have_unit_norm_at_the_exact_size(side: int, size: int) -> None:
    latents = F.normalize(torch.randn(2, 8, side, side), dim=1)
    upsampled = upsample_latents(latents, size)
    assert upsampled.shape == (2, 8, size, size)
    torch.testing.assert_close(upsampled.norm(dim=1), torch.ones(2, size, size))
    torch.testing.assert_close(upsampled[:, :, 0, 0], latents[:, :, 0, 0])  # a corner copies its nearest


def test_images_shrink_without_antialiasing() -> None:
    """Bilinear at exactly half the size is the mean of 2 x 2; at a quarter, of the middle 2 x 2 of 4 x 4."""
    images = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(resize_image(images, 4), F.avg_pool2d(images, 2))
    middle = torch.stack([images[:, :, i::4, j::4] for i in (1, 2) for j in (1, 2)]).mean(0)
    torch.testing.assert_close(resize_image(images, 2), middle)


def test_each_scale_encodes_the_image_at_its_own_size() -> None:
    autoencoder, images = tiny_autoencoder(), torch.randn(2, 3, 32, 32).clamp(-1, 1)
    for side, codes in zip((1, 3, 8), autoencoder.tokenize(images, (1, 3, 8)), strict=True):
        small = F.interpolate(images, (4 * side, 4 * side), mode="bilinear")
        assert codes.shape == (2, side, side)
        with torch.no_grad():
            assert torch.equal(codes, autoencoder.quantize_latents(autoencoder.encode(small)))


def test_a_part_of_the_images_at_a_time_gets_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder, images = tiny_autoencoder(), torch.randn(5, 3, 32, 32).clamp(-1, 1)
    expected, sizes = autoencoder.tokenize(images, (1, 3, 8)), []
    monkeypatch.setattr(autoencoders, "ENCODED_PIXELS_CPU", 2 * 32 * 32)
    encode = autoencoder.encode
    monkeypatch.setattr(autoencoder, "encode", lambda part: sizes.append(tuple(part.shape[::3])) or encode(part))
    for codes, same in zip(autoencoder.tokenize(images, (1, 3, 8)), expected, strict=True):
        assert torch.equal(codes, same)
    assert sizes == [(5, 4), (5, 12), (2, 32), (2, 32), (1, 32)]


def test_no_images_have_no_codes() -> None:
    assert [tuple(codes.shape) for codes in tiny_autoencoder().tokenize(torch.zeros(0, 3, 32, 32), (1, 8))] == [
        (0, 1, 1),
        (0, 8, 8),
    ]


@pytest.mark.parametrize("batch", [1, 2])
def test_every_scale_decodes_on_its_own(batch: int) -> None:
    """One location of one image with 32 channels has groups of one value, which torch's own layer refuses."""
    autoencoder = tiny_autoencoder()
    for side in (1, 3, 8):
        images = autoencoder.decode(torch.randint(64, (batch, side, side)))
        assert images.shape == (batch, 3, 4 * side, 4 * side)
        assert images.dtype == torch.float32
        assert not images.requires_grad


def test_decoding_normalizes_its_latents() -> None:
    autoencoder, latents = tiny_autoencoder(), torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(autoencoder.decode_latents(latents), autoencoder.decode_latents(7 * latents))


# Architecture


def test_default_architecture_has_the_released_size() -> None:
    """The paper's VQ-16: 71.8M parameters with 4096 codes of dimension 8."""
    with torch.device("meta"):
        autoencoder = LlamaGenVQ(LlamaGenVQConfig())
    assert autoencoder.config.stride == 16
    assert autoencoder.quantize.embedding.shape == (4096, 8)
    assert round(sum(p.numel() for p in autoencoder.parameters()) / 1e6, 1) == 71.8


def test_decoder_has_one_more_block_a_level_and_attention_at_the_lowest() -> None:
    autoencoder = tiny_autoencoder(num_res_blocks=2)
    assert [len(level.res) for level in autoencoder.encoder.conv_blocks] == [2, 2, 2]
    assert [len(level.res) for level in autoencoder.decoder.conv_blocks] == [3, 3, 3]
    assert [len(level.attn) for level in autoencoder.encoder.conv_blocks] == [0, 0, 2]
    assert [len(level.attn) for level in autoencoder.decoder.conv_blocks] == [3, 0, 0]


def test_channels_must_suit_group_normalization() -> None:
    with pytest.raises(UserError, match="ch 48 must be a multiple of 32"):
        LlamaGenVQConfig(ch=48)


def test_both_references_differ_in_depth() -> None:
    strides = [load_reference(name).model().autoencoder.config.stride for name in ("tiny-2x", "tiny-4x")]
    assert strides == [4, 2]
