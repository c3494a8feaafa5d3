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

from .. import Cache, open as open_cache
from ..errors import MmcacheError
from ..presets.patterns import PatternsSource

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Worker", "started"]

PATIENCE = 60.0
"""Seconds after which a worker that does not answer is a fault of the demo."""

_READS_A_LOOK = 64
"""Reads between two looks for a newer file, as a server would look once a request."""


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


@contextmanager
def started(number: int, path: str, database: str) -> Iterator[list[Worker]]:
    """Workers that have imported all they need and opened nothing yet."""
    from multiprocessing import get_context, resource_tracker

    spawn = get_context("spawn")
    workers, processes = [], []
    try:
        resource_tracker.ensure_running()  # now, because starting it changes the mask
        # Workers inherit the mask. Ctrl-C is for us; they end when their pipe closes.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(number):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=_work, args=(theirs, path, database), daemon=True)
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


def _work(pipe: Connection, path: str, database: str) -> None:
    source = PatternsSource(database)
    held: list[Any] = []
    try:
        pipe.send("ready")
        while True:
            what = pipe.recv()
            if what == "memory":
                pipe.send(_memory())
            elif what == "attach":
                held[:] = [open_cache(path, source, build=False)]
                pipe.send(_touch(held[0]))
            elif what == "load":
                held[:] = [_private_copy(source)]
                pipe.send(len(held[0]))
            elif what == "read":
                pipe.send(_read(held[0], pipe))
    except (EOFError, BrokenPipeError):
        pass


def _memory() -> int | None:
    """Bytes of this process, each page divided by the number of processes that share it; None where nobody tells."""
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
                None if record.vector is None else np.frombuffer(record.vector, "<f4"),
            )
            for record in reading.records("patterns")
        }


def _read(cache: Cache, pipe: Connection) -> dict[str, Any]:
    """Read records at random until told to stop, looking for a newer file now and then.

    A read has failed if it raises, or gives anything but the record asked for, as it is in the generation that this
    process has adopted. Tells over the pipe of each generation that it moves to.
    """
    keys = list(cache)
    random.shuffle(keys)
    reads = failed = 0
    reason = None
    while True:
        if reads % _READS_A_LOOK == 0:
            if pipe.poll() and pipe.recv() == "stop":
                break
            if cache.refresh():
                pipe.send((cache.generation, time.monotonic()))
        key = keys[reads % len(keys)]
        reads += 1
        try:
            record = cache[key]
            if record.id != key or record["metadata"]["revision"] != cache.generation:
                failed += 1
                reason = f"{key}: revision {record['metadata']['revision']} in generation {cache.generation}"
        except Exception as error:  # noqa: BLE001 (whatever it is, it is a failed read)
            failed += 1
            reason = f"{key}: {error!r}"
    return {"reads": reads, "failed": failed, "reason": reason, "from_sqlite": sum(cache.stats().fallbacks.values())}
