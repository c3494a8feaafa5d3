"""Which keys only the source may answer: exact for every number of them, and while their number grows."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmcache
from mmcache.format.keys import hash_key
from mmcache.sources import IterableSource
from mmcache.storage.collection import FileCollection
from mmcache.storage.lookup import DirtyError

N = 20_000
COUNTS = (0, 1, 3, 4, 5, 64, 1_000, 16_384, 16_385, 19_000)
"""Below, at and beyond what the compiled core makes a filter for (see core/dirty.c)."""


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> FileCollection:
    path = Path(tmp_path_factory.mktemp("dirty") / "a.mmc")
    mmcache.build(path, IterableSource([{"id": f"k{i}"} for i in range(N)], mmcache.Schema("items", key="id")))
    return mmcache.Snapshot.open(path).default


def raising(collection: FileCollection, keys: list[str]) -> list[str]:
    """The keys whose look-ups say that they are dirty, asked one by one, and in a batch of 30 of the same."""
    found = []
    for key in keys:
        answers = set()
        for ask in (collection.__getitem__, collection.row, lambda key: collection.get_many([key] * 30)):
            try:
                ask(key)
            except DirtyError:
                answers.add(True)
            else:
                answers.add(False)
        assert len(answers) == 1, key
        found += [key] * answers.pop()
    return found


@pytest.mark.parametrize("count", COUNTS)
def test_the_dirty_keys_and_no_others_raise(collection: FileCollection, count: int) -> None:
    keys = [f"k{i}" for i in range(N)]
    around = collection.around({hash_key(key): (key,) for key in keys[:count]})
    asked = [*keys[:count][:: max(1, count // 500)], *keys[count::37]]
    assert raising(around, asked) == [key for key in asked if int(key[1:]) < count]
    assert raising(collection, asked[:50]) == [], "and the others are those of the file"


@pytest.mark.parametrize("count", COUNTS)
def test_a_key_that_becomes_dirty_meanwhile_raises_from_then_on(collection: FileCollection, count: int) -> None:
    dirty = {hash_key(key): (key,) for key in (f"k{i}" for i in range(count))}
    around = collection.around(dirty)
    clean = [f"k{i}" for i in range(count, min(count + 300, N))]
    assert raising(around, clean) == []
    for key in clean[::3]:
        dirty[hash_key(key)] = (key,)
        assert raising(around, [key]) == [key]
    assert raising(around, clean) == clean[::3]


def test_other_dirty_keys_take_the_place_of_the_first(collection: FileCollection) -> None:
    around = collection.around({hash_key("k1"): ("k1",)})
    assert raising(around, ["k1", "k2"]) == ["k1"]
    again = around.around({hash_key("k2"): ("k2",)})
    assert raising(again, ["k1", "k2"]) == ["k2"]
    assert raising(around, ["k1", "k2"]) == ["k1"]
