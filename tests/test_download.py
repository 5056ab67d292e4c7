"""Weights download against a small hub on 127.0.0.1 that answers as the real one does; no network.

``main`` runs in this process with a table of small files; what only a process shows (help, Ctrl-C, HF_ENDPOINT) is
tested on a copy of the scripts, run by bash.
"""

import errno
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import pytest
from huggingface_hub import constants

from pretrained_models import download
from pretrained_models.download import DEFAULT_NAMES, NEEDS, TABLE, File, main, select

CONTENTS = {
    "autoenc/autoencoder_config.yaml": b"model: {params: {ch: 32}}\n",
    "autoenc/checkpoint.pth": bytes(range(256)) * 40,
    "checkerboard-L-2x/checkpoint-last.pth": bytes(range(255, -1, -1)) * 40,
    "checkerboard-L-2x/config.yaml": b"model: {scale_ratio: 2}\n",
    "checkerboard-L-4x/config.yaml": b"model: {scale_ratio: 4}\n",
    "llamagen/vq_ds16_c2i.pt": b"codebook" * 500,
}
CONFIG, WEIGHTS, TOKENIZER = "autoenc/autoencoder_config.yaml", "autoenc/checkpoint.pth", "llamagen/vq_ds16_c2i.pt"
CHUNK_BYTES = 1000
RUN_S = 30

Fetch = Callable[..., int]
Shell = Callable[..., "subprocess.Popen[str]"]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


SMALL_TABLE = [
    File(path, "some/weights", f"released/{path}", None if path == TOKENIZER else sha256(content))
    for path, content in CONTENTS.items()
]


