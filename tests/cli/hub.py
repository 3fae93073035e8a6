"""A stand-in for the Hugging Face Hub: the part of its HTTP interface that an upload uses, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_standin0123456789"


@dataclass
class Repository:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def head(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


@dataclass
class Hub:
    """What it holds and what it was asked for."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refusal: tuple[str, int] | None = None
    """Requests whose "METHOD /path" matches this pattern get this status."""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub that answers as long as the block lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to the terminal."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        status, answer = self._route(request, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _route(self, request: str, body: bytes) -> tuple[int, Any]:
        if self.hub.refusal is not None and re.match(self.hub.refusal[0], request):
            return self.hub.refusal[1], {"error": "refused by the stand-in"}
        if not request.startswith("PUT /lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        routes = {
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": lambda body: (200, {"errors": [], "warnings": []}),
            r"POST /api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>.+)": self._branch,
            r"GET /api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<branch>.+))?": self._info,
            r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<branch>.+)": self._preupload,
            r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"PUT /lfs/(?P<oid>\w+)": self._store,
            r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<branch>.+)": self._commit,
        }
        for pattern, route in routes.items():
            if match := re.fullmatch(pattern, request):
                if match.groupdict().get("repo", "") not in ["", *self.hub.repositories]:
                    return 404, {"error": "Repository not found"}
                answer: tuple[int, Any] = route(body, **match.groupdict())  # type: ignore[operator]
                return answer
        return 404, {"error": f"the stand-in knows no {request}"}

    def _create(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{repo}"}
        if repo in self.hub.repositories:
            return 409, {**answer, "error": "You already created this model repo"}
        self.hub.repositories[repo] = Repository(private=asked.get("visibility") == "private")
        return 200, answer

    def _branch(self, body: bytes, repo: str, branch: str) -> tuple[int, Any]:
        branches = self.hub.repositories[repo].branches
        if branch in branches:
            return 409, {"error": "Reference already exists"}
        branches[branch] = dict(branches["main"])
        return 200, {}

    def _info(self, body: bytes, repo: str, branch: str | None) -> tuple[int, Any]:
        found = self.hub.repositories[repo]
        return 200, {"id": repo, "private": found.private, "sha": found.head, "siblings": [], "tags": []}

    def _preupload(self, body: bytes, repo: str, branch: str) -> tuple[int, Any]:
        held = self.hub.repositories[repo].branches[branch]
        files = []
        for file in json.loads(body)["files"]:
            path, large = file["path"], file["path"].endswith(".safetensors")
            known = {"oid": _oid(held[path], large=large)} if path in held else {}
            files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known})
        return 200, {"files": files}

    def _batch(self, body: bytes, repo: str) -> tuple[int, Any]:
        objects = [
            wanted
            if wanted["oid"] in self.hub.objects
            else {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def _store(self, body: bytes, oid: str) -> tuple[int, Any]:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        return 200, {}

    def _commit(self, body: bytes, repo: str, branch: str) -> tuple[int, Any]:
        found, header = self.hub.repositories[repo], {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                found.branches[branch][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found.branches[branch][value["path"]] = self.hub.objects[value["oid"]]
        found.commits.append(header)
        return 200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{found.head}", "commitOid": found.head}


def _oid(content: bytes, *, large: bool) -> str:
    """As git names a file, and as its large-file storage does."""
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
