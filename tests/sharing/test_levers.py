"""Levers of an operator: rollback and resume, disable and enable, a roll-out by process; what each promises."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mmcache
from mmcache import Cache, CorruptFileError, MissingFileError, MmcacheError, PublishError, Snapshot
from mmcache.cli import main
from mmcache.sharing import publishing
from tests.support import inside
from tests.support.console import make_shop, write
from tests.support.faults import Fail, FailName, Kill, Then, faults
from tests.support.observe import await_polls, logged
from tests.support.processes import ask_child, in_child
from tests.support.waits import holds, until

pytestmark = pytest.mark.usefixtures("no_leaks")


class FailNamed(NamedTuple):
    """Fail each call of a name about a file of a name."""

    name: str
    file: str
    error: int

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name == self.name and os.path.basename(str(args[0])) == self.file:
            raise OSError(self.error, os.strerror(self.error))
        return call()


class Place:
    """good: what the backup has; bad: what the file has, and the database."""

    def __init__(self, directory: Path, *, tracked: bool = False) -> None:
        self.path = directory / "cache" / "items.mmc"
        self.database = directory / "shop.db"
        self.source = make_shop(self.database)
        if tracked:
            self.source.track()
        for price in (100, 200):
            self.write(price)
            mmcache.build(self.path, self.source)

    def write(self, price: int, key: str = "s1") -> None:
        write(self.database, "UPDATE items SET price = ? WHERE sku = ?", price, key)

    def open(self, **options: Any) -> Cache:
        settings: dict[str, Any] = {"executor": "thread", "check_interval": 0.02, "rebuild_after": 0.0} | options
        return mmcache.open(self.path, self.source, **settings)

    def beside(self, name: str) -> Path:
        return self.path.with_name(f"items.mmc.{name}")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    until("no build is under way", lambda: "mmcache-rebuild" not in {thread.name for thread in threading.enumerate()})
    await_polls()  # which may open the source once more
    made.source.close()


def price(cache: Cache, key: str = "s1") -> int:
    return int(cache[key]["price"])


def file_price(path: Path) -> int:
    with Snapshot.open(path) as snapshot:
        return int(snapshot["s1"]["price"])


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_a_rollback_puts_the_backup_back_under_a_higher_generation(place):
    with place.open() as cache:
        assert price(cache) == 200
        report = cache.rollback(reason="prices are wrong")
        assert (report.generation, report.changed) == (3, True)
        assert (price(cache), cache.generation) == (100, 3)
        assert cache.stats().state == "held"
        assert "prices are wrong" in cache.status().why
        assert file_price(place.beside("bak")) == 200


def test_a_second_rollback_goes_forward_again(place):
    with place.open() as cache:
        cache.rollback()
        assert cache.rollback().generation == 4
        assert (price(cache), cache.stats().state) == (200, "held")


@pytest.mark.parametrize("accident", ["page lost", "new boot", "written to", "new worker"])
def test_a_rollback_with_a_tracked_source_and_a_short_ttl_stays(tmp_path, accident):
    place = Place(tmp_path, tracked=True)
    with place.open(ttl=0.5) as cache:
        cache.rollback()
        if accident == "page lost":
            place.beside("ctl").unlink()
        elif accident == "written to":
            place.write(300)
    boot = "another" if accident == "new boot" else "this"
    with inside.on_boot(boot), place.open(ttl=0.5) as cache:
        holds("the backup's record is served", lambda: price(cache) == 100, 1.2)
        assert (cache.stats().state, cache.generation) == ("held", 3)
    place.source.close()


def test_a_rollback_stays_for_ttls_across_accidents_until_a_person_ends_it(tmp_path):
    place, ttl = Place(tmp_path, tracked=True), 2.0

    def stays(cache: Cache, expected: int, generation: int) -> None:
        holds("the same records are served", lambda: price(cache) == expected, 1.1 * ttl)
        assert (cache.stats().state, cache.generation) == ("held", generation)

    with place.open(ttl=ttl) as cache:
        cache.rollback()
        place.write(300)
        place.beside("ctl").unlink()
        stays(cache, 100, 3)
    with inside.on_boot("another"), place.open(ttl=ttl) as cache:
        stays(cache, 100, 3)
        place.beside("ctl").unlink()
        cache.rollback()
        place.write(400)
        stays(cache, 200, 4)
        cache.resume()
        until("the source's records are served", lambda: price(cache) == 400 and cache.stats().state == "fresh")
    place.source.close()


def test_a_page_lost_under_workers_keeps_what_was_invalidated_while_held(place):
    with place.open() as cache:
        cache.rollback()
        place.write(300)
        cache.invalidate(["s1"])
        place.beside("ctl").unlink()
        holds("the source answers for the id", lambda: price(cache) == 300, 0.5)
        assert cache.stats().state == "held"
        assert price(cache, "s2") == 2


def test_an_invalidation_of_all_counts_while_held(place):
    with place.open() as cache:
        cache.rollback()
        place.write(300)
        cache.invalidate()
        assert (price(cache), cache.stats().state) == (300, "invalidated")
        holds("nothing is built", lambda: cache.generation == 3, 0.3)


def by_cache(place: Place, cache: Cache) -> object:
    return cache.rebuild()


def by_function(place: Place, cache: Cache) -> object:
    return mmcache.build(place.path, place.source)


def by_command(place: Place, cache: Cache) -> object:
    assert main(["--quiet", "rebuild", str(place.path)]) == 0
    return None


@pytest.mark.parametrize("end", [by_cache, by_function, by_command])
def test_a_rebuild_by_a_person_ends_a_rollback(place, end):
    with place.open(build=False) as cache:
        cache.rollback()
        end(place, cache)
        until("the source's records are served", lambda: price(cache) == 200)
        assert cache.stats().state == "fresh"
        assert not place.beside("hold").exists()


def test_resume_ends_a_rollback_and_a_rebuild_follows(place):
    with place.open() as cache:
        cache.rollback()
        assert cache.resume()
        until("built again", lambda: cache.generation == 4 and price(cache) == 200)
        assert not cache.resume()


@pytest.mark.parametrize("page", ["is there", "is lost"])
def test_a_resumed_file_is_due_until_a_build_has_replaced_it(place, page):
    """Its header is of the time of the rollback, and its fingerprint the source's, so they do not tell that."""
    with place.open(build=False) as cache:
        cache.rollback()
        assert cache.resume()
        if page == "is lost":
            place.beside("ctl").unlink()
            cache.refresh()
        until("due", lambda: price(cache) == 100 and cache.stats().state == "stale")
        assert "resumed by mmcache resume since" in cache.status().why
    if page == "is lost":
        place.beside("ctl").unlink()
    with place.open() as cache:
        until("built again", lambda: price(cache) == 200 and cache.stats().state == "fresh")
    assert not place.beside("resumed").exists()


