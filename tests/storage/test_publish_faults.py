"""A publish that is killed, or that the system fails, at any one of its calls leaves a whole old or new file.

Every scenario is run once to count its calls, and then once for each call and each kind of fault. The scenarios are
those in which the sequence of calls differs. Kills are sampled; a nightly run has all of them.
"""

# mypy: disable-error-code="arg-type, misc, type-arg, union-attr, var-annotated"
# What may be None fails the test where it is.

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mmcache
from mmcache import MmcacheError, PublishError, Schema, Snapshot
from mmcache.sources import as_source
from mmcache.storage import publish as storage
from tests.support.faults import Ends, Fail, FailName, Kill, Short, faults
from tests.support.observe import open_files
from tests.support.processes import in_child
from tests.support.profile import NIGHTLY
from tests.support.samples import sampled

SCHEMA = Schema("items", index=("kind",), embedding="v", dim=4)
ONCE = ("EIO", "ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "EMFILE", "ENOMEM")
PERSISTENT = ("EIO", "ENOSPC", "EMFILE")


def items(generation: int):
    return [
        {"id": f"k{i}", "kind": i % 2, "generation": generation, "v": [float(generation), i, 0.5, 1.0]}
        for i in range(generation, generation + 6)
    ]


def publish(path: Path, generation: int) -> mmcache.BuildReport:
    return storage.publish(path, storage.Order(as_source(items(generation), (SCHEMA,))))


def build(path: Path, generation: int) -> mmcache.BuildReport:
    """The same, told to other processes: with a control page and metrics."""
    return mmcache.build(path, items(generation), SCHEMA)


def content(path: Path) -> int:
    """The generation of content in a file, of which every byte and record was checked."""
    with Snapshot.open(path, verify="full") as snapshot:
        snapshot.verify(deep=True)
        found = {record["generation"] for record in snapshot.values()}
        assert len(found) == 1
        (generation,) = found
        assert [dict(record) for record in snapshot.values()] == [
            {name: value for name, value in item.items() if name != "v"} for item in items(generation)
        ]
        return generation


class Scenario:
    """What is there before, and what a publish makes of it. `before` and `after` are contents; 0 is no file."""

    before = 0
    after = 1
    behaviours: tuple = ()

    def prepare(self, path: Path) -> None:
        pass

    def publish(self, path: Path) -> mmcache.BuildReport:
        return publish(path, self.after)


class First(Scenario):
    pass


class Replace(Scenario):
    before, after = 1, 2

    def prepare(self, path: Path) -> None:
        publish(path, 1)


class ReplaceWithBackup(Scenario):
    before, after = 2, 3

    def prepare(self, path: Path) -> None:
        publish(path, 1)
        publish(path, 2)


class AfterACrash(ReplaceWithBackup):
    """Dead writers left temporary files and a half-made backup."""

    def prepare(self, path: Path) -> None:
        super().prepare(path)
        for kill in (12, 25, 40):
            assert os.WIFSIGNALED(in_child(lambda kill=kill: killed(Kill(kill), lambda: publish(path, 9))))
        (path.parent / f"{path.name}.bak.new").write_bytes(b"half")


class BackupIsTheSameFile(ReplaceWithBackup):
    """A crash came between the two renames: path and backup are one inode."""

    def prepare(self, path: Path) -> None:
        super().prepare(path)
        os.unlink(f"{path}.bak")
        os.link(path, f"{path}.bak")


class NoHardLinks(ReplaceWithBackup):
    behaviours = (FailName("link", errno.EPERM),)


class NoHardLinksAtAll(ReplaceWithBackup):
    behaviours = (FailName("link", errno.EOPNOTSUPP), FailName("posix_fallocate", errno.EOPNOTSUPP))


class Unchanged(ReplaceWithBackup):
    before = after = 2


class Damaged(ReplaceWithBackup):
    """The published file lost a bit; its header is intact."""

    before = -1

    def prepare(self, path: Path) -> None:
        super().prepare(path)
        data = bytearray(path.read_bytes())
        data[4096] ^= 1
        replace(path, data)


class FirstTold(First):
    def publish(self, path: Path) -> mmcache.BuildReport:
        return build(path, self.after)


class ReplaceTold(Replace):
    def prepare(self, path: Path) -> None:
        build(path, 1)

    def publish(self, path: Path) -> mmcache.BuildReport:
        return build(path, self.after)


ALONE = [
    First,
    Replace,
    ReplaceWithBackup,
    AfterACrash,
    BackupIsTheSameFile,
    NoHardLinks,
    NoHardLinksAtAll,
    Unchanged,
    Damaged,
]
SCENARIOS = [*ALONE, FirstTold, ReplaceTold]


def replace(path: Path, data: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(data)
    os.rename(other, path)


def killed(kill: Kill, action: Callable[[], object], *behaviours: object) -> None:
    with faults(*behaviours, kill):
        action()


class Stage:
    """A scenario prepared once and set up afresh, by copies, for every fault."""

    def __init__(self, scenario: type[Scenario], directory: Path) -> None:
        self.scenario = scenario()
        self.directory = directory
        self.path = directory / "work" / "items.mmc"
        self.saved = directory / "saved"
        self.saved.mkdir()
        self.scenario.prepare(self.saved / "items.mmc")
        self.reset()
        self.scenario.publish(self.path)  # what is asked once in a process is asked now
        self.reset()
        gc.collect()  # what other tests dropped is not closed while we count
        with faults(*self.scenario.behaviours) as calls:
            self.scenario.publish(self.path)
        self.calls = calls.log
        self.renames = [i for i, name in enumerate(self.calls) if name == "rename"]

    def reset(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)
        self.path.parent.mkdir()
        made: dict[int, Path] = {}
        for name in sorted(os.listdir(self.saved)):
            source, target = self.saved / name, self.path.parent / name
            inode = source.stat().st_ino
            if inode in made:
                os.link(made[inode], target)
            else:
                shutil.copy2(source, target)
                made[inode] = target

    def kills(self) -> list[int]:
        """Calls to be killed at: every sixth, and those at renames, where the answer changes. All in a nightly run."""
        near = {at + step for at in self.renames for step in (-1, 0, 1, 2)}
        return [at for at in range(len(self.calls)) if NIGHTLY or at % 6 == 0 or at in near]

    def backup(self) -> Path:
        return self.path.with_name("items.mmc.bak")

    def bytes_of(self, path: Path) -> bytes | None:
        return path.read_bytes() if path.exists() else None

    def temporaries(self) -> list[str]:
        # Counter files stay, for the next worker to adopt.
        lasting = {f"items.mmc{suffix}" for suffix in ("", ".bak", ".lock", ".ctl")}
        names = {name for name in os.listdir(self.path.parent) if not name.endswith((".counts", ".wake"))} - lasting
        return sorted(names)

    def generation(self) -> int:
        if not self.path.exists():
            return 0
        with Snapshot.open(self.path, verify="lazy") as snapshot:
            return snapshot.generation

    def check_next_build_works_and_sweeps(self, floor: int) -> None:
        with faults():
            report = publish(self.path, 7)
        assert content(self.path) == 7
        assert report.generation > floor, (report.generation, floor)
        assert self.temporaries() == []
        assert not self.backup().exists() or content(self.backup()) in range(1, 10)


@pytest.mark.parametrize("scenario", sampled(ALONE, 3), ids=lambda scenario: scenario.__name__)
def test_a_kill_at_any_call_leaves_the_old_or_the_new_file_whole(tmp_path, scenario):
    """A kill after a call is one before the next: nothing but memory changes between the two. Those that tell others
    are killed in `tests/processes/test_rebuild_kills.py`, with others that read."""
    stage = Stage(scenario, tmp_path)
    before, after = stage.scenario.before, stage.scenario.after
    stage.reset()
    old, old_generation, had_backup = stage.bytes_of(stage.path), stage.generation(), stage.backup().exists()
    seen = set()
    for at in stage.kills():
        name = stage.calls[at]
        stage.reset()
        kill = Kill(at)
        status = in_child(
            lambda kill=kill: killed(kill, lambda: stage.scenario.publish(stage.path), *stage.scenario.behaviours)
        )
        where = f"killed before call {at}, {name}"
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, where
        if stage.bytes_of(stage.path) == old:
            seen.add("old")
        else:
            assert content(stage.path) == after, where
            assert stage.generation() == old_generation + 1
            seen.add("new")
        if had_backup:
            assert content(stage.backup()) in {before, before - 1, 1}, where
        stage.check_next_build_works_and_sweeps(old_generation)
    assert seen == ({"old"} if scenario is Unchanged else {"old", "new"})


def test_a_kill_at_any_call_never_shows_a_reader_anything_but_a_whole_generation(tmp_path):
    """Readers in processes of their own open, read, hold and reopen while publishers are killed at every call."""
    stage = Stage(ReplaceWithBackup, tmp_path)
    stage.reset()
    reader = """
import json, sys
from mmcache import Snapshot
path = sys.argv[1]
held = Snapshot.open(path)
print("ready", flush=True)
last, opened, contents = held.generation, 0, set()
while True:
    with Snapshot.open(path, verify="full" if opened % 2 else "lazy") as snapshot:
        found = {(r["generation"], float(r.embedding[0]) == r["generation"]) for r in snapshot.values()}
        assert len(found) == 1 and all(right for _, right in found), found
        assert snapshot.generation >= last, (snapshot.generation, last)
        last = snapshot.generation
        contents |= found
    assert {r["generation"] for r in held.values()} == {2}
    opened += 1
    if opened % 50 == 0:
        print(opened, flush=True)
        if sys.stdin.readline().strip() == "stop":
            break
print(json.dumps([opened, len(contents)]), flush=True)
"""
    command = [sys.executable, "-c", reader, str(stage.path)]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=os.getcwd())
        for _ in range(2)
    ]
    try:
        for process in readers:
            assert process.stdout.readline() == "ready\n"
        generation = 2
        for at in range(len(stage.calls)):
            generation += 1
            in_child(lambda: killed(Kill(at), lambda: publish(stage.path, generation)))  # noqa: B023
            if at % 4 == 0:
                publish(stage.path, generation + 1000)
            for process in readers:
                if at % 8 == 0:
                    process.stdin.write("on\n")
                    process.stdin.flush()
                    line = process.stdout.readline()
                    assert line.strip().isdigit(), line
        for process in readers:
            out, _ = process.communicate("stop\n" * 200, timeout=60)
            opened, contents = json.loads(out.splitlines()[-1])
            assert process.returncode == 0
            assert opened >= 100
            assert contents > 3
    finally:
        for process in readers:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def check_after_error(stage: Stage, old: bytes | None, floor: int, outcome: str, where: str, *, sweeps: bool) -> None:
    before, after = stage.scenario.before, stage.scenario.after
    now = stage.bytes_of(stage.path)
    assert outcome in ("error", "success"), where
    if outcome == "error":
        assert now == old, f"{where}: an error, and the published file is another"
    elif now == old:
        assert before == after, f"{where}: success, and nothing was published"
    else:
        assert content(stage.path) == after, where
        assert stage.generation() > floor, where
    if stage.backup().exists():
        assert content(stage.backup()) in {before, before - 1, 1}, where
    if sweeps:
        assert set(stage.temporaries()) <= set(os.listdir(stage.saved)), where


