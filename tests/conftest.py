"""Fixtures that every test may use."""

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from runtime.device import pick_device
from tests.factory import CPU, Reference, load_reference

# One thread for each process: more gain nothing on tiny tensors, and on a busy machine they wait for each other for
# minutes. The first is of NumPy and of commands in processes of their own, the others are TensorFlow's.
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def pytest_configure() -> None:
    """Before workers start, which have the environment of this process."""
    os.environ |= dict.fromkeys(THREADS, "1")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's tests first: they share what earlier ones made, and a second worker would have to make it again.

    Workers take over each other's last tests.
    """
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What programs keep for the next time stays out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_bfloat16() -> Iterator[None]:
    """Training in this process computes alike on every CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.device.cpu_has_bfloat16", lambda: False)
        yield


@pytest.fixture(params=["tiny-2x", "tiny-4x"])
def reference(request: pytest.FixtureRequest) -> Reference:
    """Both reference checkpoints in turn; its models are shared, so a test must leave their weights alone."""
    return load_reference(request.param)


@pytest.fixture(params=["cpu", "accelerator"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The CPU, then the GPU or MPS of this machine, if it has one, in full float32."""
    found = CPU if request.param == "cpu" else pick_device()
    if request.param != found.type and found == CPU:
        pytest.skip("this machine has no accelerator")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return found


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
