"""Weights download against a small hub on 127.0.0.1 that answers as the real one does; no network.

``main`` runs in this process with a table of small files; what only a process shows (help, Ctrl-C, HF_ENDPOINT) is
tested on a copy of the scripts, run by bash.
"""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from huggingface_hub import constants

from pretrained_models import download
from pretrained_models.download import DEFAULT_NAMES, NEEDS, TABLE, File, main, select
from tests.hub_factory import CHUNK_BYTES, Hub, running_hub, sha256

CONTENTS = {
    "autoenc/autoencoder_config.yaml": b"model: {params: {ch: 32}}\n",
    "autoenc/checkpoint.pth": bytes(range(256)) * 40,
    "checkerboard-L-2x/checkpoint-last.pth": bytes(range(255, -1, -1)) * 40,
    "checkerboard-L-2x/config.yaml": b"model: {scale_ratio: 2}\n",
    "checkerboard-L-4x/config.yaml": b"model: {scale_ratio: 4}\n",
    "llamagen/vq_ds16_c2i.pt": b"codebook" * 500,
}
CONFIG, WEIGHTS, TOKENIZER = "autoenc/autoencoder_config.yaml", "autoenc/checkpoint.pth", "llamagen/vq_ds16_c2i.pt"
RUN_S = 30

Fetch = Callable[..., int]
Shell = Callable[..., "subprocess.Popen[str]"]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


SMALL_TABLE = [
    File(path, "some/weights", f"released/{path}", None if path == TOKENIZER else sha256(content))
    for path, content in CONTENTS.items()
]


@pytest.fixture
def hub(monkeypatch: Patch, tmp_path: Path) -> Iterator[Hub]:
    released = {f"released/{path}": content for path, content in CONTENTS.items()}
    yield from running_hub("some/weights", released, monkeypatch, tmp_path)


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
    hub.contents[f"released/{path}"] = b"changed"
    assert fetch("autoenc") == 2
    line = sentence(capsys.readouterr().err)
    assert all(word in line for word in (sha256(CONTENTS[path]), sha256(b"changed")))
    assert path not in files_in(tmp_path)
    assert hub.sent.count((Path(path).name, None)) == asked


def test_file_of_unknown_hash(hub: Hub, fetch: Fetch, tmp_path: Path, capsys: Capture) -> None:
    """It is compared with the hub's record as it comes, and with nothing later."""
    hub.cuts, hub.at_cut = [0], lambda: hub.contents.update({f"released/{TOKENIZER}": b"CODEBOOK" * 500})
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
    hub.repo, hub.contents = "FoundationVision/LlamaGen", {"vq_ds16_c2i.pt": content}
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
