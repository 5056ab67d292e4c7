"""Models and drawings for tests of the page, and the page itself, served in this process."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import uvicorn
from PIL import Image

from demo.checkpoints import Loaded, LoadedModels
from demo.drawing import DrawingRequest, Drawn, draw
from demo.jobs import Job, JobQueue
from demo.options import DemoArgs
from demo.serve import address_of, listen, page_app
from sampling.options import SampleArgs
from tests.command_factory import ROOT

SHIPPED = ROOT / "pretrained_models/cifar10-checkerboard"


@cache
def loaded(checkpoint: Path) -> Loaded:
    """A model, loaded once."""
    return LoadedModels(DemoArgs(device="cpu"), [str(checkpoint)]).get(str(checkpoint))


def draw_now(
    model: Loaded,
    root: Path,
    settings: dict[str, Any] | None = None,
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
    **args: Any,
) -> Drawn:
    """A drawing of the page, without a page."""
    job = Job("test", lambda job: None)
    given = SampleArgs(**{"checkpoint": model.checkpoint, "device": "cpu", "num_samples": 2} | args)
    return draw(model, DrawingRequest(given, settings or {}, image, mask), root, job, JobQueue())


@contextmanager
def answering_once() -> Iterator[None]:
    """Servers print their first page, and end."""
    run = uvicorn.Server.run

    def answer(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        thread = threading.Thread(target=run, args=(server, sockets))
        thread.start()
        try:
            print(httpx.get(address_of(sockets[0]), trust_env=False, timeout=60).text)
        finally:
            server.should_exit = True
            thread.join()

    with patch.object(uvicorn.Server, "run", answer):
        yield


@dataclass(frozen=True)
class Served:
    """A page that answers."""

    address: str
    root: Path  # of what is drawn


@contextmanager
def serving(root: Path, checkpoint: Path = SHIPPED, device: str = "cpu") -> Iterator[Served]:
    """The page of a checkpoint, at a port that is free."""
    root.mkdir(parents=True, exist_ok=True)
    listener = listen("127.0.0.1", None)
    app = page_app(DemoArgs(checkpoint=str(checkpoint), device=device, output_dir=str(root)))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Served(address_of(listener), root)
    finally:
        server.should_exit = True
        thread.join()
