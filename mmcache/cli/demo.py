"""`mmcache demo`."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ..errors import MmcacheError
from ..words import bytes_of, number, plural, printable, span
from .options import ERROR, FILE_COMPLETION, OK, UsageError
from .output import Output

if TYPE_CHECKING:
    from ..cache import Cache
    from ..presets.patterns import PatternsSource
    from .demo_workers import Worker

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
See it work, offline: a bank of 1,000 test patterns in SQLite, one file made from it, and a fleet of four worker
processes that read that file without a pause: while it is built again, while a record is changed in SQLite, and while a
builder is killed. It takes some 10 seconds on an idle machine, up to a minute on a busy one.

Every figure is measured while you watch, on this machine. Works in a temporary directory, or in one that you name and
can play with afterwards.

  mmcache demo
  mmcache demo --dir play
"""

RECORDS = 1000
DIM = 768
HOT = "pattern-7"
"""The record that is changed while it is read."""
WORKERS = 4
SWAPS = 3
_READ_SECONDS = 0.25
"""Between two swaps, so that every generation is read for a while."""
_KILLS = 5
"""Builders that are started at most until one is killed before it is done."""
_PATIENCE = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    directory = parser.add_argument(
        "--dir", metavar="DIR", help="work here, and leave the files (default: a temporary one)"
    )
    directory.complete = FILE_COMPLETION  # type: ignore[attr-defined]


def run(arguments: argparse.Namespace, output: Output) -> int:
    if os.environ.get("MMCACHE_DISABLE", "0") not in ("", "0"):
        raise UsageError("MMCACHE_DISABLE sends every read to SQLite, and there would be nothing to see: unset it")
    begun = time.perf_counter()
    with _directory(arguments.dir) as directory, _quiet_log(output):
        result = _Demo(directory, output).run()
        result["seconds"] = time.perf_counter() - begun
        result["dir"] = arguments.dir
        if output.json:
            output.document(result)
        else:
            _close(arguments.dir, result, output)
    return OK if _passed(result) else ERROR


@contextmanager
def _directory(wanted: str | None) -> Iterator[str]:
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="mmcache-demo-") as directory:
            yield directory
        return
    try:
        os.makedirs(wanted, exist_ok=True)
        there = os.listdir(wanted)
    except OSError as error:
        raise UsageError(f"{wanted} cannot be used ({error.strerror}): choose another directory") from None
    if there:
        raise UsageError(f"{wanted} is not empty: choose another directory")
    yield wanted


@contextmanager
def _quiet_log(output: Output) -> Iterator[None]:
    """The damage is done on purpose; its warnings belong to the story only with -v."""
    log = logging.getLogger("mmcache")
    handler = logging.NullHandler()
    log.addHandler(handler)
    propagate, log.propagate = log.propagate, output.verbose
    try:
        yield
    finally:
        log.propagate = propagate
        log.removeHandler(handler)


