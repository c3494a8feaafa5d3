"""A process that rebuilds one file for a worker, and ends: `python -m mmcache.sharing.background FILE LOCK`.

The worker found the file due, took the build lock, and hands over its descriptor; on standard input all that the
build needs (see `job`). Nothing is read from the file but what other versions need of it. The process gives way to the
workers, and ends itself when its time is up, whatever it is waiting for. What came of it, others read from the page.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from types import FrameType

from .. import wallclock
from ..storage import buildlock

_GRACE = 5.0
"""Seconds for a build whose time is up to say so, unless it hangs where Python does not run."""


class TimeIsUp(BaseException):
    """No Exception: a source that catches those does not go on."""


def main(path: str, inherited: str) -> int:
    lock = buildlock.receive(int(inherited))
    from .job import Job

    job = Job.unpack(sys.stdin.buffer.read())
    os.nice(5)
    from ..sources import closing
    from ..storage.publish import Order
    from .publishing import build_once

    try:
        _limit(job.limit)
        with closing(job.source()) as source:
            assert source is not None
            lead_ns = min(max(0, wallclock.now_ns() - job.asked_ns), int(job.limit * 1e9))
            order = Order(source, job.cluster_by, job.metadata, lead_ns=lead_ns)
            build_once(path, order, timeout=0.0, asked_ns=job.asked_ns, lock=lock, exact=False)
    except (Exception, TimeIsUp):  # noqa: BLE001 (recorded on the control page; stderr is read by no one)
        return 1
    return 0


def _limit(seconds: float) -> None:
    """End this process in time: by an exception, which is recorded, else by a thread that needs no Python."""

    def end(_: int, __: FrameType | None) -> None:
        raise TimeIsUp(f"the build took longer than its limit of {seconds:g} s")

    signal.signal(signal.SIGALRM, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        faulthandler.dump_traceback_later(seconds + _GRACE, exit=True)
    except (RuntimeError, OSError):  # no thread can be had: the worker ends this process
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
