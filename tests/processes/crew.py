"""The former home of `tests.support.crew`, for tests that are being rewritten; goes with the last of them."""

from tests.support.bank import NUMBERS as THINGS, commit, make_bank, name_of, touch, write_lines
from tests.support.crew import (
    Crew,
    SlowSource,
    Worker,
    answers,
    fork,
    look_around,
    note,
    noted,
    noted_at,
    number,
    state,
    step_clock,
    threads,
    wait_for_generation,
)
from tests.support.observe import children_of, events, rebuilders_of, state_of, stop, totals
from tests.support.waits import PATIENCE, holds, until

__all__ = [
    "PATIENCE",
    "THINGS",
    "Crew",
    "SlowSource",
    "Worker",
    "answers",
    "children_of",
    "commit",
    "events",
    "fork",
    "holds",
    "look_around",
    "make_bank",
    "name_of",
    "note",
    "noted",
    "noted_at",
    "number",
    "rebuilders_of",
    "state",
    "state_of",
    "step_clock",
    "stop",
    "threads",
    "totals",
    "touch",
    "until",
    "wait_for_generation",
    "write_lines",
]
