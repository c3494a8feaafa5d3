"""The plugin in real runs of pytest: in each, one build and one generation for all workers, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes import bank, recipe
from tests.support.pytest_runs import ROOT, TESTS, Project, respect_modes
from tests.support.waits import until

pytest.importorskip("xdist", reason="pytest-xdist is not installed")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


RUNS = {
    "no xdist": (1, "-p", "no:xdist"),
    "n0": (1, "-n0"),
    "n1": (1, "-n1"),
    "n2": (2, "-n2"),
    "n8": (8, "-n8"),
    "loadfile": (2, "-n2", "--dist", "loadfile"),
    "loadscope": (2, "-n2", "--dist", "loadscope"),
    "loadgroup": (2, "-n2", "--dist", "loadgroup"),
    "worksteal": (2, "-n2", "--dist", "worksteal"),
    "each": (2, "-n2", "--dist", "each"),
    "no cache": (2, "-n2", "-p", "no:cacheprovider"),
    "warnings": (2, "-n2", "-W", "error"),
    "basetemp": (2, "-n2", "--basetemp=base"),
    "basetemp, alone": (1, "-n0", "--basetemp=base"),
}


SAMPLE = "no xdist", "n8", "each"
"""What a run that is not nightly tries."""


@pytest.mark.parametrize(
    ("workers", "arguments"),
    [
        pytest.param(n, a, id=name, marks=[] if name in SAMPLE else pytest.mark.nightly)
        for name, (n, *a) in RUNS.items()
    ],
)
def test_one_build_and_one_generation_for_all(project, workers, arguments):
    out = project.run(*arguments)
    assert f"{48 if 'each' in arguments else 24} passed" in out
    project.has_one_build()
    opened = re.search(r"mmcache: items: 1 build in .*, (\d+) opens?, 21.6 kB shared, (.*) not duplicated", out)
    assert opened is not None, out
    assert int(opened[1]) == len(project.noted("generations")) == workers
    assert opened[2] == {1: "0 bytes", 2: "21.6 kB", 8: "151 kB"}[workers]
    assert not list(project.home.rglob("*.mmc*"))


@pytest.mark.nightly
def test_workers_in_directories_of_their_own_share_it_too(project):
    """An option of xdist that needs the files sent to each worker."""
    out = project.run("-d", "--tx", "2*popen//chdir=elsewhere", "--rsyncdir", str(project.home), str(project.home))
    assert "24 passed" in out
    project.has_one_build()


def test_the_report_tells_who_built_and_who_opened(project):
    out = project.run("-n2", "--mmcache-report")
    assert re.search(r"\n  built by gw[01]-\d+ in ", out)
    assert re.search(r"\n  opened by gw0-\d+, gw1-\d+\n", out)


# --- bad days ---------------------------------------------------------------------------------------------------------


KILL = """
import os, time
import pytest
from conftest import noted

def test_killed(items):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.integration
def test_a_worker_that_is_killed_in_a_test_is_replaced_by_one_that_opens_the_same(project):
    project.write(
        tests=KILL
        + """
@pytest.mark.parametrize("i", range(8))
def test_the_others_wait_for_the_third(items, i):
    while len(noted("generations")) < 3:
        time.sleep(0.01)
    assert items["k1"]["n"] == 1
"""
    )
    out = project.run("-n2", code=1)
    assert "1 failed, 8 passed" in out
    assert "3 opens" in out
    project.has_one_build()


def test_a_worker_that_is_killed_and_not_replaced_costs_the_others_nothing(project):
    project.write(tests=f"{KILL}\n{TESTS.replace('GROUP', 'one').replace('COUNT', '24')}")
    out = project.run("-n2", "--max-worker-restart=0", code=1)
    assert re.search(r"1 failed, \d+ passed", out)  # xdist does not give its tests to another
    assert "2 opens" in out
    project.has_one_build()


@pytest.mark.integration
def test_when_the_worker_that_builds_is_killed_another_builds(project):
    project.write(how="if len(noted('builds')) == 1: os.kill(os.getpid(), 9)")
    out = project.run("-n2", code=1)
    assert "1 failed, 23 passed" in out  # pytest blames the test that the worker was at
    assert "1 build in" in out
    assert project.builds == 2
    assert len(project.generations) == 1


