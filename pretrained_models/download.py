"""Fetch released weights from the Hugging Face hub into this folder; called by download.sh.

A file is downloaded beside its place, verified by its SHA-256, and only then takes its name. Nothing of the project is
imported: that would load torch. huggingface_hub is imported where it is used, so that --help answers at once.
"""

import argparse
import difflib
import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
REACH_S = 15  # the hub has this long to answer, unless HF_HUB_ETAG_TIMEOUT allows more


class File(NamedTuple):
    """One released file: its folder/name in pretrained_models/, where the hub has it, and its SHA-256 where known."""

    path: str
    repo: str
    remote: str
    sha256: str | None

    @property
    def url(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.remote)


RELEASED = {
    "autoenc/autoencoder_config.yaml": "1d4c1cefa2a2edb55f1260645601e235c98ee41e4b51785c1dbcdabde4a60d14",
    "autoenc/checkpoint.pth": "7503e2afd945546a0ba77cbb863227e8e5b1e1498190725c9358c6fed5720afa",
    "checkerboard-L-2x/checkpoint-last.pth": "d0b1c226a3b6bc84827855d2228bc21642774d99145d5978636f2a1e3553f297",
    "checkerboard-L-2x/config.yaml": "8719010494d7a909f36831a600cbda45c8223377600aa493abb28d3caba1f32b",
    "checkerboard-L-4x/checkpoint-last.pth": "e359552cb2b1d7ace912d0aaac2450e80680e2635b9cb537442aba3823692fa9",
    "checkerboard-L-4x/config.yaml": "5cc319d36b881d9c6f492e4ded345e0c5abd1ff6e5648424e55ba86f4ba2f30a",
}
LLAMAGEN, NPP = "FoundationVision/LlamaGen", "pytttttt/LlamaGen-NPP"
MASKGIT_FILE = "maskgit-vqgan-imagenet-f16-256.bin"
RASTER = {  # name -> repository and file: file names repeat, so each has a folder of its own
    **{f"llamagen-{size.lower()}": (LLAMAGEN, f"c2i_{size}_256.pt") for size in ("B", "L")},
    **{f"llamagen-{size.lower()}-384": (LLAMAGEN, f"c2i_{size}_384.pt") for size in ("B", "L", "XL", "XXL", "3B")},
    **{f"npp-{size.lower()}": (NPP, f"c2i_{size}_256.pt") for size in ("B", "L", "XL", "XXL")},
}
RANDAR = {  # name -> file
    name: f"randar_{size}_360k_bs_1024_lr_0.0004.safetensors"
    for name, size in {
        "randar-l": "0.3b_llamagen",
        "randar-l-maskgit": "0.3b_maskgit",
        "randar-xl": "0.7b_llamagen",
    }.items()
}
TABLE = (
    *(File(path, "deigen/checkerboardgen", f"pretrained_models/{path}", sha256) for path, sha256 in RELEASED.items()),
    File("llamagen/vq_ds16_c2i.pt", LLAMAGEN, "vq_ds16_c2i.pt", None),
    *(File(f"{name}/{file}", repo, file, None) for name, (repo, file) in RASTER.items()),
    File(f"maskgit/{MASKGIT_FILE}", "fun-research/TiTok", MASKGIT_FILE, None),
    *(File(f"{name}/{file}", "ziqipang/RandAR", file, None) for name, file in RANDAR.items()),
)
FAMILIES = {**dict.fromkeys(RASTER, "llamagen"), **dict.fromkeys(RANDAR, "randar")}  # of what has no configuration
DEFAULT_NAMES = ("autoenc", "checkerboard-L-2x", "checkerboard-L-4x")
NEEDS = {  # the autoencoder of each model
    "checkerboard-L-2x": "autoenc",
    "checkerboard-L-4x": "autoenc",
    **dict.fromkeys(RASTER, "llamagen"),
    **{name: "maskgit" if name.endswith("maskgit") else "llamagen" for name in RANDAR},
}

EPILOG = """\
A name is a folder of these (default: {default}; a model fetches its autoencoder too):
{files}

Run the same command again to go on after an interruption: whole files stay, the one that was cut off is fetched again.
It also verifies the files of deigen/checkerboardgen, whose SHA-256 are recorded here. A killed run may leave a folder
.download-* behind, which you may delete.

The environment may set PYTHON (the interpreter), HF_ENDPOINT (a mirror of the hub), HF_TOKEN (your access token),
HF_HUB_OFFLINE=1 (verify what is there and touch no network), HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT (seconds
to wait for the hub's answer and for more data; 10 each).
"""


class DownloadError(Exception):
    """Something the user can mend; the message says how."""


