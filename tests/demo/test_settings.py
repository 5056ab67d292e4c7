"""The fields of the page are the options of each family, and are read as a command line is."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from demo.backend import Backend, class_choices
from demo.options import DemoArgs
from demo.page import make_fields
from demo.settings import field_of, options_of_family, read_settings, shown
from demo.wiring import values_of_model
from models.config import FAMILIES
from runtime.config import options_of, read_yaml, write_yaml
from runtime.errors import UserError
from tests.command_factory import save_run
from tests.factory import tiny_autoencoder, tiny_model
from tests.llamagen_factory import tiny_gpt

pytestmark = pytest.mark.quick


def read(family: str, **changed: Any) -> dict[str, Any]:
    """Settings of the fields of a family as they are by default, but for some."""
    options = options_of_family(family)
    return read_settings((one, changed.get(one.name, field_of(one, one.default).value)) for one in options)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_option_of_a_family_has_a_field_that_explains_it(family: str) -> None:
    drawing = FAMILIES[family].load("drawing")
    options = options_of_family(family)
    assert sorted(one.name for one in options) == sorted(one.name for one in options_of(drawing))
    for one in options:
        field = field_of(one, one.default)
        assert field.info == one.help
        assert one.name.replace("_", " ") in field.label
    assert read(family) == {one.name: one.default for one in options}
    assert drawing(**read(family)) == drawing()


def test_what_is_typed_is_what_a_flag_would_be() -> None:
    settings = read(
        "checkerboard", cfg="[0, 1, 2.5]", temperature=" 0.7 ", steps_per_scale=2, remainder="fold", top_p=0.5
    )
    assert settings["cfg"] == (0.0, 1.0, 2.5)
    assert settings["temperature"] == 0.7
    assert (settings["steps_per_scale"], settings["remainder"], settings["top_p"]) == (2, "fold", 0.5)
    assert read("randar", cfg_schedule="constant")["cfg_schedule"] == "constant"


def test_an_empty_field_is_no_setting() -> None:
    assert "cfg" not in read("checkerboard", cfg=" ")
    assert read_settings((one, None) for one in options_of_family("llamagen")) == {}


@pytest.mark.parametrize(
    ("changed", "answer"),
    [
        ({"cfg": "much"}, "cfg is much; it must be a number, or a list"),
        ({"cfg": "1,5"}, "cfg is 1,5"),
        ({"top_k": 2.5}, r"top_k is 2\.5; it must be a whole number"),
        ({"remainder": "none"}, "remainder is none; it must be one of separate, fold"),
    ],
)
def test_a_wrong_value_is_a_sentence(changed: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        read("checkerboard", **changed)


def test_a_list_is_shown_as_it_is_typed() -> None:
    cfg = options_of_family("checkerboard")[0]
    assert read("checkerboard", cfg=shown((0.0, 1.5), cfg))["cfg"] == (0.0, 1.5)


def test_another_model_brings_its_own_fields_and_values(tmp_path: Path) -> None:
    """Of two models of two families, with recommended settings, with and without classes."""
    runs = [tmp_path / "checkerboard", tmp_path / "llamagen"]
    save_run(runs[0], tiny_model())
    save_run(runs[1], tiny_gpt(autoencoder=tiny_autoencoder(), img_size=32, class_cond=False))
    write_yaml(runs[1] / "config.yaml", read_yaml(runs[1] / "config.yaml") | {"sampling": {"top_k": 7}})
    backend = Backend(DemoArgs(device="cpu"), list(map(str, runs)))
    first = backend.models.get(str(runs[0]))
    with gr.Blocks():
        fields = make_fields(backend, first, ["llamagen"])
    assert [group.visible for group in fields.groups.values()] == [True, False]
    assert fields.classes.visible
    updates = dict(
        zip(fields.of_model, values_of_model(backend.models.get(str(runs[1])), backend, [*fields.groups]), strict=True)
    )
    assert [updates[group]["visible"] for group in fields.groups.values()] == [False, True]
    assert not updates[fields.classes]["visible"]
    values = {
        option.name: updates[field]
        for (family, option), field in zip(backend.options, fields.settings, strict=True)
        if family == "llamagen"
    }
    assert values["top_k"] == 7
    assert values["cfg"] == "0.0"


def test_a_class_whose_name_is_no_text_can_be_shown() -> None:
    """Of a folder whose name is not UTF-8: a browser takes no half characters."""
    model = tiny_model()
    model.class_names = ["caf\udce9", *(f"number {label}" for label in range(1, model.config.num_classes))]
    assert class_choices(model)[:2] == [("caf?", 0), ("number 1", 1)]
