"""The server of the page: on one address, for one folder's files, and silent towards the rest of the world."""

import os
import socket
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from demo.options import FIRST_PORT, PORTS, DemoArgs
from runtime.errors import UserError

CACHE = ".page"  # in the folder for what is drawn: files on their way to and from the browser
END_S = 1  # seconds that open connections may take when the page is closed


def serve(args: DemoArgs) -> None:
    """Open the page, print its address, and stay until Ctrl-C."""
    if find_spec("gradio") is None:
        raise UserError("the page needs gradio; run pip install -r requirements-demo.txt")
    listener = listen(args.host, args.port)
    with listener:
        import uvicorn

        app = page_app(args)
        # Its own log_config would close what others log to: by absl's handler, stderr itself.
        quiet = {"log_level": "warning", "log_config": None}
        config = uvicorn.Config(app, **quiet, timeout_graceful_shutdown=END_S, proxy_headers=False)
        print(
            f"the page is at {address_of(listener)}; what is drawn goes to {args.output_dir}; Ctrl-C ends it",
            flush=True,
        )
        with suppress(KeyboardInterrupt):  # the usual end
            uvicorn.Server(config).run(sockets=[listener])


def set_environment(root: Path) -> None:
    """What gradio and its libraries read when they are imported or a page is made.

    They send nothing, and their files, too, stay below ``root``.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ["GRADIO_TEMP_DIR"] = str(root.resolve() / CACHE)


def listen(host: str, port: int | None) -> socket.socket:
    """A socket at an address, at the first free port if none is named; UserError if there is none."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"host {host} is no address ({error.strerror}); leave out --host for this machine") from error
    for tried in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((place[0], tried, *place[2:]))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror
    if port is None:
        raise UserError(f"no port from {FIRST_PORT} to {tried} is free at {host} ({reason}); name one as --port")
    raise UserError(f"port {port} of {host} cannot be had ({reason}); name another, or leave out --port")


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def page_app(args: DemoArgs) -> Any:
    """The page as an ASGI application; a UserError of a model or its checkpoint."""
    root = Path(args.output_dir)
    root.mkdir(parents=True, exist_ok=True)
    set_environment(root)
    import gradio as gr
    from fastapi import FastAPI

    from demo.guard import Guard, fetch_nothing
    from demo.page import lay_out
    from demo.style import CSS, HEAD, make_theme
    from demo.wiring import connect

    fetch_nothing()
    page, backend = lay_out(args)
    connect(page, backend)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page.blocks,
        path="/",
        allowed_paths=[str(root.resolve())],
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        max_file_size="64mb",
        show_error=True,
        theme=make_theme(),
        css=CSS,
        head=HEAD,
    )
    return Guard(app, root)