def main(argv: Sequence[str] | None = None, *, table: Sequence[File] = TABLE, folder: Path = HERE) -> int:
    """Verify the files of ``table`` that ``argv`` names, fetch those that ``folder`` lacks; returns the exit code."""
    width = max(len(file.path) for file in table)
    files = "\n".join(f"  {file.path:<{width}} {file.repo}" for file in table)
    parser = argparse.ArgumentParser(
        prog="bash pretrained_models/download.sh",
        description="Fetch released weights from the Hugging Face hub; each download is compared with its SHA-256.",
        epilog=EPILOG.format(default=" ".join(DEFAULT_NAMES), files=files),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="name", nargs="*", help="what to fetch, see below")
    names = parser.parse_args(argv).names or DEFAULT_NAMES
    left: list[File] = []
    try:
        left += [file for file in select(names, table) if not _is_there(file, folder / file.path)]
        while left:
            _fetch(left[0], folder / left[0].path)
            del left[0]
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:  # the HTTP library below huggingface_hub, and its errors, change with the version
        print(f"error: {_explain(error, left, folder)}", file=sys.stderr)
        return 2
    return 0


def select(names: Sequence[str], table: Sequence[File]) -> list[File]:
    """The files of the named folders and of those they need. Raises DownloadError for an unknown name."""
    known = dict.fromkeys(str(Path(file.path).parent) for file in table)
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise DownloadError(f"unknown name {name!r}, the nearest is {nearest}; known are {', '.join(known)}")
    wanted = {*names, *(NEEDS[name] for name in names if name in NEEDS)}
    return [file for file in table if str(Path(file.path).parent) in wanted]


def _is_there(file: File, path: Path) -> bool:
    """Whether the file is in its place, verified; another one of its name is an error."""
    if os.path.lexists(path):
        _verify(file, path, file.sha256, "present", f"{path} is another file; move it away and run this again")
    return os.path.lexists(path)


def _verify(file: File, path: Path, expected: str | None, state: str, mend: str) -> None:
    """Report the file's hash. Raises DownloadError, which says ``mend``, if it is not as expected."""
    with path.open("rb") as stream:
        got = hashlib.file_digest(stream, "sha256").hexdigest()
    if expected not in (None, got):
        raise DownloadError(f"{mend} (expected SHA-256 {expected}, got {got})")
    verdict = "verified" if expected else "not verified: no record to compare it with"
    print(f"{file.path}: {state}, SHA-256 {got} {verdict}", flush=True)


def _fetch(file: File, path: Path) -> None:
    """Download one file, verify it, and move it to its place. Raises many things, which ``_explain`` tells apart."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download

    # hf_hub_download alone tries for minutes to reach a silent hub, and no time limit of a request covers name look-up
    # or a host of many addresses. A pool's threads do not keep the program from ending.
    with ThreadPool(1) as pool:
        record = pool.apply_async(get_hf_file_metadata, [file.url]).get(max(REACH_S, constants.HF_HUB_ETAG_TIMEOUT))
    recorded = record.etag if re.fullmatch("[0-9a-f]{64}", record.etag or "") else None  # of large files alone
    expected = file.sha256 or recorded
    if recorded not in (None, expected):
        raise DownloadError(f"{file.url} is another file (SHA-256 {recorded}, not {expected}); update this project")
    path.parent.mkdir(parents=True, exist_ok=True)
    if (record.size or 0) > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, f"no room for the {record.size / 1e9:.2f} GB of {file.path}", str(path.parent))
    # A folder of its own: huggingface_hub never continues the part of an earlier run, and one download in a shared
    # folder deletes what another has just finished.
    with TemporaryDirectory(prefix=".download-", dir=path.parent) as staging:
        arrived = Path(hf_hub_download(file.repo, file.remote, local_dir=staging))
        _verify(file, arrived, expected, "downloaded", f"{file.path} arrived damaged; run this again")
        if not _is_there(file, path):  # put there in the meantime, it stays
            arrived.replace(path)


def _explain(error: Exception, left: Sequence[File], folder: Path) -> str:
    """What went wrong and how to mend it; the first of ``left`` could not be fetched."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, DownloadError):
        return str(error)
    if isinstance(error, ImportError):
        return f"{error}; run pip install -r requirements.txt"
    if isinstance(error, OSError) and error.errno is not None:  # the disk's: those of the network have no number
        mend = "free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        return f"{error.filename or folder}: {error.strerror}; {mend} and run this again"
    if status in (401, 403, 404):
        return f"{left[0].url} answers HTTP {status}; check HF_ENDPOINT, HF_TOKEN and the repository's page"
    reason = " ".join(f"{type(error).__name__}: {str(error) or 'no answer'}".split())
    start = f"cannot fetch {left[0].path} ({reason}); try again later, set HF_ENDPOINT to a mirror, or fetch by hand"
    by_hand = [f"  {file.url} into {folder / file.path}" for file in left]
    return "\n".join([start, *by_hand, "then run this again to verify"])


if __name__ == "__main__":
    sys.exit(main())
