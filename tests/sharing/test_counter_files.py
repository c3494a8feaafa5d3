"""What workers count is counted once, whichever dies when, and whatever is found in the files."""

from __future__ import annotations

import errno
import fcntl
import gc
import itertools
import mmap
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from mmcache import PublishError
from mmcache.sharing import counter_files, metrics
from mmcache.sharing.counters import WorkerCounters, read_fleet, record_event, remove
from mmcache.sharing.fleet import CAUSES, STATES, Fleet, Sample
from mmcache.storage import shared
from tests.support import inside
from tests.support.faults import Fail, FailName, Kill, faults
from tests.support.observe import open_files
from tests.support.processes import Child, child, in_child, in_children

pytestmark = pytest.mark.usefixtures("no_leaks")

U64 = 2**64 - 1


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.mmc")


def files(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


def counter_names(path: str) -> list[str]:
    return [name for name in files(path) if name.endswith(".counts")]


def die(path: str, hits: int, misses: int = 0) -> None:
    """A worker counts, writes that down, and is killed."""

    def work() -> None:
        counters = WorkerCounters.open(path)
        assert counters.is_shared
        counters.words[metrics.HITS] = hits
        counters.add(metrics.MISSES, misses)
        counters.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(in_child(work)) == signal.SIGKILL


def leave_dead(path: str, *hits: int) -> None:
    """Counter files of workers that died all at once, so that none has adopted another's."""

    def work() -> None:
        several = [WorkerCounters.open(path) for _ in hits]
        for counters, n in zip(several, hits, strict=True):
            counters.set(metrics.HITS, n)
            counters.flush()
        os._exit(0)

    assert in_child(work) == 0


# Words ----------------------------------------------------------------------------------------------------------------


def test_importing_metrics_loads_nothing_heavy():
    code = "import sys, mmcache.sharing.counters; print({'numpy', 'filelock', 'msgpack'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_a_count_wraps_and_a_value_is_kept_within_a_word():
    counters = WorkerCounters()
    counters.set(metrics.OPENS, U64)
    counters.add(metrics.OPENS, 3)
    assert counters.counted()["opens"] == 2
    for value, kept in ((-5, 0), (2**70, U64), (7, 7)):
        counters.set(metrics.GENERATION, value)
        assert counters.words[metrics.GENERATION] == kept


def test_hits_are_told_without_looks(path):
    counters = WorkerCounters.open(path)
    counters.words[metrics.HITS] = 10
    counters.add(metrics.LOOKS, 3)
    assert counters.counted()["hits"] == read_fleet(path).totals["hits"] == 7
    counters.add(metrics.LOOKS, 30)
    assert counters.counted()["hits"] == read_fleet(path).totals["hits"] == 0
    counters.close()


def test_a_histogram_knows_the_order_of_magnitude_of_what_was_observed(path):
    counters = WorkerCounters.open(path)
    for seconds in (1e-6, 1e-6, 1e-6, 3e-3):
        counters.observe(metrics.LOOKUP, seconds)
    for strange in (-1.0, float("nan"), float("inf"), 0.0, 1e12):
        counters.observe(metrics.BUILD, strange)
    counters.observe(metrics.BUILD, 100_000)
    fleet = read_fleet(path)
    lookup, build = fleet.histograms["lookup"], fleet.histograms["build"]
    assert (lookup.count, lookup.total_ns) == (4, 3_003_000)
    assert lookup.mean == pytest.approx(3.003e-3 / 4)
    assert 1e-6 <= lookup.quantile(0.5) == lookup.quantile(0.75) < 2e-6
    assert 3e-3 <= lookup.quantile(0.76) == lookup.quantile(1.0) < 6e-3
    assert (build.count, build.buckets[0], build.buckets[-1]) == (6, 5, 1)
    load = fleet.histograms["load"]
    assert (load.count, load.mean, load.quantile(0.99)) == (0, 0.0, 0.0)
    assert fleet.workers[0].histograms == fleet.histograms
    counters.close()
    assert read_fleet(path).histograms == fleet.histograms


# Slots ----------------------------------------------------------------------------------------------------------------


def test_a_fleet_without_files_is_empty_and_stays_so(path):
    fleet = read_fleet(path)
    assert (fleet.workers, fleet.lives, fleet.events, fleet.since) == ((), 0, (), 0.0)
    assert fleet.totals == dict.fromkeys(metrics.COUNTERS, 0)
    assert fleet.hit_rate == 1.0
    assert read_fleet(f"{path}/none/there").totals == fleet.totals
    assert files(path) == []


def test_others_see_what_a_worker_counts_and_says_of_itself(path):
    def work(process: Child) -> None:
        counters = WorkerCounters.open(path, label="gunicorn worker \N{SNOWMAN}" + "x" * 100)
        counters.words[metrics.HITS] = 8
        counters.add(metrics.BATCH_HITS, 1)
        counters.add(metrics.FALLBACKS + CAUSES.index("slow"))
        counters.add(metrics.FALLBACK_NS, 10**12)
        counters.set(metrics.GENERATION, 7)
        counters.set(metrics.STATE, STATES.index("stale"))
        counters.set(metrics.PINNED, 2)
        counters.set(metrics.MAPPED_BYTES, 2**40)
        counters.set(metrics.LOAD_NS, 1_500_000)
        counters.flush()
        process.say()
        process.hear()

    with child(work) as process:
        process.hear()
        (worker,) = read_fleet(path).workers
        assert worker.pid == process.pid
        assert worker.label.startswith("gunicorn worker \N{SNOWMAN}xxx")
        assert len(worker.label.encode()) == 64
        assert (worker.generation, worker.state, worker.pinned) == (7, "stale", 2)
        assert (worker.mapped_bytes, worker.private_bytes, worker.load_seconds) == (2**40, 0, 0.0015)
        assert 0 < worker.started == worker.seen
        assert worker.counters == read_fleet(path).totals
        assert worker.counters["fallback_slow"] == 1
        assert read_fleet(path).hit_rate == 0.9


def test_a_file_stays_when_its_worker_ends_and_the_next_one_adopts_it(path):
    for life in range(1, 4):
        counters = WorkerCounters.open(path)
        counters.set(metrics.HITS, 5)
        counters.set(metrics.GENERATION, 9)
        counters.close()
        counters.close()
        assert not counters.is_shared
        counters.add(metrics.HITS)  # only this process sees it, and nothing breaks
        fleet = read_fleet(path)
        assert (fleet.totals["hits"], fleet.lives, fleet.workers) == (5 * life, life, ())
        assert len(files(path)) == 1
        assert fleet.since > 0


def test_several_counters_of_one_process_are_several_workers(path):
    several = [WorkerCounters.open(path, label=str(i)) for i in range(3)]
    for counters in several:
        counters.add(metrics.OPENS)
    fleet = read_fleet(path)
    assert {worker.label for worker in fleet.workers} == {"0", "1", "2"}
    assert fleet.totals["opens"] == 3
    for counters in several:
        counters.close()
    assert read_fleet(path).totals["opens"] == 3


def test_counters_that_are_dropped_without_a_close_are_kept(path):
    WorkerCounters.open(path).set(metrics.HITS, 4)
    gc.collect()
    assert read_fleet(path).workers == ()
    assert read_fleet(path).totals["hits"] == 4
    WorkerCounters.open(path).close()
    assert len(counter_names(path)) == 1
    assert read_fleet(path).totals["hits"] == 4


def test_counters_of_another_file_with_a_like_name_are_left_alone(path):
    leave_dead(f"{path}.x", 3)
    WorkerCounters.open(path).close()
    assert read_fleet(path).totals["hits"] == 0
    assert len(counter_names(path)) == 2
    assert read_fleet(f"{path}.x").totals["hits"] == 3


def test_a_relative_path_keeps_its_meaning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counters = WorkerCounters.open("items.mmc")
    counters.set(metrics.HITS, 1)
    assert read_fleet("items.mmc").totals["hits"] == 1
    monkeypatch.chdir("/")
    counters.close()
    assert len(os.listdir(tmp_path)) == 1
    assert read_fleet(str(tmp_path / "items.mmc")).totals["hits"] == 1


# Death ----------------------------------------------------------------------------------------------------------------


def test_a_killed_worker_loses_what_it_counted_after_its_last_flush(path):
    """It is killed at any moment: what it had flushed is counted, and the flush under way wholly or not at all."""
    for pause in (10, 100, 1_000):
        progress = memoryview(mmap.mmap(-1, 16)).cast("Q")
        before = read_fleet(path).totals["misses"]

        def work(process: Child, progress: memoryview = progress) -> None:
            counters = WorkerCounters.open(path)
            for n in itertools.count(1):
                counters.add(metrics.MISSES, 10)
                progress[0] = 10 * n
                counters.flush()
                progress[1] = 10 * n

        with child(work) as process:
            while progress[1] < 10 * pause:
                os.sched_yield()
            process.kill()
        counted = read_fleet(path).totals["misses"] - before
        assert counted in (progress[0], progress[1])
        WorkerCounters.open(path).close()
        assert read_fleet(path).totals["misses"] - before == counted
        assert len(counter_names(path)) == 1


def test_the_dead_count_and_do_not_live(path):
    die(path, 5, 1)
    die(path, 7, 1)  # in the file of the first
    fleet = read_fleet(path)
    assert fleet.workers == ()
    assert (fleet.totals["hits"], fleet.totals["misses"], fleet.lives) == (12, 2, 2)
    assert len(counter_names(path)) == 1


def test_a_pid_that_is_used_again_confuses_no_count(path):
    die(path, 5)
    pid = 4711
    living = [WorkerCounters.open(f"{path}") for _ in range(2)]
    for counters in living:
        counters.words[metrics.PID] = pid
        counters.set(metrics.HITS, 1)
    fleet = read_fleet(path)
    assert [worker.pid for worker in fleet.workers] == [pid, pid]
    assert (fleet.totals["hits"], fleet.lives) == (7, 1)
    for counters in living:
        counters.close()
    assert read_fleet(path).totals["hits"] == 7


def test_a_forked_child_does_not_keep_its_dead_parent_alive(path):
    def parent(process: Child) -> None:
        counters = WorkerCounters.open(path)
        counters.set(metrics.HITS, 3)
        counters.flush()
        if os.fork() == 0:
            process.say(b"c")
            process.hear()
            os._exit(0)
        process.hear()

    with child(parent) as process:
        assert process.hear() == b"c"
        assert len(read_fleet(path).workers) == 1
        process.kill()
        assert read_fleet(path).workers == ()  # and the grandchild waits, with the parent's memory
        WorkerCounters.open(path).close()
        assert (read_fleet(path).totals["hits"], len(counter_names(path))) == (3, 1)


def test_a_forked_child_neither_counts_for_its_parent_nor_closes_its_file(path):
    counters = WorkerCounters.open(path)
    counters.set(metrics.HITS, 3)
    words = counters.words

    def forked() -> None:
        assert not counters.is_shared
        counters.add(metrics.HITS, 100)
        counters.close()
        own = WorkerCounters.open(path)
        own.set(metrics.HITS, 10)
        assert (counters.pid, own.pid) == (os.getpid(), os.getpid())
        assert len(read_fleet(path).workers) == 2
        own.close()

    assert in_child(forked) == 0
    assert counters.words is words
    assert counters.is_shared
    assert [worker.pid for worker in read_fleet(path).workers] == [os.getpid()]
    assert read_fleet(path).totals["hits"] == 13
    counters.close()
    assert read_fleet(path).totals["hits"] == 13


def test_opening_costs_the_same_however_many_have_died(path):
    def calls() -> list[str]:
        with faults() as made:
            WorkerCounters.open(path).close()
        return made.log

    WorkerCounters.open(path).close()
    first = calls()
    for _ in range(50):
        WorkerCounters.open(path).close()
    assert calls() == first


def check_lives(path: str, processes: int, lives: int) -> None:
    def work() -> None:
        for _ in range(lives):
            counters = WorkerCounters.open(path)
            assert counters.is_shared
            counters.add(metrics.HITS)
            counters.close()

    in_children(*[work] * processes)
    WorkerCounters.open(path).close()
    fleet = read_fleet(path)
    assert (fleet.totals["hits"], fleet.lives) == (processes * lives, processes * lives + 1)
    assert len(files(path)) <= processes
    assert {os.path.getsize(os.path.join(os.path.dirname(path), name)) for name in files(path)} == {counter_files.SIZE}


def test_a_thousand_lives_leave_a_small_file_for_each_at_once(path):
    check_lives(path, 2, 500)


@pytest.mark.nightly
def test_ten_thousand_lives_leave_a_small_file_for_each_at_once(path):
    check_lives(path, 2, 5_000)


def test_processes_that_open_close_and_die_at_once_count_exactly(path):
    """Four close, four are killed; a reader sees the totals grow and never go back."""
    rounds, hits = 15, 3

    def work(kills: bool) -> None:
        for _ in range(rounds):
            if kills:
                leave_dead(path, hits)
            else:
                counters = WorkerCounters.open(path)
                counters.set(metrics.HITS, hits)
                counters.close()

    seen = [0]
    in_children(
        *[lambda kills=kills: work(kills) for kills in [False, True] * 4],
        meanwhile=lambda: seen.append(read_fleet(path).totals["hits"]),
    )
    assert seen == sorted(seen)
    WorkerCounters.open(path).close()
    fleet = read_fleet(path)
    assert (fleet.totals["hits"], fleet.lives) == (8 * rounds * hits, 8 * rounds + 1)
    assert len(files(path)) <= 8


# An adoption that is killed or fails ----------------------------------------------------------------------------------


class Stage:
    """A directory that is set up afresh for every fault: a counter file with an ended life of 10, the last of 300."""

    total = 310

    def __init__(self, path: str) -> None:
        self.path = path
        self.directory = os.path.dirname(path)
        leave_dead(path, 10)
        leave_dead(path, 300)
        self.saved = f"{self.directory}-saved"
        shutil.copytree(self.directory, self.saved)
        self.check()

    def reset(self) -> None:
        for name in os.listdir(self.directory):
            os.unlink(os.path.join(self.directory, name))
        for name in os.listdir(self.saved):
            shutil.copy2(os.path.join(self.saved, name), self.directory)

    def check(self, more: int = 0) -> None:
        assert read_fleet(self.path).totals["hits"] == self.total + more
        for _ in range(2):
            WorkerCounters.open(self.path).close()
            assert read_fleet(self.path).totals["hits"] == self.total + more


def adopt(path: str) -> None:
    WorkerCounters.open(path)


def count_and_close(path: str) -> None:
    counters = WorkerCounters.open(path)
    counters.words[metrics.HITS] = 40_000
    counters.close()


@pytest.mark.parametrize(("action", "most"), [(adopt, 0), (count_and_close, 40_000)])
def test_an_adoption_killed_at_any_call_counts_everything_once(path, action, most):
    stage = Stage(path)
    stage.reset()
    with faults() as made:
        action(path)
    counted = set()
    for at, late in itertools.product(range(len(made.log)), (False, True)):
        stage.reset()

        def work(at: int = at, late: bool = late) -> None:
            with faults(Kill(at, after=late)):
                action(path)

        assert os.WIFSIGNALED(in_child(work)), (at, made.log[at])
        more = read_fleet(path).totals["hits"] - stage.total
        counted.add(more)
        stage.check(more)
    assert counted == {0, most}


@pytest.mark.parametrize("action", [adopt, count_and_close])
@pytest.mark.parametrize(("error", "persistent"), [("EIO", False), ("EIO", True), ("ENOSPC", False), ("EMFILE", True)])
def test_an_error_of_any_call_is_kept_from_the_caller(path, action, error, persistent):
    """And counts nothing twice, and leaves nothing open."""
    stage = Stage(path)
    stage.reset()
    with faults() as made:
        action(path)
    for at in range(len(made.log)):
        stage.reset()
        before = open_files()
        with faults(Fail(at, getattr(errno, error), persistent)):
            action(path)
        assert open_files() == before, (at, made.log[at])
        more = read_fleet(path).totals["hits"] - stage.total
        assert more in (0, 40_000), (at, made.log[at])
        stage.check(more)


def test_a_block_written_in_part_leaves_the_one_before_it(path):
    leave_dead(path, 10)
    counters = WorkerCounters.open(path)
    (file,) = Path(path).parent.glob(".*.counts")
    before = file.read_bytes()
    counters.set(metrics.HITS, 20)
    counters.close()
    after = file.read_bytes()
    changed = [i for i in range(0, len(after), 8) if after[i : i + 8] != before[i : i + 8]]
    assert len(changed) > 5
    seen = set()
    for cut in changed:
        file.write_bytes(after[:cut] + before[cut:])
        seen.add(read_fleet(path).totals["hits"])
    assert seen <= {10, 30}
    file.write_bytes(after)
    assert read_fleet(path).totals["hits"] == 30


def test_a_reader_that_holds_a_lock_for_a_moment_makes_no_second_file(path):
    leave_dead(path, 10)
    (file,) = Path(path).parent.glob(".*.counts")
    fd = os.open(file, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    freed = threading.Timer(0.0005, os.close, [fd])
    freed.start()
    for _ in range(50):
        WorkerCounters.open(path).close()
        read_fleet(path)
    freed.join()
    assert len(counter_names(path)) <= 2  # one, unless the timer was late


def test_a_stranger_who_keeps_a_shared_lock_delays_no_worker(path):
    leave_dead(path, 10)
    (file,) = Path(path).parent.glob(".*.counts")
    with file.open() as opened:
        fcntl.flock(opened, fcntl.LOCK_SH)
        counters = WorkerCounters.open(path)
        counters.set(metrics.HITS, 5)
        assert (counters.is_shared, read_fleet(path).totals["hits"]) == (True, 15)
        counters.close()
    assert len(counter_names(path)) == 2


def test_a_file_with_a_second_name_is_read_and_not_adopted(path):
    leave_dead(path, 10)
    (file,) = Path(path).parent.glob(".*.counts")
    other = file.with_name("other")
    os.link(file, other)
    before = other.read_bytes()
    count_and_close(path)
    assert read_fleet(path).totals["hits"] == 40_010
    assert other.read_bytes() == before


# Files that are removed under a worker --------------------------------------------------------------------------------


def test_a_worker_whose_file_was_removed_makes_another_at_its_next_poll(path):
    leave_dead(path, 300)
    counters = WorkerCounters.open(path, label="web")
    counters.set(metrics.HITS, 5)
    counters.flush()
    os.unlink(os.path.join(os.path.dirname(path), *counter_names(path)))
    assert read_fleet(path).workers == ()
    counters.share(path)
    fleet = read_fleet(path)
    assert ([worker.label for worker in fleet.workers], fleet.totals["hits"]) == (["web"], 5)
    assert fleet.recent(600, time.time()).hits == 0, "it counted them before this file was made"
    counters.set(metrics.HITS, 8)
    counters.close()
    assert read_fleet(path).totals["hits"] == 8
    assert len(counter_names(path)) == 1


def test_a_directory_moved_and_put_back_doubles_nothing(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    path = str(here / "items.mmc")
    counters = WorkerCounters.open(path)
    counters.set(metrics.HITS, 5)
    counters.flush()
    here.rename(there)
    counters.share(path)
    counters.set(metrics.HITS, 6)
    counters.flush()
    there.rename(here)
    counters.share(path)
    counters.set(metrics.HITS, 7)
    assert read_fleet(path).totals["hits"] == 7
    counters.close()
    assert len(counter_names(path)) == 1


def test_counts_of_a_worker_whose_descriptors_were_closed_count_once(path):
    """Case: a daemon closes all descriptors that it does not know, and its counters are shared again at a poll."""

    def work() -> None:
        counters = WorkerCounters.open(path)
        counters.set(metrics.HITS, 5)
        counters.add(metrics.MISSES, 2)
        counters.flush()
        for n in range(1, 4):
            os.closerange(3, 256)
            counters.add(metrics.MISSES, 10)
            counters.share(path)
            counters.add(metrics.MISSES, 100)
            counters.flush()
            assert counters.counted()["misses"] == 2 + 110 * n
        os._exit(0)

    assert in_child(work) == 0
    assert (read_fleet(path).totals["hits"], read_fleet(path).totals["misses"]) == (5, 332)


def interfere(act: Callable[[str], object], times: int) -> Callable[..., object]:
    """Do something to a counter file that was just created, before its maker has locked it."""
    seen: list[str] = []

    def behaviour(number, name, args, call):
        found = call()
        if name == "open" and not os.path.isabs(args[0]) and args[0].endswith(".counts") and len(seen) < times:
            seen.append(args[0])
            act(args[0])
        return found

    return behaviour


def test_a_file_taken_for_dead_before_its_lock_is_held_is_made_again(path):
    """Case: another process folds between our creation of the file and our lock on it."""
    with faults(interfere(lambda name: os.unlink(os.path.join(os.path.dirname(path), name)), 3)):
        counters = WorkerCounters.open(path)
    assert counters.is_shared
    assert len(counter_names(path)) == 1
    counters.set(metrics.HITS, 2)
    assert read_fleet(path).totals["hits"] == 2
    counters.close()
    remove(path)

    probes = []
    with faults(interfere(lambda name: probes.append(shared.HeldLock(os.path.join(os.path.dirname(path), name))), 1)):
        counters = WorkerCounters.open(path)
    for probe in probes:
        probe.close()
    assert counters.is_shared
    assert len(counter_names(path)) == 1
    counters.close()


# Places where nothing can be written ----------------------------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="mmcache-test-"))
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


def without_rights(directory: Path, action: Callable[[], None]) -> None:
    """Run where the directory and its files cannot be written: as another user, if we are root."""

    def switched() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65_534)
            os.setuid(65_534)
        action()

    if os.geteuid() != 0:
        directory.chmod(0o555)
        for file in directory.iterdir():
            file.chmod(0o444)
    assert in_child(switched) == 0


def test_in_a_directory_of_others_counters_are_private_the_fleet_readable(public):
    path = str(public / "items.mmc")
    living = WorkerCounters.open(path)
    living.set(metrics.HITS, 1)
    leave_dead(path, 20)
    WorkerCounters.open(path).close()
    record_event(path, "rebuild", 4)
    leave_dead(path, 300)
    living.flush()
    before = files(path)

    def action() -> None:
        with pytest.raises(PermissionError):
            (public / "x").touch()
        counters = WorkerCounters.open(path)
        assert not counters.is_shared
        counters.add(metrics.HITS, 5)
        counters.observe(metrics.LOOKUP, 0.1)
        assert counters.counted()["hits"] == 5
        fleet = read_fleet(path)
        assert (fleet.totals["hits"], len(fleet.workers), fleet.lives) == (321, 1, 3)
        assert [event.kind for event in fleet.events] == ["rebuild"]
        record_event(path, "rebuild")
        counters.close()
        assert files(path) == before

    without_rights(public, action)
    public.chmod(0o755)
    living.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners, which takes root")
def test_a_stranger_in_a_directory_for_everybody_cannot_stop_or_forge_counts(public):
    public.chmod(0o1777)
    path = str(public / "items.mmc")
    leave_dead(path, 5)
    (dead,) = public.glob(".*.counts")
    forged = public / f".items.mmc.{7:016x}.counts"
    words = array("Q", dead.read_bytes())
    words[2] = 7
    forged.write_bytes(words.tobytes())
    os.chown(forged, 61_234, 61_234)
    before = forged.read_bytes()
    for _ in range(2):
        WorkerCounters.open(path).close()
    count_and_close(path)
    assert read_fleet(path).totals["hits"] == 40_005
    assert counter_names(path) == sorted([forged.name, dead.name])
    assert remove(path) == [str(dead)]
    assert counter_names(path) == [forged.name]
    assert forged.read_bytes() == before


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_makes_counters_private_and_leaves_no_file(path, error):
    with faults(FailName("pwrite", error)):
        counters = WorkerCounters.open(path)
    assert not counters.is_shared
    counters.add(metrics.HITS)
    assert files(path) == []
    counters.close()


def test_a_name_too_long_for_counters_is_no_error(tmp_path):
    path = str(tmp_path / ("x" * 240))
    counters = WorkerCounters.open(path)
    assert not counters.is_shared
    counters.close()
    assert read_fleet(path).workers == ()


# Other people's bytes -------------------------------------------------------------------------------------------------


def sealed(nonce: int, value: int, sequence: int, *, schema: int = metrics.SCHEMA) -> bytes:
    """A counter file in which every word is a value, and every checksum is right."""
    content = bytearray()
    size = len(counter_files._content(0, counter_files._nothing(Sample(0, 0, 0, 0)).block))
    head = [counter_files._FORM, schema, nonce]
    for number in (sequence & ~1, sequence | 1):
        words = array("Q", [*head, number & U64, *[value] * (size // 8 - 5)])
        content += words.tobytes() + struct.pack("=Q", xxh3_64_intdigest(words.tobytes()))
        content += bytes(-len(content) % 4096)
    while len(content) < counter_files._EVENTS_AT:
        content += counter_files._sealed([value] * 4)
    for at in range(counter_files.RING):
        content += counter_files._sealed([(2**62 // 256) * 256 + at, value, value, value])
    return bytes(content)


def exercise(path: str) -> Fleet:
    """Everything that reads or writes these files, once."""
    read_fleet(path)
    counters = WorkerCounters.open(path)
    counters.add(metrics.HITS, 2)
    record_event(path, "rebuild", 1)
    counters.close()
    fleet = read_fleet(path)
    fleet.recent(600, time.time())
    fleet.damaged_places(86_400, time.time())
    return fleet


@pytest.mark.parametrize("sequence", [0, 2**63 - 2, 2**63, U64])
@pytest.mark.parametrize("value", [0, 1, 2**63, U64 - 1, U64])
@pytest.mark.parametrize("is_held", [True, False])
def test_a_file_of_any_numbers_is_read_and_added_to_within_a_word(path, sequence, value, is_held):
    place = Path(path).parent / f".items.mmc.{5:016x}.counts"
    place.write_bytes(sealed(5, value, sequence))
    held = shared.HeldLock(str(place)) if is_held else None
    fleet = exercise(path)
    assert all(0 <= total <= U64 for total in (*fleet.totals.values(), fleet.lives))
    assert 0.0 <= fleet.hit_rate <= 1.0
    for histogram in fleet.histograms.values():
        assert histogram.mean >= 0
        assert histogram.quantile(0.5) >= 0
    assert 0.0 <= fleet.recent(86_400, time.time()).hit_rate <= 1.0
    if held is not None:
        assert [worker.state for worker in fleet.workers] in ([], ["unknown"], ["idle"], ["starting"])
        held.close()
    exercise(path)


GARBAGE = {
    "nothing": b"",
    "a byte": b"x",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "zeros of its size": bytes(counter_files.SIZE),
    "ones of its size": b"\xff" * counter_files.SIZE,
    "another version's": sealed(5, 10**6, 8, schema=1),
    "another file's": sealed(6, 10**6, 8),
    "much": bytes(10**6),
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_counter_file_is_not_counted_and_goes_without_an_owner(path, content, caplog):
    place = Path(path).parent / f".items.mmc.{5:016x}.counts"
    place.write_bytes(content)
    held = shared.HeldLock(str(place))
    assert exercise(path).totals["hits"] == 2
    assert place.read_bytes() == content
    held.close()
    for file in Path(path).parent.glob(".*.counts"):
        if file != place:
            file.unlink()
    inside.forget_logged()
    assert exercise(path).totals["hits"] == 2
    assert len(files(path)) == 1
    assert not place.exists()
    assert [record.event for record in caplog.records] == ["counters_foreign"] * bool(content)


PLANTS: dict[str, Callable[[Path], object]] = {
    "directory": lambda place: place.mkdir(),
    "fifo": os.mkfifo,
    "symlink": lambda place: place.symlink_to("victim"),
    "dangling symlink": lambda place: place.symlink_to("nowhere"),
    "socket": lambda place: os.mknod(place, stat.S_IFSOCK | 0o600),
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_what_is_no_file_is_neither_followed_nor_waited_for(path, plant):
    name = f".items.mmc.{5:016x}.counts"
    victim = Path(path).parent / "victim"
    victim.write_bytes(b"precious" * 512)
    plant(Path(path).parent / name)
    leave_dead(path, 3)
    fleet = exercise(path)
    assert victim.read_bytes() == b"precious" * 512
    assert fleet.totals["hits"] == 5
    exercise(path)
    assert read_fleet(path).totals["hits"] == 7


def test_random_damage_to_counter_files_never_crashes(path):
    rng = random.Random(1)
    leave_dead(path, *range(3))
    exercise(path)
    kept = {file: file.read_bytes() for file in Path(path).parent.iterdir()}
    for _ in range(150):
        for file in Path(path).parent.iterdir():
            file.unlink()
        for file, content in kept.items():
            damaged = bytearray(content)
            for _ in range(rng.choice((0, 1, 4))):
                at = rng.randrange(len(damaged) // 8) * 8
                damaged[at : at + 8] = struct.pack("=Q", rng.choice((0, 1, U64, rng.getrandbits(64))))
            if rng.random() < 0.1:
                del damaged[rng.randrange(len(damaged)) :]
            file.write_bytes(damaged)
        assert exercise(path).totals["hits"] >= 2
        assert exercise(path).totals["hits"] >= 4
        assert len(counter_names(path)) <= 4


# Events ---------------------------------------------------------------------------------------------------------------


def test_events_are_kept_in_order_and_the_oldest_go(path):
    for i in range(300):
        record_event(path, metrics.EVENTS[i % len(metrics.EVENTS)], i)
    events = read_fleet(path).events
    assert [event.value for event in events] == list(range(44, 300))
    assert [event.kind for event in events[:2]] == ["rebuild_failed", "corruption"]
    assert [event.time for event in events] == sorted(event.time for event in events)
    record_event(path, "corruption", -1)
    record_event(path, "corruption", 2**70)
    assert [event.value for event in read_fleet(path).events[-2:]] == [0, U64]
    assert read_fleet(path).lives == 0
    assert len(counter_names(path)) == 1


def test_an_event_of_no_known_kind_is_an_error_of_the_caller(path):
    with pytest.raises(ValueError, match="not in tuple"):
        record_event(path, "rebiuld")
    assert files(path) == []


def test_an_event_where_nothing_can_be_written_is_none(tmp_path):
    record_event(str(tmp_path / "no" / "items.mmc"), "rebuild")
    with faults(FailName("open", errno.EROFS)):
        record_event(str(tmp_path / "items.mmc"), "rebuild")
    assert os.listdir(tmp_path) == []


def test_events_of_processes_and_threads_at_once_are_all_kept(path):
    def work() -> None:
        def some() -> None:
            for _ in range(15):
                record_event(path, "rebuild", os.getpid())

        threads = [threading.Thread(target=some) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    in_children(*[work] * 4)
    events = read_fleet(path).events
    assert len(events) == 120
    assert len({event.value for event in events}) == 4


def test_a_torn_event_is_no_event_and_its_place_is_used_again(path):
    for i in range(3):
        record_event(path, "rebuild", i)
    (name,) = Path(path).parent.glob(".*.counts")
    data = bytearray(name.read_bytes())
    at = data.rindex(struct.pack("=QQ", 0, 2))  # kind and value of the last
    data[at + 8] ^= 1
    name.write_bytes(data)
    assert [event.value for event in read_fleet(path).events] == [0, 1]
    record_event(path, "unchanged", 7)
    found = [(event.kind, event.value) for event in read_fleet(path).events]
    assert found == [("rebuild", 0), ("rebuild", 1), ("unchanged", 7)]


def test_noted_events_are_written_by_the_next_flush(path):
    counters = WorkerCounters.open(path)
    for i in range(300):
        counters.note_event("corruption", i)
    counters.flush()
    assert [event.value for event in read_fleet(path).events] == list(range(44, 300))
    with pytest.raises(ValueError, match="not in tuple"):
        counters.note_event("rebiuld")
    counters.note_event("refusal", -1)
    counters.close()
    assert [(event.kind, event.value) for event in read_fleet(path).events[-1:]] == [("refusal", 0)]


def test_events_of_several_files_are_shown_in_the_order_of_their_times(path):
    several = [WorkerCounters.open(path) for _ in range(3)]
    for i in range(9):
        several[i % 3].note_event("rebuild", i)
    assert [event.value for event in read_fleet(path).events] == list(range(9))
    for counters in several:
        counters.close()
    assert [event.value for event in read_fleet(path).events] == list(range(9))


# Removing -------------------------------------------------------------------------------------------------------------


def test_removing_takes_all_and_who_lives_begins_a_new_file(path):
    leave_dead(path, 1, 2)
    living = WorkerCounters.open(path)  # in the file of one of them
    living.set(metrics.HITS, 8)
    living.flush()
    before = files(path)
    ours = [os.path.join(os.path.dirname(path), name) for name in before]
    assert sorted(remove(path, dry_run=True)) == ours
    assert files(path) == before
    assert sorted(remove(path)) == ours
    assert (files(path), read_fleet(path).totals["hits"]) == ([], 0)
    living.share(path)
    assert read_fleet(path).totals["hits"] == 8
    living.close()
    assert read_fleet(path).totals["hits"] == 8
    assert len(remove(path)) == 1
    assert remove(path) == []


def test_removing_leaves_what_is_not_ours(path):
    place = Path(path).parent / f".items.mmc.{5:016x}.counts"
    place.symlink_to("victim")
    assert remove(path) == []
    assert place.is_symlink()
    with pytest.raises(PublishError):
        remove(f"{path}/none/items.mmc")
