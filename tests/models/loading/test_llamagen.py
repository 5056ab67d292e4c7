"""Files of LlamaGen and of Next Patch Prediction: every layout, what they leave open, mistakes, and the way back."""

import argparse
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from models import load_checkpoint, sample
from models.llamagen.config import LlamaGenConfig
from models.llamagen.model import LlamaGen
from models.loading import llamagen
from models.loading.checkpoint import CONFIG_NAME, config_of, export_published, initialize_from
from models.loading.identity import model_sha256
from models.loading.state import read_torch_file
from runtime.config import dataclass_from_dict, read_yaml, write_yaml
from runtime.errors import UserError
from tests.command_factory import ROOT, save_run
from tests.factory import FIXTURES, load_reference, tiny_autoencoder, tiny_model, zeros_of
from tests.llamagen_factory import REFERENCES, tiny_gpt

pytestmark = pytest.mark.quick
NAME = "checkpoint.pt"
TABLE = "cls_embedding.embedding_table.weight"
PUBLISHED = {  # of formats.md G1: layers, heads, width, feed-forward width
    "B": (12, 12, 768, 2048),
    "L": (24, 16, 1024, 2816),
    "XL": (36, 20, 1280, 3584),
    "XXL": (48, 24, 1536, 4096),
    "3B": (24, 32, 3200, 8704),
}
State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of tiny-npp that a test may spoil."""
    return Path(shutil.copytree(FIXTURES / "tiny-npp", tmp_path / "tiny-npp"))


def content_of(name: str = "tiny-npp") -> dict[str, Any]:
    return torch.load(FIXTURES / name / NAME, weights_only=False)  # a file of our own


def edit_content(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite a checkpoint after ``edit`` changed it in place."""
    content = content_of()
    edit(content)
    torch.save(content, folder / NAME)


def edit_config(folder: Path, **settings: Any) -> None:
    """Rewrite config.yaml with settings of the model changed, or left out where they are ``...``."""
    section = yaml.safe_load((folder / CONFIG_NAME).read_text())["model"] | settings
    write_yaml(folder / CONFIG_NAME, {"model": {key: value for key, value in section.items() if value is not ...}})


def assert_same_model(first: LlamaGen, second: LlamaGen) -> None:
    """The same to the last bit, and in all that the configuration says."""
    assert model_sha256(first) == model_sha256(second)
    assert first.scale_sizes == second.scale_sizes


def npp(use_ema: bool = False) -> LlamaGen:
    return load_reference("tiny-npp").model(use_ema)


def refusal(path: Path, **how: Any) -> str:
    """The one sentence that loading a file ends in."""
    with pytest.raises(UserError) as error:
        load_checkpoint(path, **how)
    assert "\n" not in str(error.value)
    return str(error.value)


# Layouts


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "DDP": lambda state: {"model": state, "optimizer": {}, "steps": 5, "args": argparse.Namespace(num_classes=10)},
    "DeepSpeed": lambda state: {"module": state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "bare": lambda state: state,
}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_prefix_loads(layout: str, prefix: str, folder: Path) -> None:
    state = {prefix + key: value for key, value in content_of()["model"].items()}
    torch.save(LAYOUTS[layout](state), folder / NAME)
    assert_same_model(load_checkpoint(folder), npp())


