"""Files of RandAR and of the CIFAR-10 baseline: every layout, what they leave open, mistakes, and the way back."""

import os
import shutil
import sys
import typing
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import main_sample
from models import load_checkpoint, sample
from models.config import MaskGITVQConfig, VQVAEConfig
from models.llamagen.config import LlamaConfig
from models.loading import randar
from models.loading.autoencoder import AUTOENCODER_CONFIG_NAME, save_autoencoder
from models.loading.checkpoint import CONFIG_NAME, config_of, export_published, initialize_from
from models.loading.identity import model_sha256
from models.loading.randar import ffn_width
from models.maskgit_vq import MaskGITVQ
from models.randar.config import RandARConfig
from models.randar.model import RandAR
from models.vqvae import VQVAE
from runtime.config import dataclass_from_dict, read_yaml, write_yaml
from runtime.errors import UserError
from tests.command_factory import ROOT, call, save_run
from tests.factory import FIXTURES, load_reference, tiny_autoencoder, tiny_model, zeros_of
from tests.llamagen_factory import tiny_gpt
from tests.randar_factory import tiny_randar
from training import export

pytestmark = pytest.mark.quick
FIXTURE = FIXTURES / "tiny-randar"
NAME, TABLE = "randar_tiny.safetensors", "cls_embedding.embedding_table.weight"
ALONE = LlamaConfig(hidden_size=128, intermediate_size=256, num_attention_heads=2, num_hidden_layers=1)
State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of tiny-randar that a test may spoil."""
    (tmp_path / "tiny-randar").mkdir()
    for name in (NAME, CONFIG_NAME, "vq.pt"):
        shutil.copyfile(FIXTURE / name, tmp_path / "tiny-randar" / name)
    return tmp_path / "tiny-randar"


def weights() -> State:
    return load_file(FIXTURE / NAME)


def theirs() -> dict[str, Any]:
    """RandAR's YAML of the fixture."""
    return yaml.safe_load((FIXTURE / CONFIG_NAME).read_text())


def edit_params(folder: Path, **params: Any) -> None:
    """Rewrite config.yaml with parameters of the transformer changed, or left out where they are ``...``."""
    content = theirs()
    changed = content["ar_model"]["params"] | params
    content["ar_model"]["params"] = {key: value for key, value in changed.items() if value is not ...}
    write_yaml(folder / CONFIG_NAME, content)


def reference() -> RandAR:
    return load_reference("tiny-randar").model()


def assert_same_model(first: RandAR, second: RandAR) -> None:
    """The same to the last bit, and in all that the configuration says."""
    assert model_sha256(first) == model_sha256(second)
    assert first.scale_sizes == second.scale_sizes


def refusal(path: Path, **how: Any) -> str:
    """The one sentence that loading a file ends in."""
    with pytest.raises(UserError) as error:
        load_checkpoint(path, **how)
    assert "\n" not in str(error.value)
    return str(error.value)


# Layouts


def test_a_released_file_and_its_folder() -> None:
    model = load_checkpoint(FIXTURE / NAME)
    assert_same_model(model, reference())
    config = model.config
    assert (config.scan_order, config.num_classes, config.vocab_size, config.dropout) == ("random", 10, 64, 0.1)
    assert (model.scale_sizes, config.label_drop, config.drop_path_rate) == ([6], 0.1, 0.0)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert not model.training


def test_a_released_file_alone_tells_its_sizes(tmp_path: Path) -> None:
    """All but heads, of 64 as in every released file, and locations, 256; there is no autoencoder beside it."""
    model = tiny_randar(llama_config=ALONE, num_classes=7, vocab_size=48, img_size=256)
    save_file(model.state_dict(), tmp_path / "randar_0.3b.safetensors")
    for path in (tmp_path, tmp_path / "randar_0.3b.safetensors"):
        loaded = load_checkpoint(path)
        assert_same_model(loaded, model)
        assert loaded.config.scan_order == "random"
        assert loaded.config.llama_config.num_attention_heads == 2
        assert loaded.scale_sizes == [16]
        assert loaded.autoencoder is None


