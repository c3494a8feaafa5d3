"""The control page: what is said on it is heard in order, or known to be lost; what is stored in part is not there."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import BuildError, CorruptFileError, LockTimeoutError, MmcacheError, PublishError, SourceError
from mmcache.format.header import Header, Tokens
from mmcache.sharing.attach import attach
from mmcache.sharing.events import Event, Kind, ids_events
from mmcache.sharing.head import (
    ANNOUNCED,
    BUILDER,
    COUNT,
    COVERED,
    FAILURE,
    FAR,
    HEAD_SIZE,
    PANIC,
    VERIFIED,
    Announced,
    Builder,
    Coverage,
    Failure,
    pack_record,
    text_of,
)
from mmcache.sharing.page import MovedError, Page, page_path, private_page, wake_path
from tests.support import inside
from tests.support.bank import make_bank, name_of, source_of
from tests.support.faults import FailName, FailNth, faults
from tests.support.observe import stop
from tests.support.processes import Child, ask_child, child, ended, forked
from tests.support.waits import PATIENCE

pytestmark = pytest.mark.usefixtures("no_leaks")

HEADER = Header(
    file_size=4096,
    section_count=3,
    generation=7,
    created_ns=5,
    elapsed_ns=9,
    build_id=bytes(range(16)),
    sha256=bytes(32),
)
OLD, NEW, NEWER = (1, 2, 3, 4), (1, 3, 3, 4), (1, 4, 3, 4)
HARD = Event(Kind.HARD, "config_updated")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.mmc")


@pytest.fixture
def page(path: str) -> Iterator[Page]:
    with opened(path) as page:
        yield page


@contextlib.contextmanager
def opened(path: str) -> Iterator[Page]:
    """The page that all share."""
    with contextlib.closing(attach(path)) as page:
        assert page.problem is None
        assert page.shared
        yield page


def ids(*keys: Any) -> list[Event]:
    return ids_events("items", keys, "record_stored")


Place = tuple[int, int]
"""A position of the log, and the chain there."""
BEGIN = (0, 0)


def heard(page: Page, place: Place = BEGIN) -> list[Event] | None:
    return page.since(*place).events


def end_of(page: Page) -> Place:
    """Of what was logged."""
    head = page.head()
    assert head is not None
    assert head.logged is not None
    return head.logged, head.chain


def in_line(page: Page) -> bool:
    """Whether the word is what the last event made it."""
    head = page.head()
    assert head is not None
    return page.accepts(page.word[0], head) and page.word[0] % FAR == head.logged


def scribble(path: str, at: int, data: bytes) -> None:
    with open(page_path(path), "r+b") as file:
        file.seek(at)
        file.write(data)


# --- saying and hearing -----------------------------------------------------------------------------------------------


def test_a_new_page_says_nothing(page):
    head = page.head()
    assert head is not None
    assert page.tokens() == Tokens(0, 0, 0, page.nonce)
    news = page.since(*BEGIN)
    assert (news.events, news.until, news.chain) == ([], *BEGIN)
    assert (head.verified, head.announced, head.covered, page.head().builder, page.failure) == (
        (),
        None,
        None,
        None,
        None,
    )
    assert not page.knows(HEADER, OLD)
    assert page.writable
    assert page.is_current()
    assert abs(page.identity.created_ns / 1e9 - time.time()) < 3600


def test_what_is_said_is_heard_in_order_by_all(page, path):
    with opened(path) as other:
        assert page.say(ids("a"))
        assert other.say([HARD])
        assert page.say([*ids("b", 7), Event(Kind.COLLECTION, "manual", ("notes",))])
        said = [*ids("a"), HARD, *ids("b", 7), Event(Kind.COLLECTION, "manual", ("notes",))]
        assert heard(page) == heard(other) == said


def test_what_was_heard_is_not_heard_again(page):
    page.say(ids("a"))
    place = end_of(page)
    assert heard(page, place) == []
    page.say(ids("b"))
    assert heard(page, place) == ids("b")


def test_everything_said_changes_the_word_that_readers_compare(page, path):
    with opened(path) as other:
        for say in (lambda: page.say(ids("a")), lambda: page.say([HARD]), page.panic, page.wake_readers):
            before = other.word[0]
            say()
            assert other.word[0] != before


def test_a_word_of_the_count_is_explained_by_what_was_heard(page):
    page.say([HARD])
    news = page.since(*BEGIN)
    assert in_line(page)
    assert page.accepts(page.word[0], news.head)
    page.say([HARD])
    assert not page.accepts(page.word[0], news.head)


def test_a_word_stored_without_the_lock_is_explained_by_nothing_but_a_poll(page):
    page.panic()
    news = page.since(*BEGIN)
    assert news.head.panic
    assert not page.accepts(page.word[0], news.head)
    page.settle(news.head)
    assert page.accepts(page.word[0], news.head)


def test_a_position_that_was_never_reached_is_of_another_page(page):
    page.say([HARD])
    with pytest.raises(MovedError):
        page.since(end_of(page)[0] + 8, 5)


def test_a_page_put_back_to_an_earlier_state_is_of_another_history(page, path):
    """Written on by processes that do not know, it has logged as much as before, or more."""
    page.say(ids("a"))
    earlier = Path(page_path(path)).read_bytes()
    page.say(ids("b"))
    place = end_of(page)
    scribble(path, 0, earlier)
    with pytest.raises(MovedError):
        page.since(*place)
    page.say(ids("c"))
    with pytest.raises(MovedError):
        page.since(*place)
    page.say(ids("d"))
    assert heard(page, place) is None
    assert heard(page) == [*ids("a"), *ids("c"), *ids("d")]


def test_a_page_in_memory_is_heard_by_its_own_process():
    page = private_page("/nowhere/items.mmc", "because")
    before = page.word[0]
    begun = time.time()
    assert page.last_said() == 0.0
    assert page.say(ids("a"))
    assert page.word[0] != before
    assert heard(page) == ids("a")
    assert begun - 1 < page.last_said() <= time.time()
    page.panic()
    assert page.tokens().hard
    assert page.accepts(page.word[0], page.since(*BEGIN).head)
    assert (page.shared, page.writable, page.is_current(), page.problem) == (False, True, False, "because")


# --- the ring ---------------------------------------------------------------------------------------------------------


def test_events_come_back_in_order_round_the_ring_for_many_laps(path):
    chosen = random.Random(1)
    with inside.small_log(4096), opened(path) as page, opened(path) as other:
        place = BEGIN
        for batch in range(900):
            said = ids(*(f"{batch}.{i}" for i in range(chosen.randint(1, 40))))
            assert page.say(said)
            assert heard(other, place) == said
            place = end_of(other)
        assert place[0] > 20 * 4096
        assert os.stat(page_path(path)).st_size <= HEAD_SIZE + 4096


def test_all_of_the_window_can_be_heard_and_no_more(path):
    with inside.small_log(4096), opened(path) as page:
        ends = [BEGIN]
        for i in range(100):
            page.say(ids(f"{i:03}"))
            ends.append(end_of(page))
        size = ends[1][0]
        for i in range(99):
            found = heard(page, ends[i])
            is_there = ends[100][0] - ends[i][0] <= 2048
            assert (found is not None) == is_there
            assert found is None or found == [event for k in range(i, 100) for event in ids(f"{k:03}")]
        assert 10 < 2048 // size < 90, "both were tried"


@pytest.mark.parametrize("byte", [0, 8, 24, 40])
def test_an_event_that_was_scribbled_on_is_lost_and_later_ones_are_not(page, path, byte):
    page.say(ids("a"))
    place = end_of(page)
    page.say(ids("b"))
    scribble(path, HEAD_SIZE + byte, b"\xa5")
    assert heard(page) is None
    assert heard(page, place) == ids("b")


def test_an_event_beyond_the_count_is_not_heard(page, path):
    """An appender that was killed leaves it there; the next one overwrites it."""
    page.say(ids("a"))
    place = end_of(page)
    with open(page_path(path), "ab") as file:
        file.write(b"remains of an append")
    assert heard(page, place) == []
    page.say(ids("b"))
    assert heard(page) == [*ids("a"), *ids("b")]


def test_appends_of_four_processes_are_all_heard(page, path):
    """And a reader that follows them hears no id that no process said."""
    count = 1_500

    def say(number: int) -> None:
        with opened(path) as mine:
            for i in range(count):
                assert mine.say(ids(f"{number}.{i}"))

    pids = [forked(partial(say, number)) for number in range(4)]
    seen: list[str] = []
    place = BEGIN
    deadline = time.monotonic() + 10 * PATIENCE
    while len(seen) < 4 * count and time.monotonic() < deadline:
        news = page.since(*place)
        assert news.events is not None
        seen += [key for event in news.events for key in event.payload[1]]
        place = news.until, news.chain
        os.sched_yield()
    assert [ended(pid) for pid in pids] == [0] * 4
    assert len(seen) == 4 * count
    for number in range(4):
        own = [key for key in seen if key.startswith(f"{number}.")]
        assert own == [f"{number}.{i}" for i in range(count)]


# --- killed, or refused, at each store --------------------------------------------------------------------------------

WHEREABOUTS = {"in the middle": 0, "over the end of the ring": 4096 - 40}


@pytest.mark.parametrize("where", WHEREABOUTS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_append_killed_at_a_store_is_said_whole_or_not_at_all(path, where, after):
    said = [*ids("a", "b"), HARD]
    with inside.small_log(4096), opened(path) as page:
        if WHEREABOUTS[where]:
            fill(page, WHEREABOUTS[where])
        stores = ask_child(lambda: inside.say_killed_at_store(page, said))
        assert stores == (4 if WHEREABOUTS[where] else 3)
    for at in range(stores):
        with inside.small_log(4096), opened(path) as page:
            if WHEREABOUTS[where]:
                fill(page, WHEREABOUTS[where])
            place, word = end_of(page), page.word[0]
            died = ended(forked(partial(inside.say_killed_at_store, page, said, at, after=after)))
            assert died == -signal.SIGKILL
            is_said = at > stores - 2 or (at == stores - 2 and after)
            assert heard(page, place) == (said if is_said else [])
            page.settle(page.since(*place).head)
            assert in_line(page)
            assert (page.word[0] != word) == is_said
            assert page.say(ids("next"))
            assert heard(page, place) == [*(said if is_said else []), *ids("next")]
        os.unlink(page_path(path))


def fill(page: Page, position: int) -> None:
    """Say things until the next event stands at a position of the ring's first lap, or a little before it."""
    (one,) = ids("x")
    while True:
        before = page.tokens().ring
        page.say([one])
        size = page.tokens().ring - before
        if before + 2 * size > position:
            return


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_refused_store_says_nothing_or_all_and_raises(page, path, at, error):
    page.say(ids("before"))
    place = end_of(page)
    with faults(FailNth("pwrite", at, error)), pytest.raises(PublishError):
        page.say(ids("a"))
    is_said = at == 2
    assert heard(page, place) == (ids("a") if is_said else [])
    assert page.say(ids("b"))
    assert heard(page, place) == [*(ids("a") if is_said else []), *ids("b")]
    assert in_line(page)


