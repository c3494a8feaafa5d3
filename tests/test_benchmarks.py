"""Every benchmark runs and tells all that it measured. What it measured is no business of a test."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

for library in ("lmdb", "matplotlib"):
    pytest.importorskip(library, reason="the bench group is not installed")

import benchmarks  # noqa: E402 (it needs these libraries)
from benchmarks import build, charts, common, dirty, keys, lookup, summary  # noqa: E402
from benchmarks.__main__ import QUESTIONS  # noqa: E402

pytestmark = pytest.mark.timeout(600)  # on a busy machine they take many times as long

ROOT = Path(__file__).parent.parent
SIZE = 200

needs_smaps = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/<pid>/smaps")


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


def run(*arguments):
    command = [sys.executable, "-W", "error", "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def told_by(name, data_sets, tmp_path, *more):
    """The JSON that a benchmark wrote."""
    out = tmp_path / "told.json"
    arguments = ["--sizes", SIZE, "--repetitions", "2", "--data", data_sets, "--json", out, *more]
    return checked(out, name, run(f"benchmarks.{name}", *arguments))


def checked(out, name, shown):
    """What is true of every benchmark's JSON."""
    told = json.loads(out.read_text())
    assert told["benchmark"] == name
    assert told["question"] in shown
    assert re.match(rf"python -m benchmarks\.{name} (--quick )?--sizes {SIZE} --repetitions 2", told["command"])
    assert "--data" not in told["command"]
    assert {"cpu", "cores", "python", "versions", "commit", "system"} <= told["environment"].keys()
    assert all(goal["met"] == (goal["measured"] <= goal["limit"]) for goal in told["goals"])
    assert all(math.isfinite(goal["measured"]) for goal in told["goals"])
    assert all(len(row) == len(table["header"]) for table in told["tables"] for row in table["rows"])
    return told


def operations_of(told):
    return {line["operation"] for line in told["results"] if "operation" in line}


def contenders_of(told):
    return {line["contender"] for line in told["results"] if "contender" in line}


@pytest.mark.nightly
def test_scan_compares_ids_records_and_embeddings(data_sets, tmp_path):
    told = told_by("scan", data_sets, tmp_path)
    assert operations_of(told) == {"scan_ids", "scan_records", "scan_embeddings"}
    assert contenders_of(told) >= {"mmcache", "LMDB", "SQLite, tuned", "npy + pickle"}


@pytest.mark.nightly
def test_open_compares_sizes(data_sets, tmp_path):
    told = told_by("open", data_sets, tmp_path, "--sizes", f"{SIZE},{2 * SIZE}")
    lines = {(line["operation"], line["contender"], line["n"]) for line in told["results"]}
    contenders = ("mmcache, lazy", "mmcache, auto", "mmcache, full", "LMDB", "msgpack blob")
    assert lines >= set(itertools.product(("open", "open, first get"), contenders, (SIZE, 2 * SIZE)))
    assert len(told["goals"]) == 5


@pytest.mark.nightly
def test_build_tells_times_memory_and_floors(data_sets, tmp_path):
    told = told_by("build", data_sets, tmp_path, "--repetitions", "1")
    timed = {line["contender"] for line in told["results"] if "seconds" in line}
    assert timed >= {"mmcache", "mmcache, PatternsSource", "LMDB", build.READ, build.WRITE, build.SLOWER}
    assert {line["dim"] for line in told["results"]} >= {16, 768}
    assert len(told["goals"]) == 3


@pytest.mark.nightly
def test_load_tells_what_readers_had_before_and_meanwhile(data_sets, tmp_path):
    told = told_by("load", data_sets, tmp_path, "--quick", "--repetitions", "1")
    assert contenders_of(told) == {"mmcache, subprocess", "LMDB", "SQLite, WAL"}
    assert all(line["idle_rate"] > 0 and line["busy_p99"] > 0 for line in told["results"])