def attempt(stage: Stage, *behaviours: object) -> str:
    try:
        with faults(*stage.scenario.behaviours, *behaviours):
            stage.scenario.publish(stage.path)
    except MmcacheError as error:
        return "error" if error.path else f"error without a path: {error!r}"
    return "success"


def check_errors(
    tmp_path: Path, scenario: type[Scenario], names: tuple[str, ...], *, persistent: bool, each: bool = True
) -> None:
    """each: every error at every call; else they take turns, at every second call in a run that is not nightly."""
    stage = Stage(scenario, tmp_path)
    stage.reset()
    old, floor = stage.bytes_of(stage.path), stage.generation()
    outcomes = set()
    calls = range(0, len(stage.calls), 1 if each or NIGHTLY else 2)
    for at, name in itertools.product(calls, names) if each else zip(calls, itertools.cycle(names), strict=False):
        stage.reset()
        files = open_files()
        outcome = attempt(stage, Fail(at, getattr(errno, name), persistent))
        where = f"{name} at call {at}, {stage.calls[at]}"
        outcomes.add(outcome)
        assert open_files() == files, where
        check_after_error(
            stage,
            old,
            floor,
            outcome,
            where,
            sweeps=not persistent and stage.calls[at] != "unlink" and outcome == "error",
        )
        stage.check_next_build_works_and_sweeps(floor)
    assert "error" in outcomes


