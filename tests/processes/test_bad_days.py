"""What goes wrong around a cache: readers go on being answered, and nothing needs a human.

Stopped processes, sources that are locked, gone or garbage, full disks, directories and control pages that vanish,
clocks that jump, bad files in the place of good ones.
"""

# mypy: disable-error-code="misc, unreachable"
# Lambdas that keep a loop's variable, and generators that never get as far as to give anything.

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import math
import os
import shutil
import sqlite3
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, Snapshot, SourceError, SQLiteSource
from tests.support import inside
from tests.support.bank import LINES, NUMBERS, commit, name_of
from tests.support.clock import Clock
from tests.support.crew import (
    Crew,
    SlowSource,
    answers,
    look_around,
    noted,
    number,
    state,
    step_clock,
    threads,
    wait_for_generation,
)
from tests.support.faults import FailName, faults
from tests.support.observe import beside, children_of, failure_of, is_building, logged, mapped_files, open_files, totals
from tests.support.samples import sampled
from tests.support.waits import until, until_none

pytestmark = pytest.mark.usefixtures("no_leaks")

HOUR = 3600.0


def source_of(bank: Path) -> SQLiteSource:
    return SQLiteSource(bank, NUMBERS, timeout=0.2)


def quick(path: Path, bank: Path, **options: Any) -> Any:
    """How a worker opens its cache, to look around twenty times a second."""
    settings: dict[str, Any] = {"check_interval": 0.05, "executor": "thread"} | options
    return lambda: mmcache.open(path, source_of(bank), **settings)


# --- stopped processes ------------------------------------------------------------------------------------------------


def test_a_builder_that_is_stopped_keeps_no_reader_waiting(path: Path, bank: Path, crew: Crew) -> None:
    log, gate = path.with_name("log"), path.with_name("gate")
    source = SlowSource(bank, log=log, gate=gate)
    builder = crew.hire(lambda: mmcache.open(path, source, executor="thread")).opened()
    readers = [crew.hire(quick(path, bank, executor=executor)).opened() for executor in ("thread", "subprocess")]
    gate.touch()
    commit(bank, 1)
    builder("invalidate", hard=True)
    until("it builds", lambda: (builder(look_around), len(noted(log)) == 2)[1])
    builder.stop()
    gate.unlink()
    for content in (2, 3):
        commit(bank, content)
        begun = time.monotonic()
        readers[0]("invalidate", [name_of(0)])
        assert time.monotonic() - begun < 2
        for reader in readers:
            reader.begin(answers, 0.3)
        for reader in readers:
            _, slowest, found = reader.result()
            assert found == {content}
            assert slowest < 1
            assert not children_of(reader.pid)
            assert not reader(threads)
    late = crew.hire(quick(path, bank)).opened(5)
    assert late(number) == 3
    builder.go_on()
    for reader in [*readers, late]:
        until("the file answers", lambda reader=reader: reader(state) in ("fresh", "stale"))
        assert reader(number) == 3
    until("none builds", lambda: not is_building(path))


def test_a_first_builder_that_is_stopped_keeps_each_waiting_once(path: Path, bank: Path, crew: Crew) -> None:
    log, gate = path.with_name("log"), path.with_name("gate")
    gate.touch()
    builder = crew.hire(lambda: mmcache.open(path, SlowSource(bank, log=log, gate=gate)))
    until("it builds", lambda: noted(log))
    builder.stop()
    begun = time.monotonic()
    reader = crew.hire(quick(path, bank, wait=1.0)).opened()
    assert 1.0 <= time.monotonic() - begun < 3
    reads, slowest, found = reader(answers, 1.5)
    assert found == {0}
    assert slowest < 0.7, "it waits no second time"
    assert reads > 100
    assert reader("stats").fallbacks == {"building": reads}
    gate.unlink()
    builder.go_on()
    builder.opened()
    assert reader(wait_for_generation, 1) < 3


