"""Models of the Hugging Face hub, fetched to its cache where a local path might stand.

A name is ``owner/name``, with ``@revision`` behind it and a folder or file of the repository if need be.
"""

import errno
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from runtime import distributed
from runtime.errors import UserError
from runtime.files import PROJECT, hash_file, located, write_text

NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.-]+))?(/(?P<inside>\w[\w./-]*))?")
RELEASED_FOLDER = "pretrained_models"  # in which the release has its models
BESIDE = ("autoenc",)  # folders that a model's folder, or the one above, may have for it
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
REACH_S = 15  # the hub has this long to answer
TEXTS = (".yaml", ".yml", ".json", ".md")


def is_hub_name(path: str) -> bool:
    """Whether a path that is nowhere here may name a model of the hub; not below a folder that is here."""
    match = NAME.fullmatch(path)
    return (
        match is not None
        and ".." not in path
        and not match["repo"].endswith((*WEIGHTS_SUFFIXES, *TEXTS))  # it is the file of a folder that is missing
        and not any((root / path.split("/")[0]).exists() for root in (Path.cwd(), PROJECT))
    )


def here(path: str | Path) -> Path:
    """Where a user's path is, here or in the project; of a name of the hub its local copy."""
    name, path = str(path), located(path)
    return fetched(name) if not path.exists() and is_hub_name(name) else path


def fetched(name: str) -> Path:
    """The local copy of what a name of the hub means, a folder or a file; UserError if it cannot be had.

    Only the model's own files and its autoencoder's are fetched, and large ones are compared with their SHA-256. A copy
    in the cache serves where the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():  # each of its bars would be many lines
        disable_progress_bars()
    match = NAME.fullmatch(name)
    repo, revision, inside = match["repo"], match["revision"], (match["inside"] or "").rstrip("/")
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        info = HfApi().model_info(repo, revision=revision, timeout=REACH_S)
        place, wanted = files_of(name, inside, [sibling.rfilename for sibling in info.siblings or ()])
        patterns = [_literal(file) for file in wanted]
        root = Path(snapshot_download(repo, revision=info.sha, allow_patterns=patterns))
        _note_commit(repo, revision or constants.DEFAULT_REVISION, info.sha)
    except UserError:
        raise
    except Exception as error:  # the HTTP library below huggingface_hub, and its errors, change with the version
        root = None if _answered(error) else _cached(repo, revision or constants.DEFAULT_REVISION)
        if root is None:
            raise UserError(explained(name, repo, error)) from error
        files = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
        try:
            place, wanted = files_of(name, inside, files)
        except UserError:  # the copy holds something else of the repository
            raise UserError(explained(name, repo, error)) from error
        distributed.say(f"{repo}: the hub cannot be reached; taking the copy of revision {root.name} in {root}")
    for file in wanted:
        _verify(root / file, name)
    return root / place


def _answered(error: Exception) -> bool:
    """Whether the hub was reached and said no, or this machine failed; else it was out of reach."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
    status = getattr(getattr(error, "response", None), "status_code", None)
    return full or (status is not None and status < 500)


def _cached(repo: str, revision: str) -> Path | None:
    """The root of a repository's copy in the cache, if there is one."""
    reference = _reference(repo, revision)
    commit = reference.read_text().strip() if reference.is_file() else revision
    root = _folder_of(repo) / "snapshots" / commit
    return root if root.is_dir() else None


def _note_commit(repo: str, revision: str, commit: str) -> None:
    """Keep in the cache which commit a branch or tag is, so that its name serves without the hub."""
    if revision != commit:
        place = _reference(repo, revision)
        with suppress(OSError, UserError):  # of a cache that nobody may write to
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(place, commit)


def _reference(repo: str, revision: str) -> Path:
    """The file of the cache that says which commit a branch or tag was when it was fetched."""
    return _folder_of(repo) / "refs" / revision