def test_layouts_are_tried_in_their_order(folder: Path) -> None:
    content = content_of()
    other = {key: value + 1 for key, value in content["model"].items()}
    for states in (("model", "module", "state_dict"), ("module", "state_dict")):
        torch.save({states[0]: content["model"]} | dict.fromkeys(states[1:], other), folder / NAME)
        assert_same_model(load_checkpoint(folder), npp())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_tables_and_caches_among_the_weights_are_ignored(prefix: str, folder: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        for name in ("model", "ema"):
            content[name] |= {f"{prefix}{key}": torch.full((3, 5), torch.nan) for key in ("freqs_cis", "causal_mask")}
            for kind in ("k_cache", "v_cache"):
                content[name][f"{prefix}layers.1.attention.kv_cache.{kind}"] = torch.zeros(2, 4, 65, 12)

    edit_content(folder, add)
    for use_ema in (False, True):
        assert_same_model(load_checkpoint(folder, use_ema), npp(use_ema))


@pytest.mark.parametrize("layout", ["bare", "DDP"])
@pytest.mark.parametrize("kind", [lambda value: value, nn.Parameter], ids=["tensors", "parameters"])
def test_tensors_with_attributes_load(kind: Callable[[Tensor], Tensor], layout: str, folder: Path) -> None:
    """As the 3B file has them: torch writes them by the class torch.Tensor and _rebuild_from_type_v2."""
    state = {key: kind(value) for key, value in content_of()["model"].items()}
    for value in state.values():
        value.tensor_model_parallel, value.partition = True, [0, 1]
    torch.save(LAYOUTS[layout](state), folder / NAME)
    if kind is not nn.Parameter:  # which torch writes by a function of their own
        assert b"_rebuild_from_type_v2" in (folder / NAME).read_bytes()
    assert_same_model(load_checkpoint(folder), npp())


def test_half_precision_weights_load_as_float32(folder: Path) -> None:
    edit_content(folder, lambda c: c.update(model={key: value.bfloat16() for key, value in c["model"].items()}))
    model = load_checkpoint(folder)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.output.weight, npp().output.weight.bfloat16().float())


def test_averaged_weights_are_others() -> None:
    assert not torch.equal(npp(use_ema=True).output.weight, npp().output.weight)


# What a file tells


def alone(folder: Path, name: str, content: Any) -> Path:
    """A file of this name in a folder of its own, without a config.yaml."""
    (folder / "alone").mkdir()
    torch.save(content, folder / "alone" / name)
    return folder / "alone" / name