@pytest.mark.integration
def test_stopping_at_the_first_failure_leaves_nothing(project):
    with (project.home / "test_one.py").open("a") as file:
        file.write("\ndef test_fails(items):\n    assert 'nothing' in items\n")
    assert "1 failed" in project.run("-n2", "-x", code=2)
    project.has_one_build()


def test_a_build_that_raises_raises_the_same_in_every_worker_and_is_tried_once(project):
    project.write(how="raise RuntimeError('the bank is closed')")
    out = project.run("-n4", code=1)
    assert project.builds == 1
    assert len(project.noted("errors")) == 4
    assert "24 errors" in out
    assert (
        len(re.findall(r"^E +mmcache.errors.SourceError: .*RuntimeError: the bank is closed", out, re.MULTILINE)) == 24
    )


def test_a_record_that_cannot_be_stored_is_named_in_every_worker(project):
    project.write(how="return [{'id': 'good', 'n': 1, 'v': None}, {'id': 'bad', 'n': object()}]")
    out = project.run("-n2", code=1)
    assert project.builds == 1
    assert len(re.findall(r"^E +mmcache.errors.BuildError: .*'bad'", out, re.MULTILINE)) == 24


@pytest.mark.integration
def test_a_build_that_hangs_is_named_after_the_time_to_wait_and_an_interrupt_ends_it(project):
    project.write(how="time.sleep(60)", ini="mmcache_wait = 0.5")
    process = project.start("-n2")
    until("it builds", lambda: project.builds)
    until("the other is told", lambda: project.noted("errors"))
    process.send_signal(signal.SIGINT)
    project.end(process, code=2)
    builder = project.noted("builds")[0].split()[0]
    assert re.search(rf"waited 0.5 s: .*\b{builder}\b", project.noted("errors")[0])
    assert project.builds == 1


@pytest.mark.integration
def test_an_interrupt_during_a_build_leaves_nothing(project):
    project.write(how="time.sleep(60)")
    process = project.start("-n2")
    until("it builds", lambda: project.builds)
    process.send_signal(signal.SIGINT)
    project.end(process, code=2)
    assert project.builds <= 2  # the other may take over when xdist ends the one that builds first


@pytest.mark.integration
def test_coverage_may_run_too(project):
    pytest.importorskip("pytest_cov", reason="pytest-cov is not installed")
    out = project.run("-n2", "--cov=conftest", "--cov-report=term", "-W", "error")
    assert "24 passed" in out
    assert re.search(r"^conftest.py +\d+ +0 +100%", out, re.MULTILINE), out  # the builder, too
    project.has_one_build()


@pytest.mark.integration
def test_a_directory_that_may_only_be_read_is_no_obstacle(project):
    """Persistent caches are of the run then."""
    project.write(options='scope="persistent", key="one"')
    project.home.chmod(0o555)
    try:
        out = project.run("-n2", preexec_fn=respect_modes)
        assert "24 passed" in out
        assert "could not create cache path" in out  # by pytest itself: nothing can be written there
        project.has_one_build()
    finally:
        project.home.chmod(0o755)


# --- what tests do with it --------------------------------------------------------------------------------------------