@pytest.mark.parametrize("scenario", sampled(SCENARIOS, 3), ids=lambda scenario: scenario.__name__)
def test_an_error_of_any_call_is_survived_or_leaves_the_published_file_as_it_was(tmp_path, scenario):
    """By turns EPERM, of which something is made in places, and one of those that are all the same."""
    check_errors(tmp_path, scenario, ("ENOSPC", "EPERM"), persistent=False, each=False)


@pytest.mark.parametrize("scenario", sampled(SCENARIOS, 3), ids=lambda scenario: scenario.__name__)
def test_errors_of_all_calls_from_any_one_on_leave_the_published_file_as_it_was(tmp_path, scenario):
    check_errors(tmp_path, scenario, ("EIO",), persistent=True, each=False)


@pytest.mark.nightly
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_every_errno_of_any_call_is_survived_or_leaves_the_published_file_as_it_was(tmp_path, scenario):
    check_errors(tmp_path, scenario, ONCE, persistent=False)


@pytest.mark.nightly
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_every_errno_of_all_calls_from_any_one_on_leaves_the_published_file_as_it_was(tmp_path, scenario):
    check_errors(tmp_path, scenario, PERSISTENT, persistent=True)


@pytest.mark.parametrize(
    "scenario", [First, ReplaceWithBackup, NoHardLinks, Unchanged], ids=lambda scenario: scenario.__name__
)
def test_a_read_that_ends_early_or_a_write_that_moves_nothing_is_an_error_or_survived(tmp_path, scenario):
    stage = Stage(scenario, tmp_path)
    stage.reset()
    old, floor = stage.bytes_of(stage.path), stage.generation()
    outcomes = set()
    for at, name in enumerate(stage.calls):
        if name in ("pread", "pwrite"):
            stage.reset()
            files = open_files()
            outcome = attempt(stage, Ends(at))
            outcomes.add(outcome)
            assert open_files() == files
            check_after_error(stage, old, floor, outcome, f"{name} {at} moved nothing", sweeps=outcome == "error")
            stage.check_next_build_works_and_sweeps(floor)
    assert "error" in outcomes