@pytest.mark.parametrize(
    ("name", "codes", "size"),
    [
        ("0.3b_llamagen", 16384, LlamaConfig(1024, 2816, 16, 24)),
        ("0.3b_maskgit", 1024, LlamaConfig(1024, 2816, 16, 24)),
        ("0.7b_llamagen", 16384, LlamaConfig(1280, 3584, 20, 36)),
    ],
)
def test_released_sizes_need_no_configuration(
    name: str, codes: int, size: LlamaConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And take the autoencoder of their number of codes, if it is there."""
    files = {16384: tmp_path / "vq.pt", 1024: tmp_path / "maskgit.bin"}
    monkeypatch.setattr(randar, "AUTOENCODERS", {count: (file, "of/hub") for count, file in files.items()})
    state = {TABLE: zeros_of(1001, size.hidden_size), "output.weight": zeros_of(codes, size.hidden_size)}
    state["pos_instruct_embeddings"] = zeros_of(1, size.hidden_size)
    for i in range(size.num_hidden_layers):
        state[f"layers.{i}.feed_forward.w1.weight"] = zeros_of(size.intermediate_size, size.hidden_size)
    path = tmp_path / f"randar_{name}_360k_bs_1024_lr_0.0004.safetensors"
    config = config_of(path, {"model": state})
    assert isinstance(config, RandARConfig)
    assert (config.img_size, config.num_classes, config.vocab_size) == (256, 1000, codes)
    assert (config.llama_config, config.scan_order, config.autoenc.checkpoint_path) == (size, "random", None)
    files[codes].touch()
    assert config_of(path, {"model": state}).autoenc.checkpoint_path == str(files[codes])
    if codes == 16384:
        shipped = {"0.3b_llamagen": "L", "0.7b_llamagen": "XL"}[name]
        section = read_yaml(ROOT / f"configs/randar_{shipped}.yaml")["model"]
        assert dataclass_from_dict(RandARConfig, section, "").llama_config == size


def accelerate_run(root: Path, processes: int = 2, iterations: str = "iters_00020000") -> Path:
    """A run as accelerate leaves it, RandAR's YAML beside its checkpoints; returns the folder of one."""
    run = root / "RESULTS/tiny_bs_8_lr_0.0004"
    last = run / "checkpoints" / iterations
    last.mkdir(parents=True)
    prefix = "module." if processes > 1 else ""
    save_file({prefix + key: value for key, value in weights().items()}, last / "model.safetensors")
    for name in ("optimizer.bin", "scheduler.bin", *(f"random_states_{n}.pkl" for n in range(processes))):
        (last / name).write_bytes(b"never read")
    for name in (CONFIG_NAME, "vq.pt"):
        shutil.copyfile(FIXTURE / name, run / name)
    return last


@pytest.mark.parametrize("processes", [1, 2])
def test_a_folder_of_accelerate(processes: int, tmp_path: Path) -> None:
    """From several processes every key is the module's; the configuration lies two folders above."""
    last = accelerate_run(tmp_path, processes)
    for path in (last, last / "model.safetensors"):
        assert_same_model(load_checkpoint(path), reference())
    shutil.move(last.parent.parent / CONFIG_NAME, last.parent / CONFIG_NAME)
    shutil.move(last.parent.parent / "vq.pt", last.parent / "vq.pt")  # names are as seen from the configuration
    assert_same_model(load_checkpoint(last), reference())


def test_the_nearest_configuration_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = accelerate_run(tmp_path, iterations="iters_00050000_final")
    monkeypatch.chdir(last)  # as a relative path it has the same folders above it
    for up in (last.parent, last):
        order = "raster" if up == last.parent else "random"
        edit_params(up, position_order=order, n_head=6)
        shutil.copyfile(FIXTURE / "vq.pt", up / "vq.pt")
        for path in (last, Path(), Path("model.safetensors")):
            model = load_checkpoint(path)
            assert (model.config.scan_order, model.config.llama_config.num_attention_heads) == (order, 6)
    above = tmp_path / "RESULTS/a/b/c"
    above.mkdir(parents=True)
    shutil.copyfile(last / "model.safetensors", above / "model.safetensors")
    shutil.copyfile(FIXTURE / CONFIG_NAME, tmp_path / "RESULTS" / CONFIG_NAME)  # three folders above
    assert "from which its heads cannot be told; put RandAR's YAML beside it as config.yaml" in refusal(above)


def test_our_schema(folder: Path) -> None:
    """Sizes that it leaves out are read off the weights; the side is img_size over the autoencoder's stride."""
    section = {
        "architecture": "randar",
        "img_size": 12,
        "scan_order": "raster",
        "autoenc": {"checkpoint_path": "vq.pt"},
    }
    write_yaml(folder / CONFIG_NAME, {"model": section | {"llama_config": {"num_attention_heads": 4}}})
    model = load_checkpoint(folder)
    assert (model.scale_sizes, model.config.scan_order) == ([6], "raster")
    expected = reference()
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())
    section |= {"img_size": 96, "autoenc": {}}
    write_yaml(folder / CONFIG_NAME, {"model": section | {"llama_config": {"num_attention_heads": 4}}})
    assert (load_checkpoint(folder).scale_sizes, load_checkpoint(folder).autoencoder) == ([6], None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_loads_as_float32(dtype: torch.dtype, folder: Path) -> None:
    save_file({key: value.to(dtype) for key, value in weights().items()}, folder / NAME)
    model = load_checkpoint(folder)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.output.weight, reference().output.weight.to(dtype).float())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_tables_and_caches_among_the_weights_are_ignored(prefix: str, folder: Path) -> None:
    state = {prefix + key: value for key, value in weights().items()}
    state |= {f"{prefix}freqs_cis": torch.zeros(3), f"{prefix}layers.1.attention.kv_cache.k_cache": torch.zeros(2)}
    save_file(state, folder / NAME)
    assert_same_model(load_checkpoint(folder), reference())


