"""Promise 7 with real processes: an invalidation that returned is never lost, whoever else is building, invalidating or
dying. `campaign` runs them, `history` says what they may have seen, and mistakes put into mmcache show that it does.

HISTORY_SECONDS: how long the nightly campaigns take together; an hour by default.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.timeout(400)
def test_no_invalidation_is_lost_in_a_million_reads_and_five_thousand_swaps():
    """Ends when there were as many; on two idle cores in less than two minutes."""
    code, numbers, said = campaign("--seconds", 300, "--reads", 1_000_000, "--swaps", 5_000, patience=380)
    assert code == 0, said
    assert numbers["reads"] >= 1_000_000, said
    assert numbers["swaps"] >= 5_000, said
    assert min(numbers["kills"], numbers["stops"]) > 50, said
    assert numbers["undecided"] < numbers["reads"] / 1_000, said


@pytest.mark.parametrize("source", ["plain", "tracked"])
def test_none_is_lost_where_the_source_tells_of_changes_as_well(source):
    code, numbers, said = campaign("--source", source, "--seconds", 8, patience=60)
    assert code == 0, said
    assert min(numbers["reads"], numbers["swaps"], numbers["kills"]) > 0, said


@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        ("capture_after_read", "stale"),
        ("ring_ignored", "stale"),
        ("hard_ignored", "stale"),
        ("wake_unheard", "late"),
    ],
)
def test_a_mistake_in_mmcache_is_found(mutant, rule):
    code, _, said = campaign("--mutant", f"tests.processes.mutants:{mutant}", "--seconds", 5, "--discard", patience=60)
    assert code == 1, said
    assert f"[{rule}: " in said, said
    assert "failures=0" in said, said


@pytest.mark.nightly
@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize(("source", "share"), [("silent", 0.6), ("plain", 0.2), ("tracked", 0.2)])
def test_none_is_lost_in_an_hour(source, share):
    code, numbers, said = campaign("--source", source, "--seconds", share * SECONDS, patience=SECONDS + 500)
    assert code == 0, said
    assert numbers["seconds"] >= 0.95 * share * SECONDS
