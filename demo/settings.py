"""The fields of a family's settings, made of its options; what is in them, read as a command line is."""

import json
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from models.config import FAMILIES
from runtime.config import Option, from_text, options_of, typed

# What people change most; a family's other settings are put away below. A family lacks some of them.
OFTEN = ("cfg", "steps_per_scale", "steps", "temperature", "top_k", "top_p")
CALLED = {"cfg": "guidance (cfg)"}


def options_of_family(family: str) -> list[Option]:
    """Options of a drawing, those that are often changed first."""
    known = {one.name: one for one in options_of(FAMILIES[family].load("drawing"))}
    often = [known[name] for name in OFTEN if name in known]
    return [*often, *(one for name, one in known.items() if name not in OFTEN)]


def label_of(option: Option) -> str:
    return CALLED.get(option.name, option.name).replace("_", " ")


def field_of(option: Option, value: Any) -> gr.components.Component:
    """A field for an option with a value in it; the explanation stands below the name."""
    about = {"label": label_of(option), "info": option.help, "elem_id": f"setting-{option.name}", "min_width": 130}
    if get_origin(option.hint) is Literal:
        return gr.Dropdown(list(get_args(option.hint)), value=value, **about)
    if option.hint is bool:
        return gr.Checkbox(value, **about)
    if option.hint in (int, float):
        return gr.Number(value, step=1 if option.hint is int else 0.05, **about)
    return gr.Textbox(shown(value, option), lines=1, max_lines=1, **about)


def shown(value: Any, option: Option) -> Any:
    """A setting as its field shows it: as it is, or as text where several kinds may stand there."""
    if option.hint in (int, float, bool) or isinstance(value, str):
        return value
    return json.dumps(value)


def read_settings(fields: Iterable[tuple[Option, Any]]) -> dict[str, Any]:
    """Settings by name of options and what is in their fields, or a UserError; an empty field is no setting."""
    settings = {}
    for option, value in fields:
        if isinstance(value, str) and value.strip():
            settings[option.name] = from_text(value.strip(), option)
        elif not isinstance(value, str | None):
            settings[option.name] = typed(value, option.hint, option.name)
    return settings
