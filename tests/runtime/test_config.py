"""Configuration: the command line over the YAML over the defaults; mistakes; the configurations that come with us."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml

from models.checkerboard.config import CheckerboardConfig, CheckerboardDrawing
from models.checkerboard.model import Checkerboard
from models.config import AutoencoderPaths, GeneratorConfig, LlamaGenVQConfig, TransformerConfig, family_of
from models.llamagen_vq import LlamaGenVQ
from runtime.config import (
    Kinds,
    as_flags,
    dataclass_from_dict,
    given_text,
    option,
    options_of,
    parse_config,
    parse_flags,
    parse_open_flags,
    plain,
    read_yaml,
    to_yaml,
    typed,
)
from runtime.device import describe_size
from runtime.errors import UserError
from tests.factory import FIXTURES
from train_ae_codebook.main import OTHERS, WHOLE
from training.options import LoopArgs, TrainArgs

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SECTIONS = {"model": CheckerboardConfig, "args": TrainArgs}
OF_MAIN = {"model": CheckerboardConfig, "args": (TrainArgs, CheckerboardDrawing)}


def parse(*argv: str, kinds: dict[str, Kinds] = SECTIONS) -> dict[str, Any]:
    return parse_config(argv, "main.py", "", kinds)[0]


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model:\n  img_size: 64\n  llama_config: {hidden_size: 64, num_attention_heads: 4}\n"
        "  autoenc: {checkpoint_path: weights.pth}\n"
        "args:\n  epochs: 7\n  lr: 1e-3\n  lr_drops: {5: 0.1}\n  use_cache: true\n"
    )
    return str(path)


# Where a value comes from


def test_command_line_over_yaml_over_default(config: str) -> None:
    args = parse("--config", config, "--epochs", "9", "--batch_size=3")["args"]
    assert args == TrainArgs(epochs=9, batch_size=3, lr=1e-3, lr_drops={5: 0.1}, use_cache=True)
    assert parse("--epochs", "9", "--config", config)["args"].epochs == 9  # whatever their order
    assert parse()["args"] == TrainArgs()
    assert parse()["model"] == CheckerboardConfig()


def test_nested_settings_merge_one_by_one(config: str) -> None:
    flags = ("--llama_config.num_hidden_layers", "2", "--autoenc.config_path", "a.yaml", "--img_size", "32")
    model = parse("--config", config, *flags)["model"]
    assert model.llama_config == TransformerConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2)
    assert model.autoenc == AutoencoderPaths("a.yaml", "weights.pth")
    assert model.img_size == 32
    model = parse("--config", config, "--llama_config", "{num_hidden_layers: 3}", *flags[:2])["model"]
    assert model.llama_config == TransformerConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2)


def test_a_flag_alone_means_true(config: str) -> None:
    assert parse("--create_cache")["args"].create_cache
    args = parse("--create_cache", "--epochs", "3", "--compile")["args"]
    assert (args.create_cache, args.compile, args.epochs) == (True, True, 3)
    assert not parse("--config", config, "--use_cache", "false")["args"].use_cache
    assert not parse("--random_block_size", "false")["model"].random_block_size


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (("--lr_drops", "{100: 0.5, 105.5: 0.1}"), "lr_drops", {100: 0.5, 105.5: 0.1}),
        (("--betas", "[0.8, 0.9]"), "betas", (0.8, 0.9)),
        (("--lr", "1e-3"), "lr", 0.001),
        (("--output_dir", "some/where"), "output_dir", "some/where"),
        (("--data_path", "5"), "data_path", "5"),
    ],
)
def test_values_of_every_kind(flags: Sequence[str], field: str, value: Any) -> None:
    assert getattr(parse(*flags)["args"], field) == value


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("all", "all"), ("null", None)])
def test_number_of_mixing_layers_takes_a_number_a_word_or_null(text: str, value: Any) -> None:
    assert parse("--num_mixing_layers", text)["model"].num_mixing_layers == value


def test_the_name_of_a_configuration_is_its_files(config: str) -> None:
    assert parse_config(["--config", config], "main.py", "", SECTIONS)[1] == "mine"
    assert parse_config([f"--config={config}"], "main.py", "", SECTIONS)[1] == "mine"
    assert parse_config([], "main.py", "", SECTIONS)[1] == "default"


def test_the_path_of_a_configuration_is_known_before_its_sections(config: str) -> None:
    for argv in (["--epochs", "3", "--config", config], [f"--config={config}"]):
        assert given_text(argv, "config") == config
    assert given_text(["--epochs", "3"], "config") is None
    assert given_text(["--config"], "config") is None


# Two dataclasses in one section


def test_a_section_of_two_kinds_shares_out_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("args: {epochs: 3, cfg: 2, temperature: [1, 0.5]}\n")
    args, drawing = parse("--config", str(path), "--steps_per_scale", "8", "--lr", "1", kinds=OF_MAIN)["args"]
    assert args == TrainArgs(epochs=3, lr=1.0)
    assert drawing == CheckerboardDrawing(cfg=2.0, temperature=(1.0, 0.5), steps_per_scale=8)
    path.write_text(to_yaml({"args": (args, drawing)}))
    assert parse("--config", str(path), kinds=OF_MAIN)["args"] == (args, drawing)
    path.write_text("args: {steps_per_scal: 3}\n")
    with pytest.raises(UserError, match="did you mean steps_per_scale"):
        parse("--config", str(path), kinds=OF_MAIN)


@dataclass(frozen=True)
class Pair:
    """Two words and a switch."""

    first: str | None = option(None, "a word")
    second: str | None = option(None, "another")
    on: bool = option(False, "a switch")
    count: int = option(1, "a number")


@pytest.mark.parametrize(
    "line",
    ["a b --on --count 3", "--on a --count 3 b", "a --count=3 --on b", "--count 3 a --on true b", "--on a b --count 3"],
)
def test_words_by_position_stand_anywhere_among_flags(line: str) -> None:
    found = parse_flags(line.split(), "x", "", Pair, positional=("first", "second"))
    assert found == Pair("a", "b", on=True, count=3)


def test_a_word_too_many_is_an_error() -> None:
    with pytest.raises(UserError, match="c belongs to no option"):
        parse_flags(["a", "b", "c"], "x", "", Pair, positional=("first", "second"))


def test_options_that_the_dataclass_lacks_are_given_back_by_name() -> None:
    more = {"how each image is drawn": options_of(CheckerboardDrawing)}
    found = parse_open_flags(["a", "--cfg", "[1, 2]", "--on"], "x", "", Pair, more, positional=("first",))
    assert found == (Pair("a", on=True), {"cfg": (1.0, 2.0)})  # those that were given alone
    with pytest.raises(UserError, match="steps_per_scale is many; it must be a whole number"):
        parse_open_flags(["--steps_per_scale", "many"], "x", "", Pair, more)
    with pytest.raises(UserError, match="did you mean --steps_per_scale"):
        parse_open_flags(["--steps_per_scal", "3"], "x", "", Pair, more)


def test_a_file_in_place_of_an_option_is_told_which_takes_it(tmp_path: Path) -> None:
    (path := tmp_path / "mine.yaml").touch()
    with pytest.raises(UserError, match=f"{path} belongs to no option; did you mean --config {path}"):
        parse(str(path))


def test_a_misspelt_path_is_answered_by_the_near_one(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.yaml").touch()
    near = {"quikstart.yaml": "quickstart.yaml", "foldr/a.yaml": "folder/a.yaml"}
    for name, found in near.items():
        with pytest.raises(UserError, match=rf"no such file: {tmp_path / name}; did you mean {tmp_path / found}\?$"):
            parse("--config", str(tmp_path / name))
    with pytest.raises(UserError, match=r"no such file: [^;]*$"):
        parse("--config", str(tmp_path / "foldr/b.yaml"))  # is not in the near folder either


def test_a_command_without_a_yaml() -> None:
    assert parse_flags(["--ema", "--epochs", "2"], "x", "", LoopArgs) == LoopArgs(ema=True, epochs=2)
    with pytest.raises(UserError, match="unknown option --epocs; did you mean --epochs"):
        parse_flags(["--epocs", "2"], "x", "", LoopArgs)


# Mistakes


def refusal(*argv: str) -> str:
    """The one line that a mistake is answered with."""
    with pytest.raises(UserError) as refused:
        parse(*argv)
    message = str(refused.value)
    assert "\n" not in message
    return message


def refusal_of_yaml(tmp_path: Path, content: str) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    message = refusal("--config", str(path))
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--epohcs", "unknown option --epohcs; did you mean --epochs?"),
        ("--epohcs=5", "unknown option --epohcs; did you mean --epochs?"),
        ("--llama_config.hiden_size", "did you mean --llama_config.hidden_size?"),
        ("--qqqqqqqqq", "unknown option --qqqqqqqqq; see --help"),
        ("stray", "stray belongs to no option; put a value that has spaces in quotes"),
    ],
)
def test_an_unknown_flag_suggests_the_near_one(flag: str, answer: str) -> None:
    assert answer in refusal(flag, "3")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("args:\n  epocs: 5", "unknown key epocs in {}: args; did you mean epochs?"),
        ("modle:\n  img_size: 5", "unknown key modle in {}; did you mean model?"),
        ("args:\n  img_size: 5", "{}: args has img_size, which belongs to section model; move it or leave it out"),
        (
            "model:\n  llama_config: {hidden: 5}",
            "unknown key hidden in {}: model: llama_config; did you mean hidden_size?",
        ),
        ("model:\n  autoenc:\n    path: a", "unknown key path in {}: model: autoenc"),
        ("args:\n  qqqqqq: 5", "known are output_dir, "),
        ("args: 5", "{}: args holds 5, not settings"),
        ("model:\n  llama_config: 5", "{}: model: llama_config holds 5, not settings"),
        ("model:\n  llama_config: null", "llama_config holds None"),
        ("model:\n  autoenc: [weights.pth]", "autoenc holds ['weights.pth'], not settings"),
        ("args: {epochs: [}", "no valid YAML"),
        ("", "holds no settings"),
        ("- 1", "holds no settings"),
    ],
)
def test_a_yaml_of_another_shape_is_refused(tmp_path: Path, content: str, answer: str) -> None:
    assert answer.format(tmp_path / "bad.yaml") in refusal_of_yaml(tmp_path, content)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", "five", "a whole number"),
        ("epochs", "2.5", "a whole number"),
        ("lr", "fast", "a number"),
        ("use_cache", "perhaps", "true or false"),
        ("dtype", "bf16", "one of auto, float32, bfloat16, float16"),
        ("dataset", "cifar", "one of folder, cifar10, "),
        ("dataset", "cifar", "; did you mean cifar10?"),
        ("betas", "0.9", "a list in brackets, as in '[first, second]'"),
        ("betas", "[0.9, 0.95, 1]", "a list in brackets, as in '[first, second]'"),
        ("lr_drops", "{5: a}", "lr_drops is a; it must be a number"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, name: str, value: str, expected: str) -> None:
    for message in (refusal(f"--{name}", value), refusal_of_yaml(tmp_path, f"args:\n  {name}: {value}")):
        assert f"{name} is " in message
        assert expected in message
        assert "<class" not in message


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (("--epochs", "0"), "epochs is 0; it must be at least 1"),
        (("--batch_size", "-4"), "batch_size is -4"),
        (("--accum_steps", "0"), "accum_steps is 0"),
        (("--log_freq", "0"), "log_freq is 0"),
        (("--lr", "-1"), "lr is -1.0; it must not be negative"),
        (("--warmup_epochs", "-1"), "warmup_epochs is -1"),
        (("--clip_grad", "-1"), "clip_grad is -1"),
        (("--label_drop", "1.5"), "label_drop is a probability"),
        (("--llama_config.hidden_size", "63"), "hidden_size 63 must be a multiple"),
        (("--llama_config.num_hidden_layers", "0"), "at least 1"),
        (("--warmup_epochs", "3", "--epochs", "2"), "warmup_epochs is 3, more than the 2 of the run"),
        (("--lr_drops", "{5: 0.1}", "--epochs", "5"), "lr_drops has epoch 5, which a run of 5 does not come to"),
        (("--lr_drops", "{a: 5}"), "lr_drops is a; it must be a number"),
        (("--lr_drops", "{-1: 0.1}"), "at epochs or shares from 0 on"),
        (("--patch_level", "0"), "patch_level is 0; it must be at least 1"),
        (("--lr_drops", "{5: 1, 5: 2}"), "lr_drops is {5: 1, 5: 2}; it must be a mapping"),
        (("--epochs",), "--epochs: expected one argument"),
        (("--config",), "--config: expected one argument"),
        (("--config", "nowhere.yaml"), "no such file: nowhere.yaml"),
    ],
)
def test_impossible_values_are_refused(flags: Sequence[str], answer: str) -> None:
    assert answer in refusal(*flags)


# Types


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        (3, float, 3.0),
        ("1e-3", float, 0.001),  # YAML takes it for text
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([], tuple[int, ...], ()),
        ((1, "a"), tuple[int, str], (1, "a")),
        ({1: 2}, dict[float, float], {1.0: 2.0}),
        (None, int | None, None),
        ("all", int | Literal["all"] | None, "all"),
        ([1, 2], float | tuple[float, ...], (1.0, 2.0)),
        ("anything", Any, "anything"),
    ],
)
def test_values_become_what_their_type_wants(value: Any, hint: Any, found: Any) -> None:
    ours = typed(value, hint, "it")
    assert ours == found
    assert type(ours) is type(found)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (1, bool),
        (True, float),
        (2.0, int),
        ("3", int),
        (3, str),
        ([1, "a"], tuple[int, ...]),
        ([1], tuple[int, int]),
        ({"a": 1}, dict[int, int]),
        (None, int),
        ("none", int | Literal["all"] | None),
    ],
)
def test_other_types_are_refused(value: Any, hint: Any) -> None:
    with pytest.raises(UserError, match="it is "):
        typed(value, hint, "it")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("args:\n  lr: 1\n  epochs: 2\n  lr: 3\n")
    with pytest.raises(UserError, match="key lr stands there twice"):
        read_yaml(tmp_path / "twice.yaml")


def test_a_dataclass_survives_plain_containers() -> None:
    model = CheckerboardConfig(llama_config=TransformerConfig(hidden_size=64), num_mixing_layers="all")
    assert dataclass_from_dict(CheckerboardConfig, plain(model), "here") == model


# --print_config and --help


def printed(capsys: pytest.CaptureFixture[str], *argv: str, kinds: dict[str, Kinds] = SECTIONS) -> str:
    with pytest.raises(SystemExit) as end:
        parse(*argv, kinds=kinds)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("flags", [(), ("--epochs", "6", "--ema"), ("--betas", "[0.5, 0.6]", "--lr_drops", "{2: 0.5}")])
def test_a_printed_configuration_gives_the_same_settings(
    flags: Sequence[str], config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (["--config", config], []):
        path = tmp_path / "printed.yaml"
        path.write_text(printed(capsys, *source, *flags, "--print_config"))
        assert list(yaml.safe_load(path.read_text())) == ["model", "args"]
        assert parse("--config", str(path)) == parse(*source, *flags)


def test_settings_survive_yaml(tmp_path: Path, config: str) -> None:
    settings = parse("--config", config)
    (tmp_path / "again.yaml").write_text(to_yaml(settings))
    assert parse("--config", str(tmp_path / "again.yaml")) == settings


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(capsys, "--help", kinds=OF_MAIN).split())
    for kind in (CheckerboardConfig, TrainArgs, CheckerboardDrawing, TransformerConfig, AutoencoderPaths):
        for name in kind.__dataclass_fields__:
            assert name in text
    assert "None of" not in text
    assert text.count("default: ") > 50
    for explained in ("passes over the data", "width of a token", "YAML of the architecture"):
        assert explained in text


# The configurations that come with us


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_a_configuration_parses_and_prints_back(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = family_of(yaml.safe_load(path.read_text())["model"])
    kinds = OF_MAIN | {"model": family.load("config"), "args": (TrainArgs, family.load("drawing"))}
    settings = parse("--config", str(path), kinds=kinds)
    (tmp_path / "again.yaml").write_text(printed(capsys, "--config", str(path), "--print_config", kinds=kinds))
    assert parse("--config", str(tmp_path / "again.yaml"), kinds=kinds) == settings
    assert path.read_text().startswith("# ")
    assert f"python main.py --config configs/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "train_ae_codebook").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_of_an_autoencoder_parses(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    kinds = next((kinds for section, kinds in OTHERS.items() if section in content), WHOLE)
    settings = parse("--config", str(path), kinds=kinds)
    for section, values in content.items():
        assert {key: plain(settings[section])[key] for key in values} == values
    assert f"python train_ae_codebook/main.py --config train_ae_codebook/{path.name}" in path.read_text()


@pytest.mark.parametrize("name", ["tiny-2x", "tiny-4x"])
def test_published_configurations_parse(name: str) -> None:
    path = FIXTURES / name / "config.yaml"
    content = yaml.safe_load(path.read_text())["model"]
    model = parse("--config", str(path))["model"]
    for key, value in content.items():
        if key not in ("autoenc", "llama_config"):
            assert getattr(model, key) == value
    assert model.llama_config == TransformerConfig(**content["llama_config"])
    assert model.autoenc == AutoencoderPaths(**content["autoenc"])


PUBLISHED_TRAINING = {
    "config_256_S": {"epochs": 110, "batch_size": 128, "lr": 1e-4, "lr_drops": {100: 0.3162278, 105: 0.3162278}},
    "config_256_L": {"epochs": 205, "batch_size": 64, "lr": 5e-5, "lr_drops": {200: 0.2}},
}
PUBLISHED_SIZES = {
    "config_256_S": TransformerConfig(512, 1536, 16, 12),
    "config_256_L": TransformerConfig(1024, 3072, 16, 20),
}


@pytest.mark.parametrize("name", PUBLISHED_TRAINING)
def test_published_training_settings(name: str) -> None:
    settings = parse("--config", str(ROOT / "configs" / f"{name}.yaml"), kinds=OF_MAIN)
    model, (args, _) = settings["model"], settings["args"]
    for key, value in PUBLISHED_TRAINING[name].items():
        assert getattr(args, key) == value, key
    assert (args.betas, args.weight_decay, args.warmup_epochs) == ((0.9, 0.95), 0.01, 1)
    assert (args.clip_grad, args.ema, args.accum_steps, args.crop) == (0, False, 1, "ten")
    assert model.llama_config == PUBLISHED_SIZES[name]
    assert (model.img_size, model.scale_ratio, model.num_classes) == (256, 2, 1000)
    assert (model.random_replace, model.label_drop, model.random_block_size) == (0.1, 0.1, True)
    assert model.mixing_layers == model.llama_config.num_hidden_layers
    assert not model.use_head_mlp


def test_the_large_model_has_the_published_size() -> None:
    config = parse("--config", str(ROOT / "configs" / "config_256_L.yaml"))["model"]
    with torch.device("meta"):
        model = Checkerboard(config, LlamaGenVQ(LlamaGenVQConfig()))
    assert model.scale_sizes == [1, 2, 4, 8, 16]
    assert describe_size(model) == "367.6M parameters + 71.8M autoencoder"


# What is typed is no YAML, but for lists and mappings


@pytest.mark.parametrize(("text", "seed"), [("010", 10), ("+7", 7), (" 5 ", 5)])
def test_a_whole_number_is_read_as_it_is_written(text: str, seed: int) -> None:
    assert parse("--seed", text)["args"].seed == seed


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("seed", "1:30"),
        ("seed", "2020-13-45"),
        ("seed", "0x_"),
        ("seed", "5" * 5000),
        ("seed", "["),
        ("seed", "[" * 3000),
        ("lr", "nan"),
        ("clip_grad", ".inf"),
        ("lr_drops", "{nan: 0.3}"),
        ("num_mixing_layers", ""),
    ],
)
def test_what_is_no_finite_number_is_refused(flag: str, value: str) -> None:
    assert f"{flag} is " in refusal(f"--{flag}", value)


def test_a_negative_number_may_have_an_exponent() -> None:
    assert "lr is -0.001; it must not be negative" in refusal("--lr", "-1e-3")


def test_the_last_of_several_configurations_counts(config: str) -> None:
    assert given_text(["--config", "first.yaml", f"--config={config}"], "config") == config
    assert given_text(["--epochs", "3"], "config") is None


def test_text_alone_may_stand_for_a_group(tmp_path: Path) -> None:
    """On the command line, over the files of the YAML, and in the YAML."""
    config, wanted = tmp_path / "mine.yaml", AutoencoderPaths(None, "output/run")
    for written, flags in (
        ("{config_path: a.yaml, checkpoint_path: a.pth}", ["--autoenc", "output/run"]),
        ("output/run", []),
    ):
        config.write_text(f"model: {{autoenc: {written}}}\n")
        settings, _ = parse_config(["--config", str(config), *flags], "", "", {"model": GeneratorConfig})
        assert settings["model"].autoenc == wanted


def test_flags_of_settings_are_read_back_as_these() -> None:
    @dataclass(frozen=True)
    class Settings:
        text: str = option("", "text")
        path: str | None = option("a", "a path")
        number: int = option(0, "a number")
        share: float = option(0.0, "a share")
        switch: bool = option(False, "a switch")
        schedule: float | tuple[float, ...] = option(0.0, "a number, or several")
        table: dict[int, float] = option(dict, "a table")

    values = {"text": "-- it's", "path": None, "number": -3, "share": -1e-7, "switch": True, "schedule": (0.0, -1.5)}
    for settings in (Settings(**values), Settings(text="[1]", path="-", schedule=-2.0, share=1e300)):
        given = {name: value for name, value in vars(settings).items() if name != "table"}
        words = shlex.split(shlex.join(as_flags(given)))
        assert parse_flags(words, "", "", Settings) == settings
