"""What one process says has changed, no other answers from the file: from the next get on, until a file covers it."""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing as mp
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import mmcache
from mmcache import Cache, ClosedError, PublishError, Schema, SourceError, SQLiteSource
from mmcache.format.header import Tokens
from mmcache.sharing.attach import attach
from mmcache.sharing.events import MAX_IDS, REASONS
from mmcache.sharing.invalidation import invalidate_file
from mmcache.sharing.page import page_path
from tests.support import inside
from tests.support.bank import insert_item, make_bank, name_of as item, open_bank, source_of
from tests.support.faults import FailName, faults
from tests.support.waits import PATIENCE, holds, until

pytestmark = pytest.mark.usefixtures("no_leaks")

Open = Callable[..., Cache]


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    make_bank(tmp_path / "bank.db", 20)
    return tmp_path / "bank.db"


@pytest.fixture
def workers(path: Path, bank: Path) -> Iterator[Open]:
    """Opens caches that look around by themselves once an hour: what they hear, they hear through the page."""
    opened: list[Cache] = []
    sources: list[SQLiteSource] = []

    def open_one(**options: Any) -> Cache:
        sources.append(source_of(bank))
        usual: dict[str, Any] = {"check_interval": 3600, "executor": "external", "ttl": 1e9}
        opened.append(mmcache.open(path, sources[-1], **usual | options))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()
    for source in sources:
        source.close()


def write(bank: Path, *statements: str, items: dict[int, str] | None = None) -> None:
    with open_bank(bank) as db:
        for i, kind in (items or {}).items():
            insert_item(db, i, kind)
        for statement in statements:
            db.execute(statement)


def tokens_of(cache: Cache) -> Tokens:
    """What was said so far."""
    with contextlib.closing(attach(cache.path)) as page:
        return page.tokens()


def from_source(cache: Cache) -> int:
    return cache.stats().fallbacks.get("invalidated", 0)


# --- by id ------------------------------------------------------------------------------------------------------------


def test_exactly_these_ids_are_the_sources_in_every_worker_from_the_next_get_on(workers, bank):
    one, two = workers(), workers()
    two[item(1)], two[item(2)]
    write(bank, items={1: "new", 2: "unheard"})
    assert one.invalidate([item(1)]) == "ids"
    for cache in (one, two):
        assert cache[item(1)]["kind"] == "new"
        assert cache[item(2)]["kind"] == "b", "its change was not announced"
        assert from_source(cache) == 1
    assert one.stats().invalidations == 1


def test_ids_that_are_new_or_deleted_are_too(workers, bank):
    one, two = workers(), workers()
    write(bank, f"DELETE FROM items WHERE name = '{item(3)}'", items={99: "new"})
    one.invalidate([item(3), item(99)], reason="record_deleted")
    for cache in (one, two):
        assert cache.get(item(3)) is None
        assert item(3) not in cache
        with pytest.raises(KeyError):
            cache.embedding(item(3))
        assert cache[item(99)]["kind"] == "new"
        assert item(99) in cache
        assert len(cache) == 20
        assert item(3) not in list(cache)
        assert item(99) in [record.id for record in cache.values()]


def test_every_way_of_reading_obeys(workers, bank):
    one, cache = workers(), workers()
    assert cache.where(kind="a").ids == [item(i) for i in (1, 5, 9, 13, 17)]
    write(bank, f"UPDATE items SET vector = zeroblob(32) WHERE name = '{item(5)}'", items={1: "z"})
    one.invalidate([item(1), item(5)])
    records = cache.get_many([item(0), item(1), item(2), "nope"])
    assert [record and record["kind"] for record in records] == [None, "z", "b", None]
    embedding = cache.embedding(item(5))
    assert embedding is not None
    assert not np.any(embedding)
    assert cache.where(kind="a").ids == [item(i) for i in (5, 9, 13, 17)]
    assert cache.where(kind="z").ids == [item(1)]
    assert dict(cache)[item(1)]["kind"] == "z"
    assert [record["kind"] for record in cache.values() if record.id == item(1)] == ["z"]
    assert len(cache) == 20


