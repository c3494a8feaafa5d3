"""A process that rebuilds one file from the source that it names, and ends: `python -m mmcache.sharing.background`.

Started by a worker that found its file due, and that hands it the build lock. It gives way to the workers, and ends
itself when its time is up, whatever it is waiting for. What came of it, others read from the control page."""

from __future__ import annotations

import os
import signal
import sys

from ..storage import fs
from .publishing import rebuild


def main(path: str, asked_ns: str, limit: str, lock: str | None = None) -> int:
    """lock: number of a descriptor that holds the build lock; without one it is taken here, or the build fails."""
    held = None if lock is None else fs.receive(int(lock))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, float(limit))
    os.nice(5)
    try:
        rebuild(path, timeout=0.0, asked_ns=int(asked_ns), lock=held)
    except Exception:  # noqa: BLE001 (recorded on the control page; stderr is read by no one)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
