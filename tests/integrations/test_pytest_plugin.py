"""The plugin in real runs of pytest: in each, one build and one generation for all workers, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes.crew import until

pytest.importorskip("xdist", reason="pytest-xdist is not installed")

ROOT = Path(__file__).parent.parent.parent

CONFTEST = """
import json, os, time
import pytest
from mmcache import Schema

HERE = os.path.dirname(__file__)


def note(what, text=""):
    with open(os.path.join(HERE, what), "a") as file:
        file.write(f"{os.getpid()} {text}\\n")


def build():
    note("builds")
    time.sleep(0.2)
    HOW
    return ({"id": f"k{i}", "n": i, "v": [float(i), 1.0]} for i in range(100))


@pytest.fixture(scope="session")
def items(mmcache_factory):
    cache = mmcache_factory("items", build=build, schema=Schema("items", index=("n",), embedding="v")OPTIONS)
    note("generations", json.dumps([cache.generation, cache.snapshot.header.build_id.hex()]))
    return cache
"""

TESTS = """
import pytest

@pytest.mark.parametrize("i", range(24))
def test_reads(items, i):
    assert items[f"k{i}"]["n"] == i
    assert items.embedding(f"k{i}")[0] == i
"""


class Project:
    """A directory of tests, and how they ended."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.scratch = home.parent / "scratch"
        self.scratch.mkdir()
        self.write()

    def write(self, how: str = "pass", options: str = "", tests: str = TESTS, ini: str = "") -> None:
        conftest = CONFTEST.replace("HOW", how).replace("OPTIONS", f", {options}" if options else "")
        for name, text in (("conftest.py", conftest), ("test_it.py", tests), ("pytest.ini", f"[pytest]\n{ini}\n")):
            (self.home / name).write_text(text)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest", "-q", *arguments]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV", "MMCACHE"))}
        settings = {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.scratch), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen(
            command,
            cwd=self.home,
            env=inherited | settings | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        process = self.start(*arguments, **environment)
        out, _ = process.communicate(timeout=100)
        assert process.returncode == code, out
        self.nothing_is_left()
        return out

    def nothing_is_left(self) -> None:
        assert not [path for path in self.scratch.rglob("*.mmc*") if "persistent" not in str(path)]

    def noted(self, what: str) -> list[str]:
        path = self.home / what
        return path.read_text().splitlines() if path.exists() else []

    @property
    def builds(self) -> int:
        return len(self.noted("builds"))

    @property
    def generations(self) -> set[str]:
        return {line.partition(" ")[2] for line in self.noted("generations")}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project")


RUNS = {
    "no xdist": ["-p", "no:xdist"],
    "n0": ["-n0"],
    "n1": ["-n1"],
    "n2": ["-n2"],
    "n8": ["-n8"],
    "loadfile": ["-n2", "--dist", "loadfile"],
    "loadscope": ["-n2", "--dist", "loadscope"],
    "loadgroup": ["-n2", "--dist", "loadgroup"],
    "worksteal": ["-n2", "--dist", "worksteal"],
    "each": ["-n2", "--dist", "each"],
    "chdir": ["-d", "--tx", "2*popen//chdir=elsewhere"],
    "no cache": ["-n2", "-p", "no:cacheprovider"],
    "warnings": ["-n2", "-W", "error"],
    "restarts": ["-n2", "--max-worker-restart=0"],
    "stop": ["-n2", "-x"],
    "basetemp": ["-n2", "--basetemp=base"],
    "basetemp, alone": ["-n0", "--basetemp=base"],
}


@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_one_build_and_one_generation_for_all(project, arguments):
    (project.home / "elsewhere").mkdir()
    out = project.run(*arguments)
    assert "passed" in out
    assert project.builds == 1
    assert len(project.generations) == 1
    assert "mmcache: items: 1 build in" in out
    assert not list(project.home.rglob("*.mmc*"))


def test_the_report_tells_who_built_and_who_opened(project):
    out = project.run("-n2", "--mmcache-report")
    assert "2 opens" in out
    assert "built by gw" in out
    assert "opened by gw0-" in out


def test_a_worker_that_is_killed_in_a_test_changes_nothing(project):
    killer = "\n\ndef test_killed(items):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    project.write(tests=TESTS + killer)
    out = project.run("-n2", code=1)
    assert "24 passed" in out
    assert project.builds == 1
    assert len(project.generations) == 1


def test_when_the_worker_that_builds_is_killed_another_builds(project):
    first = "len(open(os.path.join(HERE, 'builds')).readlines()) == 1"
    project.write(how=f"if {first}: os.kill(os.getpid(), 9)")
    out = project.run("-n2", code=1)  # pytest counts the test that the worker was at
    assert "23 passed" in out
    assert project.builds == 2
    assert len(project.generations) == 1


def test_a_build_that_raises_raises_the_same_in_every_worker_and_is_tried_once(project):
    project.write(how="raise RuntimeError('the bank is closed')")
    out = project.run("-n4", code=1)
    assert project.builds == 1
    assert "24 errors" in out
    assert out.count("SourceError: RuntimeError: the bank is closed") >= 4


def test_a_build_that_hangs_is_named_after_the_time_to_wait(project):
    project.write(how="time.sleep(20)", ini="mmcache_wait = 1")
    begun = time.monotonic()
    process = project.start("-n2", "-x")
    try:
        out = ""
        assert process.stdout is not None
        for line in process.stdout:
            out += line
            if "waited 1 s" in line:
                break
        assert "waited 1 s: another build holds" in out
        assert time.monotonic() - begun < 15
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert project.builds == 1


def test_an_interrupt_during_a_build_leaves_nothing(project):
    project.write(how="time.sleep(60)")
    process = project.start("-n2")
    until("it builds", lambda: project.builds)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    project.nothing_is_left()


def test_what_one_worker_invalidates_another_sees(project):
    project.write(
        tests="""
import os, time
import pytest

@pytest.mark.xdist_group("one")
def test_one(items, mmcache_dir):
    items.invalidate(["k1"])
    (mmcache_dir / "said").write_text(str(os.getpid()))

@pytest.mark.xdist_group("two")
def test_two(items, mmcache_dir):
    deadline = time.monotonic() + 30
    while not (mmcache_dir / "said").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (mmcache_dir / "said").read_text() != str(os.getpid())
    assert items["k1"]["n"] == 1
    assert items.stats().fallbacks == {"invalidated": 1}
"""
    )
    assert "2 passed" in project.run("-n2", "--dist", "loadgroup")


def test_an_isolated_cache_may_do_what_it_wants(project):
    project.write(
        tests="""
def test_isolated(items, mmcache_isolated):
    mine, other = mmcache_isolated(items), mmcache_isolated(items)
    assert mine.generation == items.generation
    import os
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


def test_a_persistent_cache_is_found_by_the_next_run_and_by_one_beside_it(project):
    project.write(options='scope="persistent", key="one"')
    beside = project.start("-n2")
    out = project.run("-n2")
    beside.communicate(timeout=100)
    assert beside.returncode == 0
    assert project.builds == 1
    assert "0 builds, made by an earlier run" in project.run("-n0")
    assert project.builds == 1
    assert "passed" in out
    project.write(options='scope="persistent", key="two"')
    project.run("-n2")
    assert project.builds == 2
    assert "1 build" in project.run("-n2", "-p", "no:cacheprovider")
    assert project.builds == 3


def test_a_persistent_cache_whose_build_failed_is_tried_again_by_the_next_run(project):
    project.write(how="raise RuntimeError('closed')", options='scope="persistent", key="one"')
    project.run("-n2", code=1)
    project.write(options='scope="persistent", key="one"')
    project.run("-n2")
    assert project.builds == 2


def test_the_controller_may_build_before_any_worker_starts(project):
    text = (project.home / "conftest.py").read_text()
    (project.home / "conftest.py").write_text(
        text
        + """

def pytest_mmcache_prebuild(factory):
    factory("items", build=build, schema=Schema("items", index=("n",), embedding="v"))
    note("prebuilt")
"""
    )
    project.run("-n2")
    assert project.builds == 1
    assert project.noted("prebuilt")[0].split()[0] == project.noted("builds")[0].split()[0]
    assert len(project.noted("prebuilt")) == 1


def test_bad_arguments_are_told(project):
    project.write(
        tests="""
import pytest
from mmcache import Schema

def test_them(mmcache_factory):
    with pytest.raises(TypeError, match="build="):
        mmcache_factory("x")
    with pytest.raises(ValueError, match="name must be"):
        mmcache_factory("../x", build=list, schema=Schema("x"))
    with pytest.raises(ValueError, match="scope must be"):
        mmcache_factory("x", build=list, schema=Schema("x"), scope="session")
    with pytest.raises(ValueError, match="needs key="):
        mmcache_factory("x", build=list, schema=Schema("x"), scope="persistent")
"""
    )
    project.run("-n0")


def test_a_run_that_does_not_use_it_pays_nothing(project):
    """Neither numpy nor filelock nor msgpack is imported, and no file is made."""
    script = (
        "import sys, mmcache.integrations.pytest_plugin\n"
        "print(json.dumps([n for n in ('numpy', 'filelock', 'msgpack', 'xxhash', 'sqlite3') if n in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import json\n{script}"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == []
    project.write(tests="def test_nothing():\n    pass\n")
    out = project.run("-n2")
    assert "mmcache:" not in out
    assert not list(project.scratch.rglob("mmcache*"))
