"""A process that rebuilds one file from the source that it names, and ends: `python -m mmcache.sharing.background`.

Started by a worker that found its file due. It takes the build lock itself, gives way to the workers, and ends itself
when its time is up, whatever it is waiting for. What came of it, others read from the control page.
"""

from __future__ import annotations

import os
import signal
import sys

from ..errors import LockTimeoutError
from .publishing import rebuild

PATIENCE = 1.0
"""Seconds to wait for whoever holds the build lock; he does the same as we would."""


def main(path: str, asked_ns: str, limit: str) -> int:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, float(limit))
    os.nice(5)
    try:
        rebuild(path, timeout=PATIENCE, asked_ns=int(asked_ns))
    except LockTimeoutError:
        return 75
    except Exception:  # noqa: BLE001 (told to everybody through the control page, and nobody reads our stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
