"""The engine of the pytest plugin: the caches that all processes of one test run share.

A run has a token, which the controller gives to its workers, and one directory named after the token. The first cache
makes the directory, and the process that began the run removes it. Each process notes there what it built and opened;
the report is made of these notes and of the counters of the cache files.

Importing this module imports nothing of mmcache that needs numpy.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Unpack, overload

from ..shown import internal
from ..text import bytes_of, number, plural, printable, span

if TYPE_CHECKING:
    from ..cache import Cache
    from ..models import M
    from ..options import MadeOptions, OpenOptions
    from ..schema import AnySchema, R_co, Schema
    from ..sharing.fleet import Fleet
    from ..sources.base import Source, SourceOf
    from ..sources.call import Load

__all__ = ["CacheFactory", "Isolate", "Run", "Scope", "isolating", "summary"]

_KEPT, _LATELY = 3, 3600.0
"""Persistent caches of one name that are kept: the last, and those used within an hour."""

_PREFIX, _ABANDONED = "mmcache-run-", 3 * 86_400.0
"""Directories of runs, and the age in seconds at which one is removed because its run was killed."""

_LONGEST_NAME = 100
"""Bytes of a cache's name, which leaves room in a file name for what stands before and after it."""

_SETTINGS: Final[dict[str, Any]] = {"ttl": math.inf, "executor": "external"}

Scope = Literal["run", "persistent"]


@dataclass(frozen=True, slots=True)
class Run:
    """A test run, as one of its processes knows it.

    begun: by time.monotonic(). who: the worker, or "main". owner: pid of the process that removes the directory; 0 in a
    worker whose controller does.
    """

    token: str
    begun: float
    who: str
    owner: int = 0

    @classmethod
    def begin(cls, who: str) -> Run:
        return cls(os.urandom(16).hex(), time.monotonic(), who, os.getpid())

    @property
    def directory(self) -> Path:
        """Where pytest makes its temporary directories too. Raises FileNotFoundError without such a place."""
        return Path(os.environ.get("PYTEST_DEBUG_TEMPROOT") or tempfile.gettempdir()) / f"{_PREFIX}{self.token}"

    def make_directory(self) -> Path:
        directory = self.directory
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            return directory
        _remove_old(directory.parent.glob(f"{_PREFIX}*"), _ABANDONED)
        return directory

    def remove_directory(self) -> None:
        if self.owner == os.getpid():  # and not a process that a test forked
            with contextlib.suppress(OSError):
                shutil.rmtree(self.directory, ignore_errors=True)

    def note(self, what: str, name: str, text: str) -> None:
        """A file for each process, which stays there if the process is killed."""
        directory = self.directory / ".notes" / what
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}@{self.who}-{os.getpid()}").write_text(text, "utf-8")

    def noted(self, what: str) -> dict[str, dict[str, str]]:
        """Cache -> process -> text."""
        found: dict[str, dict[str, str]] = {}
        with contextlib.suppress(OSError):
            directory = self.directory / ".notes" / what
            for file in sorted(os.listdir(directory)):
                name, _, who = file.rpartition("@")
                found.setdefault(name, {})[who] = (directory / file).read_text("utf-8")
        return found