def test_a_rebuild_that_finds_resumed_records_right_settles_them(place):
    with place.open(build=False) as cache:
        cache.rollback()
        place.write(100)
        cache.resume()
        assert not cache.rebuild().changed
        assert (price(cache), cache.stats().state) == (100, "fresh")
    assert not place.beside("resumed").exists()


def test_a_rebuild_that_waited_for_a_rollback_builds(place):
    """Case: the rebuild was asked for, the rollback took the lock first, and its file is younger than the question."""
    asked_ns = time.time_ns()
    with place.open(build=False) as cache:
        cache.rollback()
    assert publishing.rebuild(place.path, asked_ns=asked_ns).changed
    assert file_price(place.path) == 200
    assert not place.beside("hold").exists()


def test_clearing_ends_a_rollback(place):
    with place.open(build=False) as cache:
        cache.rollback()
    assert main(["--quiet", "clear", "--yes", str(place.path)]) == 0
    assert not place.beside("hold").exists()


def test_cron_leaves_a_held_file_alone(place, capsys):
    with place.open(build=False) as cache:
        cache.rollback()
        assert main(["rebuild", str(place.path), "--if-stale", "--ttl", "0.001"]) == 0
        assert "held" in capsys.readouterr().out
        assert price(cache) == 100


def test_a_held_file_that_is_gone_is_not_built_by_a_worker(place):
    with place.open(build=False) as cache:
        cache.rollback()
    place.path.unlink()
    with place.open() as cache:
        assert (price(cache), cache.stats().state) == (200, "missing")
        holds("nothing is built", lambda: not place.path.exists(), 0.3)
        cache.rebuild()
        assert cache.stats().state == "fresh"


