"""One state: a cache's own counts, its status, each command and each metric find a cache in the same state.

Each situation is brought about from outside. That `decide` gives the right state is tested in tests/sharing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mmcache
from mmcache import Cache, MmcacheError, SQLiteSource
from mmcache.cli import main
from tests.support.clock import Clock
from tests.support.console import SHOP, make_shop, write
from tests.support.samples import sampled

pytest.importorskip("prometheus_client", reason="the prometheus extra is not installed")
from mmcache.integrations.prometheus import text_of

pytestmark = pytest.mark.usefixtures("no_leaks")

RELAXED = ("--min-hit-rate", "0", "--max-load-ms", "100000", "--max-corruptions", "1000", "--max-rebuilds", "1000")
"""Only what the file may do can break a rule."""
CODES = {"missing": 3, "corrupt": 5, "incompatible": 1, "unreadable": 1, "untrusted": 1, "expired": 4, "invalidated": 4}


class Place(NamedTuple):
    """Where a situation is brought about."""

    path: Path
    database: Path
    clock: Clock
    monkeypatch: pytest.MonkeyPatch

    def say(self, *words: str) -> None:
        assert main(["--quiet", "invalidate", str(self.path), *words]) == 0

    def pull(self, lever: str) -> None:
        if lever == "rollback" and not Path(f"{self.path}.bak").exists():
            shutil.copy(self.path, f"{self.path}.bak")
        assert main(["--quiet", lever, str(self.path)]) == 0

    def write(self) -> None:
        write(self.database, "UPDATE items SET price = 7 WHERE sku = 's1'")

    def put(self, data: bytes) -> None:
        """Other bytes at the path, under another inode."""
        fresh = self.path.with_name("fresh")
        fresh.write_bytes(data)
        fresh.replace(self.path)

    def flip(self, byte: int) -> None:
        data = bytearray(self.path.read_bytes())
        data[byte] ^= 8
        self.put(bytes(data))


class Situation(NamedTuple):
    """come: brings it about. opened: when the worker opens the cache, by default once before and once after."""

    state: str
    come: Callable[[Place], Any] = lambda place: None
    opened: tuple[str, ...] = ("before", "after")
    with_source: bool = True


def after(seconds: float) -> Callable[[Place], None]:
    """The clock has gone on."""

    def come(place: Place) -> None:
        place.clock.ahead = seconds

    return come


def tracked_write(place: Place) -> None:
    source = SQLiteSource(place.database, SHOP)
    source.track()
    mmcache.build(place.path, source)
    source.close()
    place.write()


def moved_here(place: Place) -> None:
    """A file that was built with a page of another directory, and whose source was written to since."""
    elsewhere = place.path.parent / "elsewhere"
    elsewhere.mkdir()
    source = SQLiteSource(place.database, SHOP)
    mmcache.build(elsewhere / "items.mmc", source)
    source.close()
    place.put((elsewhere / "items.mmc").read_bytes())


def moved_here_and_written(place: Place) -> None:
    moved_here(place)
    place.write()


def forgotten_page(place: Place) -> None:
    """Only a worker that was there knows what was said on it."""
    place.say()
    os.unlink(f"{place.path}.ctl")


def forgotten_page_and_written(place: Place) -> None:
    place.write()
    place.say("s1")
    os.unlink(f"{place.path}.ctl")


def halve(place: Place) -> None:
    data = place.path.read_bytes()
    place.put(data[: len(data) // 2])


def without_source_file(place: Place) -> None:
    os.rename(place.database, f"{place.database}.gone")


def pipe_at_path(place: Place) -> None:
    place.path.unlink()
    os.mkfifo(place.path)


def owned_by_another(place: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("changes owners, which takes root")
    os.chown(place.path, 61_234, 61_234)


BY_AND_BY = (("s1",), ("--reason", "record_stored"), ())
AFTER = ("after",)

SITUATIONS: dict[str, Situation] = {
    "built just now": Situation("fresh"),
    "an id": Situation("stale", lambda place: place.say("s1")),
    "an id that no source has": Situation("stale", lambda place: place.say("nowhere")),
    "a collection": Situation("stale", lambda place: place.say("--collection", "items", "--hard")),
    "softly": Situation("stale", lambda place: place.say("--reason", "record_stored")),
    "hard": Situation("invalidated", lambda place: place.say()),
    "many ids": Situation("stale", lambda place: place.say(*(f"s{i}" for i in range(100)))),
    "an id, softly, then hard": Situation("invalidated", lambda place: [place.say(*words) for words in BY_AND_BY]),
    "built again since": Situation("fresh", lambda place: (place.say("s1"), place.say(), place.pull("rebuild"))),
    "hard, then an id": Situation("invalidated", lambda place: (place.say(), place.say("s1"))),
    "due by age": Situation("stale", after(3300.0)),
    "expired": Situation("expired", after(4000.0)),
    "of the future": Situation("stale", after(-4000.0)),
    "expired, an id": Situation("expired", lambda place: (after(4000.0)(place), place.say("s1"))),
    "expired, and hard": Situation("invalidated", lambda place: (after(4000.0)(place), place.say())),
    "written to, untracked": Situation("stale", Place.write),
    "written to, tracked": Situation("stale", tracked_write),
    "source is gone": Situation("fresh", without_source_file),
    "page is gone": Situation("fresh", lambda place: os.unlink(f"{place.path}.ctl")),
    "page is gone, and hard": Situation("invalidated", forgotten_page, opened=("before",)),
    "page is gone, and an id": Situation("stale", forgotten_page_and_written, opened=("before",)),
    "page is gone, and written to": Situation("invalidated", forgotten_page_and_written, opened=AFTER),
    "built elsewhere": Situation("fresh", moved_here),
    "built elsewhere, written to": Situation("invalidated", moved_here_and_written),
    "missing": Situation("missing", lambda place: place.path.unlink(), opened=AFTER),
    "corrupt": Situation("corrupt", lambda place: place.flip(100), opened=AFTER),
    "truncated": Situation("corrupt", halve, opened=AFTER),
    "of another version": Situation("incompatible", lambda place: place.flip(8), opened=AFTER),
    "a pipe": Situation("untrusted", pipe_at_path, opened=AFTER),
    "a stranger's": Situation("untrusted", owned_by_another, opened=AFTER),
    "disabled": Situation("disabled", lambda place: place.monkeypatch.setenv("MMCACHE_DISABLE", "1"), opened=AFTER),
    "disabled by an operator": Situation("disabled", lambda place: place.pull("disable")),
    "held": Situation("held", lambda place: place.pull("rollback")),
    "held, expired": Situation("held", lambda place: (place.pull("rollback"), after(4000.0)(place))),
    "held, an id": Situation("held", lambda place: (place.pull("rollback"), place.say("s1"))),
    "held, written to": Situation("held", lambda place: (place.pull("rollback"), place.write())),
    "held, and hard": Situation("invalidated", lambda place: (place.pull("rollback"), place.say())),
    "resumed": Situation("stale", lambda place: (place.pull("rollback"), place.pull("resume"))),
    "alone": Situation("fresh", with_source=False),
    "alone, an id": Situation("stale", lambda place: place.say("s1"), with_source=False),
    "alone, hard": Situation("invalidated", lambda place: place.say(), with_source=False),
    "alone, expired": Situation("expired", after(4000.0), with_source=False),
    "alone, missing": Situation("missing", lambda place: place.path.unlink(), opened=AFTER, with_source=False),
    "alone, corrupt": Situation("corrupt", lambda place: place.flip(100), opened=AFTER, with_source=False),
}
CASES = [(name, opened) for name, situation in SITUATIONS.items() for opened in situation.opened]


@pytest.fixture
def place(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path / "items.mmc", tmp_path / "shop.db", clock, monkeypatch)


@contextlib.contextmanager
def worker(place: Place, source: SQLiteSource | None) -> Iterator[Cache]:
    """A cache that builds nothing, and notices everything at each read."""
    with mmcache.Cache(place.path, source, build=False, executor="external", check_interval=0.0) as cache:
        read(cache)
        yield cache


def read(cache: Cache) -> None:
    with contextlib.suppress(MmcacheError):
        cache.get("s3")
    with contextlib.suppress(MmcacheError):
        cache.refresh()


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """The exit code of a command, and the document that it printed, if any."""
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else None


def states_of_workers(path: Path) -> list[str]:
    """As Prometheus has them."""
    lines = [line for line in text_of(os.fspath(path)).splitlines() if line.startswith("mmcache_workers{")]
    return [line.split('state="')[1].split('"')[0] for line in lines if float(line.rpartition(" ")[2])]


@pytest.mark.parametrize(("name", "opened"), sampled(CASES, 2))
def test_all_that_shows_a_state_shows_the_same(place, capsys, name, opened):
    situation = SITUATIONS[name]
    made = make_shop(place.database)
    if situation.with_source:
        mmcache.build(place.path, made)
    else:
        mmcache.build(place.path, [{"sku": f"s{i}", "kind": None} for i in range(10)], SHOP)
    source = made if situation.with_source else None
    with contextlib.ExitStack() as ending:
        ending.callback(made.close)
        early = ending.enter_context(worker(place, source)) if opened == "before" else None
        situation.come(place)
        cache = ending.enter_context(worker(place, source)) if early is None else early
        read(cache)
        assert_all_show(situation.state, place.path, cache, capsys)


def assert_all_show(state: str, path: Path, cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    """Each place that shows a state; at last the command that does nothing only if there is nothing to do."""
    assert cache.stats().state == state
    assert cache.status().state == state
    assert command(capsys, "status", path)[1]["state"] == state
    assert states_of_workers(path) == [state]
    assert [one["state"] for one in command(capsys, "status", path)[1]["fleet"]["workers"]] == [state]

    checks = {check["name"]: check for check in command(capsys, "doctor", path)[1]["checks"]}
    assert checks["freshness"]["text"].startswith(f"{state}: ")
    assert checks["freshness"]["level"] == ("ok" if state in ("fresh", "stale") else "warn")

    code, checked = command(capsys, "status", path, "--check", *RELAXED)
    assert (code, checked["state"]) == (CODES.get(state, 0), state)
    assert bool(checked["broken"]) == (state in CODES)
    assert all(alert["text"].startswith(f"the file is {state}: ") for alert in checked["broken"])

    code, built = command(capsys, "rebuild", path, "--if-stale")
    did_nothing = code == 0 and built.get("state") == state and built["changed"] is False
    assert did_nothing == (state in ("fresh", "held")), built


# What the shell cannot see, or sees otherwise ------------------------------------------------------------------------


def states_of(path: Path, cache: Cache) -> set[str]:
    """By the worker itself, and in the fleet."""
    read(cache)
    return {cache.stats().state, cache.status().state, *states_of_workers(path)}


def test_a_file_gone_under_a_worker_leaves_it_one_state(place):
    source = make_shop(place.database)
    mmcache.build(place.path, source)
    with contextlib.closing(source), worker(place, source) as cache:
        place.path.unlink()
        assert len(states_of(place.path, cache)) == 1


def test_a_file_of_another_schema_is_incompatible_wherever_it_shows(place):
    source = make_shop(place.database)
    mmcache.build(place.path, source)
    source.close()
    other = SQLiteSource(place.database, mmcache.Schema("items", key="sku", query="SELECT sku, price FROM items"))
    with contextlib.closing(other), worker(place, other) as cache:
        assert states_of(place.path, cache) == {"incompatible"}


def test_two_workers_agree_once_both_have_looked(place):
    source = make_shop(place.database)
    mmcache.build(place.path, source)
    with contextlib.closing(source), worker(place, source) as one, worker(place, source) as other:
        steps = (lambda: one.invalidate(["s1"]), lambda: other.invalidate(hard=False), one.invalidate)
        for step, state in zip(steps, ("stale", "stale", "invalidated"), strict=True):
            step()
            read(one)
            read(other)
            assert {one.stats().state, other.stats().state, one.status().state, other.status().state} == {state}
