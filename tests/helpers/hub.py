"""A Hugging Face hub on this machine: the part of its HTTP interface that `huggingface_hub` uses to push and download.

Models are kept in memory, one snapshot of files for each commit. `Hub.broken` maps the beginning of a path to the
status with which it answers; `Hub.asked` lists what was asked.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_" + "Secret" * 6
LFS = "*.safetensors"


def blob(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Model:
    """A model: commits in order, each with all its files; `lies` are sizes that its listing gives instead."""

    private: bool = True
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    lies: dict[str, int] = field(default_factory=dict)
    extra: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, changes: dict[str, bytes]) -> str:
        """Add a commit; its name."""
        files = {**(self.files if self.commits else {}), **changes}
        name = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[name] = files
        return name

    @property
    def head(self) -> str:
        return [*self.commits][-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]


@dataclass
class Hub:
    """The hub's content, and what was asked of it."""

    owner: str = "me"
    models: dict[str, Model] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    endpoint: str = ""

    def add(self, repo: str, files: dict[str, bytes], **known: Any) -> Model:
        """A model with one commit."""
        self.models[repo] = Model(**known)
        self.models[repo].commit(files)
        return self.models[repo]

    def written(self) -> list[str]:
        """What was asked that writes."""
        return [line for line in self.asked if line.startswith(("POST", "PUT")) and "validate-yaml" not in line]


class Refused(Exception):
    """An answer with this status. code: the hub's own name of the error."""

    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        body = self._body()
        try:
            for start, status in self.hub.broken.items():
                if f"{self.command} {path}".startswith(start):
                    raise Refused(status)
            content, headers = self._routed(path, body)
        except Refused as refused:
            content, headers = b'{"error": "\x1b[2Jno"}', {"X-Error-Code": refused.code}
            self._send(refused.status, content, headers)
        else:
            self._send(200, content, headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _routed(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        for pattern, handle in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return handle(self, body, **found.groupdict())
        raise Refused(404)

    def _model(self, repo: str, write: bool = False) -> Model:
        said = self.headers.get("Authorization")
        if said is not None and said != f"Bearer {TOKEN}":
            raise Refused(401)
        model = self.hub.models.get(repo)
        if model is None or (model.private and said is None):
            raise Refused(404 if said else 401, "RepoNotFound")
        if write and not (said and repo.startswith(f"{self.hub.owner}/")):
            raise Refused(403)
        return model

    def _at(self, model: Model, revision: str) -> str:
        commit = model.head if revision in ("", "main") else revision
        if commit not in model.commits:
            raise Refused(404, "RevisionNotFound")
        return commit

    def info(self, body: bytes, repo: str, revision: str | None = None) -> tuple[bytes, dict[str, str]]:
        model = self._model(repo)
        commit = self._at(model, revision or "")
        siblings = []
        for name, content in model.commits[commit].items():
            row: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob(content)}
            if fnmatch.fnmatch(name, LFS):
                row["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
            siblings.append(row | ({"size": model.lies[name]} if name in model.lies else {}))
        found = {"id": repo, "modelId": repo, "sha": commit, "private": model.private}
        return _json({**found, "siblings": siblings + model.extra, "tags": [], "downloads": 0, "likes": 0})

    def create(self, body: bytes) -> tuple[bytes, dict[str, str]]:
        asked = json.loads(body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401)
        if asked["organization"] != self.hub.owner:
            raise Refused(403)
        repo = f"{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.add(repo, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        return _json({"url": f"{self.hub.endpoint}/{repo}"})

    def preupload(self, body: bytes, repo: str, revision: str) -> tuple[bytes, dict[str, str]]:
        model = self._model(repo, write=True)
        return _json(
            {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if fnmatch.fnmatch(each["path"], LFS) else "regular",
                        "shouldIgnore": False,
                        "oid": blob(model.files[each["path"]]) if each["path"] in model.files else None,
                    }
                    for each in json.loads(body)["files"]
                ]
            }
        )

    def batch(self, body: bytes, repo: str) -> tuple[bytes, dict[str, str]]:
        self._model(repo, write=True)
        objects = []
        for each in json.loads(body)["objects"]:
            place = {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}"}}
            objects.append(each if each["oid"] in self.hub.uploads else {**each, "actions": place})
        return _json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> tuple[bytes, dict[str, str]]:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.uploads[oid] = body
        return b"", {}

    def commit(self, body: bytes, repo: str, revision: str) -> tuple[bytes, dict[str, str]]:
        model, changes = self._model(repo, write=True), dict[str, bytes]()
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, model.head):
                raise Refused(412)
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                changes[value["path"]] = self.hub.uploads[value["oid"]]
        commit = model.commit(changes)
        return _json({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}", "commitOid": commit})

    def resolve(self, body: bytes, repo: str, revision: str, file: str) -> tuple[bytes, dict[str, str]]:
        model = self._model(repo)
        commit = self._at(model, revision)
        if file not in model.commits[commit]:
            raise Refused(404, "EntryNotFound")
        content = model.commits[commit][file]
        return content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}

    def yaml(self, body: bytes) -> tuple[bytes, dict[str, str]]:
        return _json({"errors": [], "warnings": []})


def _json(document: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(document).encode(), {"Content-Type": "application/json"}


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = {
    rf"GET /api/models/{REPO}": _Handler.info,
    rf"GET /api/models/{REPO}/revision/(?P<revision>.+)": _Handler.info,
    r"POST /api/repos/create": _Handler.create,
    r"POST /api/validate-yaml": _Handler.yaml,
    rf"POST /api/models/{REPO}/preupload/(?P<revision>.+)": _Handler.preupload,
    rf"POST /{REPO}\.git/info/lfs/objects/batch": _Handler.batch,
    r"PUT /lfs/(?P<oid>\w+)": _Handler.upload,
    rf"POST /api/models/{REPO}/commit/(?P<revision>.+)": _Handler.commit,
    rf"(?:GET|HEAD) /{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)": _Handler.resolve,
}


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch, cache: Any) -> Iterator[Hub]:
    """A hub to which `huggingface_hub` talks, in this process, with a cache of its own and no token but the test's."""
    from huggingface_hub import constants, utils

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})  # it waits 23 s for a failing hub
    monkeypatch.setattr("huggingface_hub.utils._http.time", hurried)
    utils.close_session()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        utils.close_session()