@internal("close", "directory")
class CacheFactory:
    """Makes the caches of a run: the type of the fixture `mmcache_factory`."""

    def __init__(self, run: Run, *, wait: float, cache_dir: Callable[[], Path]) -> None:
        """wait: seconds for another process that builds. cache_dir: gives the parent of persistent caches, or raises
        OSError. Made by the plugin."""
        self._run = run
        self._wait = wait
        self._cache_dir = cache_dir
        self._caches: list[Cache[Any]] = []

    @overload
    def __call__(
        self,
        name: str,
        build: Load | None = None,
        *,
        source: SourceOf[R_co],
        key: str | None = None,
        scope: Scope = "run",
        **options: Unpack[MadeOptions],
    ) -> Cache[R_co]: ...
    @overload
    def __call__(
        self,
        name: str,
        build: Load | None = None,
        *,
        source: Source | None = None,
        schema: Schema[R_co] | Iterable[AnySchema] = (),
        key: str | None = None,
        scope: Scope = "run",
        **options: Unpack[MadeOptions],
    ) -> Cache[R_co]: ...
    def __call__(
        self,
        name: str,
        build: Load | None = None,
        *,
        source: Source | None = None,
        schema: AnySchema | Iterable[AnySchema] = (),
        key: str | None = None,
        scope: Scope = "run",
        **options: Any,
    ) -> Cache[Any]:
        """The cache of this name, built by exactly one process of the run; the others wait for it.

        build: gives the records, with `schema`; called where the cache is built, and where its source is asked.
        source: in place of build and schema.
        scope: "run", in a directory of this run. "persistent", below pytest's own cache directory, found again by the
            next run with the same key and schemas; where that place is unfit, "run", and the summary says why.
            Of each name the three used last are kept, and those used within an hour.
        key: says what the content of a persistent cache depends on, such as a version or a digest. Not needed with a
            source that has a fingerprint, such as a database or a file.
        options: of `mmcache.open`. By default nothing expires, and nothing is built again unless a test asks for it.

        A build that fails is tried once, and raises the same error in every worker. Raises LockTimeoutError, naming the
        process that builds, after `mmcache_wait` seconds (an ini option).
        """
        from ..schema import Schema
        from ..sources import CallableSource, with_rules

        if (build is None) == (source is None):
            raise TypeError("give build=, a function that gives the records, or source=")
        if not re.fullmatch(r"\w[\w.-]*", name) or len(os.fsencode(name)) > _LONGEST_NAME:
            raise ValueError(
                f"name must be letters, digits, '_', '-' and '.', begin with none of the last, and have at most "
                f"{_LONGEST_NAME} bytes, not {name!r}"
            )
        if scope not in ("run", "persistent"):
            raise ValueError(f"scope must be 'run' or 'persistent', not {scope!r}")
        if source is None:
            assert build is not None
            source = CallableSource(build, *((schema,) if isinstance(schema, Schema) else schema))
        rules = {rule: options.pop(rule, None) for rule in ("on_invalid", "max_invalid", "on_duplicate")}
        source = with_rules(source, **rules)
        settings: dict[str, Any] = {**_SETTINGS, "label": self._run.who, **options}
        digest = _digest(source, key) if scope == "persistent" else None
        directory = self._run.make_directory()
        cache = None if digest is None else self._persistent(name, digest, source, settings)
        return cache or self._open(name, directory / f"{name}.mmc", source, settings)

    def _persistent(self, name: str, digest: str, source: Source, settings: dict[str, Any]) -> Cache | None:
        """None where the persistent place is unfit. The first process that finds it so decides for the whole run."""
        from ..errors import LockTimeoutError, UnusableFileError

        if name in self._run.noted("unfit"):
            return None
        try:
            path = _fit(self._cache_dir(), name, digest) / f"{name}.mmc"
            _check_page(path)
            return self._open(name, path, source, settings)
        except LockTimeoutError:
            raise
        except (OSError, UnicodeEncodeError, UnusableFileError) as error:  # PublishError is an OSError
            self._run.note("unfit", name, printable(str(error)))
            return None

    def _open(self, name: str, path: Path, source: Source, settings: dict[str, Any]) -> Cache:
        import mmcache

        self._build(name, path, source)
        cache = mmcache.open(path, source, **settings)
        self._caches.append(cache)
        self._run.note("opened", name, json.dumps([str(path), _counted(cache.status().fleet)]))
        return cache

    def _build(self, name: str, path: Path, source: Source) -> None:
        """Return when the file is there."""
        from ..errors import LockTimeoutError, MmcacheError
        from ..sharing.attach import attach
        from ..sharing.publishing import build_once
        from ..storage.publish import Order

        begun, pause = time.monotonic(), 0.002
        while not _is_there(path, source):
            try:
                report = build_once(path, Order(source), timeout=0.0, serves=bool, since=self._run.begun)
            except LockTimeoutError as error:
                if time.monotonic() - begun > self._wait:
                    raise LockTimeoutError(f"waited {self._wait:g} s: {error.message}", path=str(path)) from None
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
            except MmcacheError:
                raise
            except Exception as error:
                page = attach(str(path))
                failure = page.failure
                page.close()
                if failure is None:
                    raise
                raise failure.error from error  # what the others get, too
            else:
                if report.changed:
                    self._run.note("built", name, f"{report.seconds:.3f}")

    @property
    def directory(self) -> Path:
        """Of the run; the first cache makes it."""
        return self._run.directory

    def close(self) -> None:
        for cache in self._caches:
            cache.close()


