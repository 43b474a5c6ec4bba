"""An object store on the S3 protocol, on loopback: moto's server at the address that AWS_ENDPOINT_URL names.

with s3_server() as store:
    store.files.pipe_file("bucket/key", b"...")
    with store.holding("model-8"):  # nobody gets an object of such a name meanwhile
        ...
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass
class S3Server:
    """A running server.

    Attributes:
        files: A file system of its own: it shares no cache with the code under test.
    """

    files: Any
    _application: Any
    _held: str | None = None
    _let_go: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def holding(self, part: str) -> Iterator[None]:
        """Answer no request for an object's bytes whose name holds this part, until the end."""
        self._held = part
        self._let_go.clear()
        try:
            yield
        finally:
            self._held = None
            self._let_go.set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve a request, as WSGI has it."""
        held = self._held
        if held is not None and environ["REQUEST_METHOD"] == "GET" and held in environ["PATH_INFO"]:
            self._let_go.wait(120)
        answer: Iterable[bytes] = self._application(environ, start_response)
        return answer


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server, and name it and its credentials in the environment."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    http: Any = moto._server  # moto gives no other way to stand before its application
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "invented")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "invented")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # one of another test speaks to another server
        server = S3Server(fsspec.filesystem("s3", skip_instance_cache=True), http.app)
        http.app = server
        yield server
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    moto.stop()