def test_a_damaged_file_is_rolled_back_and_the_backup_stays(place):
    data = bytearray(place.path.read_bytes())
    data[-100] ^= 1
    place.path.unlink()
    place.path.write_bytes(data)
    with place.open(build=False) as cache:
        cache.rollback()
        assert price(cache) == 100
    assert file_price(place.beside("bak")) == 100


def test_without_a_backup_nothing_happens(place):
    place.beside("bak").unlink()
    with place.open(build=False) as cache, pytest.raises(MissingFileError, match="no backup"):
        cache.rollback()
    assert not place.beside("hold").exists()


def test_a_damaged_backup_is_refused(place):
    backup = place.beside("bak")
    data = bytearray(backup.read_bytes())
    data[-100] ^= 1
    backup.unlink()
    backup.write_bytes(data)
    with place.open(build=False) as cache, pytest.raises(CorruptFileError, match=r"items\.mmc\.bak"):
        cache.rollback()
    assert not place.beside("hold").exists()
    assert file_price(place.path) == 200


def test_a_source_that_is_gone_does_not_stop_a_rollback(place):
    place.source.close()
    place.database.rename(place.database.with_name("elsewhere"))
    assert main(["--quiet", "rollback", str(place.path)]) == 0
    assert file_price(place.path) == 100


@pytest.mark.parametrize("links", ["hard links", "none"])
def test_a_kill_at_any_call_of_a_rollback_loses_no_records(place, tmp_path, links):
    behaviours = () if links == "hard links" else (FailName("link", errno.EPERM),)
    saved = tmp_path / "saved"
    shutil.copytree(place.path.parent, saved)
    with faults(*behaviours) as calls:
        assert main(["--quiet", "rollback", str(place.path)]) == 0
    interesting = [i for i, name in enumerate(calls.log) if name in ("rename", "unlink", "link", "fsync", "open")]
    assert len(interesting) > 6

    for at in interesting[::2]:
        shutil.rmtree(place.path.parent)
        shutil.copytree(saved, place.path.parent)

        def killed(at: int = at) -> None:
            with faults(*behaviours, Kill(at)):
                main(["--quiet", "rollback", str(place.path)])

        in_child(killed)
        there = {file_price(place.path), file_price(place.beside("bak"))}
        assert file_price(place.path) in (100, 200)
        assert 100 in there, f"the backup's records are lost after call {at}, {calls.log[at]}"
        assert main(["--quiet", "rollback", str(place.path)]) == 0


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_call_of_a_rollback_leaves_all_as_it_was(place, tmp_path, caplog, error):
    saved = tmp_path / "saved"
    shutil.copytree(place.path.parent, saved)
    with faults() as calls:
        mmcache_rollback(place)
    for at in [i for i, name in enumerate(calls.log) if name in ("pwrite", "fsync", "rename", "link", "open")][::2]:
        shutil.rmtree(place.path.parent)
        shutil.copytree(saved, place.path.parent)
        raised = None
        with faults(Fail(at, error)):
            try:
                mmcache_rollback(place)
            except MmcacheError as caught:
                raised = caught
        expected = 100 if raised is None else 200
        assert file_price(place.path) == expected, f"call {at}, {calls.log[at]}: {raised}"
        assert place.beside("hold").exists() == (raised is None), f"call {at}, {calls.log[at]}: {raised}"
    caplog.clear()  # whose records keep errors, and these what they saw


def mmcache_rollback(place: Place) -> None:
    with mmcache.Cache(place.path, place.source, build=False, executor="external") as cache:
        cache.rollback()


def test_a_file_published_while_a_rollback_waited_stops_it(place):
    fresh = place.path.with_name("fresh")
    shutil.copy(place.path, fresh)
    publishes = Then("open", "items.mmc.lock", lambda: fresh.replace(place.path))
    with place.open(build=False) as cache, faults(publishes), pytest.raises(PublishError, match="meanwhile"):
        cache.rollback()
    assert file_price(place.path) == 200
    assert not place.beside("hold").exists()


# --- disable and enable -----------------------------------------------------------------------------------------------


def test_disable_sends_all_processes_to_the_source_until_enable(place):
    with place.open(build=False) as cache:
        place.write(300)
        assert price(cache) == 200
        assert main(["--quiet", "disable", str(place.path), "--reason", "a test"]) == 0
        assert price(cache) == 300  # at the next get, since a page event says so
        assert (cache.stats().state, cache.stats().fallbacks["disabled"]) == ("disabled", 1)
        assert "a test" in cache.status().why
        assert main(["--quiet", "enable", str(place.path)]) == 0
        assert price(cache) == 200


