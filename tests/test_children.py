"""Processes that work for this one, and an exception in the middle of their start."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from mmcache import children
from tests.support.waits import until

CODE = "pass"


def started(code: str = CODE) -> children.Child:
    with open(os.devnull, "rb") as nothing:
        return children.start("timeit", "-n1", "-r1", code, stdin=nothing.fileno(), environment={"MARK": "1"})


def is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return False


def interrupted(init: Callable[..., None], pids: list[int]) -> Callable[..., None]:
    def raising(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        pids.append(self.pid)
        raise KeyboardInterrupt

    return raising


def test_a_child_whose_start_was_interrupted_is_reaped(monkeypatch, recwarn):
    pids: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(subprocess.Popen, "__init__", interrupted(subprocess.Popen.__init__, pids))
        with pytest.raises(KeyboardInterrupt):
            started("import time; time.sleep(0.2)")
    gc.collect()
    assert not recwarn.list
    until("it has ended", lambda: is_zombie(pids[0]))
    children.reap()
    assert not os.path.exists(f"/proc/{pids[0]}")


def test_a_child_that_cannot_start_is_forgotten(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("sys.executable", "/nowhere/python")
        with pytest.raises(FileNotFoundError):
            started()
    with pytest.raises(ValueError, match="embedded null byte"):  # found before there is a process
        started("\0")
    children.reap()


def test_a_child_has_the_arguments_and_the_environment():
    child = started("import os, mmcache; os._exit(6 + int(os.environ['MARK']))")
    until("it has ended", lambda: is_zombie(child.pid))
    children.reap()
    assert child.returncode == 7
