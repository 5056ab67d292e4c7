"""The fields of the page are the options of each family, and are read as a command line is."""

from typing import Any

import pytest

from demo.settings import field_of, options_of_family, read_settings, shown
from models.config import FAMILIES
from runtime.config import options_of
from runtime.errors import UserError

pytestmark = pytest.mark.quick


def read(family: str, **changed: Any) -> dict[str, Any]:
    """Settings of the fields of a family as they are by default, but for some."""
    options = options_of_family(family)
    values = [changed.get(one.name, field_of(one, one.default).value) for one in options]
    return read_settings(options, values)


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
    settings = read_settings(options_of_family("llamagen"), [None] * len(options_of_family("llamagen")))
    assert settings == {}


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
