"""Positions of a tracked PostgreSQL database: what a fingerprint of 32 bytes tells of the transactions before it."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

pytest.importorskip("sqlalchemy", reason="the sqlalchemy extra is not installed")

from mmcache.sources.sql_positions import Position, parse, running

TOPS = st.integers(4, 2**62)
DISTANCES = st.lists(st.one_of(st.integers(1, 3), st.integers(1, 300), st.integers(1, 2**33)), max_size=40)


def position(top, distances, state=b"state", mark=5):
    gaps = []
    below = top
    for distance in distances:
        if below - distance < 3:
            break
        gaps.append(below := below - distance)
    return Position(state, top, mark, tuple(reversed(gaps)), 3)


@given(TOPS, DISTANCES)
def test_a_fingerprint_gives_its_gaps_back_or_a_bound_of_them(top, distances):
    made = position(top, distances)
    found = parse(made.fingerprint)
    assert len(made.fingerprint) == 32
    assert found is not None
    assert (found.top, found.proof) == (top, made.proof(5))
    assert found.low == (made.gaps[0] if made.gaps else top + 1)
    assert found.gaps in (made.gaps, None)
    if len(made.gaps) <= 12 and all(distance < 128 for distance in distances):
        assert found.gaps == made.gaps


@given(TOPS, DISTANCES, DISTANCES)
def test_positions_with_other_gaps_have_other_fingerprints(top, some, others):
    one, other = position(top, some), position(top, others)
    assert (one.fingerprint == other.fingerprint) == (one.gaps == other.gaps)


def test_another_history_has_another_fingerprint():
    made = position(99, [3])
    for other in (made._replace(mark=6), made._replace(state=b"other"), made._replace(top=100), made._replace(gaps=())):
        assert other.fingerprint != made.fingerprint
    assert made._replace(oldest=50).fingerprint == made.fingerprint


@given(st.binary(max_size=40))
def test_bytes_of_another_source_are_no_position(data):
    assert parse(data) is None or data.startswith(b"\xf5p")
    found = parse(b"\xf5p" + data[:30].ljust(30, b"\1"))
    assert found is not None
    assert found.gaps is None or sorted(set(found.gaps)) == list(found.gaps)


def test_the_running_transactions_below_a_number_are_its_gaps():
    assert running("10:20:10,14,19", 15) == (10, 14)
    assert running("10:20:", 15) == ()
    assert running("10:10:", 9) == ()
