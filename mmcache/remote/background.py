"""A process that follows a store for the workers of a node: `python -m mmcache.remote.background FILE`.

The worker that started it sends, on standard input, what to follow, and keeps that open: its end is that of this
process, too. It also ends when another process polls for the same file: of several that began at once one stays.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
from typing import Any

import msgpack

from ..errors import MmcacheError
from ..sharing.following import polled_at
from ..sharing.job import Job
from ..sources import closing
from .follower import Follower, Orders

_SLOWEST = 60.0
"""Seconds between polls of a store that fails again and again."""


def main(path: str) -> int:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # whatever it waits for: a download is gone on with
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal's workers, which end it when they end
    parent = os.getppid()
    url, pin, every, skew, has_source, job = msgpack.unpackb(_read(int.from_bytes(_read(4), "little")))
    os.nice(5)
    with closing(None if job is None else Job.unpack(job).source()) as source:
        try:
            follower = Follower(path, url, Orders(pin, skew, has_source, source))
        except MmcacheError:
            return 1
        failures = 0
        while True:
            try:
                follower.poll()
                failures = 0
            except MmcacheError:  # which the node was told
                failures += 1
            mine = polled_at(path)
            pause = min(every * 2 ** min(failures, 6), max(_SLOWEST, every)) * random.uniform(0.8, 1.2)  # noqa: S311
            if _is_over(pause) or os.getppid() != parent or polled_at(path) != mine:
                return 0


def _read(length: int) -> bytes:
    """Of standard input, without a buffer, so that waiting for its end sees what is left."""
    line: Any = sys.stdin.buffer
    data = b""
    while len(data) < length and (more := line.raw.read(length - len(data))):
        data += more
    return data


def _is_over(pause: float) -> bool:
    """Whether the worker's end of the line was closed meanwhile."""
    with contextlib.suppress(InterruptedError):
        ready, _, _ = select.select([sys.stdin.buffer], [], [], pause)
        return bool(ready)
    return False


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
