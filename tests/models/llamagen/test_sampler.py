"""Sampling against the published code and against teacher forcing; seeds, editing, settings, the cost of a step.

Letters: B images, G side of the grid of codes, N = G * G, V codes.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import main_sample
from benchmarks.measure import CountKernels
from evaluation import run as evaluate
from models import sample
from models.draw import truncate
from models.family import Samples
from models.llamagen.config import LlamaConfig, LlamaGenDrawing
from models.llamagen.model import LlamaGen
from models.sampling import checked_drawing
from runtime.errors import UserError
from tests.command_factory import call
from tests.factory import FIXTURES, load_reference, tiny_autoencoder
from tests.llamagen_factory import REFERENCES, tiny_gpt

pytestmark = pytest.mark.quick
LABELS, SEEDS = [3, 7], [5, 6]
each_reference = pytest.mark.parametrize("name", REFERENCES)


# What the published code computed


@each_reference
def test_greedy_codes_of_the_published_code(name: str, device: torch.device) -> None:
    reference = load_reference(name)
    for number, settings in enumerate(reference.settings["samples"]):
        drawing = {key: settings[key] for key in ("cfg", "cfg_interval")}
        out = sample(reference.model(device=device), reference["labels"], temperature=0.0, **drawing)
        assert torch.equal(out.codes[0].cpu(), reference[f"sample_codes_{number}"]), settings


@each_reference
def test_filters_keep_what_the_published_ones_keep(name: str) -> None:
    """Ties at the k-th place stay."""
    reference, compared = load_reference(name), set()
    for number, settings in enumerate(reference.settings["filters"]):
        for kind in ("", "_tied"):
            key = f"filtered{kind}_{number}"
            if key in reference.expected:
                assert torch.equal(truncate(reference[f"filter{kind}_logits"], **settings), reference[key]), settings
                compared.add(key)
    assert compared == {key for key in reference.expected if key.startswith("filtered")}


def test_ties_stay_by_their_value_alone() -> None:
    tied = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 0.0])
    kept = {k: truncate(tied, k, 1.0).isfinite().nonzero().flatten().tolist() for k in (1, 2, 3, 4, 5, 6, 7)}
    every = list(range(6))
    assert kept == {1: [1, 3], 2: [1, 3], 3: every[1:5], 4: every[1:5], 5: every[:5], 6: every, 7: every}


# Sampling equals teacher forcing


@torch.no_grad()
def probabilities(
    model: LlamaGen, out: Samples, cfg: float = 0.0, cfg_interval: int = -1, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """(B, N, V) that each code was drawn from, by one pass over all of them."""
    labels = torch.tensor(LABELS, device=model.device)
    cond, uncond = (model(out.codes, each)[0] for each in (labels, torch.full_like(labels, model.unconditional_label)))
    step = torch.arange(model.num_locations, device=model.device)[:, None]
    guided = (step <= cfg_interval + 1) | (cfg_interval < 0)
    return truncate(torch.where(guided, cond + cfg * (cond - uncond), cond), top_k, top_p).softmax(-1)


@pytest.mark.parametrize(
    "settings",
    [
        {"cfg": 0.0},
        {"cfg": 1.5},
        {"cfg": 1.5, "cfg_interval": 0},
        {"cfg": 3.0, "cfg_interval": 6},
        {"cfg": 3.0, "cfg_interval": 100},
        {"cfg": 1.5, "top_k": 9, "top_p": 0.9},
    ],
    ids=str,
)
def test_sampling_equals_teacher_forcing(settings: dict[str, Any], device: torch.device) -> None:
    model = tiny_gpt().to(device)
    out = sample(model, LABELS, seeds=SEEDS, **settings)
    probs = probabilities(model, out, **settings)
    chosen = probs.gather(-1, out.codes[0].flatten(1)[..., None]).squeeze(-1)
    torch.testing.assert_close(out.probability[0].flatten(1), chosen, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.entropy[0].flatten(1), torch.special.entr(probs).sum(-1), atol=2e-4, rtol=0)
    assert out.entropy[0].mean() > 0.5
    assert torch.equal(out.step[0], torch.arange(16, device=device).view(1, 4, 4).expand(2, -1, -1))
    assert model.num_steps(checked_drawing(model, settings)) == 16


def test_draws_follow_the_distribution() -> None:
    """Of the first code, which a class token of 5,000 images precedes alone."""
    model, count = tiny_gpt(), 5000
    drawn = next(iter_codes(model, [3] * count, list(range(count))))
    probs = model([torch.zeros(1, 4, 4, dtype=torch.long)], torch.tensor([3]))[0][0, 0].softmax(-1)
    likely = probs * count > 5
    found = torch.bincount(drawn, minlength=64)[likely]
    chi_square = ((found - count * probs[likely]).square() / (count * probs[likely])).sum()
    assert likely.sum() > 10
    assert chi_square < 2.5 * likely.sum()


def iter_codes(model: LlamaGen, labels: list[int], seeds: list[int]) -> Any:
    """The codes (B,) that each step draws."""
    run = model.sampler(len(labels), LlamaGenDrawing(cfg=0.0))
    for step in run.steps(torch.tensor(labels), seeds):
        yield run.sequence[:, step].clone()


def test_without_an_autoencoder_there_are_codes_and_no_images() -> None:
    model = tiny_gpt()
    out = sample(model, LABELS, seeds=SEEDS)
    assert out.images is None
    assert [tuple(maps.shape) for maps in (*out.codes, *out.entropy, *out.step, *out.probability)] == 4 * [(2, 4, 4)]
    assert out.first(1).images is None
    painted = sample(tiny_gpt(autoencoder=tiny_autoencoder()), LABELS, seeds=SEEDS)
    assert torch.equal(painted.codes[0], out.codes[0])
    assert painted.images.shape == (2, 3, 16, 16)


def test_temperature_0_takes_the_likeliest_code_whatever_the_seed() -> None:
    model = tiny_gpt()
    first, second = (sample(model, LABELS, temperature=0.0, seeds=seeds) for seeds in ([1, 2], [3, 4]))
    narrow = sample(model, LABELS, top_k=1, seeds=[5, 6])
    assert torch.equal(first.codes[0], second.codes[0])
    assert torch.equal(first.codes[0], narrow.codes[0])
    assert (first.entropy[0] == 0).all()
    assert (first.probability[0] == 1).all()


def test_temperature_divides_the_logits() -> None:
    """Before truncation, as the published code does."""
    model = tiny_gpt()
    with torch.no_grad():
        head = model.output.weight.clone()
        hot = sample(model, LABELS, cfg=1.5, temperature=2.0, top_p=0.8, seeds=SEEDS)
        model.output.weight.copy_(head / 2)
        halved = sample(model, LABELS, cfg=1.5, top_p=0.8, seeds=SEEDS)
    assert torch.equal(hot.codes[0], halved.codes[0])
    torch.testing.assert_close(hot.entropy[0], halved.entropy[0], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:cfg has no effect")
def test_a_model_without_classes_draws() -> None:
    model = tiny_gpt(class_cond=False)
    out = sample(model, [10, 10], seeds=SEEDS, cfg=0.0)
    assert torch.equal(sample(model, [10, 10], seeds=SEEDS, cfg=1.5).codes[0], out.codes[0])
    with pytest.raises(UserError, match=r"^this model knows no classes; give 10 as the label of each image$"):
        sample(model, LABELS, cfg=0.0)


def test_unconditional_images_of_a_model_with_classes() -> None:
    """Guidance does nothing to them."""
    out, guided = (sample(tiny_gpt(), [10, 10], seeds=SEEDS, cfg=cfg) for cfg in (0.0, 2.0))
    assert torch.equal(out.codes[0], guided.codes[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws(dtype: torch.dtype) -> None:
    model = tiny_gpt(autoencoder=tiny_autoencoder()).to(dtype)
    out = sample(model, LABELS, seeds=SEEDS)
    assert out.entropy[0].dtype == torch.float32
    assert out.images.dtype == torch.float32
    exact = sample(model.float(), LABELS, seeds=SEEDS)
    assert (out.entropy[0] - exact.entropy[0])[:, 0, 0].abs().max() < 0.1  # of the first code, of the same inputs


def test_sampling_ignores_training_mode() -> None:
    model = tiny_gpt(dropout=0.5, label_drop=1.0)
    expected = sample(model, LABELS, seeds=SEEDS).codes[0]
    with torch.no_grad():
        assert torch.equal(sample(model.train(), LABELS, seeds=SEEDS).codes[0], expected)
    assert model.training


# Seeds


def test_an_image_depends_on_its_seed_and_on_no_batch(device: torch.device) -> None:
    model, labels, seeds = tiny_gpt(), [3, 7, 3], [11, 12, 13]
    together = sample(model, labels, seeds=seeds, cfg=1.5)
    model.to(device)
    for image in range(3):
        alone = sample(model, labels[image : image + 1], seeds=seeds[image : image + 1], cfg=1.5)
        assert torch.equal(alone.codes[0][0].cpu(), together.codes[0][image])
    again = sample(model, labels, seeds=seeds, cfg=1.5)
    assert torch.equal(again.codes[0].cpu(), together.codes[0])
    assert not torch.equal(together.codes[0][0], together.codes[0][2])  # same label, other seed


def test_one_sampler_draws_batch_after_batch() -> None:
    """Nothing of a batch is left for the next."""
    model = tiny_gpt()
    run = model.sampler(2, LlamaGenDrawing(cfg=1.5))
    first, second = (run(torch.tensor(LABELS), seeds).codes[0] for seeds in (SEEDS, [8, 9]))
    assert torch.equal(first, sample(model, LABELS, seeds=SEEDS, cfg=1.5).codes[0])
    assert torch.equal(second, sample(model, LABELS, seeds=[8, 9], cfg=1.5).codes[0])


# Editing


def test_kept_codes_stay_and_the_rest_is_drawn_given_them() -> None:
    """In raster order: what is drawn sees the kept codes before it, and none after it."""
    model = tiny_gpt()
    keep = torch.zeros(2, 4, 4, dtype=torch.bool)
    keep[:, 1], keep[:, 3, 2] = True, True
    codes = torch.randint(64, (2, 4, 4))
    free = sample(model, LABELS, seeds=SEEDS, cfg=1.5)
    out = sample(model, LABELS, seeds=SEEDS, cfg=1.5, keep=[keep], keep_codes=[codes])
    assert torch.equal(out.codes[0][keep], codes[keep])
    assert torch.equal(out.probability[0].isnan(), keep)
    probs = probabilities(model, out, cfg=1.5).unflatten(1, (4, 4))
    chosen = probs.gather(-1, out.codes[0][..., None]).squeeze(-1)
    torch.testing.assert_close(out.probability[0][~keep], chosen[~keep], atol=1e-5, rtol=0)
    assert torch.equal(out.codes[0][:, 0], free.codes[0][:, 0])
    assert not torch.equal(out.codes[0][:, 2], free.codes[0][:, 2])


def test_impossible_edits_are_refused() -> None:
    model, keep = tiny_gpt(), [torch.ones(2, 4, 4, dtype=torch.bool)]
    with pytest.raises(UserError, match=r"keep_codes must lie between 0 and 63$"):
        sample(model, LABELS, keep=keep, keep_codes=[torch.full((2, 4, 4), 64)])
    with pytest.raises(UserError, match=r"keep must be a list of one map for each scale"):
        sample(model, LABELS, keep=keep * 2, keep_codes=[torch.zeros(2, 4, 4, dtype=torch.long)])


# Cost


def test_a_decoding_step_launches_few_operations() -> None:
    """Of GPT-B but for its width, which their number does not depend on; the published code launches 596."""
    size = LlamaConfig(hidden_size=48, intermediate_size=64, num_attention_heads=12, num_hidden_layers=12)
    run = tiny_gpt(llama_config=size).sampler(1, LlamaGenDrawing(cfg=1.0, temperature=0.9))
    steps = run.steps(torch.tensor([3]), [5])
    next(steps), next(steps)  # the first makes the noise
    with CountKernels() as kernels:
        next(steps)
    assert 100 < kernels.count <= 300


def test_unguided_codes_cost_half() -> None:
    """Without guidance, and after the interval that is guided."""
    model, rows = tiny_gpt(), []
    with model.norm.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0]))):
        sample(model, LABELS, cfg=1.5, cfg_interval=2)
        sample(model, LABELS, cfg=0.0, cfg_interval=2)
    assert rows == [4] * 4 + [2] * 12 + [2] * 16


# Mistakes


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"cfg": -0.5}, r"^cfg is -0.5; it must not be negative, 0 for no guidance$"),
        ({"cfg": [1.0, 2.0]}, "^cfg has 2 values; give one number, or one for each of the scales 4$"),
        ({"cfg_interval": -2}, r"^cfg_interval is -2; it must be -1 \(guide every code\) or more$"),
        ({"cfg_start_step": 2}, "^cfg_start_step means nothing to llamagen, which has cfg, .*cfg_interval$"),
        ({"steps_per_scale": 2}, "^steps_per_scale means nothing to llamagen"),
        ({"temperature": 1e-9}, "^temperature is 1e-09; it must be 0"),
        ({"top_k": -1}, "^top_k is -1;"),
        ({"top_p": 0.0}, "^top_p is 0.0;"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        sample(tiny_gpt(), LABELS, **settings)


def test_logits_that_are_not_finite_are_named() -> None:
    model = tiny_gpt()
    with torch.no_grad():
        model.tok_embeddings.weight.fill_(math.nan)
    with pytest.raises(UserError, match=r"^the logits are not finite from step 1 on, at the scale of side 4; take"):
        sample(model, LABELS, seeds=SEEDS)


def test_images_cannot_be_asked_of_a_model_without_an_autoencoder(tmp_path: Path) -> None:
    model, reference = ("--checkpoint", str(FIXTURES / "tiny-npp")), str(FIXTURES / "evaluator" / "samples.npz")
    output = ("--output_dir", str(tmp_path / "output"))
    measured = ("--features", "digits", "--num_samples", "20", "--reference", reference)
    for outcome in (call(main_sample.main, *model, *output), call(evaluate.main, *model, *output, *measured)):
        assert outcome.error().startswith("this model has no autoencoder, so it draws codes and no images; ")
    assert not list(tmp_path.rglob("*.png"))


def test_a_model_without_unconditional_labels_draws_classes_alone() -> None:
    """Published weights that were trained without dropping labels lack that row."""
    full = tiny_gpt()
    state = full.state_dict() | {
        "cls_embedding.embedding_table.weight": full.cls_embedding["embedding_table"].weight[:-1]
    }
    model = LlamaGen.from_state(full.config, None, dict(state))
    model.load_state_dict(state)
    model.eval()
    assert torch.equal(
        sample(model, LABELS, seeds=SEEDS, cfg=0).codes[0], sample(full, LABELS, seeds=SEEDS, cfg=0).codes[0]
    )
    with pytest.raises(
        UserError, match=r"^this model was trained without unconditional labels and cannot be guided; set"
    ):
        sample(model, LABELS, cfg=0.5)
    with pytest.raises(
        UserError, match=r"^this model was trained without unconditional labels; name a class for each image$"
    ):
        sample(model, [10], cfg=0)
