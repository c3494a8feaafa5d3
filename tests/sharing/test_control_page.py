"""The control page: one for all, whole at any moment, and where it cannot be, a cache that says so and goes on."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import random
import shutil
import signal
import sqlite3
import struct
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mmcache.sharing.control import REASONS, RING_SIZE, WAKE, ControlPage, attach, control_name, entry_of, look
from mmcache.tiers import Tiers

import mmcache
from mmcache import BuildError, CorruptFileError, LockTimeoutError, MmcacheError, PublishError, SourceError
from mmcache.format.header import Header, Tokens
from mmcache.sharing import control
from mmcache.storage import fs, shared
from tests.cache.bank import insert_item, make_bank, source_of
from tests.storage.faults import FailName, faults, in_child

pytestmark = pytest.mark.usefixtures("no_leaks")

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners, which takes root")
NOBODY, STRANGER = 65_534, 61_234
HEADER = Header(
    file_size=4096,
    section_count=3,
    generation=7,
    created_ns=5,
    elapsed_ns=9,
    build_id=bytes(range(16)),
    sha256=bytes(32),
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.mmc")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="mmcache-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def shared_page(path: str) -> ControlPage:
    page = attach(path)
    assert page.problem is None
    assert page.shared
    return page


def words_at(path: str) -> array[int]:
    return array("Q", Path(control_name(path)).read_bytes())


def put(path: str, words: array[int]) -> None:
    """Other words in the page's place, under another inode, as after a crash or a restart."""
    Path(f"{path}.fresh").write_bytes(words.tobytes())
    os.replace(f"{path}.fresh", control_name(path))


