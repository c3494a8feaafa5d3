"""Running the `mmcache` command as people and scripts do: in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcache

ROOT = Path(__file__).parent.parent.parent
COMMAND = (sys.executable, "-W", "error", "-m", "mmcache")


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The JSON documents on stdout, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MMCACHE_", "COLUMNS"))}
    return {**plain, "PYTHONPATH": str(ROOT), **(extra or {})}


def run(*words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, **options: Any) -> Run:
    """One run without a terminal."""
    command = [*COMMAND, *map(str, words)]
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    done = subprocess.run(
        command, cwd=cwd, env=environment(env), stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options
    )
    return Run(done.returncode, done.stdout or "", done.stderr)


def ok(*words: object, **options: Any) -> Run:
    """One run that must succeed and say nothing on stderr."""
    done = run(*words, **options)
    assert (done.code, done.err) == (0, ""), done
    return done


def on_terminal(
    *words: object, answer: str = "", env: Mapping[str, str] | None = None, code: str | None = None
) -> tuple[int, str]:
    """One run with everything on a terminal of 120 columns: its exit code and all that it showed."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, *map(str, words)] if code is None else [sys.executable, "-c", code, *map(str, words)]
    terminal = environment({"TERM": "xterm-256color", "COLUMNS": "120", **(env or {})})
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=terminal)
    os.close(theirs)
    os.write(ours, answer.encode())
    shown = b""
    try:
        while select.select([ours], [], [], 30)[0]:
            data = os.read(ours, 65_536)
            if not data:
                break
            shown += data
    except OSError:  # Linux's way to say that the other end is closed
        pass
    finally:
        os.close(ours)
    return process.wait(30), shown.decode().replace("\r\n", "\n")


SHELF = mmcache.Schema("items", index=("kind", "tags", "year"), embedding="vector", dim=4)


def make_shelf(path: Path) -> list[dict[str, Any]]:
    """A small file with every kind of value that is not plain in JSON; the records, without their embeddings."""
    records: list[dict[str, Any]] = [
        {"id": "a", "kind": "book", "tags": ["red", "old"], "year": 5, "blob": b"\x00\xff", "note": "naïve 日本"},
        {"id": "b", "kind": "book", "tags": [], "year": "5", "ratio": float("nan"), "map": {1: "one", "1": "text"}},
        {"id": "c", "kind": "null", "tags": ["red"], "year": None, "note": "\x1b[31mred\x9b"},
        {"id": "d", "kind": None, "tags": ["true", "new"], "year": 2024, "yes": True},
        {"id": "with space\nand line", "kind": "card=a:b", "tags": "alone", "year": -7, "yes": False},
    ]
    vectors = [[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0], None, [0, 1, 0, 0], [0, 0, 1, 0]]
    given = [{**record, "vector": vector} for record, vector in zip(records, vectors, strict=True)]
    mmcache.build(path, given, SHELF, metadata={"owner": "tests"})
    return records
