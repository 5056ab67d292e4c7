"""Weights download against a small hub on 127.0.0.1 that answers as the real one does; no network.

Two ways in: ``main`` in this process with a table of small files, and a copy of the real scripts in a scratch folder,
run by bash. The latter fetch ``llamagen``, because its hash is whatever the hub records.
"""

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
from errno import EDQUOT, EXDEV
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock
from huggingface_hub import constants

from pretrained_models import download
from pretrained_models.download import RELEASE, TABLE, File, main, parse_names, select

CONTENTS = {
    "autoenc/autoencoder_config.yaml": b"model: {params: {ch: 32}}\n",
    "autoenc/checkpoint.pth": bytes(range(256)) * 40,
    "checkerboard-L-2x/checkpoint-last.pth": bytes(range(255, -1, -1)) * 40,
    "checkerboard-L-2x/config.yaml": b"model: {scale_ratio: 2}\n",
    "checkerboard-L-4x/checkpoint-last.pth": b"4x weights" * 1000,
    "checkerboard-L-4x/config.yaml": b"model: {scale_ratio: 4}\n",
}
CONFIG, WEIGHTS = "autoenc/autoencoder_config.yaml", "autoenc/checkpoint.pth"
TOKENIZER, TOKENIZER_REPO = "llamagen/vq_ds16_c2i.pt", "FoundationVision/LlamaGen"
TOKENIZER_BYTES = b"codebook" * 500
COMMIT = "c0ffee" * 6 + "c0de"
CHUNK_BYTES = 1000  # in this process; a real run writes LIBRARY_CHUNK_BYTES at once
LIBRARY_CHUNK_BYTES = constants.DOWNLOAD_CHUNK_SIZE
RUN_S = 30

Fetch = Callable[..., int]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


SMALL_TABLE = (
    *(File(path, sha256(content)) for path, content in CONTENTS.items()),
    File(TOKENIZER, None, repo=TOKENIZER_REPO),
)


class Hub:
    """The resolve endpoint: a large file redirects to another host and has its SHA-256 on record, a small one not."""

    def __init__(self) -> None:
        self.files = {f"{RELEASE}/resolve/main/pretrained_models/{path}": data for path, data in CONTENTS.items()}
        self.files[f"{TOKENIZER_REPO}/resolve/main/vq_ds16_c2i.pt"] = TOKENIZER_BYTES
        self.large: tuple[str, ...] = (".pth", ".pt")
        self.commit = {"X-Repo-Commit": COMMIT}
        self.knows_ranges = True
        self.break_off: tuple[int, Callable[[], object]] | None = None  # once: after so many bytes, call and hang up
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.start()

    def start(self, port: int = 0) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (HubHandler,), {"hub": self}))
        self.port = self.server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def redirects(self, path: str) -> bool:
        return path.endswith(self.large) and not path.startswith("/cdn/")

    @property
    def sent(self) -> list[tuple[str, str | None]]:
        """Name and Range of the files whose bytes were asked for."""
        gets = (
            (path, wanted) for method, path, wanted in self.requests if method == "GET" and not self.redirects(path)
        )
        return [(path.rpartition("/")[2], wanted) for path, wanted in gets]


