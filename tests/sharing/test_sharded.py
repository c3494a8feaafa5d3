"""A build in shards has the bytes of one without, by whichever executor; and what it does when a worker fails."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from pyarrow import parquet

import mmcache
from mmcache import (
    BaseSource,
    BuildError,
    IterableSource,
    JSONLinesSource,
    ParquetSource,
    Schema,
    Snapshot,
    Source,
    SourceError,
    SQLiteSource,
)
from mmcache.cli import main
from mmcache.sources.mappings import LOOKED_AT
from mmcache.sources.slices import balanced
from tests.storage.test_merging import tables
from tests.support import stores
from tests.support.hosts import Hosts, hosts

pytestmark = pytest.mark.usefixtures("no_disk_wait")

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
SCHEMA = Schema("t", index=("kind", "n"), embedding="v", dim=2)
HIDDEN = (".tmp",)


class Here(Executor):
    """Runs each task at once, in this thread."""

    def __init__(self) -> None:
        self.submitted = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += 1
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 (an executor hands it on)
            future.set_exception(error)
        return future


def row(i: int) -> Row:
    kind = None if i % 11 == 0 else f"x{i * 7 % 5}"
    return {"id": f"k{i}", "kind": kind, "n": i % 50, "m": {"a": i} if i % 4 else None, "v": [float(i), 1.0]}


ROWS = [row(i) for i in range(2500)]


def content(path: Any) -> bytes:
    return Path(path).read_bytes()[256:]


def leftovers(at: Path) -> list[str]:
    return [name for name in os.listdir(at) if name.endswith(HIDDEN)]


def check(
    at: Path,
    source: Source,
    *,
    shards: int = 5,
    executor: Executor | None = None,
    segments: str | None = None,
    **options: Any,
) -> Any:
    """Both builds have the same bytes, report the same, and leave nothing behind."""
    whole = mmcache.build(at / "whole.mmc", source, **options)
    cut: dict[str, Any] = {"shards": shards, "executor": executor or Here(), "segments": segments}
    built = mmcache.build(at / "cut.mmc", source, **cut, **options)
    assert content(at / "cut.mmc") == content(at / "whole.mmc")
    assert (built.build_id, built.sha256) == (whole.build_id, whole.sha256)
    assert (built.records, built.left_out, built.embeddings) == (whole.records, whole.left_out, whole.embeddings)
    assert not leftovers(at)
    with Snapshot.open(at / "cut.mmc") as joined, Snapshot.open(at / "whole.mmc") as one:
        assert joined.layout.header.fingerprint == one.layout.header.fingerprint
    return built


# Sources that can be cut ----------------------------------------------------------------------------------------------


def database(at: Path, rows: list[Row] = ROWS) -> Path:
    path = at / "t.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (id TEXT, kind TEXT, n INT, m TEXT, v BLOB)")
        values = [(r["id"], r["kind"], r["n"], json.dumps(r["m"]), np.array(r["v"], "<f4").tobytes()) for r in rows]
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", values)
    db.close()
    return path


def from_sqlite(at: Path) -> Source:
    return SQLiteSource(database(at), Schema("t", key="id", index=("kind", "m.a"), json=("m",), embedding="v", dim=2))


def from_list(_: Path) -> Source:
    return IterableSource(ROWS, SCHEMA)


def from_arrays(_: Path) -> Source:
    bare = [{name: value for name, value in r.items() if name != "v"} for r in ROWS]
    return IterableSource(bare, SCHEMA, embeddings=np.array([r["v"] for r in ROWS], "f4"))


def from_arrow(_: Path) -> Source:
    return IterableSource(pa.Table.from_pylist(ROWS), SCHEMA)


def from_parquet(at: Path) -> Source:
    parquet.write_table(pa.Table.from_pylist(ROWS), at / "t.parquet", row_group_size=170)
    return ParquetSource(at / "t.parquet", SCHEMA)


def from_partitions(at: Path) -> Source:
    return partitions(at, ROWS, SCHEMA, row_group_size=300)


def partitions(at: Path, rows: list[dict[str, Any]], schema: Schema, *, row_group_size: int) -> Source:
    """A third of the rows in each of three files."""
    third = len(rows) // 3
    for year in range(3):
        (at / "set" / f"year={year}").mkdir(parents=True)
        some = pa.Table.from_pylist(rows[year * third : year * third + third])
        parquet.write_table(some, at / "set" / f"year={year}" / "p.parquet", row_group_size=row_group_size)
    return ParquetSource(at / "set", schema)


def from_lines(at: Path) -> Source:
    (at / "t.jsonl").write_text("\n".join(json.dumps(r) for r in ROWS))
    return JSONLinesSource(at / "t.jsonl", SCHEMA)


CUT = [from_sqlite, from_list, from_arrays, from_arrow, from_parquet, from_partitions, from_lines]


@pytest.mark.parametrize("make", CUT)
def test_shards_give_the_bytes_of_one_build(tmp_path, make):
    executor = Here()
    check(tmp_path, make(tmp_path), executor=executor, cluster_by="kind", metadata={"a": 1})
    assert executor.submitted > 1


@given(tables(every=True), st.integers(1, 4), st.sampled_from([None, "kind"]))
def test_any_records_in_any_shards_give_the_bytes_of_one_build(place, table, shards, cluster_by):
    schema, rows = table
    source = IterableSource(rows, schema)
    try:
        mmcache.build(place / "whole.mmc", source, cluster_by=cluster_by)
    except BuildError:
        with pytest.raises(BuildError):
            mmcache.build(place / "cut.mmc", source, cluster_by=cluster_by, shards=shards, executor=Here())
    else:
        check(place, source, shards=shards, cluster_by=cluster_by)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.mark.parametrize("shards", [1, 2, 7, 100])
def test_any_number_of_shards_gives_the_same_bytes(tmp_path, shards):
    check(tmp_path, from_sqlite(tmp_path), shards=shards)


def test_rowids_that_lie_apart_and_empty_tables_are_cut(tmp_path):
    path = database(tmp_path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE t SET rowid = -rowid WHERE n = 3")
        db.execute("UPDATE t SET rowid = 9223372036854775807 WHERE rowid = 5")
        db.execute("CREATE TABLE u (id TEXT)")
    db.close()
    check(tmp_path, SQLiteSource(path, Schema("t", key="id"), Schema("u", key="id")))


BAD: list[Row] = [
    {"id": f"k{i}" if i % 9 else None, "n": i, "v": [float(i), 1.0] if i % 7 else [1.0]} for i in range(300)
]
LENIENT = Schema("t", index=("n",), embedding="v", dim=2, on_invalid="skip")


def bad_list(_: Path) -> Source:
    return IterableSource(BAD, LENIENT)


def bad_arrow(_: Path) -> Source:
    return IterableSource(pa.Table.from_pylist(BAD), LENIENT)


def bad_parquet(at: Path) -> Source:
    parquet.write_table(pa.Table.from_pylist(BAD), at / "t.parquet", row_group_size=23)
    return ParquetSource(at / "t.parquet", LENIENT)


def bad_partitions(at: Path) -> Source:
    return partitions(at, BAD, LENIENT, row_group_size=30)


def bad_lines(at: Path) -> Source:
    lines = [json.dumps(r) if i % 13 else "{" for i, r in enumerate(BAD)]
    lines[100:100] = ["", "\ufeff" + lines[101]]
    (at / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return JSONLinesSource(at / "t.jsonl", LENIENT)


def bad_files_of_lines(at: Path) -> Source:
    (at / "lines").mkdir()
    for i in range(3):
        some = [json.dumps(r) if n % 13 else "{" for n, r in enumerate(BAD[i * 100 : i * 100 + 100])]
        (at / "lines" / f"{i}.jsonl").write_text("\n".join(some))
    return JSONLinesSource(at / "lines", LENIENT)


@pytest.mark.parametrize("make", [bad_list, bad_arrow, bad_parquet, bad_partitions, bad_lines, bad_files_of_lines])
@pytest.mark.parametrize("shards", [2, 7])
def test_a_bad_row_is_named_by_its_place_in_the_whole(tmp_path, make, shards):
    report = check(tmp_path, make(tmp_path), shards=shards)
    assert report.left_out["t"].invalid > 60


def test_lines_are_named_wherever_a_file_is_cut(tmp_path):
    lines = [json.dumps({"id": i}) if i % 3 else "{" for i in range(12)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    for shards in range(2, 40):
        check(tmp_path, JSONLinesSource(tmp_path / "t.jsonl", Schema("t", on_invalid="skip")), shards=shards)


def test_rows_that_were_left_out_count_for_the_keys_of_other_shards(tmp_path):
    """The first row of a key is bad, so that none counts; its shard alone knows of it."""
    bad = [dict(row(i), kind={"no": "term"}) for i in range(30)]
    for rule in ("first", "last"):
        schema = Schema("t", index=("kind",), embedding="v", on_invalid="skip", on_duplicate=rule)
        report = check(tmp_path, IterableSource([*bad, *ROWS[:900], *bad[::-1]], schema), cluster_by="kind")
        assert report.left_out["t"].invalid == 60
        assert report.left_out["t"].duplicates == 30


def out_of_order(path: str, at: Path) -> Source:
    """The first record of these fields is in the first shard, and is left out there; the others have another order."""
    bad: list[dict[str, Any]] = [{"id": [] if i else None, "b": 1, "a": 2} for i in range(2)]
    rows = [{"id": f"k{i}", "z": i} for i in range(10)] + bad + [{"id": f"m{i}", "a": i, "b": i} for i in range(20)]
    schema = Schema("t", on_invalid="skip")
    if path == "lines":
        (at / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return JSONLinesSource(at / "t.jsonl", schema)
    return IterableSource(rows, schema)


@pytest.mark.parametrize("path", ["lines", "list"])
@pytest.mark.parametrize("shards", [2, 3, 7])
def test_the_order_of_fields_is_that_of_the_first_record_though_it_is_left_out(tmp_path, path, shards):
    check(tmp_path, out_of_order(path, tmp_path), shards=shards)
    with Snapshot.open(tmp_path / "cut.mmc") as snapshot:
        assert list(snapshot["m3"]) == ["id", "b", "a"]


def test_a_key_of_several_fields_keeps_the_order_of_a_record_that_is_left_out(tmp_path):
    rows = [{"c": 1, "k": None, "b": 1, "l": 2}] + [{"b": i, "c": i, "k": i, "l": "x"} for i in range(20)]
    check(tmp_path, IterableSource(rows, Schema("t", key=("k", "l"), on_invalid="skip")), shards=3)


@pytest.mark.parametrize("make", ["list", "table"])
def test_an_embedding_of_nan_says_nothing_of_how_many_numbers_the_others_have(tmp_path, make):
    vectors = [[float("nan")] * 3, [float("inf"), 1.0, 1.0, 1.0], *([float(i), 1.0] for i in range(30))]
    schema = Schema("t", embedding="v", on_invalid="skip")
    source: Source = IterableSource([{"id": i, "v": v} for i, v in enumerate(vectors)], schema)
    if make == "table":
        with sqlite3.connect(tmp_path / "t.db") as db:
            db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
            db.executemany("INSERT INTO t VALUES (?, ?)", [(i, np.array(v, "<f4")) for i, v in enumerate(vectors)])
        db.close()
        source = SQLiteSource(tmp_path / "t.db", schema)
    for shards in (1, 2, 5):
        report = check(tmp_path, source, shards=shards)
        assert report.left_out["t"].invalid == 2
        assert report.embeddings["t"]["v"].dim == 2
    with pytest.raises(BuildError, match=r"key 0: the embedding has NaN"):
        mmcache.build(tmp_path / "x.mmc", source, on_invalid="raise")
    with mmcache.open(tmp_path / "cut.mmc", source, build=False) as cache:
        cache.invalidate()
        assert len(cache.where()) == 30  # as the source has them


def test_what_expires_is_judged_by_one_moment(tmp_path):
    rows = [{"id": i, "end": 0 if i % 3 else None} for i in range(300)]
    report = check(tmp_path, IterableSource(rows, Schema("t", expires="end")))
    assert report.records == {"t": 100}


def test_a_field_that_is_misspelt_is_found_as_in_one_build(tmp_path):
    for rows in (ROWS, ROWS[:20], [dict(row, late=1) if i > 15 else row for i, row in enumerate(ROWS[:20])]):
        source = IterableSource(rows, Schema("t", index=("late",)))
        if any("late" in record for record in rows):
            check(tmp_path, source, shards=4)
            continue
        reasons = []
        both: tuple[dict[str, Any], ...] = ({}, {"shards": 2, "executor": Here()})
        for options in both:
            with pytest.raises(BuildError, match="has 'late'") as found:
                mmcache.build(tmp_path / "x.mmc", source, **options)
            reasons.append(found.value.reason)
        assert reasons[0] == reasons[1]
    assert len(ROWS) > LOOKED_AT


def test_a_source_of_ones_own_says_how_it_is_cut(tmp_path):
    built = check(tmp_path, Own(0, 100), shards=3)
    assert built.records == {"t": 100}
    with pytest.raises(SourceError, match="other schemas"):
        mmcache.build(tmp_path / "x.mmc", Own(0, 100, wrong=True), shards=3, executor=Here())


class Own(BaseSource[Any]):
    """Numbers, in shards that are made by hand."""

    def __init__(self, begin: int, end: int, *, wrong: bool = False, name: str = "t") -> None:
        super().__init__(Schema(name))
        self.begin, self.end, self.wrong = begin, end, wrong

    @contextmanager
    def read(self) -> Iterator[Any]:
        yield self.reading([{"id": i} for i in range(self.begin, self.end)])

    def shards(self, n: int) -> list[Own]:
        step = -(-(self.end - self.begin) // n)
        name = "u" if self.wrong else "t"
        return [Own(at, min(at + step, self.end), name=name) for at in range(self.begin, self.end, step)]


def test_runs_of_pieces_are_balanced_and_complete():
    rng = np.random.default_rng(3)
    for _ in range(200):
        weights = rng.integers(0, 9, int(rng.integers(1, 30))).tolist()
        n = int(rng.integers(1, 12))
        runs = balanced(weights, n)
        assert [i for run in runs for i in run] == list(range(len(weights)))
        assert 1 <= len(runs) <= n
        assert all(runs)


# Sources that cannot --------------------------------------------------------------------------------------------------


def test_what_cannot_be_cut_is_refused_with_the_way_out(tmp_path):
    path = database(tmp_path)
    (tmp_path / "t.csv").write_text("id\n1\n")
    view = SQLiteSource(path, Schema("v", key="id", query="SELECT id FROM t"))
    for source in (view, mmcache.CSVSource(tmp_path / "t.csv", Schema("t")), IterableSource(iter(ROWS), SCHEMA)):
        with pytest.raises(SourceError, match=r"cannot be (read in shards|cut)"):
            mmcache.build(tmp_path / "x.mmc", source, shards=2, executor=Here())
    assert not (tmp_path / "x.mmc").exists()
    wrong: list[dict[str, Any]] = [
        {"shards": 2},
        {"executor": Here()},
        {"segments": tmp_path},
        {"shards": 2, "executor": 7},
    ]
    for options in wrong:
        with pytest.raises(TypeError):
            mmcache.build(tmp_path / "x.mmc", ROWS, SCHEMA, **options)
    with pytest.raises(ValueError, match="shards must be"):
        mmcache.build(tmp_path / "x.mmc", ROWS, SCHEMA, shards=0, executor=Here())


def test_shards_that_guess_otherwise_are_refused_with_the_way_out(tmp_path):
    rows = [{"id": i, "v": [1.0] * (2 if i < 50 else 3)} for i in range(100)]
    source = IterableSource(rows, Schema("t", embedding="v", on_invalid="skip"))
    with pytest.raises(BuildError, match=r"shard 1 of 2 has embeddings 'v' of 3 numbers, and shard 0 of 2 of 2.*dim="):
        mmcache.build(tmp_path / "x.mmc", source, shards=2, executor=Here())
    # No row of the first shard is taken, but one build of all would have gone by its embeddings.
    bad: list[dict[str, Any]] = [
        {"id": i, "v": [1.0] * (2 if i < 50 else 3), "kind": {} if i < 50 else 1} for i in range(100)
    ]
    source = IterableSource(bad, Schema("t", index=("kind",), embedding="v", on_invalid="skip"))
    with pytest.raises(BuildError, match=r"'v' of 3 numbers, and shard 0 of 2 of 2.*dim="):
        mmcache.build(tmp_path / "x.mmc", source, shards=2, executor=Here())
    assert not leftovers(tmp_path)


# What happens meanwhile -----------------------------------------------------------------------------------------------


class Meddling(Here):
    """Does something before one of the shards is read."""

    def __init__(self, at: int, what: Any) -> None:
        super().__init__()
        self.at, self.what = at, what

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.submitted == self.at:
            self.what()
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize("at", [0, 2])
def test_a_source_that_is_written_to_meanwhile_is_refused(tmp_path, at):
    source = from_sqlite(tmp_path)
    mmcache.build(tmp_path / "x.mmc", source)

    def write() -> None:
        with sqlite3.connect(tmp_path / "t.db") as db:
            db.execute("UPDATE t SET n = n + 1")
        db.close()

    with pytest.raises(SourceError, match="was written to while its shards were read"):
        mmcache.build(tmp_path / "x.mmc", source, shards=4, executor=Meddling(at, write))
    assert not leftovers(tmp_path)
    with Snapshot.open(tmp_path / "x.mmc") as snapshot:
        assert snapshot.generation == 1
    check(tmp_path, source)


def test_an_error_of_one_shard_is_the_error_of_the_build(tmp_path):
    rows = [*ROWS[:700], {"id": "bad", "kind": {"no": "term"}, "v": None}, *ROWS[700:]]
    with pytest.raises(BuildError, match=r"'bad'.*indexed field 'kind'"):
        mmcache.build(tmp_path / "x.mmc", IterableSource(rows, SCHEMA), shards=4, executor=Here())
    assert not leftovers(tmp_path)


def test_progress_tells_of_all_shards(tmp_path):
    told: list[Any] = []
    mmcache.build(
        tmp_path / "x.mmc", from_list(tmp_path), shards=4, executor=Here(), progress=lambda *step: told.append(step)
    )
    assert [step[1] for step in told if step[0] == "t"] == [625, 1250, 1875, 2500]
    assert [step[2] for step in told if step[0] == "t"] == [2500] * 4
    assert told[-1][0] == "write"


def test_segments_may_wait_in_another_directory(tmp_path):
    (tmp_path / "shared").mkdir()
    seen: list[list[str]] = []
    executor = Meddling(1, lambda: seen.append(leftovers(tmp_path / "shared")))
    mmcache.build(tmp_path / "x.mmc", from_list(tmp_path), shards=3, executor=executor, segments=tmp_path / "shared")
    assert len(seen[0]) == 1
    assert not leftovers(tmp_path / "shared")


# Segments that travel through a store ---------------------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path: Path) -> str:
    pytest.importorskip("obstore", reason="the extra remote is not installed")
    return f"file://{tmp_path}/store/scratch"


def objects(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_segments_travel_through_a_store(tmp_path, scratch):
    seen: list[list[str]] = []
    executor, source = Meddling(2, lambda: seen.append(objects(tmp_path))), from_sqlite(tmp_path)
    check(tmp_path, source, executor=executor, segments=scratch, cluster_by="kind")
    assert [len(names) for names in seen] == [2]
    assert not objects(tmp_path)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        check(tmp_path, source, executor=processes, segments=scratch)
    assert not objects(tmp_path)


def test_a_segment_that_is_damaged_or_lost_on_its_way_fails_the_build(tmp_path, scratch):
    source = from_list(tmp_path)
    mmcache.build(tmp_path / "x.mmc", [{"id": 0}], Schema("t"))

    def flip() -> None:
        (path,) = (tmp_path / "store").rglob("000000-*.mmc")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def lose() -> None:
        (path,) = (tmp_path / "store").rglob("000000-*.mmc")
        path.unlink()

    for what, kind in ((flip, mmcache.CorruptFileError), (lose, mmcache.StoreError)):
        with pytest.raises(kind, match=r"checksum|is gone"):
            mmcache.build(tmp_path / "x.mmc", source, shards=3, executor=Meddling(2, what), segments=scratch)
        assert not objects(tmp_path)
        assert not leftovers(tmp_path)
        with Snapshot.open(tmp_path / "x.mmc") as snapshot:
            assert (snapshot.generation, list(snapshot)) == (1, [0])


def test_segments_of_dead_builds_go_after_a_day_and_those_of_others_stay(tmp_path, scratch):
    directory = tmp_path / "store" / "scratch" / "segments" / "another"
    directory.mkdir(parents=True)
    for name, age in (("dead.mmc", 25 * 3600), ("living.mmc", 23 * 3600)):
        (directory / name).write_bytes(b"a segment")
        os.utime(directory / name, (time.time() - age,) * 2)
    mmcache.build(tmp_path / "x.mmc", from_list(tmp_path), shards=3, executor=Here(), segments=scratch)
    assert objects(tmp_path) == ["living.mmc"]


def test_a_store_for_segments_that_is_none_is_refused_at_once(tmp_path):
    executor = Here()
    for url in ("ftp://host/x", "s3://"):
        with pytest.raises(mmcache.StoreError):
            mmcache.build(tmp_path / "x.mmc", ROWS, SCHEMA, shards=2, executor=executor, segments=url)
    assert executor.submitted == 0


def test_what_a_killed_build_left_is_swept_by_the_next(tmp_path):
    class Dies(BaseException):
        pass

    def die() -> None:
        raise Dies

    (tmp_path / f".x.mmc.{'0' * 16}.tmp").write_bytes(b"a segment")
    mmcache.build(tmp_path / "x.mmc", from_list(tmp_path), shards=3, executor=Here())
    assert not leftovers(tmp_path)
    with pytest.raises(Dies):
        mmcache.build(tmp_path / "x.mmc", from_list(tmp_path), shards=3, executor=Meddling(2, die))
    assert not leftovers(tmp_path)


# Processes ------------------------------------------------------------------------------------------------------------


def test_threads_and_processes_build_shards(tmp_path):
    source = from_sqlite(tmp_path)
    with ThreadPoolExecutor(2) as threads:
        check(tmp_path, source, executor=threads)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        check(tmp_path, source, executor=processes, cluster_by="kind")


class Deadly(BaseSource[Any]):
    """Kills the process that reads it, unless that is the one that made it."""

    def __init__(self) -> None:
        super().__init__(Schema("t"))
        self.maker = os.getpid()

    @contextmanager
    def read(self) -> Iterator[Any]:
        if os.getpid() != self.maker:
            os.kill(os.getpid(), signal.SIGKILL)
        yield self.reading([{"id": 1}])

    def shards(self, n: int) -> list[Deadly]:
        return [self] * n


def test_a_killed_worker_fails_the_build_and_nothing_else(tmp_path):
    mmcache.build(tmp_path / "x.mmc", [{"id": 0}], Schema("t"))
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes,
        pytest.raises(SourceError, match=r"the executor lost shard \d of 2 .*a worker was killed"),
    ):
        mmcache.build(tmp_path / "x.mmc", Deadly(), shards=2, executor=processes)
    with Snapshot.open(tmp_path / "x.mmc") as snapshot:
        assert (snapshot.generation, list(snapshot)) == (1, [0])
    mmcache.build(tmp_path / "x.mmc", [{"id": 2}], Schema("t"))
    assert not leftovers(tmp_path)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # of what the cluster imports
@pytest.mark.parametrize("segments", [None, "s3"])
def test_dask_builds_shards(tmp_path, monkeypatch, segments):
    distributed = pytest.importorskip("distributed")
    source = from_sqlite(tmp_path)
    with contextlib.ExitStack() as held:
        url = None
        if segments is not None:
            for name, value in stores.environment(held.enter_context(stores.moto())).items():
                monkeypatch.setenv(name, value)
            url = "s3://bucket/scratch"
        cluster = held.enter_context(distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None))
        client = held.enter_context(distributed.Client(cluster))
        check(tmp_path, source, executor=client.get_executor(pure=False), cluster_by="kind", segments=url)


@contextlib.contextmanager
def cluster_of(machines: Hosts, at: Path, hidden: Path) -> Iterator[str]:
    """The address of a scheduler here, with a worker on each host; none of them sees what is below `hidden`."""
    port = stores.free_port()
    address = f"tcp://{machines.address}:{port}"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", machines.address]
    processes = [subprocess.Popen([*command, "--port", str(port), "--no-dashboard"], text=True, **quiet)]
    try:
        for i, machine in enumerate(machines.all):
            (at / f"host-{i}").mkdir()
            worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
            worker += ["--nthreads", "1", "--local-directory", str(at / f"host-{i}")]
            script = f'mount -t tmpfs tmpfs "{hidden}" && exec "$@"'
            processes.append(
                machine.run(
                    ["unshare", "-m", "sh", "-c", script, "sh", *worker],
                    env=os.environ | {"TMPDIR": str(at / f"host-{i}"), "PYTHONPATH": str(ROOT)},
                    **quiet,
                )
            )
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # of what the cluster imports
def test_hosts_that_share_no_disk_build_from_a_store_through_a_store(tmp_path, monkeypatch, capsys):
    """Each in namespaces of its own: network, and files. By the command."""
    distributed = pytest.importorskip("distributed")
    obstore = pytest.importorskip("obstore.store")
    (tmp_path / "build").mkdir()
    with hosts(2) as machines, stores.moto(machines.address) as endpoint:
        for name, value in stores.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet", row_group_size=170)
        obstore.from_url("s3://bucket").put("data/t.parquet", (tmp_path / "t.parquet").read_bytes())
        source = ParquetSource("s3://bucket/data", SCHEMA)
        with cluster_of(machines, tmp_path, tmp_path / "build") as address:
            with distributed.Client(address, timeout=60) as client:
                client.wait_for_workers(2, timeout=60)
                executor = client.get_executor(pure=False)
                check(tmp_path / "build", source, executor=executor, segments="s3://bucket/scratch")
            out = tmp_path / "build" / "command.mmc"
            words = ["s3://bucket/data", "--index", "kind,n", "--embedding", "v", "--dim", "2", "--collection", "t"]
            words = [*words[1:], words[0]]
            assert (
                main(
                    ["build", *words, "-o", str(out), "--shards", "4", "--dask", address, "--segments", "s3://bucket/x"]
                )
                == 0
            )
        assert content(out) == content(tmp_path / "build" / "whole.mmc")
        assert [path for path in obstore.from_url("s3://bucket").list().collect() if "segments" in path["path"]] == []
