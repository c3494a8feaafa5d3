"""The same rows give the same bytes from every source: all sections but `meta`, which names the source."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import BaseSource, CallableSource, IterableSource, JSONLinesSource, Schema, Sources, SQLiteSource
from tests.format.plain_reader import File

pytestmark = pytest.mark.usefixtures("no_leaks")

SCHEMA = Schema("items", index=("kind", "n", "tags"), embedding="v", dim=4, json=("tags",))
N = 5000


def rows() -> Iterator[dict[str, Any]]:
    for i in range(N):
        tags = [f"t{i % 7}", f"t{i % 3}"] if i % 5 else None
        vector = None if i % 11 == 0 else [float(i), 0.5, -1.0, 3.25]
        yield {
            "id": f"k{i}",
            "kind": None if i % 13 == 0 else "ab"[i % 2],
            "n": i % 100,
            "share": i / 8,
            "tags": tags,
        } | {"v": vector}


class Own(BaseSource):
    @contextmanager
    def read(self) -> Iterator[mmcache.Reading]:
        yield self.reading(rows())


def load() -> Iterator[dict[str, Any]]:
    return rows()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("filled")
    (directory / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    with closing(sqlite3.connect(directory / "items.db")) as db, db:
        db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, n INTEGER, share REAL, tags TEXT, v BLOB)")
        db.executemany(
            "INSERT INTO items VALUES (:id, :kind, :n, :share, :tags, :v)",
            (
                row | {"tags": row["tags"] and json.dumps(row["tags"]), "v": row["v"] and struct.pack("<4f", *row["v"])}
                for row in rows()
            ),
        )
    return directory


def sections_of(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    return {
        section.name: data[section.offset : section.offset + section.length]
        for section in File(data).sections.values()
        if section.name not in ("meta", "blocks", "chunks")  # these hold checksums of meta
    }


SOURCES: dict[str, Callable[[Path], mmcache.Source]] = {
    "iterable": lambda _: IterableSource(list(rows()), SCHEMA),
    "callable": lambda _: CallableSource(load, SCHEMA),
    "by collection": lambda _: CallableSource(lambda: {"items": load()}, SCHEMA),
    "own": lambda _: Own(SCHEMA),
    "one of several": lambda _: Sources(CallableSource(load, SCHEMA)),
    "JSON lines": lambda directory: JSONLinesSource(directory / "items.jsonl", SCHEMA),
    "SQLite": lambda directory: SQLiteSource(directory / "items.db", SCHEMA),
    "query": lambda directory: SQLiteSource(
        directory / "items.db", Schema(**{**SCHEMA.to_dict(), "key": "id", "query": "SELECT * FROM items"})
    ),
}


def test_the_same_rows_give_the_same_bytes_from_every_source(tmp_path, filled):
    expected: dict[str, bytes] = {}
    for name, make in SOURCES.items():
        source = make(filled)
        mmcache.build(tmp_path / "c.mmc", source)
        found = sections_of(tmp_path / "c.mmc")
        expected = expected or found
        assert [part for part in found if found[part] != expected.get(part)] == [], name
        assert list(found) == list(expected), name


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_finds_and_misses_the_same(tmp_path, filled, name):
    source = SOURCES[name](filled)
    keys = ["k7", "no", "k1300", "K7", "7"]
    with (
        mmcache.open(tmp_path / "c.mmc", source, build=False) as without,
        mmcache.open(tmp_path / "d.mmc", source, executor="external") as cache,
    ):
        for reader in (without, cache):
            assert [record and record["n"] for record in reader.get_many(keys)] == [7, None, 0, None, None]
            assert reader.where(kind=None, n=[0, 13]).ids[:3] == ["k0", "k13", "k1300"]
            assert reader.where(tags=["t1"], n=mmcache.between(1, 3)).ids[:2] == ["k1", "k103"]
        cache.invalidate(["k7", "no"])
        assert cache["k7"]["n"] == 7
        assert "no" not in cache