@pytest.mark.parametrize("divisor", [2, 10**9])
@pytest.mark.parametrize(
    "scenario", [First, ReplaceWithBackup, NoHardLinks, Unchanged], ids=lambda scenario: scenario.__name__
)
def test_reads_and_writes_that_move_less_than_asked_are_repeated(tmp_path, scenario, divisor):
    stage = Stage(scenario, tmp_path)
    stage.reset()
    with faults(*stage.scenario.behaviours, Short(divisor)):
        report = stage.scenario.publish(stage.path)
        with Snapshot.open(stage.path, access="copy") as snapshot:
            snapshot.verify()
    assert report.changed is (scenario is not Unchanged)
    assert content(stage.path) == stage.scenario.after
    assert stage.temporaries() == []


class Only(Fail):
    """Fail the calls of a name from number `at` on."""

    only = "fsync"

    def __call__(self, number, name, args, call):
        return super().__call__(number, name, args, call) if name == self.only else call()


def test_a_directory_that_cannot_be_synced_is_published_and_reported_as_not_durable(path, caplog):
    publish(path, 1)
    with faults() as calls:
        publish(path, 2)
    last = max(i for i, name in enumerate(calls.log) if name == "fsync")
    with faults(Only(last, errno.EIO, persistent=True)):
        report = publish(path, 3)
    assert (report.changed, report.durable, content(path)) == (True, False, 3)
    assert "not known to be durable" in caplog.text
    assert publish(path, 4).durable


