"""A search with a recall finds some of the rows that an exact search finds, each with its own score."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import mmcache
from mmcache import CorruptFileError, IterableSource, RecallError, Schema, Snapshot, native
from tests.search import truth
from tests.search.test_exact import FILTERS, banks, built
from tests.search.truth import METRICS
from tests.storage.helpers import Image
from tests.support import inside

pytestmark = pytest.mark.usefixtures("no_disk_wait")

N, DIM = 9_000, 72
"""More than one tile, and dims that do not fill the last word."""
SKETCHED = Schema("items", index=("half", "few"), embedding="v", sketch=True)


def alike(n: int = N, dim: int = DIM, seed: int = 0) -> Any:
    """float32, (n, dim), in 60 clusters."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((60, dim))
    vectors = centres[random.integers(0, 60, n)] + 0.6 * random.standard_normal((n, dim))
    return vectors.astype(np.float32)


def records(vectors: Any) -> list[dict[str, Any]]:
    """Every 50th without an embedding."""
    return [
        {"id": i, "half": i % 2, "few": i % 100, "v": None if i % 50 == 7 else vector}
        for i, vector in enumerate(vectors)
    ]


@pytest.fixture(scope="module")
def vectors() -> Any:
    return alike()


@pytest.fixture(scope="module")
def file(tmp_path_factory, vectors) -> Path:
    path: Path = tmp_path_factory.mktemp("sketch") / "items.mmc"
    mmcache.build(path, records(vectors), SKETCHED)
    return path


@pytest.fixture
def snapshot(file) -> Iterator[Snapshot]:
    with Snapshot.open(file) as snapshot:
        yield snapshot


def near(vectors: Any, count: int, seed: int = 1) -> Any:
    """Queries that are like some of the vectors."""
    random = np.random.default_rng(seed)
    rows = vectors[random.integers(0, len(vectors), count)]
    return rows + 0.2 * random.standard_normal(rows.shape).astype(np.float32)


def ids(found: Any) -> list[Any]:
    return list(found.ids)


def told(found: Any) -> tuple[list[Any], list[float]]:
    return ids(found), found.scores.tolist()


def rewritten(file: Path, to: Path, image: Image) -> Path:
    to.write_bytes(image.pack())
    return to


# --- what is found ----------------------------------------------------------------------------------------------------


def test_what_is_found_has_the_scores_and_the_order_of_an_exact_search(snapshot, vectors):
    queries = near(vectors, 20)
    everything = snapshot.nearest_many(queries, N)
    for k in (1, 10, 40):
        many = snapshot.nearest_many(queries, k, recall=0.8)
        for query, found, exact in zip(queries, many, everything, strict=True):
            scores = dict(zip(*told(exact), strict=True))
            assert len(found) == k
            assert [scores[key] for key in ids(found)] == found.scores.tolist()
            assert told(found) == (
                sorted(ids(found), key=lambda key: (-scores[key], key)),
                sorted(found.scores.tolist(), reverse=True),
            )
            assert told(snapshot.nearest(query, k, recall=0.8)) == told(found)
            assert told(snapshot.where().nearest(query, k, recall=0.8)) == told(found)


@pytest.mark.parametrize("recall", [0.5, 0.9, 0.95])
def test_the_share_that_is_found_is_what_was_asked_for(snapshot, vectors, recall):
    """Of rows of the file, of which the promise is."""
    keys = [key for key in range(0, N, 61) if key % 50 != 7]
    hits = [len(set(snapshot.nearest(id=key, recall=recall).ids) & set(snapshot.nearest(id=key).ids)) for key in keys]
    assert sum(hits) / (10 * len(keys)) >= recall
    assert any(hit < 10 for hit in hits), "else the search was exact, and nothing is shown"