# --- places -----------------------------------------------------------------------------------------------------------


def _digest(source: Source, key: str | None) -> str:
    """Of what the content of a persistent cache depends on."""
    from xxhash import xxh3_64_hexdigest

    from ..format.header import is_telling

    content = b"" if key is None else key.encode(errors="surrogatepass")
    deadline = time.monotonic() + 1.0
    while key is None and content != (content := source.fingerprint()) and time.monotonic() < deadline:
        time.sleep(0.03)  # one that is never given again: the source was written to a moment ago
    if key is None and not is_telling(content):
        raise ValueError("this source cannot tell what it holds: a persistent cache of it needs key=")
    return xxh3_64_hexdigest(content + repr(source.schemas).encode(errors="surrogatepass"))


def _fit(parent: Path, name: str, digest: str) -> Path:
    """The directory of a persistent cache, made if it is missing. Raises OSError where it is unfit, and why."""
    from ..errors import UntrustedPathError

    directory = parent
    for directory in (parent, parent / name, parent / name / digest):
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise UntrustedPathError("is a symbolic link", path=str(directory))
        if status.st_uid not in (os.geteuid(), 0):
            raise UntrustedPathError(f"owned by uid {status.st_uid}, not by us ({os.geteuid()})", path=str(directory))
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "cannot be written", str(directory))
    os.utime(directory)
    _remove_old(directory.parent.iterdir(), _LATELY, kept=_KEPT)
    return directory


def _check_page(path: Path) -> None:
    """Raise UnusableFileError where processes cannot share a control page, before anything is built there."""
    from ..errors import UnusableFileError
    from ..sharing.attach import attach

    page = attach(str(path))
    problem = page.problem
    page.close()
    if problem is not None:
        raise UnusableFileError(problem)  # which names the path


def _remove_old(directories: Iterable[Path], age: float, kept: int = 0) -> None:
    """Remove our own directories of at least this age, in seconds, but the last `kept`. A process that has a file in
    there open keeps the file, and one that opens it later builds it again."""
    with contextlib.suppress(OSError):  # another run sweeps, too
        used = sorted(((path.lstat().st_mtime, path) for path in directories), reverse=True)
        for when, path in used[kept:]:
            if time.time() - when > age and path.lstat().st_uid == os.geteuid():
                shutil.rmtree(path, ignore_errors=True)


def _is_there(path: Path, source: Source) -> bool:
    from ..errors import UnusableFileError
    from ..storage.snapshot import Snapshot

    try:
        with Snapshot.open(path, verify="lazy") as snapshot:
            schemas = tuple(collection.schema for collection in snapshot.collections.values())
    except UnusableFileError:
        return False
    if schemas != tuple(schema.resolved() for schema in source.schemas):
        raise ValueError(f"there is a cache {path.stem!r} with other schemas in this run: give this one another name")
    return True


# --- a cache for one test ---------------------------------------------------------------------------------------------


class Isolate(Protocol):
    """The type of the fixture `mmcache_isolated`."""

    def __call__(self, cache: Cache[M], **options: Unpack[OpenOptions]) -> Cache[M]:
        """A second cache over the file of this one, with a control page of its own."""
        ...


@contextlib.contextmanager
def isolating(directory: Path) -> Iterator[Isolate]:
    """A function that gives a second cache over a cache's file, below the directory, which is removed at the end."""
    import mmcache

    from ..storage.names import control_name

    caches: list[Cache[Any]] = []

    def isolate(cache: Cache[M], **options: Unpack[OpenOptions]) -> Cache[M]:
        if cache.snapshot is None:
            raise ValueError(f"{cache.path}: there is no file to share: the source answers everything")
        directory.mkdir(exist_ok=True)
        path = directory / f"{len(caches)}-{os.path.basename(cache.path)}"
        with contextlib.suppress(FileNotFoundError):  # where no page can be shared
            shutil.copyfile(control_name(cache.path), control_name(str(path)))  # what is known of the file
        try:
            os.link(cache.path, path)
        except OSError:
            shutil.copyfile(cache.path, path)
        settings: dict[str, Any] = {**_SETTINGS, "model": cache.model, **options}
        isolated: Cache[M] = mmcache.open(path, cache.source, **settings)
        caches.append(isolated)
        return isolated

    yield isolate
    for cache in caches:
        cache.close()
    shutil.rmtree(directory, ignore_errors=True)


