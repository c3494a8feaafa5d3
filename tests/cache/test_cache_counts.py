"""What a cache counts: exactly, each damaged place once, whatever forks, kills, removes or holds its counter file."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, Schema
from tests.support import inside
from tests.support.clock import Clock
from tests.support.console import ok, run
from tests.support.processes import Child, child, in_child

pytestmark = pytest.mark.usefixtures("no_leaks")

N = 200
ITEMS = Schema("items", index=("kind",), embedding="vector")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.mmc"


class Twice(mmcache.IterableSource):
    """Records that can be read again and again, and have a fingerprint that never changes."""

    def fingerprint(self) -> bytes:
        return bytes(32)


def records() -> list[dict[str, Any]]:
    return [{"id": f"k{i}", "kind": "abc"[i % 3], "vector": [float(i), 1.0]} for i in range(N)]


def source() -> Twice:
    return Twice(records(), ITEMS)


def opened(path: Path, **options: Any) -> Cache:
    usual: dict[str, Any] = {"check_interval": 3600, "executor": "external", "verify": "lazy"}
    return mmcache.open(path, source(), **usual | options)


def damage(path: Path, *keys: str) -> None:
    """Flip a byte in each of these records."""
    data = bytearray(path.read_bytes())
    for key in keys:
        at = data.index(bytes([0xA0 + len(key)]) + key.encode() + b"\xa1")
        data[at + len(key) + 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o444)


def damage_open_file(path: Path, *keys: str) -> None:
    """The same under readers that have verified it, so that each record shows by its own checksum."""
    path.chmod(0o644)
    data, status = path.read_bytes(), path.stat()
    with path.open("r+b") as file:
        for key in keys:
            at = data.index(bytes([0xA0 + len(key)]) + key.encode() + b"\xa1") + len(key) + 2
            file.seek(at)
            file.write(bytes([data[at] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(".*.counts"))


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forks", [100, pytest.param(1_000, marks=pytest.mark.nightly)])
def test_forks_kills_and_adoptions_count_exactly(path, forks):
    """A child reads, flushes and ends: by a kill, by a close, without a word, or by a fork of its own that does."""
    with opened(path) as cache:
        assert cache["k0"]
        reads = 1
        for i in range(forks):
            n = 1 + i % 5

            def work(i: int = i, n: int = n) -> None:
                if i % 7 == 0:
                    cache.refresh()
                for _ in range(n):
                    assert cache["k1"]
                cache.refresh()
                if i % 4 == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                if i % 4 == 1:
                    cache.close()
                if i % 4 == 2:

                    def grandchild() -> None:
                        assert cache["k2"]
                        cache.refresh()
                        os.kill(os.getpid(), signal.SIGKILL)

                    in_child(grandchild)

            status = in_child(work)
            assert status == (signal.SIGKILL if i % 4 == 0 else 0)
            reads += n + (i % 4 == 2)
        cache.refresh()
        fleet = inside.fleet_of(path)
        assert fleet.totals["hits"] == reads
        assert len(files(path)) <= 3
    assert inside.fleet_of(path).totals["hits"] == reads


@pytest.mark.skipif(sys.platform != "linux", reason="takes fork from the C library by its name")
def test_a_child_forked_by_c_code_counts_for_itself_from_its_first_poll(path):
    with opened(path) as cache:
        for _ in range(10):
            assert cache["k0"]
        cache.refresh()

        def work(process: Child) -> None:
            pid = ctypes.PyDLL(None).fork()
            if pid == 0:
                cache.refresh()  # a poll
                for _ in range(5):
                    assert cache["k1"]
                cache.refresh()
                process.say()
                process.hear()
                os._exit(0)
            os.waitpid(pid, 0)

        with child(work) as process:
            process.hear()
            found = {worker.pid: worker.counters["hits"] for worker in inside.fleet_of(path).workers}
            assert found.pop(os.getpid()) == 10
            assert sorted(found.values()) == [5]
            assert inside.fleet_of(path).totals["hits"] == 15
            process.say()
    assert inside.fleet_of(path).totals["hits"] == 15


def test_a_worker_ended_by_sigterm_leaves_a_file_for_the_next(path):
    """And any number of them leaves no more files than there were workers at once."""
    opened(path).close()
    code = f"""