class HubHandler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0, so that a stopped hub keeps no connection alive."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def answer(self) -> None:
        hub, name = self.hub, self.path.removeprefix("/cdn").lstrip("/")
        hub.requests.append((self.command, self.path, self.headers["Range"]))
        content = hub.files.get(name)
        if content is None:
            self.reply(404, {"X-Error-Code": "EntryNotFound", "Content-Length": "0"})
        elif hub.redirects(self.path):
            linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
            location = f"http://localhost:{hub.port}/cdn/{name}"
            self.reply(302, {**linked, **hub.commit, "Location": location, "Content-Length": "0"})
        else:
            self.send_content(content)

    def send_content(self, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', **self.hub.commit}
        wanted, start = self.headers["Range"], 0
        if wanted and self.hub.knows_ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if start >= len(content):
            self.reply(416, {"Content-Length": "0"})
            return
        self.reply(206 if start else 200, {**headers, "Content-Length": str(len(content) - start)})
        if self.command == "HEAD":
            return
        if self.hub.break_off is None or not self.path.startswith("/cdn/"):
            self.wfile.write(content[start:])
            return
        (count, call), self.hub.break_off = self.hub.break_off, None
        self.wfile.write(content[start : start + count])
        call()

    def reply(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


def talk_to(endpoint: str, monkeypatch: Patch) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch: Patch) -> Iterator[Hub]:
    """A running hub that this process's huggingface_hub talks to, without the user's token and without pauses."""
    hub = Hub()
    talk_to(hub.endpoint, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setenv("NO_PROXY", "*")
    yield hub
    hub.stop()


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Fetch:
    """Run main on the small table; returns the exit code."""
    return lambda *names: main(names, table=SMALL_TABLE, folder=tmp_path)


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a copy of download.sh, which downloads beside itself, from another working directory."""
    scripts = tmp_path / "pretrained_models"
    scripts.mkdir()
    for name in ("download.sh", "download.py"):
        shutil.copy(Path(download.__file__).with_name(name), scripts)

    def start(*names: str, **settings: str) -> subprocess.Popen[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        quiet = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        return subprocess.Popen(
            ["bash", str(scripts / "download.sh"), *names],
            cwd="/",
            env=kept | quiet | {"PYTHON": sys.executable} | settings,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a background run
        )

    return start


def part_of(path: str, folder: Path, content: bytes) -> Path:
    """Where the interrupted download of a file of that content lies."""
    staging = folder / ".download"
    staging.mkdir(exist_ok=True)
    return staging / f"{path.replace('/', '--')}.{sha256(content)}.part"


def left_over(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


def our_line(stderr: str) -> str:
    """The one line in which we say what is wrong; progress bars and the library's warnings are its own."""
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith(("error: ", "stopped"))]
    return line


def test_table_names_the_released_files() -> None:
    pinned = [file for file in TABLE if file.sha256 is not None]
    assert [file.path for file in pinned] == list(CONTENTS)
    assert {len(bytes.fromhex(file.sha256 or "")) for file in pinned} == {32}
    assert len({file.sha256 for file in pinned}) == len(pinned)
    assert {file.repo: file.remote for file in TABLE} == {
        "deigen/checkerboardgen": "pretrained_models/checkerboard-L-4x/config.yaml",
        "FoundationVision/LlamaGen": "vq_ds16_c2i.pt",
    }


@pytest.mark.parametrize(
    ("argv", "folders"),
    [
        ([], {"autoenc", "checkerboard-L-2x", "checkerboard-L-4x"}),
        (["autoenc"], {"autoenc"}),
        (["checkerboard-L-4x"], {"autoenc", "checkerboard-L-4x"}),
        (["llamagen", "autoenc"], {"autoenc", "llamagen"}),
    ],
)
def test_names_select_folders(argv: list[str], folders: set[str]) -> None:
    assert select(parse_names(argv), TABLE) == [file for file in TABLE if file.folder in folders]


def test_fetches_once_then_verifies(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    assert fetch() == 0
    assert {path: (tmp_path / path).read_bytes() for path in CONTENTS} == CONTENTS
    assert hub.sent == [(Path(path).name, None) for path in CONTENTS]
    assert left_over(tmp_path) == []
    hub.requests.clear()
    assert fetch() == 0
    assert hub.requests == []
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: {state}, SHA-256 {sha256(content)} verified"
        for state in ("downloaded", "present")
        for path, content in CONTENTS.items()
    ]


def test_another_file_of_that_name_stays(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    theirs = tmp_path / WEIGHTS
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    assert fetch("checkerboard-L-2x") == 2
    assert theirs.read_bytes() == b"theirs"
    assert hub.requests == []
    line = our_line(capsys.readouterr().err)
    assert all(word in line for word in (str(theirs), sha256(b"theirs"), sha256(CONTENTS[WEIGHTS]), "move it away"))


@pytest.mark.parametrize(("content", "code"), [(b"theirs", 2), (CONTENTS[WEIGHTS], 0)])
def test_file_that_appears_meanwhile_stays(hub: Hub, fetch: Fetch, tmp_path: Path, content: bytes, code: int) -> None:
    theirs = tmp_path / WEIGHTS
    inodes = []

    def appear() -> None:
        theirs.write_bytes(content)
        inodes.append(theirs.stat().st_ino)

    hub.break_off = (len(CONTENTS[WEIGHTS]), appear)
    assert fetch("autoenc") == code
    assert theirs.read_bytes() == content
    assert [theirs.stat().st_ino] == inodes


def test_resumes_after_the_hub_died(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    part = part_of(WEIGHTS, tmp_path, CONTENTS[WEIGHTS])
    hub.break_off = (4 * CHUNK_BYTES + 1, hub.stop)
    assert fetch("autoenc") == 2
    assert not (tmp_path / WEIGHTS).exists()
    assert part.read_bytes() == CONTENTS[WEIGHTS][: 4 * CHUNK_BYTES]
    line = our_line(capsys.readouterr().err)
    assert f"{hub.endpoint}/{RELEASE}/resolve/main/pretrained_models/{WEIGHTS} into {tmp_path}/autoenc/" in line
    assert CONFIG not in line  # it is there already

    hub.start(hub.port)
    hub.requests.clear()
    assert fetch("autoenc") == 0
    assert hub.sent == [("checkpoint.pth", f"bytes={4 * CHUNK_BYTES}-")]
    assert (tmp_path / WEIGHTS).read_bytes() == CONTENTS[WEIGHTS]
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("part", [CONTENTS[WEIGHTS], CONTENTS[WEIGHTS][:3000], CONTENTS[WEIGHTS] + b"more"])
def test_any_length_of_part_ends_well(hub: Hub, fetch: Fetch, tmp_path: Path, part: bytes, knows_ranges: bool) -> None:
    hub.knows_ranges = knows_ranges
    part_of(WEIGHTS, tmp_path, CONTENTS[WEIGHTS]).write_bytes(part)
    assert fetch("autoenc") == 0
    assert (tmp_path / WEIGHTS).read_bytes() == CONTENTS[WEIGHTS]


def test_damaged_part_is_dropped(fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    damaged = bytes(3000) + CONTENTS[WEIGHTS][3000:]
    part_of(WEIGHTS, tmp_path, CONTENTS[WEIGHTS]).write_bytes(damaged[:3000])
    assert fetch("autoenc") == 2
    line = our_line(capsys.readouterr().err)
    assert f"expected SHA-256 {sha256(CONTENTS[WEIGHTS])}, got {sha256(damaged)}" in line
    assert not (tmp_path / WEIGHTS).exists()
    assert left_over(tmp_path) == []
    assert fetch("autoenc") == 0


@pytest.mark.parametrize("path", [CONFIG, WEIGHTS])
def test_wrong_hash_on_the_hub(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture, path: str) -> None:
    hub.files[f"{RELEASE}/resolve/main/pretrained_models/{path}"] = b"changed"
    assert fetch("autoenc") == 2
    assert f"expected SHA-256 {sha256(CONTENTS[path])}, got {sha256(b'changed')}" in our_line(capsys.readouterr().err)
    assert not (tmp_path / path).exists()
    assert left_over(tmp_path) == []
    assert ("checkpoint.pth", None) not in hub.sent  # the hub's own record told before the large download


def test_tokenizer_is_compared_with_the_hubs_record(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    assert fetch("llamagen") == fetch("llamagen") == 0
    assert (tmp_path / TOKENIZER).read_bytes() == TOKENIZER_BYTES
    assert hub.sent == [("vq_ds16_c2i.pt", None)]
    assert capsys.readouterr().out.count(f"SHA-256 {sha256(TOKENIZER_BYTES)} as the hub records it") == 2
    (tmp_path / TOKENIZER).write_bytes(b"theirs")
    assert fetch("llamagen") == 2
    assert (tmp_path / TOKENIZER).read_bytes() == b"theirs"
    hub.stop()
    assert fetch("llamagen") == 0
    assert f"present, SHA-256 {sha256(b'theirs')} not verified" in capsys.readouterr().out


def test_tokenizer_without_a_record_is_never_pieced_together(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    hub.large = ()
    part = part_of(TOKENIZER, tmp_path, b"")
    part.with_name("llamagen--vq_ds16_c2i.pt.unverified.part").write_bytes(b"of another version")
    assert fetch("llamagen") == 0
    assert hub.sent == [("vq_ds16_c2i.pt", None)]
    assert (tmp_path / TOKENIZER).read_bytes() == TOKENIZER_BYTES


def test_page_of_no_hub_is_not_taken_for_a_file(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    hub.commit = {}
    assert fetch("llamagen") == 2
    assert "no Hugging Face hub answers" in our_line(capsys.readouterr().err)
    assert not (tmp_path / TOKENIZER).exists()


def test_file_that_moved(hub: Hub, fetch: Fetch, capsys: Capture) -> None:
    hub.files.clear()
    assert fetch("autoenc") == 2
    assert f"pretrained_models/{CONFIG} answers HTTP 404" in our_line(capsys.readouterr().err)


def test_silent_hub_is_given_up(fetch: Fetch, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(download, "REACH_S", 0.05)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)  # the request's own limit was bound at import: 10 s
    with socket.create_server(("127.0.0.1", 0)) as silent:
        talk_to(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        start = time.monotonic()
        assert fetch("autoenc") == 2
        assert time.monotonic() - start < 5
    assert "does not answer in 0.05 s" in our_line(capsys.readouterr().err)


def test_disk_known_to_be_too_small(hub: Hub, fetch: Fetch, monkeypatch: Patch, capsys: Capture) -> None:
    usage = shutil.disk_usage("/")._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert fetch("autoenc") == 2
    assert "free some space" in our_line(capsys.readouterr().err)
    assert hub.sent == [("autoencoder_config.yaml", None)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_that_fills_up(fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    part_of(WEIGHTS, tmp_path, CONTENTS[WEIGHTS]).symlink_to("/dev/full")
    assert fetch("autoenc") == 2
    assert "No space left on device; free some space" in our_line(capsys.readouterr().err)
    assert not (tmp_path / WEIGHTS).exists()


def test_quota_that_runs_out(fetch: Fetch, monkeypatch: Patch, capsys: Capture) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(EDQUOT, os.strerror(EDQUOT))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", refuse)
    assert fetch("autoenc") == 2
    assert f"{os.strerror(EDQUOT)}; free some space" in our_line(capsys.readouterr().err)


def test_folder_on_another_disk(fetch: Fetch, tmp_path: Path, monkeypatch: Patch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(EXDEV, os.strerror(EXDEV))

    monkeypatch.setattr(os, "rename", refuse)
    assert fetch("autoenc") == 0
    assert (tmp_path / WEIGHTS).read_bytes() == CONTENTS[WEIGHTS]
    assert left_over(tmp_path) == []


def test_second_download_steps_back(fetch: Fetch, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(download, "LOCK_S", 0.05)
    lock = tmp_path / ".download/lock"
    lock.parent.mkdir()
    with FileLock(lock):
        assert fetch("autoenc") == 2
    assert f"another download holds {lock}" in our_line(capsys.readouterr().err)
    assert fetch("autoenc") == 0


def test_shell_help_loads_nothing_large(shell: Callable[..., subprocess.Popen[str]]) -> None:
    process = shell("--help", PYTHONPROFILEIMPORTTIME="1")
    out, imports = process.communicate(timeout=RUN_S)
    assert process.returncode == 0
    assert all(word in out for word in ("autoenc", "checkerboard-L-2x", "checkerboard-L-4x", "llamagen", "HF_ENDPOINT"))
    assert "argparse" in imports
    assert "torch" not in imports
    assert "huggingface_hub" not in imports


@pytest.mark.parametrize(
    ("argument", "words"), [("L-4x", ("nearest is checkerboard-L-4x", "llamagen")), ("--fast", ("--fast", "--help"))]
)
def test_shell_wrong_argument(
    shell: Callable[..., subprocess.Popen[str]], argument: str, words: tuple[str, ...]
) -> None:
    process = shell("autoenc", argument)
    out, err = process.communicate(timeout=RUN_S)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert all(word in our_line(err) for word in words)


@pytest.mark.parametrize("offline", ["0", "1"])
def test_shell_without_a_hub(
    hub: Hub, shell: Callable[..., subprocess.Popen[str]], tmp_path: Path, offline: str
) -> None:
    if offline == "0":
        hub.stop()
    process = shell(HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE=offline)
    out, err = process.communicate(timeout=download.REACH_S)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert hub.requests == []
    line = our_line(err)
    assert ("HF_HUB_OFFLINE is set" in line) == (offline == "1")
    for path in CONTENTS:
        assert f"{hub.endpoint}/{RELEASE}/resolve/main/pretrained_models/{path}" in line
        assert f"into {tmp_path}/pretrained_models/{Path(path).parent}/" in line


def test_shell_stops_and_goes_on(hub: Hub, shell: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    content = bytes(range(256)) * (3 * LIBRARY_CHUNK_BYTES // 512)  # a chunk and a half
    hub.files[f"{TOKENIZER_REPO}/resolve/main/vq_ds16_c2i.pt"] = content
    folder = tmp_path / "pretrained_models"
    part, final = part_of(TOKENIZER, folder, content), folder / TOKENIZER
    stopped = threading.Event()
    hub.break_off = (LIBRARY_CHUNK_BYTES + 1, lambda: stopped.wait(RUN_S))

    process = shell("llamagen", HF_ENDPOINT=hub.endpoint)
    deadline = time.monotonic() + RUN_S
    while not (part.exists() and part.stat().st_size == LIBRARY_CHUNK_BYTES):
        assert process.poll() is None
        assert time.monotonic() < deadline
        stopped.wait(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=RUN_S)
    stopped.set()
    assert process.returncode == 130
    assert our_line(err).startswith("stopped")
    assert not final.exists()

    process = shell("llamagen", HF_ENDPOINT=hub.endpoint)
    out, _ = process.communicate(timeout=RUN_S)
    assert process.returncode == 0
    assert hub.sent == [("vq_ds16_c2i.pt", None), ("vq_ds16_c2i.pt", f"bytes={LIBRARY_CHUNK_BYTES}-")]
    assert out == f"{TOKENIZER}: downloaded, SHA-256 {sha256(content)} as the hub records it\n"
    assert final.read_bytes() == content
