"""Promise 7 with real processes: an invalidation that returned is never lost, whatever else builds, invalidates or
dies. `campaign` runs them, `history` says what they may have seen, and mistakes put into mmcache show that it does.

HISTORY_SECONDS: how long the nightly campaigns take together; an hour by default.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.mutants import FOLLOWING, MISTAKES
from tests.support.samples import sampled

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("HISTORY_SECONDS", "3600"))


def campaign(*options: object, patience: float) -> tuple[int, dict[str, float], str]:
    """Exit code, the numbers of the summary, and everything that was said."""
    command = [sys.executable, "-m", "tests.processes.campaign", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience, check=False)
    said = done.stderr + done.stdout
    words = (word.partition("=") for word in done.stdout.split())
    numbers = {name: float(value) for name, equals, value in words if equals}
    return done.returncode, numbers, said


@pytest.mark.timeout(3700)
@pytest.mark.parametrize(("reads", "swaps"), [(5_000, 25), pytest.param(1_000_000, 5_000, marks=pytest.mark.nightly)])
def test_no_invalidation_is_lost_in_so_many_reads_and_swaps(reads, swaps):
    """Ends when there were as many; a million on two idle cores in less than two minutes."""
    code, numbers, said = campaign("--seconds", 3000, "--reads", reads, "--swaps", swaps, patience=3600)
    assert code == 0, said
    assert numbers["reads"] >= reads, said
    assert numbers["swaps"] >= swaps, said
    assert min(numbers["kills"], numbers["stops"]) > swaps / 100, said
    assert numbers["undecided"] < numbers["answers"] / 1_000, said


@pytest.mark.parametrize("source", ["plain", "tracked"])
def test_none_is_lost_where_the_source_tells_of_changes_as_well(source):
    code, numbers, said = campaign("--source", source, "--seconds", 4, patience=60)
    assert code == 0, said
    assert min(numbers["reads"], numbers["swaps"], numbers["kills"]) > 0, said


@pytest.mark.parametrize(
    ("source", "seconds"),
    [
        ("silent", 5),
        pytest.param("plain", 5, marks=pytest.mark.integration),
        pytest.param("silent", SECONDS / 4, marks=pytest.mark.nightly),
    ],
)
@pytest.mark.timeout(SECONDS + 600)
def test_none_is_lost_where_the_file_is_of_releases(source, seconds):
    """Releases that lack what was invalidated meanwhile, and that are withdrawn: the content may go back."""
    pytest.importorskip("obstore", reason="the extra remote is not installed")
    options = "--follows", "--source", source, "--seconds", seconds
    code, numbers, said = campaign(*options, patience=seconds + 120)
    assert code == 0, said
    assert min(numbers["reads"], numbers["swaps"], numbers["kills"]) > 0, said


@pytest.mark.parametrize("mutant", sampled(FOLLOWING, 2))
def test_a_mistake_of_followers_is_found(mutant):
    pytest.importorskip("obstore", reason="the extra remote is not installed")
    options = "--follows", "--seconds", 90, "--round", 3, "--discard"
    code, _, said = campaign("--mutant", f"tests.processes.mutants:{mutant}", *options, patience=150)
    assert code == 1, said
    assert any(f"[{rule}: " in said for rule in FOLLOWING[mutant]), said
    assert "failures=0" in said, said


@pytest.mark.parametrize("mutant", sampled(MISTAKES, 7, pytest.mark.nightly))
def test_a_mistake_in_mmcache_is_found(mutant):
    """In the first two seconds many times; on a machine so busy that these go by with few reads, later."""
    options = "--seconds", 90, "--round", 2, "--discard"
    code, _, said = campaign("--mutant", f"tests.processes.mutants:{mutant}", *options, patience=150)
    assert code == 1, said
    assert any(f"[{rule}: " in said for rule in MISTAKES[mutant]), said
    assert "failures=0" in said, said


@pytest.mark.nightly
@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize(("source", "share"), [("silent", 0.6), ("plain", 0.2), ("tracked", 0.2)])
def test_none_is_lost_in_an_hour(source, share):
    code, numbers, said = campaign("--source", source, "--seconds", share * SECONDS, patience=SECONDS + 500)
    assert code == 0, said
    assert numbers["seconds"] >= 0.95 * share * SECONDS
