"""A small hub on the loopback interface: what huggingface_hub asks for, and two face models beside it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Request(NamedTuple):
    """A request that the hub has answered; ``start`` is where the range asked for begins."""

    method: str
    path: str
    start: int


@dataclass
class Hub:
    """A server of one repository, ``org/base``, and of plain files.

    Attributes:
        repository: content by path.
        files: content by name, served as ``/files/<name>``.
        cut: bytes by path after which the connection ends; later requests for the file are refused.
        stall: bytes by path after which nothing more arrives.
        gated: refuses files, as the hub does for repositories whose terms have not been accepted.
    """

    repository: dict[str, bytes]
    files: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    stall: dict[str, int] = field(default_factory=dict)
    gated: bool = False
    requests: list[Request] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def downloads(self, name: str) -> list[int]:
        """Where each request for the content of a file began."""
        return [one.start for one in self.requests if one.method == "GET" and one.path.endswith(f"/{name}")]

    def info(self) -> dict[str, Any]:
        """``/api/models/…`` with blobs: large files are kept in LFS and known by sha256, others by git's id."""
        siblings = []
        for path, content in self.repository.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_id(content)}
            if path.endswith(".safetensors"):
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": "org/base", "sha": COMMIT, "tags": ["license:apache-2.0"], "siblings": siblings}

    def tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
            for path, content in self.repository.items()
        ]

    def etag(self, path: str) -> str:
        content = self.repository[path]
        return sha256(content) if path.endswith(".safetensors") else git_id(content)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serves a hub for as long as the block lasts."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    start: int

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.start = int(found[1]) if found else 0
        self.hub.requests.append(Request(self.command, path, self.start))
        if re.fullmatch(rf"/api/models/org/base(/revision/(main|{COMMIT}))?", path):
            self._answer(json.dumps(self.hub.info()).encode())
        elif path == f"/api/models/org/base/tree/{COMMIT}":
            self._answer(json.dumps(self.hub.tree()).encode())
        elif path.startswith("/api/models/org/base/revision/"):
            self._refuse(404, "RevisionNotFound")
        elif (
            name := path.removeprefix(f"/org/base/resolve/{COMMIT}/").removeprefix("/org/base/resolve/main/")
        ) != path:
            self._file(name, self.hub.repository.get(name), self.hub.etag)
        elif (name := path.removeprefix("/files/")) != path:
            self._file(name, self.hub.files.get(name), lambda name: sha256(self.hub.files[name]))
        else:
            self._refuse(404, "RepoNotFound")

    def _file(self, name: str, content: bytes | None, etag: Any) -> None:
        if self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif content is None:
            self._refuse(404, "EntryNotFound")
        elif self.hub.cut.get(name) == 0:
            self._refuse(503, "")
        else:
            self._answer(content, {"ETag": f'"{etag(name)}"', "X-Repo-Commit": COMMIT}, name)

    def _answer(self, content: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
        start = self.start
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = None
        if self.hub.cut.get(name):
            stop, self.hub.cut[name] = self.hub.cut[name], 0
        elif name in self.hub.stall:
            stop = self.hub.stall[name]
        self.wfile.write(content[start:stop])
        if stop is not None and name in self.hub.stall:
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.closing.wait(60)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
