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
from mmcache import Cache, CallableSource, CorruptFileError, IterableSource, Neighbours, Schema, Selection
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


def test_a_question_that_is_no_unicode_is_no_damage(tmp_path):
    items: list[dict[str, object]] = [{"id": 1, "kind": "a"}, {"id": 2, "kind": None}]
    source = IterableSource(items, Schema("items", index=("kind",)))
    with mmcache.open(tmp_path / "i.mmc", source) as cache:
        assert cache.where(kind=["\ud800", "a"]).ids == [1]
        assert cache.where(kind=mmcache.excluding("a\ud800")).ids == [1, 2]
        assert cache.stats().corruptions == 0


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


# --- neighbours -------------------------------------------------------------------------------------------------------

NEAREST = [f"item-{i}" for i in range(399, 319, -2)]
"""The 40 of a kind that are nearest to UP, the damaged one among them. A search reads embeddings, and no record."""
UP = [0.0, 1.0]
NEAR: dict[str, Callable[[Neighbours[Any]], Any]] = {
    "records": lambda near: [(record.id, score) for record, score in zip(near, near.scores.tolist(), strict=True)],
    "pairs": lambda near: [(record.id, score) for record, score in near.pairs()],
    "ids": lambda near: list(zip(near.ids, near.scores.tolist(), strict=True)),
    "one": lambda near: [(near[i].id, near[i : i + 1].scores[0]) for i in range(len(near))],
    "sliced": lambda near: [*NEAR["pairs"](near[:36]), *NEAR["pairs"](near[36:])],
    "limited": lambda near: NEAR["pairs"](near.limit(40)),
    "turned": lambda near: NEAR["pairs"](near[::-1])[::-1],
    "searched": lambda near: NEAR["pairs"](near.nearest(UP, 40)),
    "arrow": lambda near: list(zip(near.to_arrow(["id"]).column("id").to_pylist(), near.scores.tolist(), strict=True)),
    "pickled": lambda near: (near.ids, NEAR["pairs"](pickle.loads(pickle.dumps(near))))[1],
}


def cosine(record: Any) -> float:
    """To UP."""
    one, other = record.embedding.astype(float).tolist()
    return float(np.clip(other / np.sqrt(one * one + other * other), -1, 1))


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("how", ["cache", "selection"])
def test_neighbours_that_are_read_over_damage_are_those_of_the_source(cache, name, how):
    near = cache.nearest(UP, 40, {"kind": "b"}) if how == "cache" else cache.where(kind="b").nearest(UP, 40)
    expected = near.scores.tolist()
    assert near.complete
    assert NEAR[name](near) == list(zip(NEAREST, expected, strict=True))
    assert cache.stats().corruptions == 1
    assert isinstance(near[1:], Neighbours)
    if name != "arrow":
        assert [cosine(record) for record in near] == pytest.approx(expected)


def test_neighbours_have_the_scores_of_the_records_that_take_their_place(tmp_path):
    """The source has moved on: each record is given with its own score, and those already given are not given again."""
    path, rows = tmp_path / "items.mmc", list(ROWS)
    source = CallableSource(lambda: rows, SCHEMA)
    mmcache.build(path, source)
    damage(path)
    with mmcache.open(path, source, verify="lazy", executor="external", check_interval=3600.0) as cache:
        near, other = cache.nearest_many([UP, UP], 40, {"kind": "b"})
        rows[:] = [{**row, "vector": [1.0, 400 - i]} for i, row in enumerate(ROWS)]
        pairs = [(record.id, score, cosine(record)) for record, score in near.pairs()]
        assert [key for key, *_ in pairs[:10]] == NEAREST[:10]
        assert "item-1" in [key for key, *_ in pairs], "the nearest one of the source"
        assert len({key for key, *_ in pairs}) == len(pairs)
        assert all(score == pytest.approx(right) for _, score, right in pairs)
        for one in (near, other[2:], other.limit(5), pickle.loads(pickle.dumps(near))):
            assert one.ids, "from here on they are the source's"
            assert [score for _, score in one.pairs()] == pytest.approx([cosine(record) for record in one])
            assert one.scores.tolist() == [score for _, score in one.pairs()]
        assert near.ids[:3] == ["item-1", "item-3", "item-5"]
        assert repr(near) == repr(cache.where(kind="b").nearest(UP, 40)), "as the source has them"


def test_a_vector_that_changes_after_the_search_changes_no_neighbours(cache):
    query = np.array(UP, np.float32)
    near = cache.nearest(query, 80, {"n": range(325, 400)}, skip=iter(["item-399"]))
    query[:] = 1.0, 0.0
    assert near.ids == [f"item-{i}" for i in range(398, 324, -1)]


@pytest.mark.parametrize("name", NEAR)
def test_neighbours_without_a_source_raise_over_damage(tmp_path, name):
    path = tmp_path / "items.mmc"
    mmcache.build(path, ROWS, SCHEMA)
    damage(path)
    with mmcache.open(path, verify="lazy") as cache:
        with pytest.raises(CorruptFileError):
            NEAR[name](cache.nearest(UP, 40, {"kind": "b"}))
        assert cache.stats().corruptions == 1


def test_neighbours_of_a_model_stay_instances_of_it_over_damage(tmp_path):
    path = tmp_path / "items.mmc"
    schema = Schema("items", index=("kind", "n"), embedding="vector", model=Item)
    source = IterableSource(ROWS, schema)
    mmcache.build(path, source)
    damage(path)
    with mmcache.open(path, source, verify="lazy", executor="external") as cache:
        for near in (cache.nearest(UP, 40, {"kind": "b"}), cache.where(kind="b").nearest(UP, 40)):
            assert [(type(one), one.id) for one, _ in near.pairs()] == [(Item, key) for key in NEAREST]
            assert [type(one) for one in (*near, near[0], *near[34:36])] == [Item] * 43
        fallen = cache.where(kind="b")
        assert fallen.ids == ODD
        assert [type(one) for one in fallen.nearest(UP, 3)] == [Item] * 3
