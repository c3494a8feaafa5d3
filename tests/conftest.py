"""What every test may ask for: paths, a check for leaked descriptors and maps, and how hard Hypothesis tries.

HYPOTHESIS_PROFILE chooses a profile: `quick` (default: the same modest number of examples on every run) or
`nightly` (many, and different ones each time).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.programs import summary
from tests.support import inside
from tests.support.bank import make_bank
from tests.support.clock import Clock
from tests.support.observe import await_polls, mapped_files, open_files
from tests.support.profile import PROFILE

settings.register_profile("quick", max_examples=40, stateful_step_count=30, derandomize=True, deadline=None)
settings.register_profile(
    "nightly",
    max_examples=3_000,
    stateful_step_count=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(PROFILE)

# A developer's own settings must not decide how a test ends.
_KEPT = {"MMCACHE_PURE", "MMCACHE_FUZZ_INPUTS"}  # which implementation is tested, and how much of it
for _name in [name for name in os.environ if name.startswith("MMCACHE_")] + ["NO_COLOR", "FORCE_COLOR"]:
    if _name in _KEPT:
        continue
    os.environ.pop(_name, None)

# Nor must a shell, that has a job in the background ignore interrupts, and with it what the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_modules = 0
"""How many were imported when the garbage collector was last told to leave alone what there is."""


def collect() -> None:
    """Modules and tests stay for good: that thousands of searches for leaks look through them takes minutes."""
    global _modules  # noqa: PLW0603
    gc.collect()
    if len(sys.modules) > _modules + 20:
        gc.freeze()
        _modules = len(sys.modules)


def pytest_collection_finish() -> None:
    collect()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    summary.write(terminalreporter)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file may be published: a name in an empty directory that only we can write."""
    return tmp_path / "items.mmc"


@pytest.fixture(scope="session")
def data() -> Path:
    """The files kept with the tests."""
    return Path(__file__).parent / "data"


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """A database of 60 items and 5 notes."""
    make_bank(tmp_path / "bank.db")
    return tmp_path / "bank.db"


@pytest.fixture
def clock() -> Iterator[Clock]:
    with Clock().installed() as clock:
        yield clock


@pytest.fixture(scope="module")
def no_disk_wait() -> Iterator[None]:
    """Files are written and not synced: for tests that build hundreds of them and cut no power."""
    with inside.no_fsync():
        yield


@pytest.fixture
def let_go() -> Iterator[None]:
    """What arrived from other processes stays mapped until the next arrives: not beyond the test."""
    yield
    inside.forget_arrived()
    gc.collect()


@pytest.fixture
def no_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The test leaves no file or directory open and no mmcache file mapped.

    For a whole module: `pytestmark = pytest.mark.usefixtures("no_leaks")`. Descriptors are checked on Linux and
    macOS, maps on Linux. Pipes and sockets do not count: multiprocessing keeps some for the life of the process.
    """
    scratch = f"{tmp_path_factory.getbasetemp()}/"
    collect()
    files, maps = open_files(), mapped_files(scratch)
    yield
    await_polls()
    gc.collect()
    leaks = [f"open: {what}" for fd, what in open_files().items() if files.get(fd) != what]
    leaks += [f"mapped: {name}" for name in mapped_files(scratch) - maps]
    assert not leaks, leaks
