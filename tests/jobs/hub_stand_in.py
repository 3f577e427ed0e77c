"""A small hub: the endpoints that a push uses, over real HTTP, with repositories in memory.

    with StandIn() as hub:                    # hub.endpoint is what HF_ENDPOINT must be
        hub.repositories["me/model"].files    # {"README.md": b"…"}

Large files come by the LFS protocol, or by that of Xet, whose parts are counted and not put together."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_mine"
OWNER = "me"
CUT_AT_BYTES = 1000


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes | str] = field(default_factory=dict)
    """The content, or of a large file the SHA-256."""
    commits: list[str] = field(default_factory=list)
    """The messages."""

    @property
    def sha(self) -> str:
        return f"{len(self.commits):040d}"


class StandIn:
    """The server, in a thread of this process. `dies_at`: the path at which it ends without an answer."""

    def __init__(self, *, dies_at: str | None = None) -> None:
        self.dies_at = dies_at
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.xet_bytes = 0
        self.requests: list[str] = []
        handler = type("BoundHandler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.die()
        self._thread.join()

    def die(self) -> None:
        """Accept no connection any more."""
        self._server.shutdown()
        self._server.server_close()

    # ---- what is answered: (status, JSON) ----

    def create(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = f"{body['organization']}/{body['name']}"
        if body["organization"] != OWNER:
            return 403, {"error": f'You don\'t have the rights to create a model under the namespace "{body["organization"]}"'}
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.endpoint}/{name}"}
        self.repositories[name] = Repository(private=body.get("visibility") == "private")
        return 200, {"url": f"{self.endpoint}/{name}", "name": name}

    def info(self, name: str) -> tuple[int, Any]:
        if (repository := self.repositories.get(name)) is None:
            return 404, {"error": "Repository not found"}
        siblings = [{"rfilename": file} for file in repository.files]
        return 200, {"id": name, "sha": repository.sha, "private": repository.private, "siblings": siblings, "tags": []}

    def preupload(self, name: str, body: dict[str, Any]) -> tuple[int, Any]:
        files = self.repositories[name].files
        answers = []
        for file in body["files"]:
            path = file["path"]
            old = files.get(path)
            oid = old if old is None or isinstance(old, str) else hashlib.sha1(b"blob %d\0" % len(old) + old).hexdigest()
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": answers}

    def lfs_batch(self, body: dict[str, Any]) -> tuple[int, Any]:
        new = [one | {"actions": {"upload": {"href": f"{self.endpoint}/lfs/{one['oid']}"}}} for one in body["objects"]]
        objects = [one for one in new if one["oid"] not in self.blobs]
        return 200, {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str, content: bytes) -> tuple[int, Any]:
        if hashlib.sha256(content).hexdigest() != oid:
            return 422, {"error": "another content"}
        self.blobs[oid] = content
        return 200, {}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        repository = self.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/{repository.sha}", "commitOid": repository.sha}


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.dies_at is not None and self.hub.dies_at in path:
            self.rfile.read1(CUT_AT_BYTES)
            self.connection.close()
            self.close_connection = True
            threading.Thread(target=self.hub.die).start()
            return
        content = self._body()
        status, answer = self._answer(path, content)
        body = json.dumps(answer).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("X-Error-Message", answer["error"])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, path: str, content: bytes) -> tuple[int, Any]:
        hub = self.hub
        if path.startswith("/lfs/"):
            return hub.lfs_put(path.removeprefix("/lfs/"), content)  # as to a bucket: what the address holds is the permission
        if path.startswith(("/v1/", "/v2/")):
            return self._xet(path, content)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/repos/create":
            return hub.create(json.loads(content))
        if path == "/api/validate-yaml":
            yaml.safe_load(json.loads(content)["content"].split("---\n")[1])
            return 200, {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return hub.lfs_batch(json.loads(content))
        name, _, what = path.removeprefix("/api/models/").partition("/")[2].partition("/")
        name = f"{path.removeprefix('/api/models/').partition('/')[0]}/{name}"
        if self.command == "GET" and what in ("", "revision/main"):
            return hub.info(name)
        if not name.startswith(f"{OWNER}/"):
            return 403, {"error": "Authorization error."}
        if what == "preupload/main":
            return hub.preupload(name, json.loads(content))
        if what == "commit/main":
            return hub.commit(name, [json.loads(line) for line in content.splitlines()])
        if what == "xet-write-token/main":
            return 200, {"accessToken": "xet", "exp": int(time.time()) + 3600, "casUrl": hub.endpoint}
        return 404, {"error": f"this hub has no {path}"}

    def _xet(self, path: str, content: bytes) -> tuple[int, Any]:
        if path.startswith("/v1/xorbs/"):
            self.hub.xet_bytes += len(content)
            return 200, {"was_inserted": True}
        return (200, {"result": 1}) if path == "/v1/shards" else (404, {"error": "not known"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