def test_a_lever_put_there_by_hand_counts_from_the_next_poll(place):
    with place.open(build=False) as cache:
        price(cache)
        place.beside("disabled").touch()
        until("disabled", lambda: price(cache) == 200 and cache.stats().state == "disabled")
        place.beside("disabled").unlink()
        until("enabled", lambda: price(cache) == 200 and cache.stats().state == "fresh")


def test_a_disabled_cache_opens_and_builds_nothing(place):
    assert main(["--quiet", "disable", str(place.path)]) == 0
    place.path.unlink()
    with place.open() as cache:
        assert (price(cache), cache.snapshot, cache.stats().state) == (200, None, "disabled")
        assert not place.path.exists()
        assert main(["--quiet", "enable", str(place.path)]) == 0
        until("built", lambda: price(cache) == 200 and cache.stats().state == "fresh")


def test_a_cache_without_a_source_goes_on_with_the_file(place):
    assert main(["--quiet", "disable", str(place.path)]) == 0
    with mmcache.open(place.path, check_interval=0.0) as cache:
        assert price(cache) == 200


def test_a_disabled_cache_still_invalidates_for_all(place):
    with place.open(build=False) as cache:
        price(cache)
        assert main(["--quiet", "disable", str(place.path)]) == 0
        place.write(300)
        cache.invalidate(["s1"])
        assert main(["--quiet", "enable", str(place.path)]) == 0
        assert price(cache) == 300


def test_the_environment_counts_from_the_next_poll(place, monkeypatch):
    with place.open(build=False) as cache:
        assert price(cache) == 200
        place.write(300)
        monkeypatch.setenv("MMCACHE_DISABLE", "1")
        until("disabled", lambda: price(cache) == 300)
        monkeypatch.delenv("MMCACHE_DISABLE")
        until("enabled", lambda: price(cache) == 200)


def test_a_lever_that_is_not_to_be_trusted_moves_nothing(place):
    target = place.database.with_name("target")
    target.write_text("by a stranger\n")
    place.beside("hold").symlink_to(target)
    os.mkfifo(place.beside("disabled"))
    with place.open(build=False) as cache:
        assert (price(cache), cache.stats().state) == (200, "fresh")


