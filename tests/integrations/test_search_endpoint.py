"""The README's FastAPI endpoint: four workers of uvicorn, that search one file and hear of changes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from tests.recipes import bank, recipe
from tests.support.waits import until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent
WHO = """

import os


@app.get("/-/who")
def who():
    return os.getpid()
"""


class Server:
    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (home / "app.py").write_text(recipe("FastAPI, with a search") + WHO)
        command = [sys.executable, "-m", "uvicorn", "app:app", "--workers", "4", "--port", str(self.port)]
        with (home / "log").open("w") as log:
            self.master = subprocess.Popen(
                [*command, "--no-access-log"],
                cwd=home,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{home}", "PYTHONDONTWRITEBYTECODE": "1"},
            )

    def ask(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def is_up(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("/-/who")[0] == 200
        return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    bank(tmp_path)
    server = Server(tmp_path)
    try:
        until("the server answers", server.is_up)
        yield server
    finally:
        server.master.send_signal(signal.SIGTERM)
        server.master.wait(30)
    log = (tmp_path / "log").read_text()
    assert not re.search("Traceback", log), log


def told(found: mmcache.Neighbours) -> list[dict[str, Any]]:
    return [{"id": record.id, "score": score} for record, score in found.pairs()]


def test_four_workers_search_one_file_and_hear_of_changes(server, tmp_path):
    with mmcache.Snapshot.open(tmp_path / "patterns.mmc") as snapshot:
        for key in ("pattern-0", "pattern-7", "pattern-150"):
            assert server.ask(f"/similar/{key}?k=5") == (200, told(snapshot.nearest(id=key, k=5)))
            near = snapshot.nearest(id=key, k=200, where={"domain": "api"})
            assert server.ask(f"/similar/{key}?k=200&domain=api") == (200, told(near))
            assert len(near)
    assert server.ask("/similar/nope")[0] == 404

    workers: set[int] = set()

    def have_all_answered() -> bool:
        workers.add(server.ask("/-/who")[1])
        return len(workers) == 4

    until("all four have answered", have_all_answered)

    def first() -> Any:
        return server.ask("/similar/pattern-7?k=1")[1][0]

    assert first()["id"] != "pattern-90"
    with contextlib.closing(sqlite3.connect(tmp_path / "patterns.db", isolation_level=None)) as db:
        (vector,) = db.execute("SELECT embedding FROM patterns WHERE id = 'pattern-7'").fetchone()
        assert np.isfinite(np.frombuffer(vector, "<f4")).all()
        db.execute("UPDATE patterns SET embedding = ? WHERE id = 'pattern-90'", (vector,))
    with mmcache.open(tmp_path / "patterns.mmc", executor="external") as cache:
        cache.invalidate(["pattern-90"])
    # Whichever worker answers, none gives what was before.
    assert [first() for _ in range(20)] == [{"id": "pattern-90", "score": 1.0}] * 20
