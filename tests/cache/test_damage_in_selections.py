"""Promise 6, for what a look-up gave and is read later: where the file is damaged, the answer is the source's."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Cache, CorruptFileError, IterableSource, Schema, Selection
from tests.support.waits import until

N = 400
DAMAGED = "item-331"
NOTE = 1000 * "-"
"""The records take several of the blocks that are verified apart, and the damaged one lies in one of its own."""
SCHEMA = Schema("items", index=("kind", "n"), embedding="vector")
ROWS = [{"id": f"item-{i}", "kind": "ab"[i % 2], "n": i, "note": NOTE, "vector": [1.0, i]} for i in range(N)]
ODD = [f"item-{i}" for i in range(1, N, 2)]


def damage(path: Path) -> None:
    """In one record, under another inode, as a copy would put it there."""
    data = bytearray(path.read_bytes())
    data[data.index(DAMAGED.encode()) + 6] ^= 4
    path.unlink()
    path.write_bytes(data)
    os.chmod(path, 0o444)


@pytest.fixture(params=["clean", "dirty"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cache]:
    """Over a file with one damaged record; another id is dirty, or none."""
    path = tmp_path / "items.mmc"
    source = IterableSource(ROWS, SCHEMA)
    mmcache.build(path, source)
    damage(path)
    with mmcache.open(path, source, verify="lazy", executor="external") as cache:
        if request.param == "dirty":
            cache.invalidate(["item-3"])
        yield cache


READ: dict[str, Callable[[Selection[Any]], object]] = {
    "ids": lambda found: found.ids,
    "records": lambda found: [record.id for record in found],
    "one": lambda found: [found[i].id for i in range(len(found))],
    "arrow": lambda found: found.to_arrow(["id"]).column("id").to_pylist(),
    "sliced": lambda found: [*found[:10].ids, *found[10:].ids],
    "ordered": lambda found: found.order_by("n").ids,
    "limited": lambda found: found.order_by("n").limit(N).ids,
    "united": lambda found: (found[20:] | found).order_by("n").ids,
    "without": lambda found: [*(found - found[5:]).ids, *(found - found[:5]).ids],
    "shared": lambda found: (found & found).ids,
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_of_a_selection_is_as_the_source_has_it(cache, name):
    assert READ[name](cache.where(kind="b")) == ODD
    assert cache.stats().corruptions == 1
    assert cache.stats().fallbacks["record"] == 1


def test_the_file_is_built_again(tmp_path):
    path = tmp_path / "items.mmc"
    source = IterableSource(ROWS, SCHEMA)
    mmcache.build(path, source)
    damage(path)
    with mmcache.open(path, source, verify="lazy", executor="thread", check_interval=0.02) as cache:
        assert cache.where(kind="b").ids == ODD
        until("it is of another generation", lambda: cache.where(kind="b").complete and cache.generation == 2)
        assert cache.where(kind="b").ids == ODD


def test_what_has_fallen_back_is_pickled_by_value(cache):
    found = cache.where(kind="b")
    assert found.ids == ODD
    for one in (found, found[:5] | found):
        assert pickle.loads(pickle.dumps(one)).ids == ODD


@pytest.mark.parametrize("name", READ)
def test_without_a_source_it_raises_and_is_counted(tmp_path, name):
    path = tmp_path / "items.mmc"
    mmcache.build(path, ROWS, SCHEMA)
    damage(path)
    with mmcache.open(path, verify="lazy") as cache:
        with pytest.raises(CorruptFileError):
            READ[name](cache.where(kind="b"))
        assert cache.stats().corruptions == 1


def test_embeddings_are_those_of_the_records(cache):
    found = cache.where(kind="b")
    assert found.ids == ODD
    assert found.embeddings.tolist() == [[1.0, float(i)] for i in range(1, N, 2)]
    assert not found.complete
    assert found.rows.tolist() == []
    assert len(found) == len(ODD)


def test_an_iteration_goes_on_where_it_was(cache):
    found = iter(cache.where(kind="b"))
    first = [next(found).id for _ in range(3)]
    assert first + [record.id for record in found] == ODD


def test_two_selections_are_joined_though_one_of_them_is_damaged(cache):
    even, odd = cache.where(kind="a"), cache.where(kind="b")
    both = even | odd
    assert set(both.ids) == {row["id"] for row in ROWS}
    assert len(both.ids) == N
    assert (both - even).ids == ODD
    assert (odd & cache.where(n=[1, 331])).ids == ["item-1", DAMAGED]


@dataclass
class Item:
    id: str
    kind: str
    n: int
    note: str


def test_instances_of_a_model_fall_back_too(tmp_path):
    path = tmp_path / "items.mmc"
    schema = Schema("items", index=("kind", "n"), model=Item)
    source = IterableSource([{name: row[name] for name in ("id", "kind", "n", "note")} for row in ROWS], schema)
    mmcache.build(path, source)
    damage(path)
    with mmcache.open(path, source, verify="lazy", executor="external") as cache:
        found = cache.where(kind="b")
        assert [one.id for one in found] == ODD
        assert all(type(one) is Item for one in found[10:20])
        assert [one.n for one in found.order_by("n", descending=True).limit(2)] == [399, 397]


def test_what_is_remembered_while_ids_are_dirty_stays_that_of_the_file(cache):
    """The answer of one caller is not that of another."""
    first, second = cache.where(kind="a"), cache.where(kind="b")
    assert second.ids == ODD
    assert first.complete == cache.where(kind="a").complete
    assert len(cache.where(kind="b").rows) in (len(ODD), len(ODD) - 1)
    assert np.array_equal(cache.where(kind="a").rows, first.rows)