@pytest.fixture
def known_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of tiny-npp stands in the table of published sizes."""
    monkeypatch.setitem(llamagen.SIZES, (2, 48), llamagen.Size("tiny", 4))


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_need_no_configuration(size: str, tmp_path: Path) -> None:
    """All but the heads and the grid is read off the weights; it is what configs/llamagen_SIZE.yaml says."""
    layers, heads, width, ffn = PUBLISHED[size]
    state = {TABLE: zeros_of(1001, width), "output.weight": zeros_of(16384, width)}
    state |= {f"layers.{i}.feed_forward.w1.weight": zeros_of(ffn, width) for i in range(layers)}
    for file, image_size in ((f"c2i_{size}_256.pt", 256), (f"c2i_{size}_384.pt", 384)):
        config = config_of(tmp_path / file, state)
        assert isinstance(config, LlamaGenConfig)
        assert (config.img_size, config.num_classes, config.vocab_size) == (image_size, 1000, 16384)
        found = config.llama_config
        assert (found.num_hidden_layers, found.num_attention_heads) == (layers, heads)
        assert (found.hidden_size, found.intermediate_size) == (width, ffn)
        shipped = read_yaml(ROOT / f"configs/llamagen_{size}.yaml")["model"]
        assert found == dataclass_from_dict(LlamaGenConfig, shipped, "").llama_config


@pytest.mark.parametrize(
    ("name", "args", "side"),
    [
        ("c2i_tiny_256.pt", None, 16),
        ("c2i_tiny_384.pt", None, 24),
        ("my_512-best.pth", None, 32),
        ("consolidated.pth", {"image_size": 448, "downsample_size": 16}, 28),
        ("c2i_tiny_256.pt", {"image_size": 384, "downsample_size": 16}, 24),  # args come first
        ("c2i_tiny_256.pt", {"image_size": 256, "downsample_size": 8}, 32),
        ("c2i_tiny_256.pt", {"image_size": 384}, 24),
        ("c2i_tiny_256.pt", {"gpt_model": "GPT-tiny"}, 16),
    ],
)
@pytest.mark.usefixtures("known_size")
def test_the_grid_is_found(name: str, args: dict[str, int] | None, side: int, tmp_path: Path) -> None:
    content = {"model": content_of()["model"]} | ({} if args is None else {"args": argparse.Namespace(**args)})
    path = alone(tmp_path, name, content)
    assert load_checkpoint(path).scale_sizes == [side]
    assert load_checkpoint(path.parent).scale_sizes == [side]  # the folder holds no other file


@pytest.mark.usefixtures("known_size")
def test_a_configuration_comes_before_the_file(folder: Path) -> None:
    """Of the grid, args say 8 x 8; of what the configuration leaves out, the file is asked."""
    edit_config(folder, img_size=256, llama_config=..., num_classes=..., vocab_size=...)
    model = load_checkpoint(folder)
    assert model.scale_sizes == [16]
    assert model.config.llama_config == npp().config.llama_config
    assert model.config.num_classes == 10


def test_heads_of_the_configuration_serve_any_size(folder: Path) -> None:
    """Other heads are another model, which the weights do not tell."""
    for heads in (4, 2):
        edit_config(folder, img_size=..., llama_config={"num_attention_heads": heads})
        model = load_checkpoint(folder)
        assert model.config.llama_config.num_attention_heads == heads
        assert model.scale_sizes == [8]


@pytest.mark.parametrize(
    ("rows", "args", "configured", "expected"),
    [
        (11, None, None, 10),
        (11, 10, None, 10),
        (10, 10, None, 10),  # trained without dropping labels
        (10, None, 10, 10),
        (10, None, None, 9),  # nothing tells that it lacks the row
        (10, 10, 9, 9),
    ],
)
@pytest.mark.usefixtures("known_size")
def test_classes_are_counted(rows: int, args: int | None, configured: int | None, expected: int, folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["model"][TABLE] = content["model"][TABLE][:rows].clone()
        content["args"] = argparse.Namespace(image_size=128, **({} if args is None else {"num_classes": args}))

    edit_content(folder, edit)
    edit_config(folder, num_classes=... if configured is None else configured)
    model = load_checkpoint(folder)
    assert model.config.num_classes == expected
    assert model.has_unconditional_row == (rows > expected)
    label = torch.tensor([expected - 1])
    assert sample(model, label, cfg=0.0, temperature=0.0).codes[0].shape == (1, 8, 8)
    if rows == expected:
        with pytest.raises(
            UserError, match=r"^this model was trained without unconditional labels and cannot be guided"
        ):
            sample(model, label, cfg=1.0)


# The autoencoder


def test_an_autoencoder_is_named_by_the_configuration(tmp_path: Path) -> None:
    """Or there is none, and images are None."""
    model = tiny_gpt(autoencoder=tiny_autoencoder())
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    section = {"architecture": "llamagen", "num_classes": 10, "vocab_size": 64, "llama_config": sizes}
    torch.save({"model": model.state_dict()}, tmp_path / NAME)
    save_file(model.autoencoder.state_dict(), tmp_path / "vq.safetensors")
    for autoenc, pixels in (({"checkpoint_path": "vq.safetensors"}, 16), ({}, 64)):
        write_yaml(tmp_path / CONFIG_NAME, {"model": section | {"img_size": pixels, "autoenc": autoenc}})
        loaded = load_checkpoint(tmp_path)
        assert loaded.scale_sizes == [4]
        out, expected = (sample(each, [3], seeds=[5]) for each in (loaded, model))
        assert torch.equal(out.codes[0], expected.codes[0])
        assert (out.images is None) if not autoenc else torch.equal(out.images, expected.images)


@pytest.mark.usefixtures("known_size")
def test_the_released_autoencoder_is_that_of_released_files_alone(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files without a configuration that have its number of codes."""
    monkeypatch.setattr(llamagen, "AUTOENCODER", tmp_path / "vq_ds16_c2i.pt")
    state = content_of()["model"]
    released = {**state, "tok_embeddings.weight": torch.zeros(16384, 48), "output.weight": torch.zeros(16384, 48)}
    missing = config_of(tmp_path / "c2i_tiny_256.pt", released).autoenc.checkpoint_path
    (tmp_path / "vq_ds16_c2i.pt").write_bytes(b"")
    found = config_of(tmp_path / "c2i_tiny_256.pt", released).autoenc.checkpoint_path
    assert (missing, found) == (None, str(tmp_path / "vq_ds16_c2i.pt"))
    assert config_of(tmp_path / "c2i_tiny_256.pt", state).autoenc.checkpoint_path is None
    assert config_of(folder / NAME, {"model": released}).autoenc.checkpoint_path is None
    assert load_checkpoint(folder).autoencoder is None


