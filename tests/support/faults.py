"""A file system that fails where it is told to: a proxy for `mmcache.storage.fs.system`.

    with faults(Fail(at=7, error=errno.EIO)) as calls: build(...)

Calls are numbered from 0 in the order in which they are made. `calls.log` names them.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmcache.storage import fs

COUNTED = frozenset(
    {
        *("open", "close", "fstat", "stat", "pread", "pwrite", "listdir", "unlink", "rename", "link"),
        *("posix_fallocate", "ftruncate", "fchmod", "fsync", "map_file"),
    }
)


Call = Callable[[], Any]


@dataclass(frozen=True)
class Fail:
    """Fail call number `at` with an errno: before it happens, once, or (persistent) it and all that follow."""

    at: int
    error: int
    persistent: bool = False

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Call) -> Any:
        if number == self.at or (self.persistent and number > self.at):
            if name == "close":  # the descriptor is gone even when close fails
                call()
            raise OSError(self.error, os.strerror(self.error))
        return call()


@dataclass(frozen=True)
class FailName:
    """Fail every call of a name with an errno, as a file system without hard links does."""

    name: str
    error: int

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Call) -> Any:
        if name == self.name:
            raise OSError(self.error, os.strerror(self.error))
        return call()


@dataclass(frozen=True)
class FailNth:
    """Fail one call of a name with an errno, the one of this number among them."""

    name: str
    number: int
    error: int
    seen: list[int] = field(default_factory=list)

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Call) -> Any:
        if name == self.name:
            self.seen.append(number)
            if len(self.seen) == self.number + 1:
                raise OSError(self.error, os.strerror(self.error))
        return call()


@dataclass(frozen=True)
class Then:
    """Do something right after the first call of a name about a file of a name, such as an open."""

    name: str
    file: str
    action: Call
    done: list[bool] = field(default_factory=list)

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Call) -> Any:
        result = call()
        if name == self.name and os.path.basename(str(args[0])) == self.file and not self.done:
            self.done.append(True)
            self.action()
        return result


@dataclass(frozen=True)
class Kill:
    """Kill this process at call number `at`, before or after it."""

    at: int
    after: bool = False

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Call) -> Any:
        if number == self.at and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return call()
        finally:
            if number == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Short:
    """Every read and write moves a part of what it was asked for, at least a byte."""

    divisor: int = 2

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Call) -> Any:
        if name == "pread":
            fd, length, offset = args
            return os.pread(fd, min(length, max(1, length // self.divisor)), offset)
        if name == "pwrite":
            fd, data, offset = args
            return os.pwrite(fd, data[: max(1, len(data) // self.divisor)], offset)
        return call()


@dataclass(frozen=True)
class Ends:
    """Read number `at` finds the end of the file, as it does when another truncates it; or a write moves nothing."""

    at: int

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Call) -> Any:
        if number == self.at and name == "pread":
            return b""
        if number >= self.at and name == "pwrite":
            return 0
        return call()


@dataclass
class Calls:
    """The proxy. `log` names every call so far; `behaviours` decide, the first innermost, what happens."""

    behaviours: tuple[Any, ...] = ()
    log: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name not in COUNTED:
            return value
        if name == "fsync":
            value = os.fstat  # no test that counts calls cuts the power, and a busy disk takes its time
        return lambda *args, **options: self.make(name, args, partial(value, *args, **options))

    def make(self, name: str, args: tuple[Any, ...], call: Call) -> Any:
        number = len(self.log)
        self.log.append(name)
        for behaviour in self.behaviours:
            call = partial(behaviour, number, name, args, call)
        return call()


@contextlib.contextmanager
def faults(*behaviours: Any) -> Iterator[Calls]:
    """Put the proxy in the place of the file system."""
    calls = Calls(behaviours)
    real_map = fs.map_file
    fs.system = calls
    fs.map_file = lambda *args, **options: calls.make("map_file", args, partial(real_map, *args, **options))
    try:
        yield calls
    finally:
        fs.system = os
        fs.map_file = real_map
