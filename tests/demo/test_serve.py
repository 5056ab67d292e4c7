"""The page is at one address, hands out one folder's files, and asks nobody else for anything."""

import io
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from demo import __main__ as program
from demo import checkpoints, serve
from demo.guard import Guard
from demo.page import lay_out
from demo.serve import address_of, listen
from runtime.errors import UserError
from tests.command_factory import ROOT, call, save_run
from tests.demo.factory import SHIPPED, Served, answering_once, loaded, serving
from tests.factory import tiny_model
from tests.llamagen_factory import tiny_gpt

pytestmark = [pytest.mark.quick, pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*")]


@pytest.fixture(scope="module")
def reached() -> Iterator[list[Any]]:
    """The addresses that this process has reached out to, but for this machine's."""
    found, connect = [], socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not str(address[0]).startswith("127."):
            found.append(address)
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, reached: list[Any]) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served") / "demo") as page:
        (page.root / "kept.txt").write_text("kept")
        (page.root / "link").symlink_to("/etc/passwd")
        (page.root.parent / "outside.txt").write_text("outside")
        yield page


def status(served: Served, path: str) -> int:
    """Sent as it stands: a client would resolve ``..`` itself."""
    url = httpx.URL(served.address).copy_with(raw_path=path.encode())
    return httpx.get(url, trust_env=False).status_code


def test_files_of_its_own_folder_alone_are_handed_out(served: Served) -> None:
    assert status(served, "/") == 200
    for route in ("/gradio_api/file=", "/gradio_api/file/", "/file="):
        assert (status(served, f"{route}{served.root}/kept.txt") == 200) == (route == "/gradio_api/file=")
        for path in (
            "/etc/passwd",
            str(SHIPPED / "config.yaml"),
            "pretrained_models/cifar10-checkerboard/model.safetensors",
            "demo/page.py",
            f"{served.root}/../outside.txt",
            f"{served.root}/%2e%2e/outside.txt",
            f"{served.root}/link",
            "https://example.com/",
            "http:/example.com",
        ):
            assert status(served, route + path) in (403, 404), route + path


@pytest.mark.parametrize(
    "path",
    ["/monitoring", "/gradio_api/proxy=https://example.com", "/gradio_api/vibe-code", "/gradio_api/runs", "/docs"],
)
def test_what_the_page_does_not_need_is_closed(served: Served, path: str) -> None:
    assert status(served, path) in (403, 404)


def test_a_file_that_a_visitor_names_is_neither_read_nor_fetched(served: Served) -> None:
    """In the place of an upload: a path of the server, or an address of this very page."""
    config = httpx.get(f"{served.address}/config", trust_env=False).json()
    button = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "upload")
    event = next(one for one in config["dependencies"] if [button, "upload"] in one["targets"])
    for path in ("/etc/passwd", str(SHIPPED / "config.yaml"), f"{served.address}/theme.css"):
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, str(SHIPPED)]
        body = {"data": data, "fn_index": event["id"], "session_hash": "visitor", "trigger_id": button}
        assert httpx.post(f"{served.address}/gradio_api/queue/join", json=body, trust_env=False).status_code == 200
        with httpx.stream(
            "GET", f"{served.address}/gradio_api/queue/data?session_hash=visitor", trust_env=False
        ) as news:
            ended = next(line for line in news.iter_lines() if "process_completed" in line)
        assert '"success":false' in ended
        assert not list(served.root.glob(".page/**/*.css"))


def test_the_server_reaches_out_to_nobody(served: Served, reached: list[Any]) -> None:
    """While it starts, answers, and is asked to fetch something."""
    assert status(served, "/") == 200
    assert status(served, "/gradio_api/file=http://192.0.2.1/picture.png") == 403
    assert not reached


def test_the_guard_knows_the_page_from_the_rest(tmp_path: Path) -> None:
    guard = Guard(None, tmp_path)
    for path in ("/", "/config", "/assets/index.js", "/gradio_api/queue/join", f"/gradio_api/file={tmp_path}/a.png"):
        assert guard.allows(path)
    for path in ("/gradio_api", "/login", "/gradio_api/file=", "/gradio_api/file=a.png", "/gradio_api/queue/joined"):
        assert not guard.allows(path)