class _Demo:
    """The steps, in order; each measures, tells, and keeps its figures."""

    def __init__(self, directory: str, output: Output) -> None:
        from ..presets.patterns import PatternsSource

        self.database = os.path.join(directory, "patterns.db")
        self.path = os.path.join(directory, "patterns.mmc")
        self.source: PatternsSource = PatternsSource(self.database)
        self.output = output
        self.generation = 1

    def run(self) -> dict[str, Any]:
        from .. import __version__, open as open_cache
        from .demo_workers import started

        machine = {
            "mmcache": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
        }
        self.output.note("some 10 seconds on an idle machine, up to a minute on a busy one")
        result: dict[str, Any] = {"machine": machine, "bank": self.make_bank(), "build": self.build()}
        with open_cache(self.path, self.source) as cache:
            result["lookups"] = self.look_up(cache)
        # All eight at once, so that what they share with each other (libraries) weighs the same in every figure.
        self.output.note(f"starting {2 * WORKERS} worker processes")
        with started(2 * WORKERS, self.path, self.database, HOT) as workers:
            fleet = workers[:WORKERS]
            result["memory"] = self.weigh(fleet, workers[WORKERS:])
            begun = time.monotonic()
            for worker in fleet:
                worker.ask("read")
            result["swap"] = self.swap(fleet)
            result["update"] = self.update(fleet)
            result["fleet"] = [self.show_fleet()]
            result["killed"] = self.kill_a_builder(fleet)
            result["fleet"].append(self.show_fleet())
            result["reading"] = self.stop(fleet, begun)
        result["damage"] = self.damage()
        return result

    # --- 1

    def make_bank(self) -> dict[str, Any]:
        from ..presets.patterns import write_bank

        write_bank(self.database, RECORDS, dim=DIM)
        self._revise(1)
        size = os.path.getsize(self.database)
        self.output.heading(f"A bank of {number(RECORDS)} test patterns in SQLite, {DIM} numbers in each embedding")
        self.output.say(f"  {bytes_of(size)}, made up for this demo")
        return {"records": RECORDS, "dim": DIM, "sqlite_bytes": size}

    def _revise(self, revision: float, key: str | None = None) -> None:
        """Change every pattern, or one, in a way that shows in every read. What is built from all has this number."""
        import sqlite3
        from contextlib import closing

        one, values = ("", ()) if key is None else (" WHERE id = ?", (key,))
        change = f"UPDATE patterns SET metadata = json_set(metadata, '$.revision', ?){one}"  # noqa: S608 (our own)
        with closing(sqlite3.connect(self.database, timeout=_PATIENCE)) as connection, connection:
            connection.execute(change, (revision, *values))

    # --- 2

    def build(self) -> dict[str, Any]:
        from ..sharing.publishing import build

        report = build(self.path, self.source)
        self._head("One file, built from it")
        self.output.say(
            f"  {bytes_of(report.size)} in {span(report.seconds)}: read, indexed, written, synced to disk, read back, "
            "verified, published"
        )
        return {"size": report.size, "seconds": report.seconds, "generation": report.generation}

    # --- 3

    def look_up(self, cache: Cache) -> list[dict[str, Any]]:
        from .demo_lookups import compare

        found = compare(self.database, cache)
        self._head("The same questions to SQLite and to mmcache, in one process")
        rows = [
            [
                line["name"] + (f" ({line['median_records']:g} records)" if "median_records" in line else ""),
                span(line["sqlite_seconds"]),
                span(line["mmcache_seconds"]),
                f"{line['ratio']:.1f}x",
            ]
            for line in found
        ]
        self.output.table(("median time", "SQLite", "mmcache", "ratio"), rows, right=(1, 2, 3))
        self.output.say("  SQLite with an open connection, prepared statements and indexes; the answers were equal")
        return found

    # --- 4

    def weigh(self, sharing: list[Worker], copying: list[Worker]) -> dict[str, Any]:
        shared, private = _growth(sharing, "attach"), _growth(copying, "load")
        size = os.path.getsize(self.path)
        self._head(f"Memory of {WORKERS} worker processes that have used every record and embedding")
        found = {"workers": WORKERS, "file_bytes": size, "shared_bytes": shared, "private_bytes": private}
        if shared is None or private is None:
            self.output.say("  not measured: this system does not say how much memory processes share")
            return found | {"measured": None}
        rows = [
            ["four that map the file", bytes_of(shared), bytes_of(shared // WORKERS)],
            ["four that each hold a decoded copy", bytes_of(private), bytes_of(private // WORKERS)],
        ]
        self.output.table(("all together, beyond idle", "total", "a worker"), rows, right=(1, 2))
        self.output.say(f"  proportional set size from /proc; the file is {bytes_of(size)}")
        return found | {"measured": "pss", "ratio": private / shared if shared > 0 else None}

    # --- 5

    def swap(self, workers: list[Worker]) -> dict[str, Any]:
        from ..sharing.publishing import rebuild

        generations, adoption = [], []
        for _ in range(SWAPS):
            time.sleep(_READ_SECONDS)
            self._revise(self.generation + 1)
            self.generation = rebuild(self.path).generation
            adoption.append(self._adopted(workers, time.monotonic()))
            generations.append(self.generation)
        self._head(f"{plural(SWAPS, 'rebuild')}, while {WORKERS} workers read without a pause")
        self.output.say(
            f"  all {WORKERS} had moved to the new file {span(max(adoption))} after it was published, at the latest"
        )
        return {"generations": generations, "adoption_seconds": adoption}

    def _adopted(self, workers: list[Worker], published: float) -> float:
        """Seconds until the last of them answered from the generation that is published."""
        return max(0.0, *(worker.heard("generation", self.generation) - published for worker in workers))

    # --- 6

    def update(self, workers: list[Worker]) -> dict[str, Any]:
        """Change one record in SQLite and say so: who gives the new value, and when."""
        from .. import open as open_cache

        revision = self.generation + 0.5
        with open_cache(self.path, self.source, build=False) as cache:
            self._revise(revision, HOT)
            begun = time.monotonic()
            kind = cache.invalidate([HOT], reason="record_stored")
            told = time.monotonic() - begun
        seen = [worker.heard("revision", revision) - begun for worker in workers]
        time.sleep(_READ_SECONDS)
        self._head(f"One record changed in SQLite, and cache.invalidate([{HOT!r}])")
        self.output.say(f"  told in {span(told)}; all {WORKERS} workers gave the new value after {span(max(seen))}")
        self.output.say("  SQLite answers for that record until the next build, the file for all others")
        return {"key": HOT, "kind": kind, "invalidate_seconds": told, "seen_seconds": seen}

    # --- 7

    def kill_a_builder(self, workers: list[Worker]) -> dict[str, Any]:
        """Have the file built by a process, as a worker would that finds it due; kill that; build again."""
        from ..sharing.publishing import rebuild
        from ..storage import buildlock, fs

        killed, attempts = None, 0
        while killed is None:
            if attempts == _KILLS:
                raise MmcacheError(f"{_KILLS} builders were done before they could be killed: run it again")
            attempts += 1
            self._revise(self.generation + 1)
            killed = self._killed_builder()
            self.generation += killed is None  # it was faster than we: once more
        with fs.Directory(self.path) as directory, buildlock.hold(directory, _PATIENCE):
            lock = time.monotonic() - killed
        left = len(fs.leftovers(self.path))
        time.sleep(_READ_SECONDS)
        report = rebuild(self.path)
        self.generation = report.generation
        adoption = self._adopted(workers, time.monotonic())
        self._head("A build in the background, killed with SIGKILL in the middle")
        self.output.say(f"  it left {plural(left, 'temporary file')}, and the build lock, free after {span(lock)}")
        self.output.say(
            f"  the next rebuild published generation {report.generation} in {span(report.seconds)}, swept up, and all "
            f"{WORKERS} had moved {span(adoption)} later"
        )
        return {
            "attempts": attempts,
            "left": left,
            "lock_seconds": lock,
            "generation": report.generation,
            "rebuild_seconds": report.seconds,
            "adoption_seconds": adoption,
            "swept": not fs.leftovers(self.path),
        }

    def _killed_builder(self) -> float | None:
        """When a builder was killed that had begun to write; None if it was done before."""
        from ..storage import fs

        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        command = [sys.executable, "-P", "-m", "mmcache", "rebuild", self.path]
        nothing = subprocess.DEVNULL
        with subprocess.Popen(  # noqa: S603
            command, env=environment, stdin=nothing, stdout=nothing, stderr=nothing
        ) as builder:
            while builder.poll() is None and not fs.leftovers(self.path):
                time.sleep(0.0005)
            builder.kill()
            when = time.monotonic()
        return when if fs.leftovers(self.path) else None

    # --- what the workers say

    def show_fleet(self) -> list[dict[str, Any]]:
        """What `mmcache status` shows of the workers, once they have told where they are."""
        from ..sharing.counters import read_fleet
        from . import fleet

        deadline = time.monotonic() + _PATIENCE
        found = read_fleet(self.path)
        while any(worker.generation != self.generation for worker in found.workers) and time.monotonic() < deadline:
            time.sleep(0.02)
            found = read_fleet(self.path)
        self._head("The workers now, as mmcache status shows them")
        fleet.draw_workers(found, self.output)
        workers: list[dict[str, Any]] = fleet.plain(found, 600.0)["workers"]
        return workers

    def stop(self, workers: list[Worker], begun: float) -> dict[str, Any]:
        counts = [worker.stopped() for worker in workers]
        seconds = time.monotonic() - begun
        reads, failed, aside = (sum(count[what] for count in counts) for what in ("reads", "failed", "from_sqlite"))
        reason = next((count["reason"] for count in counts if count["reason"]), None)
        self._head("All that time")
        self.output.say(
            f"  {plural(reads, 'read')} in {span(seconds)}, {number(failed)} failed, {number(aside)} answered by "
            "SQLite; each one checked against the generation it was in"
        )
        if reason:
            self.output.error(f"mmcache demo: a failed read: {reason}")
        return {"reads": reads, "failed": failed, "from_sqlite": aside, "seconds": seconds, "reason": reason}

    # --- 8

    def damage(self) -> dict[str, Any]:
        from .. import open as open_cache
        from ..storage.snapshot import Snapshot

        key = f"pattern-{RECORDS // 2}"
        with Snapshot.open(self.path) as snapshot:
            before = snapshot[key].asdict()
        place = self._flip_a_bit(before["content"])
        told = self._verify()
        with open_cache(self.path, self.source, build=False, verify="lazy") as cache:
            after = cache[key].asdict()
            stats = cache.stats()
            others = cache.get_many([f"pattern-{i}" for i in range(100)])
            hits = cache.stats().hits
            mended = cache.rebuild()
        by_source = stats.fallbacks.get("record") == 1
        found = {
            "offset": place,
            "found_by_verify": told,
            "found_by_get": stats.corruptions > 0,
            "answered_by": "sqlite" if by_source else "file",
            "same_answer": after == before,
            "other_records_from_file": hits,
            "mended_generation": mended.generation,
            "verified_after": self._verify() is None,
        }
        self._head(f"One bit of the file flipped, at byte {number(place)}, in the record of {key}")
        self.output.say(f"  verify:  {printable(told or 'found nothing')}")
        noticed = "noticed" if found["found_by_get"] else "not noticed"
        same = "the same answer as before" if found["same_answer"] else "another answer than before"
        mend = "every byte verified" if found["verified_after"] else "still damaged"
        self.output.say(f"  get:     {noticed}, and answered by {'SQLite' if by_source else 'the file'}: {same}")
        self.output.say(f"  others:  {number(hits)} of {len(others)} more records still came from the file")
        self.output.say(f"  rebuild: generation {mended.generation}, {mend}")
        return found

    def _flip_a_bit(self, text: str) -> int:
        """Put a damaged copy in the file's place: a new file, so that no reader's map changes."""
        with open(self.path, "rb") as file:
            data = bytearray(file.read())
        place = data.index(text.encode()) + 10
        data[place] ^= 1
        damaged = f"{self.path}.damaged"
        with open(damaged, "xb") as file:
            file.write(data)
        os.replace(damaged, self.path)
        return place

    def _verify(self) -> str | None:
        """What `mmcache verify` has to say, or None."""
        from ..errors import CorruptFileError
        from ..storage.verify import verify_bytes
        from .files import opened

        try:
            with opened(self.path) as file:
                verify_bytes(file.read, file.size)
        except CorruptFileError as error:
            return error.message
        return None

    def _head(self, text: str) -> None:
        self.output.say()
        self.output.heading(text)


def _growth(workers: list[Worker], what: str) -> int | None:
    """Bytes by which all of them together grow by doing this."""
    before = _memory(workers)
    for worker in workers:
        worker.ask(what)
    for worker in workers:
        if worker.answer() != RECORDS:
            raise MmcacheError("a worker process did not see every record: this is a fault of mmcache, report it")
    after = _memory(workers)
    return None if before is None or after is None else after - before


def _memory(workers: list[Worker]) -> int | None:
    found = []
    for worker in workers:
        worker.ask("memory")
        found.append(worker.answer())
    return None if None in found else sum(found)


def _passed(result: dict[str, Any]) -> bool:
    damage, killed = result["damage"], result["killed"]
    return (
        result["reading"]["failed"] == 0
        and result["update"]["kind"] == "ids"
        and all(len(workers) == WORKERS for workers in result["fleet"])
        and killed["left"] > 0
        and killed["swept"]
        and damage["same_answer"]
        and damage["found_by_verify"] is not None
        and damage["found_by_get"]
        and damage["verified_after"]
    )


def _close(directory: str | None, result: dict[str, Any], output: Output) -> None:
    machine = result["machine"]
    output.say()
    output.say(
        f"Measured in {span(result['seconds'])} on {machine['system']}, {machine['cpus']} CPUs, "
        f"Python {machine['python']}; other machines differ, ratios less so."
    )
    output.say()
    output.heading("Next")
    if directory is None:
        output.say("  mmcache demo --dir play       the same, and the files stay")
        output.say("  mmcache build --help          a file from a database of your own")
    else:
        file = os.path.join(directory, "patterns.mmc")
        output.say(f"  mmcache get {file} pattern-7")
        output.say(f"  mmcache find {file} domain=api framework=pytest")
        output.say(f"  mmcache inspect {file}")
    output.say("  python -m benchmarks.lookup   more records, more readers, other stores, from the repository")