def test_a_process_that_is_stopped_inside_the_ring_costs_the_others_the_ids_and_no_time(
    path: Path, bank: Path, crew: Crew
) -> None:
    one, two, three = crew.hire(quick(path, bank, executor="external"), 3)
    for worker in (one, two, three):
        worker.opened()
    commit(bank, 1)
    one.begin(inside.stop_while_telling, name_of(1))
    until("it is stopped", lambda: inside.is_telling(path))
    begun = time.monotonic()
    assert two("invalidate", [name_of(0)]) == "hard"
    assert time.monotonic() - begun < 3
    assert three(number) == two(number) == 1
    assert three(number, 7) == 1, "they could not say which"
    one.go_on()
    one.result()
    assert two("invalidate", [name_of(2)]) == "ids"
    mmcache.build(path, source_of(bank))
    assert {worker(state) for worker in (one, two, three)} == {"fresh"}
    assert {worker(number) for worker in (one, two, three)} == {1}


# --- bad sources ------------------------------------------------------------------------------------------------------


def spoil_gone(bank: Path) -> None:
    for name in os.listdir(bank.parent):
        if name.startswith(bank.name):
            (bank.parent / name).unlink()


def spoil_garbage(bank: Path) -> None:
    spoil_gone(bank)
    bank.write_bytes(b"no database at all, for certain" * 1000)


@pytest.mark.parametrize("spoil", [spoil_gone, spoil_garbage])
@pytest.mark.parametrize("executor", sampled(["thread", "subprocess"], 2))
def test_a_source_that_is_gone_leaves_the_answers_to_the_file(
    path: Path, bank: Path, crew: Crew, spoil: Any, executor: str
) -> None:
    worker = crew.hire(quick(path, bank, executor=executor, rebuild_after=0)).opened()
    whole = bank.with_name("whole")
    with contextlib.closing(sqlite3.connect(bank)) as db:
        db.execute("VACUUM INTO ?", (str(whole),))
    spoil(bank)
    reads, slowest, found = worker(answers, 0.5)
    assert found == {0}
    assert slowest < 1
    worker("invalidate", hard=False)
    reads, slowest, found = worker(answers, 1.0)
    assert found == {0}
    assert slowest < 1
    stats = worker("stats")
    assert stats.stale_served > 0.7 * reads, "all but those before it knew"
    assert stats.state == "stale"
    assert stats.fallbacks == {}
    failure = until("it is told", lambda: (worker(look_around), worker("status").failure)[1])
    assert failure.attempts <= 3
    worker("invalidate", hard=True)
    if spoil is spoil_garbage:  # a database that was deleted goes on for a process that has it open
        with pytest.raises(SourceError):
            worker(number)
    assert path.exists()
    spoil_gone(bank)
    whole.rename(bank)
    until("it heals by itself", lambda: worker(heals) == "fresh")
    assert worker(number) == 0


def heals(cache: Cache) -> str:
    with contextlib.suppress(SourceError):
        number(cache)
    return state(cache)


def test_an_expired_file_stands_in_for_a_dead_source_as_long_as_it_may(path: Path, bank: Path, crew: Crew) -> None:
    longer = crew.hire(quick(path, bank, ttl=0.3, executor="external")).opened()
    shorter = crew.hire(quick(path, bank, ttl=0.3, max_stale=0, executor="external")).opened()
    spoil_garbage(bank)
    until("it has expired", lambda: longer(state) == shorter(state) == "expired")
    before = longer("stats").stale_served
    assert [longer(number) for _ in range(3)] == [0] * 3
    assert longer(kinds) == longer(many) == 15
    assert longer("stats").stale_served >= before + 5
    with pytest.raises(SourceError, match="not a whole SQLite database"):
        shorter(number)
    assert shorter("stats").stale_served == 0


def kinds(cache: Cache) -> int:
    return len(cache.where(kind="a"))


def many(cache: Cache) -> int:
    return len(cache.get_many([name_of(1), name_of(2)])) + 13


