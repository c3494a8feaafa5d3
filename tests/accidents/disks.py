"""Small file systems, to be filled: in a mount namespace, which ends with its process."""

from __future__ import annotations

import os
from pathlib import Path

from tests.accidents.stage import mount, run

__all__ = ["SYSTEMS", "fill", "full_place", "make_room"]


def btrfs(image: Path, place: Path) -> None:
    run("truncate", "-s", "120M", image)
    run("mkfs.btrfs", "-q", "-m", "single", image)
    mount("-o", "loop", image, place)


def ext4(image: Path, place: Path) -> None:
    run("truncate", "-s", "8M", image)
    run("mkfs.ext4", "-q", image)
    mount("-o", "loop", image, place)


def tmpfs(image: Path, place: Path) -> None:
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", place)


SYSTEMS = {"btrfs": btrfs, "ext4": ext4, "tmpfs": tmpfs}


def full_place(place: Path, system: str) -> Path:
    """A directory on a file system of this kind."""
    (place / "m").mkdir()
    SYSTEMS[system](place / "image", place / "m")
    return place / "m"


def fill(place: Path) -> None:
    """Write until not a byte fits."""
    fd = os.open(place / "fill", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for size in (65_536, 4_096, 1):
        try:
            while os.write(fd, os.urandom(size)):
                pass
            os.fsync(fd)
        except OSError:
            pass
    os.close(fd)
    os.sync()


def make_room(place: Path) -> None:
    for file in place.glob("fill*"):
        file.unlink()
    os.sync()