class Hub(ThreadingHTTPServer):
    """The resolve endpoint: a large file redirects to another host and has its SHA-256 on record, a small one not."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.files = {f"some/weights/resolve/main/released/{path}": content for path, content in CONTENTS.items()}
        self.status: int | None = None  # of every answer, instead of the file
        self.commit = {"X-Repo-Commit": "c0ffee" * 6 + "c0de"}
        self.cuts: list[int] = []  # one a transfer of a large file: after so many bytes, call ``at_cut`` and hang up
        self.at_cut: Callable[[], object] = lambda: None
        self.requests: list[str] = []
        self.sent: list[tuple[str, str | None]] = []  # name and Range of the files whose bytes were asked for
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def replace(self, path: str, content: bytes) -> None:
        self.files[f"some/weights/resolve/main/released/{path}"] = content

    def handle_error(self, *_: object) -> None:
        """A client that hung up is no news."""


class HubHandler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0, so that a stopped hub keeps no connection alive."""

    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def answer(self) -> None:
        hub, path = self.server, self.path.removeprefix("/cdn").lstrip("/")
        hub.requests.append(f"{self.command} {self.path}")
        content = hub.files.get(path)
        if hub.status or content is None:
            self.reply(hub.status or 404, {"Content-Length": 0})
        elif path.endswith((".pth", ".pt")) and not self.path.startswith("/cdn"):
            linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": len(content), "Content-Length": 0}
            self.reply(302, {**linked, "Location": f"http://localhost:{hub.server_port}/cdn/{path}"})
        else:
            self.send_content(content)

    def send_content(self, content: bytes) -> None:
        hub, wanted = self.server, self.headers["Range"]
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        ranged = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        self.reply(206 if wanted else 200, {**ranged, "ETag": '"of git"', "Content-Length": len(content) - start})
        if self.command == "HEAD":
            return
        hub.sent.append((Path(self.path).name, wanted))
        if hub.cuts and self.path.startswith("/cdn"):
            self.wfile.write(content[start : start + hub.cuts.pop(0)])
            hub.at_cut()
        else:
            self.wfile.write(content[start:])

    def reply(self, status: int, headers: dict[str, Any]) -> None:
        self.send_response(status)
        for key, value in {**self.server.commit, **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()


@pytest.fixture
def hub(monkeypatch: Patch, tmp_path: Path) -> Iterator[Hub]:
    """A running hub that this process's huggingface_hub talks to, without the user's settings and without pauses."""
    hub = Hub()
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "DOWNLOAD_CHUNK_SIZE": CHUNK_BYTES,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    yield hub
    hub.stop()


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Fetch:
    """Run main on the small table; returns the exit code."""
    return lambda *names: main(names, table=SMALL_TABLE, folder=tmp_path)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Start a copy of download.sh, which downloads beside itself, from another working directory."""
    scripts = tmp_path / "pretrained_models"
    scripts.mkdir()
    for name in ("download.sh", "download.py"):
        shutil.copy(Path(download.__file__).with_name(name), scripts)

    def start(*argv: str, **settings: str) -> "subprocess.Popen[str]":
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        quiet = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        return subprocess.Popen(
            ["bash", str(scripts / "download.sh"), *argv],
            cwd="/",
            env=kept | quiet | {"PYTHON": sys.executable} | settings,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a background run
        )

    return start


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def contents_of(*folders: str) -> dict[str, bytes]:
    return {path: content for path, content in CONTENTS.items() if path.startswith(folders)}


def lines_of(stderr: str) -> list[str]:
    """What we say; progress bars and the library's warnings come before it."""
    assert "Traceback" not in stderr
    return stderr[stderr.index("error: ") :].splitlines()


def sentence(stderr: str) -> str:
    (line,) = lines_of(stderr)
    return line


def test_table_is_consistent() -> None:
    folders = {file.path.split("/")[0] for file in TABLE}
    assert {*DEFAULT_NAMES, *NEEDS, *NEEDS.values()} <= folders
    assert len({file.path for file in TABLE}) == len(TABLE)
    assert all(len(bytes.fromhex(file.sha256)) == 32 for file in TABLE if file.sha256)
    assert all(file.path.count("/") == 1 and file.repo.count("/") == 1 for file in TABLE)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["autoenc"], {"autoenc"}),
        (["checkerboard-L-4x"], {"autoenc", "checkerboard-L-4x"}),
        (["llamagen", "autoenc"], {"autoenc", "llamagen"}),
        (["llamagen-b"], {"llamagen", "llamagen-b"}),
        (["npp-b", "llamagen-3b-384"], {"llamagen", "llamagen-3b-384", "npp-b"}),
        (["randar-l", "randar-xl"], {"llamagen", "randar-l", "randar-xl"}),
        (["randar-l-maskgit"], {"maskgit", "randar-l-maskgit"}),
    ],
)
def test_names_select_folders(names: list[str], folders: set[str]) -> None:
    assert select(names, TABLE) == [file for file in TABLE if file.path.split("/")[0] in folders]


def test_unknown_name(hub: Hub, fetch: Fetch, capsys: Capture) -> None:
    assert fetch("autoenc", "L-4x") == 2
    line = sentence(capsys.readouterr().err)
    assert "nearest is checkerboard-L-4x" in line
    assert all(file.path.split("/")[0] in line for file in SMALL_TABLE)
    assert hub.requests == []


def test_unknown_option(fetch: Fetch) -> None:
    with pytest.raises(SystemExit) as end:
        fetch("--fast")
    assert end.value.code == 2