@pytest.mark.parametrize("executor", ["thread", "subprocess"])
def test_a_source_that_a_writer_has_locked_keeps_no_reader_waiting(
    path: Path, bank: Path, crew: Crew, executor: str
) -> None:
    with contextlib.closing(sqlite3.connect(bank)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    worker = crew.hire(quick(path, bank, executor=executor)).opened()
    with contextlib.closing(sqlite3.connect(bank, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        db.execute("UPDATE items SET number = 1")
        worker("invalidate", hard=False)
        _, slowest, found = worker(answers, 1.0)
        assert found == {0}
        assert slowest < 1
        worker("invalidate", [name_of(1)])
        _, slowest, found = worker(answers, 0.5)
        assert found == {0}
        with pytest.raises(SourceError, match="locked"):
            worker(number, 1)
        db.execute("COMMIT")
    assert worker(number, 1) == 1
    # Ids that were invalidated while it was built again stay the source's for a while, as they do after any build.
    until("it heals by itself", lambda: worker(state) in ("fresh", "stale") and worker(number) == 1)


# --- bad disks --------------------------------------------------------------------------------------------------------


def fill(_: Cache, name: str) -> None:
    """From now on the system refuses a call of this process."""
    full = faults(FailName(name, errno.ENOSPC))
    full.__enter__()
    _full.append(full)


def empty(_: Cache) -> None:
    _full.pop().__exit__(None, None, None)


_full: list[Any] = []


@pytest.mark.parametrize("name", sampled(["posix_fallocate", "fsync", "link"], 3))
def test_a_disk_that_is_full_keeps_the_file_and_all_pause(path: Path, bank: Path, crew: Crew, name: str) -> None:
    one, two = crew.hire(quick(path, bank), 2)
    one.opened()
    two.opened()
    mmcache.build(path, source_of(bank), metadata={"a": 1})  # there is a backup, to be replaced by a link
    one(fill, name)
    two(fill, name)
    inode = path.stat().st_ino
    commit(bank, 1)
    one("invalidate", hard=False)
    for worker in (one, two):
        worker.begin(answers, 1.0)
    for worker in (one, two):
        assert worker.result()[2] == {0}
    failure = until("it is told", lambda: (one(look_around), one("status").failure)[1])
    assert "No space left" in str(failure.error)
    assert failure.attempts <= 2
    assert path.stat().st_ino == inode
    Snapshot.open(path, verify="full").close()
    # A build that is tried after the pause may be under way.
    until_none("nothing is left", lambda: [left for left in os.listdir(path.parent) if left.endswith(".tmp")])
    one("invalidate", hard=True)
    assert one(number) == two(number) == 1
    one(empty)
    two(empty)
    until("it heals by itself", lambda: one(state) == two(state) == "fresh")


def test_a_small_disk_that_is_really_full(tmp_path: Path, bank: Path, crew: Crew) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k,mode=755", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    try:
        path = disk / "items.mmc"
        worker = crew.hire(quick(path, bank)).opened()
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        commit(bank, 1)
        worker("invalidate", hard=True)
        _, slowest, found = worker(answers, 1.0)
        assert found == {1}
        assert slowest < 1
        assert "No space left" in str(worker("status").failure.error)
        Snapshot.open(path, verify="full").close()
        late = crew.hire(quick(path, bank)).opened()
        assert late(number) == 1
        (disk / "filler").unlink()
        until("it heals by itself", lambda: worker(state) == late(state) == "fresh")
        late.end()
        worker.end()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# --- things that vanish -----------------------------------------------------------------------------------------------


def test_a_directory_that_is_deleted_under_its_workers(tmp_path: Path, bank: Path, crew: Crew) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    path = directory / "items.mmc"
    workers = crew.hire(quick(path, bank), 2)
    for worker in workers:
        worker.opened()
    commit(bank, 1, 0)
    shutil.rmtree(directory)
    for worker in workers:
        worker.begin(answers, 0.7, 3)
    for worker in workers:
        _, slowest, found = worker.result()
        assert found == {0}
        assert slowest < 1
    with pytest.raises(mmcache.PublishError):
        workers[0]("invalidate", [name_of(0)])
    assert workers[0](number) == 1, "here, at least"
    directory.mkdir()
    for worker in workers:
        until("it heals by itself", lambda worker=worker: worker(state) == "fresh" and path.exists())
        assert worker(number) == 1
    workers[0]("invalidate", hard=True)
    commit(bank, 2)
    workers[0]("invalidate", hard=True)
    assert workers[1](number) == 2, "they share a page again"


def test_a_file_that_is_moved_away_and_back_causes_no_rebuilds_without_end(path: Path, bank: Path, crew: Crew) -> None:
    worker = crew.hire(quick(path, bank, executor="inline")).opened()
    inside.fail(path, SourceError("no process builds for a moment"))
    path.rename(path.with_name("aside"))
    worker(look_around)
    assert worker(number) == 0
    path.with_name("aside").rename(path)
    for _ in range(20):
        worker(look_around)
    until("the pause is over", lambda: (f := failure_of(path)) is None or f.until < time.monotonic())
    for _ in range(20):
        worker(look_around)
    counts = totals(path)
    assert (counts["rebuilds_ok"], counts["rebuilds_unchanged"]) == (1, 0)


@pytest.mark.parametrize("how", ["deleted", "short", "garbage", "a copy"])
@pytest.mark.parametrize("kind", ["hard", "ids"])
def test_a_control_page_that_is_replaced_forgets_nothing(
    path: Path, bank: Path, crew: Crew, how: str, kind: str
) -> None:
    """Workers that had it mapped move to the new one; what was invalidated stays so until a file has it."""
    page = Path(f"{path}.ctl")
    workers = crew.hire(quick(path, bank, executor="external"), 2)
    for worker in workers:
        worker.opened()
    before = page.read_bytes()
    commit(bank, 1, 0)
    if kind == "hard":
        workers[0]("invalidate", hard=True)
    else:
        workers[0]("invalidate", [name_of(0)])
    fresh = page.with_name("fresh")
    if how == "deleted":
        page.unlink()
    else:
        fresh.write_bytes({"short": b"", "garbage": os.urandom(len(before)), "a copy": before}[how])
        fresh.chmod(0o664)
        fresh.rename(page)
    late = crew.hire(quick(path, bank, executor="external")).opened()
    for worker in [*workers, late]:
        for _ in range(3):
            assert worker(number) == 1
            worker(look_around)
    commit(bank, 2, 1)
    workers[1]("invalidate", [name_of(1)])
    for worker in [*workers, late]:
        assert worker(number, 1) == 2
        assert worker(number) == 1
    mmcache.build(path, source_of(bank))
    for worker in [*workers, late]:
        assert worker(state) == "fresh"
        assert (worker(number), worker(number, 1)) == (1, 2)


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [HOUR, -HOUR])
@pytest.mark.parametrize("executor", sampled(["inline", "thread"], 2))
def test_a_clock_that_jumps_by_an_hour_costs_a_rebuild_and_no_more(
    path: Path, bank: Path, crew: Crew, step: float, executor: str
) -> None:
    workers = crew.hire(quick(path, bank, executor=executor), 2)
    for worker in workers:
        worker.opened()
    workers[0]("invalidate", hard=False)  # finds nothing new, and leaves a note of when that was
    until("a rebuild", lambda: workers[0](state) == "fresh" and totals(path)["rebuilds_unchanged"] >= 1)
    for worker in workers:
        worker(step_clock, step)
    for worker in workers:
        worker.begin(answers, 1.0)
    for worker in workers:
        _, slowest, found = worker.result()
        assert found == {0}
        assert slowest < 1
    counts = totals(path)
    assert counts["rebuilds_ok"] + counts["rebuilds_unchanged"] <= 6  # a checkpoint of the database looks like a write
    for worker in workers:
        until("it is fresh again", lambda worker=worker: worker(state) == "fresh")
    commit(bank, 1)
    workers[0]("invalidate", hard=True)
    assert [worker(number) for worker in workers] == [1, 1]
    for worker in workers:
        until("a rebuild lands", lambda worker=worker: worker(state) == "fresh")
        assert worker(number) == 1
    counts = totals(path)
    assert counts["rebuilds_ok"] + counts["rebuilds_unchanged"] <= 10
    commit(bank, 2)
    assert workers[1](rebuilt) is True
    assert workers[0](number) == 2


def rebuilt(cache: Cache) -> bool:
    return cache.rebuild().changed


class JumpingSource(SQLiteSource):
    """The clock jumps while it is read."""

    step = 0.0

    @contextlib.contextmanager
    def read(self) -> Iterator[Any]:
        with super().read() as reading:
            reading.count("items")
            step_clock(None, self.step)  # type: ignore[arg-type]
            self.step = 0.0
            yield reading


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_clock_that_jumps_while_a_file_is_built(path: Path, bank: Path, crew: Crew, step: float) -> None:
    """It is no build of an hour, after which one would have to rest for an hour."""

    def open_cache() -> Cache:
        source = JumpingSource(bank, NUMBERS)
        source.step = step
        return mmcache.open(path, source, executor="inline", check_interval=0.02, ttl=math.inf)

    worker = crew.hire(open_cache).opened()
    with Snapshot.open(path) as snapshot:
        assert snapshot.header.elapsed_ns < 60e9
    worker("invalidate", hard=True)
    until("a rebuild lands", lambda: worker(state) == "fresh")


# --- bad files --------------------------------------------------------------------------------------------------------


def bad(kind: str, whole: bytes) -> bytes:
    middle = len(whole) // 2
    return {
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "foreign": b"SQLite format 3\0" + whole[16:],
        "another major": sealed(whole, 8, struct.pack("<H", 3)),
    }[kind]


def sealed(data: bytes, at: int, value: bytes) -> bytes:
    from xxhash import xxh3_64_intdigest

    head = bytearray(data[:248])
    head[at : at + len(value)] = value
    return bytes(head) + struct.pack("<Q", xxh3_64_intdigest(bytes(head))) + data[256:]


def put(path: Path, data: bytes) -> None:
    fresh = path.with_name("fresh")
    fresh.write_bytes(data)
    fresh.rename(path)


@pytest.mark.parametrize("executor", ["inline", "external"])
@pytest.mark.parametrize("kind", sampled(["flipped", "truncated", "empty", "foreign", "another major"], 2))
def test_a_bad_file_in_the_place_of_a_good_one_is_refused_once_and_mended_if_it_is_ours(
    path: Path, bank: Path, crew: Crew, executor: str, kind: str
) -> None:
    worker = crew.hire(quick(path, bank, executor=executor)).opened()
    data = bad(kind, path.read_bytes())
    mended = executor != "external" and kind not in ("foreign", "another major")
    put(path, data)
    reads, slowest, found = worker(answers, 0.5)
    assert found == {0}
    assert slowest < (10 if executor == "inline" else 1), "a read in which it is built takes as long as that"
    stats = worker("stats")
    assert stats.refusals == 1
    assert stats.corruptions == (kind != "another major")
    assert (stats.fallbacks, stats.hits >= reads) == ({}, True)
    if not mended:
        assert path.read_bytes() == data
        assert stats.generation == 1
        return
    until("it is mended", lambda: worker(look_around) == 2)
    Snapshot.open(path, verify="full").close()
    assert worker("stats").refusals == 1
    until("it is counted", lambda: totals(path)["rebuilds_ok"] >= 2)
    assert totals(path)["rebuilds_ok"] == 2
    assert worker(state) == "fresh"


def test_a_refusal_that_lasts_is_told_once_until_its_cause_is_gone(
    path: Path, bank: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Case: the file is another owner's, or lost its permissions, for hours."""
    caplog.set_level(logging.INFO, "mmcache")
    told: list[str] = []
    is_root = os.geteuid() == 0
    with quick(path, bank, executor="external", on_event=lambda event: told.append(event.kind))() as cache:
        assert number(cache) == 0
        for generation in (1, 2):
            commit(bank, generation)
            mmcache.build(path, source_of(bank))
            os.chown(path, 12345, -1) if is_root else path.chmod(0)
            for _ in range(5):
                assert not cache.refresh()
            assert cache.generation == generation
            assert cache.stats().refusals == logged(caplog).count("file_refused") == generation
            assert told.count("refused") == generation
            os.chown(path, 0, -1) if is_root else path.chmod(0o444)
            assert cache.refresh()
            assert cache.generation == generation + 1


@pytest.mark.parametrize("executor", ["inline", "thread", "subprocess"])
def test_a_damaged_record_is_answered_by_the_source_and_mended(
    path: Path, bank: Path, crew: Crew, executor: str
) -> None:
    """In the file that is mapped, as a disk does it."""
    worker = crew.hire(quick(path, bank, executor=executor)).opened()
    data = path.read_bytes()
    at = data.index(name_of(7).encode() + b"\xa1c") + len(name_of(7).encode()) + 1  # of its kind, not of its key
    os.chmod(path, 0o644)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 4]))
    assert worker(number, 7) == 0
    stats = worker("stats")
    # A poll may have noticed the write before that read: then the file answers no more, or was mended.
    was_noticed_before = stats.generation != 1 or "corrupt" in stats.fallbacks
    assert stats.fallbacks == {"record": 1} or was_noticed_before
    assert stats.corruptions >= 1
    until("it is mended", lambda: worker(look_around) == 2)
    before = worker("stats").hits
    assert worker(number, 7) == 0
    assert worker("stats").hits == before + 1
    worker(answers, 0.3)
    until("it is counted", lambda: totals(path)["rebuilds_ok"] >= 2)
    assert totals(path)["rebuilds_ok"] == 2


