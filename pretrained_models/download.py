"""Fetch released weights from the Hugging Face hub into this folder; called by download.sh.

A file is written to ``.download/``, verified by its SHA-256, and only then takes its final name. A file already there
is verified and never overwritten. Nothing of the project is imported: ``models`` would load torch first.
huggingface_hub is imported where it is used: --help answers at once, and Ctrl-C is caught while it loads.
"""

import argparse
import difflib
import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import NoReturn, TypeVar

Result = TypeVar("Result")

HERE = Path(__file__).resolve().parent
STAGING = ".download"
RELEASE = "deigen/checkerboardgen"
DEFAULT_NAMES = ("autoenc", "checkerboard-L-2x", "checkerboard-L-4x")
REACH_S = 15  # the hub has this long to answer, unless HF_HUB_ETAG_TIMEOUT allows more
LOCK_S = 1
HASH_CHUNK_BYTES = 2**20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED_STATUS = (401, 403, 404)

EPILOG = """\
names (without any: {default}):
  autoenc            the autoencoder
  checkerboard-L-2x  L model of scale ratio 2; fetches autoenc too, which its config.yaml refers to
  checkerboard-L-4x  L model of scale ratio 4; fetches autoenc too, which its config.yaml refers to
  llamagen           LlamaGen's tokenizer, vq_ds16_c2i.pt

Run the same command again to continue an interrupted download, or to verify the files that are there.

environment variables:
  PYTHON                   interpreter that download.sh calls (default: python)
  HF_ENDPOINT              mirror of the hub (default: https://huggingface.co)
  HF_HUB_OFFLINE           1: verify the files that are there and touch no network
  HF_HUB_ETAG_TIMEOUT      seconds to wait for the hub's answer (default: 10)
  HF_HUB_DOWNLOAD_TIMEOUT  seconds to wait for more data before trying again (default: 10)
"""


class DownloadError(Exception):
    """Something the user can mend; the message is one sentence saying how."""


class UnreachableError(Exception):
    """The hub does not answer, or broke off; the message says how."""


@dataclass(frozen=True)
class File:
    """One released file; without ``sha256`` it is compared with the hub's own record."""

    path: str  # folder/name, under pretrained_models/
    sha256: str | None
    repo: str = RELEASE

    @property
    def folder(self) -> str:
        """What the command line calls it."""
        return self.path.partition("/")[0]

    @property
    def remote(self) -> str:
        """Path in the repository."""
        return f"pretrained_models/{self.path}" if self.repo == RELEASE else self.path.partition("/")[2]


TABLE = (
    File("autoenc/autoencoder_config.yaml", "1d4c1cefa2a2edb55f1260645601e235c98ee41e4b51785c1dbcdabde4a60d14"),
    File("autoenc/checkpoint.pth", "7503e2afd945546a0ba77cbb863227e8e5b1e1498190725c9358c6fed5720afa"),
    File("checkerboard-L-2x/checkpoint-last.pth", "d0b1c226a3b6bc84827855d2228bc21642774d99145d5978636f2a1e3553f297"),
    File("checkerboard-L-2x/config.yaml", "8719010494d7a909f36831a600cbda45c8223377600aa493abb28d3caba1f32b"),
    File("checkerboard-L-4x/checkpoint-last.pth", "e359552cb2b1d7ace912d0aaac2450e80680e2635b9cb537442aba3823692fa9"),
    File("checkerboard-L-4x/config.yaml", "5cc319d36b881d9c6f492e4ded345e0c5abd1ff6e5648424e55ba86f4ba2f30a"),
    File("llamagen/vq_ds16_c2i.pt", None, repo="FoundationVision/LlamaGen"),
)


def main(argv: Sequence[str] | None = None, *, table: Sequence[File] = TABLE, folder: Path = HERE) -> int:
    """Fetch the files of ``table`` that ``argv`` names into ``folder``; returns the exit code."""
    try:
        download(select(parse_names(argv), table), folder)
    except KeyboardInterrupt:
        return _fail("stopped; run the same command again to go on where it stopped", 130)
    except DownloadError as error:
        return _fail(f"error: {error}", 2)
    except ImportError as error:
        return _fail(f"error: {error}; run pip install -r requirements.txt", 2)
    except OSError as error:
        mend = "free some space there" if error.errno in DISK_FULL else "mend that"
        place = error.filename or folder
        return _fail(f"error: {place}: {error.strerror or error}; {mend} and run the same command again", 2)
    return 0


