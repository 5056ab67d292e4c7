"""A generator as a task: a step's blocks, ways of computing that change nothing, grids, weights to start from."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from models import sample, transformer
from models.autoencoder import to_uint8
from models.checkerboard.config import CheckerboardDrawing
from models.checkerboard.model import Checkerboard, in_scan_order, scale_metrics
from models.checkerboard.order import sampling_blocks
from models.class_names import imagenet_names
from models.family import StepContext
from models.loading.checkpoint import initialize_from
from models.loading.class_table import fit_classes
from models.scales import join_scales
from models.transformer import head_metrics
from runtime.errors import UserError
from sampling.pictures import save_grid
from tests.command_factory import save_run
from tests.factory import FIXTURES, TINY_TRANSFORMER, load_reference, random_codes, tiny_autoencoder, tiny_model
from tests.training_factory import PREVIEW, BlocksTask, fresh_model, losses, tiny_args, tiny_trainer, without_noise
from training.generator import GeneratorTask
from training.task import step_context

CPU = torch.device("cpu")
pytestmark = pytest.mark.quick
slow = pytest.mark.skipif("RUN_SLOW" not in os.environ, reason="compiles C++ for up to a minute; set RUN_SLOW=1")


def context(step: int, seed: int = 0, batch: int = 0) -> StepContext:
    return step_context(seed, step, batch, CPU)


# The blocks of a step


def drawn_blocks(model: Checkerboard, seed: int, steps: range) -> list[tuple[tuple[int, ...], ...]]:
    task = BlocksTask(model, tiny_args(), PREVIEW)
    with torch.no_grad():
        for step in steps:
            task.loss((random_codes(model, batch=1), torch.tensor([1])), context(step, seed))
    return task.blocks


def test_a_steps_blocks_follow_from_seed_and_step() -> None:
    first, again = (drawn_blocks(fresh_model(), 0, range(20)) for _ in range(2))
    assert first == again
    assert drawn_blocks(fresh_model(), 0, range(10, 20)) == first[10:]  # whatever was drawn before
    assert len(set(first)) > 10  # of scales 1 2 4
    assert drawn_blocks(fresh_model(), 1, range(20)) != first
    for blocks in first:
        assert [sum(lengths) for lengths in blocks] == [1, 4, 16]


def test_all_batches_of_a_step_share_its_blocks(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, task=BlocksTask, epochs=1, batch_size=4, accum_steps=2)
    trainer.fit()
    blocks = trainer.task.blocks
    assert len(blocks) == 20
    assert blocks[::2] == blocks[1::2]
    assert len(set(blocks)) > 5


def test_fixed_block_sizes_are_eight_steps_a_scale() -> None:
    drawn = drawn_blocks(fresh_model(random_block_size=False), 0, range(3))
    assert drawn == [sampling_blocks([1, 2, 4], 8)] * 3 == [((1,), (1,) * 4, (2,) * 8)] * 3


# The loss


def test_the_loss_is_the_models_and_so_are_its_metrics() -> None:
    """In evaluation mode, under the same layout; metrics are those of the very logits."""
    model = tiny_model(scale_ratio=3.0)
    task, codes, labels = BlocksTask(model, tiny_args(), PREVIEW), random_codes(model, batch=3), torch.tensor([1, 2, 3])
    with torch.no_grad():
        loss = task.loss((codes, labels), context(4))
        layout = model.layout(task.blocks[0])
        logits, expected = model(codes, labels, layout=layout)
    assert torch.equal(loss.value, expected)
    targets = in_scan_order(join_scales(codes), layout)
    nats = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    wanted = scale_metrics(nats, (logits.argmax(-1) == targets).float(), layout.scale_sizes)
    assert {name: value.item() for name, value in loss.metrics().items()} == pytest.approx(
        {name: value.item() for name, value in wanted.items()}
    )


def test_metrics_are_the_same_a_part_of_the_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, head = torch.randn(3, 5, 8, generator=generator), torch.randn(16, 8, generator=generator)
    targets = torch.randint(16, (3, 5), generator=generator)
    whole = head_metrics(x, targets, head)
    monkeypatch.setattr(transformer, "MANY_LOGITS", 2 * 16)  # two rows at a time
    for part, found in zip(head_metrics(x, targets, head), whole, strict=True):
        assert part.shape == (3, 5)
        torch.testing.assert_close(part, found)
    expected = F.cross_entropy((x @ head.T).flatten(0, 1), targets.flatten())
    assert whole[0].mean().item() == pytest.approx(expected.item())


def test_noise_follows_from_seed_step_and_batch() -> None:
    model = tiny_model(label_drop=0.5, random_replace=0.5).train()
    task, batch = GeneratorTask(model, tiny_args(), PREVIEW), (random_codes(model, batch=4), torch.arange(4))
    with torch.no_grad():
        first, again, other, third = (
            task.loss(batch, which).value for which in (context(3), context(3), context(3, batch=1), context(4))
        )
    assert torch.equal(first, again)
    assert len({first.item(), other.item(), third.item()}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_train_as_their_cached_codes_do(dtype: torch.dtype) -> None:
    """Mixed precision does not touch the codes."""
    model = tiny_model()
    images, labels = torch.rand(4, 3, 32, 32) * 2 - 1, torch.arange(4)
    codes = model.tokenize(images)
    task = GeneratorTask(model, tiny_args(), PREVIEW)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        live, cached = (task.loss((inputs, labels), context(0)).value for inputs in (images, codes))
    assert torch.equal(live, cached)


# Ways of computing that change nothing


def train(folder: Path, model: Checkerboard | None = None, **args: Any) -> tuple[list[float], list[Tensor]]:
    """Losses of 5 steps; the last weights and their averages."""
    trainer = tiny_trainer(folder, model or without_noise(), num_images=40, epochs=1, ema=True, **args)
    trainer.fit()
    return losses(folder), [*trainer.state.module.parameters(), *trainer.state.ema.module.parameters()]


def assert_trains_alike(folder: Path, model: Checkerboard | None = None, **args: Any) -> None:
    plain, other = train(folder / "plain"), train(folder / "other", model, **args)
    np.testing.assert_allclose(other[0], plain[0], rtol=1e-4)
    for one, weight in zip(other[1], plain[1], strict=True):
        torch.testing.assert_close(one, weight, rtol=0, atol=1e-4)


def test_activation_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    """Every layer is begun once forward, and once more for its gradients."""
    model, runs = without_noise(), 0

    def count(*args: Any) -> None:
        nonlocal runs
        runs += 1

    for layer in model.transformer.layers:
        layer.register_forward_pre_hook(count)
    assert_trains_alike(tmp_path, model, activation_checkpointing=True)
    assert runs == 2 * 5 * TINY_TRANSFORMER.num_hidden_layers


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiling_changes_no_loss(checkpointing: bool, tmp_path: Path) -> None:
    """Traced and differentiated as ever; only the slow last part, writing C++, is left out."""
    with patch("torch.compile", side_effect=partial(torch.compile, backend="aot_eager")) as compiled:
        assert_trains_alike(tmp_path, compile=True, activation_checkpointing=checkpointing)
    compiled.assert_called_once()  # for the second of two runs


@slow
def test_compiling_to_the_end_changes_no_loss(tmp_path: Path) -> None:
    assert_trains_alike(tmp_path, compile=True)


def assert_flex_gives_the_same_losses(attention: Callable[..., Tensor]) -> None:
    """Of drawn blocks; on a CPU, FlexAttention has no gradients."""
    model = tiny_model(scale_ratio=3.0)
    task, batch = GeneratorTask(model, tiny_args(), PREVIEW), (random_codes(model, batch=2), torch.tensor([1, 2]))
    losses = {}
    with torch.no_grad(), patch.object(transformer, "compiled_flex_attention", lambda: attention):
        for flex in (False, True):
            model.use_flex_attention = flex
            losses[flex] = [task.loss(batch, context(step)).value.item() for step in range(4)]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_changes_no_loss() -> None:
    assert_flex_gives_the_same_losses(flex_attention)


@slow
def test_compiled_flex_attention_changes_no_loss() -> None:
    assert_flex_gives_the_same_losses(torch.compile(flex_attention))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on CUDA alone")
def test_flex_attention_trains_alike_on_cuda() -> None:
    """To the same gradients, but for rounding."""
    cuda, gradients = torch.device("cuda"), []
    for attention in ("sdpa", "flex"):
        model = tiny_model(scale_ratio=3.0).to(cuda)
        task = GeneratorTask(model, tiny_args(attention=attention), PREVIEW)
        assert model.use_flex_attention == (attention == "flex")
        batch = (random_codes(model, batch=2), torch.tensor([1, 2], device=cuda))
        task.loss(batch, step_context(0, 0, 0, cuda)).value.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert (gradients[1] - gradients[0]).norm() < 0.01 * gradients[0].norm()


def test_flex_attention_is_refused_where_it_has_no_gradients() -> None:
    with pytest.raises(UserError, match="attention flex trains on CUDA alone"):
        GeneratorTask(fresh_model(), tiny_args(attention="flex", device="cpu"), PREVIEW)


# Scan orders


@pytest.mark.parametrize("scan_order", ["raster", "random"])
def test_other_scan_orders_train_and_sample(scan_order: str, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, fresh_model(scan_order=scan_order), GeneratorTask, epochs=2)
    trainer.fit()
    found = losses(tmp_path)
    assert found[-1] < 0.75 * found[0]
    with Image.open(tmp_path / "samples" / "epoch_0002.png") as grid:
        assert np.array(grid).std() > 5
    again, other = (sample(trainer.state.module, [3], seeds=[seed]).codes[-1] for seed in (5, 6))
    assert torch.equal(sample(trainer.state.module, [3], seeds=[5]).codes[-1], again)
    assert not torch.equal(again, other)


# Grids of samples


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"num_classes": 3}, [0, 1, 2]),
        ({"num_classes": 40}, [i * 40 // 16 for i in range(16)]),
        ({"class_cond": False}, [10] * 16),
    ],
)
def test_a_grid_has_a_row_a_class(config: dict[str, Any], labels: list[int], tmp_path: Path) -> None:
    model = tiny_model(img_size=16, **config)
    drawing = CheckerboardDrawing(cfg=1.0, cfg_start_step=2, steps_per_scale=2)
    assert list(GeneratorTask(model, tiny_args(), drawing).show(model, tmp_path, "grid")) == []
    cfg = 1.0 if model.config.class_cond else 0.0
    rows = [label for label in labels for _ in range(8)]
    out = sample(model, rows, steps_per_scale=2, cfg=cfg, cfg_start_step=2, seeds=range(len(rows)))
    save_grid(to_uint8(out.images), tmp_path / "expected.png", 8)
    grid, expected = (np.array(Image.open(tmp_path / name)) for name in ("grid.png", "expected.png"))
    assert expected.shape == (66 * len(labels) + 2, 66 * 8 + 2, 3)
    margin = grid.shape[1] - expected.shape[1]
    assert (margin > 0) == model.config.class_cond
    np.testing.assert_array_equal(grid[:, margin:], expected)
    assert all((row != 255).any() for row in np.split(grid[1:-1, :margin], len(labels)) if margin)  # a name each


# Weights to start from


def started_from(folder: Path, **config: Any) -> tuple[Checkerboard, dict[str, Tensor], list[str]]:
    """A model started from a run's weights, its own weights before that, and the remarks."""
    model = tiny_model(seed=7, autoencoder=tiny_autoencoder(), **config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    return model, before, initialize_from(model, folder)


def assert_all_but(kept: set[str], model: Checkerboard, before: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Every tensor is the saved one to the last bit, those ``kept`` the model's own of before."""
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in kept else saved[key]), key


TABLES = {"embed_positions.weight", "rope.table"}


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({}, set()),
        ({"scale_ratio": 4.0}, TABLES),
        ({"img_size": 64}, TABLES),
        ({"num_mixing_layers": 1}, {"rope.mixing_coeffs"}),
    ],
    ids=["same", "2x-to-4x", "larger-images", "mixing"],
)
def test_what_fits_is_copied_and_what_does_not_is_listed(
    config: dict[str, Any], kept: set[str], tmp_path: Path
) -> None:
    saved = tiny_model()
    model, before, remarks = started_from(save_run(tmp_path / "run", saved), **config)
    assert_all_but(kept, model, before, saved.state_dict())
    total = len(before)
    assert remarks[0].startswith(f"{total - len(kept)} of {total} tensors start from {tmp_path / 'run'}")
    assert len(remarks) == 1 + len(kept)
    for key in kept:
        shapes = f"({tuple(saved.state_dict()[key].shape)} there, {tuple(before[key].shape)} here)"
        assert f"not loaded, freshly initialized: {key} {shapes}" in remarks