def test_where_gives_the_generations_own_answer_if_asked(workers, bank):
    one, cache = workers(), workers()
    write(bank, items={1: "z"})
    one.invalidate([item(1)])
    assert cache.where(kind="z").ids == [item(1)]
    assert cache.where(kind="z", snapshot=True).ids == []
    assert item(1) in cache.where({"kind": "a"}, snapshot=True).ids
    one.invalidate(hard=True)
    assert item(1) in cache.where(kind="a", snapshot=True).ids
    with cache.pinned() as snapshot:
        assert snapshot[item(1)]["kind"] == "a"


def test_only_the_collection_that_was_named_is_touched(workers, bank):
    one, cache = workers(), workers()
    notes = cache.collection("notes")
    write(bank, "UPDATE notes SET body = 'new'", items={1: "z"})
    one.invalidate(["note-1"], collection="notes")
    assert notes["note-1"]["body"] == "new"
    assert notes["note-2"]["body"] == "xx"
    assert notes.get_many(["note-1", "note-2"])[0] == notes["note-1"]
    cache.where(kind="a")
    len(cache)
    assert from_source(cache) == 3
    one.collection("notes").invalidate(["note-2"])
    assert notes["note-2"]["body"] == "new"
    assert one.invalidate([item(1)]) == "ids"
    assert cache[item(1)]["kind"] == "z"
    assert cache[item(2)]["kind"] == "b"


def test_an_id_that_both_collections_have_is_told_apart(workers, bank):
    one, cache = workers(), workers()
    one.invalidate([item(1)], collection="notes")
    cache[item(1)]
    assert from_source(cache) == 0


def test_a_newer_generation_covers_them_and_only_what_was_said_before_its_capture(workers, bank):
    one, two = workers(), workers()
    write(bank, items={1: "z"})
    one.invalidate([item(1)])
    two[item(1)]
    report = one.rebuild()
    assert report.changed
    for cache in (one, two):
        assert cache[item(1)]["kind"] == "z"
        assert cache.generation == report.generation
        assert cache.stats().state == "fresh"
    before = from_source(two)
    two[item(1)]
    assert from_source(two) == before


def test_an_unchanged_rebuild_covers_them_too(workers):
    one, two = workers(), workers()
    one.invalidate([item(1)])
    two[item(1)]
    assert not one.rebuild().changed
    two[item(1)]
    assert (two.generation, from_source(two), two.stats().state) == (1, 1, "fresh")
    late = workers()
    late[item(1)]
    assert from_source(late) == 0


class ToldWhileRead(SQLiteSource):
    """Says something in the middle of a build: after its transaction began to read, before it ends."""

    say: Callable[[], object] = staticmethod(lambda: None)

    def read(self):
        from contextlib import contextmanager

        @contextmanager
        def reading():
            with super(ToldWhileRead, self).read() as found:
                found.count("items")
                self.say()
                yield found

        return reading()


@pytest.mark.parametrize("said", ["ids", "soft", "hard", "collection"])
def test_what_is_said_while_a_build_reads_is_not_covered_by_it(path, bank, workers, said):
    """The builder looked at the page before it looked at the source."""
    with sqlite3.connect(bank) as db:
        db.execute("PRAGMA journal_mode=WAL")
    db.close()
    cache = workers()
    source = ToldWhileRead(bank, *source_of(bank).schemas)

    def say() -> None:
        write(bank, items={1: "late"})
        if said == "ids":
            cache.invalidate([item(1)])
        elif said == "collection":
            cache.invalidate(collection="items", hard=True)
        else:
            cache.invalidate(hard=said == "hard")

    source.say = say
    write(bank, items={2: "early"})
    report = mmcache.build(path, source)
    assert report.changed
    state = {"ids": "stale", "soft": "stale", "hard": "invalidated", "collection": "stale"}[said]
    assert cache[item(2)]["kind"] == "early"
    assert cache[item(1)]["kind"] == ("a" if said == "soft" else "late")
    assert (cache.generation, cache.stats().state) == (report.generation, state)
    cache.rebuild()
    assert cache[item(1)]["kind"] == "late"
    assert cache.stats().state == "fresh"
    source.close()


