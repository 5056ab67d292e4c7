"""Numbers of images: the published ones of Philox, their distribution, and that they hang on seed and place alone."""

import math

import pytest
import torch

from models.noise import CODES, ORDER, WORD, exponentials, philox, uniforms

pytestmark = pytest.mark.quick
SEEDS, LOCATIONS = torch.tensor([4, 5, 4]), torch.arange(100)[None]


# Counters, keys and words as the authors of Philox publish them with their code
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_words(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    found = philox([torch.tensor(word) for word in counter], (torch.tensor(key[0]), key[1]))
    assert [int(word) for word in found] == list(words)


def test_numbers_hang_on_seed_and_place_alone(device: torch.device) -> None:
    numbers = uniforms(SEEDS, LOCATIONS, 10, CODES)
    assert torch.equal(numbers[0], numbers[2])
    assert torch.equal(uniforms(SEEDS[1:2], LOCATIONS, 10, CODES)[0], numbers[1])
    some = torch.tensor([70, 3, 41])
    assert torch.equal(uniforms(SEEDS, some[None], 6, CODES), numbers[:, some, :6])
    assert torch.equal(uniforms(SEEDS.to(device), LOCATIONS.to(device), 10, CODES).cpu(), numbers)


def test_numbers_of_other_seeds_places_and_uses_are_others() -> None:
    seeds = torch.tensor([0, 1, 2**31, 2**32 - 1])
    numbers = torch.cat([uniforms(seeds, LOCATIONS, 8, use).flatten() for use in (CODES, ORDER)])
    assert len(numbers.unique()) > len(numbers) - 5  # of 6,400 numbers of at least 23 bits


def test_uniforms_are_uniform_and_neighbours_independent() -> None:
    numbers = uniforms(torch.arange(50), torch.arange(200)[None], 100, CODES).double()  # a million
    assert 0 < numbers.min() < 1e-5
    assert 1 - 1e-5 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 / math.sqrt(12e6)
    tenths = torch.bincount((10 * numbers).long().flatten(), minlength=10)
    assert (tenths - 1e5).abs().max() < 5 * math.sqrt(1e6 * 0.09)
    centred = numbers - 0.5
    for dim in range(3):  # of seeds, locations and numbers that follow each other
        length = centred.shape[dim] - 1
        product = centred.narrow(dim, 0, length) * centred.narrow(dim, 1, length)
        assert abs(product.mean()) < 5 / 12 / math.sqrt(product.numel())


def test_exponentials_are_the_logarithms_of_the_same_numbers() -> None:
    """To rounding, down to the least number, where 1 - u is 1 in float32."""
    drawn = exponentials(torch.arange(50), torch.arange(200)[None], 100, CODES)
    expected = -torch.log1p(-uniforms(torch.arange(50), torch.arange(200)[None], 100, CODES).double())
    torch.testing.assert_close(drawn.double(), expected, rtol=2e-6, atol=0)
    assert drawn.min() > 0
    for time in (0.01, 0.5, 1.0, 3.0, 8.0):
        share = math.exp(-time)
        assert abs((drawn > time).double().mean() - share) < 5 * math.sqrt(share * (1 - share) / 1e6)
