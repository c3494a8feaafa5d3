"""Processes that work for this one: an exception in the middle of a start forgets none, and the end waits for none."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .forks import in_child

__all__ = ["Child", "can_start", "reap", "start"]


class Child(subprocess.Popen[bytes]):
    """Known from before it starts until `reap` finds that it has ended."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        _children.add(self)
        try:
            super().__init__(command, **options)
        except BaseException:
            if not self._runs():  # Case: it does where a signal handler raised after the fork
                _children.discard(self)
            raise

    def _runs(self) -> bool:
        return getattr(self, "pid", None) is not None


_children: Final[set[Child]] = set()


def can_start() -> bool:
    """Whether this interpreter can be started again: one that is embedded in another program cannot."""
    return "python" in os.path.basename(sys.executable or "").lower()


def start(
    module: str, *arguments: str, stdin: int, pass_fds: Sequence[int] = (), environment: Mapping[str, str]
) -> Child:
    """Run a module of this package. environment: besides this process's own. Raises OSError, SubprocessError and
    MemoryError."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return Child(
        [sys.executable, "-P", "-m", module, *arguments],
        env=os.environ | dict(environment) | {"PYTHONPATH": search},
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=pass_fds,
    )


def reap() -> None:
    """Let go of those that have ended."""
    for child in list(_children):
        if child._runs() and child.poll() is not None:
            _children.discard(child)


def _let_go() -> None:
    """They go on or end by themselves; the interpreter must not complain that they are not waited for."""
    for child in _children:
        if child._runs() and child.returncode is None:
            child.returncode = 0
    _children.clear()


in_child(_let_go)
atexit.register(_let_go)