# --- all of it --------------------------------------------------------------------------------------------------------

DEFAULTS = {
    "manual": "hard",
    "record_stored": "soft",
    "record_deleted": "hard",
    "config_updated": "hard",
    "schema_migration": "hard",
    "ttl_expired": "soft",
}


def test_there_are_these_reasons():
    assert REASONS.keys() == DEFAULTS.keys()


@pytest.mark.parametrize("reason", DEFAULTS)
@pytest.mark.parametrize("hard", [None, True, False])
def test_a_reason_decides_unless_the_caller_does(workers, bank, reason, hard):
    one, two = workers(), workers()
    write(bank, items={1: "z"})
    kind = one.invalidate(reason=reason, hard=hard)
    assert kind == (DEFAULTS[reason] if hard is None else "hard" if hard else "soft")
    assert two[item(1)]["kind"] == ("z" if kind == "hard" else "a")
    assert two.stats().state == ("invalidated" if kind == "hard" else "stale")
    assert from_source(two) == (kind == "hard")
    assert one.invalidate([item(1)], reason=reason) == "ids", "ids are ids, whatever the reason"
    assert two[item(1)]["kind"] == "z"
    assert reason in one.status().why or kind == "soft"


def test_a_whole_collection(workers, bank):
    one, cache = workers(), workers()
    write(bank, "UPDATE notes SET body = 'new'", items={1: "z", 99: "y"})
    one.invalidate(collection="items")
    assert [record and record["kind"] for record in cache.get_many([item(1), item(99)])] == ["z", "y"]
    assert len(cache) == 21
    assert cache.where(kind="y").ids == [item(99)]
    notes = cache.collection("notes")
    assert notes["note-1"]["body"] == "x"
    assert len(notes) == 5
    one.collection("notes").invalidate()
    assert notes["note-1"]["body"] == "new"


def test_softly_a_collection_is_everything(workers, bank):
    one, two = workers(), workers()
    assert one.invalidate(collection="notes", hard=False) == "soft"
    two[item(1)]
    assert two.stats().state == "stale"


@pytest.mark.parametrize(("count", "kind"), [(MAX_IDS, "ids"), (MAX_IDS + 1, "hard")])
def test_more_ids_than_one_call_may_name_are_everything(workers, bank, count, kind):
    one, two = workers(), workers()
    write(bank, items={1: "z", 2: "z"})
    assert one.invalidate([item(1), *(f"x{i}" for i in range(count - 1))]) == kind
    assert two[item(1)]["kind"] == "z"
    assert two[item(2)]["kind"] == ("b" if kind == "ids" else "z")


def test_a_log_that_lost_events_makes_everything_dirty_and_loses_nothing(workers, bank):
    with inside.small_log(65_536):
        one, two = workers(), workers()
        two[item(1)]
        write(bank, items=dict.fromkeys(range(20), "z"))
        for batch in range(5):
            one.invalidate([item(batch), *(f"x{batch}.{i}" for i in range(1000))])
        assert [two[item(i)]["kind"] for i in range(20)] == ["z"] * 20
        assert two.stats().state == "invalidated"
        one.rebuild()
        assert two[item(7)]["kind"] == "z"
        # A busy machine may take longer for the poll than a read waits.
        until("it is fresh", lambda: two[item(7)]["kind"] == "z" and two.stats().state == "fresh")


def test_many_small_ones_are_ids_to_workers_old_and_new(workers, bank):
    one, two = workers(), workers()
    write(bank, items={1: "z", 2: "z"})
    for i in range(2_000):
        assert one.invalidate([f"x{i}"]) == "ids"
    one.invalidate([item(1)])
    for cache in (two, workers()):
        assert cache[item(1)]["kind"] == "z"
        assert cache[item(2)]["kind"] == "b"
        assert cache.stats().state == "stale"
        assert from_source(cache) == 1


def test_nothing_is_nothing(workers):
    one, two = workers(), workers()
    before = tokens_of(one)
    assert one.invalidate([]) == "ids"
    assert tokens_of(one) == before
    two[item(1)]
    assert two.stats().state == "fresh"


