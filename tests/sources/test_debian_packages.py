"""Real input: SQLite answers and SQLiteSource answers, for every row. The database lies beside the repository."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from mmcache.schema import Schema
from mmcache.sources import SQLiteSource

DATABASE = Path(__file__).parents[3] / "shared" / "data" / "debian-packages.db"
FIELDS = (
    "name",
    "version",
    "section",
    "priority",
    "architecture",
    "maintainer",
    "size",
    "installed_size",
    "tags",
    "depends",
)

pytestmark = pytest.mark.skipif(not DATABASE.exists(), reason="../shared/data/debian-packages.db is not here")

PACKAGES = Schema(
    "packages",
    key="name",
    index=("section", "priority", "architecture", "tags"),
    json=("tags", "depends"),
    embedding="embedding",
)


@pytest.fixture(scope="module")
def rows():
    with contextlib.closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)) as db:
        return db.execute("SELECT * FROM packages ORDER BY rowid").fetchall()


@pytest.fixture(scope="module")
def source():
    source = SQLiteSource(DATABASE, PACKAGES)
    yield source
    source.close()


@pytest.fixture(scope="module")
def everything(source):
    with source.read() as reading:
        assert reading.count("packages") == 4000
        return list(reading.records("packages"))


def test_every_row_is_read(rows, everything):
    assert len(everything) == len(rows) == 4000
    for record, (*values, embedding) in zip(everything, rows, strict=True):
        given = dict(zip(record.names, record.values, strict=True))
        expected = dict(zip((*FIELDS, "description"), values, strict=True))
        for column in ("tags", "depends"):
            if expected[column] is not None:
                expected[column] = json.loads(expected[column])
        assert given == expected
        assert record.vector == embedding
        assert embedding is None or len(embedding) == 4 * 384


def test_every_row_is_fetched(source, everything):
    keys = [record.values[0] for record in everything]
    assert source.fetch("packages", keys[::-1]) == everything[::-1]
    assert source.fetch("packages", [key.upper() for key in keys[:100] if key.isalpha()]) == [None] * sum(
        key.isalpha() for key in keys[:100]
    )


@pytest.mark.parametrize("field", PACKAGES.index)
def test_every_value_is_found(source, everything, field):
    position = everything[0].names.index(field)
    values = {term for record in everything for term in as_list(record.values[position])}
    for value in sorted(values, key=str)[:: max(1, len(values) // 40)]:
        expected = [record for record in everything if value in as_list(record.values[position])]
        assert expected
        assert list(source.find("packages", {field: (value,)})) == expected


def as_list(value):
    return value if isinstance(value, list) else [value]


def test_fields_are_combined(source, everything):
    found = list(source.find("packages", {"tags": ("role::program",), "section": ("games", "net")}))
    position = {name: i for i, name in enumerate(everything[0].names)}
    assert found == [
        record
        for record in everything
        if "role::program" in (record.values[position["tags"]] or ())
        and record.values[position["section"]] in ("games", "net")
    ]
    assert found
