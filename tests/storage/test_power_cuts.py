"""What a power cut may leave of a publish, by a model of file systems: every legal state holds a whole old or new file.

The operations are recorded from real publishes. Of a prefix of them, what was not synced may be lost: the bytes of a
file without an fsync after its last write are torn, and names changed after the directory's last fsync may be as they
were; in the ordered model the changes persist in their order, in the weak one each by itself. Mutants of the sequence
must fail, or the model would prove nothing.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Schema
from tests.support.faults import FailName, faults

NAME, BACKUP = "items.mmc", "items.mmc.bak"
SCHEMA = Schema("items")


@dataclass(frozen=True)
class Op:
    """kind: write, sync, create, link, rename, unlink or syncdir. inode: of the file that it is about."""

    kind: str
    inode: int = -1
    name: str = ""
    to: str = ""


NAMESPACE = {"create", "link", "rename", "unlink"}


@dataclass
class Recorder:
    """A behaviour of the proxy that notes what changes the disk; inodes from 1 on are files that it saw created."""

    ops: list[Op] = field(default_factory=list)
    _files: dict[int, int] = field(default_factory=dict)
    _directories: set[int] = field(default_factory=set)
    _inodes: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Any) -> Any:
        result = call()
        if name == "open":
            path, flags = args[:2]
            self._files.pop(result, None)
            self._directories.discard(result)
            if flags & os.O_DIRECTORY:
                self._directories.add(result)
            elif flags & os.O_EXCL:
                self._files[result] = next(self._inodes)
                self.ops.append(Op("create", self._files[result], path))
        elif name in ("pwrite", "posix_fallocate", "fchmod") and args[0] in self._files:
            self.ops.append(Op("write", self._files[args[0]]))
        elif name == "fsync":
            fd = args[0]
            self.ops.append(Op("syncdir") if fd in self._directories else Op("sync", self._files[fd]))
        elif name in ("link", "rename"):
            self.ops.append(Op(name, name=args[0], to=args[1]))
        elif name == "unlink":
            self.ops.append(Op(name, name=args[0]))
        return result


Names = dict[str, int]


def applied(names: Names, ops: list[Op]) -> Names:
    """What the directory holds after these operations. One that lost its object does nothing."""
    names = dict(names)
    for op in ops:
        if op.kind == "create":
            names[op.name] = op.inode
        elif op.kind == "unlink":
            names.pop(op.name, None)
        elif op.name in names:
            same = names.get(op.to) == names[op.name]
            names[op.to] = names[op.name]
            if op.kind == "rename" and not same:  # two names of one file: POSIX does nothing
                del names[op.name]
    return names


def crash_states(before: Names, ops: list[Op], *, weak: bool) -> Iterator[tuple[int, Names, set[int]]]:
    """(operations done, names, torn inodes) of every state that a power cut may leave."""
    for done in range(len(ops) + 1):
        past = ops[:done]
        synced = max((i for i, op in enumerate(past) if op.kind == "syncdir"), default=-1)
        certain = [op for op in past[: synced + 1] if op.kind in NAMESPACE]
        # A file that was created and unlinked again stands under no name that matters.
        pending = [op for op in past[synced + 1 :] if op.kind in NAMESPACE]
        short_lived = {op.name for op in pending if op.kind == "unlink" and op.name.endswith(".tmp")}
        pending = [op for op in pending if op.name not in short_lived]
        torn = set()
        for inode in {op.inode for op in past if op.kind == "write"}:
            last = [op.kind for op in past if op.inode == inode and op.kind in ("write", "sync")][-1]
            if last == "write":
                torn.add(inode)
        base = applied(before, certain)
        if weak:
            for chosen in itertools.product((False, True), repeat=len(pending)):
                yield done, applied(base, [op for op, kept in zip(pending, chosen, strict=True) if kept]), torn
        else:
            for count in range(len(pending) + 1):
                yield done, applied(base, pending[:count]), torn


def wrong_states(before: Names, ops: list[Op], *, weak: bool) -> list[str]:
    """Where the file is missing, torn, or not kept although the publish had returned; or a backup was lost."""
    new = applied(before, [op for op in ops if op.kind in NAMESPACE])[NAME]
    wrong = []
    for done, names, torn in crash_states(before, ops, weak=weak):
        where = f"after {done} of {len(ops)}, names {names}, torn {torn}"
        if NAME in before and names.get(NAME) not in (before[NAME], new):
            wrong.append(f"neither old nor new {where}")
        if names.get(NAME, 0) in torn:
            wrong.append(f"torn file {where}")
        if BACKUP in before and (BACKUP not in names or names[BACKUP] in torn):
            wrong.append(f"backup lost {where}")
        if done == len(ops) and names.get(NAME) != new:
            wrong.append(f"published and gone {where}")
    return wrong


def publish(path: Path, generation: int) -> None:
    mmcache.build(path, [{"id": f"k{generation}"}], SCHEMA)


def recorded(path: Path, *behaviours: Any) -> list[Op]:
    recorder = Recorder()
    with faults(recorder, *behaviours):
        publish(path, 9)
    return recorder.ops


def sequences(path: Path) -> Iterator[tuple[str, Names, list[Op]]]:
    """(scenario, names before, operations). Old files have inodes below 0."""
    yield "first", {}, recorded(path)
    publish(path, 1)
    os.unlink(f"{path}.bak")
    yield "replace", {NAME: -2}, recorded(path)
    publish(path, 2)
    yield "with a backup", {NAME: -2, BACKUP: -3}, recorded(path)
    publish(path, 3)
    os.unlink(f"{path}.bak")
    os.link(path, f"{path}.bak")
    yield "backup and file are one", {NAME: -2, BACKUP: -2}, recorded(path)
    publish(path, 4)
    yield "no hard links", {NAME: -2, BACKUP: -3}, recorded(path, FailName("link", errno.EPERM))


@pytest.mark.parametrize("weak", [False, True])
def test_every_state_that_a_power_cut_may_leave_holds_a_whole_file(path, weak):
    for scenario, before, ops in sequences(path):
        if scenario == "no hard links":
            ops = [op for op in ops if op.kind != "link"]
        assert sum(1 for _ in crash_states(before, ops, weak=weak)) > 20
        assert wrong_states(before, ops, weak=weak) == [], scenario


def test_a_recovery_that_is_cut_too_leaves_a_whole_file(path):
    """The state that a first cut left is where the next publish begins; `.bak` and the file may be one by then."""
    sequence = {name: (before, ops) for name, before, ops in sequences(path)}
    before, ops = sequence["with a backup"]
    shifted = [Op(op.kind, op.inode + 1000 if op.inode > 0 else op.inode, op.name, op.to) for op in ops]
    starts = {tuple(sorted(names.items())) for _, names, _ in crash_states(before, ops, weak=True)}
    assert len(starts) > 5
    for start in starts:
        names = {name: inode for name, inode in start if name in (NAME, BACKUP)}
        assert wrong_states(names, shifted, weak=True) == [], start


def without(ops: list[Op], kind: str) -> list[Op]:
    return [op for op in ops if op.kind != kind]


def test_the_model_finds_what_is_wrong_with_other_sequences(path):
    sequence = {name: (before, ops) for name, before, ops in sequences(path)}
    before, ops = sequence["with a backup"]
    commit = next(i for i, op in enumerate(ops) if op.kind == "rename" and op.to == NAME)
    link = next(i for i, op in enumerate(ops) if op.kind == "link")
    first_sync = next(i for i, op in enumerate(ops) if op.kind == "sync")
    backup = [Op("rename", name=NAME, to=BACKUP)]
    mutants = {
        "no fsync of the file": without(ops, "sync"),
        "no fsync of the directory": without(ops, "syncdir"),
        "rename before fsync": [*ops[:first_sync], ops[commit], *ops[first_sync:commit], *ops[commit + 1 :]],
        "the backup by a rename of the file": [*ops[:link], *backup, *ops[commit:]],
        "the old backup removed first": [*ops[:link], Op("unlink", name=BACKUP), *ops[link:]],
        "the file removed first": [*ops[:commit], Op("unlink", name=NAME), *ops[commit:]],
        "written after fsync": [*ops[: first_sync + 1], Op("write", ops[first_sync].inode), *ops[first_sync + 1 :]],
    }
    for name, mutant in mutants.items():
        assert wrong_states(before, mutant, weak=False) or wrong_states(before, mutant, weak=True), name
