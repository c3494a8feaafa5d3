"""A search gives what brute force gives, and a row has one score, however it is found."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import mmcache
from mmcache import Schema, Snapshot
from mmcache.search import metrics
from tests.search import truth
from tests.search.truth import METRICS
from tests.storage.helpers import Image
from tests.support import inside

pytestmark = pytest.mark.usefixtures("no_disk_wait")


def built(path: Path, vectors: list[Any], **more: Any) -> Snapshot:
    """Records k0, k1, ...: of kind a, b and c in turn, of a size in ascending order."""
    records = [
        {"id": f"k{i:03}", "kind": "abc"[i % 3], "size": i // 4, "vector": vector} for i, vector in enumerate(vectors)
    ]
    mmcache.build(path, records, Schema("items", index=("kind", "size"), embedding="vector", **more))
    return Snapshot.open(path)


@st.composite
def banks(draw: st.DrawFn) -> list[Any]:
    """Vectors of small whole numbers, with many ties, zeros and gaps."""
    dim = draw(st.integers(1, 4))
    vector = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    vectors = draw(st.lists(st.one_of(st.none(), vector, vector, vector), min_size=1, max_size=40))
    return [draw(vector), *vectors]


FILTERS: list[dict[str, Any]] = [
    *({}, {"kind": "a"}, {"kind": ["a", "b"]}, {"size": 1}, {"size": [0, 2, 5]}, {"size": range(2, 6)}),
    *({"kind": mmcache.excluding("b")}, {"size": mmcache.at_least(3)}, {"kind": "none"}, {"kind": "a", "size": 1}),
]


@given(banks(), st.sampled_from(METRICS), st.sampled_from(FILTERS), st.data())
def test_a_search_gives_what_brute_force_gives(tmp_path_factory, vectors, metric, where, data):
    path, k = tmp_path_factory.mktemp("exact") / "items.mmc", data.draw(st.integers(1, 45))
    dim = len(vectors[0])
    queries = data.draw(
        st.lists(
            st.lists(st.integers(-2, 2), min_size=dim, max_size=dim).filter(lambda q: metric != "cosine" or any(q)),
            min_size=1,
            max_size=3,
        )
    )
    least = data.draw(st.sampled_from([None, 0.0, -2.0, 0.5]))
    rows, few = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([0, 64]))
    with built(path, vectors) as snapshot, inside.searched_by(rows, few=few, together=2):
        matching = set(snapshot.where(where).ids)
        known = {f"k{i:03}": vector if f"k{i:03}" in matching else None for i, vector in enumerate(vectors)}
        options: Any = {"metric": metric, "min_score": least, "threads": data.draw(st.sampled_from([None, 1, 2]))}
        many = snapshot.nearest_many(queries, k, where, **options)
        for query, found in zip(queries, many, strict=True):
            expected = truth.nearest(known, query, metric, k, min_score=-math.inf if least is None else least)
            assert list(zip(found.ids, found.scores.tolist(), strict=True)) == expected
            alone = snapshot.where(where).nearest(query, k, **options)
            assert (alone.ids, alone.scores.tolist()) == (found.ids, found.scores.tolist())


def paths_of(snapshot: Snapshot, queries: Any, k: int, metric: Any) -> Iterator[list[tuple[list[int], bytes]]]:
    """Rows and bytes of scores of each query, found in every way there is."""

    def told(found: Any) -> tuple[list[int], bytes]:
        return found.rows.tolist(), found.scores.tobytes()

    for rows, few, threads in ((7, 0, 1), (64, 0, 2), (1000, 0, 1), (2**16, 0, None), (50, 10**6, 1)):
        with inside.searched_by(rows, few=few):
            yield [told(one) for one in snapshot.nearest_many(queries, k, metric=metric, threads=threads)]
            yield [told(snapshot.nearest(query, k, metric=metric, threads=threads)) for query in queries]
            yield [told(snapshot.nearest(query, k, {"kind": ["a", "b", "c"]}, metric=metric)) for query in queries]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 3, 17, 130, 384])
def test_a_row_has_one_score_whatever_batch_filter_chunk_and_threads(path, metric, dim):
    random = np.random.default_rng(dim)
    vectors = random.standard_normal((400, dim)).astype(np.float32)
    vectors[200:300] = vectors[:100]  # ties
    vectors[300:310] = vectors[299] * np.float32(1 + 2**-23)  # as near as float32 can tell apart
    queries = random.standard_normal((5, dim)).astype(np.float32)
    queries[0] = vectors[7]
    with built(path, list(vectors)) as snapshot:
        first, *others = paths_of(snapshot, queries, 12, metric)
        assert all(other == first for other in others)
        wide = vectors.astype(np.float64).tolist()
        for query, (rows, scores) in zip(queries.astype(np.float64).tolist(), first, strict=True):
            right = [truth.score(metric, vector, query) for vector in wide]
            found = np.frombuffer(scores)
            scale = max(map(abs, right))
            assert np.abs(found - [right[row] for row in rows]).max() <= 1e-13 * scale
            assert rows == sorted(rows, key=lambda row: (-found[rows.index(row)], row))
            worst = found[-1] + 1e-13 * scale
            assert all(right[row] <= worst for row in set(range(400)).difference(rows))


@pytest.mark.parametrize("metric", METRICS)
def test_of_many_rows_the_nearest_are_those_of_brute_force(path, metric):
    """So many that some values of a chunk are looked at before all of them; with ties, and lengths of all kinds."""
    random = np.random.default_rng(6)
    vectors = (random.integers(-3, 4, (7000, 5)) * random.choice([0.01, 1, 50], (7000, 1))).astype(np.float32)
    vectors[4000:] = vectors[:3000]
    queries = random.standard_normal((3, 5)).astype(np.float32)
    with built(path, list(vectors)) as snapshot:
        for where in ({}, {"kind": ["a", "b"]}, {"size": range(900)}):
            rows = snapshot.where(where).rows
            for query, found in zip(queries, snapshot.nearest_many(queries, 60, where, metric=metric), strict=True):
                scores = metrics.exact_scores(vectors, query.astype(np.float64), metric, rows)
                right = rows[np.lexsort((rows, -scores))]
                for k in (1, 10, 52, 60):
                    alone = snapshot.nearest(query, k, where, metric=metric)
                    assert alone.rows.tolist() == found.rows[:k].tolist() == right[:k].tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_few_rows_gathered_score_as_all_rows_scanned(path, metric):
    random = np.random.default_rng(5)
    vectors = random.standard_normal((900, 33)).astype(np.float32)
    query = random.standard_normal(33)
    with built(path, list(vectors)) as snapshot:
        scores = dict(zip(*(part.tolist() for part in _told(snapshot.nearest(query, 900, metric=metric))), strict=True))
        assert len(scores) == 900
        for where in ({"kind": "a"}, {"size": [1, 5, 9]}, {"size": range(3, 90)}, {"kind": ["a", "b"]}):
            found = snapshot.nearest(query, 900, where, metric=metric)
            assert set(found.rows.tolist()) == set(snapshot.where(where).rows.tolist())
            assert [scores[row] for row in found.rows.tolist()] == found.scores.tolist()


def _told(found: Any) -> tuple[Any, Any]:
    return found.rows, found.scores


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-44, 1e-37, 1e-22, 1e-12, 1.0, 1e12, 1e19, 1e30, 1e37])
def test_vectors_of_any_length_are_ordered_as_float64_orders_them(path, metric, scale):
    """Lengths beyond what float32 can square, also beside ordinary ones."""
    random = np.random.default_rng(3)
    vectors = random.standard_normal((120, 6)).astype(np.float32)
    vectors[::2] *= np.float32(scale)
    query = (random.standard_normal(6) * scale).astype(np.float32)
    with built(path, list(vectors)) as snapshot, inside.searched_by(16):
        for asked in (query, query / np.float32(scale) if scale > 1e-40 else vectors[1]):
            found = snapshot.nearest(asked, 120, metric=metric)
            right = [truth.score(metric, v, asked.astype(float).tolist()) for v in vectors.astype(float).tolist()]
            assert found.scores == pytest.approx(
                sorted(right, reverse=True), rel=1e-12, abs=0 if metric == "dot" else 1e-15
            )
            best = snapshot.nearest(asked, 7, metric=metric)
            assert (best.rows == found.rows[:7]).all()
            assert (best.scores == found.scores[:7]).all()


def test_a_record_with_nan_or_infinity_is_never_an_answer(path):
    vectors = [[1.0, 0.0], [math.nan, 1.0], [math.inf, 0.0], None, [0.5, 0.5], [-math.inf, math.inf], [3e38, 3e38]]
    with built(path, vectors, allow_nan=True) as snapshot:
        for metric in METRICS:
            for few in (0, 64):
                with inside.searched_by(3, few=few):
                    assert sorted(snapshot.nearest([1.0, 0.5], 9, metric=metric).rows) == [0, 4, 6]
                    assert sorted(snapshot.nearest([1.0, 0.5], 9, {"size": 0}, metric=metric).rows) == [0]


def test_a_vector_of_zeros_in_the_file_has_the_cosine_0(path):
    with built(path, [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]) as snapshot:
        found = snapshot.nearest([2.0, 0.0])
        assert found.rows.tolist() == [1, 0, 3, 2]
        assert found.scores.tolist() == [1.0, 0.0, 0.0, -1.0]
        assert not np.signbit(found.scores[1:3]).any()


def test_equal_vectors_have_exactly_the_cosine_1_and_the_distance_0(path):
    vectors = np.random.default_rng(8).standard_normal((300, 96)).astype(np.float32)
    with built(path, list(vectors)) as snapshot:
        for row in range(0, 300, 29):
            assert snapshot.nearest(vectors[row], 1).scores.tolist() == [1.0]
            apart = snapshot.nearest(vectors[row], 1, metric="euclidean")
            assert (apart.rows[0], apart.scores[0], np.signbit(apart.scores[0])) == (row, 0.0, False)


REFUSED = [
    ([1.0, 2.0, 3.0], {}, "expected"),
    ([[1.0, 2.0], [3.0, 4.0]], {}, "expected"),
    (1.0, {}, "expected"),
    ([], {}, "expected"),
    ([1.0, math.nan], {}, "NaN"),
    ([math.inf, 0.0], {}, "NaN or infinite"),
    ([1e39, 0.0], {}, "beyond float32"),
    ([0.0, 0.0], {}, "no direction"),
    ([1e-60, 0.0], {}, "no direction"),
    ([1.0, 0.0], {"k": 0}, "k=0"),
    ([1.0, 0.0], {"metric": "hamming"}, "metric must be one of"),
    ([1.0, 0.0], {"min_score": math.nan}, "min_score"),
    ([1.0, 0.0], {"embedding": "other"}, "no embedding 'other'; there are: vector"),
    ([1.0, 0.0], {"threads": 0}, "threads must be"),
    ([1.0, 0.0], {"deadline": -1}, "deadline must be"),
    ([1.0, 0.0], {"where": {"nope": 1}}, "no index on 'nope'"),
]


@pytest.mark.parametrize(("vector", "options", "reason"), REFUSED, ids=lambda value: str(value)[:24])
def test_what_cannot_be_searched_for_is_refused(path, vector, options, reason):
    with built(path, [[1.0, 0.0]]) as snapshot, pytest.raises(ValueError, match=reason):
        snapshot.nearest(vector, **options)


def test_what_is_refused_is_refused_before_anything_is_read(path):
    """A block that is damaged is not noticed."""
    built(path, list(np.random.default_rng(0).standard_normal((500, 64)))).close()
    damaged = bytearray(path.read_bytes())
    with Snapshot.open(path) as snapshot:
        at = snapshot.layout.collections["items"].sections["embeddings.vector"].offset
    damaged[at + 50_000] ^= 1
    path.chmod(0o600)
    path.write_bytes(damaged)
    with Snapshot.open(path, verify="lazy") as snapshot:
        with pytest.raises(ValueError, match="no direction"):
            snapshot.nearest([0.0] * 64)
        with pytest.raises(mmcache.CorruptFileError):
            snapshot.nearest([1.0] * 64)
        with pytest.raises(mmcache.CorruptFileError):
            snapshot.nearest([1.0] * 64, where={"kind": "a"})
        # A part of the block that is whole answers.
        assert len(snapshot.nearest([1.0] * 64, where={"size": 0})) == 4


@pytest.mark.parametrize(
    ("vector", "error"),
    [(["a", "b"], TypeError), ([1j, 0.0], TypeError), ([None, 1.0], TypeError), ([[1.0], 2.0], ValueError)],
)
def test_what_is_no_vector_of_numbers_is_refused(path, vector, error):
    with built(path, [[1.0, 0.0]]) as snapshot, pytest.raises(error):
        snapshot.nearest(vector)


def test_a_vector_comes_in_any_form_that_numpy_takes(path):
    with built(path, [[3.0, 4.0], [0.0, 1.0]]) as snapshot:
        forms: list[Any] = [[3, 4], (3.0, 4.0), np.array([3.0, 4.0]), np.array([[3, 4]], np.int8)]
        forms += [np.array([3, 9, 4, 9], np.float16)[::2], np.array([[3.0, 9.0], [4.0, 9.0]], ">f4")[:, 0]]
        assert [snapshot.nearest(form, 1).scores.tolist() for form in forms] == [[1.0]] * len(forms)


def test_a_search_takes_a_vector_or_an_id_and_no_unknown_option(path):
    with built(path, [[1.0, 0.0], [0.0, 1.0], None]) as snapshot:
        for call in (snapshot.nearest, lambda: snapshot.nearest([1.0, 0.0], id="k000")):
            with pytest.raises(TypeError, match="one of the two"):
                call()
        with pytest.raises(TypeError, match="takes no 'metrics'"):
            snapshot.nearest([1.0, 0.0], metrics="dot")  # type: ignore[call-arg]
        with pytest.raises(KeyError):
            snapshot.nearest(id="nope")
        with pytest.raises(ValueError, match="has no embedding"):
            snapshot.nearest(id="k002")


def test_a_record_is_none_of_its_own_neighbours_nor_what_is_skipped(path):
    with built(path, [[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]) as snapshot:
        assert snapshot.nearest(id="k000", k=2).ids == ["k001", "k002"]
        assert snapshot.nearest([1.0, 0.0], k=2, skip=["k001", "k002", "nope"]).ids == ["k000", "k003"]
        assert snapshot.nearest(id="k000", k=9, skip=["k003"]).ids == ["k001", "k002"]
        with pytest.raises(TypeError):
            snapshot.nearest([1.0, 0.0], skip="k001")


def test_a_collection_without_embeddings_says_so(path):
    mmcache.build(path, [{"id": "a"}], Schema("items"))
    with Snapshot.open(path) as snapshot, pytest.raises(ValueError, match="no embeddings"):
        snapshot.nearest([1.0])


def test_a_collection_in_which_no_record_has_one_has_no_neighbours(path):
    mmcache.build(path, [{"id": "a", "vector": None}], Schema("items", embedding="vector"))
    with Snapshot.open(path) as snapshot:
        assert snapshot.nearest([1.0]).ids == []


def test_each_embedding_is_searched_by_its_own_metric(path):
    schema = Schema("items", embedding=("title", "body"), metric=("dot", "euclidean"))
    records = [{"id": "a", "title": [1.0, 1.0], "body": [1.0]}, {"id": "b", "title": [3.0, 0.0], "body": [5.0]}]
    mmcache.build(path, records, schema)
    with Snapshot.open(path) as snapshot:
        assert snapshot.nearest([2.0, 1.0]).scores.tolist() == [6.0, 3.0]
        assert snapshot.nearest([6.0], embedding="body").scores.tolist() == [-1.0, -5.0]
        assert snapshot.nearest(id="a", embedding="body").ids == ["b"]
        with pytest.raises(ValueError, match="expected"):
            snapshot.nearest([6.0])


def test_a_file_without_lengths_answers_all_the_same(path):
    """A writer may leave `norms` out: its kind is then one that is not known."""
    vectors = np.random.default_rng(1).standard_normal((200, 8)).astype(np.float32)
    with built(path, list(vectors)) as snapshot:
        found = snapshot.nearest([1.0] * 8)
        expected = found.ids, found.scores.tolist()
    image = Image.of(path.read_bytes())
    image.part("0/norms.0").kind = 99
    path.chmod(0o600)
    path.write_bytes(image.pack())
    with Snapshot.open(path) as snapshot:
        assert "norms.vector" not in snapshot.layout.collections["items"].sections
        found = snapshot.nearest([1.0] * 8)
        assert (found.ids, found.scores.tolist()) == expected


def test_a_closed_snapshot_answers_no_search(path):
    snapshot = built(path, [[1.0, 0.0]])
    chosen = snapshot.where(kind="a")
    snapshot.close()
    for call in (lambda: snapshot.nearest([1.0, 0.0]), lambda: chosen.nearest([1.0, 0.0])):
        with pytest.raises(mmcache.ClosedError):
            call()