def _folder_of(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def snapshot_of(folder: Path) -> Path | None:
    """The root of the repository whose copy in the hub's cache holds a folder; None of a folder elsewhere."""
    folder = folder.absolute()
    if "snapshots" not in folder.parts:
        return None
    from huggingface_hub import constants  # which takes time that folders of others need not pay

    cache = Path(constants.HF_HUB_CACHE).absolute()
    if not folder.is_relative_to(cache):
        return None
    parts = folder.relative_to(cache).parts  # models--OWNER--NAME, snapshots, REVISION, ...
    return cache.joinpath(*parts[:3]) if len(parts) >= 3 and parts[1] == "snapshots" else None


def autoencoder_section(place: Path, name: str, model: Path) -> dict[str, Any]:
    """The ``autoenc:`` of a published file of weights, at ``model``, that comes without a configuration.

    It is where download.sh puts it; else, of a model of the hub, the hub's of this name. Of others there is none.
    """
    path = str(place) if place.is_file() else name if snapshot_of(model) is not None else None
    return {} if path is None else {"autoenc": {"checkpoint_path": path}}


def files_of(name: str, inside: str, files: Iterable[str]) -> tuple[str, list[str]]:
    """What of a repository's files a folder or file of it needs: its place, and the files, its autoencoder's too."""
    files = list(files)
    if inside in files:
        folder = _parent(inside)
        texts = [file for file in files if _parent(file) == folder and file.endswith(TEXTS)]
        return inside, [inside, *texts, *_autoencoder(folder, files)]
    places = [inside] if not inside or inside.startswith(RELEASED_FOLDER) else [inside, f"{RELEASED_FOLDER}/{inside}"]
    place = next((p for p in places if not p or any(_parent(file) == p for file in files)), None)
    folders = sorted({_parent(file) for file in files if file.endswith(WEIGHTS_SUFFIXES)} - {""})
    if place is None:
        known = f"; it has {', '.join(folders)}" if folders else ""
        raise UserError(f"{name}: the repository has no folder or file {inside}{known}")
    own = [file for file in files if _parent(file) == place and file.endswith((*WEIGHTS_SUFFIXES, *TEXTS))]
    weights = [file for file in own if file.endswith(WEIGHTS_SUFFIXES)]
    if not weights:
        raise UserError(f"{name} holds no weights; name one of {', '.join(folders) or 'its folders that do'}")
    safe = [file for file in weights if file.endswith(".safetensors")]
    if len(safe or weights) > 1 and not any(PurePosixPath(file).name == "checkpoint-last.pth" for file in weights):
        raise UserError(f"{name} holds {', '.join(weights)}; name one of these files, as in {name}/{weights[0]}")
    return place, [*own, *_autoencoder(place, files)]


def _autoencoder(folder: str, files: Iterable[str]) -> list[str]:
    """Files of an autoencoder within a folder, or beside it."""
    places = {str(PurePosixPath(root) / name) for root in (folder, _parent(folder)) for name in BESIDE}
    return [file for file in files if _parent(file) in places]


def _parent(file: str) -> str:
    """The folder of a file in a repository; no text for its root."""
    parent = str(PurePosixPath(file).parent)
    return "" if parent == "." else parent


def _literal(file: str) -> str:
    """A pattern that only this file matches."""
    return re.sub(r"([*?[])", r"[\1]", file)


def _verify(path: Path, name: str) -> None:
    """Refuse a large file whose SHA-256, which names its blob in the cache, is another."""
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and hash_file(blob) != blob.name:
        raise UserError(f"{path.name} of {name} arrived damaged; delete {blob}, and run the same command again")


def explained(name: str, repo: str, error: Exception, uploads: bool = False) -> str:
    """What is wrong when a name of a repository cannot be fetched, or uploaded to, and the mend."""
    from huggingface_hub import constants, errors

    response: Any = getattr(error, "response", None)
    reason = " ".join(str(error).split())[:150] or type(error).__name__
    if uploads:
        may_not = getattr(response, "status_code", None) in (401, 403, 404)
        mend = "log in by hf auth login with a token that may write there" if may_not else "mend it, or try again later"
        return f"nothing was uploaded to {name} ({reason}); {mend}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated; accept its terms at {constants.ENDPOINT}/{repo}, then log in by hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: {repo} has no such revision; leave out what follows the @, or name another"
    if isinstance(error, errors.RepositoryNotFoundError) or getattr(response, "status_code", None) in (401, 403, 404):
        return (
            f"{name} is no folder here, and the hub has no repository {repo} that you may read; mend the name, or log "
            "in by hf auth login"
        )
    if _answered(error) and isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or constants.HF_HUB_CACHE}: {error.strerror}; free some space, or set HF_HOME"
    return (
        f"{name} is no folder here, and it cannot be fetched from the hub ({reason}); connect to the network, set "
        "HF_ENDPOINT to a mirror, or name a local folder"
    )