@pytest.mark.nightly
@needs_smaps
def test_memory_counts_workers(data_sets, tmp_path):
    told = told_by("memory", data_sets, tmp_path, "--sizes", "1001", "--workers", "2")
    by_kind = {(line["contender"], line["workers"]): line for line in told["results"]}
    assert by_kind.keys() >= set(itertools.product(("mmcache", "LMDB", "npy + pickle"), (1, 2)))
    assert len(by_kind["mmcache", 2]["private_above_idle"]) == 2
    assert by_kind["mmcache", 2]["total_pss_of_file"] > 0


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_cold_tells_what_each_step_waits_for(data_sets, tmp_path):
    told = told_by("cold", data_sets, tmp_path, "--repetitions", "1")
    assert operations_of(told) >= {"open", "1 get", "100 gets", "1,000 gets", "all embeddings"}
    assert contenders_of(told) >= {"mmcache", "mmcache, lazy", "LMDB", "SQLite, tuned"}


@pytest.mark.nightly
def test_anatomy_tells_the_parts_of_each(data_sets, tmp_path):
    told = told_by("anatomy", data_sets, tmp_path)
    assert operations_of(told) == {"get", "get_many", "embedding"}
    for line in told["results"]:
        assert sum(line["parts"].values()) == pytest.approx(line["seconds"])


@pytest.mark.nightly
def test_growth_tells_what_the_charts_show(data_sets, tmp_path):
    sizes = "--sizes", f"{SIZE},{2 * SIZE}", "--ids-only", SIZE
    told = told_by("growth", data_sets, tmp_path, *sizes, "--repetitions", "1")
    lines = {(line["operation"], line["n"]) for line in told["results"] if line["dim"]}
    assert lines >= set(itertools.product((operation for operation, *_ in charts.GROWTH.values()), (SIZE, 2 * SIZE)))


@pytest.mark.nightly
def test_freshness_tells_costs_and_delays(data_sets, tmp_path):
    told = told_by("freshness", data_sets, tmp_path)
    assert told["goals"]
    assert operations_of(told) >= {"check", "counters", "publish"}


def test_dirty_tells_ratios_and_what_the_source_is_asked(data_sets, tmp_path):
    told = told_by("dirty", data_sets, tmp_path)
    assert operations_of(told) == {*dirty.GOALS, "first where", "a dirty id"}
    assert contenders_of(told) == {"clean", "0 dirty", "1 dirty", "100 dirty", "cache", "source"}
    assert {line["dirty"]: line["first"] != {} for line in told["results"] if "dirty" in line} == {
        0: False,
        1: True,
        100: True,
    }


@pytest.mark.nightly
def test_keys_tells_ratios_of_keys_ranges_and_orders(data_sets, tmp_path):
    told = told_by("keys", data_sets, tmp_path)
    assert operations_of(told) >= {"hit", "miss in the file", "miss in file and source", "dirty id", *keys.questions()}
    assert contenders_of(told) == {*keys.KINDS, keys.OURS, keys.PLAIN, keys.TUNED}
    assert [goal["limit"] for goal in told["goals"]] == [keys.KEY_GOAL] * 4


@pytest.mark.nightly
def test_tracking_tells_what_a_tracked_database_costs(data_sets, tmp_path):
    told = told_by("tracking", data_sets, tmp_path, "--repetitions", "1")
    assert told["results"]


@pytest.mark.nightly
def test_nearest_compares_searches_indexes_and_builds(data_sets, tmp_path):
    """Peers that are not installed are left out; mmcache and numpy are there."""
    told = told_by("nearest", data_sets, tmp_path)
    assert operations_of(told) == {"one", "batch", "of 10", "of 100", "approximate", "build"}
    assert contenders_of(told) >= {"mmcache", "mmcache, sketch"}
    assert {goal["name"] for goal in told["goals"]} == {"recall 0.95 / exact", "build with a sketch / without"}


def test_every_question_has_a_module_and_a_line_in_the_documents():
    page = (ROOT / "docs" / "benchmarks" / "README.md").read_text()
    for name in QUESTIONS:
        assert (ROOT / "benchmarks" / f"{name}.py").exists()
        assert f"`{name}`" in page
        assert f"python -m benchmarks.{name} " in (benchmarks.__doc__ or "")


def test_check_turns_a_missed_goal_into_a_failure(data_sets):
    settings = common.Settings((SIZE,), None, str(data_sets), None, check=True)
    report = common.Report("test", "Is two more than one?", settings)
    assert report.goal("one", SIZE, 1.0, 2.0) == "<= 2: met"
    assert report.finish() == 0
    assert report.goal("two", SIZE, 3.0, 2.0) == "<= 2: missed by 50%"
    assert report.finish() == 1