def test_an_id_that_was_said_twice_takes_one_place(workers):
    one, two = workers(), workers()
    one.invalidate([item(1)] * 5000)
    assert two.status().dirty == 1
    one.invalidate([item(1)])
    assert two.status().dirty == 1


# --- wrong calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"ids": "item-1"}, TypeError, "not one: \\['item-1'\\]"),
        ({"ids": b"item-1"}, TypeError, "an iterable of ids"),
        ({"ids": [1.5]}, TypeError, "a key cannot be 1.5"),
        ({"ids": [None]}, TypeError, "a key cannot be None"),
        ({"ids": 5}, TypeError, "iterable"),
        ({"reason": "because"}, ValueError, "one of manual, record_stored"),
        ({"ids": ["a"], "hard": True}, ValueError, "hard is for"),
        ({"ids": ["a"], "hard": False}, ValueError, "hard is for"),
        ({"collection": "nope"}, KeyError, "there are: items, notes"),
        ({"ids": ["a"], "collection": "nope"}, KeyError, "there are: items, notes"),
    ],
)
def test_a_wrong_call_is_an_error_and_says_nothing_to_anybody(workers, arguments, error, text):
    cache = workers()
    before = tokens_of(cache)
    with pytest.raises(error, match=text):
        cache.invalidate(**arguments)
    assert tokens_of(cache) == before
    assert cache.stats().invalidations == 0


def test_an_iterable_that_fails_on_the_way_says_nothing(workers):
    cache = workers()

    def failing() -> Iterator[str]:
        yield item(1)
        raise RuntimeError("boom")

    before = tokens_of(cache)
    with pytest.raises(RuntimeError, match="boom"):
        cache.invalidate(failing())
    assert tokens_of(cache) == before


def test_a_closed_cache_notifies_none(workers):
    cache = workers()
    cache.close()
    for ids in (None, [item(1)]):
        with pytest.raises(ClosedError):
            cache.invalidate(ids)


@pytest.mark.parametrize("ids", [None, [item(1)]])
def test_where_no_page_can_be_it_says_so_and_goes_by_it_itself(path, bank, ids):
    mmcache.build(path, source_of(bank))
    os.unlink(page_path(str(path)))
    source = source_of(bank)
    with (
        faults(FailName("rename", errno.EPERM)),
        mmcache.open(path, source, executor="external", check_interval=0) as cache,
    ):
        write(bank, items={1: "z"})
        with pytest.raises(PublishError, match=r"only this one knows: .*not permitted"):
            cache.invalidate(ids)
        for _ in range(3):
            assert cache[item(1)]["kind"] == "z"
        assert cache.stats().fallbacks["invalidated"] >= 3
        assert cache.stats().invalidations == 0
    source.close()


def test_without_a_source_the_file_answers_and_others_hear(workers, path, bank):
    other = workers()
    write(bank, items={1: "z"})
    with mmcache.open(path) as cache:
        assert cache.invalidate([item(1)]) == "ids"
        assert cache.collection("notes").invalidate() == "ids"
        assert cache[item(1)]["kind"] == "a"
        assert cache.where(kind="a").ids[0] == item(1)
    assert other[item(1)]["kind"] == "z"


def test_a_source_that_fails_is_told_for_dirty_ids_only(workers, bank):
    cache = workers()
    cache.invalidate([item(1)])
    cache.source.close()
    os.rename(bank, f"{bank}.gone")
    with pytest.raises(SourceError):
        cache[item(1)]
    assert cache[item(2)]["kind"] == "b"


def test_a_tool_tells_without_opening_the_file(workers, path, bank):
    cache = workers()
    write(bank, items={1: "z", 2: "z"})
    assert invalidate_file(str(path), "items", [item(1)]) == "ids"
    assert cache[item(1)]["kind"] == "z"
    assert cache[item(2)]["kind"] == "b"
    assert invalidate_file(str(path), None, reason="config_updated") == "hard"
    assert cache[item(2)]["kind"] == "z"