def test_an_append_to_a_full_disk_in_part_is_overwritten_by_the_next(page):
    class InPart(FailNth):
        """Half of the first store gets through."""

        def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Any) -> Any:
            if name == "pwrite" and not self.seen:
                self.seen.append(number)
                os.pwrite(args[0], args[1][: len(args[1]) // 2], args[2])
                raise OSError(self.error, "full")
            return call()

    with faults(InPart("pwrite", 0, errno.ENOSPC)), pytest.raises(PublishError):
        page.say(ids(*range(100)))
    assert heard(page) == []
    page.say(ids("b"))
    assert heard(page) == ids("b")


def test_what_cannot_be_read_for_a_moment_is_read_again(page):
    page.say(ids("a"))
    with faults(FailNth("pread", 1, errno.EIO)):
        assert heard(page) == ids("a")


def test_a_page_that_cannot_be_read_is_one_to_leave(page):
    page.say(ids("a"))
    with faults(FailName("pread", errno.EIO)), pytest.raises(MovedError):
        page.since(*BEGIN)


# --- the page lock ----------------------------------------------------------------------------------------------------


def hold(path: str) -> Any:
    def work(here: Child) -> None:
        with inside.page_lock(path):
            here.say()
            here.hear()

    return work


def test_while_the_lock_is_held_nothing_is_said_and_all_is_panic(page, path):
    with child(hold(path)) as holder:
        holder.hear()
        assert not page.say(ids("a"))
        assert heard(page) == []
        page.panic()
        assert page.tokens().hard != 0
        holder.kill()
    assert page.say(ids("a")), "a lock ends with its holder"


def test_a_stopped_lock_holder_makes_an_invalidation_hard(path, tmp_path):
    make_bank(tmp_path / "bank.db", 5)
    source = source_of(tmp_path / "bank.db")
    with mmcache.open(path, source, executor="external", check_interval=3600) as cache, child(hold(path)) as holder:
        other = mmcache.open(path, source, executor="external", check_interval=3600)
        assert other.stats().state == "fresh"
        holder.hear()
        stop(holder.pid)
        assert cache.invalidate([name_of(1)]) == "hard"
        other.get(name_of(2))
        assert other.stats().fallbacks == {"invalidated": 1}
        assert cache.status().state == other.stats().state == "invalidated"
        holder.kill()
        cache.rebuild()
        other.get(name_of(2))
        assert other.stats().state == "fresh"
        other.close()
    source.close()


def test_panic_is_not_undone_by_what_is_said_later(page):
    page.panic()
    panic = page.tokens().hard
    page.say(ids("a"))
    assert page.tokens().hard == panic


def test_each_panic_is_another(page):
    page.panic()
    first = page.tokens().hard
    page.panic()
    assert page.tokens().hard not in (0, first)


# --- another page at the path -----------------------------------------------------------------------------------------


def test_an_appender_whose_page_was_replaced_says_so(page, path):
    os.unlink(page_path(path))
    assert not page.is_current()
    with pytest.raises(MovedError):
        page.say([HARD])
    with opened(path) as other:
        assert other.nonce != page.nonce
        with pytest.raises(MovedError):
            page.say([HARD])
        assert heard(other) == []
    with pytest.raises(MovedError):
        page.panic()


def test_a_page_with_a_second_name_is_not_current(page, path, tmp_path):
    os.link(page_path(path), tmp_path / "second")
    assert not page.is_current()
    os.unlink(tmp_path / "second")
    assert page.is_current()


def test_a_page_that_another_was_written_over_is_one_to_leave(page, path, tmp_path):
    elsewhere = str(tmp_path / "other.mmc")
    with opened(elsewhere):
        pass
    with open(page_path(path), "r+b") as file:
        file.write(Path(page_path(elsewhere)).read_bytes())
    with pytest.raises(MovedError):
        page.since(*BEGIN)
    with pytest.raises(MovedError):
        page.say([HARD])
    with pytest.raises(MovedError):
        page.tokens()


def test_an_emptied_page_is_one_to_leave(page, path):
    os.truncate(page_path(path), 0)
    with pytest.raises(MovedError):
        page.since(*BEGIN)
    with pytest.raises(MovedError):
        page.say([HARD])


def test_a_page_whose_wake_file_is_gone_is_replaced_with_its_events(page, path):
    page.say(ids("a"))
    os.unlink(wake_path(path, page.nonce))
    assert not page.is_current()
    with pytest.raises(MovedError):
        page.say(ids("b"))
    with opened(path) as other:
        assert other.nonce != page.nonce
        assert heard(other) == ids("a")


@pytest.mark.parametrize("content", [b"x" * 8, b"x" * 100], ids=["other bytes", "longer"])
def test_a_scribbled_wake_file_takes_no_event_back(page, path, content):
    """It is written over in place; cut short, it would be the limit of what is mapped."""
    with open(wake_path(path, page.nonce), "r+b") as file:
        file.write(content)
    with contextlib.suppress(PublishError):
        page.say(ids("a"))
    assert heard(page) == ids("a")


# --- records ----------------------------------------------------------------------------------------------------------

TOKENS = Tokens(0, 2, 3, 4)
COVERED_AS = (HEADER, TOKENS, 100, 5, b"f" * 32)
RECORDS: dict[str, tuple[int, Any, Any]] = {
    "announced": (ANNOUNCED, lambda page: page.record_announced(HEADER), lambda page: page.head().announced),
    "covered": (COVERED, lambda page: page.record_covered(*COVERED_AS), lambda page: page.head().covered),
    "builder": (BUILDER, lambda page: page.record_builder(5, 10**9, 2 * 10**9), lambda page: page.head().builder),
    "failure": (FAILURE, lambda page: page.record_failure(SourceError("x" * 500)), lambda page: page.failure),
    "verified": (
        VERIFIED[0],
        lambda page: page.record_built(HEADER, OLD, keep=None),
        lambda page: page.head().verified or None,
    ),
}


def test_records_come_back_as_they_were(page, path):
    for _, record, _ in RECORDS.values():
        record(page)
    with opened(path) as other:
        head = other.head()
        assert head is not None
        assert head.announced == Announced(7, HEADER.build_id)
        assert head.covered == Coverage(7, HEADER.build_id, *COVERED_AS[1:])
        assert head.builder == Builder(5, 1.0, 2.0)
        assert other.failure is not None
        assert other.failure.error.message == "x" * 500
        assert other.knows(HEADER, OLD)
        assert heard(other) == [], "events are not touched"


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_stored_in_part_is_none(page, path, name):
    at, record, found = RECORDS[name]
    before = Path(page_path(path)).read_bytes().ljust(HEAD_SIZE, b"\0")
    record(page)
    assert found(page) is not None
    whole = Path(page_path(path)).read_bytes()
    changed = [i for i in range(HEAD_SIZE) if whole[i : i + 1] != before[i : i + 1]]
    for end in range(changed[0], changed[-1] + 1, max(1, (changed[-1] - changed[0]) // 40)):
        scribble(path, at, whole[at:end] + before[end : changed[-1] + 1])
        assert found(page) is None
    scribble(path, 0, whole[:HEAD_SIZE])
    assert found(page) is not None


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_was_scribbled_on_is_none_until_it_is_stored_again(page, path, name):
    at, record, found = RECORDS[name]
    record(page)
    scribble(path, at + 3, b"\xa5")
    assert found(page) is None
    assert heard(page) == []
    record(page)
    assert found(page) is not None


def test_a_record_of_one_place_is_none_at_another(page, path):
    page.record_built(HEADER, OLD, keep=None)
    data = Path(page_path(path)).read_bytes()
    scribble(path, VERIFIED[1], data[VERIFIED[0] : VERIFIED[1]])
    scribble(path, VERIFIED[0], bytes(64))
    assert not page.knows(HEADER, OLD)


@pytest.mark.parametrize("at", [0, COUNT])
def test_a_page_without_its_identity_or_count_is_one_to_leave(page, path, at):
    scribble(path, at + 8 if at == 0 else at, b"\xff" * 8)
    with pytest.raises(MovedError):
        page.since(*BEGIN)


def test_a_count_that_no_page_reaches_is_not_believed(page, path):
    scribble(path, COUNT, pack_record(COUNT, FAR, 0))
    with pytest.raises(MovedError):
        page.since(*BEGIN)


def test_random_damage_is_never_an_error_of_another_kind(page, path):
    """And says nothing untrue: a record that it spares is as it was."""
    chosen = random.Random(5)
    page.record_failure(SourceError("the disk is on fire"))
    page.record_announced(HEADER)
    page.say(ids(*range(50)))
    right = Path(page_path(path)).read_bytes()
    for _ in range(300):
        data = bytearray(right)
        for _ in range(chosen.randint(1, 30)):
            at = chosen.choice([chosen.randrange(0, 1900, 8), chosen.randrange(0, len(data) - 8, 8)])
            data[at : at + 8] = chosen.choice([chosen.randbytes(8), b"\xff" * 8, bytes(8)])
        scribble(path, 0, bytes(data))
        with contextlib.suppress(MovedError):
            assert page.since(*BEGIN).events in (None, ids(*range(50)), [])
        assert page.failure is None or page.failure.error.message == "the disk is on fire"
        head = page.head()
        assert head is None or head.announced in (None, Announced(7, HEADER.build_id))
        assert head is None or head.covered is None
        with contextlib.suppress(MovedError):
            page.say(ids("a"))


# --- verified ---------------------------------------------------------------------------------------------------------


def test_verified_counts_for_one_file_and_one_content(page):
    page.record_verified(HEADER, OLD)
    assert page.knows(HEADER, OLD)
    for other in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        assert not page.knows(HEADER, other)
    assert not page.knows(replace(HEADER, build_id=bytes(16)), OLD)


def test_the_published_file_stays_verified_beside_the_next(page):
    page.record_built(HEADER, OLD, keep=None)
    page.record_built(HEADER, NEW, keep=OLD)
    assert page.knows(HEADER, OLD)
    assert page.knows(HEADER, NEW)
    page.record_built(HEADER, NEWER, keep=NEW)
    assert not page.knows(HEADER, OLD)
    assert page.knows(HEADER, NEW)
    assert page.knows(HEADER, NEWER)


def test_what_a_reader_verified_takes_no_builders_place(page):
    page.record_built(HEADER, OLD, keep=None)
    page.record_built(HEADER, NEW, keep=OLD)
    page.record_verified(HEADER, NEWER)
    assert all(page.knows(HEADER, file) for file in (OLD, NEW, NEWER))


def test_a_page_in_memory_vouches_for_nothing():
    page = private_page("/nowhere/items.mmc", "because")
    page.record_verified(HEADER, OLD)
    assert not page.knows(HEADER, OLD)


# --- failures ---------------------------------------------------------------------------------------------------------


def failure_of(page: Page) -> Failure:
    found = page.failure
    assert found is not None
    return found


@pytest.mark.parametrize(
    "error",
    [
        SourceError("no such table: ä", path="/data/bank.db"),
        BuildError.of("items", "k1", "a value that msgpack cannot carry"),
        PublishError("could not reserve 5 bytes", path="/x", errno=errno.ENOSPC),
        LockTimeoutError("another build holds it"),
        CorruptFileError("", path="/data/items.mmc"),
        MmcacheError("two\nlines\n\nand more"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_as_it_was(page, path, error):
    page.record_failure(error)
    with opened(path) as other:
        found = failure_of(other).error
    assert type(found) is type(error)
    assert (found.message, found.path) == (error.message, error.path)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("k"), ZeroDivisionError(), KeyboardInterrupt()])
def test_an_error_of_another_kind_comes_back_as_the_sources(page, error):
    page.record_failure(error)
    found = failure_of(page).error
    assert type(found) is SourceError
    assert type(error).__name__ in found.message


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe\xfd" * 100,
        b"os.system\n\nrm",
        b"__class__\n\nx",
        b"annotations\n/p\nx",
        b"__all__\n\nx",
        b"\n" * 512,
        b"KeyboardInterrupt\n\nx",
        b"BuildError",
    ],
)
def test_no_text_of_a_page_becomes_anything_but_an_error_of_ours(page, path, text):
    now = time.monotonic_ns()
    scribble(path, FAILURE, pack_record(FAILURE, 1, now, now + 10**9, text))
    found = failure_of(page).error
    assert isinstance(found, MmcacheError)
    assert str(found) is not None


@pytest.mark.parametrize(("at", "until"), [(3600, 3601), (-1, 3600), (0, 9e9)])
def test_a_failure_recorded_by_another_clock_is_none(page, path, at, until):
    now = time.monotonic_ns()
    record = pack_record(FAILURE, 1, now + int(at * 1e9), now + int(until * 1e9), text_of(SourceError("x")))
    scribble(path, FAILURE, record)
    assert page.failure is None


def test_a_text_that_is_too_long_is_cut(page):
    page.record_failure(SourceError("ä" * 5_000))
    assert 200 < len(failure_of(page).error.message) < 1024
    assert len(text_of(SourceError("ä" * 5_000))) <= 1024


def test_the_pause_grows_with_every_failure_and_ends_with_success(page, path):
    pauses = []
    for attempt in range(1, 13):
        page.record_failure(SourceError("again"))
        failure = failure_of(page)
        assert failure.attempts == attempt
        pauses.append(failure.until - failure.at)
    assert 0.5 < pauses[0] < 1.5
    assert all(pause <= 75 for pause in pauses)
    assert pauses[3] > 2 * pauses[0]
    assert min(pauses[-3:]) > 40
    page.record_failure(None)
    with opened(path) as other:
        assert other.failure is None
    page.record_failure(SourceError("once more"))
    assert failure_of(page).attempts == 1


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_builder_captures_what_was_said_so_far(page):
    page.say(ids("a"))
    captured = page.tokens()
    assert captured == Tokens(end_of(page)[1], 0, end_of(page)[0], page.nonce)
    page.say(ids("b"))
    place = page.position_of(captured)
    assert place is not None
    assert heard(page, place) == ids("b")


def test_what_another_page_counted_is_no_position_here(page):
    assert page.position_of(Tokens(0, 0, 8, page.nonce ^ 1)) is None
    assert page.position_of(Tokens(0, 0, 8, 0)) is None


def test_a_file_from_elsewhere_is_no_reason_for_distrust(page):
    assert page.distrusts(page.nonce & 0xFFFF | 5 << 40), "of a page that was here since the machine started"
    assert not page.distrusts(page.nonce ^ 1), "of another machine"


def test_panic_has_a_place_of_its_own(page, path):
    page.panic()
    assert Path(page_path(path)).read_bytes()[PANIC : PANIC + 8] == page.tokens().hard.to_bytes(8, "little")
