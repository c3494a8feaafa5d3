"""`mmcache doctor`."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import MissingFileError, MmcacheError, UnusableFileError
from ..text import ago, number, plural, printable, source_path, span
from .options import ERROR, FILE_COMPLETION, OK, add_policy, policy_of
from .output import Output

if TYPE_CHECKING:
    from ..format.layout import Layout
    from ..freshness import Policy
    from .doctor_directory import Check

__all__ = ["DEPENDENCIES", "HELP", "add_arguments", "run"]

HELP: Final = """\
Check that a directory, a cache file in it and this machine can do what caches need, and say what to do if not.

Works in the directory with files of its own and with a second process, and removes the files again. Give the
directory where a cache is going to be, or the file that is there (default: the directory that we are in). Exit code 1:
a check failed; warnings are 0.

With the URL of a store it checks that objects are created once, read and listed as releases need it, and the clocks.

  mmcache doctor /var/cache/shop
  mmcache doctor items.mmc
  mmcache doctor s3://bucket/items
"""

DEPENDENCIES: Final = {"filelock": "3.30", "msgpack": "1.1", "numpy": "2.0", "xxhash": "3.5"}
"""Name -> the first version that will do."""

_LONG_BUILD: Final = 900.0
"""Seconds after which a build may well be one that hangs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument(
        "target",
        metavar="FILE|DIR",
        nargs="?",
        default=".",
        help="a cache file, a directory (default: this one), or the URL of a store",
    )
    target.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    add_policy(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    target: str = arguments.target
    checks, is_url = [], "://" in target
    for check in _store(target) if is_url else _examine(target, policy_of(arguments)):
        checks.append(check)
        output.say(f"{check.level:<4}  {check.name:<13} {printable(check.text)}")
        if check.advice:
            output.say(f"{'':<4}  {'':<13} Next: {printable(check.advice)}")
        if sys.stdout is not None:
            sys.stdout.flush()
    failed = any(check.level == "fail" for check in checks)
    if output.json:
        shown = _without_secrets(target) if is_url else target
        output.document({"target": shown, "ok": not failed, "checks": [check._asdict() for check in checks]})
    return ERROR if failed else OK


def _without_secrets(url: str) -> str:
    from ..store import without_secrets

    return without_secrets(url)


def _store(url: str) -> Iterator[Check]:
    from .doctor_store import check_store

    yield _python()
    yield _dependencies()
    yield from check_store(url)


def _examine(target: str, policy: Policy) -> Iterator[Check]:
    from .doctor_directory import check_directory, check_space

    yield _python()
    yield _dependencies()
    yield _implementation()
    yield _blas()
    if Path(target).is_dir():
        yield from check_directory(target)
        yield check_space(target, 0)
        return
    directory = os.path.dirname(target) or "."
    yield from check_directory(directory)
    if not Path(directory).is_dir():
        return
    layout, found = _file(target)
    yield check_space(directory, layout.header.file_size if layout is not None else 0)
    yield found
    if layout is not None:
        yield _clock(layout)
        yield _source(layout, target)
    yield _freshness(target, policy)
    yield _control_page(target)
    yield _builds(target)
    yield _leftovers(target)


# --- the machine ------------------------------------------------------------------------------------------------------


def _python() -> Check:
    from .doctor_directory import Check

    text = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.byteorder != "little":
        return Check("python", "warn", f"{text}, which is not little-endian: mmcache is not tested there")
    if platform.system() not in ("Linux", "Darwin"):
        return Check("python", "fail", f"{text}: mmcache needs Linux or macOS", "use one of these")
    return Check("python", "ok", f"{text}, little-endian")


def _dependencies() -> Check:
    from importlib.metadata import PackageNotFoundError, version

    from .doctor_directory import Check

    found, wrong = [], []
    for name, least in DEPENDENCIES.items():
        try:
            there = version(name)
        except PackageNotFoundError:
            wrong.append(f"'{name}>={least}'")
            found.append(f"{name} is missing")
            continue
        found.append(f"{name} {there}")
        if _numbers(there) < _numbers(least):
            wrong.append(f"'{name}>={least}'")
    if wrong:
        return Check("dependencies", "fail", ", ".join(found), f"pip install {' '.join(wrong)}")
    return Check("dependencies", "ok", ", ".join(found))


def _implementation() -> Check:
    from .. import native
    from .doctor_directory import Check

    of_msgpack = native.msgpack_implementation()
    why = f" ({native.reason})" if native.reason else ""
    text = f"{native.implementation}{why}; of msgpack: {of_msgpack}"
    if of_msgpack == "pure":
        return Check("compiled core", "warn", text, "pip install --force-reinstall msgpack")
    return Check("compiled core", "ok", text)


def _blas() -> Check:
    """Small products wait for threads that a busy machine does not run: see `search.blas`."""
    from ..search.blas import libraries
    from .doctor_directory import Check

    name, found = "BLAS threads", libraries()
    if found is None:
        text = "not known without threadpoolctl: nearest_many(threads=N) takes one; pip install 'mmcache[search]'"
        return Check(name, "ok", text)
    texts = [f"{one.name} {one.version}".strip() + f" has {plural(one.threads, 'thread')}" for one in found]
    text = ", ".join(texts) or "numpy has no BLAS that is known"
    most, cores = max((one.threads for one in found), default=1), _cores()
    if most == 1:
        return Check(name, "ok", f"{text}: a search has the thread that calls")
    text = f"{text}: nearest has the thread that calls, nearest_many all of these for large products"
    settings = " ".join(dict.fromkeys(f"{_SETTINGS[one.name]}=1" for one in found if one.name in _SETTINGS))
    if most > cores:
        advice = f"{settings or 'one thread of BLAS'} in the environment of the workers"
        return Check(name, "warn", f"{text}, and this process has {plural(cores, 'core')}", advice)
    return Check(name, "ok", f"{text}; where many workers search: {settings or 'one thread'}")


_SETTINGS: Final = {
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
    "flexiblas": "FLEXIBLAS_NUM_THREADS",
}
"""Library -> the variable of the environment that it takes its number of threads from."""


def _cores() -> int:
    """That this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has none
        return os.cpu_count() or 1


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.1.0rc1" as (2, 1)."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


# --- the file ---------------------------------------------------------------------------------------------------------


def _file(path: str) -> tuple[Layout | None, Check]:
    from .doctor_directory import Check

    try:
        from .files import layout_of

        layout = layout_of(path)
    except MissingFileError:
        advice = "mmcache build SOURCE -o FILE, or open it with a source"
        return None, Check("file", "warn", f"{path} is not there yet", advice)
    except UnusableFileError as error:
        advice = "mmcache rebuild FILE" if error.cause in ("corrupt", "incompatible") else ""
        return None, Check("file", "fail", f"{error.cause}: {error.message}", advice)
    generation, records = layout.header.generation, sum(c.n for c in layout.collections.values())
    text = f"generation {number(generation)}, {plural(records, 'record')}; its data is checked by mmcache verify"
    return layout, Check("file", "ok", text)


def _clock(layout: Layout) -> Check:
    from ..freshness import CLOCK_SKEW
    from .doctor_directory import Check

    age = time.time() - layout.header.created_ns / 1e9
    if age < -CLOCK_SKEW:
        text = f"the file was built {span(-age)} ahead of this clock, so its age is not known: it counts as stale"
        return Check("clock", "warn", text, "set the clock, then mmcache rebuild FILE")
    return Check("clock", "ok", f"the file was built {ago(max(0.0, age))}")


def _source(layout: Layout, path: str) -> Check:
    from ..sources import TrackedSource
    from ..sources.base import UntoldError
    from .doctor_directory import Check
    from .status import source_of

    name = "source"
    if layout.source is None:
        return Check(name, "ok", "the file names none: only a worker that has the records can build it again")
    what = f"{printable(str(layout.source.get('kind')))} {source_path(layout.source)}"
    try:
        source = source_of(layout)
        assert source is not None
        now = source.fingerprint()
        tracked = isinstance(source, TrackedSource) and source.changes(now) is not None
    except UntoldError:
        return Check(
            name, "ok", f"{what}: only a worker that has it, or mmcache rebuild that is told it, can build again"
        )
    except MmcacheError as error:
        advice = "mmcache rebuild FILE --source PATH, if it moved"
        return Check(name, "fail", f"{what} cannot be asked: {error.message}", advice)
    if tracked:
        return Check(name, "ok", f"{what}, tracked: workers learn which records others change")
    if isinstance(source, TrackedSource):
        import shlex

        advice = f"mmcache track --like {shlex.quote(path)}, if others write to it and you cannot invalidate"
        return Check(name, "ok", f"{what}, not tracked: workers learn that it was written to, not what", advice)
    return Check(name, "ok", f"{what}: workers learn that it was written to, not what")


def _freshness(path: str, policy: Policy) -> Check:
    from .doctor_directory import Check
    from .status import report_of

    status = report_of(path, policy).status
    text = f"{status.state}: {status.why}"
    if status.state in ("fresh", "stale"):
        return Check("freshness", "ok", text)
    advice = {
        "disabled": "mmcache enable FILE, or unset MMCACHE_DISABLE",
        "held": "once its cause is gone: mmcache rebuild FILE, or mmcache resume FILE",
        "expired": "mmcache rebuild FILE",
        "invalidated": "mmcache rebuild FILE",
    }.get(status.state, "")
    return Check("freshness", "warn", text, advice)


def _control_page(path: str) -> Check:
    from ..sharing.attach import open_existing
    from ..sharing.page import page_path
    from ..storage.pagefile import open_page_file
    from .doctor_directory import Check

    name, where = "control page", page_path(os.path.abspath(path))
    try:
        file = open_page_file(where)
    except UnusableFileError as error:
        return Check(name, "fail", f"{error}", "remove it; until then workers notice changes once a second only")
    if file is None:
        return Check(name, "ok", "there is none yet: the first worker makes it")
    file.close()
    page = open_existing(os.path.abspath(path))
    if page is None:
        text = "is damaged, a copy, of another version, or from before this machine started"
        return Check(name, "warn", text, "nothing: the next worker puts another in its place")
    created, writable = page.identity.created_ns / 1e9, page.writable
    page.close()
    if not writable:
        text = "may only be read by this user: it hears what others say, and cannot invalidate or build"
        return Check(name, "warn", text, "give this user write access, or invalidate as another one")
    return Check(name, "ok", f"was made {ago(max(0.0, time.time() - created))}, since this machine started")


def _builds(path: str) -> Check:
    from ..sharing.attach import open_existing
    from ..storage import shared
    from ..storage.names import lock_name
    from .doctor_directory import Check

    page = open_existing(os.path.abspath(path))
    head = page.head() if page is not None else None
    builder = head.builder if head is not None else None
    failure = page.failure if page is not None else None
    if page is not None:
        page.close()
    if shared.is_locked(lock_name(path)):
        if builder is None:
            return Check("builds", "ok", "a process holds the build lock")
        age = time.monotonic() - builder.since
        text = f"pid {builder.pid} has been building for {span(max(0.0, age))}"
        if age > max(_LONG_BUILD, 10 * builder.takes):
            advice = f"if it hangs, kill {builder.pid}: the lock is free at once, and what is published stays"
            return Check("builds", "warn", text, advice)
        return Check("builds", "ok", text)
    if failure is not None:
        text = f"{plural(failure.attempts, 'failure')} in a row, the last with: {failure.error}"
        return Check("builds", "warn", text, "mend that; then mmcache rebuild FILE, or wait for the workers")
    return Check("builds", "ok", "no process builds it now, and the last build did not fail")


def _leftovers(path: str) -> Check:
    from ..storage import fs, shared
    from ..storage.names import lock_name
    from .doctor_directory import Check

    left = fs.leftovers(path)
    if not left:
        return Check("leftovers", "ok", "no temporary files")
    if shared.is_locked(lock_name(path)):
        return Check("leftovers", "ok", f"{plural(len(left), 'temporary file')}, of the build that is running")
    text = f"{plural(len(left), 'temporary file')} of builds that died: {', '.join(map(os.path.basename, left))}"
    return Check("leftovers", "warn", text, "nothing: the next build removes them")