def test_what_one_worker_invalidates_another_sees(project):
    project.write(
        tests="""
import os, time
import pytest

@pytest.mark.xdist_group("one")
def test_one(items, mmcache_dir):
    assert items["k1"]["n"] == 1
    (mmcache_dir / "read").touch()
    await_(mmcache_dir / "said")
    assert items["k1"]["n"] == 1
    assert items.stats().fallbacks == {"invalidated": 1}

@pytest.mark.xdist_group("two")
def test_two(items, mmcache_dir):
    await_(mmcache_dir / "read")
    items.invalidate(["k1"])
    (mmcache_dir / "said").touch()

def await_(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""
    )
    assert "2 passed" in project.run("-n2", "--dist", "loadgroup")
    assert project.builds == 2  # the second is to answer for what was invalidated


def test_an_isolated_cache_may_do_what_it_wants(project):
    project.write(
        tests="""
import os

def test_isolated(items, mmcache_isolated):
    mine, other = mmcache_isolated(items), mmcache_isolated(items)
    assert mine.generation == items.generation
    assert os.stat(mine.path).st_ino == os.stat(items.path).st_ino
    mine.invalidate(hard=True)
    assert mine["k1"]["n"] == 1
    assert mine.stats().state == "invalidated"
    mine.rebuild()
    assert mine.stats().state == "fresh"
    assert items.stats().state == other.stats().state == "fresh"
    assert items["k1"]["n"] == 1
    assert not items.stats().fallbacks
"""
    )
    project.run("-n0")


@pytest.mark.integration
def test_several_caches_of_any_source(project):
    bank(project.home)
    project.write(
        tests="""
import pytest
from mmcache import Schema, SQLiteSource

@pytest.fixture(scope="session")
def patterns(mmcache_factory):
    schema = Schema("patterns", index=("domain",), embedding="embedding", dim=768)
    return mmcache_factory("patterns", source=SQLiteSource("patterns.db", schema))

@pytest.fixture(scope="session")
def both(mmcache_factory):
    return mmcache_factory(
        "both",
        build=lambda: {"a": ({"id": c} for c in "xyz"), "b": [{"id": "y"}]},
        schema=[Schema("a"), Schema("b")],
    )

@pytest.mark.parametrize("i", range(6))
def test_them(patterns, both, items, i):
    assert patterns[f"pattern-{i}"].embedding.shape == (768,)
    assert both.collection("b")["y"] == {"id": "y"}
    assert both["x"] == {"id": "x"}
    if i == 5:
        both.invalidate()
        assert both["z"] == {"id": "z"}
    assert items["k1"]["n"] == 1
    assert "nothing" not in patterns
"""
    )
    out = project.run("-n2")
    assert [line.partition(",")[0][:24] for line in out.splitlines() if line.startswith("mmcache:")] == [
        "mmcache: both: 1 build i",
        "mmcache: items: 1 build ",
        "mmcache: patterns: 1 bui",
    ]


@pytest.mark.integration
def test_the_controller_may_build_before_any_worker_starts(project):
    with (project.home / "conftest.py").open("a") as file:
        file.write("""

def pytest_mmcache_prebuild(factory):
    factory("items", build=build, schema=SCHEMA)
    note("prebuilt")
""")
    out = project.run("-n2", "--mmcache-report")
    project.has_one_build()
    assert "built by main-" in out
    assert [line.split()[0] for line in project.noted("prebuilt")] == [project.noted("builds")[0].split()[0]]
    text = (project.home / "conftest.py").read_text()
    (project.home / "conftest.py").write_text(text.replace("pass\n", "raise RuntimeError('closed')\n"))
    out = project.run("-n2", code=1)
    assert project.builds == 2
    assert "24 errors" in out
    assert "RuntimeError: closed" in out


def test_bad_rows_are_left_out_where_the_factory_is_told_so(project):
    project.write(
        tests="""
from mmcache import Schema

def test_them(mmcache_factory):
    rows = [{"id": "a"}, {"id": "bad", "n": 2**70}, {"id": "b"}, {"id": "b", "n": 1}]
    rules = {"on_invalid": "skip", "on_duplicate": "last"}
    cache = mmcache_factory("x", build=lambda: list(rows), schema=Schema("t"), **rules)
    assert list(cache) == ["a", "b"]
    assert cache["b"]["n"] == 1
    assert cache["bad"]["n"] == 2**70
    assert cache.status().left_out["t"].invalid == 1
"""
    )
    assert "1 passed" in project.run("-n0")


def test_bad_arguments_are_told(project):
    project.write(
        tests="""
import pytest
from mmcache import IterableSource, Schema

def test_them(items, mmcache_factory):
    with pytest.raises(TypeError, match="build="):
        mmcache_factory("x")
    for name in ("../x", "..", ".x", "", "a/b"):
        with pytest.raises(ValueError, match="name must be"):
            mmcache_factory(name, build=list, schema=Schema("x"))
    with pytest.raises(ValueError, match="scope must be"):
        mmcache_factory("x", build=list, schema=Schema("x"), scope="session")
    for source in ({"build": list, "schema": Schema("x")}, {"source": IterableSource([], Schema("x"))}):
        with pytest.raises(ValueError, match="needs key="):
            mmcache_factory("x", scope="persistent", **source)
    with pytest.raises(ValueError, match="'items' with other schemas"):
        mmcache_factory("items", build=list, schema=Schema("items"))
"""
    )
    project.run("-n0")
    project.write(ini="mmcache_wait = long")
    assert "mmcache_wait must be a number of seconds, not 'long'" in project.run("-n0", code=1)


# --- persistent caches ------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_persistent_cache_is_found_by_the_next_run_and_by_one_beside_it(project):
    project.write(options='scope="persistent", key="one"')
    runs = [project.start("-n2"), project.start("-n2")]
    outs = [run.communicate(timeout=100)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outs
    project.has_one_build()
    assert "0 builds, found from an earlier run" in project.run("-n0")
    project.has_one_build()
    project.write(options='scope="persistent", key="two"')
    assert "1 build in" in project.run("-n2")
    assert "1 build in" in project.run("-n2", "-p", "no:cacheprovider")
    assert project.builds == 3


@pytest.mark.integration
def test_a_persistent_cache_of_a_database_is_built_again_when_that_changes(project):
    bank(project.home)
    project.write(
        tests="""
import sqlite3
import pytest
from mmcache import Schema, SQLiteSource

@pytest.mark.parametrize("i", range(4))
def test_it(mmcache_factory, i):
    source = SQLiteSource("patterns.db", Schema("patterns", embedding="embedding", dim=768))
    cache = mmcache_factory("patterns", source=source, scope="persistent")
    with sqlite3.connect("patterns.db") as db:
        assert len(cache) == db.execute("SELECT count(*) FROM patterns").fetchone()[0]
"""
    )

    def change():
        with contextlib.closing(sqlite3.connect(project.home / "patterns.db")) as db, db:
            db.execute("DELETE FROM patterns WHERE rowid = (SELECT max(rowid) FROM patterns)")

    change()
    assert "1 build in" in project.run("-n2")
    assert "0 builds" in project.run("-n0")
    change()
    assert "1 build in" in project.run("-n0")


@pytest.mark.integration
def test_of_persistent_caches_the_last_are_kept(project):
    """Three, and those of the last hour."""
    kept = project.home / ".pytest_cache" / "d" / "mmcache" / "items"
    tests = "import conftest\ndef test_many(mmcache_factory):\n    for key in 'abcde':\n        mmcache_factory("
    tests += "'items', build=conftest.build, schema=conftest.SCHEMA, scope='persistent', key=key)\n"
    project.write(how="pass", tests=tests)
    project.run("-n0")
    assert len(list(kept.iterdir())) == 5
    for i, path in enumerate(sorted(kept.iterdir())):
        os.utime(path, (i, i))
    oldest = sorted(kept.iterdir())[:3]
    project.write(tests=tests.replace("abcde", "f"))
    project.run("-n0")
    assert len(list(kept.iterdir())) == 3
    assert not any(path.exists() for path in oldest)


@pytest.mark.integration
def test_a_persistent_cache_whose_build_failed_is_tried_again_by_the_next_run(project):
    options = 'scope="persistent", key="one"'
    project.write(how="raise RuntimeError('closed')", options=options)
    project.run("-n2", code=1)
    project.write(options=options)
    project.run("-n2")
    assert project.builds == 2


@pytest.mark.nightly
def test_a_persistent_cache_that_was_damaged_is_built_again(project):
    project.write(options='scope="persistent", key="one"')
    project.run("-n2")
    (path,) = project.home.rglob("items.mmc")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert "1 build in" in project.run("-n2")
    assert project.builds == 2


# --- cost -------------------------------------------------------------------------------------------------------------


def test_a_run_that_does_not_use_it_makes_no_file_and_imports_nothing(project):
    """Neither numpy nor filelock nor msgpack; beside bare pytest it costs some milliseconds."""
    project.write(tests="def test_nothing():\n    pass\n")
    (project.home / "conftest.py").write_text("""
import sys

def pytest_unconfigure(config):
    assert "mmcache.integrations.pytest_plugin" in sys.modules
    print([name for name in ("numpy", "filelock", "msgpack", "xxhash", "mmcache.cache") if name in sys.modules])
""")
    out = project.run("-n2", "-s")
    assert out.splitlines()[-1] == "[]"
    assert "mmcache:" not in out
    assert not list(project.scratch.rglob("mmcache*"))

    code = "import pytest, time; a = time.perf_counter(); import mmcache.integrations.pytest_plugin; "
    code += "b = time.perf_counter(); import asyncio; print(b - a, time.perf_counter() - b)"
    command = [sys.executable, "-c", code]
    compiled = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(project.scratch)}
    times = [
        [
            float(seconds)
            for seconds in subprocess.run(
                command, check=True, capture_output=True, text=True, env=compiled
            ).stdout.split()
        ]
        for _ in range(6)
    ]
    plugin, other = (min(column) for column in zip(*times, strict=True))
    print(f"importing the plugin: {1000 * plugin:.2f} ms; asyncio: {1000 * other:.2f} ms")
    assert plugin < other / 2


@pytest.mark.integration
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory is read from /proc")
def test_eight_workers_have_a_large_cache_once(project):
    """300 MB. They may have the file and, each, 8 MB beyond what an empty worker has that imported numpy."""
    tests = """
import os, time
from pathlib import Path
import pytest

NOTES = Path(os.environ["NOTES"])

@pytest.mark.parametrize("i", range(8))
def test_all_at_once(request, i):
    if os.environ["CACHE"] == "cache":
        cache = request.getfixturevalue("vectors")
        assert cache.embeddings.sum() != 0.5
        assert cache["k1"].embedding is not None
    (NOTES / f"ready-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(NOTES.glob("ready-*"))) < 8 or not (NOTES / "measured").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""
    conftest = """
import os
import numpy as np
import pytest
from mmcache import Schema

N = 102_400

class Records:
    def __call__(self):
        rng = np.random.default_rng(0)
        for begin in range(0, N, 1024):
            block = rng.standard_normal((1024, 768), dtype="f4")
            for i, row in enumerate(block, begin):
                yield {"id": f"k{i}", "v": row}

@pytest.fixture(scope="session")
def vectors(mmcache_factory):
    return mmcache_factory("vectors", build=Records(), schema=Schema("vectors", embedding="v", dim=768))

def pytest_mmcache_prebuild(factory):
    if os.environ["CACHE"] == "cache":
        factory("vectors", build=Records(), schema=Schema("vectors", embedding="v", dim=768))
"""
    project.write(tests=tests)
    (project.home / "conftest.py").write_text(conftest)
    pss: dict[str, list[int]] = {}
    out, size = "", 0
    for cache in ("empty", "cache"):
        os.environ["CACHE"] = cache
        process = project.start("-n8")
        try:
            until("all are ready", lambda: len(list(project.notes.glob("ready-*"))) == 8, timeout=60)
            pss[cache] = [pss_of(int(path.name[6:])) for path in project.notes.glob("ready-*")]
            size = sum(path.stat().st_size for path in project.scratch.rglob("*.mmc"))
        finally:
            (project.notes / "measured").touch()
            out = project.end(process)
            del os.environ["CACHE"]
        for path in project.notes.iterdir():
            path.unlink()
    assert "1 build in" in out
    empty, total = (sum(each) for each in pss.values())
    print(f"file {size / 1e6:.1f} MB; PSS of 8 workers: {empty / 1e6:.1f} MB, with the cache {total / 1e6:.1f} MB,")
    print(f"beyond the file {(total - empty - size) / 8e6:.2f} MB each; {out.strip().splitlines()[-2]}")
    assert size > 300e6
    assert total > size
    assert total <= size + empty + 8 * 8e6


def pss_of(pid: int) -> int:
    match = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_the_recipe(project):
    bank(project.home)
    project.write()
    (project.home / "conftest.py").write_text(recipe("pytest and pytest-xdist"))
    for name in ("one", "two"):
        (project.home / f"test_{name}.py").write_text("def test_it(patterns):\n    assert 'pattern-7' in patterns\n")
    out = project.run("-n2", "--dist", "loadfile")
    assert "2 passed" in out
    assert "1 build in" in out


@pytest.mark.integration
def test_the_page_about_it(project):
    """Its fixture, its hook, and its fixture with types."""
    page = (ROOT / "docs" / "pytest.md").read_text()
    fixture, typed, hook = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (project.home / "conftest.py").write_text(fixture)
    tests = (
        "import pytest\n@pytest.mark.parametrize('i', range(8))\ndef test_it(items, i):\n    assert items['item-1']\n"
    )
    (project.home / "test_one.py").write_text(tests)
    (project.home / "test_two.py").write_text("")
    out = project.run("-n2", "--mmcache-report")
    assert "mmcache: items: 1 build in" in out
    assert "built by gw" in out
    (project.home / "conftest.py").write_text(fixture + hook)
    assert "built by main" in project.run("-n2", "--mmcache-report")
    (project.home / "conftest.py").write_text(fixture + typed)
    project.run("-n0")
