"""A disk that fails: a real file system on a loop device whose end has gone, so that the kernel answers with EIO.

A reader that maps the file is ended by the system where a page of it cannot be read (SIGBUS): the documented limit.
With access="copy", and wherever the system is asked by calls, it is an error, and the source answers.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import MmcacheError, Schema, Snapshot
from tests.accidents.stage import apart, mount, run
from tests.support.processes import ended, forked

ITEMS = Schema("items", index=("kind",))
N = 3000


def records(note: str) -> list[dict[str, Any]]:
    return [{"id": f"k{i}", "kind": "abc"[i % 3], "note": f"{note} {i}" + "x" * 900} for i in range(N)]


def failing(place: Path) -> tuple[Path, Path]:
    """A directory on a file system of its own, with a cache file; and the image, whose truncation is the accident."""
    (place / "m").mkdir()
    image = place / "image"
    run("truncate", "-s", "64M", image)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    mount("-o", "loop", image, place / "m")
    return place / "m", image


def lose(path: Path, image: Path) -> None:
    """The blocks of the file, which are dropped from memory first."""
    os.sync()
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    fd = os.open(image, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    os.truncate(image, 2**20)


def read_what_is_lost(place: Path) -> list[str]:
    directory, image = failing(place)
    path = directory / "items.mmc"
    mmcache.build(path, records("old"), ITEMS)
    lose(path, image)
    found = []
    for access in ("copy", "mmap"):
        try:
            Snapshot.open(path, access=access)
            found.append(f"{access}: opened")
        except MmcacheError as error:
            found.append(f"{access}: {type(error).__name__}: {error}")
    load = lambda: records("new")  # noqa: E731
    with mmcache.open(path, load=load, fetch=lambda keys: [r for r in load() if r["id"] in keys], schema=ITEMS,
                      access="copy", executor="external", build=False) as cache:  # fmt: skip
        found.append(f"source: {cache['k7']['note'][:5]}, {cache.stats().state}")
    return found


def test_a_file_on_a_failing_disk_is_an_error_and_the_source_answers(place):
    copy, mapped, answer = apart(read_what_is_lost, place, namespace=True, within=100.0)
    assert "Input/output error" in copy or "UnusableFileError" in copy or "CorruptFileError" in copy
    assert "opened" not in copy
    assert "opened" not in mapped
    assert answer.startswith("source: new 7")


def build_on_it(place: Path) -> list[str]:
    directory, image = failing(place)
    path = directory / "items.mmc"
    mmcache.build(path, records("old"), ITEMS)
    with Snapshot.open(path, access="copy") as held:
        lose(path, image)
        wrong = []
        try:
            mmcache.build(path, records("new"), ITEMS)
            wrong.append("it was built")
        except MmcacheError as error:
            if (
                "Input/output error" not in str(error)
                and "read back" not in str(error)
                and "read-only" not in str(error)
            ):
                wrong.append(f"{type(error).__name__}: {error}")
        if held["k7"]["note"][:5] != "old 7":
            wrong.append("a copy in memory is another")
    return wrong


def test_a_build_on_a_failing_disk_is_an_error(place):
    assert apart(build_on_it, place, namespace=True, within=100.0) == []


def map_what_is_lost(place: Path) -> int:
    """How a process ends that touches a page which the disk has lost; 0 where it does not."""
    directory, image = failing(place)
    path = directory / "items.mmc"
    mmcache.build(path, records("old"), ITEMS)
    snapshot = Snapshot.open(path, verify="lazy")
    lose(path, image)

    def read_all() -> None:
        faulthandler.disable()
        for record in snapshot.values():
            record.asdict()

    return ended(forked(read_all))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_page_that_the_disk_has_lost_ends_a_reader_that_maps_it(place):
    """The limit that docs/limits.md names: no Python can prevent it."""
    assert apart(map_what_is_lost, place, namespace=True, within=100.0) in (0, -signal.SIGBUS)