@pytest.mark.skipif(native.core is None, reason="there is no compiled core, or pure Python is asked for")
def test_the_compiled_core_finds_what_python_finds_and_builds_the_same_file(tmp_path, file, snapshot, vectors):
    queries = near(vectors, 6)
    asked: list[dict[str, Any]] = [{}, {"few": [3, 5, 8]}, {"half": 1}, {"few": 7}]

    def found() -> list[Any]:
        alone = [
            told(snapshot.nearest(query, k, where, metric=metric))
            for query, where, k, metric in itertools.product(queries[:2], asked, (1, 30), METRICS)
        ]
        some = [
            told(snapshot.nearest(query, k, recall=recall)) for query in queries for k, recall in ((10, 0.9), (50, 0.6))
        ]
        many = [told(one) for one in snapshot.nearest_many(queries, 20, recall=0.8)]
        return [alone, some, many, [told(one) for one in snapshot.nearest_many(queries, 20, {"half": 0})]]

    by_core = found()
    with inside.searched_in_python():
        assert found() == by_core
        mmcache.build(tmp_path / "pure.mmc", records(vectors), SKETCHED)
    assert content(tmp_path / "pure.mmc") == content(file)


def test_a_recall_of_1_is_an_exact_search(snapshot, vectors):
    for query in near(vectors, 5):
        assert told(snapshot.nearest(query, 200, recall=1.0)) == told(snapshot.nearest(query, 200))
        assert told(snapshot.nearest(query, 5, recall=1, metric="dot")) == told(
            snapshot.nearest(query, 5, metric="dot")
        )


@given(banks(), st.sampled_from(METRICS), st.sampled_from(FILTERS), st.data())
def test_of_few_records_and_under_any_filter_a_search_is_exact(tmp_path_factory, bank, metric, where, data):
    path = tmp_path_factory.mktemp("few") / "items.mmc"
    query = data.draw(st.lists(st.integers(-2, 2), min_size=len(bank[0]), max_size=len(bank[0])).filter(any))
    recall, k = data.draw(st.sampled_from([0.01, 0.9, 1.0])), data.draw(st.integers(1, 45))
    with built(path, bank, sketch=True, metric=metric) as snapshot:
        assert told(snapshot.nearest(query, k, where, recall=recall)) == told(snapshot.nearest(query, k, where))


@given(st.integers(0, 2**32), st.sampled_from(METRICS), st.integers(1, 10), st.data())
def test_a_row_is_found_with_the_score_of_brute_force(tmp_path_factory, seed, metric, k, data):
    """By sketches of small files, which are made to count."""
    path, dim = tmp_path_factory.mktemp("small") / "items.mmc", data.draw(st.integers(1, 130))
    random = np.random.default_rng(seed)
    bank: list[Any] = [
        None if i % 7 == 3 else vector for i, vector in enumerate(random.integers(-2, 3, (300, dim)).tolist())
    ]
    query = data.draw(st.sampled_from([vector for vector in bank if vector and any(vector)]))
    with inside.measured_from(100), built(path, bank, sketch=True, metric=metric) as snapshot:
        (curve, _) = snapshot.layout.collections["items"].sketches["vector"].curves.values()
        assert [point.candidates for point in curve] == [32]
        found = snapshot.nearest(query, k, recall=max(0.01, curve[-1].least / 10_000))
        right = {f"k{i:03}": truth.score(metric, v, query) for i, v in enumerate(bank) if v is not None}
        assert len(found) == k
        assert [right[key] for key in ids(found)] == found.scores.tolist()
        assert ids(found) == sorted(ids(found), key=lambda key: (-right[key], key))


@pytest.mark.parametrize("where", [{"half": 1}, {"half": [0, 1]}, {"few": 7}, {"few": mmcache.excluding(3)}])
def test_under_every_filter_a_search_is_exact(snapshot, vectors, where):
    for query in near(vectors, 5):
        assert told(snapshot.nearest(query, 20, where, recall=0.5)) == told(snapshot.nearest(query, 20, where))
        chosen = snapshot.where(where)
        assert told(chosen.nearest(query, 20, recall=0.5)) == told(chosen.nearest(query, 20))