def test_it_is_logged_once(workers, path, caplog):
    caplog.set_level(logging.INFO, "mmcache")
    cache = workers()
    caplog.clear()
    cache.invalidate([item(1), item(2)], reason="record_stored")
    cache.invalidate()
    told = [record for record in caplog.records if getattr(record, "event", "") == "invalidated"]
    assert [(record.kind, record.reason, record.path) for record in told] == [
        ("ids", "record_stored", str(path)),
        ("hard", "manual", str(path)),
    ]
    assert "2 ids invalidated (record_stored)" in told[0].getMessage()


# --- threads and processes --------------------------------------------------------------------------------------------


def test_a_thread_that_gets_while_another_hears_waits_for_what_it_finds(workers, bank):
    """T1 hears and has not decided yet. T2 begins its get after the invalidation: it must wait."""
    one, cache = workers(), workers()
    cache[item(1)]
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(cache[item(1)]["kind"])) for _ in range(3)]
    with inside.slow_decision(cache) as (deciding, go_on):
        write(bank, items={1: "z"})
        one.invalidate([item(1)])
        threads[0].start()
        assert deciding.wait(PATIENCE)
        for thread in threads[1:]:
            thread.start()
        holds("no thread has an answer", lambda: not answers, 0.05)
        go_on.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert answers == ["z"] * 3


class Gated(SQLiteSource):
    """Its fingerprint is found at once, and given when the gate is open."""

    gate: threading.Event
    asked: threading.Event

    def fingerprint(self) -> bytes:
        found = super().fingerprint()
        self.asked.set()
        self.gate.wait(PATIENCE)
        return found


def test_a_refresh_sees_more_than_a_poll_that_began_before_it(path, bank):
    source = Gated(bank, *source_of(bank).schemas)
    source.gate, source.asked = threading.Event(), threading.Event()
    source.gate.set()
    mmcache.build(path, source)
    with mmcache.open(path, source, check_interval=0.0, executor="external") as cache:
        assert cache.stats().state == "fresh"
        source.gate.clear()
        source.asked.clear()
        cache[item(1)]
        assert source.asked.wait(PATIENCE)
        write(bank, items={1: "z"})
        opening = threading.Timer(0.1, source.gate.set)
        opening.start()
        cache.refresh()
        assert cache.stats().state == "stale"
        opening.join()
    source.close()


def test_threads_never_see_less_than_was_said(workers, bank):
    """One writes, commits and invalidates; the others must not be behind what it had announced before they began."""
    one, cache = workers(), workers()
    said = [0]
    stop = threading.Event()
    failures: list[str] = []

    def follow() -> None:
        while not stop.is_set():
            at_least = said[0]
            kind = cache[item(1)]["kind"]
            if not kind.startswith("v") or int(kind[1:]) < at_least:
                failures.append(f"{kind} after {at_least}")
                return

    write(bank, items={1: "v0"})
    one.invalidate([item(1)])
    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 40):
        write(bank, items={1: f"v{number}"})
        if number % 10 == 0:
            one.rebuild()
        else:
            one.invalidate([item(1)] if number % 2 else None)
            said[0] = number
    stop.set()
    for thread in threads:
        thread.join(20)
    assert failures == []


def test_a_query_goes_on_while_another_thread_hears_of_more_ids(workers):
    """It looks through the dirty ids of all collections, of which there are more from one moment to the next."""
    one, cache = workers(), workers()
    one.invalidate([f"x{i}" for i in range(2_000)], collection="notes")
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                assert len(cache) == 20
        except BaseException as error:  # noqa: BLE001 (any failure of a thread fails the test)
            failures.append(error)

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for i in range(300):
            one.invalidate([f"y{i}"], collection="notes")
            cache.get_many([])
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
        sys.setswitchinterval(switching)
    assert failures == []


def answer(cache: Cache, i: int) -> Any:
    return cache[item(i)]["kind"]


def tell(cache: Cache, i: int) -> str:
    return cache.invalidate([item(i)])


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_child_hears_its_parent_and_the_parent_its_child(workers, bank, method):
    cache = workers()
    assert answer(cache, 1) == "a"
    with ProcessPoolExecutor(1, mp_context=mp.get_context(method)) as pool:
        assert pool.submit(answer, cache, 1).result(60) == "a"
        write(bank, items={1: "z", 2: "y"})
        cache.invalidate([item(1)])
        assert pool.submit(answer, cache, 1).result(60) == "z"
        assert answer(cache, 2) == "b"
        assert pool.submit(tell, cache, 2).result(60) == "ids"
        assert answer(cache, 2) == "y"