def test_damage_that_goes_away_again_causes_no_rebuilds_without_end(path: Path, bank: Path, crew: Crew) -> None:
    worker = crew.hire(quick(path, bank, executor="inline")).opened()
    worker(inside.meet_damage)
    for _ in range(20):
        worker(look_around)
    counts = totals(path)
    assert (counts["rebuilds_ok"], counts["rebuilds_unchanged"]) == (1, 1)


# --- slow look-ups ----------------------------------------------------------------------------------------------------


def test_the_circuit_opens_after_a_run_of_slow_lookups_cools_down_and_closes(
    path: Path, bank: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Every look-up takes longer than no time at all."""
    options = {"slow_after": 0.0, "fallback_on_slow": True, "executor": "external", "check_interval": 0}
    with mmcache.open(path, source_of(bank), **options) as cache, caplog.at_level(logging.WARNING, "mmcache"):  # type: ignore[call-overload]
        for turn in range(1, 3):
            run = cache.stats().slow_lookups
            for _ in range(3):
                assert number(cache) == 0
            assert cache.stats().slow_lookups == run + 3
            hits = cache.stats().hits
            assert number(cache) == 0
            assert cache.stats().hits == hits, "the source answered"
            clock.later += 29
            assert state(cache) == "slow"
            clock.later += 2
            assert state(cache) != "slow"
            assert cache.stats().fallbacks["slow"] == turn
        assert logged(caplog).count("circuit_opened") == 2


def test_the_circuit_stays_closed_unless_it_is_asked_for_and_while_a_fast_lookup_comes_between(
    path: Path, bank: Path
) -> None:
    with mmcache.open(path, source_of(bank), slow_after=0.0, executor="external") as cache:
        for _ in range(10):
            number(cache)
        assert (cache.stats().slow_lookups, cache.stats().fallbacks) == (10, {})
    options = {"slow_after": 60.0, "fallback_on_slow": True, "executor": "external"}
    with mmcache.open(path, source_of(bank), **options) as cache:  # type: ignore[call-overload]
        for i in range(12):
            inside.slow_after(cache, 60.0 if i % 3 == 2 else 0.0)
            number(cache)
        assert (cache.stats().slow_lookups, cache.stats().fallbacks) == (8, {})


def test_a_slow_file_still_stands_in_for_a_source_that_fails(path: Path, bank: Path) -> None:
    options = {"slow_after": 0.0, "fallback_on_slow": True, "executor": "external"}
    with mmcache.open(path, source_of(bank), **options) as cache:  # type: ignore[call-overload]
        for _ in range(3):
            number(cache)
        spoil_gone(bank)
        assert number(cache) == 0
        assert cache.stats().state == "slow"


# --- many swaps -------------------------------------------------------------------------------------------------------


def private_memory() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGESIZE")


def footprint(cache: Cache) -> tuple[int, int, int, int]:
    number(cache)
    gc.collect()  # what came with the fork, too
    return len(open_files()), mapped_files("/nothing").total(), len(threads(cache)), private_memory()


@pytest.mark.parametrize("swaps", [120, pytest.param(10_000, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_many_swaps_by_others_leave_nothing_behind(path: Path, crew: Crew, swaps: int) -> None:
    def publish(i: int) -> None:
        mmcache.build(path, [{"name": name_of(j), "kind": "k", "number": i} for j in range(20)], LINES)

    publish(0)
    worker = crew.hire(lambda: mmcache.open(path, check_interval=0.05)).opened()
    for i in range(1, 51):  # what is loaded or grows once
        publish(i)
        assert worker(number) == i
    files, maps, running, memory = worker(footprint)
    for i in range(51, 51 + swaps):
        publish(i)
        if i % 3 == 0:
            assert worker(number) == i, "it moves to each by itself"
    assert worker(number) == 50 + swaps
    assert worker("stats").adoptions > swaps / 4
    after = worker(footprint)
    assert after[:3] == (files, maps, running)
    assert running == 0
    assert after[3] - memory < 2**20 + swaps * 200
    assert not children_of(worker.pid)
    names = {name for name in beside(path) if not name.endswith(".counts")}
    assert names == {path.name + suffix for suffix in ("", ".lock", ".bak", ".ctl")}
    assert len(os.listdir(path.parent)) - len(names) <= 3, "counter files of two workers, and the word of the page"
    assert worker.end() == 0