# RandAR's YAML


@pytest.mark.parametrize("order", ["random", "raster"])
def test_orders_that_a_yaml_names(order: str, folder: Path) -> None:
    edit_params(folder, position_order=order, token_dropout_p=0.25, class_dropout_prob=0.2, drop_path_rate=0.05)
    config = load_checkpoint(folder).config
    assert (config.scan_order, config.dropout, config.label_drop, config.drop_path_rate) == (order, 0.25, 0.2, 0.05)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"position_order": "scan"}, "has position_order scan; known are random and raster"),
        ({"block_size": 35}, "has block_size 35, which is no square grid of codes"),
        ({"block_size": ...}, "has ar_model.params.block_size None; it must be a whole number above 0"),
        ({"dim": "wide"}, "has ar_model.params.dim wide; it must be a whole number above 0"),
        ({"n_layer": 0}, "has ar_model.params.n_layer 0; it must be a whole number above 0"),
        ({"n_layer": True}, "has ar_model.params.n_layer True"),
        ({"n_head": 5}, "must be a multiple of"),
        ({"n_head": 8}, "must be a multiple of 4"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"multiple_of": "64"}, "multiple_of"),
        ({"token_dropout_p": 2.0}, "dropout"),
        ({"num_classes": "ten"}, "num_classes is ten; it must be a whole number"),
    ],
    ids=str,
)
def test_a_yaml_that_makes_no_sense_is_refused(params: dict[str, Any], said: str, folder: Path) -> None:
    edit_params(folder, **params)
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"n_layer": 2}, "unexpected layers.2.attention.wqkv.weight"),
        ({"n_layer": 4}, "missing layers.3.attention.wqkv.weight"),
        ({"dim": 64}, "pos_instruct_embeddings has shape (1, 48), not (1, 64)"),
        ({"multiple_of": 256}, "w1.weight has shape (128, 48), not (256, 48)"),
        ({"num_classes": 11}, f"{TABLE} has shape (11, 48), not (12, 48)"),
        ({"vocab_size": 65}, "vocab_size is 65, but the autoencoder has 64 codes"),
    ],
    ids=str,
)
def test_a_yaml_that_contradicts_the_weights_is_refused(params: dict[str, Any], said: str, folder: Path) -> None:
    edit_params(folder, **params)
    assert said in refusal(folder)


@pytest.mark.parametrize("content", [{"ar_model": 3}, {"ar_model": {"params": [1]}}, {"tokenizer": {}}], ids=str)
def test_a_yaml_of_neither_schema_is_refused(content: dict[str, Any], folder: Path) -> None:
    write_yaml(folder / CONFIG_NAME, content)
    assert refusal(folder).startswith(f"{folder / CONFIG_NAME} has no model: section")


