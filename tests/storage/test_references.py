"""Selections and embeddings that are sent to other processes: a path, a generation and rows, no bytes of vectors."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

import mmcache
from mmcache import GenerationGoneError, Schema, Snapshot
from tests.support import inside
from tests.support.observe import mapped_files

pytestmark = pytest.mark.usefixtures("let_go")

SCHEMA = Schema("items", index=("kind",), embedding="v", dim=768)
N = 40


def maps_of(path):
    return [name for name in mapped_files(str(path)) if name.startswith(str(path))]


def build(path, offset=0.0):
    records = (
        {"id": f"k{i}", "kind": i % 3, "v": None if i == 7 else np.full(768, offset + i, "<f4")} for i in range(N)
    )
    return mmcache.build(path, records, SCHEMA)


@pytest.fixture
def path(tmp_path):
    build(tmp_path / "i.mmc")
    return tmp_path / "i.mmc"


def total(reference):
    """In the other process."""
    vector = reference.embedding
    return None if vector is None else (float(vector.sum()), vector.flags.writeable)


def look_at(selection):
    return selection.ids, selection.embeddings.sum(axis=1).tolist(), [record["kind"] for record in selection]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_other_processes_map_the_same_generation(path, method):
    with (
        Snapshot.open(path) as snapshot,
        ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool,
    ):
        chosen = snapshot.where(kind=1)
        references = [snapshot.embedding_ref(key) for key in ("k3", "k7", "k39")]
        assert [total(reference) for reference in references] == [(3 * 768.0, False), None, (39 * 768.0, False)]
        assert list(pool.map(total, references)) == [(3 * 768.0, False), None, (39 * 768.0, False)]
        assert pool.submit(look_at, chosen).result() == look_at(chosen)
        assert pool.submit(look_at, chosen[2:4]).result() == look_at(chosen[2:4])
        build(path, offset=100.0)  # what was sent belongs to the generation before, which is the backup now
        assert pool.submit(look_at, chosen).result() == look_at(chosen)
        assert pool.submit(total, references[0]).result() == (3 * 768.0, False)


def test_they_are_small(path):
    with Snapshot.open(path) as snapshot:
        reference, chosen = snapshot.embedding_ref("k3"), snapshot.where(kind=1)
        assert len(pickle.dumps(reference)) - len(str(path)) < 200
        assert len(pickle.dumps(chosen)) - len(str(path)) < 400 + 4 * len(chosen)


def test_a_generation_that_is_gone_says_so_at_the_first_use_and_not_before(path):
    with Snapshot.open(path) as snapshot:
        sent = pickle.dumps((snapshot.embedding_ref("k3"), snapshot.where(kind=1)))
    build(path, offset=1.0)
    build(path, offset=2.0)
    reference, chosen = pickle.loads(sent)
    assert len(chosen) == 13
    assert chosen.rows.tolist() == list(range(1, N, 3))
    for use in (lambda: reference.embedding, lambda: chosen.ids, lambda: chosen.embeddings, lambda: list(chosen)):
        with pytest.raises(
            GenerationGoneError, match="expected generation 1, found generation 3, as backup generation 2"
        ):
            use()
    path.unlink()
    with pytest.raises(GenerationGoneError, match="found missing"):
        reference.embedding  # noqa: B018


def test_the_same_content_is_the_same_generation_wherever_it_stands(path, tmp_path):
    """Cleared and built again: another file, another generation number, the same rows."""
    with Snapshot.open(path) as snapshot:
        sent = pickle.dumps(snapshot.where(kind=2))
        expected = look_at(snapshot.where(kind=2))
    path.unlink()
    build(path)
    assert look_at(pickle.loads(sent)) == expected


def test_many_share_one_map_which_goes_with_the_last_of_them(path):
    with Snapshot.open(path) as snapshot:
        sent = [pickle.dumps(snapshot.embedding_ref(f"k{i}")) for i in range(N)]
    assert not maps_of(path)
    references = [pickle.loads(one) for one in sent]
    assert not maps_of(path)
    vectors = [reference.embedding for reference in references]
    assert len(maps_of(path)) == 1
    inside.forget_arrived()
    gc.collect()
    assert vectors[3] is not None
    assert vectors[3][0] == 3
    assert len(maps_of(path)) == 1
    del vectors
    gc.collect()
    assert not maps_of(path)


def test_a_cache_gives_them_while_its_file_may_answer(path, tmp_path):
    source = mmcache.IterableSource([{"id": "a", "v": [1.0]}], Schema("items", embedding="v"))
    with mmcache.open(tmp_path / "c.mmc", source) as cache:
        reference = pickle.loads(pickle.dumps(cache.embedding_ref("a")))
        assert reference.embedding.tolist() == [1.0]
        with pytest.raises(KeyError):
            cache.embedding_ref("nope")
        cache.invalidate(["a"])
        with pytest.raises(mmcache.SourceError, match="send the embedding itself"):
            cache.embedding_ref("a")