def test_fetches_once_then_verifies(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    released = contents_of(*DEFAULT_NAMES)
    assert fetch() == 0
    assert files_in(tmp_path) == released
    assert hub.sent == [(Path(path).name, None) for path in released]
    hub.requests.clear()
    assert fetch() == 0
    assert hub.requests == []
    out = capsys.readouterr().out
    assert all(out.count(f"SHA-256 {sha256(content)} verified") == 2 for content in released.values())


def test_another_file_of_that_name_stays(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    theirs = tmp_path / WEIGHTS
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    assert fetch("checkerboard-L-2x") == 2
    assert files_in(tmp_path) == {WEIGHTS: b"theirs"}
    assert hub.requests == []
    line = sentence(capsys.readouterr().err)
    assert all(word in line for word in (str(theirs), sha256(b"theirs"), sha256(CONTENTS[WEIGHTS]), "move it away"))


@pytest.mark.parametrize(("content", "code"), [(b"theirs", 2), (CONTENTS[WEIGHTS], 0)])
def test_file_that_appears_meanwhile_stays(hub: Hub, fetch: Fetch, tmp_path: Path, content: bytes, code: int) -> None:
    """As another download of the same file would put it there."""
    theirs, inodes = tmp_path / WEIGHTS, []

    def appear() -> None:
        theirs.write_bytes(content)
        inodes.append(theirs.stat().st_ino)

    hub.cuts, hub.at_cut = [len(CONTENTS[WEIGHTS])], appear
    assert fetch("autoenc") == code
    assert files_in(tmp_path) == {CONFIG: CONTENTS[CONFIG], WEIGHTS: content}
    assert [theirs.stat().st_ino] == inodes


def test_two_downloads_at_once(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    """Both are in the middle of the same file at the same time."""
    barrier, codes = threading.Barrier(2, timeout=RUN_S), []
    hub.cuts, hub.at_cut = [len(CONTENTS[WEIGHTS])] * 2, barrier.wait
    threads = [threading.Thread(target=lambda: codes.append(fetch("autoenc"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(RUN_S)
    assert codes == [0, 0]
    assert files_in(tmp_path) == contents_of("autoenc")


def test_cut_connection_goes_on_where_it_stopped(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    hub.cuts = [4 * CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert fetch("autoenc") == 0
    ranges = [wanted for name, wanted in hub.sent if name == "checkpoint.pth"]
    assert ranges == [None, f"bytes={4 * CHUNK_BYTES}-", f"bytes={6 * CHUNK_BYTES}-"]
    assert files_in(tmp_path) == contents_of("autoenc")


def test_hub_that_dies_names_what_is_left(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    hub.cuts, hub.at_cut = [CHUNK_BYTES], hub.stop
    assert fetch("checkerboard-L-2x") == 2
    assert files_in(tmp_path) == {CONFIG: CONTENTS[CONFIG]}
    first, *addresses, last = lines_of(capsys.readouterr().err)
    assert f"cannot fetch {WEIGHTS}" in first
    left = [path for path in contents_of("autoenc", "checkerboard-L-2x") if path != CONFIG]
    url = f"{hub.endpoint}/some/weights/resolve/main/released"
    assert [line.strip() for line in addresses] == [f"{url}/{path} into {tmp_path / path}" for path in left]
    assert "again to verify" in last


@pytest.mark.parametrize(("path", "asked"), [(CONFIG, 1), (WEIGHTS, 0)])
def test_another_file_on_the_hub(
    hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture, path: str, asked: int
) -> None:
    """Of a large file the hub's record tells before the download, of a small one the hash of what arrived."""
    hub.replace(path, b"changed")
    assert fetch("autoenc") == 2
    line = sentence(capsys.readouterr().err)
    assert all(word in line for word in (sha256(CONTENTS[path]), sha256(b"changed")))
    assert path not in files_in(tmp_path)
    assert hub.sent.count((Path(path).name, None)) == asked


def test_file_of_unknown_hash(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    """It is compared with the hub's record as it comes, and with nothing later."""
    hub.cuts, hub.at_cut = [0], lambda: hub.replace(TOKENIZER, b"CODEBOOK" * 500)
    assert fetch("llamagen") == 2
    assert "arrived damaged" in sentence(capsys.readouterr().err)
    assert files_in(tmp_path) == {}
    assert fetch("llamagen") == fetch("llamagen") == 0
    out = capsys.readouterr().out
    assert out.count("verified\n") == 1
    assert out.count("not verified") == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusal(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture, status: int) -> None:
    hub.status = status
    assert fetch("autoenc") == 2
    line = sentence(capsys.readouterr().err)
    assert all(word in line for word in (f"released/{CONFIG} answers HTTP {status}", "HF_ENDPOINT", "HF_TOKEN"))
    assert files_in(tmp_path) == {}


def test_hub_out_of_order_is_not_waited_for(hub: Hub, fetch: Fetch, capsys: Capture) -> None:
    hub.status = 503
    assert fetch("autoenc") == 2
    assert "503" in lines_of(capsys.readouterr().err)[0]
    assert len(hub.requests) == 1


def test_page_of_no_hub_is_not_taken_for_a_file(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    hub.commit = {}
    assert fetch("llamagen") == 2
    assert "HF_ENDPOINT" in lines_of(capsys.readouterr().err)[0]
    assert files_in(tmp_path) == {}


def test_name_look_up_that_hangs_is_given_up(fetch: Fetch, monkeypatch: Patch, capsys: Capture) -> None:
    awaited = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: awaited.wait(RUN_S))
    monkeypatch.setattr(download, "REACH_S", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0)
    start = time.monotonic()
    assert fetch("autoenc") == 2
    assert time.monotonic() - start < 5
    assert "no answer" in lines_of(capsys.readouterr().err)[0]
    awaited.set()


def test_disk_known_to_be_too_small(hub: Hub, fetch: Fetch, monkeypatch: Patch, capsys: Capture) -> None:
    usage = shutil.disk_usage("/")._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert fetch("autoenc") == 2
    assert "free some space" in sentence(capsys.readouterr().err)
    assert [name for name, _ in hub.sent] == ["autoencoder_config.yaml"]


def test_disk_that_fills_up(fetch: Fetch, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    def fill(*_: object, local_dir: str, **__: object) -> NoReturn:
        (Path(local_dir) / "part").write_bytes(b"some")
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fill)
    assert fetch("autoenc") == 2
    assert f"{os.strerror(errno.EDQUOT)}; free some space" in sentence(capsys.readouterr().err)
    assert files_in(tmp_path) == {}


def test_missing_library(fetch: Fetch, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert fetch("autoenc") == 2
    assert "pip install -r requirements.txt" in sentence(capsys.readouterr().err)


def test_shell_help_loads_nothing_large(shell: Shell) -> None:
    process = shell("--help", PYTHONPROFILEIMPORTTIME="1")
    out, imports = process.communicate(timeout=RUN_S)
    assert process.returncode == 0
    assert all(word in out for word in (*(file.path for file in TABLE), *DEFAULT_NAMES, "HF_ENDPOINT", "HF_TOKEN"))
    assert "argparse" in imports
    assert "torch" not in imports
    assert "huggingface_hub" not in imports


@pytest.mark.parametrize("offline", ["0", "1"])
def test_shell_without_a_hub(hub: Hub, shell: Shell, tmp_path: Path, offline: str) -> None:
    if offline == "0":
        hub.stop()
    process = shell(HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE=offline)
    out, err = process.communicate(timeout=RUN_S)
    assert (process.returncode, out) == (2, "")
    assert hub.requests == []
    first, *addresses, _ = lines_of(err)
    assert ("HF_HUB_OFFLINE" in first) == (offline == "1")
    assert [line.split()[0] for line in addresses] == [
        f"{hub.endpoint}/{file.repo}/resolve/main/{file.remote}" for file in select(DEFAULT_NAMES, TABLE)
    ]
    assert list((tmp_path / "pretrained_models").glob("*/*")) == []


def test_shell_stops_and_goes_on(hub: Hub, shell: Shell, tmp_path: Path) -> None:
    folder, content = tmp_path / "pretrained_models", CONTENTS[TOKENIZER]
    hub.files = {"FoundationVision/LlamaGen/resolve/main/vq_ds16_c2i.pt": content}
    halfway, stopped = threading.Event(), threading.Event()
    hub.cuts, hub.at_cut = [CHUNK_BYTES], lambda: (halfway.set(), stopped.wait(RUN_S))

    process = shell("llamagen", HF_ENDPOINT=hub.endpoint)
    assert halfway.wait(RUN_S)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=RUN_S)
    stopped.set()
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("stopped")
    assert "Traceback" not in err
    assert list((folder / "llamagen").iterdir()) == []

    process = shell("llamagen", HF_ENDPOINT=hub.endpoint)
    out, _ = process.communicate(timeout=RUN_S)
    assert (process.returncode, out) == (0, f"{TOKENIZER}: downloaded, SHA-256 {sha256(content)} verified\n")
    assert (folder / TOKENIZER).read_bytes() == content