# --- at the end -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the reads of all processes of a run were answered from. fallbacks: by cause."""

    hits: int
    misses: int
    fallbacks: Mapping[str, int]

    @property
    def hit_rate(self) -> str:
        answers = self.hits + self.misses + sum(self.fallbacks.values())
        return f"hit rate {self.hits / answers:.1%}" if answers else "no reads"

    def __str__(self) -> str:
        causes = ", ".join(f"{number(n)} {cause}" for cause, n in self.fallbacks.items())
        fallbacks = plural(sum(self.fallbacks.values()), "fallback") + (f" ({causes})" if causes else "")
        misses = "1 miss" if self.misses == 1 else f"{number(self.misses)} misses"
        return f"{plural(self.hits, 'hit')}, {fallbacks}, {misses}"


def _counted(fleet: Fleet) -> dict[str, int]:
    """Hits, misses, and fallbacks by cause, of all processes that ever had the file open."""
    from ..sharing.fleet import CAUSES

    totals = fleet.totals
    counts = {"hits": totals["hits"] + totals["batch_hits"], "misses": totals["misses"]}
    return counts | {cause: totals[f"fallback_{cause}"] for cause in CAUSES}


def _answered(opened: Mapping[str, Iterable[Mapping[str, int]]]) -> _Answers:
    """opened: path -> the counts that each process found when it opened the file.

    Counts only grow, and each process looked before its own first read. So the smallest are those before the run.
    """
    from ..cache import Cache

    counts: dict[str, int] = {}
    for path, found in opened.items():
        with Cache(path) as cache:
            for name, count in _counted(cache.status().fleet).items():
                before = min(each.get(name, 0) for each in found)
                counts[name] = counts.get(name, 0) + max(0, count - before)
    hits, misses = counts.pop("hits", 0), counts.pop("misses", 0)
    return _Answers(hits, misses, {cause: n for cause, n in counts.items() if n})


def _opened(notes: Iterable[str]) -> dict[str, list[dict[str, int]]]:
    """Path -> counts, as `_answered` takes it. A process that was killed while it wrote its note left half of one."""
    found: dict[str, list[dict[str, int]]] = {}
    for text in notes:
        with contextlib.suppress(ValueError):
            path, counts = json.loads(text)
            found.setdefault(path, []).append(counts)
    return found


def summary(run: Run, *, whole: bool) -> Iterator[str]:
    """The lines about each cache of the run, of all its processes; none where there was no cache.

    whole: also what the reads were answered from, which process built the cache, and which ones opened it.
    """
    built, unfit = run.noted("built"), run.noted("unfit")
    for name, processes in run.noted("opened").items():
        builds = {who: float(text or 0) for who, text in built.get(name, {}).items()}
        opened = _opened(processes.values())
        answers = _answered(opened)
        how = f"{plural(len(builds), 'build')} in {span(sum(builds.values()))}"
        facts = [how if builds else "0 builds, found from an earlier run", plural(len(processes), "open")]
        with contextlib.suppress(OSError, StopIteration):  # a test may have removed the file
            size = os.path.getsize(next(iter(opened)))
            facts += [f"{bytes_of(size)} shared", f"{bytes_of(size * (len(processes) - 1))} not duplicated"]
        yield f"mmcache: {name}: {', '.join([*facts, answers.hit_rate])}"
        for why in list(unfit.get(name, {}).values())[:1]:
            yield f"mmcache: {name}: warning: not kept for the next run: {why}"
        if whole:
            yield f"  {answers}"
            yield from (f"  built by {who} in {span(seconds)}" for who, seconds in builds.items())
            yield f"  opened by {', '.join(processes)}"
