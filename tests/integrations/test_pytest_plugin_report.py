"""The last lines of a run: what its reads were answered from, over all workers, and the types of the fixtures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pytest_runs import ROOT, Project
from tests.support.waits import until

pytest.importorskip("xdist", reason="pytest-xdist is not installed")

READS = """
import pytest

@pytest.mark.parametrize("i", range(10))
def test_reads(items, i):
    for k in range(9):
        assert items[f"k{k}"]["n"] == k
    assert items.get("nothing") is None
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_line_has_the_hit_rate_over_all_workers(project):
    project.write(tests=READS)
    out = project.run("-n2", "--mmcache-report")
    assert ", hit rate 90.0%\n" in out
    assert "\n  90 hits, 0 fallbacks, 10 misses\n" in out


@pytest.mark.nightly
def test_a_persistent_cache_reports_the_reads_of_this_run_alone(project):
    project.write(tests=READS, options='scope="persistent", key="one"')
    project.run("-n2")
    out = project.run("-n2", "--mmcache-report")
    assert "0 builds, found from an earlier run" in out
    assert "\n  90 hits, 0 fallbacks, 10 misses\n" in out


def test_fallbacks_are_reported_by_cause(project):
    tests = "def test_it(items):\n    items.invalidate(['k1'])\n    assert items['k1']['n'] == 1\n    items['k2']\n"
    project.write(tests=tests)
    assert "\n  1 hit, 1 fallback (1 invalidated), 0 misses\n" in project.run("-n0", "--mmcache-report")


def test_a_cache_that_was_only_opened_has_no_rate(project):
    project.write(tests="def test_it(items): pass\n")
    assert ", no reads\n" in project.run("-n0")


@pytest.mark.parametrize(("workers", "policy"), [("-n0", "none"), ("-n0", "all"), ("-n2", "failed")])
def test_the_line_is_there_under_every_retention_policy(project, workers, policy):
    project.write(tests=READS, ini=f"tmp_path_retention_policy = {policy}")
    out = project.run(workers)
    assert "mmcache: items: 1 build in" in out
    assert "hit rate 90.0%" in out


def test_the_line_is_there_when_a_test_removed_the_file(project):
    project.write(tests="import os\ndef test_it(items):\n    items['k1']\n    os.unlink(items.path)\n")
    assert "mmcache: items: 1 build in" in project.run("-n0")


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["-1", "nan", "long"])
def test_a_time_to_wait_that_is_none_is_refused(project, text):
    project.write(ini=f"mmcache_wait = {text}", tests=READS)
    assert f"mmcache_wait must be a number of seconds, not '{text}'" in project.run("-n0", code=1)


def test_a_time_to_wait_may_have_no_end(project):
    project.write(ini="mmcache_wait = inf", how="note('building')\n    time.sleep(0.5)", tests=READS)
    process = project.start("-n2")
    until("it builds", lambda: project.noted("building"))
    assert "10 passed" in project.end(process)
    project.has_one_build()


# --- types ------------------------------------------------------------------------------------------------------------

TYPED = """
from collections.abc import Callable
from pathlib import Path

import pytest

import mmcache
from mmcache.integrations.pytest_plugin import CacheFactory, Isolate


@pytest.fixture(scope="session")
def items(mmcache_factory: CacheFactory) -> mmcache.Cache:
    schema = mmcache.Schema("items")
    cache = mmcache_factory("items", build=lambda: [{"id": "a"}], schema=schema, scope="persistent", key="1", ttl=3.0)
    reveal_type(cache)
    return cache


def pytest_mmcache_prebuild(factory: CacheFactory) -> None:
    factory("items", source=mmcache.SQLiteSource("items.db", mmcache.Schema("items")))


def test_it(items: mmcache.Cache, mmcache_dir: Path, mmcache_isolated: Isolate) -> None:
    assert mmcache_isolated(items)["a"] == {"id": "a"}
    items_of_a_misspelt_scope: Callable[[CacheFactory], mmcache.Cache]
    items_of_a_misspelt_scope = lambda factory: factory("x", build=list, scope="session")
"""


@pytest.mark.integration
def test_a_fixture_is_typed_under_mypy_strict(tmp_path):
    pytest.importorskip("mypy", reason="the lint group is not installed")
    (tmp_path / "conftest.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "conftest.py"]
    environment = {"PATH": "/usr/bin:/bin", "MYPYPATH": str(ROOT), "HOME": str(tmp_path)}
    out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False).stdout
    errors = [line for line in out.splitlines() if line.startswith("conftest.py") and "error:" in line]
    assert 'Revealed type is "mmcache.cache.Cache[mmcache.storage.record.Record]"' in out
    assert len(errors) == 1, out
    assert 'No overload variant of "__call__" of "CacheFactory" matches' in errors[0]
