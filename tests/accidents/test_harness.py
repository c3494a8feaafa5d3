"""Fourteen accidents, each brought on and lifted under four reading workers and a writer.

No worker dies, no answer is wrong, every worker serves the newest generation within seconds of the end, and at most ten
builds are made. Three broken products show that the harness would notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmcache import MmcacheError
from tests.accidents import mutants
from tests.accidents.harness import Accident, Outcome, World
from tests.accidents.stage import apart, mount
from tests.support import inside
from tests.support.clock import Clock, step_wall_clock
from tests.support.observe import rebuilders_of

_limits: dict[int, tuple[int, int]] = {}


def _lower(limit: int, to: int) -> None:
    _limits[limit] = resource.getrlimit(limit)
    resource.setrlimit(limit, (to, _limits[limit][1]))


def _raise() -> None:
    for limit, before in _limits.items():
        resource.setrlimit(limit, before)


_SYS_RESOURCE, _SYS_ADMIN = 24, 21
"""Capabilities that lift the limit of processes."""


def _set_capabilities(*, limited: bool) -> None:
    """Of this process, which is root's: all, or all but those."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    # Of each half: effective, permitted, inheritable.
    data[0] = data[1] & ~(1 << _SYS_RESOURCE | 1 << _SYS_ADMIN) if limited else data[1]
    assert libc.capset(header, data) == 0


def no_descriptors() -> None:
    free = os.open("/", os.O_RDONLY)
    os.close(free)
    _lower(resource.RLIMIT_NOFILE, free)


def no_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + 2**20)


def no_processes() -> None:
    """The limit binds no root: the process counts as another user's, without two of root's rights."""
    if os.geteuid() == 0:
        os.setresuid(40_000 + os.getpid() % 20_000, 0, 0)
        _set_capabilities(limited=True)
    _lower(resource.RLIMIT_NPROC, 1)


def processes_again() -> None:
    _raise()
    if os.geteuid() == 0:
        _set_capabilities(limited=False)
        os.setresuid(0, 0, 0)


def short_files() -> None:
    _lower(resource.RLIMIT_FSIZE, 512)


def far_ahead() -> None:
    step_wall_clock(3e6)


def back_again() -> None:
    step_wall_clock(-3e6)


def fail_by_a_foreign_clock(world: World) -> None:
    """A failure is recorded with the monotonic time of another machine."""

    def fail() -> None:
        foreign = Clock()
        foreign.later = 1e7
        with foreign.installed():
            inside.fail(world.path, MmcacheError("of another machine", path=str(world.path)))

    world.run(fail)


def fill(world: World) -> None:
    fd = os.open(world.directory / "fill", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(fd, bytes(65_536)):
            pass
    os.close(fd)


def storm(world: World) -> None:
    for pid in world.readers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)


def kill_builders(world: World) -> None:
    for reader in world.readers:
        for builder in rebuilders_of(reader):
            with contextlib.suppress(ProcessLookupError):
                os.kill(builder, signal.SIGKILL)


def put_a_foreign_file(world: World) -> None:
    def put() -> None:
        fresh = world.path.with_suffix(".new")
        fresh.write_text("of another program\n" * 100)
        fresh.replace(world.path)

    world.run(put)


def scribble(world: World) -> None:
    with open(f"{world.path}.ctl", "r+b") as page:
        page.write(os.urandom(65_536))


def away(path: Path) -> Path:
    return path.with_name(f"{path.name}.away")


ACCIDENTS = {
    "descriptors": Accident(enter=no_descriptors, leave=_raise),
    "memory": Accident(enter=no_memory, leave=_raise),
    "processes": Accident(enter=no_processes, leave=_raise),
    "file size": Accident(enter=short_files, leave=_raise),
    "disk full": Accident(begin=fill, end=lambda world: (world.directory / "fill").unlink(), namespace=True),
    "clocks": Accident(begin=fail_by_a_foreign_clock, enter=far_ahead, leave=back_again),
    "signal storm": Accident(step=storm),
    "killed builders": Accident(step=kill_builders),
    "cleared file": Accident(begin=lambda world: world.run(lambda: inside.clear(world.path))),
    "foreign file": Accident(begin=put_a_foreign_file, end=lambda world: world.path.unlink()),
    "source gone": Accident(
        begin=lambda world: world.db.rename(away(world.db)), end=lambda world: away(world.db).rename(world.db)
    ),
    "page deleted": Accident(begin=lambda world: Path(f"{world.path}.ctl").unlink()),
    "page scribbled": Accident(begin=scribble),
    "directory moved": Accident(
        begin=lambda world: world.directory.rename(away(world.directory)),
        end=lambda world: away(world.directory).rename(world.directory),
    ),
}
assert len(ACCIDENTS) == 14


def outcome_of(place: Path, accident: Accident, mistake: Callable[[], None] = lambda: None) -> Outcome:
    def undergo() -> Outcome:
        if accident.namespace:
            (place / "cache").mkdir()
            mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", place / "cache")
        with World(place, accident, mistake) as world:
            return world.undergo()

    outcome: Outcome = apart(undergo, within=100.0, namespace=accident.namespace)
    return outcome


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[dict[str, Outcome]]:
    """The outcome of each accident, which are printed as a table."""
    outcomes: dict[str, Outcome] = {}
    yield outcomes
    slowest = max((one.seconds for one in outcomes.values()), default=0.0)
    lines = [f"{name:16} {outcome}" for name, outcome in outcomes.items()]
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{len(outcomes)} accidents, slowest={slowest:.2f}s", *lines, sep="\n")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ACCIDENTS)
def test_an_accident_leaves_no_trace_once_it_is_over(place, name, tally):
    tally[name] = outcome = outcome_of(place, ACCIDENTS[name])
    assert not outcome.faults, f"{outcome.faults} ({outcome})"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mistake", mutants.MISTAKES)
def test_the_harness_notices_a_broken_product(place, mistake):
    outcome = outcome_of(place, ACCIDENTS["page deleted"], getattr(mutants, mistake))
    assert any(mutants.MISTAKES[mistake] in fault for fault in outcome.faults), outcome