# --- all questions together -------------------------------------------------------------------------------------------


def check_lookup(told):
    """It compares every operation of every contender."""
    by_id = {"get", "miss", f"get_many({SIZE})", "embedding", f"gather({SIZE})"}
    lines = {(line["operation"], line["contender"]): line for line in told["results"]}
    everywhere = itertools.product(by_id | {"domain", "facets"}, ("mmcache", "LMDB", "SQLite, tuned", "dict floor"))
    assert lines.keys() >= set(everywhere)
    assert all(line["seconds"]["min"] > 0 for line in lines.values())
    assert all((line["ratio"] is None) == (name == "mmcache") for (_, name), line in lines.items())


def test_all_ask_each_and_write_a_page_charts_and_json(data_sets, tmp_path):
    out, kept = tmp_path / "written", tmp_path / "kept"
    kept.mkdir()
    for name in ("growth", "memory"):
        (kept / f"{name}.json").write_text(json.dumps(made_up()[name]))
    options = ["--sizes", SIZE, "--repetitions", "2", "--data", data_sets, "--json-dir", kept, "--write", out]
    shown = run("benchmarks", "--only", "requirements,lookup", *options)
    assert "==> benchmarks.requirements" in shown
    check_lookup(checked(kept / "lookup.json", "lookup", shown))
    assert len(checked(kept / "requirements.json", "requirements", shown)["goals"]) == 6
    assert re.search(r"^ +n = 200 +get ", shown, re.MULTILINE)
    assert re.search(r"^\d+ of \d+ goals met", shown, re.MULTILINE)
    page = (out / "results.md").read_text()
    assert "## Ratios" in page
    for name in ("requirements", "lookup", "growth", "memory"):
        assert f"## {name}" in page
    assert str(tmp_path) not in page
    told = json.loads((out / "results.json").read_text())
    assert told.keys() == {"requirements", "lookup", "growth", "memory"}
    assert "tables" not in told["lookup"]
    assert told["lookup"]["results"]
    assert {path.name for path in out.glob("*.svg")} == {f"{name}.svg" for name in charts.GROWTH} | {"memory.svg"}
    assert all(f"]({path.name})" in page for path in out.glob("*.svg"))


