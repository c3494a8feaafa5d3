"""JSON columns are decoded many rows at a time; what is not JSON by itself must not pass because of its neighbours."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mmcache import BuildError, Schema, SQLiteSource

SCHEMA = Schema("items", json=("extra",))

BROKEN = [
    ["[1", "2]"],
    ["[1", "2],3"],
    ['{"a":1', '"b":2}'],
    ["1,2"],
    ["1,2", "3"],
    ['"a', 'b"'],
    ['"a","b"'],
    [""],
    ["", ""],
    ["1]", "[2"],
    ["]", "["],
    ["1 2"],
    ["nul"],
    ["\\"],
]


def read(path: Path, texts: list[Any]) -> list[Any]:
    db = sqlite3.connect(path)
    db.execute("PRAGMA synchronous = OFF")
    db.execute("DROP TABLE IF EXISTS items")
    db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, extra TEXT)")
    db.executemany("INSERT INTO items VALUES (?, ?)", [(f"k{i:04d}", text) for i, text in enumerate(texts)])
    db.commit()
    db.close()
    source = SQLiteSource(path, SCHEMA)
    with source.read() as reading:
        found = [record.values[1] for record in reading.records("items")]
    source.close()
    return found


@pytest.mark.parametrize("broken", BROKEN, ids=repr)
@pytest.mark.parametrize("before", [0, 3, 20, 511])
def test_text_that_is_not_json_is_refused_by_name_wherever_it_stands(
    tmp_path: Path, broken: list[str], before: int
) -> None:
    texts = ["{}"] * before + broken + ['"x"'] * 20
    with pytest.raises(BuildError, match=rf"'k{before:04d}'.*'extra' is not JSON text"):
        read(tmp_path / "items.db", texts)


def test_nulls_blanks_and_values_of_every_kind_come_back_in_their_rows(tmp_path: Path) -> None:
    texts = [None, "null", " 1 ", "[]", '["a,b"]', '{"x": [1, {"y": null}]}', '"]"', "true", "-0.5", '"\\u00e4"'] * 150
    expected = [None if text is None else json.loads(text) for text in texts]
    assert read(tmp_path / "items.db", texts) == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
pieces = st.text(alphabet='[]{},:"0 \\nul', max_size=5)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "items.db"


@given(texts=st.lists(values.map(json.dumps) | pieces | st.none(), min_size=8, max_size=24))
def test_decoding_together_is_decoding_one_by_one_or_an_error(database: Path, texts: list[str | None]) -> None:
    try:
        expected = [None if text is None else json.loads(text) for text in texts]
    except ValueError:
        with pytest.raises(BuildError, match="'extra' is not JSON text"):
            read(database, texts)
    else:
        assert read(database, texts) == expected
