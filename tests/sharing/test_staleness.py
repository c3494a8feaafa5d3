"""What a file lacks, as a table: what its builder captured, what the page says, what the source is now -> the doubt."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmcache.format.header import Header, Tokens
from mmcache.freshness import Policy
from mmcache.sharing import control
from mmcache.sharing.control import RING_SIZE, ControlPage, attach, control_name
from mmcache.sharing.staleness import Basis, basis_of, doubt_about, freshness_of

SAME, OTHER, NONE = b"s" * 32, b"o" * 32, bytes(32)
HERE = -1
"""The page that is there now."""
GONE = -2
"""An earlier one, that others may have used since this machine started."""
PRIVATE = -3
"""One of another process that could have none to share."""
FOREIGN = 0x1234 << 16
"""A page of another machine, or from before this one started."""

HARD, SOFT, CLEAR = (True, True), (False, True), (False, False)


@dataclass(frozen=True)
class Case:
    """said: what the page says; of what was captured, `ring` ids, and the same nonces where `captured` says so.

    page: that the file was built with, HERE, GONE, PRIVATE, FOREIGN, or 0 for none.
    """

    page: int = HERE
    soft: bool = False
    hard: bool = False
    captured_soft: bool = False
    captured_hard: bool = False
    ring: int = 0
    captured_ring: int = 0
    distrust: bool = False
    built_from: bytes = SAME
    source: bytes | None = SAME
    shared: bool = True
    doubt: tuple[bool, bool] = CLEAR
    dirty: tuple[int, int] | None = None
    why: str = ""


CASES = {
    "nothing was ever said": Case(),
    "nothing since the capture": Case(soft=True, hard=True, captured_soft=True, captured_hard=True),
    "soft after the capture": Case(soft=True, doubt=SOFT, why="invalidated softly (record_stored)"),
    "soft again": Case(soft=True, captured_hard=False, doubt=SOFT),
    "hard after the capture": Case(hard=True, doubt=HARD, why="everything was invalidated (manual)"),
    "hard and soft": Case(hard=True, soft=True, doubt=HARD, why="everything was invalidated (manual)"),
    "the page lost its hard word": Case(captured_hard=True, doubt=HARD),
    "ids after the capture": Case(ring=7, captured_ring=3, dirty=(3, 7)),
    "ids before the capture": Case(ring=7, captured_ring=7, dirty=(7, 7)),
    "ids and soft": Case(ring=7, captured_ring=3, soft=True, doubt=SOFT, dirty=(3, 7)),
    "ids and hard: no id matters": Case(ring=7, captured_ring=3, hard=True, doubt=HARD, dirty=(3, 3)),
    "as many ids as the ring holds": Case(ring=RING_SIZE, dirty=(0, RING_SIZE)),
    "one more": Case(ring=RING_SIZE + 1, doubt=HARD, dirty=(0, 0), why="more than 4096 ids"),
    "a ring behind what was captured": Case(ring=3, captured_ring=7, doubt=HARD),
    "the source has changed, nobody said so": Case(source=OTHER),
    "the source cannot be asked": Case(source=None),
    # --- built with another page
    "no page, nothing said": Case(page=0),
    "no page, ids said since this one was made": Case(page=0, ring=5, captured_ring=99, dirty=(0, 5)),
    "no page, soft": Case(page=0, soft=True, doubt=SOFT),
    "no page, hard": Case(page=0, hard=True, doubt=HARD),
    "no page, the source has changed": Case(page=0, source=OTHER),
    "an earlier page, the source is the same": Case(page=GONE),
    "an earlier page, the source is the same, ids here": Case(page=GONE, ring=2, captured_ring=50, dirty=(0, 2)),
    "an earlier page, the source is the same, hard here": Case(page=GONE, hard=True, doubt=HARD),
    "an earlier page, the source has changed": Case(page=GONE, source=OTHER, doubt=HARD, why="another control page"),
    "an earlier page, the source cannot be asked": Case(page=GONE, source=None, doubt=HARD),
    "an earlier page, a source without fingerprint": Case(page=GONE, built_from=NONE, source=NONE, doubt=HARD),
    "a foreign page, the source is the same": Case(page=FOREIGN),
    "a foreign page, the source has changed": Case(page=FOREIGN, source=OTHER, doubt=SOFT, why="another control page"),
    "a foreign page, the source cannot be asked": Case(page=FOREIGN, source=None, doubt=SOFT),
    "a foreign page of which something was open": Case(page=FOREIGN, source=OTHER, distrust=True, doubt=HARD),
    "something was open, and the source is the same": Case(page=FOREIGN, distrust=True),
    # --- where no page can be
    "no page possible, the source is the same": Case(page=GONE, shared=False),
    "no page possible, the source has changed": Case(page=GONE, shared=False, source=OTHER, doubt=HARD),
    "no page possible, the source cannot be asked": Case(page=GONE, shared=False, source=None, doubt=SOFT),
    "no page possible, nor where it was built": Case(page=PRIVATE, shared=False, source=None, doubt=SOFT),
    "the same, and the source is the same": Case(page=PRIVATE, shared=False),
    "the same, and the source has changed": Case(page=PRIVATE, shared=False, source=OTHER, doubt=SOFT),
    "a page now, and none where it was built": Case(page=PRIVATE, source=OTHER, doubt=SOFT),
    "no page possible, hard said here": Case(page=GONE, shared=False, hard=True, doubt=HARD),
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.mmc")


def page_of(case: Case, path: str) -> ControlPage:
    page = attach(path) if case.shared else ControlPage(None, "none here")
    if case.soft:
        page.invalidate("record_stored", hard=False)
    if case.hard:
        page.invalidate("manual", hard=True)
    page.words[control._RING] = case.ring
    if case.distrust:
        page.distrust()
    return page


@pytest.mark.parametrize("name", CASES)
def test_doubt(path, name):
    case = CASES[name]
    page = page_of(case, path)
    said = page.tokens()
    private = ControlPage(None, "none there").nonce
    built_with = {GONE: 5 << 40 | control._boot() & 0xFFFF, PRIVATE: private, HERE: page.nonce}.get(
        case.page, case.page
    )
    had = Tokens(
        soft=said.soft if case.captured_soft else 0,
        hard=said.hard if case.captured_hard and case.hard else 77 if case.captured_hard else 0,
        ring=case.captured_ring,
        page=built_with,
    )
    doubt = doubt_about(Basis(had, 0.0, 0.0, case.built_from, revalidated=False), page, case.source)
    assert (doubt.hard, doubt.soft) == case.doubt
    assert case.why in doubt.why
    assert bool(doubt.why) == doubt.soft
    if case.dirty is not None:
        assert (doubt.since, doubt.until) == case.dirty
    if doubt.hard:
        assert doubt.since == doubt.until


HEADER = Header(
    file_size=4096,
    section_count=3,
    generation=7,
    created_ns=5 * 10**9,
    elapsed_ns=2 * 10**9,
    build_id=bytes(range(16)),
    sha256=bytes(32),
    fingerprint=SAME,
    soft=1,
    hard=2,
    ring=3,
    page=4,
)


def test_a_file_is_as_good_as_its_build_or_the_last_rebuild_that_found_it_unchanged(path):
    page = attach(path)
    assert basis_of(HEADER, page) == Basis(Tokens(1, 2, 3, 4), 5.0, 2.0, SAME, revalidated=False)
    tokens = Tokens(9, 8, 7, page.nonce)
    page.revalidated(HEADER, tokens, 60 * 10**9, 3 * 10**9, OTHER)
    assert basis_of(HEADER, page) == Basis(tokens, 60.0, 3.0, OTHER, revalidated=True)
    os.unlink(control_name(path))
    assert basis_of(HEADER, attach(path)).revalidated is False


def test_age_counts_from_the_revalidation(path):
    page = attach(path)
    policy = Policy(ttl=100.0, refresh_at=0.5, jitter=0.0)
    assert freshness_of(basis_of(HEADER, page), policy, 5.0 + 99).state == "stale"
    page.revalidated(HEADER, page.tokens(), 60 * 10**9, 10**9, SAME)
    fresh = freshness_of(basis_of(HEADER, page), policy, 5.0 + 99)
    assert (fresh.state, fresh.age) == ("fresh", 44.0)
