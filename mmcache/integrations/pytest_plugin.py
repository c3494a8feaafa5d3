"""One cache for all workers of a test run: built once, by the first worker, and mapped by all.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

from ..words import bytes_of, plural, span

if TYPE_CHECKING:
    from ..cache import Cache
    from ..schema import Query, Schema
    from ..sources.base import Key, Reading, Source, SourceRecord
    from ..sources.iterable import IterableSource

__all__ = ["Factory", "Hooks"]

_BASE = pytest.StashKey[Path]()
_BEGUN = pytest.StashKey[float]()

_KEPT, _LATELY = 3, 3600.0
"""Persistent caches of one name that are kept: the last, and those used within an hour."""

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
        from ..errors import MmcacheError

        factory = Factory(config)
        with contextlib.suppress(MmcacheError):  # which every test that asks for the cache gets told, too
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
        self._wait = _seconds(config.getini("mmcache_wait"))
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
            next run with the same key and schemas; where there is no such directory, or it cannot be written, "run".
            Of each name the three used last are kept, and those used within an hour.
        key: says what the content of a persistent cache depends on, such as a version or a digest. Not needed with a
            source that has a fingerprint, such as a database or a file.
        options: of `mmcache.open`. By default nothing expires, and nothing is built again unless a test asks for it.

        A build that fails is tried once, and raises the same error in every worker. Raises LockTimeoutError, naming the
        process that builds, after `mmcache_wait` seconds (an ini option).
        """
        import mmcache

        if (build is None) == (source is None):
            raise TypeError("give build=, a function that gives the records, or source=")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"name must be letters, digits, '_', '-' and '.', and begin with none of the last, not {name!r}"
            )
        if source is None:
            assert build is not None
            source = _Called(build, (schema,) if isinstance(schema, mmcache.Schema) else tuple(schema))
        path = self._path(name, scope, key, source)
        self._build(name, path, source)
        self._note("opened", name, str(path))
        settings: dict[str, Any] = _SETTINGS | {"label": self._who} | options
        cache = mmcache.open(path, source, **settings)
        self._caches.append(cache)
        return cache

    def _path(self, name: str, scope: Scope, key: str | None, source: Source) -> Path:
        if scope not in ("run", "persistent"):
            raise ValueError(f"scope must be 'run' or 'persistent', not {scope!r}")
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if scope == "persistent":
            with contextlib.suppress(AttributeError, OSError):  # -p no:cacheprovider, or a directory for reading only
                parent = Path(self._config.cache.mkdir("mmcache")) / name
                directory = parent / _digest(source, key)
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.utime(directory)
                _sweep(parent)
                return directory / f"{name}.mmc"
        return self.directory / f"{name}.mmc"

    def _build(self, name: str, path: Path, source: Source) -> None:
        """See to it that the file is there."""
        from ..errors import LockTimeoutError, MmcacheError
        from ..sharing.attach import attach
        from ..sharing.publishing import build_once

        begun, pause = time.monotonic(), 0.002
        while not _is_there(path, source):
            try:
                report = build_once(path, source, timeout=0.0, serves=bool, since=self._begun)
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
                    self._note("built", name, f"{report.seconds:.3f}")

    def _note(self, what: str, name: str, text: str) -> None:
        """For the summary: a file for each process, which is there whatever becomes of that."""
        directory = self.directory / what
        directory.mkdir(exist_ok=True)
        (directory / f"{name}@{self._who}-{os.getpid()}").write_text(text)

    def close(self) -> None:
        for cache in self._caches:
            cache.close()


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise pytest.UsageError(f"mmcache_wait must be a number of seconds, not {text!r}") from None


def _digest(source: Source, key: str | None) -> str:
    """Of what the content of a persistent cache depends on."""
    from xxhash import xxh3_64_hexdigest

    content = b"" if key is None else key.encode()
    deadline = time.monotonic() + 1.0
    while key is None and content != (content := source.fingerprint()) and time.monotonic() < deadline:
        time.sleep(0.03)  # one that is never given again: the source was written to a moment ago
    if key is None and not any(content):
        raise ValueError("this source cannot tell what it holds: a persistent cache of it needs key=")
    return xxh3_64_hexdigest(content + repr(source.schemas).encode())


def _sweep(parent: Path) -> None:
    """Remove old persistent caches. A process that has one open keeps it; the next that needs it builds it again."""
    with contextlib.suppress(OSError):  # another run sweeps, too
        used = sorted(((os.path.getmtime(path), path) for path in parent.iterdir()), reverse=True)
        for when, path in used[_KEPT:]:
            if time.time() - when > _LATELY:
                shutil.rmtree(path, ignore_errors=True)


def _is_there(path: Path, source: Source) -> bool:
    from ..errors import UnusableFileError
    from ..storage.snapshot import Snapshot

    try:
        with Snapshot.open(path, verify="lazy") as snapshot:
            schemas = tuple(collection.schema for collection in snapshot.collections.values())
    except UnusableFileError:
        return False
    if schemas != source.schemas:
        raise ValueError(f"there is a cache {path.stem!r} with other schemas in this run: give this one another name")
    return True


class _Called:
    """A source whose records a function gives, called when they are needed."""

    is_constant = True

    def __init__(self, build: Callable[[], Iterable[Any]], schemas: tuple[Schema, ...]) -> None:
        self._build = build
        self.schemas = schemas

    def _made(self, *, again: bool) -> IterableSource:
        """again: to look something up in, for which a generator will not do."""
        from ..sources.iterable import IterableSource

        records: Any = self._build()
        if again and isinstance(records, Mapping):
            records = {name: _listed(each) for name, each in records.items()}
        return IterableSource(_listed(records) if again else records, *self.schemas)

    def read(self) -> contextlib.AbstractContextManager[Reading]:
        return self._made(again=False).read()

    def fetch(self, collection: str, ids: Sequence[Key]) -> list[SourceRecord | None]:
        return self._made(again=True).fetch(collection, ids)

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        return self._made(again=True).in_order(collection, ids)

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        return self._made(again=True).find(collection, query)

    def fingerprint(self) -> bytes:
        return bytes(32)

    def spec(self) -> None:
        return None


def _listed(records: Any) -> Any:
    return list(records) if isinstance(records, Iterator) else records


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

    from ..storage.fs import control_name

    caches: list[Cache] = []
    directory = tmp_path / "mmcache-isolated"

    def isolate(cache: Cache, **options: Any) -> Cache:
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
