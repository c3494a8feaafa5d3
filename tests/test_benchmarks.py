"""Every benchmark runs and tells all that it measured. What it measured is no business of a test."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmdb", reason="the bench group is not installed")

ROOT = Path(__file__).parent.parent
SIZE = 200

LINES_OF_A_BUILD = {"imports only", "SQLiteSource", "SQLiteSource, JSON decoded", "PatternsSource", "LMDB"}


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


def told_by(name, data_sets, tmp_path, *more):
    """The JSON that a benchmark wrote."""
    out = tmp_path / "told.json"
    arguments = ["--sizes", str(SIZE), "--repetitions", "2", "--data", str(data_sets), "--json", str(out), *more]
    command = [sys.executable, "-W", "error", "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(out.read_text())
    assert told["benchmark"] == name
    assert told["question"] in done.stdout
    assert {"cpu", "cores", "python", "versions", "commit", "system"} <= told["environment"].keys()
    assert all(goal["met"] == (goal["measured"] <= goal["limit"]) for goal in told["goals"])
    assert all(math.isfinite(goal["measured"]) for goal in told["goals"])
    return told


def test_lookup_compares_every_operation_of_every_contender(data_sets, tmp_path):
    told = told_by("lookup", data_sets, tmp_path)
    operations = {"get", "get_as_dict", "miss", "get_many", "embedding", "domain", "facets"}
    lines = {(line["operation"], line["contender"]) for line in told["results"]}
    assert lines >= {(o, c) for o in operations for c in ("mmcache", "LMDB", "SQLite", "dict")}
    assert all(line["seconds"]["min"] > 0 for line in told["results"])
    assert {goal["limit"] for goal in told["goals"]} == {0.8, 0.2, 0.5, 0.15}


def test_open_compares_sizes(data_sets, tmp_path):
    told = told_by("open", data_sets, tmp_path, "--sizes", f"{SIZE},{2 * SIZE}")
    lines = {(line["contender"], line["n"]) for line in told["results"] if "seconds" in line}
    contenders = {"mmcache, lazy", "mmcache, auto", "mmcache, full", "LMDB", "msgpack map decoded"}
    assert lines >= {(c, n) for c in contenders for n in (SIZE, 2 * SIZE)}
    assert [(goal["limit"], goal["n"]) for goal in told["goals"]] == [(1.5, 2 * SIZE)]


def test_build_tells_times_and_memory(data_sets, tmp_path):
    told = told_by("build", data_sets, tmp_path, "--repetitions", "1")
    timed = {line["contender"] for line in told["results"] if "seconds" in line}
    assert timed >= LINES_OF_A_BUILD
    assert {line["dim"] for line in told["results"] if "peak_above_idle" in line} == {16, 768}
    assert len(told["goals"]) == 3


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/<pid>/smaps")
def test_memory_counts_workers(data_sets, tmp_path):
    told = told_by("memory", data_sets, tmp_path, "--workers", "2")
    by_kind = {line["contender"]: line for line in told["results"]}
    assert by_kind.keys() == {"idle", "shared", "copy"}
    assert len(by_kind["shared"]["private_above_idle"]) == 2
    assert by_kind["shared"]["total_pss_of_file"] > 0
    assert len(told["goals"]) == 1


def test_freshness_tells_costs_delays_and_disturbance(data_sets, tmp_path):
    told = told_by("freshness", data_sets, tmp_path)
    assert len(told["goals"]) == 6
    assert {line["operation"] for line in told["results"]} >= {"check", "counters"}


def test_tracking_tells_what_a_tracked_database_costs(data_sets, tmp_path):
    told = told_by("tracking", data_sets, tmp_path)
    assert told["results"]


def test_requirements_judges_every_target(data_sets, tmp_path):
    told = told_by("requirements", data_sets, tmp_path)
    assert len(told["goals"]) == 6


def test_check_turns_a_missed_goal_into_a_failure(data_sets):
    from benchmarks import common

    settings = common.Settings((SIZE,), None, str(data_sets), None, check=True)
    report = common.Report("test", "Is two more than one?", settings)
    assert report.goal("one", SIZE, 1.0, 2.0) == "<= 2: met"
    assert report.finish() == 0
    assert report.goal("two", SIZE, 3.0, 2.0) == "<= 2: missed by 50%"
    assert report.finish() == 1
