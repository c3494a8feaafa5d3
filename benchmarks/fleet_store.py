"""A store that counts what it is asked: moto's server with the interface of S3, behind a proxy that looks at requests.

A proxy, because the requests of the library are what a provider bills, retries and pages of lists among them.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .fleet_model import Requests

__all__ = ["Counted", "environment", "store"]

_PATIENCE = 60.0


class Counted:
    """What went through since `reset`. sent: bytes of bodies to the store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.methods: dict[str, int] = {}
        self.sent = 0
        self._received: dict[str, int] = {}

    def note(self, method: str, path: str, sent: int, received: int) -> None:
        is_list = method == "GET" and "list-type=2" in path
        with self._lock:
            name = "LIST" if is_list else method
            self.methods[name] = self.methods.get(name, 0) + 1
            self.sent += sent
            self._received[name] = self._received.get(name, 0) + received

    @property
    def requests(self) -> Requests:
        return self.of(*self.methods)

    def of(self, *methods: str) -> Requests:
        """Those by some methods; LIST is a GET of its own kind."""
        lists = sum(self.methods.get(name, 0) for name in methods if name in ("LIST", "PUT", "POST"))
        gets = sum(self.methods.get(name, 0) for name in methods if name in ("GET", "HEAD"))
        return Requests(lists, gets, sum(self._received.get(name, 0) for name in methods))


@contextlib.contextmanager
def store() -> Iterator[tuple[str, Counted]]:
    """The endpoint of a store with a bucket `bucket`, and what it was asked."""
    port = _free_port()
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", code, "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(server, port)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
        with urllib.request.urlopen(request, timeout=_PATIENCE), _proxy(port) as found:
            yield found
    finally:
        server.terminate()
        server.wait(_PATIENCE)


def environment(endpoint: str) -> dict[str, str]:
    """By what the library finds the store."""
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": "us-east-1"}
    return {"AWS_ENDPOINT": endpoint, "AWS_ALLOW_HTTP": "true", **keys}


@contextlib.contextmanager
def _proxy(port: int) -> Iterator[tuple[str, Counted]]:
    counted = Counted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            found = connection.getresponse()
            answer = found.read()
            connection.close()
            counted.note(self.command, self.path, len(body), len(answer))
            self.send_response(found.status)
            dropped = ("connection", "transfer-encoding", "server", "date")
            headers = {name.lower(): value for name, value in found.getheaders() if name.lower() not in dropped}
            for name, value in ({"content-length": str(len(answer))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", counted
    finally:
        server.shutdown()
        server.server_close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _await(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
