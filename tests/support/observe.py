"""What an outsider sees of processes and their caches, by public functions and by /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support import inside
from tests.support.waits import until

BUILDER = b"mmcache.sharing.background"
"""Stands in the command line of a process that rebuilds a file."""

# --- counters ---------------------------------------------------------------------------------------------------------


def totals(path: Path) -> dict[str, int]:
    """What all processes counted, the dead ones too."""
    return dict(inside.fleet_of(path).totals)


def events(path: Path, kind: str) -> int:
    """How often something happened, by the events."""
    return sum(event.kind == kind for event in inside.fleet_of(path).events)


def failure_of(path: Path) -> Any:
    """The last build that failed, with its `error`, `attempts` and `until`; None once one has succeeded."""
    return inside.status(path).failure


def is_building(path: Path) -> bool:
    """Whether a process holds the build lock."""
    return inside.status(path).building


# --- processes --------------------------------------------------------------------------------------------------------


def state_of(pid: int) -> str:
    """As /proc tells: R, S, D, T, Z; or "" for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    """Zombies too."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # a thread that ends meanwhile has none
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def is_builder(pid: int) -> bool:
    """Whether it is a process that rebuilds a file. A zombie is not."""
    try:
        return BUILDER in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def rebuilders_of(pid: int) -> list[int]:
    return [child for child in children_of(pid) if is_builder(child)]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(f"process {pid} is stopped", lambda: state_of(pid) == "T")


def threads() -> list[str]:
    """Of this process, but the main one."""
    return sorted(
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and thread.name != "mmcache-poll"
    )


def await_polls() -> None:
    """A poll that was under way when its cache was closed ends by itself, and then lets go of what it has open."""
    for thread in threading.enumerate():
        if thread.name == "mmcache-poll":
            thread.join(5.0)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The events of the log lines so far, those of a poll under way as well: its thread writes them."""
    await_polls()
    return [event for record in caplog.records if (event := getattr(record, "event", None)) is not None]


# --- files and maps ---------------------------------------------------------------------------------------------------


def beside(path: Path | str) -> list[str]:
    """What is in the directory of a cache file, in order, but for wake and counter files: their names are random."""
    return sorted(name for name in os.listdir(Path(path).parent) if not name.endswith((".wake", ".counts")))


def open_files() -> dict[int, str]:
    """Descriptor -> what it is, for every regular file and directory that this process has open."""
    linux = os.path.isdir("/proc/self/fd")
    found = {}
    for name in os.listdir("/proc/self/fd" if linux else "/dev/fd"):
        fd = int(name)
        try:
            info = os.fstat(fd)
        except OSError:  # the descriptor of the listing itself
            continue
        if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
            where = os.readlink(f"/proc/self/fd/{fd}") if linux else f"device {info.st_dev}"
            found[fd] = f"{where} (inode {info.st_ino})"
    return found


def mapped_files(scratch: str) -> Counter[str]:
    """How often each file below `scratch`, or with .mmc in its name, is mapped; nothing where /proc is absent."""
    try:
        with open("/proc/self/maps") as lines:
            paths = [fields[5].rstrip() for line in lines if len(fields := line.split(maxsplit=5)) == 6]
    except FileNotFoundError:
        return Counter()
    return Counter(name for name in paths if name.startswith(scratch) or ".mmc" in os.path.basename(name))