@pytest.mark.parametrize(
    "section",
    [{"tokenizer": "a"}, {"tokenizer": {"params": {"encoder_ch_mult": [1, 1, 2]}}}, {"tokenizer": {}}],
    ids=str,
)
def test_the_side_is_block_size_whatever_the_yaml_says_of_the_tokenizer(section: dict[str, Any], folder: Path) -> None:
    """How many pixels a code has is read off the tokenizer's weights."""
    write_yaml(folder / CONFIG_NAME, theirs() | section)
    assert_same_model(load_checkpoint(folder), reference())


@pytest.mark.parametrize(("width", "multiple", "ffn"), [(1024, 256, 2816), (352, 256, 1024), (48, 64, 128)])
def test_widths_of_the_feed_forward_layers(width: int, multiple: int, ffn: int) -> None:
    assert ffn_width(width, multiple) == ffn


# The tokenizer


def test_a_missing_tokenizer_stops_no_codes(folder: Path) -> None:
    (folder / "vq.pt").unlink()
    with pytest.warns(UserWarning, match=r"^no tokenizer at vq\.pt, which .*config\.yaml names as vq_ckpt: codes can"):
        model = load_checkpoint(folder)
    assert model.scale_sizes == [6]
    fixture = load_reference("tiny-randar")
    with torch.no_grad():
        logits, _ = model([fixture["codes"]], fixture["labels"], fixture["order"])
    assert (logits - fixture["logits_order"]).abs().max() < 1e-4
    out, expected = (sample(each, [3], seeds=[5], steps=5) for each in (model, reference()))
    assert torch.equal(out.codes[0], expected.codes[0])
    assert out.images is None


def test_a_tokenizer_in_the_working_directory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration's own folder comes first."""
    (tmp_path / "here").mkdir()
    shutil.copyfile(folder / "vq.pt", tmp_path / "here/vq.pt")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here/vq.pt").write_bytes(b"spoiled")
    assert_same_model(load_checkpoint(folder), reference())
    shutil.move(folder / "vq.pt", tmp_path / "here/vq.pt")
    assert_same_model(load_checkpoint(folder), reference())


def test_a_tokenizer_elsewhere_is_as_one_that_is_missing(folder: Path, tmp_path: Path) -> None:
    """A configuration may name no files outside its folder, the project and the working directory."""
    elsewhere = tmp_path / "elsewhere/vq.pt"
    elsewhere.parent.mkdir()
    shutil.move(folder / "vq.pt", elsewhere)
    write_yaml(folder / CONFIG_NAME, theirs() | {"vq_ckpt": str(elsewhere)})
    with pytest.warns(UserWarning, match="copy it there and mend the path; until then codes can be drawn"):
        assert load_checkpoint(folder).autoencoder is None


def test_without_vq_ckpt_there_is_no_tokenizer(folder: Path) -> None:
    content = theirs()
    del content["vq_ckpt"]
    write_yaml(folder / CONFIG_NAME, content)
    model = load_checkpoint(folder)
    assert (model.scale_sizes, model.autoencoder) == ([6], None)


def test_commands_say_a_missing_tokenizer_in_a_line(folder: Path, tmp_path: Path) -> None:
    (folder / "vq.pt").unlink()
    with pytest.warns(UserWarning, match="no tokenizer at"):
        outcome = call(main_sample.main, "--checkpoint", str(folder), "--output_dir", str(tmp_path / "drawn"))
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("error: this model has no autoencoder, so it draws codes and no")


# What train_state.pt of the CIFAR-10 baseline holds


def train_state(config: Any, state: State | None = None) -> dict[str, Any]:
    state = state or weights()
    scheduler = {"base_lrs": [4e-4], "last_epoch": 50000, "_step_count": 50001, "lr_lambdas": [{}]}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 4e-4}]}
    content = {"model": state, "optimizer": optimizer, "lr_scheduler": scheduler, "train_steps": 50000}
    return content if config is None else content | {"config": config}


