"""Where and in which precision to compute."""

from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
import torch

from runtime.device import allow_tf32, autocast, describe_size, exact_float32, pick_device, pick_dtype, send
from runtime.errors import UserError
from tests.factory import tiny_model

pytestmark = pytest.mark.quick
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("cuda", "mps", "picked"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_first_at_hand(cuda: bool, mps: bool, picked: str) -> None:
    with (
        patch("torch.cuda.is_available", lambda: cuda),
        patch("torch.backends.mps.is_available", lambda: mps),
    ):
        assert pick_device("auto") == pick_device() == torch.device(picked)


def test_a_named_device_is_taken_or_refused() -> None:
    assert pick_device("cpu") == CPU
    with pytest.raises(UserError, match="device tpu is unknown; choose auto, cuda, mps or cpu"):
        pick_device("tpu")
    with patch("torch.cuda.is_available", lambda: False):
        for name in ("cuda", "cuda:1"):
            with pytest.raises(UserError, match=f"device {name} is not available"):
                pick_device(name)
    with patch("torch.cuda.is_available", lambda: True), patch("torch.cuda.set_device") as made_current:
        assert pick_device("cuda:1") == torch.device("cuda", 1)
        made_current.assert_called_once_with(torch.device("cuda", 1))
        made_current.side_effect = RuntimeError("invalid device ordinal")
        with pytest.raises(UserError, match="device cuda:9 is unknown; give the number of a GPU"):
            pick_device("cuda:9")


@pytest.mark.parametrize(("supported", "picked"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_is_bfloat16_where_the_gpu_computes_in_it(supported: bool, picked: torch.dtype) -> None:
    with patch("torch.cuda.is_bf16_supported", lambda including_emulation: supported and not including_emulation):
        assert pick_dtype("auto", CUDA) == picked
    for trains in (False, True):
        assert pick_dtype("auto", CPU, trains) == pick_dtype("auto", torch.device("mps"), trains) == torch.float32


def test_a_cpu_with_bfloat16_trains_in_it_and_draws_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.device.cpu_has_bfloat16", lambda: True)
    assert pick_dtype("auto", CPU, trains=True) == torch.bfloat16
    assert pick_dtype("auto", CPU) == pick_dtype("auto", torch.device("mps"), trains=True) == torch.float32
    assert pick_dtype("float32", CPU, trains=True) == torch.float32


@pytest.fixture
def tf32() -> Iterator[Callable[[], list[bool]]]:
    """What torch is set to, for products and for convolutions; put back at the end."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield lambda: [matmul.allow_tf32, cudnn.allow_tf32]
    matmul.allow_tf32, cudnn.allow_tf32 = before


def test_tf32_is_one_setting_and_never_of_codes(tf32: Callable[[], list[bool]]) -> None:
    for allowed in (True, False):
        allow_tf32(allowed)
        assert tf32() == [allowed, allowed]
        with pytest.raises(ZeroDivisionError), exact_float32():
            assert tf32() == [False, False]
            _ = 1 / 0
        assert tf32() == [allowed, allowed]


def test_codes_of_mixed_precision_are_those_of_float32() -> None:
    model, images = tiny_model(), 2 * torch.rand(2, 3, 32, 32) - 1
    expected = model.tokenize(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.tokenize(images)
    assert all(torch.equal(*codes) for codes in zip(found, expected, strict=True))


def test_a_named_precision_is_taken_or_refused() -> None:
    for name in ("float32", "bfloat16", "float16"):
        assert pick_dtype(name, CPU) == getattr(torch, name)
    with pytest.raises(UserError, match="dtype bf16 is unknown; choose auto, float32, bfloat16, float16"):
        pick_dtype("bf16", CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_the_precision_and_is_off_for_float32(dtype: torch.dtype) -> None:
    a = torch.ones(2, 2)
    with autocast(CPU, dtype):
        assert (a @ a).dtype == dtype
    assert a.dtype == (a @ a).dtype == torch.float32


def test_size_counts_trained_and_frozen_parameters() -> None:
    model = tiny_model()
    trained = sum(parameter.numel() for parameter in model.parameters())
    frozen = sum(parameter.numel() for parameter in model.autoencoder.parameters())
    assert describe_size(model) == f"{trained / 1e6:.1f}M parameters + {frozen / 1e6:.1f}M autoencoder"


class Spy:
    """A tensor that notes how it is copied."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.device, self.pinned, self.non_blocking = device, False, False

    def pin_memory(self) -> "Spy":
        self.pinned = True
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "Spy":
        self.non_blocking = non_blocking
        return self


@pytest.mark.parametrize(
    ("source", "target", "asynchronous"),
    [(CPU, CPU, False), (CPU, torch.device("mps"), False), (CPU, CUDA, True), (CUDA, CUDA, False)],
)
def test_a_copy_is_waited_for_unless_its_source_outlives_it(
    source: torch.device, target: torch.device, asynchronous: bool
) -> None:
    sent = send(Spy(source), target)
    assert (sent.pinned, sent.non_blocking) == (asynchronous, asynchronous)


def test_what_arrives_is_what_was_sent(device: torch.device) -> None:
    """Though the memory of the source is another's at once."""
    sent = [send(torch.full((100_000,), value), device) for value in range(20)]
    assert [tensor.unique().tolist() for tensor in sent] == [[value] for value in range(20)]


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_codes_have_no_mixed_precision_on_any_device(kind: str) -> None:
    torch.set_autocast_enabled(kind, True)
    try:
        with exact_float32():
            assert not torch.is_autocast_enabled(kind)
        assert torch.is_autocast_enabled(kind)
    finally:
        torch.set_autocast_enabled(kind, False)
