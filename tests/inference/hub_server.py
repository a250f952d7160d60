"""A model hub on 127.0.0.1: as much of its interface as huggingface_hub 2.4 asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(kw_only=True)
class Repository:
    """What the hub holds under one name."""

    commits: list[str]
    files: dict[str, bytes]
    gated: bool = False


@dataclass
class Hub:
    """The server: its repositories, and what was asked of it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  #: "METHOD path"
    cut: str = ""  #: the transfer of this file always breaks off half-way


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("api/models/").split("/")
        repository = self.hub.repositories.get("/".join(parts[:2]))
        if repository is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        elif path.startswith("api/models/"):
            self._describe(repository, parts[2], parts[3], body)
        else:
            self._resolve(repository, parts[3], "/".join(parts[4:]), body)

    def _describe(self, repository: Repository, what: str, revision: str, body: bool) -> None:
        commit = repository.commits[0] if revision == "main" else revision
        if commit not in repository.commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
            return
        files = repository.files.items()
        about: dict[str, Any] = {
            "commits": [
                {"id": one, "title": "", "message": "", "authors": [], "date": DATE}
                for one in repository.commits
            ],
            "revision": {
                "id": "x/y",
                "sha": commit,
                "siblings": [{"rfilename": name, "size": len(held)} for name, held in files],
            },
            "tree": [
                {"type": "file", "path": name, "size": len(held), "oid": _etag(held)}
                for name, held in files
            ],
        }
        self._send(200, json.dumps(about[what]).encode(), {}, body)

    def _resolve(self, repository: Repository, revision: str, name: str, body: bool) -> None:
        if repository.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
            return
        content = repository.files[name]
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": revision}
        self._send(200, content, headers, body, cut=name == self.hub.cut)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], body: bool, *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut


DATE = "2024-01-01T00:00:00.000Z"


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port, until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