# Mistakes


def test_a_grid_that_nothing_tells_is_refused(tmp_path: Path, known_size: None) -> None:
    for name in ("c2i_tiny.pt", "c2i_tiny_2560.pt", "c2i_tiny_128.pt", "256.pt"):
        path = alone(tmp_path, name, content_of()["model"])
        assert refusal(path).startswith(f"{path} does not say the size of its grid of codes; put a config.yaml beside")
        shutil.rmtree(path.parent)


def test_heads_that_nothing_tells_are_refused(tmp_path: Path) -> None:
    path = alone(tmp_path, "c2i_tiny_256.pt", content_of()["model"])
    assert refusal(path) == (
        f"{path} has 2 layers of width 48, no published size; put a config.yaml beside it whose model.llama_config "
        "names num_attention_heads"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_classes": 20}, f"{TABLE} has shape (11, 48), not (21, 48)"),
        ({"vocab_size": 128}, "output.weight has shape (120, 48), not (128, 48)"),
        ({"llama_config": {"hidden_size": 64, "num_attention_heads": 4}}, "norm.weight has shape (48,), not (64,)"),
        ({"llama_config": {"intermediate_size": 512, "num_attention_heads": 4}}, "w1.weight has shape (256, 48), not"),
        (
            {"llama_config": {"num_hidden_layers": 3, "num_attention_heads": 4}},
            "missing layers.2.attention.wqkv.weight",
        ),
        ({"llama_config": {"num_hidden_layers": 1, "num_attention_heads": 4}}, "unexpected layers.1.attention.wqkv.we"),
    ],
    ids=str,
)
def test_a_configuration_that_contradicts_the_shapes_is_refused(
    settings: dict[str, Any], said: str, folder: Path
) -> None:
    edit_config(folder, **settings)
    text = refusal(folder)
    assert text.startswith(f"{folder / NAME} does not fit the model (the file and its configuration are of different")
    assert said in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"llama_config": {"num_attention_heads": 5}}, "hidden_size 48 must be a multiple of 2 * num_attention_heads"),
        ({"llama_config": {"num_attention_heads": 8}}, "must be a multiple of 4, for rotary embedding"),
        ({"llama_config": 3}, "config.yaml: llama_config holds 3, not settings"),
        ({"llama_config": {"num_attention_heads": "four"}}, "num_attention_heads is four; it must be a whole number"),
        ({"llama_config": {"num_attention_heads": None}}, "num_attention_heads"),
        ({"num_classes": None}, "num_classes is None; it must be a whole number"),
        ({"num_classes": 0}, "num_classes is 0;"),
        ({"img_size": 100}, "img_size 100 is not a multiple of the autoencoder's stride 16"),
        ({"img_size": None}, "img_size is None; it must be a whole number"),
        ({"scale_ratio": 2}, "unknown key scale_ratio"),
        ({"architecture": "gpt"}, "architecture gpt is unknown; known are checkerboard, llamagen"),
        ({"architecture": "checkerboard", "vocab_size": ...}, "model.autoenc"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_is_refused(settings: dict[str, Any], said: str, folder: Path) -> None:
    edit_config(folder, **settings)
    assert said in refusal(folder)


def test_every_key_that_does_not_fit_is_listed(folder: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        del content["model"]["layers.1.ffn_norm.weight"]
        content["model"]["lm_head.weight"] = torch.zeros(120, 48)
        content["model"]["layers.0.attention.wo.weight"] = torch.zeros(48, 47)
        content["model"]["layers.0.attention.kv_cache.mask"] = torch.zeros(1)

    edit_content(folder, spoil)
    text = refusal(folder)
    for problem in (
        "missing layers.1.ffn_norm.weight",
        "unexpected lm_head.weight",
        "unexpected layers.0.attention.kv_cache.mask",
        "layers.0.attention.wo.weight has shape (48, 47), not (48, 48)",
    ):
        assert problem in text


@pytest.mark.parametrize("key", ["output.weight", "tok_embeddings.weight", TABLE, "layers.0.feed_forward.w1.weight"])
def test_a_weight_that_sizes_are_read_off_may_be_missing(key: str, folder: Path) -> None:
    edit_content(folder, lambda content: content["model"].pop(key))
    assert f"missing {key}" in refusal(folder)


def test_averaged_weights_that_are_not_there_are_refused(folder: Path) -> None:
    edit_content(folder, lambda content: content.pop("ema"))
    assert refusal(folder, use_ema=True) == f"{folder / NAME} holds no EMA weights; leave out use_ema"


@pytest.mark.parametrize(
    ("content", "use_ema"),
    [
        ({"model": {3: torch.zeros(2)}}, False),
        ({3: torch.zeros(2)}, False),
        ({"model": {"output.weight": 3, TABLE: 4}}, False),
        ({"model": {}}, False),
        ({"model": content_of()["model"], "ema": 3}, True),
        ({"model": content_of()["model"], "ema": {"output.weight": "none"}}, True),
        ({"model": {"output.weight": torch.tensor(1.0), TABLE: torch.tensor(1.0)}}, False),
    ],
    ids=range(7),
)
def test_weights_that_are_none_are_refused(content: Any, use_ema: bool, folder: Path) -> None:
    torch.save(content, folder / NAME)
    assert refusal(folder, use_ema=use_ema)


@pytest.mark.usefixtures("known_size")
@pytest.mark.parametrize(
    "args",
    [
        {"image_size": "large"},
        {"image_size": 128, "downsample_size": 0},
        {"image_size": 10},
        {"image_size": -1},
        {"image_size": 128, "num_classes": "ten"},
        {"image_size": 128, "num_classes": 12},
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused(args: dict[str, Any], tmp_path: Path) -> None:
    content = {"model": content_of()["model"], "args": argparse.Namespace(**args)}
    assert refusal(alone(tmp_path, "c2i_tiny.pt", content))


def test_weights_of_another_family_start_no_run() -> None:
    for model, other in ((tiny_gpt(), "tiny-2x"), (tiny_model(), "tiny-npp")):
        with pytest.raises(UserError, match=r"has no weights that fit this model; name a checkpoint of a like one$"):
            initialize_from(model, FIXTURES / other)


@pytest.mark.parametrize("layout", ["DDP", "bare"])
def test_published_weights_start_a_run_of_another_size_of_images(layout: str, folder: Path) -> None:
    """No weight depends on the grid; classes without names start as none."""
    state = content_of()["model"]
    torch.save(LAYOUTS[layout](state), folder / NAME)
    config = npp().config
    for classes, rows in ((10, range(11)), (3, [10] * 4)):
        section = {"num_classes": classes, "img_size": 256, "vocab_size": 120, "llama_config": config.llama_config}
        model = LlamaGen(LlamaGenConfig(**section))
        remarks = initialize_from(model, folder)
        wanted = state | {TABLE: state[TABLE][list(rows)]}
        assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
        assert len(remarks) == 1 + (classes == 3)


# Hostile files


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.marker,)


class Rebuilt:
    """Calls what the file of the 3B model calls, with other arguments."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return torch._tensor._rebuild_from_type_v2, self.args


def with_attribute(value: Any) -> Tensor:
    tensor = torch.zeros(2)
    tensor.attribute = value
    return tensor


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "optimizer": Payload,
    "args": lambda marker: argparse.Namespace(lr=Payload(marker)),
    "attribute": lambda marker: with_attribute(Payload(marker)),
    "function": lambda marker: Rebuilt(os.mkdir, torch.Tensor, (str(marker),), {}),
    "class": lambda marker: Rebuilt(argparse.Namespace, type(Payload(marker)), (), {}),
}


@pytest.mark.parametrize("place", HOSTILE)
def test_no_code_of_a_file_runs(place: str, folder: Path) -> None:
    marker = folder / "marker"
    edit_content(folder, lambda content: content.update({place: HOSTILE[place](marker)}))
    assert NAME in refusal(folder)
    assert not marker.exists()


# The way back


def assert_exported(folder: Path, states: Mapping[str, State]) -> dict[str, Any]:
    """The one file of weights holds these states of LlamaGen's layout, bit by bit; returns its content."""
    (file,) = folder.glob("*.pt")
    content = read_torch_file(file)
    assert {key for key in content if key in ("model", "ema", "model_ema")} == states.keys()
    for name, state in states.items():
        assert list(content[name]) == list(state)
        for key, value in state.items():
            assert content[name][key].dtype == value.dtype
            assert torch.equal(content[name][key], value), key
    return content


@pytest.mark.parametrize("name", REFERENCES)
def test_published_files_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    export_published(FIXTURES / name, tmp_path / "exported")
    source = content_of(name)
    content = assert_exported(tmp_path / "exported", {key: source[key] for key in ("model", "ema") if key in source})
    assert isinstance(content["args"], argparse.Namespace)
    for use_ema in (False, True)[: 1 + ("ema" in source)]:
        assert_same_model(load_checkpoint(tmp_path / "exported", use_ema), load_reference(name).model(use_ema))


@pytest.mark.parametrize(("ema", "class_cond"), [(False, True), (True, True), (False, False)])
def test_a_run_is_exported(ema: bool, class_cond: bool, tmp_path: Path) -> None:
    """With its autoencoder in a folder beside."""
    model = tiny_gpt(autoencoder=tiny_autoencoder(), class_cond=class_cond)
    run, label = save_run(tmp_path / "run", model, ema=ema), [3 if class_cond else 10]
    saved = torch.load(run / "checkpoint-last.pth", weights_only=True)
    export_published(run, tmp_path / "exported")
    states = {"model": saved["model"]} | ({"ema": saved["model_ema"]} if ema else {})
    content = assert_exported(tmp_path / "exported", states)
    assert (content["steps"], vars(content["args"])["num_classes"], vars(content["args"])["vocab_size"]) == (0, 10, 64)
    for use_ema in (False, True)[: 1 + ema]:
        ours, theirs = (load_checkpoint(path, use_ema) for path in (run, tmp_path / "exported"))
        assert_same_model(ours, theirs)
        images = [sample(each, label, seeds=[5], cfg=0.0).images for each in (ours, theirs)]
        assert torch.equal(*images)


@pytest.mark.usefixtures("known_size")
def test_an_exported_file_tells_all_but_the_heads_of_its_own(tmp_path: Path) -> None:
    """As the published code writes it, it is loaded without its config.yaml too."""
    export_published(FIXTURES / "tiny-npp", tmp_path / "exported")
    (tmp_path / "exported" / CONFIG_NAME).unlink()
    (file,) = (tmp_path / "exported").iterdir()
    assert file.name == "c2i_tiny_128.pt"
    assert_same_model(load_checkpoint(file), npp())


def test_a_model_without_the_unconditional_row_comes_back(folder: Path, tmp_path: Path) -> None:
    state = content_of()["model"]
    state[TABLE] = state[TABLE][:10].clone()
    torch.save({"model": state}, folder / NAME)
    export_published(folder, tmp_path / "exported")
    assert_exported(tmp_path / "exported", {"model": state})
    assert not load_checkpoint(tmp_path / "exported").has_unconditional_row


@pytest.mark.parametrize("spoilt", ["sparse", "meta"])
def test_tensors_without_numbers_of_their_own_are_refused(spoilt: str, folder: Path) -> None:
    content = content_of()
    weight = content["model"]["norm.weight"]
    content["model"]["norm.weight"] = weight.to_sparse() if spoilt == "sparse" else weight.to("meta")
    torch.save(content, folder / NAME)
    with pytest.raises(UserError, match=r"^norm\.weight of the file is sparse or has no numbers"):
        load_checkpoint(folder)
