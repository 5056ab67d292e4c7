"""Fixtures that every test may use."""

import random

import numpy as np
import pytest
import torch

from tests.factory import Reference, load_reference


def pytest_configure() -> None:
    """One thread: more gain nothing on tiny tensors, and on a busy machine they wait for each other for minutes."""
    torch.set_num_threads(1)


@pytest.fixture(params=["tiny-2x", "tiny-4x"])
def reference(request: pytest.FixtureRequest) -> Reference:
    """Both reference checkpoints in turn; its models are shared, so a test must leave their weights alone."""
    return load_reference(request.param)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
