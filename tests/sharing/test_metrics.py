"""What workers count is counted once, whoever dies when, and whatever is found in the files."""

from __future__ import annotations

import contextlib
import errno
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
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from mmcache import PublishError, UntrustedPathError
from mmcache.sharing import archive, metrics
from mmcache.sharing.metrics import Fleet, Slot, read_fleet
from mmcache.storage import shared
from tests.support.faults import Fail, FailName, Kill, faults
from tests.support.observe import open_files
from tests.support.processes import in_child

pytestmark = pytest.mark.usefixtures("no_leaks")

U64 = 2**64 - 1


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.mmc")


def files(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


def slots(path: str) -> list[str]:
    return [name for name in files(path) if name.endswith(".slot")]


def die(path: str, hits: int, misses: int = 0) -> None:
    """A worker counts, writes that down, and is killed."""

    def work() -> None:
        slot = Slot.open(path)
        assert slot.shared
        slot.words[metrics.HITS] = hits
        slot.add(metrics.MISSES, misses)
        slot.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(in_child(work)) == signal.SIGKILL


def leave_dead(path: str, *hits: int) -> None:
    """Slots of workers that died all at once, so that none has folded another's."""

    def work() -> None:
        slots = [Slot.open(path) for _ in hits]
        for slot, n in zip(slots, hits, strict=True):
            slot.set(metrics.HITS, n)
            slot.flush()
        os._exit(0)

    assert in_child(work) == 0


def in_children(*actions: Callable[[], object], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Run in as many processes at once, and something here until all have done well."""
    running = set()
    for action in actions:
        pid = os.fork()
        if pid == 0:
            os._exit(in_child(action) != 0)
        running.add(pid)
    while running:
        meanwhile()
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0
                running.remove(pid)
        os.sched_yield()


class Child:
    """A process that runs `work(child)`; the two talk over pipes. It is killed at the end."""

    def __init__(self, work: Callable[[Child], object]) -> None:
        self._in, there = os.pipe()
        here, self._out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.close()
            self._in, self._out = here, there
            code = 70
            try:
                work(self)
                code = 0
            finally:
                os._exit(code)
        os.close(here)
        os.close(there)

    def say(self, byte: bytes = b".") -> None:
        os.write(self._out, byte)

    def hear(self) -> bytes:
        return os.read(self._in, 1)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)


@contextlib.contextmanager
def child(work: Callable[[Child], object]) -> Iterator[Child]:
    process = Child(work)
    try:
        yield process
    finally:
        process.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)


# Words ----------------------------------------------------------------------------------------------------------------


def test_every_counter_and_gauge_has_a_word_of_its_name():
    names = (*metrics.GAUGES, *metrics.COUNTERS)
    words = [getattr(metrics, name.upper()) for name in names]
    assert words == list(range(words[0], words[0] + len(names)))
    assert [getattr(metrics, name.upper()) for name in metrics.HISTOGRAMS] == [0, 1, 2, 3]
    assert {f"fallback_{cause}" for cause in metrics.CAUSES} < set(metrics.COUNTERS)


def test_importing_metrics_loads_nothing_heavy():
    code = "import sys, mmcache.sharing.metrics; print({'numpy', 'filelock', 'msgpack'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_a_count_wraps_and_a_value_is_kept_within_a_word():
    slot = Slot.private()
    slot.set(metrics.OPENS, U64)
    slot.add(metrics.OPENS, 3)
    assert slot.counters()["opens"] == 2
    for value, kept in ((-5, 0), (2**70, U64), (7, 7)):
        slot.set(metrics.GENERATION, value)
        assert slot.words[metrics.GENERATION] == kept


def test_hits_are_told_without_looks(path):
    slot = Slot.open(path)
    slot.words[metrics.HITS] = 10
    slot.add(metrics.LOOKS, 3)
    assert slot.counters()["hits"] == read_fleet(path).totals["hits"] == 7
    slot.add(metrics.LOOKS, 30)
    assert slot.counters()["hits"] == read_fleet(path).totals["hits"] == 0
    slot.close()


def test_a_histogram_knows_the_order_of_magnitude_of_what_was_observed(path):
    slot = Slot.open(path)
    for seconds in (1e-6, 1e-6, 1e-6, 3e-3):
        slot.observe(metrics.LOOKUP, seconds)
    for strange in (-1.0, float("nan"), float("inf"), 0.0, 1e12):
        slot.observe(metrics.BUILD, strange)
    slot.observe(metrics.BUILD, 100_000)
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
    slot.close()
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
        slot = Slot.open(path, label="gunicorn worker \N{SNOWMAN}" + "x" * 100)
        slot.words[metrics.HITS] = 8
        slot.add(metrics.BATCH_HITS, 1)
        slot.add(metrics.FALLBACK_SLOW)
        slot.add(metrics.FALLBACK_NS, 10**12)
        slot.set(metrics.GENERATION, 7)
        slot.set(metrics.STATE, metrics.STATES.index("stale"))
        slot.set(metrics.PINNED, 2)
        slot.set(metrics.MAPPED_BYTES, 2**40)
        slot.set(metrics.LOAD_NS, 1_500_000)
        slot.flush()
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


def test_closing_moves_the_counts_to_the_archive_and_leaves_no_slot(path):
    fleet = read_fleet(path)
    for life in range(1, 4):
        slot = Slot.open(path)
        slot.set(metrics.HITS, 5)
        slot.set(metrics.GENERATION, 9)
        slot.close()
        slot.close()
        assert not slot.shared
        slot.add(metrics.HITS)  # nobody sees it any more, and nothing breaks
        fleet = read_fleet(path)
        assert (fleet.totals["hits"], fleet.lives, fleet.workers) == (5 * life, life, ())
        assert files(path) == ["items.mmc.metrics"]
    assert fleet.since > 0


def test_several_slots_of_one_process_are_several_workers(path):
    several = [Slot.open(path, label=str(i)) for i in range(3)]
    for slot in several:
        slot.add(metrics.OPENS)
    fleet = read_fleet(path)
    assert {worker.label for worker in fleet.workers} == {"0", "1", "2"}
    assert fleet.totals["opens"] == 3
    for slot in several:
        slot.close()
    assert read_fleet(path).totals["opens"] == 3


def test_a_slot_that_is_dropped_without_a_close_is_folded_by_the_next(path):
    Slot.open(path).set(metrics.HITS, 4)
    gc.collect()
    assert len(slots(path)) == 1
    assert read_fleet(path).workers == ()
    assert read_fleet(path).totals["hits"] == 4
    Slot.open(path).close()
    assert files(path) == ["items.mmc.metrics"]
    assert read_fleet(path).totals["hits"] == 4


def test_slots_of_another_file_with_a_like_name_are_left_alone(path):
    leave_dead(f"{path}.x", 3)
    Slot.open(path).close()
    assert read_fleet(path).totals["hits"] == 0
    assert len(slots(path)) == 1
    assert read_fleet(f"{path}.x").totals["hits"] == 3


def test_a_relative_path_keeps_its_meaning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slot = Slot.open("items.mmc")
    slot.set(metrics.HITS, 1)
    assert read_fleet("items.mmc").totals["hits"] == 1
    monkeypatch.chdir("/")
    slot.close()
    assert os.listdir(tmp_path) == ["items.mmc.metrics"]
    assert read_fleet(str(tmp_path / "items.mmc")).totals["hits"] == 1


# Death ----------------------------------------------------------------------------------------------------------------


def test_a_killed_worker_loses_what_it_counted_after_its_last_flush(path):
    """It is killed at any moment: what it had flushed is counted, and the flush under way wholly or not at all."""
    for pause in (10, 100, 1_000):
        progress = memoryview(mmap.mmap(-1, 16)).cast("Q")
        before = read_fleet(path).totals["misses"]

        def work(process: Child, progress: memoryview = progress) -> None:
            slot = Slot.open(path)
            for n in itertools.count(1):
                slot.add(metrics.MISSES, 10)
                progress[0] = 10 * n
                slot.flush()
                progress[1] = 10 * n

        with child(work) as process:
            while progress[1] < 10 * pause:
                os.sched_yield()
            process.kill()
        counted = read_fleet(path).totals["misses"] - before
        assert counted in (progress[0], progress[1])
        Slot.open(path).close()
        assert read_fleet(path).totals["misses"] - before == counted
        assert slots(path) == []


def test_the_dead_count_and_do_not_live(path):
    die(path, 5, 1)
    die(path, 7, 1)  # folds the first
    fleet = read_fleet(path)
    assert fleet.workers == ()
    assert (fleet.totals["hits"], fleet.totals["misses"], fleet.lives) == (12, 2, 1)


def test_a_pid_that_is_used_again_confuses_nobody(path):
    die(path, 5)
    (dead,) = Path(path).parent.glob(".*.slot")
    (pid,) = struct.unpack_from("=Q", dead.read_bytes(), 8 * metrics.PID)
    living = [Slot.open(f"{path}") for _ in range(2)]
    for slot in living:
        slot.words[metrics.PID] = pid
        slot.set(metrics.HITS, 1)
    fleet = read_fleet(path)
    assert [worker.pid for worker in fleet.workers] == [pid, pid]
    assert (fleet.totals["hits"], fleet.lives) == (7, 1)
    for slot in living:
        slot.close()
    assert read_fleet(path).totals["hits"] == 7


def test_a_forked_child_does_not_keep_its_dead_parent_alive(path):
    def parent(process: Child) -> None:
        slot = Slot.open(path)
        slot.set(metrics.HITS, 3)
        slot.flush()
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
        Slot.open(path).close()
        assert (read_fleet(path).totals["hits"], slots(path)) == (3, [])


def test_a_forked_child_neither_counts_for_its_parent_nor_closes_its_slot(path):
    slot = Slot.open(path)
    slot.set(metrics.HITS, 3)
    words = slot.words

    def forked() -> None:
        assert not slot.shared
        slot.add(metrics.HITS, 100)
        slot.close()
        own = Slot.open(path)
        own.set(metrics.HITS, 10)
        assert (slot.pid, own.pid) == (os.getpid(), os.getpid())
        assert len(read_fleet(path).workers) == 2
        own.close()

    assert in_child(forked) == 0
    assert slot.words is words
    assert slot.shared
    assert [worker.pid for worker in read_fleet(path).workers] == [os.getpid()]
    assert read_fleet(path).totals["hits"] == 13
    slot.close()
    assert read_fleet(path).totals["hits"] == 13


def test_opening_costs_the_same_however_many_have_died(path):
    def calls() -> list[str]:
        with faults() as made:
            Slot.open(path).close()
        return made.log

    Slot.open(path).close()
    first = calls()
    for _ in range(50):
        Slot.open(path).close()
    assert calls() == first


def test_an_opening_folds_some_of_many_dead_and_the_next_ones_the_rest(path):
    leave_dead(path, *range(1, 151))
    assert read_fleet(path).totals["hits"] == 11_325
    for left in (86, 22, 0, 0):
        Slot.open(path).close()
        assert len(slots(path)) == left
        assert read_fleet(path).totals["hits"] == 11_325


def check_lives(path: str, processes: int, lives: int) -> None:
    def work() -> None:
        for _ in range(lives):
            slot = Slot.open(path)
            assert slot.shared
            slot.add(metrics.HITS)
            slot.close()

    in_children(*[work] * processes)
    Slot.open(path).close()
    fleet = read_fleet(path)
    assert (fleet.totals["hits"], fleet.lives) == (processes * lives, processes * lives + 1)
    assert files(path) == ["items.mmc.metrics"]
    assert os.path.getsize(archive.archive_name(path)) == archive.SIZE


def test_a_thousand_lives_leave_one_small_file(path):
    check_lives(path, 2, 500)


@pytest.mark.nightly
def test_ten_thousand_lives_leave_one_small_file(path):
    check_lives(path, 2, 5_000)


def test_processes_that_open_close_die_and_fold_at_once_count_exactly(path):
    """Four close, four are killed; a reader sees the totals grow and never go back."""
    rounds, hits = 15, 3

    def work(kills: bool) -> None:
        for _ in range(rounds):
            if kills:
                leave_dead(path, hits)
            else:
                slot = Slot.open(path)
                slot.set(metrics.HITS, hits)
                slot.close()

    seen = [0]
    in_children(
        *[lambda kills=kills: work(kills) for kills in [False, True] * 4],
        meanwhile=lambda: seen.append(read_fleet(path).totals["hits"]),
    )
    assert seen == sorted(seen)
    Slot.open(path).close()
    fleet = read_fleet(path)
    assert (fleet.totals["hits"], fleet.lives) == (8 * rounds * hits, 8 * rounds + 1)
    assert files(path) == ["items.mmc.metrics"]


# A fold that is killed or fails ---------------------------------------------------------------------------------------


class Stage:
    """A directory that is set up afresh for every fault: an archive of 100, and dead slots of 10, 200 and 3000."""

    total = 3310

    def __init__(self, path: str) -> None:
        self.path = path
        self.directory = os.path.dirname(path)
        slot = Slot.open(path)
        slot.set(metrics.HITS, 100)
        slot.close()
        leave_dead(path, 10, 200, 3000)
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
        for _ in range(2):  # one that counts, after which there is nothing left to fold
            Slot.open(self.path).close()
            assert read_fleet(self.path).totals["hits"] == self.total + more
        assert [name for name in files(self.path) if not name.endswith(".tmp")] == ["items.mmc.metrics"]


def fold(path: str) -> None:
    Slot.open(path)


def count_and_close(path: str) -> None:
    slot = Slot.open(path)
    slot.words[metrics.HITS] = 40_000
    slot.close()


@pytest.mark.parametrize(("action", "most"), [(fold, 0), (count_and_close, 40_000)])
def test_a_fold_killed_at_any_call_counts_everything_once(path, action, most):
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


@pytest.mark.parametrize("action", [fold, count_and_close])
@pytest.mark.parametrize(("error", "persistent"), [("EIO", False), ("EIO", True), ("ENOSPC", False), ("EMFILE", True)])
def test_an_error_of_any_call_is_kept_from_the_caller_and_counts_nothing_twice(path, action, error, persistent):
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


def test_a_half_written_in_part_does_not_count(path):
    leave_dead(path, 10)
    leave_dead(path, 20)
    name = archive.archive_name(path)
    (slot,) = Path(path).parent.glob(".*.slot")
    kept = {Path(name): Path(name).read_bytes(), slot: slot.read_bytes()}
    Slot.open(path).close()  # two folds: 20, and its own, of nothing
    for file, content in kept.items():
        file.write_bytes(content)
    with archive.to_write(path, metrics._OURS) as totals:
        assert totals is not None
        totals.fold(int(slot.name.split(".")[-2], 16), [20])
    after = Path(name).read_bytes()
    changed = [i for i in range(0, len(after), 8) if after[i : i + 8] != kept[Path(name)][i : i + 8]]
    for cut in changed:
        Path(name).write_bytes(after[:cut] + kept[Path(name)][cut:])
        assert read_fleet(path).totals["hits"] == 30, cut
    Path(name).write_bytes(after)
    assert read_fleet(path).totals["hits"] == 30
    Slot.open(path).close()
    assert (read_fleet(path).totals["hits"], slots(path)) == (30, [])


def test_nobody_waits_for_a_folder_that_was_stopped(path):
    slot = Slot.open(path)
    slot.set(metrics.HITS, 1)
    leave_dead(path, 10)
    Slot.open(path).close()
    leave_dead(path, 200)
    stopped = shared.Holding(archive.archive_name(path))
    other = Slot.open(path)  # tries once to fold
    other.set(metrics.HITS, 3000)
    assert read_fleet(path).totals["hits"] == 3211
    other.close()  # gives its counts up to whoever comes next
    assert len(slots(path)) == 3
    assert read_fleet(path).totals["hits"] == 3211
    stopped.close()
    slot.close()
    Slot.open(path).close()
    assert read_fleet(path).totals["hits"] == 3211
    assert slots(path) == []


def test_a_fold_while_the_fleet_is_read_without_an_archive_to_lock_is_noticed(path):
    """Case: the reader finds no archive; a worker closes, the first to do so; the reader finds no slot either."""
    slot = Slot.open(path)
    slot.set(metrics.HITS, 5)

    def close(number, name, args, call):
        if name == "listdir" and slot.shared:
            slot.close()
        return call()

    with faults(close):
        fleet = read_fleet(path)
    assert not slot.shared
    assert (fleet.totals["hits"], fleet.lives) == (5, 1)


def interfere(act: Callable[[str], object], times: int) -> Callable[..., object]:
    """Do something to a slot that was just created, before its maker has locked it."""
    seen: list[str] = []

    def behaviour(number, name, args, call):
        found = call()
        if name == "open" and not os.path.isabs(args[0]) and args[0].endswith(".slot") and len(seen) < times:
            seen.append(args[0])
            act(args[0])
        return found

    return behaviour


def test_a_slot_taken_for_dead_before_its_lock_is_held_is_made_again(path):
    """Case: another process folds between our creation of the file and our lock on it."""
    with faults(interfere(lambda name: os.unlink(os.path.join(os.path.dirname(path), name)), 3)):
        slot = Slot.open(path)
    assert slot.shared
    assert len(slots(path)) == 1
    slot.set(metrics.HITS, 2)
    assert read_fleet(path).totals["hits"] == 2
    slot.close()

    probes = []
    with faults(interfere(lambda name: probes.append(shared.Holding(os.path.join(os.path.dirname(path), name))), 1)):
        slot = Slot.open(path)
    for probe in probes:
        probe.close()
    assert slot.shared
    assert len(slots(path)) == 1
    slot.close()


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
    """Run where the directory and its files cannot be written: as nobody, if we are root."""

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


def test_in_a_directory_that_cannot_be_written_a_slot_is_private_and_the_fleet_can_be_read(public):
    path = str(public / "items.mmc")
    living = Slot.open(path)
    living.set(metrics.HITS, 1)
    leave_dead(path, 20)
    Slot.open(path).close()
    metrics.record_event(path, "rebuild", 4)
    leave_dead(path, 300)
    living.flush()
    before = files(path)

    def action() -> None:
        with pytest.raises(PermissionError):
            (public / "x").touch()
        slot = Slot.open(path)
        assert not slot.shared
        slot.add(metrics.HITS, 5)
        slot.observe(metrics.LOOKUP, 0.1)
        assert slot.counters()["hits"] == 5
        fleet = read_fleet(path)
        assert (fleet.totals["hits"], len(fleet.workers), fleet.lives) == (321, 1, 2)
        assert [event.kind for event in fleet.events] == ["rebuild"]
        metrics.record_event(path, "rebuild")
        slot.close()
        assert files(path) == before

    without_rights(public, action)
    public.chmod(0o755)
    living.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners, which takes root")
def test_a_stranger_in_a_directory_for_everybody_cannot_stop_or_forge_counts(public):
    public.chmod(0o1777)
    path = str(public / "items.mmc")
    leave_dead(path, 5)
    (dead,) = public.glob(".*.slot")
    forged = public / f".items.mmc.{7:016x}.slot"
    words = array("Q", dead.read_bytes())
    words[2], words[metrics.HITS] = 7, 10**6
    forged.write_bytes(words.tobytes())
    os.chown(forged, 61_234, 61_234)
    for _ in range(2):
        Slot.open(path).close()
    assert read_fleet(path).totals["hits"] == 5
    assert slots(path) == [forged.name]
    assert metrics.remove(path) == [archive.archive_name(path)]
    assert slots(path) == [forged.name]
    Slot.open(path).close()
    name = archive.archive_name(path)
    os.chown(name, 61_234, 61_234)
    before = Path(name).read_bytes()
    metrics.record_event(path, "rebuild")
    count_and_close(path)
    assert read_fleet(path).totals["hits"] == 40_000
    assert len(slots(path)) == 2
    assert Path(name).read_bytes() == before


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_makes_a_slot_private_and_leaves_no_file(path, error):
    with faults(FailName("pwrite", error)):
        slot = Slot.open(path)
    assert not slot.shared
    slot.add(metrics.HITS)
    assert files(path) == []
    slot.close()


def test_a_name_too_long_for_a_slot_is_no_error(tmp_path):
    path = str(tmp_path / ("x" * 240))
    slot = Slot.open(path)
    assert not slot.shared
    slot.close()
    assert read_fleet(path).workers == ()


# Other people's bytes -------------------------------------------------------------------------------------------------


def sealed_archive(sequence: int, nonce: int, lives: int, value: int, *, schema: int | None = None) -> bytes:
    """An archive of which both halves and all events have right checksums."""
    words = [archive._FORM, metrics._OURS if schema is None else schema, 1]
    data = array("Q", words + [0] * (512 - len(words)))
    for half in (sequence & ~1, sequence | 1):
        content = array("Q", [half & U64, nonce, lives, *[value] * archive.SUMS])
        content.append(xxh3_64_intdigest(content.tobytes()))
        data += content
    for at in range(archive.RING):
        event = array("Q", [(2**62 // archive.RING) * archive.RING + at, value, value, value])
        event.append(xxh3_64_intdigest(event.tobytes()))
        data += event
    return data.tobytes()


def exercise(path: str) -> Fleet:
    """Everything that reads or writes these files, once."""
    read_fleet(path)
    slot = Slot.open(path)
    slot.add(metrics.HITS, 2)
    metrics.record_event(path, "rebuild", 1)
    slot.close()
    return read_fleet(path)


@pytest.mark.parametrize("lives", [0, 2**63, U64])
@pytest.mark.parametrize("sequence", [0, 2**63 - 2, 2**63, U64])
@pytest.mark.parametrize("value", [0, U64 - 1, U64])
def test_an_archive_of_any_numbers_is_read_and_added_to_within_a_word(path, sequence, lives, value):
    Path(archive.archive_name(path)).write_bytes(sealed_archive(sequence, 1, lives, value))
    fleet = exercise(path)
    assert all(0 <= total <= U64 for total in (*fleet.totals.values(), fleet.lives))
    assert all(0 <= n <= U64 for histogram in fleet.histograms.values() for n in histogram.buckets)
    assert 0.0 <= fleet.hit_rate <= 1.0
    for histogram in fleet.histograms.values():
        assert histogram.mean >= 0
        assert histogram.quantile(0.5) >= 0


def test_a_slot_of_any_numbers_is_read_within_a_word(path):
    leave_dead(path, 1)
    (dead,) = Path(path).parent.glob(".*.slot")
    head = array("Q", dead.read_bytes())[:3].tobytes()
    held = shared.Holding(str(dead))
    dead.write_bytes(head + b"\xff" * (4096 - len(head)))
    (worker,) = read_fleet(path).workers
    assert (worker.pid, worker.state, worker.label, worker.counters["misses"]) == (U64, "unknown", "", U64)
    held.close()
    Slot.open(path).close()
    slot = Slot.open(path)
    slot.add(metrics.MISSES, 5)
    assert read_fleet(path).totals["misses"] == U64
    slot.close()
    assert read_fleet(path).totals["misses"] == U64


GARBAGE = {
    "nothing": b"",
    "a byte": b"x",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "zeros of the archive's size": bytes(archive.SIZE),
    "ones of the archive's size": b"\xff" * archive.SIZE,
    "another version's archive": sealed_archive(0, 0, 5, 10**6, schema=1),
    "much": bytes(10**6),
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_an_archive_that_is_none_is_replaced(path, content, caplog):
    Path(archive.archive_name(path)).write_bytes(content)
    die(path, 3)
    fleet = exercise(path)
    assert (fleet.totals["hits"], fleet.lives) == (5, 2)
    assert [event.kind for event in fleet.events] == ["rebuild"]
    assert files(path) == ["items.mmc.metrics"]
    assert [record.event for record in caplog.records] == ["archive_unusable", "archive_replaced"]


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_a_slot_that_is_none_is_not_counted_and_goes_when_nobody_holds_it(path, content, caplog):
    place = Path(path).parent / f".items.mmc.{5:016x}.slot"
    place.write_bytes(content)
    held = shared.Holding(str(place))
    assert exercise(path).totals["hits"] == 2
    assert place.read_bytes() == content
    held.close()
    assert exercise(path).totals["hits"] == 4
    assert files(path) == ["items.mmc.metrics"]
    assert [record.event for record in caplog.records] == ["slot_foreign"] * (len(content) == 4096)


PLANTS: dict[str, Callable[[Path], object]] = {
    "directory": lambda place: place.mkdir(),
    "fifo": os.mkfifo,
    "symlink": lambda place: place.symlink_to("victim"),
    "dangling symlink": lambda place: place.symlink_to("nowhere"),
    "socket": lambda place: os.mknod(place, stat.S_IFSOCK | 0o600),
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
@pytest.mark.parametrize("name", ["items.mmc.metrics", f".items.mmc.{5:016x}.slot"])
def test_what_is_no_file_is_neither_followed_nor_waited_for_and_stops_nothing(path, name, plant):
    victim = Path(path).parent / "victim"
    victim.write_bytes(b"precious" * 512)
    plant(Path(path).parent / name)
    leave_dead(path, 3)
    fleet = exercise(path)
    assert victim.read_bytes() == b"precious" * 512
    assert fleet.totals["hits"] == 5
    exercise(path)
    assert read_fleet(path).totals["hits"] == 7


def test_random_damage_to_archive_and_slots_never_crashes(path):
    rng = random.Random(1)
    leave_dead(path, 1)
    exercise(path)
    leave_dead(path, *range(5))
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
        fleet = exercise(path)
        assert fleet.totals["hits"] >= 0
        exercise(path)
        assert slots(path) == []


# Events ---------------------------------------------------------------------------------------------------------------


def test_events_are_kept_in_order_and_the_oldest_go(path):
    for i in range(300):
        metrics.record_event(path, metrics.EVENTS[i % len(metrics.EVENTS)], i)
    events = read_fleet(path).events
    assert [event.value for event in events] == list(range(44, 300))
    assert [event.kind for event in events[:2]] == ["rebuild_failed", "corruption"]
    assert [event.time for event in events] == sorted(event.time for event in events)
    metrics.record_event(path, "corruption", -1)
    metrics.record_event(path, "corruption", 2**70)
    assert [event.value for event in read_fleet(path).events[-2:]] == [0, U64]
    assert read_fleet(path).lives == 0


def test_an_event_of_no_known_kind_is_an_error_of_the_caller(path):
    with pytest.raises(ValueError, match="not in tuple"):
        metrics.record_event(path, "rebiuld")
    assert files(path) == []


def test_an_event_where_nothing_can_be_written_is_none(tmp_path):
    metrics.record_event(str(tmp_path / "no" / "items.mmc"), "rebuild")
    with faults(FailName("open", errno.EROFS)):
        metrics.record_event(str(tmp_path / "items.mmc"), "rebuild")
    assert os.listdir(tmp_path) == []


def test_events_of_processes_and_threads_at_once_are_all_kept(path):
    def work() -> None:
        def some() -> None:
            for _ in range(15):
                metrics.record_event(path, "rebuild", os.getpid())

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
        metrics.record_event(path, "rebuild", i)
    name = Path(archive.archive_name(path))
    data = bytearray(name.read_bytes())
    at = data.index(struct.pack("=QQ", 0, 2))  # kind and value of the last
    data[at + 8] ^= 1
    name.write_bytes(data)
    assert [event.value for event in read_fleet(path).events] == [0, 1]
    metrics.record_event(path, "unchanged", 7)
    assert [(event.kind, event.value) for event in read_fleet(path).events[1:]] == [("rebuild", 1), ("unchanged", 7)]


# Removing -------------------------------------------------------------------------------------------------------------


def test_removing_takes_archive_and_dead_slots_and_leaves_the_living(path):
    Slot.open(path).close()
    living = Slot.open(path)
    (alive,) = slots(path)
    leave_dead(path, 1, 2)
    dead = [os.path.join(os.path.dirname(path), name) for name in slots(path) if name != alive]
    living.set(metrics.HITS, 8)
    name = archive.archive_name(path)
    before = files(path)
    assert sorted(metrics.remove(path, dry_run=True)) == sorted([name, *dead])
    assert files(path) == before
    assert sorted(metrics.remove(path)) == sorted([name, *dead])
    assert files(path) == [alive]
    assert read_fleet(path).totals["hits"] == 8
    living.close()
    assert read_fleet(path).totals["hits"] == 8
    assert metrics.remove(path) == [name]
    assert metrics.remove(path) == []
    assert files(path) == []


def test_removing_says_what_it_may_not_remove(path):
    Path(archive.archive_name(path)).symlink_to("victim")
    with pytest.raises(UntrustedPathError):
        metrics.remove(path)
    with pytest.raises(PublishError):
        metrics.remove(f"{path}/none/items.mmc")
    os.unlink(archive.archive_name(path))
    Slot.open(path).close()
    holding = shared.Holding(archive.archive_name(path))
    with pytest.raises(TimeoutError):
        metrics.remove(path)
    holding.close()
    assert metrics.remove(path) == [archive.archive_name(path)]