@pytest.mark.parametrize(
    ("saved_names", "names", "rows"),
    [
        (None, None, [10] * 12),
        ("abcdefghij", None, [10] * 12),
        (None, "abcdefghijkl", [10] * 12),
        ("abcdefghij", "jxcd", [9, 10, 2, 3]),
        ("abcdefghij", "jihgfedcba", [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("abcaefghij", "ab", [10, 1]),  # two of one name
        ("abcaefghij", "abcaefghij", range(10)),
        ("abc", "ab", [10, 10]),  # not the names of ten classes
    ],
)
def test_a_class_starts_as_that_of_its_name_or_as_none(
    saved_names: str | None, names: str | None, rows: Sequence[int], tmp_path: Path
) -> None:
    saved = tiny_model()
    saved.class_names = saved_names and list(saved_names)
    folder = save_run(tmp_path / "run", saved)
    model = tiny_model(seed=7, num_classes=len(rows))
    model.class_names = names and list(names)
    remarks = initialize_from(model, folder)
    table = saved.class_embeddings.weight[[*rows, 10]]
    assert_all_but(set(), model, {}, saved.state_dict() | {"class_embeddings.weight": table})
    assert len(remarks) == 1 + (list(rows) != list(range(10)))
    known = sum(row < 10 for row in rows)
    assert remarks[-1].startswith(f"{known} of {len(rows)} classes ") or len(remarks) == 1


def test_published_weights_without_names_know_imagenets_classes() -> None:
    saved, model = tiny_model(num_classes=1000), tiny_model(seed=7, num_classes=2)
    for name, row in ((imagenet_names()[207], 207), (imagenet_names()[281], 281), ("tabby cat", 281)):
        model.class_names = [name, "my cat"]
        fitted, remarks = fit_classes(model, saved.state_dict(), None)
        assert torch.equal(fitted["class_embeddings.weight"], saved.class_embeddings.weight[[row, 1000, 1000]])
        assert remarks[0].startswith("1 of 2 classes start as those of the same name there")
    as_many = tiny_model(seed=7, num_classes=1000)
    as_many.class_names = [f"class {label}" for label in range(1000)]  # whose order is all that is known of them
    assert fit_classes(as_many, saved.state_dict(), None)[1] == []


def test_a_published_table_without_a_row_of_no_class_gets_the_mean_of_its_classes() -> None:
    model = tiny_model(seed=7, num_classes=2)
    model.class_names = [imagenet_names()[207], "my cat"]
    key, rows = "class_embeddings.weight", torch.randn(1000, 32)
    fitted, remarks = fit_classes(model, {key: rows}, None, 1000)
    assert torch.equal(fitted[key], torch.stack([rows[207], rows.mean(0), rows.mean(0)]))
    assert remarks[0].startswith("1 of 2 classes start as those of the same name there")


def test_a_model_without_classes_starts_from_the_row_of_none() -> None:
    saved, model = tiny_model(), tiny_model(seed=7, class_cond=False, num_classes=3)
    model.class_names = ["all"]  # of its data, which it does not learn
    fitted, remarks = fit_classes(model, saved.state_dict(), [f"class {label}" for label in range(10)])
    assert torch.equal(fitted["class_embeddings.weight"], saved.class_embeddings.weight[[10, 10, 10, 10]])
    assert remarks == []


def test_what_learned_no_classes_gives_its_row_of_none_to_all(tmp_path: Path) -> None:
    """Though its data has classes, and its table rows for them."""
    saved, model = tiny_model(class_cond=False), tiny_model(seed=7)
    saved.class_names = model.class_names = [f"class {label}" for label in range(10)]
    initialize_from(model, save_run(tmp_path / "run", saved))
    assert torch.equal(model.class_embeddings.weight, saved.class_embeddings.weight[[10] * 11])


def test_classes_of_another_width_begin_fresh(tmp_path: Path) -> None:
    wider = replace(TINY_TRANSFORMER, hidden_size=64, num_attention_heads=8, intermediate_size=512)
    model = tiny_model(num_classes=3, llama_config=wider)
    fitted, remarks = fit_classes(model, tiny_model().state_dict(), None)
    assert fitted["class_embeddings.weight"].shape == (11, 32)
    assert remarks == []


def test_tensors_of_one_side_alone_are_listed(tmp_path: Path) -> None:
    saved = tiny_model(use_head_mlp=True)
    deeper = replace(TINY_TRANSFORMER, num_hidden_layers=3)
    model, before, remarks = started_from(save_run(tmp_path / "run", saved), llama_config=deeper, num_mixing_layers=2)
    new = {key for key in before if key.startswith("transformer.layers.2.")}
    gone = {key for key in saved.state_dict() if key.startswith("head_mlp.")}
    assert_all_but(new, model, before, saved.state_dict())
    assert {f"not loaded, freshly initialized: {key} (not there)" for key in new} <= set(remarks)
    assert {f"not loaded: {key} (this model has none)" for key in gone} <= set(remarks)
    assert len(remarks) == 1 + len(new) + len(gone)


def test_published_weights_start_a_run() -> None:
    reference = load_reference("tiny-2x")
    config = reference.model().config
    model = Checkerboard(replace(config, scale_ratio=4.0), reference.model().autoencoder)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    remarks = initialize_from(model, FIXTURES / "tiny-2x")
    assert_all_but(TABLES, model, before, reference.model().state_dict())
    assert len(remarks) == 3


def test_a_checkpoint_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    """Of another width and with other codes."""
    other = replace(TINY_TRANSFORMER, hidden_size=64, num_attention_heads=8, intermediate_size=512)
    autoencoder = tiny_autoencoder(n_embed=32, embed_dim=128)
    folder = save_run(tmp_path / "run", tiny_model(llama_config=other, autoencoder=autoencoder))
    with pytest.raises(UserError, match="has no weights that fit this model; name a checkpoint of a like one"):
        started_from(folder)
    with pytest.raises(UserError, match="no checkpoint at nowhere"):
        started_from(Path("nowhere"))
