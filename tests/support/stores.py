"""Object stores for tests: a directory served over HTTP with faults, servers with the interface of S3, and a gate
before them that changes what goes through.

moto's server and s3rver are other people's programs, started as processes of their own. Where they cannot be had, the
tests that need them are skipped, and counted.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

__all__ = ["Gate", "Served", "environment", "moto", "s3rver"]

_PATIENCE = 60.0

Change = Callable[[str, bytes], bytes | None]
"""change(path, body): other bytes for an answer; None cuts the connection in the middle of them."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class Served:
    """A directory over HTTP, as nginx serves one: GET, HEAD, and ranges. A context manager.

    change: of every answer. refuse: a status in the place of an answer, for a path. requests: what was asked for. sent:
    bytes of bodies.
    """

    def __init__(self, directory: Path, address: str = "127.0.0.1") -> None:
        self.directory = directory
        self._address = address
        self.change: Change = lambda _, body: body
        self.refuse: Callable[[str], int | None] = lambda _: None
        self.requests: list[tuple[str, str]] = []
        self.sent = 0
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                served.answer(self)

            def do_HEAD(self) -> None:
                served.answer(self)

            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

        self._server = _Quiet((address, 0), Handler)

    @property
    def url(self) -> str:
        return f"http://{self._address}:{self._server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path.lstrip("/")
        self.requests.append((request.command, path))
        status = self.refuse(path)
        file = self.directory / path
        if status is None and not file.is_file():
            status = 404
        if status is not None:
            request.send_response(status)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body = file.read_bytes()
        whole, ranges = len(body), request.headers.get("Range")
        begin, end = 0, whole
        if ranges is not None:
            first, _, last = ranges.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(whole, int(last) + 1) if last else whole
        request.send_response(206 if ranges is not None else 200)
        request.send_header("Content-Length", str(end - begin))
        request.send_header("Last-Modified", "Mon, 05 Jan 2026 10:00:00 GMT")
        if ranges is not None:
            request.send_header("Content-Range", f"bytes {begin}-{end - 1}/{whole}")
        request.end_headers()
        if request.command == "GET":
            changed = self.change(path, body[begin:end])
            data = body[begin : begin + (end - begin) // 2] if changed is None else changed
            self.sent += len(data)
            with contextlib.suppress(OSError):
                request.wfile.write(data)
            if len(data) != end - begin:
                request.close_connection = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Gate:
    """Before a server with the interface of S3. A context manager.

    drop: headers that do not get through. refuse: a status and a body in the place of an answer, for method and path.
    """

    def __init__(self, backend: str) -> None:
        self.drop: frozenset[str] = frozenset()
        self.refuse: Callable[[str, str], tuple[int, bytes] | None] = lambda *_: None
        self._host = urlsplit(backend).netloc
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                gate.pass_on(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

        self._server = _Quiet(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def pass_on(self, request: Any) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        refused = self.refuse(request.command, request.path)
        if refused is not None:
            status, answer, headers = refused[0], refused[1], []
        else:
            connection = http.client.HTTPConnection(self._host, timeout=_PATIENCE)
            kept = {k: v for k, v in request.headers.items() if k.lower() not in self.drop}
            connection.request(request.command, request.path, body, kept)
            found = connection.getresponse()
            status, headers = found.status, found.getheaders()
            answer = found.read()
            connection.close()
        request.send_response(status)
        length = next((v for k, v in headers if k.lower() == "content-length"), str(len(answer)))
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                request.send_header(name, value)
        request.send_header("Content-Length", length if request.command == "HEAD" else str(len(answer)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(answer)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def environment(endpoint: str) -> dict[str, str]:
    """What the library of object stores finds a server by."""
    return {
        "AWS_ENDPOINT": endpoint,
        "AWS_ACCESS_KEY_ID": "S3RVER",
        "AWS_SECRET_ACCESS_KEY": "S3RVER",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


def _await(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_MOTO = """
import sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

answer, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

def answer_in_turn(environ, begin):
    if environ["REQUEST_METHOD"] == "GET":
        return answer(environ, begin)
    with turn:
        return [b"".join(answer(environ, begin))]

run_simple(sys.argv[1], int(sys.argv[2]), answer_in_turn, threaded=True)
"""
"""moto looks whether an object is there, and makes it, in two steps, between which another thread may do the same: then
two creates succeed, as in no store with that condition. So one request at a time writes."""


@contextlib.contextmanager
def moto(address: str = "127.0.0.1") -> Iterator[str]:
    """The endpoint of moto's server, with a bucket `bucket`; all of it in memory."""
    pytest.importorskip("moto", reason="moto is not installed: pip install --group integration")
    port = free_port()
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _MOTO, address, str(port)],
        stdout=nothing,
        stderr=nothing,
    )
    try:
        endpoint = f"http://{address}:{port}"
        _await(process, f"{endpoint}/moto-api/")
        with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"), timeout=30):
            pass
        yield endpoint
    finally:
        _end(process)


@contextlib.contextmanager
def s3rver(directory: Path) -> Iterator[str]:
    """The endpoint of npm's s3rver, which ignores If-None-Match; with a bucket `bucket`."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm is not installed")
    installed = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--silent", "s3rver@3.7.1"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if installed.returncode:
        pytest.skip(f"s3rver cannot be installed: {installed.stderr[-200:]}")
    port = free_port()
    command = [node, "node_modules/s3rver/bin/s3rver.js", "-d", str(directory / "data"), "-p", str(port)]
    process = subprocess.Popen(
        [*command, "-a", "127.0.0.1", "--configure-bucket", "bucket", "--silent"],
        cwd=directory,
        env={**os.environ, "NODE_NO_WARNINGS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(process, f"http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}"
    finally:
        _end(process)
