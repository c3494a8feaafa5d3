"""The steps of the demo, in order; each measures, prints what it found, and keeps its figures.

What a program needs is public (`mmcache.build`, `mmcache.open`, `cache.invalidate`). The demo also looks inside: for
what a killed builder left, and for what the workers counted.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

import mmcache
from mmcache import Cache, MmcacheError, Snapshot
from mmcache.cli import fleet
from mmcache.cli.files import opened
from mmcache.cli.output import Output
from mmcache.presets.patterns import PatternsSource
from mmcache.sharing.counters import read_fleet
from mmcache.sharing.publishing import rebuild
from mmcache.storage import buildlock, fs
from mmcache.storage.verify import verify_bytes
from mmcache.text import bytes_of, number, plural, printable, span

from .bank import write_bank
from .lookups import compare
from .workers import Worker, started

__all__ = ["WORKERS", "Demo"]

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


class Demo:
    """directory: an empty one, where the demo works. output: where its words go."""

    def __init__(self, directory: str, output: Output) -> None:
        self.database = os.path.join(directory, "patterns.db")
        self.path = os.path.join(directory, "patterns.mmc")
        self.source: PatternsSource = PatternsSource(self.database)
        self.output = output
        self.generation = 1

    def run(self) -> dict[str, Any]:
        machine = {
            "mmcache": mmcache.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
        }
        self.output.note("some 10 seconds on an idle machine, up to a minute on a busy one")
        result: dict[str, Any] = {"machine": machine, "bank": self.make_bank(), "build": self.build()}
        with mmcache.open(self.path, self.source) as cache:
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
        write_bank(self.database, RECORDS, dim=DIM)
        self._revise(1)
        size = os.path.getsize(self.database)
        self.output.heading(f"A bank of {number(RECORDS)} test patterns in SQLite, {DIM} numbers in each embedding")
        self.output.say(f"  {bytes_of(size)}, made up for this demo")
        return {"records": RECORDS, "dim": DIM, "sqlite_bytes": size}

    def _revise(self, revision: float, key: str | None = None) -> None:
        """Change every pattern, or one, in a way that shows in every read. What is built from all has this number."""
        one, values = ("", ()) if key is None else (" WHERE id = ?", (key,))
        change = f"UPDATE patterns SET metadata = json_set(metadata, '$.revision', ?){one}"
        with closing(sqlite3.connect(self.database, timeout=_PATIENCE)) as connection, connection:
            connection.execute(change, (revision, *values))

    # --- 2

    def build(self) -> dict[str, Any]:
        report = mmcache.build(self.path, self.source)
        self._head("One file, built from it")
        self.output.say(
            f"  {bytes_of(report.size)} in {span(report.seconds)}: read, indexed, written, synced to disk, read back, "
            "verified, published"
        )
        return {"size": report.size, "seconds": report.seconds, "generation": report.generation}

    # --- 3

    def look_up(self, cache: Cache) -> list[dict[str, Any]]:
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
        revision = self.generation + 0.5
        with mmcache.open(self.path, self.source, build=False) as cache:
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
        root = os.path.dirname(os.path.dirname(os.path.abspath(mmcache.__file__)))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        command = [sys.executable, "-P", "-m", "mmcache", "rebuild", self.path]
        nothing = subprocess.DEVNULL
        with subprocess.Popen(command, env=environment, stdin=nothing, stdout=nothing, stderr=nothing) as builder:
            while builder.poll() is None and not fs.leftovers(self.path):
                time.sleep(0.0005)
            builder.kill()
            when = time.monotonic()
        return when if fs.leftovers(self.path) else None

    # --- what the workers say

    def show_fleet(self) -> list[dict[str, Any]]:
        """What `mmcache status` shows of the workers, once they have told where they are."""
        deadline = time.monotonic() + _PATIENCE
        found = read_fleet(self.path)
        while any(worker.generation != self.generation for worker in found.workers) and time.monotonic() < deadline:
            time.sleep(0.02)
            found = read_fleet(self.path)
        self._head("The workers now, as mmcache status shows them")
        fleet.render_workers(found, self.output)
        workers: list[dict[str, Any]] = fleet.to_json(found, 600.0)["workers"]
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
            self.output.error(f"demo: a failed read: {reason}")
        return {"reads": reads, "failed": failed, "from_sqlite": aside, "seconds": seconds, "reason": reason}

    # --- 8

    def damage(self) -> dict[str, Any]:
        key = f"pattern-{RECORDS // 2}"
        with Snapshot.open(self.path) as snapshot:
            before = snapshot[key].asdict()
        place = self._flip_a_bit(before["content"])
        told = self._verify()
        with mmcache.open(self.path, self.source, build=False, verify="lazy") as cache:
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
        try:
            with opened(self.path) as file:
                verify_bytes(file.read, file.size)
        except mmcache.CorruptFileError as error:
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
