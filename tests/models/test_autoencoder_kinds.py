"""MaskGIT's tokenizer and the baseline's VQ-VAE: the published code's tensors, formulas written anew, and their use.

Letters: B batch, S side of a code map, C code dimension, V codes.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import family
from models.autoencoder import Autoencoder
from models.config import LlamaGenVQConfig, MaskGITVQConfig, VQVAEConfig
from models.loading.autoencoder import open_autoencoder
from models.maskgit_vq import MaskGITVQ
from models.vqvae import VQVAE
from runtime.errors import UserError
from tests.factory import (
    FIXTURES,
    Reference,
    assert_near,
    load_reference,
    randomize,
    tiny_autoencoder,
    tiny_model,
)
from tests.llamagen_factory import tiny_gpt

pytestmark = pytest.mark.quick
TINY_MASKGIT = MaskGITVQConfig(embed_dim=16, n_embed=64, ch=32, ch_mult=(1, 2, 2, 3), num_res_blocks=2)
TINY_VQVAE = VQVAEConfig(embed_dim=8, n_embed=64, channels=16, residual_channels=4)


@pytest.fixture(scope="module")
def randar() -> Reference:
    return load_reference("tiny-randar")


def random_maskgit(config: MaskGITVQConfig = TINY_MASKGIT) -> MaskGITVQ:
    module = MaskGITVQ(config).eval()
    randomize(module, std=0.05)
    return module


# Against the published code


@torch.no_grad()
def test_the_vqvaes_codes_images_and_loss(randar: Reference, device: torch.device) -> None:
    autoencoder = open_autoencoder(FIXTURES / "tiny-randar/vqvae.pth").to(device)
    images = 2 * randar["vqvae_images"].to(device)  # theirs are in [-0.5, 0.5]
    (codes,) = autoencoder.tokenize(images, (8,))
    assert torch.equal(codes.cpu(), randar["vqvae_codes"])
    assert_near(autoencoder.decode(codes) / 2, randar["vqvae_decoded"], atol=2e-4)
    commitment = F.mse_loss(autoencoder.encode(images), autoencoder.lookup(codes))
    torch.testing.assert_close(0.25 * commitment.double().cpu(), randar["vqvae_loss"], atol=2e-5, rtol=0)
    shares = torch.bincount(codes.flatten(), minlength=autoencoder.config.n_embed) / codes.numel()
    perplexity = torch.special.entr(shares).sum().exp()
    torch.testing.assert_close(perplexity.double().cpu(), randar["vqvae_perplexity"], atol=1e-3, rtol=0)


def test_llamagens_file_in_16_bits(randar: Reference, device: torch.device) -> None:
    autoencoder = open_autoencoder(FIXTURES / "tiny-randar/vq.pt").to(device)
    (codes,) = autoencoder.tokenize(randar["images"].to(device), (6,))
    assert torch.equal(codes.cpu(), randar["tokenized"])
    decoded = autoencoder.decode(randar["codes"].to(device))
    assert_near(decoded, randar["decoded"], atol=2e-4)
    bytes_ = tiny_gpt(autoencoder=autoencoder.cpu()).to_uint8(decoded.cpu()).permute(0, 2, 3, 1)
    assert (bytes_.int() - randar["decoded_uint8"].int()).abs().max() <= 1


# MaskGIT's, written anew from the weights' names


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def block(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    h = F.conv2d(F.silu(norm(x, state, f"{name}.norm1")), state[f"{name}.conv1.weight"], padding=1)
    h = F.conv2d(F.silu(norm(h, state, f"{name}.norm2")), state[f"{name}.conv2.weight"], padding=1)
    shortcut = state.get(f"{name}.nin_shortcut.weight")
    return h + (x if shortcut is None else F.conv2d(h, shortcut))


def conv(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)


def encode(images: Tensor, state: dict[str, Tensor], levels: int) -> Tensor:
    x = F.conv2d((images + 1) / 2, state["encoder.conv_in.weight"], padding=1)
    for level in range(levels):
        for j in range(2):
            x = block(x, state, f"encoder.down.{level}.block.{j}")
        x = F.avg_pool2d(x, 2) if level < levels - 1 else x
    for j in range(2):
        x = block(x, state, f"encoder.mid.{j}")
    return conv(F.silu(norm(x, state, "encoder.norm_out")), state, "encoder.conv_out")


def decode(z: Tensor, state: dict[str, Tensor], levels: int) -> Tensor:
    """Images as they come out, not clamped, for [0, 1]."""
    x = conv(z, state, "decoder.conv_in")
    for j in range(2):
        x = block(x, state, f"decoder.mid.{j}")
    for level in reversed(range(levels)):
        for j in range(2):
            x = block(x, state, f"decoder.up.{level}.block.{j}")
        if level:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(x, state, f"decoder.up.{level}.upsample_conv")
    return conv(F.silu(norm(x, state, "decoder.norm_out")), state, "decoder.conv_out")


@torch.no_grad()
def test_maskgits_formulas() -> None:
    """Every weight of the file is used as its name says; widths change twice, so shortcuts count."""
    autoencoder = random_maskgit()
    state = autoencoder.state_dict()
    assert [key for key in state if "nin_shortcut" in key and "encoder" in key] == [
        f"encoder.down.{level}.block.0.nin_shortcut.weight" for level in (1, 3)
    ]
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    z = encode(images, state, 4)
    assert_near(autoencoder.encode(images), z, atol=1e-5)
    codebook = state["quantize.embedding.weight"].double()
    nearest = (z.permute(0, 2, 3, 1).double()[..., None, :] - codebook).square().sum(-1).argmin(-1)
    (codes,) = autoencoder.tokenize(images, (4,))
    assert torch.equal(codes, nearest)
    latents = codebook[codes].permute(0, 3, 1, 2).float()
    assert torch.equal(autoencoder.lookup(codes), latents)
    raw = decode(latents, state, 4)
    assert raw.min() < 0 < raw.max()
    assert_near((autoencoder.decode(codes) + 1) / 2, raw.clamp(0, 1), atol=1e-4)


def test_maskgits_released_size() -> None:
    with torch.device("meta"):
        autoencoder = MaskGITVQ(MaskGITVQConfig())
    assert autoencoder.config.stride == 16
    state = autoencoder.state_dict()
    assert state["quantize.embedding.weight"].shape == (1024, 256)
    assert state["encoder.conv_out.weight"].shape == (256, 512, 1, 1)
    assert not {"encoder.conv_in.bias", "encoder.mid.0.conv1.bias"} & state.keys()
    assert {"decoder.up.4.upsample_conv.bias", "decoder.up.4.block.1.conv2.weight"} < state.keys()
    assert not [key for key in state if key.startswith("decoder.up.0.upsample_conv")]


# The VQ-VAE


def test_the_vqvaes_released_size() -> None:
    state = VQVAE(VQVAEConfig()).state_dict()
    assert state["_vq_vae._embedding.weight"].shape == state["_vq_vae._ema_w"].shape == (512, 64)
    assert state["_encoder._conv_1.weight"].shape == (64, 3, 4, 4)
    assert state["_decoder._residual_stack._layers.1._block.3.weight"].shape == (128, 32, 1, 1)


def test_no_gradient_moves_its_codes() -> None:
    autoencoder = VQVAE(TINY_VQVAE)
    assert "_vq_vae._embedding.weight" not in {n for n, p in autoencoder.named_parameters() if p.requires_grad}


def test_its_contrast_is_that_of_the_images() -> None:
    """Latents are encoded of half the image, and an image is twice what the decoder gives."""
    autoencoder, images = VQVAE(TINY_VQVAE), torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            autoencoder.encode(images), autoencoder._pre_vq_conv(autoencoder._encoder((images + 1) / 2 - 0.5))
        )
        z = torch.randn(1, 8, 2, 2)
        torch.testing.assert_close((autoencoder.decode_latents(z) + 1) / 2, autoencoder._decoder(z) + 0.5)


def test_the_codes_are_averages_by_the_published_formula() -> None:
    autoencoder = VQVAE(TINY_VQVAE)
    w, size = autoencoder._vq_vae._ema_w.double(), torch.zeros(64).double()
    for seed in range(3):
        counts = torch.randint(5, (64,), generator=torch.Generator().manual_seed(seed)).float()
        sums = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed))
        autoencoder.average_codes(counts, sums, decay=0.9, epsilon=1e-2)
        size = 0.9 * size + 0.1 * counts.double()
        total = size.sum()
        size = (size + 1e-2) / (total + 64 * 1e-2) * total
        w = 0.9 * w + 0.1 * sums.double()
        torch.testing.assert_close(autoencoder.codebook().double(), w / size[:, None], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(autoencoder._vq_vae._ema_cluster_size.double(), size, rtol=1e-5, atol=1e-6)


# Their use


@pytest.mark.parametrize("autoencoder", [random_maskgit(), VQVAE(TINY_VQVAE)], ids=lambda kind: kind.kind)
def test_a_family_of_codes_takes_every_kind(autoencoder: Autoencoder) -> None:
    model = tiny_gpt(autoencoder=autoencoder)
    images = torch.rand(2, 3, model.config.img_size, model.config.img_size) * 2 - 1
    (codes,) = model.tokenize(images)
    assert codes.shape == (2, 4, 4)
    assert model.codebook().shape == (64, autoencoder.config.embed_dim)
    assert model.num_codes == 64
    assert model.decode(codes).shape == images.shape
    assert model.undrawn_latents([codes], 0).shape == (2, autoencoder.config.embed_dim, 4, 4)
    assert model([codes], torch.tensor([1, 2]))[0].shape == (2, 16, 64)


def test_the_checkerboard_needs_unit_norm() -> None:
    with pytest.raises(UserError, match=r"latents of unit norm, but this autoencoder is of the kind vqvae; name"):
        tiny_model(autoencoder=VQVAE(TINY_VQVAE))


@pytest.mark.parametrize("channels", [0, 7])
def test_impossible_sizes_are_refused(channels: int) -> None:
    with pytest.raises(UserError, match=f"channels is {channels}; it must be even"):
        VQVAEConfig(channels=channels)
    with pytest.raises(UserError, match="ch 48 must be a multiple of 32"):
        MaskGITVQConfig(ch=48)
    assert LlamaGenVQConfig().stride == MaskGITVQConfig().stride == 4 * VQVAEConfig().stride


@torch.no_grad()
def test_codes_that_are_not_drawn_yet_are_grey_in_half_precision() -> None:
    """Their latents are zeros, which float16 would divide by a length of zero."""
    autoencoder = tiny_autoencoder()
    latents = torch.zeros(1, autoencoder.config.embed_dim, 8, 8)
    latents[:, 0, :4] = 1
    expected = autoencoder.decode_latents(latents)
    autoencoder.decode_in(torch.float16)
    assert (autoencoder.decode_latents(latents) - expected).abs().mean() < 0.03 * expected.std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [tiny_autoencoder, random_maskgit, lambda: VQVAE(TINY_VQVAE).eval()])
@torch.no_grad()
def test_a_decoder_of_half_precision(make: Callable[[], Autoencoder], dtype: torch.dtype) -> None:
    """Its images are nearly those of float32, and codes of images stay as they are."""
    autoencoder, images = make(), 2 * torch.rand(2, 3, 32, 32) - 1
    codes = autoencoder.tokenize(images, (4,))[0]
    expected = autoencoder.decode(codes)
    autoencoder.decode_in(dtype)
    found = autoencoder.decode(codes)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert (found - expected).abs().mean() < 0.03 * expected.std()
    assert torch.equal(autoencoder.tokenize(images, (4,))[0], codes)
    autoencoder.decode_in(torch.float32)
    assert (autoencoder.decode(codes) - expected).abs().mean() < 0.03 * expected.std()


@torch.no_grad()
def test_a_decoder_on_a_gpu_takes_as_many_images_as_its_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    codes = torch.randint(64, (7, 8, 8))
    expected = model.decode(codes)
    sizes = []
    decode = model.autoencoder.decode
    monkeypatch.setattr(model.autoencoder, "decode", lambda part: sizes.append(len(part)) or decode(part))
    monkeypatch.setattr(type(model), "device", torch.device("meta"))  # any that is no CPU
    monkeypatch.setattr(family, "DECODING_MEMORY", 3 * 32 * 32 * family.DECODING_BYTES)
    torch.testing.assert_close(model.decode(codes), expected, atol=1e-5, rtol=0)
    assert sizes == [3, 3, 1]
