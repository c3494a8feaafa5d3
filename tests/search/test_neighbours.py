"""What a search gives is a selection, with scores."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import mmcache
from mmcache import Neighbours, Schema, Selection, Snapshot
from tests.support import inside
from tests.support.processes import ask_child

pytestmark = pytest.mark.usefixtures("no_disk_wait", "no_leaks")

VECTORS = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]]
ORDER = ["a", "b", "c", "d", "e"]


@pytest.fixture
def snapshot(path: Path):
    records = [{"id": key, "size": 10 - i, "vector": VECTORS[i]} for i, key in enumerate(ORDER)]
    mmcache.build(path, records, Schema("items", index=("size",), embedding="vector"))
    with Snapshot.open(path) as snapshot:
        yield snapshot


def test_neighbours_are_a_selection_in_the_order_of_their_scores(snapshot):
    found = snapshot.nearest([1.0, 0.0], 4)
    assert isinstance(found, Neighbours)
    assert isinstance(found, Selection)
    assert found.ids == [record.id for record in found] == ORDER[:4]
    assert found.rows.tolist() == [0, 1, 2, 3]
    assert found.scores == pytest.approx([1.0, 0.8, 0.6, 0.0])
    assert found.scores.dtype == np.float64
    assert (found.scores.flags.writeable, len(found)) == (False, 4)
    assert np.array_equal(found.embeddings, np.array(VECTORS[:4], np.float32))
    assert [(record.id, score) for record, score in found.pairs()] == list(zip(ORDER, found.scores, strict=False))
    assert found.complete


def test_fewer_than_asked_for_come_only_where_fewer_match(snapshot):
    assert len(snapshot.nearest([1.0, 0.0], 9)) == 5
    assert len(snapshot.nearest([1.0, 0.0], 9, {"size": [10, 8, 99]})) == 2
    assert len(snapshot.nearest([1.0, 0.0], 9, min_score=0.7)) == 2
    assert len(snapshot.nearest([1.0, 0.0], 2, min_score=0.5)) == 2
    assert snapshot.nearest([1.0, 0.0], 9, min_score=1.5).ids == []
    assert snapshot.nearest([1.0, 0.0], metric="euclidean", min_score=0.1).ids == []


def test_a_slice_keeps_the_scores_of_its_records(snapshot):
    found = snapshot.nearest([1.0, 0.0])
    for part in (slice(1, 3), slice(None, None, -1), slice(2), slice(4, 1)):
        assert isinstance(found[part], Neighbours)
        assert found[part].ids == ORDER[part]
        assert found[part].scores.tolist() == found.scores.tolist()[part]
    assert found.limit(2).scores.tolist() == found.scores.tolist()[:2]
    assert found[-1].id == "e"


def test_neighbours_combine_with_selections_by_key(snapshot):
    found = snapshot.nearest([1.0, 0.0], 3)
    assert (found & snapshot.where(size=[8, 9])).ids == ["b", "c"]
    assert (found - snapshot.where(size=9)).ids == ["a", "c"]
    assert (found[::-1] | snapshot.where(size=6)).ids == ["c", "b", "a", "e"]
    assert not isinstance(found & snapshot.where(size=9), Neighbours)
    assert found.order_by("size").ids == ["c", "b", "a"]


def test_neighbours_arrive_in_another_process(snapshot):
    found = snapshot.nearest([1.0, 0.0], 3)
    sent = pickle.dumps(found)

    def arrives() -> object:
        arrived = pickle.loads(sent)
        return type(arrived), arrived.ids, arrived.scores.tolist(), arrived[1:].scores.tolist()

    assert ask_child(arrives) == (Neighbours, found.ids, found.scores.tolist(), found.scores.tolist()[1:])
    assert len(sent) < 1000


def test_what_arrived_can_be_searched_again(snapshot):
    chosen = pickle.loads(pickle.dumps(snapshot.nearest([1.0, 0.0], 4)))
    assert chosen.nearest([0.0, 1.0], 2).ids == ["d", "c"]
    inside.forget_arrived()


def test_neighbours_say_what_they_are(snapshot):
    assert repr(snapshot.nearest([1.0, 0.0], 3)) == "<Neighbours: 3 records, scores 1 to 0.6>"
    assert repr(snapshot.nearest([1.0, 0.0], 3, {"size": 99})) == "<Neighbours: none>"


def test_neighbours_outlive_their_snapshot_with_their_scores(path):
    mmcache.build(path, [{"id": "a", "vector": [1.0]}], Schema("items", embedding="vector"))
    with Snapshot.open(path) as snapshot:
        found = snapshot.nearest([2.0])
    assert found.scores.tolist() == [1.0]
    with pytest.raises(mmcache.ClosedError):
        found.ids  # noqa: B018


def test_no_vectors_have_no_neighbours(snapshot):
    assert snapshot.nearest_many(np.empty((0, 2))) == []


def test_one_vector_in_the_place_of_several_is_named(snapshot):
    with pytest.raises(ValueError, match="one vector of 2 numbers, where a list of vectors is expected"):
        snapshot.nearest_many([1.0, 0.0])


def test_a_text_is_not_taken_for_several_keys_to_skip(snapshot):
    for vector in ({"vector": [1.0, 0.0]}, {"id": "b"}):
        with pytest.raises(TypeError, match="put it into a list"):
            snapshot.nearest(**vector, skip="a")
    assert snapshot.nearest(id="b", k=1, skip=["a"]).ids == ["c"]


def test_masked_numbers_are_not_searched_for(snapshot):
    vector = np.ma.array([1.0, 0.5], mask=[False, True])
    for search in (
        lambda: snapshot.nearest(vector),
        lambda: snapshot.nearest_many([vector]),
        lambda: snapshot.nearest_many(vector[None]),
    ):
        with pytest.raises(ValueError, match="masked"):
            search()
    assert snapshot.nearest(np.ma.array([1.0, 0.0]), 1).ids == ["a"]


@pytest.mark.parametrize("metric", ["", 0, [], False])
def test_only_none_stands_for_the_metric_of_the_schema(snapshot, metric):
    with pytest.raises(ValueError, match="metric must be one of"):
        snapshot.nearest([1.0, 0.0], metric=metric)
    assert snapshot.nearest([1.0, 0.0], 1, metric=None).ids == ["a"]


def test_arguments_that_are_no_numbers_or_vectors_are_named(snapshot):
    for name in ("min_score", "deadline"):
        for value in (10**400, "soon"):
            with pytest.raises(ValueError, match=f"{name} must be a number"):
                snapshot.nearest([1.0, 0.0], **{name: value})
    with pytest.raises(ValueError, match=r"shape \(2,\) is expected.*found \(\)"):
        snapshot.nearest_many(3)
    with pytest.raises(ValueError, match="several lengths"):
        snapshot.nearest([[1.0, 0.0], [1.0]])
