"""See it work, offline, in a few seconds: a bank of 1,000 test patterns in SQLite, one file made from it, and four
worker processes that read that file.

Every figure is measured while you watch, on this machine. Works in a temporary directory, or in one that you name and
can play with afterwards.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import MmcacheError
from .options import ERROR, FILE_COMPLETION, OK, UsageError
from .output import Output
from .words import bytes_of, number, plural, printable, span

if TYPE_CHECKING:
    from ..cache import Cache
    from ..presets.patterns import PatternsSource
    from .demo_workers import Worker

__all__ = ["add_arguments", "run"]

RECORDS = 1000
DIM = 768
WORKERS = 4
SWAPS = 3
_READ_SECONDS = 0.25
"""Between two swaps, so that every generation is read for a while."""


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

    def run(self) -> dict[str, Any]:
        from .. import __version__, open as open_cache
        from .demo_workers import started

        machine = {
            "mmcache": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
        }
        result: dict[str, Any] = {"machine": machine, "bank": self.make_bank(), "build": self.build()}
        with open_cache(self.path, self.source) as cache:
            result["lookups"] = self.look_up(cache)
        # All eight at once, so that what they share with each other (libraries) weighs the same in every figure.
        self.output.note(f"starting {2 * WORKERS} worker processes")
        with started(2 * WORKERS, self.path, self.database) as workers:
            result["memory"] = self.weigh(workers[:WORKERS], workers[WORKERS:])
            result["swap"] = self.swap(workers[:WORKERS])
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

    def _revise(self, revision: int) -> None:
        """Change every pattern, in a way that shows in every read."""
        import sqlite3
        from contextlib import closing

        with closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute("UPDATE patterns SET metadata = json_set(metadata, '$.revision', ?)", (revision,))

    # --- 2

    def build(self) -> dict[str, Any]:
        from ..storage.publish import build

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
        from ..storage.publish import rebuild

        for worker in workers:
            worker.ask("read")
        begun = time.monotonic()
        generations, adoption = [], []
        for revision in range(2, 2 + SWAPS):
            time.sleep(_READ_SECONDS)
            self._revise(revision)
            generations.append(rebuild(self.path).generation)
            published = time.monotonic()
            moved = [worker.answer() for worker in workers]
            adoption.append(max(0.0, *(when - published for _, when in moved)))
        time.sleep(_READ_SECONDS)
        for worker in workers:
            worker.ask("stop")
        counts = [worker.answer() for worker in workers]
        seconds = time.monotonic() - begun
        reads, failed, aside = (sum(count[what] for count in counts) for what in ("reads", "failed", "from_sqlite"))
        self._head(f"{plural(SWAPS, 'rebuild')}, while {WORKERS} workers read without a pause")
        self.output.say(
            f"  {plural(reads, 'read')} in {span(seconds)}, {number(failed)} failed, {number(aside)} sent to SQLite; "
            f"every one checked against the generation it was in"
        )
        self.output.say(
            f"  all {WORKERS} had moved to the new file {span(max(adoption))} after it was published, at the latest"
        )
        reason = next((count["reason"] for count in counts if count["reason"]), None)
        if reason:
            self.output.error(f"mmcache demo: a failed read: {reason}")
        return {
            "reads": reads,
            "failed": failed,
            "from_sqlite": aside,
            "generations": generations,
            "seconds": seconds,
            "adoption_seconds": adoption,
            "reason": reason,
        }

    # --- 6

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
        """Put a damaged copy in the file's place: a new file, so that nobody's map changes under them."""
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
    damage = result["damage"]
    return (
        result["swap"]["failed"] == 0
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
