"""4,000 Debian packages in SQLite, through the command line, answer for answer what SQLite says."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mmcache import Snapshot
from tests.support.console import ROOT, ok

DATABASE = ROOT.parent / "shared" / "data" / "debian-packages.db"

pytestmark = pytest.mark.skipif(not DATABASE.exists(), reason="the database of Debian packages is not there")

BUILD = (
    *("--table", "packages", "--key", "name", "--index", "section,priority,architecture,tags"),
    *("--json-columns", "tags,depends", "--embedding", "embedding", "-o", "packages.mmc"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("debian")
    ok("build", DATABASE, *BUILD, cwd=directory)
    return directory


@pytest.fixture(scope="module")
def rows():
    """Every package as SQLite gives it, its JSON decoded, by name."""
    with closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute("SELECT * FROM packages ORDER BY rowid")]
    for row in found:
        row["tags"], row["depends"] = json.loads(row["tags"]), json.loads(row["depends"])
    return {row["name"]: row for row in found}


def sql(query: str, *parameters: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)) as connection:
        return connection.execute(query, parameters).fetchall()


def without_embedding(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "embedding"}


def test_every_record_and_embedding_is_what_sqlite_has(place, rows):
    assert len(rows) == 4000
    with Snapshot.open(place / "packages.mmc") as snapshot:
        assert list(snapshot) == list(rows)
        for name, record in snapshot.items():
            assert record.asdict() == without_embedding(rows[name])
            assert snapshot.get(name) == record
            for embedding in (record.embedding, snapshot.embedding(name)):
                assert embedding is not None
                assert embedding.tobytes() == rows[name]["embedding"]
        assert snapshot.get_many(rows) == list(snapshot.values())
        assert snapshot.embeddings.tobytes() == b"".join(row["embedding"] for row in rows.values())


@pytest.mark.parametrize("field", ["section", "priority", "architecture"])
def test_every_value_of_a_column_finds_what_sql_finds(place, field):
    expected = defaultdict(list)
    for value, name in sql(f"SELECT {field}, name FROM packages ORDER BY rowid"):
        expected[value].append(name)
    with Snapshot.open(place / "packages.mmc") as snapshot:
        assert {value: snapshot.where({field: value}).ids for value in expected} == expected
        assert snapshot.collection("packages").terms(field) == {value: len(ids) for value, ids in expected.items()}


def test_every_tag_finds_what_sql_finds(place):
    expected = defaultdict(list)
    for tag, name in sql("SELECT DISTINCT t.value, name FROM packages, json_each(tags) AS t ORDER BY packages.rowid"):
        expected[tag].append(name)
    assert len(expected) > 400
    with Snapshot.open(place / "packages.mmc") as snapshot:
        assert {tag: snapshot.where(tags=tag).ids for tag in expected} == expected
        assert snapshot.collection("packages").terms("tags") == {tag: len(ids) for tag, ids in expected.items()}


def test_find_without_terms_prints_every_row_as_json(place, rows):
    printed = ok("find", "packages.mmc", cwd=place)
    assert printed.lines == [without_embedding(row) for row in rows.values()]


def test_get_prints_the_package(place, rows):
    assert ok("get", "packages.mmc", "0ad", cwd=place).json == without_embedding(rows["0ad"])


def test_find_with_two_terms_prints_what_sql_finds(place, rows):
    names = sql(
        "SELECT name FROM packages WHERE section = 'games' AND EXISTS "
        "(SELECT 1 FROM json_each(tags) WHERE value = 'role::program') ORDER BY rowid"
    )
    printed = ok("find", "packages.mmc", "tags=role::program", "section=games", cwd=place)
    assert printed.lines == [without_embedding(rows[name]) for (name,) in names]
    assert len(names) > 10


def test_verify_and_rebuild_need_only_the_file(place):
    assert ok("verify", "packages.mmc", cwd=place).out.startswith("packages.mmc: ok")
    assert ok("verify", "packages.mmc", "--deep", "--json", cwd=place).json["records"] == {"packages": 4000}
    done = ok("rebuild", "packages.mmc", "--json", cwd=place).json
    assert (done["changed"], done["generation"]) == (False, 1)


def test_the_built_file_can_be_read_from_anywhere(place, tmp_path):
    assert ok("find", place / "packages.mmc", "section=games", "--count", cwd=tmp_path).json == len(
        sql("SELECT 1 FROM packages WHERE section = 'games'")
    )
    assert not list(Path(tmp_path).iterdir())
