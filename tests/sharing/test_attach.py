"""Attaching to the control page: one for all, made once, made anew where it is not right, and nothing is forgotten."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import PublishError, SourceError
from mmcache.format.header import Header, Tokens
from mmcache.sharing.attach import attach, open_existing
from mmcache.sharing.events import Event, Kind, ids_events
from mmcache.sharing.head import HEAD_SIZE
from mmcache.sharing.page import MovedError, Page, page_path, wake_path
from tests.support import inside
from tests.support.bank import insert_item, make_bank, name_of, open_bank, source_of
from tests.support.faults import FailName, faults
from tests.support.observe import logged
from tests.support.processes import Child, child, in_child, together
from tests.support.waits import PATIENCE, until

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
FILE = (1, 2, 3, 4)
HARD = Event(Kind.HARD)
BEGIN = (0, 0)


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


@contextlib.contextmanager
def opened(path: str, **options: Any) -> Iterator[Page]:
    with contextlib.closing(attach(path, **{"patience": PATIENCE, **options})) as page:
        assert page.problem is None
        assert page.shared
        yield page


def ids(*keys: Any) -> list[Event]:
    return ids_events("items", keys, "manual")


def heard(page: Page) -> list[Event] | None:
    return page.since(*BEGIN).events


def wakes(path: str) -> list[str]:
    return [name for name in os.listdir(os.path.dirname(path)) if name.endswith(".wake")]


def become_another_user() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def as_another_user(action: Callable[[], object]) -> None:
    def switched() -> None:
        become_another_user()
        action()

    assert in_child(switched) == 0


# --- one page for all -------------------------------------------------------------------------------------------------


def nonce_of(path: str) -> int:
    with opened(path) as page:
        return page.nonce


def test_many_that_come_at_once_have_the_same_page(path):
    nonces = together(8, lambda number: nonce_of(path))
    assert set(nonces) == {nonce_of(path)}
    assert 0 not in nonces
    found = sorted(os.listdir(os.path.dirname(path)))
    assert found == [os.path.basename(wake_path(path, nonces[0])), "items.mmc.ctl", "items.mmc.lock"]


def test_a_page_that_was_deleted_is_made_again_by_many_at_once_as_one(path):
    with opened(path) as page:
        os.unlink(page_path(path))
        nonces = together(6, lambda number: nonce_of(path))
        assert len(set(nonces)) == 1
        assert page.nonce not in nonces
    assert len(wakes(path)) == 1


def test_looking_makes_nothing(path):
    assert open_existing(path) is None
    assert os.listdir(os.path.dirname(path)) == []
    with opened(path) as page, contextlib.closing(open_existing(path)) as found:  # type: ignore[type-var]
        assert found is not None
        assert found.nonce == page.nonce


def test_a_page_that_is_right_is_never_replaced_or_cut(path, tmp_path):
    make_bank(tmp_path / "bank.db", 5)
    source = source_of(tmp_path / "bank.db")
    with opened(path) as page:
        before = os.stat(page_path(path))
        with mmcache.open(path, source, executor="external") as cache:
            cache.invalidate()
            cache.invalidate([name_of(1)])
            cache.rebuild()
        mmcache.sharing.publishing.clear(path)
        after = os.stat(page_path(path))
        assert after.st_ino == before.st_ino
        assert after.st_size >= before.st_size
        assert page.is_current()
    source.close()


def test_every_page_has_a_nonce_of_its_own_and_the_boots_tag(path):
    nonces = set()
    for _ in range(20):
        with opened(path) as page:
            nonces.add(page.nonce)
            assert page.distrusts(page.nonce)
        os.unlink(page_path(path))
    assert len(nonces) == 20


def test_old_wake_files_are_removed_and_their_readers_woken(path):
    with opened(path) as page:
        before = page.word[0]
        os.unlink(page_path(path))
        with opened(path) as other:
            assert page.word[0] != before
            assert wakes(path) == [os.path.basename(wake_path(path, other.nonce))]


# --- a page that is not right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"x", bytes(HEAD_SIZE), bytes(HEAD_SIZE - 8), bytes(10 * HEAD_SIZE), b"\xff" * HEAD_SIZE],
    ids=["empty", "a byte", "zeros", "short", "long", "ones"],
)
def test_garbage_is_replaced_by_a_page_that_distrusts_what_was_before(path, content):
    Path(page_path(path)).write_bytes(content)
    assert open_existing(path) is None
    with opened(path) as page:
        assert heard(page) == []
        assert page.identity.suspect
        assert page.distrusts(123 << 16), "whatever page a file was built with"


def test_a_first_page_distrusts_nothing_from_elsewhere(path):
    with opened(path) as page:
        assert not page.identity.suspect
        assert not page.distrusts(page.nonce ^ 1)


def say_all(page: Page) -> list[Event]:
    said = [*ids("a", 7, b"x", ("a", 1)), Event(Kind.COLLECTION, "manual", ("notes",)), HARD]
    page.say(said)
    page.record_verified(HEADER, FILE)
    page.record_announced(HEADER)
    page.record_failure(SourceError("gone"))
    page.record_builder(5, 10**9, 10**9)
    page.record_covered(HEADER, Tokens(0, 0, 8, page.nonce), 1, 1, bytes(32))
    return said


def copied(path: str) -> None:
    """As by `cp -a` into the same place: another inode."""
    shutil.copy2(page_path(path), f"{path}.copy")
    os.replace(f"{path}.copy", page_path(path))


def linked(path: str) -> None:
    os.link(page_path(path), f"{path}.second")


def wake_deleted(path: str) -> None:
    for name in wakes(path):
        os.unlink(os.path.join(os.path.dirname(path), name))


def wake_replaced(path: str) -> None:
    for name in wakes(path):
        where = os.path.join(os.path.dirname(path), name)
        Path(f"{where}.new").write_bytes(Path(where).read_bytes())
        os.replace(f"{where}.new", where)


MISPLACED = [copied, linked, wake_deleted, wake_replaced]


@pytest.mark.parametrize("misplace", MISPLACED, ids=lambda misplace: misplace.__name__)
@pytest.mark.parametrize("known", [False, True], ids=["by a newcomer", "by its user"])
def test_a_page_in_another_place_is_taken_over_whole(path, misplace, known):
    with opened(path) as page:
        said = say_all(page)
        captured = page.tokens()
        head = page.head()
        assert head is not None
        misplace(path)
        assert not page.is_current()
        assert open_existing(path) is None
        with opened(path, previous=page if known else None) as new:
            assert new.nonce != page.nonce
            assert (new.identity.parent, new.identity.taken) == (page.nonce, captured.ring)
            assert heard(new) == said
            now = new.head()
            assert now is not None
            assert now[1:] == head[1:], "and every record"
            place = new.position_of(captured)
            assert place == (head.logged, head.chain)
            new.say(ids("next"))
            assert new.since(*place).events == ids("next")
            assert heard(new) == [*said, *ids("next")]


def test_what_the_original_says_after_a_take_over_is_not_the_copies(path, tmp_path):
    """A file that was built later with the original lacks what was said on the copy since they parted."""
    other = str(tmp_path / "copy" / "items.mmc")
    with opened(path) as page:
        page.say(ids("both"))
        shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
        page.say(ids("original", "and more"))
        later = page.tokens()
        with opened(other) as copy:
            copy.say(ids("copy"))
            assert heard(copy) == [*ids("both"), *ids("copy")]
            place = copy.position_of(later)
            assert place is not None
            assert copy.since(*place).events == ids("copy")


def test_a_deleted_page_is_taken_over_by_the_process_that_has_it(path):
    with opened(path) as page:
        said = say_all(page)
        os.unlink(page_path(path))
        with opened(path, previous=page) as new:
            assert heard(new) == said
            assert not new.identity.suspect


def test_an_invalidation_without_the_lock_is_taken_over(path):
    with opened(path) as page:
        page.panic()
        panic = page.tokens().hard
        copied(path)
        with opened(path) as new:
            assert new.tokens().hard == panic != 0


def test_an_emptied_page_leaves_a_suspect_one(path):
    with opened(path) as page:
        page.say([HARD])
        os.truncate(page_path(path), 0)
        with opened(path, previous=page) as new:
            assert heard(new) == []
            assert new.identity.suspect
            assert new.distrusts(page.nonce)


def test_suspicion_is_taken_over(path):
    Path(page_path(path)).write_bytes(b"x")
    with opened(path):
        pass
    copied(path)
    with opened(path) as new:
        assert new.identity.suspect


def test_a_log_of_many_laps_is_taken_over_as_far_as_it_is_there(path):
    with inside.small_log(4096), opened(path) as page:
        for i in range(150):
            page.say(ids(f"{i:03}"))
        captured = page.tokens()
        for i in range(150, 160):
            page.say(ids(f"{i:03}"))
        copied(path)
        with opened(path) as new:
            place = new.position_of(captured)
            assert place is not None
            assert new.since(*place).events == [event for i in range(150, 160) for event in ids(f"{i:03}")]
            assert heard(new) is None, "older events are gone"
            new.say(ids("next"))
            assert new.since(*place).events[-1:] == ids("next")  # type: ignore[index]


def test_the_page_of_an_earlier_boot_is_taken_over_but_for_what_that_boot_knew(path):
    with inside.on_boot("earlier"), opened(path) as page:
        said = say_all(page)
        captured, earlier = page.tokens(), page.nonce
    with opened(path) as new:
        assert new.nonce != earlier
        assert heard(new) == said
        assert new.position_of(captured) is not None
        head = new.head()
        assert head is not None
        assert not new.knows(HEADER, FILE)
        assert (new.failure, head.builder, head.verified) == (None, None, ())
        assert head.covered is not None
    assert nonce_of(path) == new.nonce


# --- two machines -----------------------------------------------------------------------------------------------------


def test_two_machines_that_share_a_directory_have_a_page_each(path):
    with inside.on_boot("one"), opened(path) as one:
        with inside.on_boot("two"), opened(path) as two:
            two.say(ids("two"))
            assert not one.is_current()
        with opened(path, previous=one) as again:
            again.say(ids("one"))
            assert again.is_current()
            with inside.on_boot("two"), opened(path) as other:
                assert other.nonce == two.nonce
                assert heard(other) == ids("two")
            assert nonce_of(path) == again.nonce, "from now on, also for a newcomer"
            assert heard(again) == ids("one")


def test_a_machine_keeps_its_own_page_while_the_other_replaces_theirs(path):
    with inside.on_boot("one"), opened(path) as one, inside.on_boot("two"), opened(path):
        pass
    with inside.on_boot("one"), opened(path, previous=one) as own:
        with inside.on_boot("two"):
            copied(path)
            with opened(path):
                pass
        assert own.is_current()
        own.say([HARD])
        assert nonce_of(path) == own.nonce


# --- places where there can be none -----------------------------------------------------------------------------------


def degraded(path: str, problem: str) -> Page:
    page = attach(path)
    assert not page.shared
    assert page.problem is not None
    assert problem in page.problem
    assert page.writable
    page.say([HARD])
    assert heard(page) == [HARD]
    assert not page.is_current() or not page.shared
    return page


@pytest.mark.parametrize("kind", ["fifo", "symlink", "dangling", "directory", "socket"])
def test_what_stands_in_its_place_is_neither_followed_nor_waited_for(path, tmp_path, kind):
    victim = tmp_path / "victim"
    where = page_path(path)
    if kind == "fifo":
        os.mkfifo(where)
    elif kind == "symlink":
        victim.write_bytes(bytes(HEAD_SIZE))
        os.symlink(victim, where)
    elif kind == "dangling":
        os.symlink(victim, where)
    elif kind == "directory":
        os.mkdir(where)
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(where)
    degraded(path, where)
    assert not victim.exists() or victim.read_bytes() == bytes(HEAD_SIZE)
    assert os.path.lexists(where)


@ROOT
def test_a_strangers_page_is_not_used(path):
    nonce_of(path)
    os.chown(page_path(path), STRANGER, STRANGER)
    degraded(path, f"owned by uid {STRANGER}")


def test_a_directory_that_anyone_may_write_has_none(path, tmp_path):
    tmp_path.chmod(0o777)
    degraded(path, "chmod o-w")


def test_a_directory_that_is_not_there_has_none(tmp_path):
    degraded(str(tmp_path / "missing" / "items.mmc"), "create the directory first")


REFUSED = [
    ("pwrite", errno.ENOSPC, "free some space"),
    ("rename", errno.EPERM, "not permitted"),
    ("open", errno.EMFILE, "Too many open files"),
    ("map_file", errno.ENOMEM, "cannot be mapped"),
]


@pytest.mark.parametrize(("call", "error", "problem"), REFUSED, ids=[call for call, _, _ in REFUSED])
def test_what_the_system_refuses_degrades_and_leaves_nothing(path, tmp_path, call, error, problem):
    with faults(FailName(call, error)):
        degraded(path, problem)
    assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []
    with opened(path) as page:
        assert wakes(path) == [os.path.basename(wake_path(path, page.nonce))]


@pytest.mark.parametrize(("call", "error", "problem"), REFUSED[2:], ids=["open", "map_file"])
def test_a_process_without_room_replaces_no_page_that_is_right(path, call, error, problem):
    with opened(path) as page:
        with faults(FailName(call, error)):
            degraded(path, problem)
        assert page.is_current()


def test_while_the_page_lock_is_held_no_page_is_made(path):
    def hold(here: Child) -> None:
        with inside.page_lock(path):
            here.say()
            here.hear()

    with child(hold) as holder:
        holder.hear()
        degraded(path, "page lock is held")
        holder.kill()
    nonce_of(path)


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "cifs", "smb3", "9p", "lustre"])
def test_a_file_system_that_other_hosts_write_has_none(path, tmp_path, monkeypatch, kind):
    inside.mounted(monkeypatch, tmp_path, kind)
    try:
        degraded(path, f"on a {kind} file system")
    finally:
        inside.forget_mounts()
    assert os.listdir(tmp_path) == []


@ROOT
def test_a_user_without_rights_hears_as_soon_as_there_is_a_page(public):
    path = str(public / "items.mmc")
    as_another_user(lambda: degraded(path, "may not write here"))
    assert os.listdir(public) == []

    def wait_for_it(here: Child) -> None:
        become_another_user()
        page = degraded(path, "may not write here")
        before = page.word[0]
        here.say()
        here.hear()
        assert page.word[0] != before, "a get looks for a page"
        mine = attach(path, previous=page)
        assert mine.shared
        assert not mine.writable
        assert mine.is_current()
        assert heard(mine) == ids("a")
        with pytest.raises((PublishError, MovedError)):
            mine.say([HARD])
        with pytest.raises(PublishError):
            mine.record_failure(SourceError("not heard of"))
        before = mine.word[0]
        here.say()
        here.hear()
        assert mine.word[0] != before
        assert heard(mine) == [*ids("a"), HARD]

    with child(wait_for_it) as listener:
        assert listener.hear()
        with opened(path) as page:
            page.say(ids("a"))
            listener.say()
            assert listener.hear()
            page.say([HARD])
            listener.say()
            assert listener.wait() == 0
            assert page.failure is None
            assert heard(page) == [*ids("a"), HARD]


@ROOT
def test_a_page_of_an_earlier_boot_is_of_no_use_to_a_user_without_rights(public):
    path = str(public / "items.mmc")
    with inside.on_boot("earlier"):
        nonce_of(path)
    as_another_user(lambda: degraded(path, "may not write here"))


# --- a cache that lives with it ---------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Iterator[mmcache.SQLiteSource]:
    make_bank(tmp_path / "bank.db", 20)
    made = source_of(tmp_path / "bank.db")
    yield made
    made.close()


def write(path: Path, i: int) -> None:
    with open_bank(path) as db:
        insert_item(db, i, "new")


@pytest.mark.parametrize(
    "lose", [lambda path: os.unlink(page_path(path)), *MISPLACED], ids=["deleted", *(m.__name__ for m in MISPLACED)]
)
def test_a_running_worker_moves_to_a_page_that_was_made_again(path, source, caplog, lose):
    caplog.set_level(logging.INFO, "mmcache")
    with mmcache.open(path, source, check_interval=0, executor="external") as cache:
        assert cache[name_of(1)]
        lose(path)
        with opened(path) as other:
            cache.refresh()
            assert other.say(ids(name_of(1)))
            before = cache.stats().fallbacks.get("invalidated", 0)
            assert cache[name_of(1)]
            assert cache[name_of(2)]
            assert cache.stats().fallbacks == {"invalidated": before + 1}
    assert "page_replaced" in logged(caplog)


@pytest.mark.parametrize("said", ["ids", "hard", "soft"])
def test_what_was_open_on_a_page_that_went_missing_stays_open(path, source, said):
    """The source was written to, and what else was said is not known: it answers until the file is built again."""
    with mmcache.open(path, source, check_interval=0, executor="external") as cache:
        assert cache[name_of(1)]
        write(Path(source.path), 1)
        if said == "ids":
            cache.invalidate([name_of(1)])
        else:
            cache.invalidate(hard=said == "hard")
        os.unlink(page_path(path))
        cache.refresh()
        with mmcache.open(path, source, check_interval=0, executor="external") as other:
            expected = "a" if said == "soft" else "new"
            assert other[name_of(1)]["kind"] == expected
            assert other.stats().state == ("invalidated" if said == "hard" else "stale")
        cache.rebuild()
        assert cache[name_of(1)]["kind"] == "new"
        assert cache.stats().state == "fresh"


@ROOT
def test_a_reader_without_rights_hears_what_is_said_and_never_builds(public):
    """The file is due at every look, and the reader may publish nothing: it reads on."""
    make_bank(public / "bank.db", 20)
    source = source_of(public / "bank.db")
    path = str(public / "items.mmc")
    mmcache.build(path, source)

    def read(here: Child) -> None:
        become_another_user()
        with mmcache.open(path, source_of(public / "bank.db"), check_interval=0) as cache:
            assert [cache[name_of(1)]["size"] for _ in range(3)] == [1] * 3
            here.say()
            here.hear()
            assert [cache[name_of(1)]["size"] for _ in range(3)] == [1] * 3
            assert (cache.stats().state, cache.stats().fallbacks) == ("stale", {})
            here.say()
            here.hear()
            assert cache[name_of(1)]
            assert cache.stats().fallbacks == {"invalidated": 1}
            with pytest.raises(PublishError, match="no permission"):
                cache.invalidate([name_of(2)])
            with pytest.raises(PublishError, match="may not write here"):
                cache.rebuild()

    with opened(path) as page, child(read) as reader:
        for event in (Event(Kind.SOFT, "record_stored"), *ids(name_of(1))):
            assert reader.hear()
            page.say([event])
            reader.say()
        assert reader.wait() == 0
    source.close()


def test_a_degraded_cache_answers_without_its_source_while_the_file_is_fresh(path, source, tmp_path):
    mmcache.build(path, source)
    os.unlink(page_path(path))
    with (
        faults(FailName("rename", errno.EPERM)),
        mmcache.open(path, source, check_interval=0, executor="external") as cache,
    ):
        assert cache[name_of(1)]["size"] == 1
        source.close()
        os.rename(tmp_path / "bank.db", tmp_path / "gone.db")
        assert cache[name_of(2)]["size"] == 2
        assert cache.stats().fallbacks == {}
        assert cache.snapshot is not None


def test_a_degraded_cache_does_not_start_one_rebuild_after_another(path, source, tmp_path, monkeypatch, caplog):
    """What came of a build is told by the page: without one, the worker that started it keeps the pause."""
    caplog.set_level(logging.INFO, "mmcache")
    mmcache.build(path, source)
    os.unlink(page_path(path))
    false = shutil.which("false")
    assert false is not None
    os.symlink(false, tmp_path / "python-that-fails")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python-that-fails"))
    with (
        faults(FailName("rename", errno.EPERM)),
        mmcache.open(path, source, check_interval=0, ttl=1000, refresh_at=1e-9) as cache,
    ):
        until("the rebuild has failed", lambda: cache[name_of(1)] and "build_failed" in log_events(caplog))
        for _ in range(50):
            assert cache[name_of(1)]
    assert "ended with status 1" in caplog.text
    at: dict[Any, list[float]] = {}
    for record, event in zip(caplog.records, log_events(caplog), strict=True):
        at.setdefault(event, []).append(record.created)
    starts, failures = at["rebuild_started"], at["build_failed"]
    assert all(start - failure > 0.7 for start, failure in zip(starts[1:], failures, strict=False)), "a pause"


def log_events(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [getattr(record, "event", None) for record in caplog.records]
