"""A small hub on 127.0.0.1 that answers as the real one does, and takes uploads; no network."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

CHUNK_BYTES = 1000
COMMIT = "c0ffee" * 6 + "c0de"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(name: str) -> bool:
    """Whether a file's bytes are at another host, and its SHA-256 on record."""
    return name.endswith((".pth", ".pt", ".safetensors"))


class Hub(ThreadingHTTPServer):
    """The resolve endpoint: a large file redirects to another host and has its SHA-256 on record, a small one not."""

    def __init__(self, repo: str, contents: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repo, self.contents = repo, dict(contents)
        self.status: int | None = None  # of every answer, instead of the file
        self.commit = {"X-Repo-Commit": COMMIT}
        self.cuts: list[int] = []  # one a transfer of a large file: after so many bytes, call ``at_cut`` and hang up
        self.at_cut: Callable[[], object] = lambda: None
        self.requests: list[str] = []
        self.sent: list[tuple[str, str | None]] = []  # name and Range of the files whose bytes were asked for
        self.gated = False  # whether each answer is that the terms must be accepted first
        self.token: str | None = None  # without which nothing is taken
        self.uploaded: dict[str, bytes] = {}  # bytes of large files by SHA-256, before their commit
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that hung up is no news."""


class HubHandler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0, so that a stopped hub keeps no connection alive."""

    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers["Content-Length"] or 0))
        hub.requests.append(f"POST {self.path}")
        if hub.token is not None and self.headers["Authorization"] != f"Bearer {hub.token}":
            return self.reply(401, {"Content-Length": 0})
        return self.reply_json(self.taken(self.path.split("?")[0], body))

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.uploaded[sha256(content)] = content
        self.reply(200, {"Content-Length": 0})

    def taken(self, path: str, body: bytes) -> dict[str, Any]:
        """What the hub answers to a step of an upload: large files go to another host first."""
        hub = self.server
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.contents[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.contents[value["path"]] = hub.uploaded[value["oid"]]
            return {"success": True, "commitUrl": f"{hub.endpoint}/{hub.repo}/commit/{COMMIT}", "commitOid": COMMIT}
        asked = json.loads(body)
        if path == "/api/repos/create":
            hub.repo = f"{asked['organization']}/{asked['name']}"
            return {"url": f"{hub.endpoint}/{hub.repo}"}
        if path.endswith("/preupload/main"):
            modes = {file["path"]: "lfs" if is_large(file["path"]) else "regular" for file in asked["files"]}
            return {"files": [{"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in modes.items()]}
        if path.endswith("/objects/batch"):
            action = {"upload": {"href": f"{hub.endpoint}/put"}}
            return {"objects": [{**item, "actions": action} for item in asked["objects"]]}
        return {"errors": [], "warnings": []}  # of a model card

    def reply_json(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.reply(200, {"Content-Length": len(body), "Content-Type": "application/json"})
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def answer(self) -> None:
        hub, path = self.server, self.path.removeprefix("/cdn").lstrip("/")
        hub.requests.append(f"{self.command} {self.path}")
        content = self.content_of(path)
        if hub.gated:
            self.reply(403, {"X-Error-Code": "GatedRepo", "Content-Length": 0})
        elif hub.status or content is None:
            self.reply(hub.status or 404, {"Content-Length": 0})
        elif is_large(path) and not self.path.startswith("/cdn"):
            linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": len(content), "Content-Length": 0}
            self.reply(302, {**linked, "Location": f"http://localhost:{hub.server_port}/cdn/{path}"})
        else:
            self.send_content(content)

    def content_of(self, path: str) -> bytes | None:
        """Of a file, or of what the API says of the repository; None of what is not there."""
        hub = self.server
        if path.split("?")[0] in (f"api/models/{hub.repo}", f"api/models/{hub.repo}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in hub.contents]
            return json.dumps({"id": hub.repo, "sha": COMMIT, "siblings": siblings}).encode()
        if path.split("?")[0] in [f"api/models/{hub.repo}/tree/{revision}" for revision in ("main", COMMIT)]:
            entries = []
            for name, content in hub.contents.items():
                entry = {"type": "file", "path": name, "size": len(content), "oid": sha256(content)[:40]}
                if is_large(name):
                    entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
                entries.append(entry)
            return json.dumps(entries).encode()
        for revision in ("main", COMMIT):
            start = f"{hub.repo}/resolve/{revision}/"
            if path.startswith(start):
                return hub.contents.get(path.removeprefix(start))
        return None

    def send_content(self, content: bytes) -> None:
        hub, wanted = self.server, self.headers["Range"]
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        ranged = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        self.reply(
            206 if wanted else 200,
            {**ranged, "ETag": f'"{sha256(content)[:40]}"', "Content-Length": len(content) - start},
        )
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


def running_hub(
    repo: str, contents: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Hub]:
    """A running hub that this process's huggingface_hub talks to, without the user's settings and without pauses."""
    hub = Hub(repo, contents)
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
        "HF_HUB_DISABLE_XET": True,  # whose uploads are a protocol of their own
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
