"""What several benchmarks do with stores and with processes of a peer.

A `Child` has imported everything when it is made, does one step for every line it is told, and answers each with a line
of JSON; its other end is `steps`.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from .common import ROOT
from .data import DataSet
from .peers import AbsentError, Peer

BEARABLE = 100_000
"""Records that a peer with a slow operation is asked to hold."""


# --- stores -----------------------------------------------------------------------------------------------------------


def files_of(path: str) -> list[str]:
    """Every file of a store, also inside directories and beside it under its name."""
    found = []
    for top in glob.glob(f"{glob.escape(path)}*"):
        if os.path.isdir(top):
            found += [os.path.join(below, name) for below, _, names in os.walk(top) for name in names]
        else:
            found.append(top)
    return [name for name in found if os.path.isfile(name)]


def size_of(path: str) -> int:
    return sum(os.path.getsize(name) for name in files_of(path) if name == path or name.startswith(path + os.sep))


def is_server(peer: type[Peer]) -> bool:
    return any("serving" in vars(base) for base in peer.__mro__ if base is not Peer)


def stored(peers: Iterable[type[Peer]], data: DataSet, notice: Callable[[str], None]) -> dict[type[Peer], str]:
    """The stores of those peers that can bear this data set and are not servers."""
    found, unbearable = {}, []
    for peer in peers:
        if peer.slow and data.n > BEARABLE:
            unbearable.append(peer.name)
            continue
        if is_server(peer):
            continue
        try:
            path = data.store(peer)
            peer(path).close()
        except AbsentError as error:
            notice(f"{peer.name} left out: {error}")
        else:
            found[peer] = path
    if unbearable:
        notice(f"{', '.join(unbearable)} left out at {data.n:,} records: slow peers are asked for {BEARABLE:,} at most")
    return found


# --- processes --------------------------------------------------------------------------------------------------------


def named(peer: type[Peer]) -> str:
    """A peer in words that `peer_of` understands in another process."""
    return f"{peer.__module__}:{peer.__name__}"


def peer_of(name: str) -> type[Peer]:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]


class Child:
    """`python -m benchmarks.<module> <arguments>`, which has said that it is ready."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._what = " ".join((module, *arguments))
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, step: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(step)}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The first one is given when it is ready."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a child process failed ({self._what}); what it said is above")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.__exit__(kind, value, traceback)


def steps() -> Iterator[Any]:
    """In a child: what it is told, from when it is ready until the parent lets go."""
    say("ready")
    for line in sys.stdin:
        yield json.loads(line)


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes. pss: a process's share of everything. file: its share of a store's maps. private: of anonymous maps."""

    pss: int
    file: int
    private: int


def memory_of(pid: int, path: str) -> Memory:
    """The sums over one process's maps, from the kernel. A map without an inode is anonymous."""
    pss = of_file = private = 0
    anonymous = is_file = False
    with open(f"/proc/{pid}/smaps") as lines:
        for line in lines:
            fields = line.split(maxsplit=5)
            if not fields[0].endswith(":"):
                anonymous, is_file = fields[4] == "0", len(fields) > 5 and fields[5].startswith(path)
            elif fields[0] == "Pss:":
                pss += 1024 * int(fields[1])
                of_file += is_file * 1024 * int(fields[1])
            elif fields[0] in ("Private_Clean:", "Private_Dirty:"):
                private += anonymous * 1024 * int(fields[1])
    return Memory(pss, of_file, private)
