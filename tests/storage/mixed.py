"""What the tests of selections and overlays share: one small file, records as a source gives them, and a model.

The model is a list of `Entry`, one for each record in order. `check` compares a selection with it in every way to read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

import mmcache
from mmcache import Schema, Selection, SourceRecord
from mmcache.schema import Query, terms_of

DIM = 3
N = 30
SCHEMA = Schema("items", index=("kind", "size", "tags"), embedding="v", dim=DIM)


class Entry(NamedTuple):
    """key; fields, the key among them; embedding; row, for a record of the file."""

    key: Any
    fields: dict[str, Any]
    vector: list[float] | None
    row: int | None

    @property
    def given(self) -> SourceRecord:
        vector = None if self.vector is None else np.array(self.vector, "<f4").tobytes()
        return SourceRecord(tuple(self.fields), list(self.fields.values()), vector)


def entry(key: Any, seed: int, row: int | None = None, **more: Any) -> Entry:
    """A record with lists, maps, fields that only some have, and, but for every fifth, an embedding."""
    fields = {"id": key, "kind": [None, "a", "b", "c"][seed % 4], "tags": [["x"], ["y", "x"], ["y"], []][seed % 4]}
    if seed % 3:
        fields["size"] = seed % 7
    fields |= {"about": {"n": seed, "tags": [seed]}} | more
    return Entry(key, fields, [seed + 0.5, -1.0, 2.0] if seed % 5 else None, row)


FILE = [entry(f"k{i:02}", i, i) for i in range(N)]


def build(path: Any, entries: Iterable[Entry] = FILE) -> Any:
    mmcache.build(path, [e.fields | {"v": e.vector} for e in entries], SCHEMA)
    return path


def overlaid(dirty: Iterable[Any], source: Mapping[Any, Entry]) -> list[Entry]:
    """The file with the answers of a source, which lists its records in order, in place of the dirty ones."""
    changed = {key: e for key, e in source.items() if key in set(dirty)}
    held = [changed.get(e.key) if e.key in set(dirty) else e for e in FILE]
    known = {e.key for e in FILE}
    return [e for e in held if e is not None] + [e for key, e in changed.items() if key not in known]


def answering(entries: Iterable[Entry], query: Query) -> list[Entry]:
    return [e for e in entries if all(set(terms) & carried(e, field) for field, terms in query.items())]


def carried(e: Entry, field: str) -> set[Any]:
    try:
        return set(terms_of(e.fields.get(field)))
    except TypeError:
        return set()


def check(chosen: Selection, expected: Sequence[Entry]) -> None:
    n, rows = len(expected), [e.row for e in expected if e.row is not None]
    assert isinstance(chosen, Selection)
    assert len(chosen) == n
    assert chosen.ids == [e.key for e in expected]
    assert chosen.rows.tolist() == rows
    assert chosen.rows.dtype == np.uint32
    assert not chosen.rows.flags.writeable
    assert chosen.complete == (len(rows) == n)
    assert [record.asdict() for record in chosen] == [e.fields for e in expected]
    assert [chosen[i].id for i in range(-n, n)] == [e.key for e in expected] * 2
    vectors = chosen.embeddings
    assert vectors.dtype == np.float32
    assert not vectors.flags.writeable
    assert vectors.shape == (n, DIM)
    assert vectors.tolist() == [e.vector or [0.0] * DIM for e in expected]
    for record, e in zip(chosen, expected, strict=True):
        assert (None if record.embedding is None else record.embedding.tolist()) == e.vector
    for beyond in (n, -n - 1):
        with pytest.raises(IndexError):
            chosen[beyond]
