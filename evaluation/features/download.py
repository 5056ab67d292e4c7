"""Weights of others, fetched once to the user's cache and compared with what was fetched ever after."""

import json
import os
import shutil
import urllib.request
from pathlib import Path

from runtime.errors import UserError
from runtime.files import hash_file, whole, write_json

GRAPH_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/classify_image_graph_def.pb"
TIMEOUT_S = 30


def fetched(url: str, flag: str) -> Path:
    """The file of a URL in the user's cache, fetched the first time; ``flag`` names a copy instead.

    Raises:
        UserError: it cannot be fetched, or is not the file that was fetched.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "progressive-checkerboard"
    path = cache / url.rpartition("/")[2]
    record = path.with_name(f"{path.name}.json")
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            try:
                _download(url, temporary)
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                raise UserError(
                    f"the Inception weights cannot be downloaded ({getattr(error, 'reason', error)}); fetch {url} "
                    f"(96 MB) by hand and put it at {path}, or name a copy with {flag}"
                ) from error
        write_json(record, {"url": url, "sha256": hash_file(path)})
    elif record.exists() and json.loads(record.read_text())["sha256"] != hash_file(path):  # none: put there by hand
        raise UserError(f"{path} is not the file that was fetched; remove it and {record.name} to fetch it again")
    return path


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, path.open("wb") as file:
        shutil.copyfileobj(response, file)
        expected = response.headers["Content-Length"]
        if expected is not None and file.tell() != int(expected):
            raise urllib.error.URLError(f"{file.tell()} of {expected} bytes arrived")
