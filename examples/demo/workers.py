"""Worker processes of the demo: real ones, started by spawn, which share nothing with us and attach by path.

Each does one thing at a time, on request, over a pipe of its own, and ends when that pipe closes, however we die.
"""

from __future__ import annotations

import gc
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mmcache
from mmcache import Cache, MmcacheError
from mmcache.presets.patterns import PatternsSource

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Worker", "started"]

PATIENCE = 60.0
"""Seconds after which a worker that does not answer is a fault of the demo."""

_READS_A_WORD = 64
"""Reads between two looks for a word from us."""

_HOT = 4
"""One read in so many is of the record that will be changed."""

_CHECK_INTERVAL = 0.1
"""Seconds between two slow checks, so that what a worker tells of itself is of now."""


@dataclass(frozen=True, slots=True)
class Worker:
    """Our end of one."""

    pipe: Connection

    def ask(self, what: str) -> None:
        self.pipe.send(what)

    def answer(self) -> Any:
        """Raises MmcacheError if there is none in time."""
        try:
            if self.pipe.poll(PATIENCE):
                return self.pipe.recv()
        except (EOFError, OSError):
            pass
        raise MmcacheError(
            f"a worker process did not answer within {PATIENCE:g} s, or died: see above, and run it again"
        )

    def heard(self, what: str, value: float) -> float:
        """When it came to this generation, or to this revision of the hot record: time.monotonic()."""
        while True:
            told, found, when = self.answer()
            if (told, found) == (what, value):
                return float(when)

    def stopped(self) -> dict[str, Any]:
        """What it has read since it was told to."""
        self.ask("stop")
        while True:
            told, found, _ = self.answer()
            if told == "stopped":
                return found  # type: ignore[no-any-return]


@contextmanager
def started(number: int, path: str, database: str, hot: str) -> Iterator[list[Worker]]:
    """Workers that have imported all they need and opened nothing yet."""
    from multiprocessing import get_context, resource_tracker

    spawn = get_context("spawn")
    workers, processes = [], []
    try:
        resource_tracker.ensure_running()  # now, because starting it changes the mask
        # Workers inherit the mask. Ctrl-C is for us; they end when their pipe closes.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for i in range(1, number + 1):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=_work, args=(theirs, path, database, hot, f"worker {i}"), daemon=True)
                process.start()
                theirs.close()
                workers.append(Worker(ours))
                processes.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for worker in workers:
            worker.answer()
        yield workers
    finally:
        for process in processes:
            process.terminate()  # they hold nothing that anybody needs
        for worker, process in zip(workers, processes, strict=True):
            process.join()
            worker.pipe.close()


# --- in the worker ----------------------------------------------------------------------------------------------------


def _work(pipe: Connection, path: str, database: str, hot: str, label: str) -> None:
    source = PatternsSource(database)
    held: list[Any] = []
    try:
        pipe.send("ready")
        while True:
            what = pipe.recv()
            if what == "memory":
                pipe.send(_memory())
            elif what == "attach":
                held[:] = [mmcache.open(path, source, build=False, check_interval=_CHECK_INTERVAL, label=label)]
                pipe.send(_touch(held[0]))
            elif what == "load":
                held[:] = [_private_copy(source)]
                pipe.send(len(held[0]))
            elif what == "read":
                pipe.send(("stopped", _read(held[0], pipe, hot), time.monotonic()))
    except (EOFError, BrokenPipeError):
        pass


def _memory() -> int | None:
    """Bytes of this process, each page divided by the number of processes that share it; None if not known."""
    gc.collect()
    try:
        with open("/proc/self/smaps_rollup") as lines:
            for line in lines:
                if line.startswith("Pss:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None


def _touch(cache: Cache) -> int:
    """Use every record, one after the other, and every embedding, so that no page is left out."""
    used = sum(len(cache[key]["content"]) > 0 for key in cache)
    float(cache.embeddings.sum())
    return used


def _private_copy(source: PatternsSource) -> dict[str, tuple[dict[str, Any], Any]]:
    """What each worker would hold without a shared file: every record decoded, every embedding an array."""
    import numpy as np

    with source.read() as reading:
        return {
            record.values[0]: (
                dict(zip(record.names, record.values, strict=True)),
                np.frombuffer(record.vector, "<f4") if isinstance(record.vector, bytes) else None,
            )
            for record in reading.records("patterns")
        }


def _read(cache: Cache, pipe: Connection, hot: str) -> dict[str, Any]:
    """Read records at random, and the hot one often, until told to stop; never ask whether there is anything new.

    A read has failed if it raises, or gives anything but the record asked for, as it is in a generation that was there
    meanwhile; the hot record, if it is ever older than it was seen to be. Tells over the pipe of each generation, and
    of each revision of the hot record, when it first came to it.
    """
    keys = [key for key in cache if key != hot]
    random.shuffle(keys)
    reads = failed = 0
    reason = None
    before, newest = cache.generation or 0, 0.0
    while reads % _READS_A_WORD or not pipe.poll() or pipe.recv() != "stop":
        key = keys[reads % len(keys)] if reads % _HOT else hot
        reads += 1
        try:
            record = cache[key]
            revision = record["metadata"]["revision"]
            generation = cache.generation or 0
            is_right = max(before, newest) <= revision if key == hot else before <= revision <= generation
            if record.id != key or not is_right:
                failed += 1
                reason = f"{key!r}: revision {revision}, in generation {before} to {generation}"
        except Exception as error:  # noqa: BLE001 (whatever it is, it is a failed read)
            failed += 1
            reason = f"{key!r}: {error!r}"
            continue
        if generation != before:
            before = generation
            pipe.send(("generation", generation, time.monotonic()))
        if key == hot and revision != newest:
            newest = revision
            pipe.send(("revision", revision, time.monotonic()))
    from_sqlite = sum(cache.stats().fallbacks.values())
    return {"reads": reads, "failed": failed, "reason": reason, "from_sqlite": from_sqlite}