# Where it listens


def test_without_a_port_the_next_free_one_is_taken() -> None:
    with listen("127.0.0.1", None) as first, listen("127.0.0.1", None) as second:
        ports = [int(address_of(one).rpartition(":")[2]) for one in (first, second)]
        assert ports[0] < ports[1]
        assert all(address_of(one).startswith("http://127.0.0.1:") for one in (first, second))


def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        outcome = call(program.main, "--port", port, "--output_dir", str(tmp_path / "page"))
    assert outcome.error() == (
        f"port {port} of 127.0.0.1 cannot be had (Address already in use); name another, or leave out --port"
    )
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (("--port", "70000"), "port is 70000; it must lie between 1 and 65535"),
        (("--host", "no.such.host.invalid"), "host no.such.host.invalid is no address"),
        (("--checkpoint", "./nowhere.pth"), "no checkpoint at nowhere.pth"),
        (("--device", "abacus"), "device abacus is unknown"),
        (("--checkpoint", str(SHIPPED), "--use_ema"), "holds no EMA weights"),
    ],
)
def test_mistakes_are_sentences(
    flags: tuple[str, ...], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer in call(program.main, *flags).error()


def test_without_gradio_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert call(program.main).error() == "the page needs gradio; run pip install -r requirements-demo.txt"


# Which models it offers


def test_models_that_ship_and_runs_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was downloaded. An autoencoder is no model to draw with."""
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "output/mine", tiny_model())
    save_run(tmp_path / "output/own/model", tiny_gpt(autoencoder=tiny_model().autoencoder, img_size=32))
    (tmp_path / "output/broken").mkdir()
    (tmp_path / "output/broken/checkpoint-last.pth").touch()
    for name in ("npp-b/c2i_B_256.pt", "llamagen/vq_ds16_c2i.pt"):  # the latter is an autoencoder
        (tmp_path / "pretrained_models" / name).parent.mkdir(parents=True)
        (tmp_path / "pretrained_models" / name).touch()
    monkeypatch.setattr(checkpoints, "PROJECT", tmp_path)
    expected = {"output/mine": "checkerboard", "output/own/model": "llamagen", "pretrained_models/npp-b": "llamagen"}
    assert checkpoints.offered() == expected
    page, backend = lay_out(serve.DemoArgs(device="cpu"))
    assert list(page.fields.groups) == ["checkerboard", "llamagen"]
    assert {family for family, _ in backend.options} == {"checkerboard", "llamagen"}
    monkeypatch.setattr(checkpoints, "PROJECT", ROOT)
    assert next(iter(checkpoints.offered())) == "pretrained_models/cifar10-checkerboard"


def test_a_checkpoint_that_is_not_offered_is_not_loaded() -> None:
    found = loaded(SHIPPED)
    assert found.model.config.img_size == 32
    with pytest.raises(UserError, match="is not offered here"):
        checkpoints.LoadedModels(serve.DemoArgs(), ["output/quickstart"]).get(str(SHIPPED))


def test_ctrl_c_ends_it_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    outcome = call(program.main, "--checkpoint", str(SHIPPED), "--output_dir", str(tmp_path / "page"))
    assert (outcome.code, outcome.err) == (0, "")
    said = rf"the page is at http://127\.0\.0\.1:\d+; what is drawn goes to {tmp_path}/page; Ctrl-C ends it\n"
    assert re.fullmatch(said, outcome.out)


class Noted(logging.StreamHandler):
    """Of another library; absl's closes its stream, which may be stderr."""

    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


def test_what_others_log_to_stays_open(tmp_path: Path) -> None:
    handler = Noted(io.StringIO())
    with answering_once():
        outcome = call(program.main, "--checkpoint", str(SHIPPED), "--device", "cpu", "--output_dir", str(tmp_path))
    assert outcome.code == 0, outcome.err
    assert "Progressive checkerboards" in outcome.out
    assert not handler.closed