import sys, signal, mmcache
cache = mmcache.open({str(path)!r})
assert cache["k1"]
cache.refresh()
print("ready", flush=True)
signal.pause()
"""
    for _ in range(4):
        several = [
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        for process in several:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        assert len(inside.fleet_of(path).workers) == 2
        for process in several:
            process.terminate()
        for process in several:
            process.communicate()
    assert len(files(path)) <= 2
    assert inside.fleet_of(path).totals["hits"] == 8
    assert inside.fleet_of(path).workers == ()


def test_a_cleaner_under_a_worker_costs_it_its_place_until_the_next_poll(path):
    with opened(path, label="web") as cache:
        assert cache["k1"]
        cache.refresh()
        for file in path.parent.iterdir():
            if file != path:
                file.unlink()
        cache.refresh()
        assert [worker.label for worker in inside.fleet_of(path).workers] == ["web"]
        assert [worker["label"] for worker in ok("status", path, "--json").json["fleet"]["workers"]] == ["web"]
        assert inside.fleet_of(path).totals["hits"] == 1


def test_clear_removes_all_counter_files(path):
    with opened(path, build=False) as cache:
        mmcache.build(path, source())
        cache.refresh()
        assert files(path)
        ok("clear", path, "--yes")
        assert files(path) == []


def test_a_lock_that_others_hold_on_a_counter_file_stops_no_read(path):
    with opened(path) as cache:
        assert cache["k1"]
        cache.refresh()
        fds = [os.open(file, os.O_RDONLY) for file in files(path)]
        for fd in fds:
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        cache.refresh()
        assert inside.fleet_of(path).totals["hits"] == 1
        for fd in fds:
            os.close(fd)


# --- damage -----------------------------------------------------------------------------------------------------------


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(getattr(record, "event", ""))


@pytest.fixture
def heard() -> Iterator[list[str]]:
    handler = Heard()
    logging.getLogger("mmcache").addHandler(handler)
    yield handler.events
    logging.getLogger("mmcache").removeHandler(handler)


def test_a_damaged_record_is_counted_and_logged_once(path, heard):
    with opened(path, verify="full") as cache:
        assert cache["k7"]
        damage_open_file(path, "k7", "k9")
        for _ in range(50):
            assert cache["k7"]["kind"] == "b"
            assert cache.get_many(["k1", "k7"])[1] is not None
            assert "k7" in cache
        assert cache.stats().corruptions == heard.count("corruption") == 1
        for _ in range(50):
            assert cache["k9"]["kind"] == "a"
        assert cache.stats().corruptions == heard.count("corruption") == 2
        assert cache.stats().fallbacks["record"] >= 150
        assert cache.stats().counters["corruptions"] == 2
        cache.refresh()
        assert [event.kind for event in inside.fleet_of(path).events].count("corruption") == 2


def test_the_same_record_of_the_next_generation_is_another_place(path, heard):
    opened(path).close()
    with opened(path) as cache:
        for generation in (1, 2, 3):
            damage(path, "k7")
            cache.refresh()
            for _ in range(10):
                assert cache["k7"]["kind"] == "b"
            assert cache.stats().corruptions == heard.count("corruption") == generation
            mmcache.build(path, [{**record, "kind": f"b{generation}"} for record in records()], ITEMS)
            mmcache.build(path, source())
            cache.refresh()


def test_a_file_refused_for_its_damage_is_counted_once(path, heard):
    opened(path).close()
    with opened(path, build=False) as cache:
        data = bytearray(path.read_bytes())
        data[300] ^= 1
        path.unlink()
        path.write_bytes(data)
        for _ in range(5):
            cache.refresh()
            assert cache["k1"]
        assert cache.stats().corruptions == 1
        assert heard.count("file_refused") == 1
    with opened(path, build=False) as cache:  # which never had another
        for _ in range(5):
            cache.refresh()
            assert cache["k1"]
        assert cache.stats().corruptions == 1
    assert heard.count("file_refused") == 2


def test_workers_that_meet_one_damaged_record_raise_no_alert(path):
    opened(path).close()
    damage(path, "k7")
    for _ in range(3):
        with opened(path) as cache:
            for _ in range(30):
                assert cache["k1"]
            assert cache["k7"]
    fleet = inside.fleet_of(path)
    assert fleet.totals["corruptions"] == 3
    assert run("status", path, "--check", "--max-load-ms", "60000").code == 0
    assert ok("status", path, "--json").json["fleet"]["damaged_places"] == 1


def test_damage_everywhere_takes_bounded_memory_and_bounded_lines(path, heard, monkeypatch):
    monkeypatch.setattr("mmcache.counting.PLACES", 20)
    monkeypatch.setattr("mmcache.counting.PLACES_SHOWN", 5)
    with opened(path, verify="full") as cache:
        assert cache["k100"]
        damage_open_file(path, *(f"k{i}" for i in range(100, 150)))
        for _ in range(3):
            for i in range(100, 150):
                assert cache[f"k{i}"]
        assert cache.stats().corruptions == heard.count("corruption") == 20
        cache.refresh()
        assert [event.kind for event in inside.fleet_of(path).events].count("corruption") == 5


# --- alerts -----------------------------------------------------------------------------------------------------------


def test_alerts_look_at_the_last_minutes_from_python_too(path, clock: Clock):
    with opened(path) as cache:
        for _ in range(6_000):
            assert cache["k1"]
        cache.refresh()
        assert cache.alerts(max_load=60) == []
        cache.invalidate(["k1"])
        for _ in range(20):
            clock.ahead += 60
            clock.later += 60
            for _ in range(10):
                assert cache["k1"]
            cache.refresh()
        (alert,) = cache.alerts(max_load=60)
        assert isinstance(alert, mmcache.Alert)
        assert (alert.rule, alert.value, alert.limit) == ("hit_rate", 0.0, 0.9)
        assert cache.alerts(max_load=60, min_hit_rate=0.0) == []
        assert cache.alerts(max_load=60, window=86_400) == []
        assert cache.stats().hit_rate > 0.9


def test_the_target_and_the_window_are_shown(path):
    with opened(path) as cache:
        for _ in range(3):
            assert cache["k1"]
        cache.refresh()
        text = ok("status", path, "--window", "60").out
        assert "recently       100.00% of 3 answers in the last 60 s; target 95%" in text
        found = ok("status", path, "--json").json["fleet"]
        assert found["hit_rate_target"] == 0.95
        assert found["recent"] == {"window_seconds": 600.0, "hit_rate": 1.0, "hits": 3, "misses": 0, "fallbacks": 0}
    assert run("status", path, "--window", "0").code == 2