@pytest.mark.parametrize("how", ["no config", "plain config", "config.yaml"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_train_state_of_plain_values(how: str, prefix: str, folder: Path) -> None:
    """Sizes are those of the configuration beside it, of its own, or of the weights."""
    (folder / NAME).unlink()
    if how != "config.yaml":
        (folder / CONFIG_NAME).unlink()
    model = tiny_randar(llama_config=ALONE, img_size=256) if how == "no config" else reference()
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save(train_state(theirs() if how == "plain config" else None, state), folder / "train_state.pt")
    for path in (folder, folder / "train_state.pt"):
        assert_same_model(load_checkpoint(path), model)


@pytest.fixture
def omegaconf() -> Iterator[dict[str, type]]:
    """Classes that pickle as those of OmegaConf do; the modules are there while a file is written alone."""
    names = {
        "omegaconf.dictconfig": ["DictConfig"],
        "omegaconf.listconfig": ["ListConfig"],
        "omegaconf.base": ["ContainerMetadata", "Metadata"],
        "omegaconf.nodes": ["AnyNode", "IntegerNode"],
    }
    modules, classes = {"omegaconf": ModuleType("omegaconf")}, {}
    for path, kinds in names.items():
        modules[path] = ModuleType(path)
        for kind in kinds:
            classes[kind] = type(kind, (), {"__module__": path})
            setattr(modules[path], kind, classes[kind])
    with pytest.MonkeyPatch.context() as patch:
        for path, module in modules.items():
            patch.setitem(sys.modules, path, module)
        yield classes


def as_omegaconf(value: Any, kinds: dict[str, type], parent: Any = None, key: Any = None) -> Any:
    """What ``OmegaConf.create`` makes of plain values: every node knows its parent and what may stand in it."""
    kind = "DictConfig" if isinstance(value, dict) else "ListConfig" if isinstance(value, list) else "AnyNode"
    node, meta = kinds[kind](), kinds["Metadata" if kind == "AnyNode" else "ContainerMetadata"]()
    vars(meta).update(ref_type=typing.Any, object_type=type(value), optional=True, key=key, flags={}, flags_root=False)
    vars(meta).update(resolver_cache=defaultdict(dict))
    vars(node).update(_metadata=meta, _parent=parent)
    if kind == "AnyNode":
        vars(meta).update(object_type=None)
        vars(node).update(_val=value)
        return node
    vars(meta).update(key_type=typing.Any, element_type=typing.Any)
    items = value.items() if isinstance(value, dict) else enumerate(value)
    children = {key: as_omegaconf(child, kinds, node, key) for key, child in items}
    vars(node).update(_content=children if isinstance(value, dict) else list(children.values()))
    return node


def test_a_train_state_with_objects_of_omegaconf(folder: Path, omegaconf: dict[str, type]) -> None:
    """As the baseline writes it: its sizes are told by the configuration inside, which no code of the file makes."""
    config = as_omegaconf(theirs(), omegaconf)
    torch.save(train_state(config), folder / "train_state.pt")
    for kind in ("dictconfig.DictConfig", "listconfig.ListConfig", "base.Metadata", "nodes.AnyNode"):
        assert f"omegaconf.{kind.replace('.', chr(10))}".encode() in (folder / "train_state.pt").read_bytes()
    (folder / NAME).unlink()
    (folder / CONFIG_NAME).unlink()
    for path in list(sys.modules):
        if path.startswith("omegaconf"):
            sys.modules.pop(path)
    model = load_checkpoint(folder)
    assert_same_model(model, reference())
    assert model.config.llama_config.num_attention_heads == 4


def test_plain_values_around_objects_of_omegaconf(folder: Path, omegaconf: dict[str, type]) -> None:
    (folder / CONFIG_NAME).unlink()
    config = {key: as_omegaconf(value, omegaconf) for key, value in theirs().items()}
    torch.save(train_state(config), folder / "train_state.pt")
    assert_same_model(load_checkpoint(folder), reference())


def test_a_configuration_that_contains_itself_is_refused(folder: Path, omegaconf: dict[str, type]) -> None:
    config = as_omegaconf(theirs(), omegaconf)
    config._content["ar_model"]._content["params"] = config
    config._content["ar_model"]._content["params"]._content["ar_model"] = config
    torch.save(train_state(config), folder / "train_state.pt")
    assert "it holds a configuration that contains itself" in refusal(folder)


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "???", None])
def test_a_size_that_is_no_number_is_refused(value: Any, folder: Path, omegaconf: dict[str, type]) -> None:
    """Such as one that OmegaConf would look up elsewhere."""
    content = theirs()
    content["ar_model"]["params"]["n_layer"] = value
    (folder / CONFIG_NAME).unlink()
    torch.save(train_state(as_omegaconf(content, omegaconf)), folder / "train_state.pt")
    assert f"has ar_model.params.n_layer {value}; it must be a whole number above 0" in refusal(folder)


