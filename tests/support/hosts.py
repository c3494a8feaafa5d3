"""Hosts of a test: network namespaces with an address each, on a bridge, where this user is root and has `ip`.

with hosts(16) as found:
    found.address                     # of this machine, as the hosts see it
    found[3].run([sys.executable, "-c", code])
    found[3].cut(); found[3].mend()   # its cable
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

__all__ = ["Host", "Hosts", "hosts"]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@dataclass(frozen=True)
class Host:
    """name: of its namespace. cable: the end that is here."""

    name: str
    cable: str

    def run(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], text=True, **options)

    def cut(self) -> None:
        _ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        _ip("link", "set", self.cable, "up")


@dataclass(frozen=True)
class Hosts:
    address: str
    all: tuple[Host, ...]

    def __getitem__(self, number: int) -> Host:
        return self.all[number]


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Skips the test where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip")
    tag, net = f"mm{os.getpid() % 10_000}", f"10.{os.getpid() % 200 + 20}.0"
    made: list[Host] = []
    bridge = f"{tag}b"
    try:
        _ip("link", "add", bridge, "type", "bridge")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no bridge can be made: {error.stderr!r}")
    try:
        _ip("addr", "add", f"{net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for i in range(count):
            host = Host(f"{tag}n{i}", f"{tag}v{i}")
            _ip("netns", "add", host.name)
            made.append(host)
            _ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", host.cable, "master", bridge, "up")
            for words in (f"addr add {net}.{i + 2}/24 dev eth0", "link set eth0 up", "link set lo up"):
                _ip("-n", host.name, *words.split())
        yield Hosts(f"{net}.1", tuple(made))
    finally:
        for host in made:
            with contextlib.suppress(subprocess.SubprocessError):
                _ip("netns", "del", host.name)
        with contextlib.suppress(subprocess.SubprocessError):
            _ip("link", "del", bridge)