def test_a_file_that_cannot_be_synced_is_not_published_and_not_tried_again(path):
    publish(path, 1)
    old = path.read_bytes()
    tried = []

    def first_sync_fails(number, name, args, call):
        if name == "fsync" and not tried:
            tried.append(number)
            raise OSError(errno.EIO, "EIO")
        return call()

    with faults(first_sync_fails) as calls, pytest.raises(PublishError, match="published"):
        publish(path, 3)
    assert calls.log.count("fsync") == 1
    assert path.read_bytes() == old
    assert {name for name in os.listdir(path.parent) if not name.endswith(("ctl", "counts", "wake"))} == {
        "items.mmc",
        "items.mmc.lock",
    }


def test_a_file_that_is_not_a_cache_is_not_replaced(path):
    for text in (b"SQLite format 3\0" + bytes(500), b"precious", b"\x89PNG\r\n\x1a\n"):
        for name in (path, Path(f"{path}.bak")):
            name.write_bytes(text)
            with pytest.raises(MmcacheError, match="not an mmcache file"):
                publish(path, 1)
            assert name.read_bytes() == text
            name.unlink()


class Stop(BaseException):
    """As KeyboardInterrupt: no error that anyone catches."""


@pytest.mark.parametrize("error", [Stop, MemoryError, RuntimeError, MmcacheError])
def test_whatever_the_records_or_the_progress_raise_reaches_the_caller_and_leaves_nothing_behind(path, error):
    publish(path, 1)
    old = path.read_bytes()
    files = open_files()

    def records(fails_at: int):
        for i, item in enumerate(items(2) * 400):
            if i == fails_at:
                raise error("here")
            yield item | {"id": f"{i}"}

    def progress(stage: str, done: int, total: int | None) -> None:
        if stage == "write":
            raise error("here")

    for fails_at in (0, 1, 1500):
        with pytest.raises(error):
            mmcache.build(path, records(fails_at), SCHEMA)
    with pytest.raises(error):
        mmcache.build(path, items(2), SCHEMA, progress=progress)
    assert path.read_bytes() == old
    assert {name for name in os.listdir(path.parent) if not name.endswith(("ctl", "counts", "wake"))} == {
        "items.mmc",
        "items.mmc.lock",
    }
    assert open_files() == files


def test_an_error_of_any_call_of_an_open_is_a_mmcache_error_and_leaks_nothing(path):
    publish(path, 1)

    def read() -> None:
        for access in ("mmap", "copy"):
            with Snapshot.open(path, access=access) as snapshot:
                assert len(snapshot.get_many([f"k{i}" for i in range(40)])) == 40
                snapshot.verify()

    with faults() as calls:
        read()
    files = open_files()
    for at, name in itertools.product(range(len(calls.log)), ONCE):
        with faults(Fail(at, getattr(errno, name))):
            if "close" in calls.log[at : at + 2]:  # itself, or the look whether the descriptor is still ours
                with contextlib.suppress(MmcacheError):
                    read()
            else:
                with pytest.raises(MmcacheError, match=re.escape(str(path))):
                    read()
        assert open_files() == files
    for at in range(len(calls.log)):
        with faults(Ends(at)), contextlib.suppress(MmcacheError):
            read()
        assert open_files() == files


def test_the_generation_never_goes_back_over_damage_of_any_kind(path):
    for generation in range(1, 6):
        publish(path, generation)
    whole = path.read_bytes()
    backup = Path(f"{path}.bak").read_bytes()
    for name, wrong in {
        "header": bytes(4096) + whole[4096:],
        "body": whole[:4096] + bytes(len(whole) - 4096),
        "truncated": whole[:5000],
        "empty": b"",
    }.items():
        replace(path, wrong)
        replace(Path(f"{path}.bak"), backup)
        report = publish(path, 6)
        assert report.generation == 6, name
        assert content(path) == 6
        assert content(Path(f"{path}.bak")) == 4, f"{name}: a damaged file became the backup"


def test_a_published_file_that_cannot_be_read_now_is_not_replaced_by_one_of_a_lower_generation(path):
    publish(path, 1)
    publish(path, 2)
    os.unlink(f"{path}.bak")

    def unreadable(number, name, args, call):
        if name == "open" and args[0] == path.name:
            raise OSError(errno.EIO, "EIO")
        return call()

    with faults(unreadable), pytest.raises(MmcacheError, match="Input/output error"):
        publish(path, 3)
    assert content(path) == 2
