"""Weights of others, fetched once to the user's cache and compared with what was fetched ever after."""

import json
import os
import shutil
import urllib.request
from pathlib import Path

from runtime.errors import UserError
from runtime.files import hash_file, whole, write_json

CACHE_VARIABLE = "XDG_CACHE_HOME"
TIMEOUT_S = 30


def fetched(url: str, flag: str) -> Path:
    """The file of a URL in the user's cache.

    Args:
        url: where to fetch it the first time.
        flag: the option that names a copy instead, for the message.

    Raises:
        UserError: it cannot be fetched, or is not the file that was fetched.
    """
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache") / "progressive-checkerboard"
    path = cache / url.rpartition("/")[2]
    record = path.with_name(f"{path.name}.json")
    if not path.exists():
        _fetch(url, path, flag)
        write_json(record, {"url": url, "sha256": hash_file(path)})
    elif record.exists() and json.loads(record.read_text())["sha256"] != hash_file(path):  # none: put there by hand
        raise UserError(f"{path} is not the file that was fetched; remove it and {record.name} to fetch it again")
    return path


def _fetch(url: str, path: Path, flag: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, temporary.open("wb") as file:
                shutil.copyfileobj(response, file)
                expected = response.headers["Content-Length"]
                if expected is not None and file.tell() != int(expected):
                    raise urllib.error.URLError(f"{file.tell()} of {expected} bytes arrived")
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"the Inception weights cannot be downloaded ({reason}); fetch {url} (96 MB) by hand and put it at "
                f"{path}, or name a copy with {flag}"
            ) from error