def test_a_lever_that_cannot_be_read_for_a_moment_stays_pulled(place):
    with place.open(ttl=0.3) as cache:
        cache.rollback()
        with faults(FailNamed("open", "items.mmc.hold", errno.EMFILE)):
            place.beside("hold").touch()  # another identity, so that it is read again
            holds("held", lambda: price(cache) == 100 and cache.stats().state == "held", 0.5)
        holds("held", lambda: price(cache) == 100, 0.2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")
def test_a_lever_of_another_umask_is_read_by_all(place):
    before = os.umask(0o077)
    try:
        assert main(["--quiet", "disable", str(place.path)]) == 0
    finally:
        os.umask(before)
    assert place.beside("disabled").stat().st_mode & 0o777 == 0o644


# --- a share of the processes -----------------------------------------------------------------------------------------


def disabled(place: Place, rollout: float) -> bool:
    with mmcache.Cache(place.path, place.source, build=False, executor="external", rollout=rollout) as cache:
        price(cache)
        return cache.stats().state == "disabled"


@pytest.mark.parametrize(("rollout", "expected"), [(0, {True}), (1, {False}), (0.0, {True}), (1.0, {False})])
def test_all_and_none_are_exact(place, rollout, expected):
    assert {ask_child(lambda: disabled(place, rollout)) for _ in range(5)} == expected


def test_a_process_draws_once_and_a_fork_anew(place):
    """Of 24 forks of a fair coin not all fall on one side; within one process all agree."""
    drawn = [ask_child(lambda: {disabled(place, 0.5) for _ in range(5)}) for _ in range(24)]
    assert all(len(one) == 1 for one in drawn)
    assert len(set.union(*drawn)) == 2


@pytest.mark.parametrize("rollout", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_a_share_is_a_number_from_0_to_1(place, rollout):
    with pytest.raises(ValueError, match="rollout"):
        place.open(rollout=rollout)


def test_a_share_needs_a_source(place):
    with pytest.raises(ValueError, match="source"):
        mmcache.open(place.path, rollout=0.5)


# --- callbacks --------------------------------------------------------------------------------------------------------


def test_callbacks_are_told_what_happens(place):
    told: list[mmcache.CacheEvent] = []
    with place.open(on_event=told.append, build=False) as cache:
        cache.invalidate(["s1", "s2"], reason="record_stored")
        cache.invalidate(hard=False, reason="manual")
        place.write(300)
        mmcache.build(place.path, place.source)
        assert price(cache) == 300
        place.path.unlink()
        place.path.write_bytes(b"MMCACHE!" + bytes(500))
        until("refused", lambda: cache.refresh() or "refused" in {event.kind for event in told})
    assert {event.path for event in told} == {str(place.path)}
    kinds = [event.kind for event in told]
    assert kinds[:4] == ["invalidated", "invalidated", "rebuilt", "adopted"]
    by_id, softly, rebuilt, adopted = told[:4]
    assert (by_id.collection, by_id.ids, by_id.reason) == ("items", ("s1", "s2"), "record_stored")
    assert (softly.collection, softly.ids, softly.hard) == (None, None, False)
    assert rebuilt.generation == adopted.generation == 3
    assert isinstance(told[-1].error, MmcacheError)


def test_a_build_that_failed_is_told(place):
    told: list[mmcache.CacheEvent] = []
    with place.open(on_event=told.append, build=False) as cache:
        price(cache)
        write(place.database, "ALTER TABLE items RENAME TO others")
        with pytest.raises(MmcacheError):
            mmcache.build(place.path, place.source)
        until("told", lambda: cache.refresh() or [event for event in told if event.kind == "failed"])
    assert "items" in str(told[-1].error)


def test_what_another_process_did_is_told(place):
    told: list[mmcache.CacheEvent] = []
    with place.open(on_event=told.append, build=False) as cache:
        price(cache)
        assert in_child(lambda: main(["--quiet", "invalidate", str(place.path), "s4"])) == 0
        price(cache)
    assert [(event.kind, event.ids) for event in told] == [("invalidated", ("s4",))]


def test_an_exception_of_a_callback_is_logged_and_changes_nothing(place, caplog):
    def fail(event: mmcache.CacheEvent) -> None:
        raise RuntimeError("no")

    with place.open(on_event=fail, build=False) as cache:
        cache.invalidate(["s1"])
        assert price(cache) == 200
    assert "callback_failed" in logged(caplog)
    caplog.clear()  # whose records keep errors, and these what they saw


CALLS: dict[str, Callable[[Cache], Any]] = {
    "get": lambda cache: cache.get("s1"),
    "where": lambda cache: len(cache.where(kind="a")),
    "len": len,
    "refresh": lambda cache: cache.refresh(),
    "status": lambda cache: cache.status(),
    "stats": lambda cache: cache.stats(),
    "invalidate": lambda cache: cache.invalidate(["s3"]),
    "rebuild": lambda cache: cache.rebuild(),
    "rollback": lambda cache: cache.rollback(),
    "resume": lambda cache: cache.resume(),
    "close": lambda cache: cache.close(),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.timeout(60)
def test_a_callback_may_call_every_method(place, caplog, name):
    called: list[mmcache.CacheEvent] = []

    def call(event: mmcache.CacheEvent) -> None:
        if len(called) < 5:
            called.append(event)
            CALLS[name](cache)

    with place.open(on_event=call, build=False) as cache:
        cache.invalidate(["s1"])
        place.write(300)
        mmcache.build(place.path, place.source)
        if name != "close":
            price(cache)
            cache.refresh()
    assert called
    await_polls()
    caplog.clear()  # two threads may roll back at once, and one is refused


# --- names of patterns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "name"), [("pattern_stored", "record_stored"), ("pattern_deleted", "record_deleted")]
)
def test_the_names_of_patterns_are_other_names_of_reasons(place, alias, name):
    told: list[mmcache.CacheEvent] = []
    with place.open(on_event=told.append, build=False) as cache:
        kinds = [cache.invalidate(reason=reason) for reason in (alias, name)]
        assert kinds[0] == kinds[1]
        assert main(["--quiet", "invalidate", str(place.path), "s1", "--reason", alias]) == 0
        price(cache)
    assert {event.reason for event in told if event.kind == "invalidated"} == {name}
