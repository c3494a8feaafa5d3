"""Running the `mmcache` command as people and scripts do: in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcache
from mmcache.cli import main

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


def unmeasured() -> dict[str, str]:
    """Without coverage, which imports much, and can lock itself out when Ctrl-C meets it."""
    return {name: value for name, value in environment().items() if not name.startswith("COVERAGE")}


def run(*words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, **options: Any) -> Run:
    """One run without a terminal."""
    command = [*COMMAND, *map(str, words)]
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    done = subprocess.run(
        command, cwd=cwd, env=environment(env), stderr=subprocess.PIPE, text=True, timeout=400, check=False, **options
    )
    return Run(done.returncode, done.stdout or "", done.stderr)


def run_here(capsys: Any, *words: object) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr, in this process."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    found = capsys.readouterr()
    return code, found.out, found.err


def document(capsys: Any, *words: object) -> Any:
    """The one JSON document that it prints, in this process."""
    code, out, _ = run_here(capsys, *words, "--json")
    assert code == 0
    return json.loads(out)


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


SHOP = mmcache.Schema("items", key="sku", index=("kind",))


def make_shop(database: Path, n: int = 10) -> mmcache.SQLiteSource:
    """A SQLite database of n items, s0, s1, ..., with their number as price."""
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE items (sku TEXT PRIMARY KEY, kind TEXT, price INT)")
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", [(f"s{i}", "ab"[i % 2], i) for i in range(n)])
    connection.close()
    return mmcache.SQLiteSource(database, SHOP)


def write(database: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(statement, values)
    connection.close()


_WORKER = """
import json, sys, mmcache
path, database, label = sys.argv[1:]
source = mmcache.SQLiteSource(database, mmcache.Schema("items", key="sku", index=("kind",)))
with mmcache.open(path, source, build=False, check_interval=0.05, label=label) as cache:
    print("ready", flush=True)
    for line in sys.stdin:
        found = cache.get(line.rstrip())
        cache.refresh()  # a look tells what was counted
        print(json.dumps(None if found is None else found.asdict()), flush=True)
"""


class Worker:
    """A process that has a cache open and gives a record when asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self, key: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{key}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def worker(path: Path, database: Path, label: str = "") -> Iterator[Worker]:
    command = [sys.executable, "-W", "error", "-c", _WORKER, str(path), str(database), label]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Worker(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def invalidate_from_outside(path: Path, *words: str) -> None:
    """By a command, as an operator does, and in this process, so that it takes no time."""
    assert main(["--quiet", "invalidate", str(path), *words]) == 0


def make_empty(database: Path) -> None:
    """A database without a table: a file without a byte is no source."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA user_version = 1")


@contextmanager
def endless_build(database: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that builds a file of one collection, items, until it is killed at the end. database: any; made, of no
    table, where it is missing."""
    if not database.exists():
        make_empty(database)
    endless = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT 'k' || i AS id FROM c"
    command = [*COMMAND, "build", str(database), "--query", endless, "--collection", "items", "-o", str(path)]
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env=environment()) as process:
        try:
            yield process
        finally:
            process.kill()
