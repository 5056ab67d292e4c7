"""What happens on the page when a field changes or a button is pressed."""

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from demo.backend import Backend, Choice, class_choices, enlarged, mask_of, picture_to_edit, sentence, usual_drawing
from demo.checkpoints import Loaded
from demo.drawing import ZIP_NAME, Drawn, Frame
from demo.jobs import CancelledError, Job
from demo.page import Page, Results
from demo.pictures import downloads_html, grid_html, say, summary_html
from demo.settings import shown
from sampling.folder import GRID_NAME, SETTINGS_NAME
from sampling.pipeline import to_pil

Updates = dict[Any, Any]  # new values of components
SMALL_SEEDS = 10**6  # of the button: short enough to be told to others
DOWNLOADS = {"Images (zip)": ZIP_NAME, "Grid (PNG)": GRID_NAME, "Settings (JSON)": SETTINGS_NAME}
# On a narrow window, results lie below what was being looked at.
SCROLL_THERE = "() => { if (innerWidth <= 700) document.getElementById('%s').scrollIntoView({ behavior: 'smooth' }); }"
UNHURRIED = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}


def connect(page: Page, backend: Backend) -> None:
    """Say what every event does."""
    with page.blocks:
        _connect_fields(page, backend)
        _connect_results(page, backend, page.results)
        _connect_results(page, backend, page.editor.results)
        _connect_editor(page, backend)

        def leave(request: gr.Request) -> None:
            backend.queue.cancel(request.session_hash, leaves=True)

        page.blocks.unload(leave)


def _connect_fields(page: Page, backend: Backend) -> None:
    fields = page.fields

    async def choose_model(request: gr.Request, name: str) -> list[Any]:
        with told():
            loaded = await backend.loaded(request.session_hash, name)
        return values_of_model(loaded, backend, list(fields.groups))

    def another_seed() -> int:
        return secrets.randbelow(SMALL_SEEDS)

    fields.model.input(choose_model, fields.model, fields.of_model, **UNHURRIED)
    fields.new_seed.click(another_seed, None, fields.seed, **UNHURRIED)


@contextmanager
def told() -> Iterator[None]:
    """An error becomes a sentence that appears over the page."""
    try:
        yield
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from error


def values_of_model(loaded: Loaded, backend: Backend, families: list[str]) -> list[Any]:
    """What ``Fields.of_model`` has of a model: its classes, and the settings that it recommends."""
    model, family = loaded.model, loaded.model.config.architecture
    usual = usual_drawing(model)
    values = [
        shown(getattr(usual, option.name), option) if whose == family else gr.skip()
        for whose, option in backend.options
    ]
    groups = [gr.update(visible=name == family) for name in families]
    classes = gr.update(choices=class_choices(model), value=[], visible=model.config.class_cond)
    return [summary_html(model), classes, *groups, *values]


def _connect_results(page: Page, backend: Backend, results: Results) -> None:
    async def choose_image(request: gr.Request, drawn: Drawn | None, event: gr.EventData) -> list[Any]:
        index = event._data.get("image") if isinstance(event._data, dict) else None
        if drawn is None or index is None:
            return [gr.skip(), gr.skip()]
        job = backend.queue.submit(request.session_hash, lambda job: drawn.scales(index))
        with told():
            return [await backend.result(job), index]

    def cancel(request: gr.Request) -> None:
        backend.queue.cancel(request.session_hash)

    results.pictures.click(choose_image, results.drawn, [results.scales, results.chosen], **UNHURRIED)
    results.cancel.click(cancel, None, None, **UNHURRIED)
    results.start.click(None, None, None, js=SCROLL_THERE % results.pictures.elem_id)
    if results is page.results:

        async def draw(request: gr.Request, *values: Any) -> AsyncIterator[Updates]:
            job = backend.drawing(request.session_hash, choice_of(values))
            async for updates in shown_on(results, backend, job):
                yield updates

        results.start.click(draw, page.fields.inputs, results.outputs, **UNHURRIED)


def _connect_editor(page: Page, backend: Backend) -> None:
    editor, results = page.editor, page.editor.results

    async def upload(request: gr.Request, path: str, name: str) -> Updates:
        try:
            loaded = await backend.loaded(request.session_hash, name)
            picture = picture_to_edit(path, loaded.model)
        except Exception as error:
            return {results.says: say(sentence(error), is_error=True)}
        return {editor.canvas: enlarged(picture), editor.picture: picture, results.says: ""}

    def show_editor() -> Updates:
        return {page.tabs: gr.update(selected="edit")}

    def take(drawn: Drawn, chosen: int) -> Updates:
        (picture,) = to_pil(drawn.images[chosen : chosen + 1])
        return {editor.canvas: enlarged(picture), editor.picture: picture, results.says: ""}

    async def edit(request: gr.Request, picture: Any, painted: Any, *values: Any) -> AsyncIterator[Updates]:
        try:
            mask = mask_of(painted, picture)
        except Exception as error:
            yield {results.says: say(sentence(error), is_error=True)}
            return
        job = backend.drawing(request.session_hash, choice_of(values), picture, mask)
        async for updates in shown_on(results, backend, job):
            yield updates

    targets = [editor.canvas, editor.picture, results.says]
    editor.upload.upload(upload, [editor.upload, page.fields.model], targets, **UNHURRIED)
    for source in (page.results, results):
        # The canvas is made when it is first seen, and takes an image from then on.
        seen = source.take.click(show_editor, None, [page.tabs], **UNHURRIED)
        seen.then(take, [source.drawn, source.chosen], targets, **UNHURRIED)
    results.start.click(edit, [editor.picture, editor.canvas, *page.fields.inputs], results.outputs, **UNHURRIED)


def choice_of(values: tuple[Any, ...]) -> Choice:
    """Of the values of ``Fields.inputs``."""
    checkpoint, classes, count, seed, *settings = values
    return Choice(checkpoint, classes or [], count, seed, settings)


async def shown_on(results: Results, backend: Backend, job: Job) -> AsyncIterator[Updates]:
    """What becomes of a drawing on the page, from its place in line to its end."""
    begun = {results.start: gr.update(visible=False), results.cancel: gr.update(visible=True)}
    ended = {results.start: gr.update(visible=True), results.cancel: gr.update(visible=False)}
    yield begun
    async for news in backend.follow(job):
        if isinstance(news, Frame):
            yield {results.pictures: news.pictures, results.scales: news.scales, results.kept: gr.update(visible=False)}
        else:
            yield {results.says: news}
    if job.error is not None:
        is_error = not isinstance(job.error, CancelledError)
        yield ended | {results.says: say(sentence(job.error), is_error=is_error)}
    else:
        yield ended | finished(results, job.result)


def finished(results: Results, drawn: Drawn) -> Updates:
    """What stays of a drawing on the page."""
    count, side = len(drawn.images), drawn.images.shape[-1]
    images = f"{count} image{'s' if count > 1 else ''} of {side} px"
    told = f"{images} in {drawn.steps} steps and {drawn.seconds:.2g} s; kept in {drawn.folder}"
    return {
        results.says: say("\n".join([told, *(f"warning: {text}" for text in drawn.warnings)])),
        results.pictures: grid_html(drawn.images, drawn.captions, chosen=0, before=drawn.before),
        results.scales: drawn.first_scales,
        results.kept: gr.update(visible=True),
        results.downloads: downloads_html(drawn.folder, DOWNLOADS),
        results.command: drawn.command,
        results.drawn: drawn,
        results.chosen: 0,
    }
