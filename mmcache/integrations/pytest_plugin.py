"""One cache for all workers of a test run, built once, by the worker that comes first, and mapped by all.

    @pytest.fixture(scope="session")
    def patterns(mmcache_factory: CacheFactory) -> mmcache.Cache:
        return mmcache_factory("patterns", source=SQLiteSource("patterns.db", Schema("patterns")))

It is the same with pytest-xdist, in any of its modes, and without. Options, hooks and fixtures are here, the engine is
`pytest_caches`. Loading imports nothing of mmcache that costs time. A run that uses no fixture and no hook of ours is
left alone: no file is made, and no attribute of pytest is read that its documentation does not name.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .pytest_caches import CacheFactory, Isolate, Run, isolating, summary

__all__ = ["CacheFactory", "Factory", "Hooks", "Isolate"]

Factory = CacheFactory
"""The name that it had first."""

_RUN = pytest.StashKey[Run]()


class Hooks:
    """What a conftest.py may implement."""

    def pytest_mmcache_prebuild(self, factory: CacheFactory) -> None:
        """Called before the first test, in the controller, or in a run without workers: what `factory` makes here is
        there already when a test asks for it. Not called where no test is going to run."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("mmcache").addoption(
        "--mmcache-report",
        action="store_true",
        help="report for every cache of this run what the reads were answered from, and which process built it",
    )
    parser.addini("mmcache_wait", "seconds to wait for another worker that builds a cache (600)", default="600")


def _run_of(config: pytest.Config) -> Run:
    if _RUN not in config.stash:
        worker = getattr(config, "workerinput", {})
        who = worker.get("workerid", "main")
        given = worker.get("mmcache")  # unless the controller is on another machine
        config.stash[_RUN] = Run.begin(who) if given is None else Run(given[0], given[1], who)
    return config.stash[_RUN]


def _factory(config: pytest.Config) -> CacheFactory:
    text = config.getini("mmcache_wait")
    try:
        wait = float(text)
    except ValueError:
        wait = -1.0
    if not wait >= 0:
        raise pytest.UsageError(f"mmcache_wait must be a number of seconds, not {text!r}")

    def cache_dir() -> Path:
        cache = getattr(config, "cache", None)
        if cache is None:
            raise OSError(errno.ENOENT, "pytest has no cache directory with -p no:cacheprovider")
        path: Path = cache.mkdir("mmcache")
        return path

    return CacheFactory(_run_of(config), wait=wait, cache_dir=cache_dir)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the controller, for each worker."""
    spec = node.gateway.spec
    if spec.popen and not spec.via:  # a worker on another machine begins a run of its own
        run = _run_of(node.config)
        node.workerinput["mmcache"] = (run.token, run.begun)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Only a run of tests gets here, not one that lists fixtures, say. A controller has no items: its workers collect
    meanwhile, and it sends them the first test after this."""
    config = session.config
    hook = config.hook.pytest_mmcache_prebuild
    if hasattr(config, "workerinput") or not hook.get_hookimpls():
        return
    if config.getoption("collectonly") or config.getoption("setupplan", default=False):
        return
    if session.testsfailed and not config.getoption("continue_on_collection_errors"):
        return
    if session.items or config.getoption("dist", default="no") != "no":
        from ..errors import MmcacheError

        factory = _factory(config)
        with contextlib.suppress(MmcacheError):  # which every test that asks for the cache gets, too
            hook(factory=factory)
        factory.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _RUN in config.stash:
        for line in summary(config.stash[_RUN], whole=config.getoption("mmcache_report")):
            terminalreporter.write_line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _RUN in config.stash:
        config.stash[_RUN].remove_directory()


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mmcache_factory(request: pytest.FixtureRequest) -> Iterator[CacheFactory]:
    """`mmcache_factory(name, build=... | source=..., schema=..., key=..., scope=...)`: the same cache in every worker,
    built once a run. See `mmcache.integrations.pytest_plugin.CacheFactory`."""
    factory = _factory(request.config)
    yield factory
    factory.close()


@pytest.fixture(scope="session")
def mmcache_dir(request: pytest.FixtureRequest) -> Path:
    """The directory of this run that all workers have in common; it goes with the run."""
    return _run_of(request.config).make_directory()


@pytest.fixture
def mmcache_isolated(tmp_path: Path) -> Iterator[Isolate]:
    """`mmcache_isolated(cache)`: the same file with a control page of its own, so that a test may invalidate, rebuild
    and clear without touching the others. Nothing is copied where the file system knows hard links."""
    with isolating(tmp_path / "mmcache-isolated") as isolate:
        yield isolate
