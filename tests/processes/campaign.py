"""Real processes on one cache, killed and stopped at random, and every read of theirs held against `history.RULES`.

    python -m tests.processes.campaign --seconds 120 --swaps 5000 --reads 1000000

8 processes read, two of them in several threads, 2 commit to SQLite and invalidate, 2 rebuild: see `roles`. The parent
kills and stops them, and starts others in their place. Ends when there were as many swaps and reads as asked for, or
after `--seconds`; without either number, then. A long campaign is a row of rounds, each with a seed, a bank and a file
of its own; it ends with a bad one.

Prints one line; exit code 1 after a violation, whose round is then kept with all its logs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import mmap
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic_ns as now

import numpy as np

import mmcache
from tests.processes.checker import check
from tests.processes.history import HEAD, RULES, WRITE, History, Kind, Verdict, explain, read_log, totals
from tests.processes.roles import AT_FIRST, KEYS, ROLES, SOURCES, THREAD, World, look, roles_of, row_of

ROUND_SECONDS = 100.0
KILL_EVERY, STOP_EVERY = 0.5, 0.15
LONGEST_STOP = 0.06
_GOES_BACK = "content went back"
PATIENCE = 20.0
"""Seconds that the processes have to end, once they are told to."""

# --- a round ----------------------------------------------------------------------------------------------------------


def set_up(world: World) -> None:
    """A bank, commit 1 of which is most of the records; by process 0."""
    log, db = world.log("parent", 0), world.database()
    with contextlib.closing(db):
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind INTEGER, version INTEGER, mark TEXT, vector BLOB)")
        db.execute("CREATE TABLE head (id TEXT PRIMARY KEY, version INTEGER)")
        db.execute(
            "CREATE TABLE journal (version INTEGER, process INTEGER, register INTEGER, present INTEGER, kind INTEGER)"
        )
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO head VALUES ('head', 1)")
        rows = [row_of(register, 1, kind) for register, kind in AT_FIRST.items()]
        db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", rows)
        journal = [(HEAD, 0), *AT_FIRST.items()]
        db.executemany("INSERT INTO journal VALUES (1, 0, ?, 1, ?)", journal)
        log.note(Kind.COMMIT, 0, 0, 1, now(), 0)
        log.keep()
        db.execute("COMMIT")
        log.returned()
    if world.kind == "tracked":
        world.source().track()
    if not world.follows:
        mmcache.build(world.directory / "bank.mmc", world.source())
    elif os.waitpid(start(world, "first", 0), 0)[1]:  # in a child: the library of stores outlives no fork
        raise RuntimeError((world.directory / "first-0.error").read_text())


def start(world: World, role: str, number: int) -> int:
    """A child that plays a role; its process id. It exits with 1, and a traceback, after any error."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if world.mutant is not None:
            module, _, function = world.mutant.partition(":")
            getattr(importlib.import_module(module), function)()
        ROLES[role][0](world, number)
        code = 0
    except BaseException:  # noqa: BLE001  the parent has to hear of it, whatever it was
        text = f"{role} {number} failed:\n{traceback.format_exc()}"
        (world.directory / f"{role}-{number}.error").write_text(text)
    finally:
        os._exit(code)


@dataclass
class Round:
    """What came of it. calls: reads that returned, one for each call. failures: of processes, as text."""

    world: World
    history: History
    verdict: Verdict
    calls: int
    swaps: int
    kills: int
    stops: int
    failures: list[str]

    @property
    def good(self) -> bool:
        return not self.failures and not self.verdict.broken


def run_round(world: World, seconds: float, swaps: int | None, calls: int | None) -> Round:
    set_up(world)
    draw = world.random(0)
    alive: dict[int, tuple[str, int]] = {}
    number, kills, stops = 0, 0, 0
    failures: list[str] = []

    def start_next(role: str) -> None:
        nonlocal number
        number += 1
        alive[start(world, role, number)] = role, number

    def collect(*, replacing: bool) -> None:
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            role, which = alive.pop(pid)
            how = os.waitstatus_to_exitcode(status)
            if how not in (0, -signal.SIGKILL):
                error = world.directory / f"{role}-{which}.error"
                failures.append(error.read_text() if error.exists() else f"{role} {which} ended with {how}")
            if replacing:
                start_next(role)

    for role, count in roles_of(world).items():
        for _ in range(count):
            start_next(role)
    begun = time.monotonic()
    next_kill, next_stop, next_look = begun + 1.0, begun + 0.5, begun + 1.0
    try:
        while time.monotonic() < begun + seconds and not failures:
            time.sleep(0.01)
            collect(replacing=True)
            instant = time.monotonic()
            if instant >= next_kill:
                os.kill(draw.choice(list(alive)), signal.SIGKILL)
                kills += 1
                next_kill = instant + draw.expovariate(1 / KILL_EVERY)
            if instant >= next_stop:
                victim = draw.choice(list(alive))
                os.kill(victim, signal.SIGSTOP)
                time.sleep(draw.uniform(0.001, LONGEST_STOP))
                os.kill(victim, signal.SIGCONT)
                stops += 1
                next_stop = instant + draw.expovariate(1 / STOP_EVERY)
            if instant >= next_look and swaps is not None and calls is not None:
                next_look = instant + 0.5
                done = sums(world.directory)
                if done[0] >= calls and done[1] >= swaps:
                    break
    finally:
        world.stop[0] = 1
        patience = time.monotonic() + PATIENCE
        while alive and time.monotonic() < patience:
            collect(replacing=False)
            time.sleep(0.01)
        for pid, (role, which) in alive.items():
            failures.append(f"{role} {which} hangs")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    last = world.log("parent", number + 1, 2 * len(KEYS))
    look(last, world.directory / "bank.mmc")  # the last builder may have been killed before it could
    last.keep()
    history = load(world.directory)
    total = sums(world.directory)
    verdict = check(history)
    if world.follows:  # a release that is withdrawn is left for an older one
        verdict.broken.pop(_GOES_BACK, None)
        verdict.violations = [one for one in verdict.violations if one.rule != _GOES_BACK]
    return Round(world, history, verdict, *total, kills, stops, failures)