def in_processes(count: int, action: Callable[[int], None]) -> None:
    """As many processes at once, all of which must do without an exception."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                action(number)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count


def as_nobody(action: Callable[[], object]) -> None:
    def switched() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        action()

    assert in_child(switched) == 0


# --- one page for all -------------------------------------------------------------------------------------------------


def test_whoever_comes_first_makes_it_and_all_have_the_same(path, tmp_path):
    told = shared.create(str(tmp_path / "told"), bytes(64)) and shared.open_shared(str(tmp_path / "told"), 64)
    assert told

    def arrive(number: int) -> None:
        told.words[number] = shared_page(path).nonce

    in_processes(8, arrive)
    assert set(told.words.tolist()) == {shared_page(path).nonce}
    assert told.words[0] != 0
    assert sorted(os.listdir(tmp_path)) == ["items.mmc.ctl", "told"]


def test_it_is_never_truncated_resized_or_replaced_while_it_is_right(path):
    mmcache_file = Path(path)
    make_bank(mmcache_file.parent / "bank.db", 5)
    source = source_of(mmcache_file.parent / "bank.db")
    page = shared_page(path)
    before = os.stat(control_name(path))
    assert before.st_size == control.SIZE
    with mmcache.open(path, source) as cache:
        cache.invalidate()
        cache.invalidate(["item-1-ä"])
        cache.rebuild()
    mmcache.sharing.publishing.clear(path)
    after = os.stat(control_name(path))
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert shared_page(path).nonce == page.nonce
    source.close()


def test_a_new_page_says_nothing(path):
    page = shared_page(path)
    assert page.tokens() == Tokens(0, 0, 0, page.nonce)
    assert page.generation == 0
    assert page.entries(0, 0) == []
    assert [page.last(kind) for kind in ("soft", "hard", "ids")] == [None] * 3
    assert page.builder is None
    assert page.failure is None
    assert page.revalidation(HEADER) is None
    assert not page.knows(HEADER, (1, 2, 3, 4))
    assert page.writable
    assert page.is_current()
    assert abs(page.created - time.time()) < 60


def test_looking_makes_nothing(path):
    assert look(path) is None
    assert os.listdir(os.path.dirname(path)) == []
    nonce = shared_page(path).nonce
    found = look(path)
    assert found is not None
    assert found.nonce == nonce


def test_every_page_has_a_nonce_of_its_own_and_the_boots_tag(path):
    nonces = set()
    for _ in range(20):
        page = shared_page(path)
        nonces.add(page.nonce)
        assert page.distrusts(page.nonce)
        os.unlink(control_name(path))
    assert len(nonces) == 20


# --- a page that is not right -----------------------------------------------------------------------------------------


def test_a_page_that_was_deleted_is_made_again_by_many_at_once_as_one(path):
    first = shared_page(path)
    os.unlink(control_name(path))
    assert not first.is_current()
    in_processes(6, lambda _: None if shared_page(path).nonce != first.nonce else pytest.fail("the old one"))
    assert shared_page(path).is_current()


@pytest.mark.parametrize(
    "content",
    [b"", b"x", bytes(control.SIZE), bytes(control.SIZE - 8), bytes(control.SIZE + 4096), b"\xff" * control.SIZE],
    ids=["empty", "a byte", "zeros", "short", "long", "ones"],
)
def test_garbage_is_replaced_by_a_page_that_distrusts_what_was_before(path, content):
    Path(control_name(path)).write_bytes(content)
    assert look(path) is None
    page = shared_page(path)
    assert page.tokens()[:3] == (0, 0, 0)
    assert page.distrusts(123 << 16)
    assert os.stat(control_name(path)).st_size == control.SIZE


def test_random_damage_is_never_an_error_and_says_nothing_untrue_of_a_failure(path):
    chosen = random.Random(5)
    shared_page(path).failed(SourceError("the disk is on fire"))
    right = words_at(path)
    for _ in range(200):
        words = array("Q", right)
        for _ in range(chosen.randint(1, 30)):
            words[chosen.choice([chosen.randrange(200), chosen.randrange(len(words))])] = chosen.getrandbits(64)
        put(path, words)
        page = attach(path)
        assert page.shared
        since, until = sorted([page.tokens().ring - chosen.randrange(6000), page.tokens().ring])
        entries = page.entries(max(since, 0), until)
        assert entries is None or all(0 <= entry < 1 << 56 for entry in entries)
        assert page.failure is None or page.failure.error.message == "the disk is on fire"
        assert page.revalidation(HEADER) is None
        assert page.builder is None or page.builder.pid
        assert [page.last(kind) for kind in ("soft", "hard", "ids")]
        page.append([1], "manual")
        assert page.tokens().ring == (words[control._RING] + 1 if words[control._MAGIC] == control._FORM else 1)


@pytest.mark.parametrize("said", [None, "hard", "ids"])
@pytest.mark.parametrize("built", ["before", "after", "without a file"])
def test_the_page_of_an_earlier_boot_is_replaced_and_what_was_open_on_it_is_not_forgotten(path, said, built):
    """After a restart, ids that nobody had built in are on a page that counts no more: its successor distrusts."""

    def say(page: ControlPage) -> None:
        if said == "ids":
            assert page.append([entry_of("items", "a")], "record_stored")
        elif said is not None:
            page.invalidate("manual", hard=said == "hard")

    page = shared_page(path)
    if built == "after":
        say(page)
    if built != "without a file":
        mmcache.build(path, [{"id": "a"}], mmcache.Schema("items"))
    if built != "after":
        say(page)
    earlier = page.nonce & ~0xFFFF | (page.nonce + 1) & 0xFFFF
    words = words_at(path)
    words[control._BOOT] ^= 1
    put(path, words)

    fresh = shared_page(path)
    assert fresh.nonce != page.nonce
    assert fresh.tokens()[:3] == (0, 0, 0)
    assert fresh.distrusts(earlier) == (said is not None and built == "before")
    assert shared_page(path).nonce == fresh.nonce


def test_a_file_from_elsewhere_is_no_reason_for_distrust(path):
    page = shared_page(path)
    assert not page.distrusts(page.nonce ^ 1)
    page.distrust()
    assert page.distrusts(page.nonce ^ 1)


# --- places where there can be none -----------------------------------------------------------------------------------


def degraded(path: str, problem: str) -> ControlPage:
    page = attach(path)
    assert not page.shared
    assert page.problem is not None
    assert problem in page.problem
    assert page.writable
    page.invalidate("manual", hard=True)
    assert page.tokens().hard
    assert not page.is_current()
    assert page.claim()
    return page


@pytest.mark.parametrize("kind", ["fifo", "symlink", "dangling", "directory", "socket"])
def test_what_stands_in_its_place_is_neither_followed_nor_waited_for(path, tmp_path, kind):
    victim = tmp_path / "victim"
    where = control_name(path)
    if kind == "fifo":
        os.mkfifo(where)
    elif kind == "symlink":
        victim.write_bytes(bytes(control.SIZE))
        os.symlink(victim, where)
    elif kind == "dangling":
        os.symlink(victim, where)
    elif kind == "directory":
        os.mkdir(where)
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(where)
    degraded(path, where)
    assert not victim.exists() or victim.read_bytes() == bytes(control.SIZE)
    assert os.path.lexists(where)


@ROOT
def test_a_strangers_page_is_not_used(path):
    shared_page(path)
    os.chown(control_name(path), STRANGER, STRANGER)
    degraded(path, f"owned by uid {STRANGER}")


def test_a_directory_that_anyone_may_write_has_none(path, tmp_path):
    tmp_path.chmod(0o777)
    degraded(path, "chmod o-w")


def test_a_directory_that_is_not_there_has_none(tmp_path):
    degraded(str(tmp_path / "missing" / "items.mmc"), "create the directory first")


@pytest.mark.parametrize(
    ("call", "error", "problem"),
    [
        ("pwrite", errno.ENOSPC, "free some space"),
        ("link", errno.EPERM, "has no hard links"),
        ("open", errno.EMFILE, "Too many open files"),
        ("map_file", errno.ENOMEM, "cannot be mapped"),
    ],
)
def test_what_the_system_refuses_degrades_and_leaves_nothing(path, tmp_path, call, error, problem):
    with faults(FailName(call, error)):
        degraded(path, problem)
    assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []
    shared_page(path)


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "cifs", "smb3", "9p", "lustre"])
def test_a_file_system_that_other_hosts_write_has_none(path, tmp_path, monkeypatch, kind):
    """The table of mounts says that the directory is of that kind."""
    table = f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 0:50 / {tmp_path} rw - {kind} server:/x rw\n".encode()

    class Mounted:
        rest: dict[int, bytes]

        def __init__(self) -> None:
            self.rest = {}

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def open(self, path: str, *args: int, **more: int) -> int:
            fd = os.open("/dev/null" if path.endswith("mountinfo") else path, *args, **more)
            if path.endswith("mountinfo"):
                self.rest[fd] = table
            return fd

        def read(self, fd: int, size: int) -> bytes:
            return self.rest.pop(fd, b"")[:size]

    shared._kind_of_device.cache_clear()
    monkeypatch.setattr(fs, "system", Mounted())
    try:
        degraded(path, f"on a {kind} file system")
    finally:
        shared._kind_of_device.cache_clear()
    assert os.listdir(tmp_path) == []


@ROOT
def test_a_directory_that_we_may_not_write_has_none_until_its_owner_makes_one(public):
    path = str(public / "items.mmc")
    as_nobody(lambda: degraded(path, "may not write here"))
    assert os.listdir(public) == []
    page = shared_page(path)

    def listen() -> None:
        mine = attach(path)
        assert mine.shared
        assert not mine.writable
        assert mine.problem is None
        assert mine.nonce == page.nonce
        assert mine.is_current()
        assert not mine.claim()
        mine.failed(SourceError("nobody hears of it"))
        mine.verified(HEADER, (1, 2, 3, 4))
        page.invalidate("config_updated", hard=True)  # the parent's mapping, inherited
        assert mine.words[WAKE] == page.words[WAKE]
        assert mine.tokens() == page.tokens()
        with pytest.raises(TypeError):
            mine.wake()

    as_nobody(listen)
    assert page.failure is None
    assert not page.knows(HEADER, (1, 2, 3, 4))


@ROOT
def test_a_read_only_page_of_an_earlier_boot_is_of_no_use_to_who_cannot_replace_it(public):
    path = str(public / "items.mmc")
    shared_page(path)
    words = words_at(path)
    words[control._BOOT] ^= 1
    put(path, words)
    as_nobody(lambda: degraded(path, "may not write here"))


# --- a cache that lives with it ---------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Iterator[mmcache.SQLiteSource]:
    make_bank(tmp_path / "bank.db", 20)
    made = source_of(tmp_path / "bank.db")
    yield made
    made.close()


def test_a_running_worker_moves_to_a_page_that_was_made_again(path, source, caplog):
    caplog.set_level(logging.INFO, "mmcache")
    with mmcache.open(path, source, check_interval=0, executor="external") as cache:
        cache["item-1-ä"]
        os.unlink(control_name(path))
        other = shared_page(path)
        cache["item-1-ä"]
        assert other.append([entry_of("items", "item-1-ä")], "manual")
        before = cache.stats().fallbacks.get("invalidated", 0)
        cache["item-1-ä"]
        cache["item-2-ä"]
        assert cache.stats().fallbacks == {"invalidated": before + 1}
    assert "page_replaced" in [getattr(record, "event", None) for record in caplog.records]


@pytest.mark.parametrize("said", ["ids", "hard", "soft"])
def test_what_was_open_on_a_page_that_went_missing_stays_open(path, source, said):
    """The source is another by now, and nobody knows what else was said: it answers until the file is built again."""
    with mmcache.open(path, source, check_interval=0, executor="external") as cache:
        cache["item-1-ä"]
        with sqlite3.connect(source.path) as db:
            insert_item(db, 1, kind="new")
        db.close()
        if said == "ids":
            cache.invalidate(["item-1-ä"])
        else:
            cache.invalidate(hard=said == "hard")
        os.unlink(control_name(path))
        cache["item-1-ä"]
        with mmcache.open(path, source, check_interval=0, executor="external") as other:
            assert other["item-1-ä"]["kind"] == "new"
            assert other.stats().state == "invalidated"
        cache.rebuild()
        assert cache["item-1-ä"]["kind"] == "new"
        assert cache.stats().state == "fresh"


@ROOT
def test_a_reader_without_rights_hears_what_is_said_and_never_builds(public):
    """The file is due at every look, and the one who reads may publish nothing: he reads on."""
    make_bank(public / "bank.db", 20)
    source = source_of(public / "bank.db")
    path = str(public / "items.mmc")
    mmcache.build(path, source)
    page = shared_page(path)

    def read() -> None:
        with mmcache.open(path, source_of(public / "bank.db"), check_interval=0) as cache:
            for _ in range(3):
                assert cache["item-1-ä"]["size"] == 1
            page.invalidate("record_stored", hard=False)
            for _ in range(3):
                assert cache["item-1-ä"]["size"] == 1
            assert cache.stats().state == "stale"
            assert cache.stats().fallbacks == {}
            page.append([entry_of("items", "item-1-ä")], "manual")
            cache["item-1-ä"]
            assert cache.stats().fallbacks == {"invalidated": 1}
            with pytest.raises(PublishError, match="no permission"):
                cache.invalidate(["item-2-ä"])
            with pytest.raises(PublishError, match="may not write here"):
                cache.rebuild()

    as_nobody(read)
    source.close()


def test_a_degraded_cache_answers_without_its_source_while_the_file_is_fresh(path, source, tmp_path):
    mmcache.build(path, source)
    os.unlink(control_name(path))
    with (
        faults(FailName("link", errno.EPERM)),
        mmcache.open(path, source, check_interval=0, executor="external") as cache,
    ):
        assert cache["item-1-ä"]["size"] == 1
        source.close()
        os.rename(tmp_path / "bank.db", tmp_path / "gone.db")
        assert cache["item-2-ä"]["size"] == 2
        assert cache.stats().fallbacks == {}
        assert cache.snapshot is not None


def test_a_degraded_cache_does_not_start_one_rebuild_after_another(path, source, monkeypatch):
    """What came of a build is told by the page: without one, the worker that started it keeps the pause."""
    mmcache.build(path, source)
    os.unlink(control_name(path))
    started = []
    spawn = Tiers._spawn

    def spawn_noted(self: Tiers) -> bool:
        started.append(self.path)
        return spawn(self)

    monkeypatch.setattr(Tiers, "_spawn", spawn_noted)
    monkeypatch.setattr(Tiers, "_can_be_built_elsewhere", lambda *_: True)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with (
        faults(FailName("link", errno.EPERM)),
        mmcache.open(path, source, check_interval=0, ttl=1000, refresh_at=1e-9) as cache,
    ):
        deadline = time.monotonic() + 30
        page = cache._tiers.page
        assert page is not None
        while page.failure is None and time.monotonic() < deadline:
            cache["item-1-ä"]
        assert page.failure is not None
        assert "ended with status 1" in str(page.failure.error)
        assert len(started) == 1
        for _ in range(50):
            cache["item-1-ä"]
        assert len(started) == 1


# --- records with checksums -------------------------------------------------------------------------------------------


def halves(words: array[int], at: int, count: int) -> Iterator[array[int]]:
    """The page with the first so many words of a record stored, and the rest as before."""
    for stored in range(count):
        torn = array("Q", words)
        for i in range(at + stored, at + count):
            torn[i] = 0
        yield torn


def test_a_failure_stored_in_part_is_none(path):
    shared_page(path).failed(SourceError("x" * 500))
    whole = words_at(path)
    for torn in halves(whole, control._FAILURE, 68):
        put(path, torn)
        assert shared_page(path).failure is None
    put(path, whole)
    assert shared_page(path).failure is not None


def test_a_revalidation_stored_in_part_leaves_the_one_before(path):
    page = shared_page(path)
    tokens = Tokens(1, 2, 3, page.nonce)
    page.revalidated(HEADER, tokens, 100, 5, b"a" * 32)
    page.revalidated(HEADER, tokens, 200, 6, b"b" * 32)
    found = page.revalidation(HEADER)
    assert found is not None
    assert (found.checked_ns, found.elapsed_ns, found.tokens, found.fingerprint) == (200, 6, tokens, b"b" * 32)
    newer = next(at for at in control._REVALIDATED if page.words[at + 6] == 200)
    whole = words_at(path)
    for torn in halves(whole, newer, 14):
        put(path, torn)
        left = shared_page(path).revalidation(HEADER)
        assert left is not None
        assert left.checked_ns == 100
    put(path, whole)
    page = shared_page(path)
    page.revalidated(HEADER, tokens, 50, 7, b"c" * 32)
    times = sorted(page.words[at + 6] for at in control._REVALIDATED)
    assert times == [50, 200], "the older is overwritten, whatever the clock says"
    latest = page.revalidation(HEADER)
    assert latest is not None
    assert latest.checked_ns == 50


def test_a_revalidation_is_of_one_file_only(path):
    page = shared_page(path)
    page.revalidated(HEADER, Tokens(), 100, 5, bytes(32))
    assert page.generation == HEADER.generation
    others: list[dict[str, Any]] = [{"generation": 8}, {"build_id": bytes(16)}]
    for other in others:
        assert page.revalidation(replace(HEADER, **other)) is None


def test_verified_counts_for_one_file_and_one_content(path):
    page = shared_page(path)
    page.verified(HEADER, (1, 2, 3, 4))
    assert page.knows(HEADER, (1, 2, 3, 4))
    for other in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        assert not page.knows(HEADER, other)
    assert not page.knows(replace(HEADER, build_id=bytes(16)), (1, 2, 3, 4))
    page.words[control._VERIFIED + 2] ^= 1
    assert not page.knows(HEADER, (1, 2, 2, 4))


def test_a_page_of_our_own_vouches_for_nothing():
    page = ControlPage(None, "because")
    page.verified(HEADER, (1, 2, 3, 4))
    assert not page.knows(HEADER, (1, 2, 3, 4))


# --- the ring ---------------------------------------------------------------------------------------------------------


def test_entries_come_back_in_order_round_the_ring_for_many_laps(path):
    page = shared_page(path)
    said = []
    for batch in range(300):
        entries = [entry_of("items", f"{batch}.{i}") for i in range(97)]
        assert page.append(entries, "manual")
        said += entries
        until = page.tokens().ring
        assert until == len(said)
        since = max(0, until - random.Random(batch).randint(0, RING_SIZE))
        assert page.entries(since, until) == said[since:]


def test_the_laps_number_comes_round_and_nothing_old_is_taken_for_new(path):
    page = shared_page(path)
    for lap in (254, 255, 256, 257):
        page.words[control._RING] = begin = lap * RING_SIZE - 2
        for position in range(begin - RING_SIZE, begin):  # as those stand there that were said before
            page.words[control._ENTRIES + position % RING_SIZE] = control._lap(position) << 56 | 7
        assert page.append([11, 12, 13, 14], "manual")
        assert page.entries(begin, begin + 4) == [11, 12, 13, 14]
        assert page.entries(begin, begin + 5) is None, "nobody has said a fifth"


def test_more_than_the_ring_holds_is_not_all_there(path):
    page = shared_page(path)
    for _ in range(3):
        page.append(list(range(1, RING_SIZE // 2 + 1)), "manual")
    until = page.tokens().ring
    assert page.entries(until - RING_SIZE, until) is not None
    assert page.entries(until - RING_SIZE - 1, until) is None
    assert page.entries(until + 1, until) is None


def test_an_entry_that_is_stored_and_not_yet_counted_is_not_seen(path):
    """A killed appender leaves entries behind the count; the next one writes over them."""
    page = shared_page(path)
    page.append([1, 2], "manual")
    page.words[control._ENTRIES + 2] = control._lap(2) << 56 | 99
    assert page.tokens().ring == 2
    assert page.entries(0, 2) == [1, 2]
    page.append([3], "manual")
    assert page.entries(0, 3) == [1, 2, 3]


def test_entries_that_are_being_written_over_are_told_from_those_that_were(path):
    page = shared_page(path)
    for _ in range(2):
        page.append(list(range(1, RING_SIZE // 2 + 1)), "manual")
    page.words[control._ENTRIES] = control._lap(RING_SIZE) << 56 | 99
    assert page.entries(0, RING_SIZE) is None
    assert page.entries(1, RING_SIZE) is not None


def test_ten_thousand_entries_of_four_processes_are_all_there(path):
    """And a reader who follows them, and for whom they wait, never sees an id that nobody said."""
    page = shared_page(path)
    count = 2_500
    heard = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def say(number: int) -> None:
        mine = shared_page(path)
        for i in range(count):
            while mine.tokens().ring > heard[0] + RING_SIZE // 2:
                time.sleep(0.0001)
            entry = entry_of("items", f"{number}.{i}")
            while not mine.append([entry], "record_stored"):
                pass

    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                say(number)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    wanted = {entry_of("items", f"{number}.{i}") for number in range(4) for i in range(count)}
    seen: list[int] = []
    deadline = time.monotonic() + 90
    try:
        while len(seen) < 4 * count and time.monotonic() < deadline:
            entries = page.entries(len(seen), page.tokens().ring)
            assert entries is not None
            seen += entries
            heard[0] = len(seen)
    finally:
        if len(seen) < 4 * count:  # some may wait to be heard
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        ended = [os.waitpid(pid, 0)[1] for pid in pids]
    assert ended == [0] * 4
    assert len(seen) == 4 * count
    assert set(seen) == wanted


def test_an_appender_whose_page_was_replaced_says_so(path):
    page = shared_page(path)
    os.unlink(control_name(path))
    assert not page.append([1], "manual")
    shared_page(path)
    assert not page.append([1], "manual")
    assert page.tokens().ring == 0


def test_ids_are_told_apart_by_collection_and_key():
    keys = ["", "a", "b", "ä", "\ud800", "a" * 10_000]
    entries = [entry_of(name, key) for name in ("items", "notes") for key in keys]
    assert len(set(entries)) == len(entries)
    assert all(0 < entry < 1 << 56 for entry in entries)
    assert {control.collection_of(entry_of("items", key)) for key in keys} == {control.wildcard_of("items")}


# --- what was said, and by whom ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", REASONS)
def test_when_and_why_is_remembered(path, reason):
    page = shared_page(path)
    begun = time.time()
    page.append([1], reason)
    page.invalidate(reason, hard=False)
    assert page.last("hard") is None
    page.invalidate(reason, hard=True)
    for kind in ("ids", "soft", "hard"):
        notice = page.last(kind)
        assert notice is not None
        assert notice.reason == reason
        assert begun - 1 < notice.at < time.time() + 1


def test_everything_said_wakes(path):
    page, other = shared_page(path), shared_page(path)
    for say in (
        lambda: page.append([1], "manual"),
        lambda: page.invalidate("manual", hard=False),
        lambda: page.invalidate("manual", hard=True),
        page.distrust,
        lambda: page.published(HEADER, (1, 2, 3, 4)),
        lambda: page.revalidated(HEADER, page.tokens(), 1, 1, bytes(32)),
        lambda: page.failed(SourceError("x")),
    ):
        before = other.words[WAKE]
        say()
        assert other.words[WAKE] != before


def test_only_one_of_many_claims_a_build(path):
    claims = shared.create(f"{path}.claims", bytes(64)) and shared.open_shared(f"{path}.claims", 64)
    assert claims
    shared_page(path)

    def claim(number: int) -> None:
        claims.words[number] = int(shared_page(path).claim())

    in_processes(8, claim)
    assert sum(claims.words) == 1
    page = shared_page(path)
    assert not page.claim()
    page.end()
    assert page.claim()
    page.words[control._CLAIMED_UNTIL] = time.monotonic_ns() + 10**18
    assert page.claim(), "nobody claims for longer than some seconds: that is of another clock"


def test_a_builder_says_who_it_is_and_how_long_it_took(path):
    page = shared_page(path)
    page.begin()
    builder = page.builder
    assert builder is not None
    assert builder.pid == os.getpid()
    assert builder.since <= time.monotonic()
    page.end()
    assert shared_page(path).builder is None
    page.begin()
    assert page.builder is not None
    assert 0 <= page.builder.takes < 60


def is_superseded(page: ControlPage) -> bool:
    return page.superseded


def test_what_was_invalidated_during_a_build_supersedes_it(path):
    page = shared_page(path)
    page.published(HEADER, (1, 2, 3, 4))
    assert is_superseded(page), "its tokens are not those of this page"
    page.revalidated(HEADER, page.tokens(), 1, 1, bytes(32))
    assert not is_superseded(page)
    captured = page.tokens()
    page.append([1], "manual")
    page.revalidated(HEADER, captured, 2, 1, bytes(32))
    assert is_superseded(page)


# --- failures ---------------------------------------------------------------------------------------------------------


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
def test_an_error_comes_back_as_it_was(path, error):
    shared_page(path).failed(error)
    failure = shared_page(path).failure
    assert failure is not None
    assert type(failure.error) is type(error)
    assert (failure.error.message, failure.error.path) == (error.message, error.path)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("k"), ZeroDivisionError()])
def test_an_error_of_another_kind_comes_back_as_the_sources(path, error):
    page = shared_page(path)
    page.failed(error)
    assert page.failure is not None
    assert type(page.failure.error) is SourceError
    assert type(error).__name__ in page.failure.error.message


def store_failure(page: ControlPage, text: bytes, *, attempts: int = 1, until: int = 2**63) -> None:
    padded = text[:512].ljust(512, b"\0")
    control._store(page.words, control._FAILURE, [attempts, 0, until, *struct.unpack("<64Q", padded)])


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
def test_no_text_of_a_page_becomes_anything_but_an_error_of_ours(path, text):
    page = shared_page(path)
    store_failure(page, text)
    failure = page.failure
    assert failure is not None
    assert isinstance(failure.error, MmcacheError)
    assert str(failure.error) is not None
    assert failure.until <= time.monotonic() + 60


def test_a_text_that_is_too_long_is_cut(path):
    page = shared_page(path)
    page.failed(SourceError("ä" * 5_000))
    assert page.failure is not None
    assert 200 < len(page.failure.error.message) < 512


def test_the_pause_grows_with_every_failure_and_ends_with_success(path):
    page = shared_page(path)
    pauses = []
    for attempt in range(1, 13):
        page.failed(SourceError("again"))
        failure = page.failure
        assert failure is not None
        assert failure.attempts == attempt
        pauses.append(failure.until - failure.at)
    assert 0.5 < pauses[0] < 1.5
    assert all(pause <= 75 for pause in pauses)
    assert pauses[3] > 2 * pauses[0]
    assert min(pauses[-3:]) > 40
    shared_page(path).succeeded()
    assert shared_page(path).failure is None
    page.failed(SourceError("once more"))
    assert page.failure is not None
    assert page.failure.attempts == 1
