"""Runs in which the plugin has little to do: those that do not use it, and those in which no test runs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mmcache.integrations import pytest_plugin
from tests.support.pytest_runs import ROOT, Project

pytest.importorskip("xdist", reason="pytest-xdist is not installed")

PREBUILD = """

def pytest_mmcache_prebuild(factory):
    factory("items", build=build, schema=SCHEMA)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def prebuilt(project: Project, tests: str) -> None:
    project.write(tests=tests)
    with (project.home / "conftest.py").open("a") as file:
        file.write(PREBUILD)


# --- a run that does not use it ---------------------------------------------------------------------------------------

UNUSED = {
    "workers, without tmpdir": ("-n2", "-p", "no:tmpdir"),
    "workers, strictly": ("-n2", "-W", "error", "--strict-config", "--strict-markers", "-p", "no:cacheprovider"),
    "alone, without what it builds on": ("-n0", "-p", "no:tmpdir", "-p", "no:cacheprovider"),
    "the report is asked for": ("-n1", "--mmcache-report"),
}


@pytest.mark.parametrize("arguments", UNUSED.values(), ids=UNUSED)
def test_a_run_that_does_not_use_it_is_left_alone(project, arguments):
    project.write(tests="def test_a(): pass\ndef test_b(): pass\n")
    (project.home / "conftest.py").unlink()
    out = project.run(*arguments)
    assert "2 passed" in out
    assert "mmcache" not in out
    assert not list(project.scratch.rglob("*mmcache*"))


def test_the_plugin_reads_no_private_attribute_of_another():
    tree = ast.parse(Path(pytest_plugin.__file__).read_text())
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [name for name in names if name.startswith("_")]


def installed(place: Path, *packages: str) -> Path:
    """The interpreter of a new virtual environment; skips where a package cannot be had."""
    python = place / "bin" / "python"
    commands = [sys.executable, "-m", "venv", str(place)], [str(python), "-m", "pip", "install", "-q", *packages]
    for command in commands:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"cannot be installed here: {(made.stderr or made.stdout).strip()[-300:]}")
    return python


def outcomes(python: Path, suite: Path, report: Path, *only: str) -> dict[str, str]:
    """Test -> how it ended. only: tests, by name; by default all."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV", "MMCACHE", "PYTHON"))}
    scratch = report.with_suffix(".tmp")  # of its own: pytest removes the temporary directories of other runs
    scratch.mkdir()
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    names = ["-k", " or ".join(sorted({name.partition("[")[0].rpartition(".")[2] for name in only}))] if only else []
    ran = subprocess.run(
        [*command, *names],
        cwd=suite,
        env=inherited | {"TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), ran.stdout[-2000:] + ran.stderr[-2000:]
    return {
        f"{case.get('classname')}.{case.get('name')}": next(
            (child.tag for child in case if child.tag in ("error", "failure", "skipped")), "passed"
        )
        for case in ET.parse(report).iter("testcase")
    }


@pytest.mark.integration
@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_suite_of_xdist_ends_the_same_with_mmcache_installed(tmp_path):
    """A test that fails beside busy processes may end otherwise once: those that differ are run again."""
    version = pytest.importorskip("xdist").__version__
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "pytest-xdist"]
    command += ["-d", str(tmp_path), f"pytest-xdist=={version}"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False)
    if loaded.returncode:
        pytest.skip(f"the source distribution cannot be had here: {loaded.stderr.strip()[-300:]}")
    (archive,) = tmp_path.glob("*.tar.gz")
    subprocess.run(["tar", "-xzf", archive, "-C", tmp_path], check=True)
    suite = tmp_path / f"pytest_xdist-{version}"

    common = (f"pytest=={pytest.__version__}", "filelock", str(archive))
    without = installed(tmp_path / "without", *common)
    with_us = installed(tmp_path / "with", *common, str(ROOT))
    check = "import importlib.metadata as m; print([e.name for e in m.entry_points(group='pytest11')])"
    plugins = [
        subprocess.run([python, "-c", check], check=True, capture_output=True, text=True).stdout
        for python in (without, with_us)
    ]
    assert ["mmcache" in each for each in plugins] == [False, True]

    expected = outcomes(without, suite, tmp_path / "without.xml")
    found = outcomes(with_us, suite, tmp_path / "with.xml")
    print(f"{len(expected)} tests, {sum(how == 'passed' for how in expected.values())} of them pass")
    assert sum(how == "passed" for how in expected.values()) > 100
    assert expected.keys() == found.keys()
    differing = [name for name in expected if expected[name] != found[name]]
    for attempt in range(3):
        if not differing:
            break
        expected |= outcomes(without, suite, tmp_path / f"without-{attempt}.xml", *differing)
        found |= outcomes(with_us, suite, tmp_path / f"with-{attempt}.xml", *differing)
        differing = [name for name in differing if expected[name] != found[name]]
    assert not {name: (expected[name], found[name]) for name in differing}


# --- a run in which no test runs --------------------------------------------------------------------------------------

NOT_RUN = {
    "collect-only": ("--collect-only",),
    "collect-only, workers": ("--co", "-n2"),
    "fixtures": ("--fixtures", "-n2"),
    "fixtures-per-test": ("--fixtures-per-test",),
    "setup-plan": ("--setup-plan",),
    "setup-plan, workers": ("--setupplan", "-n2"),
    "cache-show": ("--cache-show",),
    "markers": ("--markers",),
    "help": ("--help",),
    "version": ("--version",),
    "nothing selected": ("-k", "nothing"),
    "nothing collected": ("--ignore-glob=test_*",),
    "an error in a test file": ("other.py", "test_one.py"),
}


@pytest.mark.parametrize("arguments", NOT_RUN.values(), ids=NOT_RUN)
def test_nothing_is_built_where_no_test_runs(project, arguments):
    prebuilt(project, "def test_it(items): pass\n")
    (project.home / "other.py").write_text("raise RuntimeError\n")
    process = project.start(*arguments)
    out = project.end(process, code=None)
    assert process.returncode in (0, 2, 5), out
    assert not project.builds
    assert not list(project.scratch.rglob("*mmcache*"))


@pytest.mark.parametrize("arguments", [("--setup-only", "-n0"), ("--setup-show", "-n2"), ("--lf", "-n0")])
def test_what_runs_fixtures_builds(project, arguments):
    prebuilt(project, "def test_it(items): pass\n")
    project.run(*arguments)
    project.has_one_build()


def test_an_error_in_a_test_file_does_not_keep_the_others_from_the_cache(project):
    prebuilt(project, "def test_it(items): pass\n")
    (project.home / "test_two.py").write_text("raise RuntimeError\n")
    assert "1 passed" in project.run("-n0", "--continue-on-collection-errors", code=1)
    project.has_one_build()