def sums(directory: Path) -> tuple[int, int]:
    """Calls to read and files published, of all processes."""
    found = [totals(path) for path in directory.glob("*.log")]
    return sum(calls for calls, _ in found), sum(published for _, published in found)


def load(directory: Path) -> History:
    """The logs of a round, and the journal of its database."""
    logs, names, processes = {}, {}, {}
    for path in directory.glob("*.log"):
        role, _, number = path.stem.rpartition("-")
        process, _, thread = number.partition(".")
        log = int(process) + THREAD * int(thread or 0)
        logs[log], names[log], processes[log] = read_log(path), f"{role} {number}", int(process)
    with contextlib.closing(sqlite3.connect(directory / "bank.db")) as db:
        rows = db.execute("SELECT version, process, register, present, kind FROM journal").fetchall()
    return History(logs, np.array(rows, WRITE), names, processes)


# --- the campaign -----------------------------------------------------------------------------------------------------


def report(rounds: Sequence[Round], seconds: float) -> str:
    verdicts = [one.verdict for one in rounds]
    calls, swaps = sum(one.calls for one in rounds), sum(one.swaps for one in rounds)
    broken = sum(sum(verdict.broken.values()) for verdict in verdicts)
    return (
        f"reads={calls} answers={sum(v.reads + v.pinned_reads for v in verdicts)} swaps={swaps} "
        f"commits={sum(len(np.unique(one.history.writes['commit'])) for one in rounds)} "
        f"kills={sum(one.kills for one in rounds)} stops={sum(one.stops for one in rounds)} "
        f"undecided={sum(v.undecided for v in verdicts)} rounds={len(rounds)} seconds={seconds:.1f} "
        f"seed={rounds[0].world.seed} failures={sum(len(one.failures) for one in rounds)} violations={broken}"
        + "".join(f" [{rule}: {count}]" for one in verdicts for rule, count in one.broken.items())
    )


def tell_of(bad: Round) -> None:
    """On stderr: what went wrong, and the story of the first violation of each rule."""
    for failure in bad.failures:
        print(failure, file=sys.stderr)
    told = set()
    for violation in bad.verdict.violations:
        print(violation, file=sys.stderr)
        if violation.rule not in told:
            told.add(violation.rule)
            print(f"  rule: {RULES[violation.rule]}", file=sys.stderr)
            for line in explain(bad.history, violation):
                print(f"  {line}", file=sys.stderr)
    if bad.world.directory.exists():
        print(f"kept in {bad.world.directory}", file=sys.stderr)


def scratch() -> str | None:
    """Memory, where there is some to be had as files: fsync is not what is tested here, and would take most of the
    time."""
    shm = "/dev/shm"
    with contextlib.suppress(OSError):
        if os.access(shm, os.W_OK | os.X_OK) and shutil.disk_usage(shm).free > 2 * 2**30:
            return shm
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--round", type=float, default=ROUND_SECONDS, help="seconds of each")
    parser.add_argument("--swaps", type=int, help="end when there were so many, and so many reads")
    parser.add_argument("--reads", type=int, help="end when there were so many, and so many swaps")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; printed at the end")
    parser.add_argument(
        "--source", choices=[*SOURCES], default="silent", help="plain: says that it has changed; tracked: what"
    )
    parser.add_argument("--mutant", help="module:function, called in each child before it opens the cache")
    parser.add_argument("--follows", action="store_true", help="the file is of releases, and no process builds it")
    parser.add_argument("--discard", action="store_true", help="do not keep what a bad round leaves")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little")
    swaps, calls = options.swaps, options.reads
    if swaps is not None or calls is not None:
        swaps, calls = swaps or 0, calls or 0
    begun = time.monotonic()
    rounds: list[Round] = []
    while not rounds or (time.monotonic() - begun < options.seconds - 1.0 and swaps is None):
        left = options.seconds - (time.monotonic() - begun)
        directory = Path(tempfile.mkdtemp(prefix="mmcache-history-", dir=scratch()))
        world = World(
            directory,
            seed + len(rounds),
            mmap.mmap(-1, mmap.PAGESIZE),
            os.getpid(),
            options.source,
            options.mutant,
            follows=options.follows,
        )
        whole = left if swaps is not None else min(left, options.round)
        try:
            last = run_round(world, whole, swaps, calls)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        rounds.append(last)
        if last.good or options.discard:
            shutil.rmtree(directory)
        if not last.good:
            break
        last.history = replace(last.history, logs={})  # a long campaign has many rounds
    if not rounds[-1].good:
        tell_of(rounds[-1])
    print(report(rounds, time.monotonic() - begun))
    return 0 if rounds[-1].good else 1


if __name__ == "__main__":
    sys.exit(main())
