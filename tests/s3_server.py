"""A real S3 server on loopback, moto's, which can be lost in the middle of a write."""

from __future__ import annotations

import itertools
import socket
import urllib.request
from collections.abc import Callable, Iterable
from threading import Thread
from typing import Any, Self

import pytest


class S3Server:
    """A server that lives in this process and that any process may use.

    with S3Server() as server:
        uri = server.uri(server.new_bucket(), "runs/a")
        server.lose_after(3)      # answers three more writes, then hangs up on everybody
        server.find()             # and is there again, with what it had
    """

    _numbers = itertools.count()  # of all servers of this process: moto keeps their buckets in one place

    def __init__(self) -> None:
        moto = pytest.importorskip("moto.moto_server.werkzeug_app", reason="moto is not installed: make s3")
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log_request(self, *_: object) -> None: ...

        self._application = moto.DomainDispatcherApplication(moto.create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._writes_left: int | None = None
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def uri(self, bucket: str, path: str) -> str:
        return f"s3://{bucket}/{path}?scheme=http&endpoint_override={self.address}"

    def new_bucket(self) -> str:
        from pyarrow import fs

        name = f"bucket-{next(self._numbers)}"
        fs.S3FileSystem(endpoint_override=self.address, scheme="http", allow_bucket_creation=True).create_dir(name)
        return name

    def take_only_known_keys(self, is_on: bool) -> None:
        """Refuse access keys that the server does not know: all, since it has no user."""
        actions = b"0" if is_on else b"inf"
        request = urllib.request.Request(f"http://{self.address}/moto-api/reset-auth", actions, {"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=10).close()

    def lose_after(self, writes: int) -> None:
        self._writes_left = writes

    def find(self) -> None:
        self._writes_left = None

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._writes_left is not None:
            self._writes_left -= environ["REQUEST_METHOD"] in ("PUT", "POST")
            if self._writes_left < 0:
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                return []
        return self._application(environ, start_response)  # type: ignore[no-any-return]
