"""Draws follow their distribution, whatever the codes, groups and settings; guidance, truncation, seeds of images.

Letters: B images, l tokens, V codes, n numbers of noise a token.
"""

import math

import pytest
import torch
from torch import Tensor

from models.config import NUM_SEEDS
from models.draw import code_noise, draw, group_size, guide, image_seed, truncate

pytestmark = pytest.mark.quick


def random_noise(batch: int, length: int, num_codes: int) -> Tensor:
    """(B, l, n)"""
    return code_noise(torch.arange(7, 7 + batch), torch.arange(length)[None], num_codes)


# Draws


@pytest.mark.parametrize("num_codes", [1, 2, 3, 16, 32, 37, 100])  # some leave the last group short
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.8), (9, 0.8)])
def test_draws_follow_the_distribution(num_codes: int, temperature: float, top_k: int, top_p: float) -> None:
    logits, count = 2 * torch.randn(num_codes), 40_000
    codes, _, _ = draw(logits.expand(1, count, -1), random_noise(1, count, num_codes), temperature, top_k, top_p)
    counts = torch.bincount(codes.flatten(), minlength=num_codes)
    probs = truncate(logits[None] / temperature, top_k, top_p).softmax(-1)[0]
    assert len(counts) == num_codes
    assert counts[probs == 0].sum() == 0
    assert_frequencies(counts, count * probs)


def assert_frequencies(counts: Tensor, expected: Tensor) -> None:
    """A chi-square test that 1 of 20,000 fair draws fails; what is expected less than 5 times counts as one."""
    likely = expected > 5
    expected = torch.cat([expected[likely], expected[~likely].sum(0, keepdim=True)])
    found = torch.cat([counts[likely], counts[~likely].sum(0, keepdim=True)])
    chi_square = ((found - expected).square() / expected.clamp(min=1)).sum().item()
    degrees = len(expected) - 1
    assert chi_square < degrees + 6 * math.sqrt(2 * degrees) + 12


