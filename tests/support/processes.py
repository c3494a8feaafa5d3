"""Forked children that run one function and leave by `os._exit`, so that nothing of pytest runs in them.

`in_child` and `in_children` wait for an end, `ask_child` and `together` for a result; a `Child` talks while it runs.
Workers that have a cache are those of `crew`; commands are those of `console`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

FAILED = 70
"""The exit code of a child whose function raised."""


def forked(action: Callable[[], Any]) -> int:
    """The pid of a child that runs the action, and ends with 0, or with FAILED after an exception, which it prints."""
    pid = os.fork()
    if pid == 0:
        code = FAILED
        try:
            action()
            code = 0
        except BaseException:  # noqa: BLE001 (the child ends here, whatever it was)
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Wait for a child; its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(action: Callable[[], Any]) -> int:
    """Run in a child; its wait status, which is 0 if all went well."""
    return os.waitpid(forked(action), 0)[1]


def in_children(*actions: Callable[[], Any], meanwhile: Callable[[], Any] = lambda: None) -> None:
    """Run in as many children at once, and something here until all have done well."""
    running = {forked(action) for action in actions}
    while running:
        meanwhile()
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                running.remove(pid)
                assert status == 0
        os.sched_yield()


def ask_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a child, or the exception that it raises there."""
    return _received(*_asked(work))


@contextlib.contextmanager
def answering(work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """A child that works meanwhile. Gives what waits for its result."""
    asked = _asked(work)
    yield lambda: _received(*asked)


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(number)` returns in each of `count` children, which begin at the same moment."""
    wait, begin = os.pipe()

    def begun(number: int) -> Any:
        os.close(begin)
        os.read(wait, 1)  # until its other end is closed everywhere
        return work(number)

    asked = [_asked(lambda number=number: begun(number)) for number in range(count)]  # type: ignore[misc]
    os.close(wait)
    os.close(begin)
    results = [_received(*one) for one in asked]
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _asked(work: Callable[[], Any]) -> tuple[int, int]:
    """A child and the end of a pipe from which its result can be read."""
    receive, send = os.pipe()

    def act() -> None:
        os.close(receive)
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 (it is the result)
            result = error
        with open(send, "wb") as pipe:
            pipe.write(pickle.dumps(result))

    pid = forked(act)
    os.close(send)
    return pid, receive


def _received(pid: int, receive: int) -> Any:
    with open(receive, "rb") as pipe:
        data = pipe.read()
    code = ended(pid)
    assert code == 0, f"the child ended with {code} and gave no result"
    return pickle.loads(data)


class Child:
    """A process that runs `work(child)`; the two talk over pipes, a byte at a time."""

    def __init__(self, work: Callable[[Child], Any]) -> None:
        self._in, there = os.pipe()
        here, self._out = os.pipe()

        def act() -> None:
            self.close()
            self._in, self._out = here, there
            work(self)

        self.pid = forked(act)
        os.close(here)
        os.close(there)

    def say(self, byte: bytes = b".") -> None:
        os.write(self._out, byte)

    def hear(self) -> bytes:
        """The next byte that the other said; b"" once it has closed its end, or is gone."""
        return os.read(self._in, 1)

    def wait(self) -> int:
        return ended(self.pid)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)


@contextlib.contextmanager
def child(work: Callable[[Child], Any]) -> Iterator[Child]:
    """A child that is killed at the end, if it is still there."""
    process = Child(work)
    try:
        yield process
    finally:
        process.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


_BUILDER: Final = """
import os, sys
os.nice(5)
import mmcache
mmcache.build(sys.argv[1], [{"id": "a"}], mmcache.Schema("a"))
"""


def seconds_of_a_builder() -> float:
    """What it takes a process that gives way to others to start, and to build a file: how busy the machine is."""
    with tempfile.TemporaryDirectory() as place:
        begun = time.monotonic()
        subprocess.run([sys.executable, "-c", _BUILDER, f"{place}/a.mmc"], check=True)
        return time.monotonic() - begun