def test_a_record_without_an_embedding_or_that_is_skipped_is_no_candidate(snapshot, vectors):
    for query in near(vectors, 10):
        found = snapshot.nearest(query, 100, recall=0.3)
        assert not any(key % 50 == 7 for key in ids(found))
        skip = ids(found)[:40]
        others = snapshot.nearest(query, 60, recall=0.3, skip=skip)
        assert len(others) == 60
        assert not set(skip) & set(ids(others))
        assert (others.scores >= found.scores[40:]).all(), "there are as many candidates besides"


def test_a_least_score_counts_as_in_an_exact_search(snapshot, vectors):
    (query,) = near(vectors, 1)
    found = snapshot.nearest(query, 50, recall=0.3)
    least = float(found.scores[20])
    assert told(snapshot.nearest(query, 50, recall=0.3, min_score=least)) == told(
        found[: int((found.scores >= least).sum())]
    )


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_the_file_does_not_promise_is_refused_by_name(snapshot, vectors):
    query = vectors[0]
    with pytest.raises(RecallError, match="k=101: a recall was measured for k up to 100; leave recall out"):
        snapshot.nearest(query, 101, recall=0.5)
    with pytest.raises(RecallError, match=r"metric 'cosine', not for 'dot': .* Schema\(metric='dot'\)"):
        snapshot.nearest(query, metric="dot", recall=0.5)
    assert issubclass(RecallError, ValueError)


@pytest.mark.parametrize("recall", [0, -1, 1.0001, float("nan"), "much"])
def test_a_recall_that_is_none_is_refused(snapshot, vectors, recall):
    with pytest.raises(ValueError, match="recall must be"):
        snapshot.nearest(vectors[0], recall=recall)


def test_a_collection_without_a_sketch_says_so(path):
    mmcache.build(path, records(alike(50)), Schema("items", embedding="v"))
    with Snapshot.open(path) as snapshot, pytest.raises(RecallError, match=r"Schema\(sketch=True\)"):
        snapshot.nearest(np.ones(DIM), recall=0.5)


def test_signs_that_say_nothing_promise_nothing(path):
    """All numbers are above 0: every distance is 0."""
    vectors = np.abs(alike(5000, 8)) + 1
    mmcache.build(path, records(vectors), SKETCHED)
    with Snapshot.open(path) as snapshot:
        with pytest.raises(RecallError, match=r"a recall of 0.9 is more than the file promises for k=10, 0\.\d+: ask"):
            snapshot.nearest(vectors[3], recall=0.9)
        assert len(snapshot.nearest(vectors[3])) == 10


def test_a_schema_says_whether_there_is_a_sketch():
    assert not Schema("items", embedding="v").sketch
    assert "sketch" not in Schema("items", embedding="v").to_dict()
    assert Schema.from_dict(SKETCHED.to_dict()) == SKETCHED
    with pytest.raises(ValueError, match="without an embedding"):
        Schema("items", sketch=True)
    with pytest.raises(TypeError, match="True or False"):
        Schema("items", embedding="v", sketch=1)  # type: ignore[arg-type]


# --- the section ------------------------------------------------------------------------------------------------------


