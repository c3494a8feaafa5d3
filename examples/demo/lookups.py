"""The same questions to SQLite and to mmcache, in one process, one after the other: are the answers equal, and how long
does each take?

SQLite is used as a careful program would: one connection kept open, its statements prepared once (sqlite3 caches them),
an index on the column, only the columns that are wanted, JSON decoded by `json.loads`.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from statistics import median
from typing import Any

import numpy as np

from mmcache import Cache

__all__ = ["compare"]

BATCH = 100
_FIELDS = ("id", "type", "domain", "framework", "content", "metadata")
_SELECT = f"SELECT {', '.join(_FIELDS)} FROM patterns"

Ask = Callable[[Any], Any]


def compare(database: str, cache: Cache, *, seed: int = 0) -> list[dict[str, Any]]:
    """Per question: medians in seconds, their ratio, and how often it was asked. AssertionError if answers differ."""
    chosen = random.Random(seed)
    ids = list(cache)
    domains = list(dict.fromkeys(record["domain"] for record in cache.values()))
    with closing(sqlite3.connect(database)) as connection:
        found = [
            _measure(
                "one record",
                lambda key: _one(connection, key),
                lambda key: cache[key],
                chosen.choices(ids, k=2000),
                group=10,
            ),
            _measure(
                f"a batch of {BATCH}",
                lambda keys: _many(connection, keys),
                cache.get_many,
                [chosen.sample(ids, BATCH) for _ in range(100)],
            ),
            _measure(
                "one embedding",
                lambda key: _embedding(connection, key),
                cache.embedding,
                chosen.choices(ids, k=2000),
                group=10,
            ),
            _measure(
                "all of one domain",
                lambda domain: _domain(connection, domain),
                lambda domain: list(cache.where(domain=domain)),
                chosen.choices(domains, k=100),
            ),
        ]
    found[-1]["median_records"] = median(len(cache.where(domain=domain)) for domain in domains)
    return found


def _measure(name: str, sqlite: Ask, mmcache: Ask, questions: Sequence[Any], *, group: int = 1) -> dict[str, Any]:
    """Medians of the time for one question; `group` of them are timed together where one is hardly longer than a tick
    of the clock. The two take turns, so that whatever else the machine does meets both."""
    for question in questions:
        if not _equal(sqlite(question), mmcache(question)):
            raise AssertionError(f"{name}: SQLite and mmcache differ for {question!r}")
    seconds: tuple[list[float], list[float]] = ([], [])
    for begin in range(0, len(questions), group):
        asked = questions[begin : begin + group]
        for ask, times in zip((sqlite, mmcache), seconds, strict=True):
            before = time.perf_counter()
            for question in asked:
                ask(question)
            times.append((time.perf_counter() - before) / len(asked))
    slow, fast = map(median, seconds)
    return {
        "name": name,
        "sqlite_seconds": slow,
        "mmcache_seconds": fast,
        "ratio": slow / fast,
        "questions": len(questions),
        "equal": True,
    }


def _equal(one: Any, other: Any) -> bool:
    if hasattr(one, "tobytes"):
        return bool(one.tobytes() == other.tobytes())
    return bool(one == other)


def _record(row: Sequence[Any]) -> dict[str, Any]:
    record = dict(zip(_FIELDS, row, strict=True))
    record["metadata"] = json.loads(record["metadata"])
    return record


def _one(connection: sqlite3.Connection, key: str) -> dict[str, Any]:
    return _record(connection.execute(f"{_SELECT} WHERE id = ?", (key,)).fetchone())


def _many(connection: sqlite3.Connection, keys: Sequence[str]) -> list[dict[str, Any]]:
    marks = ", ".join("?" * len(keys))
    by_id = {row[0]: _record(row) for row in connection.execute(f"{_SELECT} WHERE id IN ({marks})", keys)}
    return [by_id[key] for key in keys]


def _embedding(connection: sqlite3.Connection, key: str) -> Any:
    return np.frombuffer(connection.execute("SELECT embedding FROM patterns WHERE id = ?", (key,)).fetchone()[0], "<f4")


def _domain(connection: sqlite3.Connection, domain: str) -> list[dict[str, Any]]:
    return [_record(row) for row in connection.execute(f"{_SELECT} WHERE domain = ? ORDER BY rowid", (domain,))]