def test_draws_of_the_published_codebook_follow_softmax() -> None:
    """Of 4096 codes with logits as a model has them, 64 groups of 64."""
    logits, count = 2 * torch.randn(4096), 20_000
    counts = torch.zeros(4096, dtype=torch.long)
    for seed in range(10):
        noise = code_noise(torch.tensor([seed]), torch.arange(count // 10)[None], 4096)
        codes, _, _ = draw(logits.expand(1, count // 10, -1), noise, 1.0, 0, 1.0)
        counts += torch.bincount(codes.flatten(), minlength=4096)
    assert_frequencies(counts, count * logits.softmax(-1))


def test_groups_are_about_as_many_as_their_codes() -> None:
    sizes = {num_codes: group_size(num_codes) for num_codes in (1, 2, 512, 1024, 4096, 16384)}
    assert sizes == {1: 1, 2: 2, 512: 32, 1024: 32, 4096: 64, 16384: 128}
    assert random_noise(2, 3, 4096).shape == (2, 3, 128)
    assert random_noise(2, 3, 512).shape == (2, 3, 48)


def test_draws_of_neighbouring_tokens_are_independent() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    codes, _, _ = draw(logits.expand(1, 60_000, 3), random_noise(1, 60_000, 3), 1.0, 0, 1.0)
    pairs = torch.bincount(3 * codes[0, 0::2] + codes[0, 1::2], minlength=9) / 30_000
    expected = torch.outer(logits.exp(), logits.exp()).flatten()
    assert (pairs - expected).abs().max() < 5 * math.sqrt(0.25 / 30_000)


def test_a_code_of_probability_0_is_never_drawn() -> None:
    """Nor at the least and the largest number of noise."""
    logits = torch.full((1, 200, 4096), -torch.inf)
    logits[..., 1000:3000:7] = torch.randn(286)
    for noise in (random_noise(1, 200, 4096), *(torch.full((1, 200, 128), end) for end in (1e-10, 16.0))):
        codes, probability, entropy = draw(logits, noise, 1.0, 0, 1.0)
        assert logits[0, 0, codes.flatten()].isfinite().all()
        assert probability.min() > 0
        assert (entropy > 0).all()
        assert (entropy < math.log(286)).all()


def test_probability_and_entropy_of_a_draw() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().view(1, 1, 3).expand(1, 3, 3)
    noise = torch.ones(1, 3, 4)  # of groups {0, 1} and {2}, then of the codes in a group
    for token, (group, code) in enumerate([(0, 0), (0, 1), (1, 0)]):
        noise[0, token, [group, 2 + code]] = 0.001  # so that token i draws code i
    codes, probability, entropy = draw(logits, noise, 1.0, 0, 1.0)
    assert codes.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(probability, torch.tensor([[0.5, 0.3, 0.2]]))
    direct = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    torch.testing.assert_close(entropy, torch.full((1, 3), direct))
    codes, probability, entropy = draw(logits, noise, 0.5, 2, 1.0)
    first, second = 0.25 / 0.34, 0.09 / 0.34  # squares of the two kept
    assert codes.tolist() == [[0, 1, 0]]
    torch.testing.assert_close(probability, torch.tensor([[first, second, first]]))
    direct = -(first * math.log(first) + second * math.log(second))
    torch.testing.assert_close(entropy, torch.full((1, 3), direct))


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.5, 3, 1.0), (1.0, 0, 0.5)]
)
def test_a_draw_from_no_distribution_has_no_entropy(
    number: float, temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(2, 5, 8)
    logits[0, 1, 7] = number
    logits[1, 4] = -math.inf
    _, _, entropy = draw(logits, random_noise(2, 5, 8), temperature, top_k, top_p)
    expected = torch.zeros(2, 5, dtype=torch.bool)
    expected[0, 1] = expected[1, 4] = True
    assert torch.equal(entropy.isnan(), expected)


# Truncation


def smallest_set(probs: list[float], top_p: float) -> set[int]:
    """Codes of the smallest set whose probability reaches top_p."""
    kept, mass = set(), 0.0
    for code in sorted(range(len(probs)), key=lambda code: -probs[code]):
        kept.add(code)
        mass += probs[code]
        if mass >= top_p:
            break
    return kept


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.35, 0.5, 0.9, 0.99, 0.9999])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float) -> None:
    logits = 2 * torch.randn(3, 20, 40)
    kept = truncate(logits, 0, top_p).isfinite()
    probs = logits.double().softmax(-1)
    for row, row_kept in zip(probs.flatten(0, 1), kept.flatten(0, 1), strict=True):
        assert set(row_kept.nonzero().flatten().tolist()) == smallest_set(row.tolist(), top_p)


@pytest.mark.parametrize("top_k", [1, 5, 39, 40, 41])
def test_top_k_keeps_the_likeliest(top_k: int) -> None:
    logits = torch.randn(3, 20, 40)
    kept = truncate(logits, top_k, 1.0)
    assert (kept.isfinite().sum(-1) == min(top_k, 40)).all()
    assert torch.equal(kept.sort(-1).values[..., -top_k:], logits.sort(-1).values[..., -top_k:])


def test_top_p_measures_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().view(1, 1, 4)
    assert truncate(logits, 0, 0.5).isfinite().tolist() == [[[True, True, False, False]]]
    assert truncate(logits, 2, 0.5).isfinite().tolist() == [[[True, False, False, False]]]  # 4/7 of the rest


def test_no_truncation_by_default() -> None:
    logits = torch.randn(1, 2, 8)
    assert torch.equal(truncate(logits, 0, 1.0), logits)


# Guidance and seeds


def test_guidance_formula() -> None:
    cond, uncond = torch.randn(2, 3, 4, 8).unbind(0)
    torch.testing.assert_close(guide(torch.cat([cond, uncond]), 1.5), 2.5 * cond - 1.5 * uncond)


def test_images_of_a_run_and_of_neighbouring_runs_have_seeds_of_their_own() -> None:
    many = 50_000
    for seed in (0, 1, 12345, NUM_SEEDS - 1):
        seeds = {image_seed(seed, index) for index in range(many)}
        assert len(seeds) == many
        assert min(seeds) >= 0
        assert max(seeds) < NUM_SEEDS
    starts = torch.tensor([image_seed(seed, 0) for seed in range(30_000)]).sort().values
    assert (starts.diff() >= many).all()  # so no two of these runs share one
    assert starts[0] + NUM_SEEDS - starts[-1] >= many
    assert image_seed(NUM_SEEDS - 1, 0) != image_seed(0, 0)  # all are different: the stride is odd