def test_all_goes_on_when_a_question_fails_and_says_so(data_sets, tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--only", "scan,requirements", "--repetitions", "1"]
    missing = tmp_path / "a file"
    missing.write_text("")
    done = subprocess.run(
        [*command, "--data", missing], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert "<== benchmarks.scan" in done.stdout
    assert "failed: requirements, scan" in done.stdout


def question(name, results, **more):
    return {
        "benchmark": name,
        "question": f"What of {name}?",
        "command": f"python -m benchmarks.{name}",
        "environment": {
            **dict.fromkeys(("cpu", "system", "python", "commit", "time"), "a"),
            **dict.fromkeys(("cores", "memory_gb"), 2),
            "versions": {"mmcache": "1"},
        },
        "sizes": [1000],
        "noise": {"others": 0.0, "unsteadiness": 1.0, "load": [0.0, 0.0, 0.0]},
        "warnings": [],
        "results": results,
        "goals": [],
        "notes": [],
        "tables": [],
        **more,
    }


def spread(median):
    return {"median": median, "min": 0.5 * median, "max": 2.0 * median}


def made_up():
    """What the questions could have told. mmcache wins everything of LMDB but a domain, and has no rival in a scan."""

    def line(operation, contender, ratio, n=1000):
        ratio = None if ratio is None else spread(ratio)
        return {"n": n, "operation": operation, "contender": contender, "seconds": spread(1e-6), "ratio": ratio}

    sizes = (1_000, 10_000)
    peers = {"mmcache": 1.0, "LMDB": 2.0, "dict floor": 0.5}
    return {
        "lookup": question(
            "lookup",
            [
                *(line("get", name, ratio) for name, ratio in (("mmcache", None), ("LMDB", 0.5), ("dict floor", 1.5))),
                *(line("domain", name, ratio) for name, ratio in (("mmcache", None), ("LMDB", 3.0))),
                line("get", "mmcache, Cache", 1.25),
                line("gather", "mmcache", None),
                line("gather", lookup.COPY, 1.5),
                line("get", "LMDB", 0.25, n=5_000),
            ],
            goals=[{"name": "get: mmcache / LMDB", "n": 1000, "measured": 0.5, "limit": 0.4, "met": False}],
            warnings=["the machine was noisy"],
        ),
        "open": question(
            "open",
            [
                {**line("open, first get", "mmcache, lazy", None), "over_lazy": spread(1.0)},
                {**line("open, first get", "LMDB", None), "over_lazy": {"median": 4.0, "min": 2.0, "max": 5.0}},
            ],
        ),
        "memory": question(
            "memory",
            [
                {
                    "n": 1000,
                    "dim": 768,
                    "workers": workers,
                    "contender": name,
                    "total_pss_above_idle": 1e7 * share * (workers if name == "dict floor" else 1),
                }
                for name, share in peers.items()
                for workers in (1, 8)
            ],
        ),
        "growth": question(
            "growth",
            [
                {"n": n, "dim": 64, "operation": operation, "contender": name, "seconds": spread(1e-8 * n * share)}
                for operation, *_ in charts.GROWTH.values()
                for name, share in peers.items()
                for n in sizes
            ],
        ),
    }


def test_the_table_of_ratios_marks_where_mmcache_loses():
    header, rows = summary.ratio_table(made_up(), 1_000)
    assert header == ["n = 1,000", "get", "domain", "lazy open, get", "memory, 8 workers"]
    assert rows == [
        ["mmcache", "1 us", "1 us", "1 us", "10.0 MB"],
        ["mmcache, Cache", "1.25 (0.62-2.50)", "–", "–", "–"],  # noqa: RUF001
        ["LMDB", "0.50 (0.25-1.00)", "3.00 (1.50-6.00)!", "0.25 (0.20-0.50)", "0.50"],
        ["dict floor", "1.50 (0.75-3.00)!", "–", "–", "0.25"],  # noqa: RUF001
    ]
    assert summary.usual_size(made_up()) == 1_000


def test_a_wide_table_is_folded_and_says_nothing_of_peers_that_have_no_way():
    header = ["n = 1,000", *(f"operation {i}" for i in range(10))]
    rows = [["mmcache", *["1 us"] * 10], ["LMDB", *["0.50 (0.25-1.00)"] * 10], ["floor", "1.50", *["–"] * 9]]  # noqa: RUF001
    first, second = summary.folded(header, rows)
    assert first[0] == header[:7]
    assert [row[0] for row in first[1]] == ["mmcache", "LMDB", "floor"]
    assert second[0] == [header[0], *header[7:]]
    assert [row[0] for row in second[1]] == ["mmcache", "LMDB"]
    assert all(len(line) <= 120 for part in (first, second) for line in common.table_text(*part, left=1).splitlines())


def test_the_summary_tells_goals_and_noise():
    shown = summary.summary_text(made_up())
    assert "0 of 1 goals met\n  missed: lookup: get: mmcache / LMDB, 1,000 records: 0.5 <= 0.4: missed by 25%" in shown
    assert "noisy during lookup:" in shown


def test_floors_are_named_as_their_questions_name_them():
    assert {lookup.COPY, build.READ, build.WRITE, build.SLOWER} == summary.FLOORS


def test_charts_are_the_same_bytes_for_the_same_figures(tmp_path):
    told = made_up()
    drawn = [(tmp_path / name).mkdir() or charts.draw(told, tmp_path / name) for name in ("one", "two")]
    assert drawn[0] == drawn[1] == [*(f"{name}.svg" for name in charts.GROWTH), "memory.svg"]
    for name in drawn[0]:
        text = (tmp_path / "one" / name).read_bytes()
        assert text == (tmp_path / "two" / name).read_bytes()
        assert len(text) < 60_000
        words = "".join(ET.fromstring(text).itertext())
        assert all(peer in words for peer in ("mmcache", "LMDB", "dict floor"))


def test_a_contender_looks_the_same_in_every_chart_and_like_no_other():
    names = [f"peer {i}" for i in range(18)]
    styles = charts.styles_of(["mmcache", *names])
    assert len(set(styles.values())) == len(styles)
    assert {styles[name].colour for name in names}.isdisjoint({styles["mmcache"].colour})
