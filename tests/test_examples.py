"""The examples in docstrings run as they stand, over one small cache."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import IterableSource, JSONLinesSource, Schema, SQLiteSource
from tests.support import inside

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
SHOWN = {
    *("Cache", "CachedCollection", "Collection", "IterableSource", "JSONLinesSource", "Neighbours", "Record"),
    "SQLiteSource",
    *("Schema", "Selection", "Snapshot", "above", "at_least", "at_most", "below", "between", "build", "excluding"),
    *("diff", "follow", "open", "publish", "startswith"),
}
"""Public names of which an example shows the use."""


@dataclass
class Item:
    id: str
    kind: str
    size: int


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What examples may use: a database, a cache and a snapshot of three items, and the names of the README."""
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("items.db") as connection:
        connection.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, size INTEGER)")
        rows = [("a", "tool", 1), ("b", "tool", 2), ("c", "prompt", 3)]
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
    connection.close()
    records = [dict(zip(("id", "kind", "size"), row, strict=True)) for row in rows]
    Path("items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    schema = Schema("items", index=("kind", "size"), embedding="vector")
    vectors = np.array([[1, 0], [0, 1], [1, 1]])
    source = IterableSource(records, schema, embeddings=vectors)
    with mmcache.open("cache.mmc", source, executor="thread") as cache, mmcache.Snapshot.open("cache.mmc") as snapshot:
        yield {
            **{name: getattr(mmcache, name) for name in mmcache.__all__ if name != "open"},
            "mmcache": mmcache,
            "cache": cache,
            "snapshot": snapshot,
            "records": records,
            "Item": Item,
            "np": np,
            "math": math,
            "json": json,
            "Schema": Schema,
            "SQLiteSource": SQLiteSource,
            "JSONLinesSource": JSONLinesSource,
        }


def examples() -> list[doctest.DocTest]:
    """Of every object of the package that has some; those of one docstring share their names."""
    finder = doctest.DocTestFinder(recurse=True, exclude_empty=True)
    homes = sorted({importlib.import_module(home, "mmcache").__name__ for home in inside.HOMES.values()})
    modules = [*homes, "mmcache.storage.readable", "mmcache.storage.record", "mmcache.storage.collection"]
    modules += ["mmcache.storage.selection"]
    found = {}
    for name in modules:
        for test in finder.find(importlib.import_module(name)):
            if test.examples:
                found[test.name] = test
    return list(found.values())


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_the_example_of_a_docstring_gives_what_it_says(example, names):
    example.globs = dict(names)
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False).run(example, out=told.append)
    assert not result.failed, "".join(told)


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_a_public_name_that_programs_call_has_an_example(name):
    value = getattr(mmcache, name)
    members = vars(value).values() if inspect.isclass(value) else ()
    texts = [inspect.getdoc(value) or "", *(inspect.getdoc(member) or "" for member in members)]
    assert any(">>>" in text for text in texts), name