class Payload:
    """Unpickling it runs a command that makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"mkdir {self.marker}",)


class Built:
    """Calls something that the file names, with arguments, and sets attributes of what comes out."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.made = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


HOSTILE: dict[str, Callable[[Path, dict[str, type]], Any]] = {
    "call": lambda marker, kinds: Payload(marker),
    "in a leaf": lambda marker, kinds: as_omegaconf({"ar_model": Payload(marker)}, kinds),
    "method": lambda marker, kinds: Built(dict.fromkeys, [str(marker)]),
    "eval": lambda marker, kinds: Built(eval, f"__import__('os').mkdir({str(marker)!r})"),
    "getattr": lambda marker, kinds: Built(getattr, kinds["DictConfig"], "__init__"),
    "state": lambda marker, kinds: Built(kinds["DictConfig"], state={"_content": Payload(marker)}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_no_code_of_a_train_state_runs(what: str, folder: Path, omegaconf: dict[str, type]) -> None:
    marker = folder / "marker"
    for place in ("config", "optimizer"):
        content = train_state(theirs()) | {place: HOSTILE[what](marker, omegaconf)}
        torch.save(content, folder / "train_state.pt")
        text = refusal(folder)
        assert text.startswith(f"{folder / 'train_state.pt'} was refused: it holds ")
        assert text.endswith("; only tensors and plain values can load without running code")
        said = call(main_sample.main, "--checkpoint", str(folder), "--output_dir", str(folder / "drawn")).error()
        assert said == text
    assert not marker.exists()


def test_hostile_objects_of_omegaconf_do_nothing(folder: Path, omegaconf: dict[str, type]) -> None:
    """Whatever they say they are, and whichever attributes they set."""
    (folder / CONFIG_NAME).unlink()
    state = {"_content": {"ar_model": 3}, "__class__": "str", "__reduce__": "x", "__init__": 3}
    config = Built(omegaconf["DictConfig"], 1, 2, state=state)
    torch.save(train_state(config), folder / "train_state.pt")
    assert "from which its heads cannot be told" in refusal(folder)


# Mistakes


def test_averaged_weights_are_refused(folder: Path) -> None:
    """No file of RandAR has any."""
    assert refusal(folder, use_ema=True) == f"{folder / NAME} holds no EMA weights; leave out use_ema"
    torch.save(train_state(None), folder / "train_state.pt")
    assert refusal(folder, use_ema=True) == f"{folder / 'train_state.pt'} holds no EMA weights; leave out use_ema"
    said = call(main_sample.main, "--checkpoint", str(folder), "--use_ema", "--output_dir", str(folder / "a")).error()
    assert said.endswith("holds no EMA weights; leave out use_ema")


def test_heads_that_nothing_tells_are_refused(folder: Path) -> None:
    (folder / CONFIG_NAME).unlink()
    assert refusal(folder) == (
        f"{folder / NAME} has width 48, from which its heads cannot be told; put RandAR's YAML beside it as config.yaml"
    )


def test_every_key_that_does_not_fit_is_listed(folder: Path) -> None:
    state = weights()
    del state["layers.1.ffn_norm.weight"]
    state |= {"lm_head.weight": torch.zeros(2), "layers.0.attention.wo.weight": torch.zeros(48, 47)}
    save_file(state, folder / NAME)
    text = refusal(folder)
    for problem in (
        "missing layers.1.ffn_norm.weight",
        "unexpected lm_head.weight",
        "wo.weight has shape (48, 47), not",
    ):
        assert problem in text


@pytest.mark.parametrize("key", ["output.weight", TABLE, "pos_instruct_embeddings", "layers.0.feed_forward.w1.weight"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_weight_that_sizes_are_read_off_may_be_missing(key: str, alone: bool, folder: Path) -> None:
    state = weights()
    del state[key]
    save_file(state, folder / NAME)
    if alone:
        (folder / CONFIG_NAME).unlink()
    assert refusal(folder)
    if not alone:
        assert f"missing {key}" in refusal(folder)


def test_numbers_that_are_not_finite_are_refused(folder: Path) -> None:
    save_file(weights() | {"pos_instruct_embeddings": torch.full((1, 48), torch.nan)}, folder / NAME)
    assert "holds numbers that are not finite, first in pos_instruct_embeddings" in refusal(folder)


def test_a_damaged_file_is_refused(folder: Path) -> None:
    (folder / NAME).write_bytes((FIXTURE / NAME).read_bytes()[:5000])
    assert "is damaged or no safetensors file" in refusal(folder)


def test_several_files_are_a_question(folder: Path) -> None:
    shutil.copyfile(folder / NAME, folder / "b.safetensors")
    assert refusal(folder) == f"{folder} holds b.safetensors, {NAME}; name one of these files"
    assert_same_model(load_checkpoint(folder / NAME), reference())


def test_weights_of_another_family_start_no_run() -> None:
    for model, other in ((tiny_randar(), "tiny-2x"), (tiny_model(), "tiny-randar")):
        with pytest.raises(UserError, match=r"has no weights that fit this model; name a checkpoint of a like one$"):
            initialize_from(model, FIXTURES / other)


def test_llamagen_and_randar_are_told_apart_by_the_instruction() -> None:
    """All other weights are called the same: one may start from the other, and the remark says what it lacks."""
    gpt = tiny_gpt()
    model = tiny_randar(llama_config=gpt.config.llama_config)
    assert set(model.state_dict()) - set(gpt.state_dict()) == {"pos_instruct_embeddings"}
    remarks = model.initialize_from(gpt.state_dict(), "gpt")
    assert remarks[1:] == ["not loaded, freshly initialized: pos_instruct_embeddings (not there)"]


@pytest.mark.parametrize("name", [NAME, "train_state.pt"])
def test_published_weights_start_a_run_of_another_size_of_images(name: str, folder: Path) -> None:
    """No weight depends on the grid; classes without names start as none."""
    if name != NAME:
        torch.save(train_state(theirs()), folder / name)
    for classes, rows in ((10, range(11)), (3, [10] * 4)):
        section = {"num_classes": classes, "img_size": 256, "vocab_size": 64}
        model = RandAR(RandARConfig(**section, llama_config=reference().config.llama_config))
        remarks = initialize_from(model, folder / name)
        wanted = weights() | {TABLE: weights()[TABLE][list(rows)]}
        assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
        assert len(remarks) == 1 + (classes == 3)


# The way back


def test_a_released_file_comes_back_as_it_was(tmp_path: Path) -> None:
    export_published(FIXTURE, tmp_path / "exported")
    (file,) = tmp_path.glob("exported/*.safetensors")
    state = load_file(file)
    assert state.keys() == weights().keys()
    assert all(
        torch.equal(value, weights()[key]) and value.dtype == weights()[key].dtype for key, value in state.items()
    )
    ours, wanted = (yaml.safe_load((path / CONFIG_NAME).read_text()) for path in (tmp_path / "exported", FIXTURE))
    assert ours["ar_model"]["target"] == wanted["ar_model"]["target"]
    params = {
        "n_layer",
        "n_head",
        "dim",
        "vocab_size",
        "block_size",
        "num_classes",
        "position_order",
        "token_dropout_p",
    }
    for key in params:
        assert ours["ar_model"]["params"][key] == wanted["ar_model"]["params"][key], key
    assert ours["tokenizer"]["target"] == wanted["tokenizer"]["target"]
    for key in ("codebook_size", "codebook_embed_dim", "encoder_ch_mult", "decoder_ch_mult", "z_channels"):
        assert ours["tokenizer"]["params"][key] == wanted["tokenizer"]["params"][key], key
    again = load_checkpoint(tmp_path / "exported")
    assert_same_model(again, reference())
    assert torch.equal(*(sample(model, [3], seeds=[5], steps=5).images for model in (again, reference())))


@pytest.mark.parametrize(
    "how", [{}, {"scan_order": "raster", "label_drop": 0.2, "dropout": 0.0}, {"ema": True}], ids=str
)
def test_a_run_is_exported(how: dict[str, Any], tmp_path: Path) -> None:
    """By the command, with its autoencoder in a folder beside; an average, which RandAR does not know, stays behind."""
    ema, settings = "ema" in how, {key: value for key, value in how.items() if key != "ema"}
    model = tiny_randar(autoencoder=tiny_autoencoder(), **settings)
    run = save_run(tmp_path / "run", model, ema=ema)
    outcome = call(export.main, "--checkpoint", str(run), "--output_dir", str(tmp_path / "exported"))
    assert outcome.code == 0, outcome.err
    ours, theirs_ = (load_checkpoint(path) for path in (run, tmp_path / "exported"))
    assert_same_model(ours, theirs_)
    assert ours.config.scan_order == theirs_.config.scan_order
    images = [sample(each, [3], seeds=[5], steps=5).images for each in (ours, theirs_)]
    assert torch.equal(*images)
    assert (tmp_path / "exported/autoenc" / AUTOENCODER_CONFIG_NAME).is_file()
    tokenizer = torch.load(tmp_path / "exported/autoenc/checkpoint.pth", weights_only=True)["model"]  # as LlamaGen's
    assert torch.equal(tokenizer["quantize.embedding.weight"], model.autoencoder.quantize.embedding)
    assert not {key for key in tokenizer if "parametrizations" in key or "cluster" in key or "initialized" in key}


KINDS = {
    "RandAR.model.tokenizer.VQModel": tiny_autoencoder(),
    "RandAR.model.tokenizer.MaskGITTokenizer": MaskGITVQ(MaskGITVQConfig(8, 64, 32, (1, 1), 1)),
    "tokenizer_vq.model.Model": VQVAE(VQVAEConfig(8, 64, 16, 4)),
}


@pytest.mark.parametrize("target", KINDS)
def test_every_kind_of_tokenizer_comes_back(target: str, tmp_path: Path) -> None:
    """Of other strides than the released ones."""
    model = tiny_randar(autoencoder=KINDS[target].eval())
    export_published(save_run(tmp_path / "run", model), tmp_path / "exported")
    assert yaml.safe_load((tmp_path / "exported" / CONFIG_NAME).read_text())["tokenizer"]["target"] == target
    again = load_checkpoint(tmp_path / "exported")
    assert_same_model(again, model)
    assert torch.equal(*(sample(each, [3], seeds=[5], steps=5).images for each in (again, model)))


def test_a_model_without_an_autoencoder_is_exported(tmp_path: Path) -> None:
    model = tiny_randar(img_size=96)
    (tmp_path / "run").mkdir()
    save_file(model.state_dict(), tmp_path / "run/model.safetensors")
    section = {"architecture": "randar", "img_size": 96, "llama_config": {"num_attention_heads": 2}}
    write_yaml(tmp_path / "run" / CONFIG_NAME, {"model": section})
    export_published(tmp_path / "run", tmp_path / "exported")
    assert_same_model(load_checkpoint(tmp_path / "exported"), model)
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {CONFIG_NAME, "randar.safetensors"}


def test_what_the_layout_cannot_say_is_refused(tmp_path: Path) -> None:
    for settings, said in (
        ({"class_cond": False}, "a model without classes, which RandAR's layout cannot say"),
        ({"llama_config": LlamaConfig(32, 80, 2, 1)}, "intermediate_size 80, which RandAR's layout cannot say"),
    ):
        run = save_run(tmp_path / said[:9], tiny_randar(autoencoder=tiny_autoencoder(), **settings))
        with pytest.raises(UserError, match=said):
            export_published(run, tmp_path / "exported")
        assert not (tmp_path / "exported").exists()


def test_an_autoencoder_of_ours_is_a_tokenizer_too(folder: Path) -> None:
    """RandAR's YAML may name one; beside other weights it is not taken for the model's."""
    save_autoencoder(reference().autoencoder, folder / "vq")
    shutil.move(folder / "vq/autoencoder.safetensors", folder / "autoencoder.safetensors")
    write_yaml(folder / CONFIG_NAME, theirs() | {"vq_ckpt": "autoencoder.safetensors"})
    assert_same_model(load_checkpoint(folder), reference())


def test_an_exported_model_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    model = tiny_randar(autoencoder=tiny_autoencoder())
    run = save_run(tmp_path / "run", model)
    names = [f"class {label}" for label in range(10)]
    checkpoint = run if run.is_file() else run / "checkpoint-last.pth"
    torch.save(torch.load(checkpoint, weights_only=True) | {"class_names": names}, checkpoint)
    export_published(run, tmp_path / "exported")
    assert load_checkpoint(tmp_path / "exported").class_names == names
