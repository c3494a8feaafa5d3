"""Projects of tests of their own, which pytest runs with mmcache's plugin, and what such a run did."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path

from tests.support.waits import until

ROOT = Path(__file__).parent.parent.parent

SLOW_TO_LOAD = ("hypothesispytest", "anyio", "xonsh")
"""Plugins of pytest that these runs do not need; every process of each run would load them."""

CONFTEST = """
import json, os, time
import pytest
from mmcache import Schema

NOTES = os.environ["NOTES"]
SCHEMA = Schema("items", index=("n",), embedding="v")


def note(what, text=""):
    with open(os.path.join(NOTES, what), "a") as file:
        file.write(f"{os.getpid()} {text}\\n")


def noted(what):  # pragma: no cover
    with open(os.path.join(NOTES, what)) as file:
        return file.readlines()


def build():
    note("builds")
    time.sleep(0.2)
    HOW
    return ({"id": f"k{i}", "n": i, "v": [float(i), 1.0]} for i in range(100))


@pytest.fixture(scope="session")
def items(mmcache_factory):
    try:
        cache = mmcache_factory("items", build=build, schema=SCHEMA OPTIONS)
    except Exception as error:  # pragma: no cover
        note("errors", str(error))
        raise
    note("generations", json.dumps([cache.generation, cache.snapshot.header.build_id.hex()]))
    return cache
"""

TESTS = """
import pytest

@pytest.mark.xdist_group("GROUP")
@pytest.mark.parametrize("i", range(COUNT))
def test_reads(items, i):
    assert items[f"k{i}"]["n"] == i
    assert items.embedding(f"k{i}")[0] == i
    assert "nothing" not in items
"""


class Project:
    """A directory of tests, and what running them did."""

    def __init__(self, directory: Path) -> None:
        self.home, self.scratch, self.notes = directory / "project", directory / "scratch", directory / "notes"
        for each in (self.home, self.scratch, self.notes):
            each.mkdir()
        self.write()

    def write(self, how: str = "pass", options: str = "", tests: str = "", ini: str = "") -> None:
        """`tests` in place of two files of 12 tests each."""
        conftest = CONFTEST.replace("HOW", how).replace(" OPTIONS", f", {options}" if options else "")
        files = {"conftest.py": conftest, "pytest.ini": f"[pytest]\nmarkers = xdist_group\n{ini}\n"}
        for group in ("one", "two"):
            files[f"test_{group}.py"] = TESTS.replace("GROUP", group).replace("COUNT", "0" if tests else "12")
        if tests:
            files["test_one.py"], files["test_two.py"] = tests, ""
        for name, text in files.items():
            (self.home / name).write_text(text)

    def start(self, *arguments: str, **options) -> subprocess.Popen[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV", "MMCACHE"))}
        settings = {
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.scratch),
            "NOTES": str(self.notes),
            "PYTEST_ADDOPTS": " ".join(f"-p no:{name}" for name in SLOW_TO_LOAD),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", *arguments],
            cwd=self.home,
            env=inherited | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def run(self, *arguments: str, code: int = 0, **options) -> str:
        return self.end(self.start(*arguments, **options), code)

    def end(self, process: subprocess.Popen[str], code: int | None = 0) -> str:
        """What it said; nothing of it is left."""
        try:
            out, _ = process.communicate(timeout=400)
        finally:
            process.kill()
        assert code is None or process.returncode == code, out
        assert not [path for path in self.scratch.rglob("*") if ".mmc" in path.name or path.name == "mmcache"]
        until("no process is left", lambda: not self.processes())
        return out

    def processes(self) -> list[int]:
        """That have this project in their environment."""
        found = []
        for pid in filter(str.isdecimal, os.listdir("/proc") if os.path.isdir("/proc") else []):
            with contextlib.suppress(OSError):
                if f"NOTES={self.notes}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(int(pid))
        return found

    def noted(self, what: str) -> list[str]:
        path = self.notes / what
        return path.read_text().splitlines() if path.exists() else []

    @property
    def builds(self) -> int:
        return len(self.noted("builds"))

    @property
    def generations(self) -> set[str]:
        return {line.partition(" ")[2] for line in self.noted("generations")}

    def has_one_build(self) -> None:
        assert self.builds == 1
        assert len(self.generations) == 1


def respect_modes() -> None:
    """Root, too: without the capabilities that let it write anywhere."""
    if os.getuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
