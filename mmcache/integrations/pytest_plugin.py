"""One cache for all workers of a test run: built once, by whoever comes first, and mapped by all.

    @pytest.fixture(scope="session")
    def patterns(mmcache_factory):
        return mmcache_factory("patterns", source=SQLiteSource("patterns.db", Schema("patterns")))

It is the same with pytest-xdist, in any of its modes, and without. Loading this module imports nothing but pytest, and
nothing is created until a fixture is used. Whether a process is a worker, the controller of workers or alone is told by
`config.workerinput` and by nothing else; the files of a run are below its base temporary directory, which workers that
xdist starts on this machine have in common, and only the controller or who is alone removes them.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

from ..words import bytes_of, plural, span

if TYPE_CHECKING:
    from ..cache import Cache
    from ..format.layout import Layout
    from ..schema import Query, Schema
    from ..sources.base import Reading, Source, SourceRecord
    from ..sources.iterable import IterableSource

__all__ = ["Factory", "Hooks"]

_BASE = pytest.StashKey[Path]()
_BEGUN = pytest.StashKey[float]()

_SETTINGS: Final[dict[str, Any]] = {"ttl": math.inf, "executor": "external"}

Scope = Literal["run", "persistent"]


class Hooks:
    """What a conftest.py may implement."""

    def pytest_mmcache_prebuild(self, factory: Factory) -> None:
        """Called in the controller, or in a run without workers, before any test is collected: what `factory` makes
        here is there already when the workers start."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("mmcache").addoption(
        "--mmcache-report", action="store_true", help="tell of every cache of this run who built it, and who opened it"
    )
    parser.addini("mmcache_wait", "seconds to wait for another worker that builds a cache (120)", default="120")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_BEGUN] = time.monotonic()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the controller, for each worker, after xdist has given it a base directory below our own."""
    if node.gateway.spec.popen:  # else it is on another machine, or may be
        node.config.stash[_BASE] = node.config._tmp_path_factory.getbasetemp()
        node.workerinput["mmcache_begun"] = node.config.stash[_BEGUN]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    hook = config.hook.pytest_mmcache_prebuild
    if not hasattr(config, "workerinput") and hook.get_hookimpls():
        factory = Factory(config)
        hook(factory=factory)
        factory.close()


def _base(config: pytest.Config) -> Path:
    """What all processes of this run have in common."""
    own: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return own.parent if "mmcache_begun" in getattr(config, "workerinput", ()) else own


class Factory:
    """Makes the caches of a run; see the fixture `mmcache_factory`."""

    def __init__(self, config: pytest.Config) -> None:
        config.stash[_BASE] = _base(config)
        worker = getattr(config, "workerinput", {})
        self.directory = config.stash[_BASE] / "mmcache"
        self._config = config
        self._begun: float = worker.get("mmcache_begun", config.stash[_BEGUN])
        self._who: str = worker.get("workerid", "main")
        self._caches: list[Cache] = []

    def __call__(
        self,
        name: str,
        build: Callable[[], Iterable[Any]] | None = None,
        *,
        source: Source | None = None,
        schema: Schema | Iterable[Schema] = (),
        key: str | None = None,
        scope: Scope = "run",
        **options: Any,
    ) -> Cache:
        """The cache of this name, built by exactly one process of the run; the others wait for it.

        build: gives the records, with `schema`; called where the cache is built, and where its source is asked.
        source: in place of build and schema.
        scope: "run", in a directory of this run. "persistent", below pytest's own cache directory, found again by the
            next run with the same key; where there is no such directory, or it cannot be written, "run".
        key: says what the content depends on, such as a version or a digest; of a persistent cache with `build`.
        options: of `mmcache.open`. By default nothing expires, and nothing is built again unless a test asks for it.

        A build that fails is tried once, and raises the same error in every worker. Raises LockTimeoutError, naming the
        process that builds, after `mmcache_wait` seconds (an ini option).
        """
        import mmcache

        if (build is None) == (source is None):
            raise TypeError("give build=, a function that gives the records, or source=")
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"name must be letters, digits, '.', '-' and '_', not {name!r}")
        if source is None:
            assert build is not None
            source = _Called(build, (schema,) if isinstance(schema, mmcache.Schema) else tuple(schema))
        path = self._path(name, scope, key, source, called=build is not None)
        self._build(name, path, source)
        self._note("opened", name, str(path))
        settings: dict[str, Any] = _SETTINGS | {"label": self._who} | options
        cache = mmcache.open(path, source, **settings)
        self._caches.append(cache)
        return cache

    def _path(self, name: str, scope: Scope, key: str | None, source: Source, *, called: bool) -> Path:
        if scope not in ("run", "persistent"):
            raise ValueError(f"scope must be 'run' or 'persistent', not {scope!r}")
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if scope == "persistent":
            if called and key is None:
                raise ValueError("a persistent cache with build= needs key=, which says what its content depends on")
            from xxhash import xxh3_64_hexdigest

            content = source.fingerprint() if key is None else key.encode()
            with contextlib.suppress(AttributeError, OSError):  # -p no:cacheprovider, or a directory for reading only
                directory = Path(self._config.cache.mkdir("mmcache"))
                if os.access(directory, os.W_OK):
                    return directory / f"{name}-{xxh3_64_hexdigest(content)}.mmc"
        return self.directory / f"{name}.mmc"

    def _build(self, name: str, path: Path, source: Source) -> None:
        """See to it that the file is there."""
        from ..errors import LockTimeoutError, MmcacheError
        from ..sharing.control import attach
        from ..sharing.publishing import build_once

        begun, wait, pause = time.monotonic(), float(self._config.getini("mmcache_wait")), 0.002
        while not _is_there(path, source):
            try:
                report = build_once(
                    path, source, timeout=0.0, serves=lambda layout: _serves(layout, source), since=self._begun
                )
            except LockTimeoutError as error:
                if time.monotonic() - begun > wait:
                    raise LockTimeoutError(f"waited {wait:g} s: {error.message}", path=str(path)) from None
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
                    self._note("built", name, f"{report.seconds:.3f}")

    def _note(self, what: str, name: str, text: str) -> None:
        """For the summary: a file for each process, which is there whatever becomes of that."""
        directory = self.directory / what
        directory.mkdir(exist_ok=True)
        (directory / f"{name}@{self._who}-{os.getpid()}").write_text(text)

    def close(self) -> None:
        for cache in self._caches:
            cache.close()


def _is_there(path: Path, source: Source) -> bool:
    from ..errors import UnusableFileError
    from ..storage.snapshot import Snapshot

    try:
        with Snapshot.open(path, verify="lazy") as snapshot:
            return _serves(snapshot.layout, source)
    except UnusableFileError:
        return False


def _serves(layout: Layout | None, source: Source) -> bool:
    if layout is None:
        return False
    return tuple(collection.schema for collection in layout.collections.values()) == source.schemas


class _Called:
    """A source whose records a function gives, called when they are needed."""

    def __init__(self, build: Callable[[], Iterable[Any]], schemas: tuple[Schema, ...]) -> None:
        self._build = build
        self.schemas = schemas

    def _records(self) -> IterableSource:
        from ..sources.iterable import IterableSource

        records = self._build()
        return IterableSource(list(records) if isinstance(records, Iterator) else records, *self.schemas)

    def read(self) -> contextlib.AbstractContextManager[Reading]:
        return self._records().read()

    def fetch(self, collection: str, ids: Sequence[str]) -> list[SourceRecord | None]:
        return self._records().fetch(collection, ids)

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        return self._records().find(collection, query)

    def fingerprint(self) -> bytes:
        return bytes(32)

    def spec(self) -> None:
        return None


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mmcache_factory(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """`mmcache_factory(name, build=... | source=..., schema=..., key=..., scope=...)`: the same cache in every worker,
    built once a run. See `mmcache.integrations.pytest_plugin.Factory`."""
    factory = Factory(request.config)
    yield factory
    factory.close()


@pytest.fixture(scope="session")
def mmcache_dir(mmcache_factory: Factory) -> Path:
    """The directory of this run that all workers have in common; it goes with the run."""
    mmcache_factory.directory.mkdir(mode=0o700, exist_ok=True)
    return mmcache_factory.directory


@pytest.fixture
def mmcache_isolated(tmp_path: Path) -> Iterator[Callable[..., Cache]]:
    """`mmcache_isolated(cache)`: the same file with a control page of its own, so that a test may invalidate, rebuild
    and clear without touching the others. Nothing is copied where the file system knows hard links."""
    import mmcache

    caches: list[Cache] = []
    directory = tmp_path / "mmcache-isolated"

    def isolate(cache: Cache, **options: Any) -> Cache:
        if cache.snapshot is None:
            raise ValueError(f"{cache.path}: there is no file to share: the source answers everything")
        directory.mkdir(exist_ok=True)
        path = directory / f"{len(caches)}-{os.path.basename(cache.path)}"
        try:
            os.link(cache.path, path)
        except OSError:
            shutil.copyfile(cache.path, path)
        settings: dict[str, Any] = _SETTINGS | options
        caches.append(mmcache.open(path, cache.source, **settings))
        return caches[-1]

    yield isolate
    for cache in caches:
        cache.close()
    shutil.rmtree(directory, ignore_errors=True)


# --- at the end -------------------------------------------------------------------------------------------------------


def _noted(directory: Path, what: str) -> dict[str, dict[str, str]]:
    """Cache -> process -> text."""
    found: dict[str, dict[str, str]] = {}
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory / what)):
            cache, _, who = name.rpartition("@")
            found.setdefault(cache, {})[who] = (directory / what / name).read_text()
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    base = config.stash.get(_BASE, None)
    if base is None:
        return
    opened, built = _noted(base / "mmcache", "opened"), _noted(base / "mmcache", "built")
    for name, processes in opened.items():
        builds = built.get(name, {})
        with contextlib.suppress(OSError):
            size = os.path.getsize(next(iter(processes.values())))
            seconds = sum(float(text) for text in builds.values())
            how = (
                f"{plural(len(builds), 'build')} in {span(seconds)}"
                if builds
                else "0 builds, found from an earlier run"
            )
            terminalreporter.write_line(
                f"mmcache: {name}: {how}, {plural(len(processes), 'open')}, {bytes_of(size)} shared, "
                f"{bytes_of(size * (len(processes) - 1))} not duplicated"
            )
            if config.option.mmcache_report:
                for who in builds:
                    terminalreporter.write_line(f"  built by {who} in {span(float(builds[who]))}")
                terminalreporter.write_line(f"  opened by {', '.join(processes)}")


def pytest_unconfigure(config: pytest.Config) -> None:
    base = config.stash.get(_BASE, None)
    if base is not None and not hasattr(config, "workerinput"):
        shutil.rmtree(base / "mmcache", ignore_errors=True)
