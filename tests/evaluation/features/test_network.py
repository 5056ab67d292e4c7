"""Files of networks that others publish: fetched once, and pinned by their SHA-256."""

import hashlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from evaluation.cache_folder import cache_folder
from evaluation.features.network import downloaded, load_network
from evaluation.options import NetworkArgs
from runtime.errors import UserError
from tests.command_factory import ROOT

GRAPH = ROOT / "tests/fixtures/evaluator/classify_image_graph_def.pb"
CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64
Patch = pytest.MonkeyPatch


class Server(HTTPServer):
    """Sends ``content`` whatever is asked for, and says that it is ``length`` bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.length, self.num_requests = CONTENT, len(CONTENT), 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.num_requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(self.server.length))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: Patch) -> Iterator[Server]:
    """A running server, and a cache folder that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["weights.pth", f"weights-2015-12-05-{SHA256[:8]}.pth"])
@pytest.mark.parametrize("expected", [None, SHA256, SHA256.upper()])
def test_a_file_is_fetched_once(name: str, expected: str | None, server: Server) -> None:
    for _ in range(2):
        path = downloaded(server.url(name), "--copy", expected)
        assert path.read_bytes() == CONTENT
    assert server.num_requests == 1


@pytest.mark.parametrize(("name", "expected"), [("weights.pth", OTHER), ("weights-2015-12-05-00000000.pth", None)])
def test_a_download_of_another_sha256_is_refused(name: str, expected: str | None, server: Server) -> None:
    with pytest.raises(UserError, match=f"has SHA-256 {SHA256}, but 0+ is expected"):
        downloaded(server.url(name), "--copy", expected)
    assert not list(cache_folder().iterdir())


@pytest.mark.parametrize(("name", "expected"), [("weights.pth", OTHER), ("weights-2015-12-05-00000000.pth", None)])
def test_a_file_in_the_cache_of_another_sha256_is_refused(name: str, expected: str | None, server: Server) -> None:
    """Also one that was put there by hand."""
    path = cache_folder() / name
    path.write_bytes(CONTENT)
    with pytest.raises(UserError, match=f"{name} has SHA-256 {SHA256}, but 0+ is expected; remove it"):
        downloaded(server.url(name), "--copy", expected)
    assert path.read_bytes() == CONTENT
    assert server.num_requests == 0


def test_a_download_cut_short_leaves_nothing(server: Server) -> None:
    server.length += 5
    with pytest.raises(UserError, match=r"cannot be downloaded .* or name a copy with --copy"):
        downloaded(server.url("weights.pth"), "--copy")
    assert not list(cache_folder().iterdir())


def test_a_file_that_changed_or_whose_record_is_damaged(server: Server) -> None:
    path = downloaded(server.url("weights.pth"), "--copy")
    record = path.with_name("weights.pth.json")
    text = record.read_text()
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"is not the file that was fetched; remove it and weights\.pth\.json"):
        downloaded(server.url("weights.pth"), "--copy")
    path.write_bytes(CONTENT)
    record.write_text(text[:20])
    with pytest.raises(UserError, match="is not the file that was fetched"):
        downloaded(server.url("weights.pth"), "--copy")


def test_no_place_for_a_file(server: Server, tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME to a folder that can be written to"):
        downloaded(server.url("weights.pth"), "--copy")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError()))
    with pytest.raises(UserError, match="there is no home folder to keep files in; set XDG_CACHE_HOME"):
        downloaded(server.url("weights.pth"), "--copy")


def test_a_caller_pins_the_file() -> None:
    sha256 = hashlib.sha256(GRAPH.read_bytes()).hexdigest()
    args = {"inception_graph": str(GRAPH)}
    assert load_network(NetworkArgs(**args, inception_sha256=sha256.upper()), torch.device("cpu")).sha256 == sha256
    with pytest.raises(UserError, match=f"{GRAPH} has SHA-256 {sha256}, not the {OTHER} of --inception_sha256"):
        load_network(NetworkArgs(**args, inception_sha256=OTHER), torch.device("cpu"))
    with pytest.raises(UserError, match="must be 64 hexadecimal digits"):
        NetworkArgs(inception_sha256="abc")
    with pytest.raises(UserError, match="--inception_sha256 means nothing with --features digits"):
        NetworkArgs(features="digits", inception_sha256=OTHER)


@pytest.mark.parametrize(("backend", "library"), [("tensorflow", "tensorflow"), ("torch", "torch_fidelity")])
def test_a_library_that_cannot_be_loaded(backend: str, library: str, monkeypatch: Patch) -> None:
    """Missing, or at odds with another one: then an import raises anything."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"{library} cannot be loaded .*; pip install -r requirements.txt"):
        load_network(NetworkArgs(backend=backend), torch.device("cpu"))
