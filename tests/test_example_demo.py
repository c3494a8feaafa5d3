"""The demo, `python -m examples.demo`, succeeds and is complete. What it measures is its own affair."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

import mmcache
from tests.support.console import ROOT, Run, environment, ok
from tests.support.observe import beside

pytestmark = pytest.mark.timeout(120)


def run(*words: object, env: Mapping[str, str] | None = None) -> Run:
    """As `make demo` runs it, from the repository, without a terminal."""
    command = [sys.executable, "-W", "error", "-m", "examples.demo", *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(env), capture_output=True, text=True, timeout=110, check=False
    )
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run, with its files kept."""
    directory = tmp_path_factory.mktemp("demo") / "play"
    done = run("--json", "--dir", directory)
    assert done.code == 0, done
    return done, directory


def test_every_figure_is_there(demo):
    result = demo[0].json
    assert (result["bank"]["records"], result["bank"]["dim"]) == (1000, 768)
    assert result["build"]["size"] > 1000 * 768 * 4
    assert [line["name"] for line in result["lookups"]] == [
        *("one record", "a batch of 100", "one embedding", "all of one domain")
    ]
    assert all(
        line["equal"] and line["sqlite_seconds"] > 0 and line["mmcache_seconds"] > 0 for line in result["lookups"]
    )
    memory = result["memory"]
    assert memory["workers"] == 4
    if sys.platform == "linux":
        assert memory["measured"] == "pss"
        assert memory["private_bytes"] > memory["shared_bytes"]
    assert result["seconds"] > 0


def test_no_read_failed_while_the_file_was_swapped(demo):
    result = demo[0].json
    reading = result["reading"]
    assert (reading["failed"], reading["reason"]) == (0, None)
    assert reading["reads"] > 1000
    assert result["swap"]["generations"] == [2, 3, 4]
    assert len(result["swap"]["adoption_seconds"]) == 3


def test_an_update_was_seen_by_all_workers(demo):
    result = demo[0].json
    assert (result["update"]["key"], result["update"]["kind"]) == ("pattern-7", "ids")
    assert len(result["update"]["seen_seconds"]) == 4
    assert 0 < result["reading"]["from_sqlite"] < result["reading"]["reads"]


def test_a_builder_was_killed_and_the_next_one_published(demo):
    killed = demo[0].json["killed"]
    assert killed["left"] > 0
    assert killed["swept"]
    assert killed["generation"] == 4 + killed["attempts"]
    assert killed["lock_seconds"] > 0


def test_the_workers_were_shown_as_their_counters_have_them(demo):
    result = demo[0].json
    for frame, generation in zip(result["fleet"], (4, result["killed"]["generation"]), strict=True):
        assert sorted(worker["label"] for worker in frame) == [f"worker {i}" for i in range(1, 5)]
        assert {worker["generation"] for worker in frame} == {generation}
        assert all(worker["hits"] > 0 and worker["fallbacks"].keys() == {"invalidated"} for worker in frame)


def test_the_damage_was_found_answered_and_mended(demo):
    damage, killed = demo[0].json["damage"], demo[0].json["killed"]
    assert damage["found_by_verify"].startswith("section '0/records': checksum does not match")
    assert (damage["found_by_get"], damage["answered_by"], damage["same_answer"]) == (True, "sqlite", True)
    assert (damage["mended_generation"], damage["verified_after"]) == (killed["generation"] + 1, True)


def test_the_files_can_be_played_with(demo):
    directory = demo[1]
    suffixes = ("db", "mmc", "mmc.bak", "mmc.ctl", "mmc.lock")
    assert beside(directory / "patterns.mmc") == [f"patterns.{suffix}" for suffix in suffixes]
    ok("verify", directory / "patterns.mmc", "--deep")
    with mmcache.Snapshot.open(directory / "patterns.mmc") as snapshot:
        assert snapshot["pattern-7"]["metadata"]["revision"] == demo[0].json["killed"]["generation"]


@pytest.mark.integration  # a second run of the demo
def test_it_speaks_to_people_and_leaves_nothing_behind(tmp_path):
    done = run(env={"TMPDIR": str(tmp_path)})
    assert done.code == 0, done
    for words in (
        "0 failed",
        "worker 4",
        "killed with SIGKILL",
        "verify:  section '0/records'",
        "the same answer as before",
        "examples.demo --dir",
    ):
        assert words in done.out
    assert "\x1b" not in done.out
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    done = run("--dir", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "is not empty: choose another directory" in done.err
    assert beside(tmp_path / "mine") == ["mine"]