def test_a_forked_child_hears_through_what_it_inherited(workers, bank):
    """The child's cache is the parent's object: mapped page, snapshot, and what was dirty."""
    cache = workers()
    write(bank, items={1: "z", 2: "y", 3: "x"})
    cache.invalidate([item(1)])
    assert answer(cache, 1) == "z"
    context = mp.get_context("fork")
    here, there = context.Pipe()

    def child() -> None:
        there.send([answer(cache, 1), answer(cache, 2)])
        there.recv()
        there.send(answer(cache, 2))
        cache.invalidate([item(3)])
        there.send("said")

    process = context.Process(target=child)
    process.start()
    assert here.recv() == ["z", "b"]
    cache.invalidate([item(2)])
    here.send("said")
    assert here.recv() == "y"
    assert here.recv() == "said"
    assert answer(cache, 3) == "x"
    process.join(20)
    assert process.exitcode == 0
    here.close()
    there.close()


# --- any order of everything ------------------------------------------------------------------------------------------

KEYS = [f"k{i}" for i in range(6)]
KINDS = ["a", "b"]
SCHEMA = Schema("things", index=("kind",))


class TwoCaches(RuleBasedStateMachine):
    """Two caches over one database, and a dict that knows what is in it. Every write is told; every answer is right.

    `loose`: keys written since the last that was not soft: for them, an older answer is right as well.
    """

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.directory = tempfile.TemporaryDirectory(prefix="mmcache-test-")
        self.bank = Path(self.directory.name) / "bank.db"
        self.path = Path(self.directory.name) / "things.mmc"
        self.db = sqlite3.connect(self.bank, isolation_level=None)
        self.db.execute("PRAGMA synchronous=OFF")
        self.db.execute("CREATE TABLE things (id TEXT PRIMARY KEY, kind TEXT, n INTEGER)")
        self.truth: dict[str, tuple[str, int]] = {}
        self.before: dict[str, set[Any]] = {}
        self.n = 0
        self.sources = [SQLiteSource(self.bank, SCHEMA) for _ in range(2)]
        self.caches: list[Cache] = []

    @initialize()
    def begin(self) -> None:
        for key in KEYS[:3]:
            self._write(key, "a")
        self.caches = [self._open(i) for i in range(2)]
        self.before.clear()

    def _open(self, i: int) -> Cache:
        return mmcache.open(self.path, self.sources[i], executor="external", check_interval=3600, ttl=1e9)

    def _write(self, key: str, kind: str | None) -> None:
        self.before.setdefault(key, set()).add(self.truth.get(key))
        self.n += 1
        if kind is None:
            self.db.execute("DELETE FROM things WHERE id = ?", (key,))
            self.truth.pop(key, None)
        else:
            self.db.execute("INSERT OR REPLACE INTO things VALUES (?, ?, ?)", (key, kind, self.n))
            self.truth[key] = kind, self.n

    def _covered(self) -> None:
        self.before.clear()

    @rule(
        who=st.integers(0, 1),
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3),
        kind=st.sampled_from([*KINDS, None]),
    )
    def write_and_tell(self, who: int, keys: list[str], kind: str | None) -> None:
        for key in keys:
            self._write(key, kind)
        assert self.caches[who].invalidate(keys, reason="record_stored" if kind else "record_deleted") == "ids"
        for key in keys:
            self.before.pop(key, None)

    @rule(who=st.integers(0, 1), key=st.sampled_from(KEYS), kind=st.sampled_from([*KINDS, None]))
    def write_and_tell_softly(self, who: int, key: str, kind: str | None) -> None:
        self._write(key, kind)
        assert self.caches[who].invalidate(reason="record_stored") == "soft"

    @rule(who=st.integers(0, 1), key=st.sampled_from(KEYS), kind=st.sampled_from([*KINDS, None]), whole=st.booleans())
    def write_and_tell_hard(self, who: int, key: str, kind: str | None, whole: bool) -> None:
        self._write(key, kind)
        self.caches[who].invalidate(collection="things" if whole else None, reason="config_updated")
        self._covered()

    @rule(who=st.integers(0, 1))
    def rebuild(self, who: int) -> None:
        self.caches[who].rebuild()
        self._covered()

    @rule(who=st.integers(0, 1))
    def lose_the_page(self, who: int) -> None:
        """Both look around, as they do once in a second; who looks first makes it again."""
        os.unlink(page_path(str(self.path)))
        for cache in (self.caches[who], self.caches[1 - who]):
            cache.refresh()

    @rule(who=st.integers(0, 1))
    def reopen(self, who: int) -> None:
        self.caches[who].close()
        self.caches[who] = self._open(who)

    @rule(who=st.integers(0, 1), key=st.sampled_from(KEYS))
    def get(self, who: int, key: str) -> None:
        record = self.caches[who].get(key)
        self._check(key, None if record is None else (record["kind"], record["n"]))

    @rule(who=st.integers(0, 1), keys=st.lists(st.sampled_from(KEYS), max_size=8))
    def get_many(self, who: int, keys: list[str]) -> None:
        for key, record in zip(keys, self.caches[who].get_many(keys), strict=True):
            self._check(key, None if record is None else (record["kind"], record["n"]))

    @rule(who=st.integers(0, 1), kind=st.sampled_from(KINDS))
    def where(self, who: int, kind: str) -> None:
        found = set(self.caches[who].where(kind=kind).ids)
        for key in KEYS:
            if key not in self.before:
                assert (key in found) == (self.truth.get(key, (None,))[0] == kind), key

    @rule(who=st.integers(0, 1))
    def iterate(self, who: int) -> None:
        found = set(self.caches[who])
        assert {key for key in found if key not in self.before} == self.truth.keys() - self.before.keys()

    def _check(self, key: str, found: Any) -> None:
        assert found == self.truth.get(key) or found in self.before.get(key, ()), (key, found, self.truth.get(key))

    @invariant()
    def generations_agree_after_a_look(self) -> None:
        for cache in self.caches:
            snapshot = cache.snapshot
            assert snapshot is None or snapshot.generation >= 1

    def teardown(self) -> None:
        for cache in self.caches:
            cache.close()
        for source in self.sources:
            source.close()
        self.db.close()
        self.directory.cleanup()