def parse_names(argv: Sequence[str] | None) -> list[str]:
    """The names on the command line; without any, DEFAULT_NAMES."""
    parser = _Parser(
        prog="bash pretrained_models/download.sh",
        description="Fetch released weights from the Hugging Face hub; each file is verified by its SHA-256.",
        epilog=EPILOG.format(default=" ".join(DEFAULT_NAMES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="name", nargs="*", help="what to fetch, see below")
    return parser.parse_args(argv).names or list(DEFAULT_NAMES)


def select(names: Sequence[str], table: Sequence[File]) -> list[File]:
    """The files of the named folders, and of autoenc with an L model, in the table's order.

    Raises:
        DownloadError: a name is unknown.
    """
    known = list(dict.fromkeys(file.folder for file in table))
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise DownloadError(f"unknown name {name!r}, the nearest is {nearest}; known are {', '.join(known)}")
    with_autoenc = any(name.startswith("checkerboard-") for name in names)
    return [file for file in table if file.folder in names or (with_autoenc and file.folder == "autoenc")]


def download(files: Sequence[File], folder: Path) -> None:
    """Verify the files that are in ``folder``, then fetch the others.

    Raises:
        DownloadError: a file is not what it should be, or cannot be fetched.
    """
    missing = [file for file in files if not _is_present(file, folder)]
    if not missing:
        return
    with _locked(folder / STAGING):
        try:
            while missing:
                _fetch(missing[0], folder)
                del missing[0]
        except UnreachableError as error:
            raise DownloadError(
                f"cannot fetch {missing[0].path} ({error}); run this again later to go on where it stopped, set "
                f"HF_ENDPOINT to a mirror, or on another machine {_by_hand(missing, folder)}, then run this to verify"
            ) from error


def _is_present(file: File, folder: Path) -> bool:
    """Whether the file is there and whole. Raises DownloadError for another file of its name."""
    path = folder / file.path
    if not os.path.lexists(path):
        return False
    got, expected = _sha256(path), file.sha256 or _recorded_sha256(file)
    if expected not in (None, got):
        raise DownloadError(
            f"{path} is another file (expected SHA-256 {expected}, got {got}) and stays as it is; "
            "move it away and run this again"
        )
    _report(file, "present", got, expected)
    return True


def _recorded_sha256(file: File) -> str | None:
    """The hub's record of the file's hash; None if the hub has none or does not answer."""
    try:
        return _ask_hub(file)[0]
    except UnreachableError:
        return None


def _fetch(file: File, folder: Path) -> None:
    """Download one file to the staging folder, verify it there, and move it to its place."""
    recorded, size = _ask_hub(file)
    expected = file.sha256 or recorded
    if recorded not in (None, expected):
        raise DownloadError(
            f"{_url(file)} is another file than this release (expected SHA-256 {expected}, got {recorded}); "
            "update this project, or set HF_ENDPOINT to a mirror that holds the release"
        )
    part = folder / STAGING / f"{file.path.replace('/', '--')}.{expected or 'unverified'}.part"
    if expected is None or size is None:
        part.unlink(missing_ok=True)  # nothing tells whether it is the beginning of the same file
    _fetch_part(file, part, size)
    got = _sha256(part)
    if expected not in (None, got):
        part.unlink()
        raise DownloadError(f"{file.path} arrived damaged: expected SHA-256 {expected}, got {got}; run this again")
    if _is_present(file, folder):  # put there by hand during the download: it stays
        part.unlink()
        return
    _install(part, folder / file.path)
    _report(file, "downloaded", got, expected)


def _fetch_part(file: File, part: Path, size: int | None) -> None:
    """Write the file's remaining bytes to ``part``; ``size`` is the whole file's, in bytes.

    hf_hub_download is not used: in huggingface_hub 2.4 it deletes an interrupted file and begins again at the first
    byte, and it tries for minutes to reach a hub that does not answer.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    start = part.stat().st_size if part.exists() else 0
    if size is not None and start > size:
        part.unlink()
        start = 0
    free = shutil.disk_usage(part.parent).free
    if size is not None and size - start > free:
        raise DownloadError(
            f"{file.path} needs {(size - start) / 1e9:.2f} GB and {part.parent} has {free / 1e9:.2f} GB left; "
            "free some space there and run this again"
        )
    # Sizes and ranges are those of the file itself only without compression.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    with part.open("ab") as stream:
        with _network_errors(_url(file)):
            http_get(
                _url(file),
                stream,
                resume_size=start,
                headers=headers,
                expected_size=size,
                displayed_filename=file.path,
            )
        stream.flush()
        os.fsync(stream.fileno())


def _install(part: Path, final: Path) -> None:
    """Give a verified file its final name in one step, also where the folder is a link to another disk."""
    final.parent.mkdir(parents=True, exist_ok=True)
    near = final.with_name(f".{final.name}.part")
    try:
        shutil.move(part, near)
        near.replace(final)
    finally:
        near.unlink(missing_ok=True)


def _ask_hub(file: File) -> tuple[str | None, int | None]:
    """SHA-256 (the hub records it for large files alone) and size in bytes.

    Raises:
        UnreachableError: the hub does not answer in time.
        DownloadError: the hub does not have the file.
    """
    from huggingface_hub import constants, get_hf_file_metadata

    url = _url(file)
    with _network_errors(url):
        metadata = within(max(REACH_S, constants.HF_HUB_ETAG_TIMEOUT), lambda: get_hf_file_metadata(url))
    if metadata.commit_hash is None:
        raise UnreachableError(f"no Hugging Face hub answers at {url}")
    recorded = metadata.etag if re.fullmatch("[0-9a-f]{64}", metadata.etag or "") else None
    return recorded, metadata.size


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Turn a failed request into UnreachableError or DownloadError; errors of the disk pass through.

    Catches Exception because the HTTP library below huggingface_hub, and its exceptions, change with the version.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except UnreachableError:
        raise
    except OfflineModeIsEnabled as error:
        raise UnreachableError("HF_HUB_OFFLINE is set; unset it to use the network") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in REFUSED_STATUS:
            raise DownloadError(
                f"{url} answers HTTP {status}; check HF_ENDPOINT and HF_TOKEN, and on the repository's page whether "
                "the file has moved"
            ) from error
        reason = f"HTTP {status}" if status else " ".join(f"{type(error).__name__}: {error}".split())
        raise UnreachableError(reason) from error


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """``call()``, given up after ``seconds``: name look-up and hosts of many addresses outlast a socket's timeout.

    Raises:
        UnreachableError: there was no result in time; the call goes on in a daemon thread.
    """
    outcome: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return outcome.result(timeout=seconds)
    except futures.TimeoutError as error:
        raise UnreachableError(f"the hub does not answer in {seconds:g} s") from error


@contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Keep a second download from writing to the same parts."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    staging.mkdir(parents=True, exist_ok=True)
    path = staging / "lock"
    try:
        with WeakFileLock(path, timeout=LOCK_S):
            yield
    except Timeout as error:
        raise DownloadError(
            f"another download holds {path}; run this again when it has ended (if there is none, remove that file)"
        ) from error


def _by_hand(files: Sequence[File], folder: Path) -> str:
    """Which URLs to fetch into which folders."""
    urls: dict[str, list[str]] = {}
    for file in files:
        urls.setdefault(file.folder, []).append(_url(file))
    return ", ".join(f"fetch {' '.join(group)} into {folder / name}/" for name, group in urls.items())


def _url(file: File) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(file.repo, file.remote)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _report(file: File, state: str, got: str, expected: str | None) -> None:
    if file.sha256 is not None:
        verdict = "verified"
    elif expected is not None:
        verdict = "as the hub records it"
    else:
        verdict = "not verified: no record of it to compare with"
    print(f"{file.path}: {state}, SHA-256 {got} {verdict}", flush=True)


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        raise DownloadError(f"{message}; --help lists what there is")


if __name__ == "__main__":
    sys.exit(main())
