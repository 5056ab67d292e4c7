"""What the server of the page refuses: other addresses than the page's own, other files than those it may hand out."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from gradio import processing_utils
from starlette.requests import ClientDisconnect

# What the page itself asks for. Gradio has more: statistics, a proxy, an editor of the program.
ASKED = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|(assets|static|svelte)/.*)?"
    r"|/gradio_api/(info|app_id|startup-events|queue/(join|data)|cancel|reset|upload|upload_progress|component_server"
    r"|heartbeat/\w+|file=(?P<file>.*))/?"
)


def fetch_nothing() -> None:
    """Have gradio fetch no file from an address that a visitor sends in the place of an upload."""

    async def refuse(*where: Any) -> NoReturn:
        raise gr.Error("this page fetches nothing from elsewhere; upload a file", print_exception=False)

    processing_utils.async_ssrf_protected_download = refuse


class Guard:
    """Lets through what the page asks for, and files below a folder; answers 403 to anything else."""

    def __init__(self, app: Any, root: Path) -> None:
        self.app, self.root = app, root.resolve()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not self.allows(scope["path"]):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not part of this page\n"})
            return
        with suppress(ClientDisconnect):  # who leaves the page in the middle of an upload
            await self.app(scope, receive, send)

    def allows(self, path: str) -> bool:
        """Whether a path of an address is the page's; links and ``..`` are followed first."""
        asked = ASKED.fullmatch(path)
        return asked is not None and (asked["file"] is None or Path(asked["file"]).resolve().is_relative_to(self.root))
