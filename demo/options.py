"""Options of the page, without torch or gradio: --help answers before they are loaded."""

from dataclasses import dataclass

from runtime.config import option
from runtime.errors import UserError
from sampling.options import ModelArgs

FIRST_PORT, PORTS = 7860, 100
LAST_PORT = 2**16 - 1


@dataclass(frozen=True)
class DemoArgs(ModelArgs):
    """Which model to play with, and where the page is."""

    checkpoint: str | None = option(
        None,
        "checkpoint file, its folder, or a name of the hub; default a choice of those in pretrained_models/, output/",
    )
    host: str = option(
        "127.0.0.1", "address to listen at; any but this one lets other machines reach the page, which has no password"
    )
    port: int | None = option(None, f"port to listen at; default the first free one from {FIRST_PORT} on")
    output_dir: str = option("output/demo", "folder for what is drawn, the only one whose files the page hands out")

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= LAST_PORT:
            raise UserError(f"port is {self.port}; it must lie between 1 and {LAST_PORT}")
