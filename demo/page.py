"""What the page consists of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from demo.backend import Backend, class_choices, usual_drawing
from demo.checkpoints import Loaded, offered
from demo.drawing import MAX_IMAGES
from demo.options import DemoArgs
from demo.pictures import say, summary_html
from demo.settings import OFTEN, field_of, options_of_family
from runtime.errors import UserError

# A click on an image says which one it is, and marks it at once.
CHOOSE_IMAGE = """
element.addEventListener('click', (event) => {
  const tile = event.target.closest('[data-image]');
  if (!tile) return;
  element.querySelectorAll('[data-image]').forEach((other) => other.setAttribute('aria-pressed', other === tile));
  trigger('click', { image: Number(tile.dataset.image) });
});
"""
TIDY = (3600, 86400)  # seconds: how often, and of what age, files on their way to and from the browser are removed
PAINT = "#ff3d9a99"  # seen on dark, light and natural colours


@dataclass(frozen=True)
class Fields:
    """What is chosen for a drawing or an edit."""

    model: gr.Dropdown
    about: gr.HTML
    classes: gr.Dropdown
    count: gr.Slider
    seed: gr.Number
    new_seed: gr.Button
    groups: dict[str, gr.Column]  # by family
    settings: list[gr.components.Component]  # of all families

    @property
    def inputs(self) -> list[gr.components.Component]:
        return [self.model, self.classes, self.count, self.seed, *self.settings]

    @property
    def of_model(self) -> list[Any]:
        """What another model changes."""
        return [self.about, self.classes, *self.groups.values(), *self.settings]


@dataclass(frozen=True)
class Results:
    """The buttons that begin and end a drawing, and where it appears."""

    start: gr.Button
    cancel: gr.Button
    says: gr.HTML
    pictures: gr.HTML
    scales: gr.HTML
    kept: gr.Column
    downloads: gr.HTML
    take: gr.Button
    command: gr.Code
    drawn: gr.State  # a Drawn, of which ``chosen`` is looked at
    chosen: gr.State

    @property
    def outputs(self) -> list[Any]:
        return list(vars(self).values())


@dataclass(frozen=True)
class Editor:
    """Where an image to edit comes from, and where it is painted on."""

    upload: gr.UploadButton
    canvas: gr.ImageEditor
    picture: gr.State  # as large as the model's images
    results: Results


@dataclass(frozen=True)
class Page:
    """All of it; ``blocks`` is gradio's."""

    blocks: gr.Blocks
    tabs: gr.Tabs
    fields: Fields
    results: Results
    editor: Editor


def lay_out(args: DemoArgs) -> tuple[Page, Backend]:
    """The page of a checkpoint, or of all that are offered; a UserError if the first one cannot be loaded."""
    families = offered() if args.checkpoint is None else {args.checkpoint: ""}
    if not families:
        raise UserError("there is no model in pretrained_models/ or output/; name one as --checkpoint")
    backend = Backend(args, list(families))
    first = backend.models.get(next(iter(families)))
    with gr.Blocks(title="Progressive checkerboards", analytics_enabled=False, delete_cache=TIDY) as blocks:
        gr.HTML("<h1>Progressive checkerboards</h1>", elem_classes="title")
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=4, min_width=300, elem_classes="fields"):
                fields = make_fields(backend, first, list(families.values())[1:])
            with gr.Column(scale=9, min_width=320), gr.Tabs() as tabs:
                with gr.Tab("Draw", id="draw"):
                    results = _results(
                        "Draw", "draw", "Images appear here step by step, and how they come about below."
                    )
                with gr.Tab("Edit", id="edit"):
                    editor = _editor()
    return Page(blocks, tabs, fields, results, editor), backend


def make_fields(backend: Backend, first: Loaded, others: Sequence[str] = ()) -> Fields:
    """Fields with what the first model draws with in them, and those of ``others``, the families of other models.

    The backend learns which settings they are of.
    """
    names = list(backend.models.names)
    model = gr.Dropdown(names, value=names[0], label="model", visible=len(names) > 1, elem_id="model")
    about = gr.HTML(summary_html(first.model), elem_id="about")
    classes = gr.Dropdown(
        class_choices(first.model),
        value=[],
        visible=first.model.config.class_cond,
        label="classes",
        info="type to search; without any, all take turns",
        multiselect=True,
        elem_id="classes",
    )
    count = gr.Slider(1, MAX_IMAGES, value=4, step=1, label="images", elem_id="count")
    with gr.Row(elem_classes="seed"):
        seed = gr.Number(
            0,
            label="seed",
            step=1,
            elem_id="seed",
            min_width=120,
            info="the same one draws the same images",
        )
        new_seed = gr.Button("Another", elem_id="new-seed", size="sm", min_width=90, scale=0)
    groups, settings, usual = {}, [], usual_drawing(first.model)
    for family in dict.fromkeys([first.model.config.architecture, *others]):
        options = options_of_family(family)
        values = [getattr(usual, one.name, one.default) for one in options]
        made = zip(options, values, strict=True)
        often = [one for one in options if one.name in OFTEN]
        with gr.Column(visible=family == first.model.config.architecture) as groups[family]:
            with gr.Row(elem_classes="settings"):
                settings += [field_of(*next(made)) for _ in often]
            with gr.Accordion("More settings", open=False), gr.Row(elem_classes="settings"):
                settings += [field_of(option, value) for option, value in made]
        backend.options += [(family, option) for option in options]
    return Fields(model, about, classes, count, seed, new_seed, groups, settings)


def _results(verb: str, name: str, hint: str = "") -> Results:
    with gr.Row(elem_classes="buttons"):
        start = gr.Button(verb, variant="primary", elem_id=f"{name}-start")
        cancel = gr.Button("Cancel", visible=False, elem_id=f"{name}-cancel")
        says = gr.HTML(say(hint), elem_id=f"{name}-says", apply_default_css=False)
    pictures = gr.HTML(elem_id=f"{name}-pictures", js_on_load=CHOOSE_IMAGE, apply_default_css=False)
    scales = gr.HTML(elem_id=f"{name}-scales", apply_default_css=False)
    with gr.Column(visible=False, elem_id=f"{name}-kept") as kept:
        with gr.Row(elem_classes="keep"):
            downloads = gr.HTML(apply_default_css=False)
            take = gr.Button("Edit the chosen image", elem_id=f"{name}-take", size="sm")
        command = gr.Code(
            label="The same by a command line",
            interactive=False,
            lines=1,
            wrap_lines=True,
            buttons=["copy"],
            show_line_numbers=False,
            elem_id=f"{name}-command",
        )
    return Results(start, cancel, says, pictures, scales, kept, downloads, take, command, gr.State(), gr.State(0))


def _editor() -> Editor:
    with gr.Row(elem_classes="sources"):
        upload = gr.UploadButton("Upload an image", file_types=["image"], size="sm", elem_id="upload")
        gr.HTML('<div class="hint">Then paint over what is to be drawn anew.</div>', apply_default_css=False)
    canvas = gr.ImageEditor(
        type="pil",
        format="png",
        sources=[],
        transforms=[],
        layers=False,
        buttons=[],
        brush=gr.Brush(default_size=48, colors=[PAINT], default_color=PAINT, color_mode="fixed"),
        eraser=gr.Eraser(default_size=48),
        show_label=False,
        canvas_size=(512, 512),
        height=470,
        elem_id="canvas",
    )
    return Editor(upload, canvas, gr.State(), _results("Draw anew", "edit"))