def bits_of(section: bytes, n: int, dim: int, row: int) -> list[int]:
    """As docs/format.md has it."""
    words, tile = -(-dim // 64), row // 8192
    rows = min(8192, n - 8192 * tile)
    begin = 8 * words * 8192 * tile
    found = [struct.unpack_from("<Q", section, begin + 8 * (rows * w + row % 8192))[0] for w in range(words)]
    return [found[i // 64] >> i % 64 & 1 for i in range(64 * words)]


def test_a_bit_is_set_where_the_number_is_above_0(file, vectors):
    image = Image.of(file.read_bytes())
    part = image.part("0/sketch.0")
    assert (part.kind, part.flags, part.count) == (12, 2, N)
    for row in (0, 1, 7, 4095, 8191, 8192, 8193, N - 1):
        signs = [] if row % 50 == 7 else (vectors[row] > 0).astype(int).tolist()
        assert bits_of(bytes(part.data), N, DIM, row) == signs + [0] * (128 - len(signs))


def test_a_sketch_takes_a_32nd_of_the_embeddings(path):
    mmcache.build(path, records(alike(300, 384)), SKETCHED)
    image = Image.of(path.read_bytes())
    assert 32 * len(image.part("0/sketch.0").data) == len(image.part("0/embeddings.0").data)


def test_a_reader_that_does_not_know_the_sketch_reads_the_file(file, tmp_path, vectors):
    """One of another kind is unknown to this reader, as ours is to an older one. Then a search is exact."""
    image = Image.of(file.read_bytes())
    image.part("0/sketch.0").kind = 99
    with Snapshot.open(rewritten(file, tmp_path / "other.mmc", image)) as snapshot:
        assert "sketch.v" not in snapshot.layout.collections["items"].sections
        for query in near(vectors, 3):
            assert told(snapshot.nearest(query, recall=0.5)) == told(snapshot.nearest(query))


def content(path: Path) -> bytes:
    return path.read_bytes()[256:]


def test_a_merge_and_shards_write_the_sketch_of_one_build(tmp_path, file, vectors):
    rows = records(vectors)
    for i, some in enumerate((rows[:100], rows[100:4321], rows[4321:])):
        mmcache.build(tmp_path / f"{i}.mmc", some, SKETCHED)
    mmcache.merge(tmp_path / "merged.mmc", [tmp_path / f"{i}.mmc" for i in range(3)])
    assert content(tmp_path / "merged.mmc") == content(file)
    by_half: dict[str, Any] = {"cluster_by": "half"}
    mmcache.build(tmp_path / "clustered.mmc", rows, SKETCHED, **by_half)
    mmcache.merge(tmp_path / "both.mmc", [tmp_path / f"{i}.mmc" for i in range(3)], **by_half)
    assert content(tmp_path / "both.mmc") == content(tmp_path / "clustered.mmc")
    with Snapshot.open(tmp_path / "both.mmc") as snapshot:
        assert snapshot.layout.collections["items"].sketches["v"].curves
        (query,) = near(vectors, 1)
        found = snapshot.nearest(query, recall=0.9)
        assert all(
            scored in zip(*told(snapshot.nearest(query, N)), strict=True) for scored in zip(*told(found), strict=True)
        )


def test_rows_that_are_dropped_are_not_in_the_sketch(tmp_path):
    """The file has what a build without them has."""
    schema = Schema("items", embedding="v", sketch=True, on_duplicate="last")
    rows = records(alike(5000))
    again = [{**rows[i], "v": None if i == 4 else alike(1, seed=i)[0]} for i in range(0, 40, 4)]
    mmcache.build(tmp_path / "dropped.mmc", [*rows, *again], schema)
    mmcache.build(tmp_path / "plain.mmc", [row for row in rows if row["id"] not in range(0, 40, 4)] + again, schema)
    parts = [Image.of((tmp_path / name).read_bytes()) for name in ("dropped.mmc", "plain.mmc")]
    assert parts[0].part("0/sketch.0") == parts[1].part("0/sketch.0")
    assert parts[0].meta["collections"][0]["sketches"] == parts[1].meta["collections"][0]["sketches"]


def test_each_embedding_has_a_sketch_and_a_curve_of_its_own_metric(path):
    schema = Schema("items", embedding=("a", "b"), metric=("cosine", "euclidean"), sketch=True)
    one, other = alike(5000, 64), alike(5000, 32, seed=5)
    mmcache.build(path, [{"id": i, "a": one[i], "b": other[i]} for i in range(5000)], schema)
    with Snapshot.open(path) as snapshot:
        assert snapshot.layout.collections["items"].sketches.keys() == {"a", "b"}
        for field, queries in (("a", near(one, 3)), ("b", near(other, 3))):
            for query in queries:
                scores = dict(zip(*told(snapshot.nearest(query, 5000, embedding=field)), strict=True))
                found = snapshot.nearest(query, embedding=field, recall=0.2)
                assert [scores[key] for key in ids(found)] == found.scores.tolist()
        with pytest.raises(RecallError, match="'euclidean', not for 'cosine'"):
            snapshot.nearest(other[0], embedding="b", metric="cosine", recall=0.2)


def test_a_file_with_nan_in_its_embeddings_is_searched_exactly(path):
    vectors = alike(5000)
    vectors[17, 3] = np.nan
    mmcache.build(path, records(vectors), Schema("items", embedding="v", allow_nan=True, sketch=True))
    with Snapshot.open(path) as snapshot:
        assert told(snapshot.nearest(vectors[18], 50, recall=0.1)) == told(snapshot.nearest(vectors[18], 50))


# --- damage and hostile bytes -----------------------------------------------------------------------------------------


def test_a_damaged_sketch_is_damage_as_any_other(file, tmp_path, vectors):
    with Snapshot.open(file) as snapshot:
        at = snapshot.layout.collections["items"].sections["sketch.v"].offset
    damaged = bytearray(file.read_bytes())
    damaged[at + 70_000] ^= 1
    path = tmp_path / "damaged.mmc"
    path.write_bytes(damaged)
    (query,) = near(vectors, 1)
    with Snapshot.open(path, verify="lazy") as snapshot:
        with pytest.raises(CorruptFileError):
            snapshot.nearest(query, recall=0.5)
        assert len(snapshot.nearest(query)) == 10, "an exact search does not read it"
    with pytest.raises(CorruptFileError):
        Snapshot.open(path, verify="full")


def test_a_cache_goes_on_to_the_source_where_a_sketch_is_damaged(path, vectors):
    source = IterableSource(records(vectors), SKETCHED)
    mmcache.build(path, source)
    (query,) = near(vectors, 1)
    with Snapshot.open(path) as snapshot:
        at = snapshot.layout.collections["items"].sections["sketch.v"].offset
        expected = told(snapshot.nearest(query))
    damaged = bytearray(path.read_bytes())
    damaged[at + 70_000] ^= 1
    path.chmod(0o600)
    path.write_bytes(damaged)
    with mmcache.open(path, source, executor="external", verify="lazy") as cache:
        assert told(cache.nearest(query, recall=0.5)) == expected
        assert cache.stats().corruptions == 1


@pytest.mark.parametrize("kind", ["zeros", "ones", "random", "turned"])
def test_a_sketch_of_any_bytes_gives_rows_with_their_own_scores(file, tmp_path, vectors, kind):
    image = Image.of(file.read_bytes())
    part = image.part("0/sketch.0")
    size = len(part.data)
    part.data = {
        "zeros": bytearray(size),
        "ones": bytearray(b"\xff" * size),
        "random": bytearray(np.random.default_rng(0).bytes(size)),
        "turned": part.data[::-1],
    }[kind]
    with Snapshot.open(rewritten(file, tmp_path / "hostile.mmc", image)) as snapshot:
        for query in near(vectors, 3):
            scores = dict(zip(*told(snapshot.nearest(query, N)), strict=True))
            found = snapshot.nearest(query, 30, recall=0.5)
            assert len(found) == 30
            assert [scores[key] for key in ids(found)] == found.scores.tolist()


def curves(*points: Any, k: Any = 10, queries: Any = 200) -> list[Any]:
    return [[queries, [[k, list(points)]]]]


HOSTILE: list[Any] = [
    *(curves([32, 10_001, 0]), curves([32, 5, 6]), curves([0, 5, 5]), curves([2**17, 5, 5]), curves([32, 5])),
    *(curves([64, 5, 5], [32, 6, 6]), curves([32, 5, 5], [32, 5, 5]), curves([32, 0.5, 0.5]), curves([-1, 5, 5])),
    *(
        curves(k="ten"),
        curves(k=-1),
        curves(queries=None),
        curves(7),
        [[200]],
        [7],
        [[]],
        {},
        "text",
        7,
        None,
        [None] * 2,
    ),
]


@pytest.mark.parametrize("plain", HOSTILE, ids=str)
def test_a_curve_that_is_none_is_corrupt(file, tmp_path, plain):
    image = Image.of(file.read_bytes())
    meta = image.meta
    meta["collections"][0]["sketches"] = plain
    image.meta = meta
    with pytest.raises(CorruptFileError, match="meta"):
        Snapshot.open(rewritten(file, tmp_path / "hostile.mmc", image))


@pytest.mark.parametrize("candidates", [1, 7, 2_000, 65_536])
def test_a_curve_that_lies_gives_rows_with_their_own_scores(file, tmp_path, vectors, candidates):
    image = Image.of(file.read_bytes())
    meta = image.meta
    meta["collections"][0]["sketches"] = curves([candidates, 10_000, 10_000])
    image.meta = meta
    with Snapshot.open(rewritten(file, tmp_path / "lying.mmc", image)) as snapshot:
        (query,) = near(vectors, 1)
        scores = dict(zip(*told(snapshot.nearest(query, N)), strict=True))
        found = snapshot.nearest(query, recall=0.9999)
        assert len(found) == 10, "never fewer than there are"
        assert [scores[key] for key in ids(found)] == found.scores.tolist()


def test_a_file_whose_curve_is_missing_is_searched_exactly(file, tmp_path, vectors):
    for plain in ([], [None], [[0, []]], curves()):
        image = Image.of(file.read_bytes())
        meta = image.meta
        meta["collections"][0]["sketches"] = plain
        image.meta = meta
        with Snapshot.open(rewritten(file, tmp_path / "none.mmc", image)) as snapshot:
            if plain == curves():
                with pytest.raises(RecallError, match="promises for k=10, 0"):
                    snapshot.nearest(vectors[1], recall=0.5)
            else:
                assert told(snapshot.nearest(vectors[1], recall=0.5)) == told(snapshot.nearest(vectors[1]))


# --- caches -----------------------------------------------------------------------------------------------------------


def test_dirty_records_are_scored_as_the_source_has_them(tmp_path, vectors):
    rows = {row["id"]: row for row in records(vectors)}
    (query,) = near(vectors, 1)

    def load() -> list[dict[str, Any]]:
        return list(rows.values())

    source = mmcache.CallableSource(load, SKETCHED)
    with mmcache.open(tmp_path / "items.mmc", source, executor="external", check_interval=3600.0) as cache:
        before = cache.nearest(query, 20, recall=0.9)
        moved, gone, new = 4000, ids(before)[0], 10**6
        rows[moved] = {**rows[moved], "v": query}
        rows[new] = {"id": new, "half": 0, "few": 0, "v": query}
        del rows[gone]
        cache.invalidate([moved, gone, new])
        found = cache.nearest(query, 20, recall=0.9)
        assert ids(found)[:2] == [moved, new]
        assert gone not in ids(found)
        scores = dict(zip(*told(cache.nearest(query, N)), strict=True))
        assert [scores[key] for key in ids(found)] == found.scores.tolist()
        assert ids(found)[2:] == ids(before)[1:19], "the others are the same candidates"
        assert told(cache.collection("items").nearest(query, 20, recall=0.9)) == told(found)
        assert told(cache.where().nearest(query, 20, recall=0.9)) == told(found)
        with cache.pinned() as snapshot:
            assert told(snapshot.nearest(query, 20, recall=0.9)) == told(before)


def test_records_that_have_expired_are_no_answer(path, clock):
    """Until then their rows are candidates."""
    clock.stand(1e9)
    vectors = alike(5000)
    schema = Schema("items", embedding="v", sketch=True, expires="until")
    rows = [{"id": i, "until": 1e9 + (1000 if i % 3 else 10), "v": vector} for i, vector in enumerate(vectors)]
    source = IterableSource(rows, schema)
    mmcache.build(path, source)
    clock.stand(1e9 + 100)
    with mmcache.open(path, source, executor="external") as cache:
        for query in near(vectors, 5):
            found = cache.nearest(query, 30, recall=0.5)
            assert len(found) == 30
            assert all(key % 3 for key in ids(found))


@pytest.mark.parametrize("sketch", [True, False])
def test_the_source_answers_exactly_where_the_file_may_not(tmp_path, vectors, sketch):
    schema = Schema("items", embedding="v", sketch=sketch)
    rows = records(vectors[:600])
    with mmcache.open(tmp_path / "no.mmc", IterableSource(rows, schema), executor="external", build=False) as cache:
        if sketch:
            assert told(cache.nearest(vectors[1], recall=0.5)) == told(cache.nearest(vectors[1]))
        else:
            with pytest.raises(RecallError, match="no sketch"):
                cache.nearest(vectors[1], recall=0.5)


def test_a_version_that_asks_for_a_sketch_is_served_by_a_file_without(path, vectors):
    """A deploy rolls: the file of the old version answers exactly, until a build by the new one."""
    old, rows = Schema("items", index=("half",), embedding="v"), records(vectors)
    new = Schema("items", index=("half",), embedding="v", sketch=True)

    def load() -> list[dict[str, Any]]:
        return rows

    mmcache.build(path, mmcache.CallableSource(load, old))
    (query,) = near(vectors, 1)
    with (
        mmcache.open(path, mmcache.CallableSource(load, new), executor="external", check_interval=0.0) as cache,
        mmcache.open(path, mmcache.CallableSource(load, old), executor="external", check_interval=0.0) as other,
    ):
        hits = cache.stats().hits
        assert told(cache.nearest(query, recall=0.5)) == told(cache.nearest(query))
        assert cache.stats().hits == hits + 2, "by the file"
        cache.rebuild()
        cache.refresh(), other.refresh()
        found = cache.nearest(query, recall=0.5)
        with Snapshot.open(path) as snapshot:
            assert snapshot.schema.sketch
            assert told(found) == told(snapshot.nearest(query, recall=0.5))
        assert told(other.nearest(query)) == told(cache.nearest(query))
        with pytest.raises(RecallError, match="no sketch"):
            other.nearest(query, recall=0.5)
        other.rebuild()
        assert cache.nearest(query, recall=0.5).ids == ids(found), "a build by the old version keeps it"


def test_rows_that_are_left_out_are_not_in_the_sketch(tmp_path):
    """A run of rows is taken back where one of them cannot be taken."""
    schema = Schema("items", embedding="v", sketch=True, on_invalid="skip")
    rows = records(alike(5000))
    rows[0]["v"] = rows[1]["v"] = None
    bad = [{**row, "id": f"bad{i}", "v": [1.0]} for i, row in enumerate(rows[::611])]
    mixed = [one for i, row in enumerate(rows) for one in ([row] if i % 611 else [bad[i // 611], row])]
    mmcache.build(tmp_path / "mixed.mmc", mixed[1:], schema)
    mmcache.build(tmp_path / "plain.mmc", rows, schema)
    parts = [Image.of((tmp_path / name).read_bytes()) for name in ("mixed.mmc", "plain.mmc")]
    assert parts[0].meta["collections"][0]["left_out"][0] == 8
    assert parts[0].part("0/sketch.0") == parts[1].part("0/sketch.0")
    assert parts[0].meta["collections"][0]["sketches"] == parts[1].meta["collections"][0]["sketches"]


def test_shards_write_the_sketch_of_one_build(tmp_path, vectors):
    for i in range(3):
        lines = [{**row, "v": None if row["v"] is None else row["v"].tolist()} for row in records(vectors)[i::3]]
        (tmp_path / f"{i}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = mmcache.JSONLinesSource(str(tmp_path / "*.jsonl"), SKETCHED)
    mmcache.build(tmp_path / "one.mmc", source)
    with ThreadPoolExecutor(2) as executor:
        mmcache.build(tmp_path / "sharded.mmc", source, shards=2, executor=executor)
    assert content(tmp_path / "sharded.mmc") == content(tmp_path / "one.mmc")
    with Snapshot.open(tmp_path / "sharded.mmc") as snapshot:
        assert snapshot.layout.collections["items"].sketches["v"].curves