TestTwoCaches = TwoCaches.TestCase


def test_ids_for_which_no_source_is_known_are_refused(tmp_path):
    mmcache.build(tmp_path / "c.mmc", [{"id": "a"}], Schema("items"))
    with mmcache.open(tmp_path / "c.mmc") as cache:
        with pytest.raises(
            SourceError, match="nothing can answer for single ids: this cache was opened without a source"
        ):
            cache.invalidate(["a"])
        assert cache.invalidate(hard=False) == "soft"
        assert cache["a"] == {"id": "a"}


@pytest.mark.parametrize(
    ("key", "ids", "reason"),
    [
        (("a", "b"), ("EPSG", 4326), r"is a tuple of 2 values \(a, b\), not 'EPSG'; keys are given as a list"),
        (("a", "b"), [("EPSG", 4326, 1)], r"is a tuple of 2 values \(a, b\), not \('EPSG', 4326, 1\)"),
        ("a", [("EPSG", 4326)], r"is one value, not \('EPSG', 4326\)"),
        ("a", [None], "a key cannot be None"),
        ("a", [1.5], "a key cannot be 1.5"),
        ("a", "EPSG", "an iterable of ids, not one"),
    ],
)
def test_what_is_no_key_of_the_collection_is_refused(tmp_path, key, ids, reason):
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as db:
        db.execute("CREATE TABLE crs (a TEXT, b INTEGER)")
    source = SQLiteSource(tmp_path / "s.db", Schema("crs", key=key))
    with mmcache.open(tmp_path / "c.mmc", source, build=False) as cache, pytest.raises(TypeError, match=reason):
        cache.invalidate(ids)
