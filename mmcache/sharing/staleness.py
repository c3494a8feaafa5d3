"""What a published file lacks, as far as its control page, its source and the clock tell. Decides; does nothing."""

from __future__ import annotations

from typing import NamedTuple

from ..format.header import Header, Tokens
from ..freshness import Freshness, Policy, freshness
from .control import RING_SIZE, ControlPage

__all__ = ["Basis", "Doubt", "basis_of", "doubt_about", "freshness_of"]

NO_FINGERPRINT = bytes(32)


class Basis(NamedTuple):
    """What a file is as good as: its own build, or the last rebuild that found it unchanged.

    built: wall clock, when the source was about to be read. took: seconds.
    """

    tokens: Tokens
    built: float
    took: float
    fingerprint: bytes
    revalidated: bool


class Doubt(NamedTuple):
    """hard: the file may not answer. soft: it may, and is due to be built again. why: of either, a sentence.

    since, until: the positions of the ring whose ids the source has to answer; equal where there are none.
    """

    hard: bool
    soft: bool
    since: int
    until: int
    why: str


def basis_of(header: Header, page: ControlPage) -> Basis:
    known = page.revalidation(header)
    if known is None:
        return Basis(
            header.tokens, header.created_ns / 1e9, header.elapsed_ns / 1e9, header.fingerprint, revalidated=False
        )
    return Basis(known.tokens, known.checked_ns / 1e9, known.elapsed_ns / 1e9, known.fingerprint, revalidated=True)


def freshness_of(basis: Basis, policy: Policy, now: float, draw: float = 0.0) -> Freshness:
    return freshness(policy, now=now, built=basis.built, build_seconds=basis.took, draw=draw)


def doubt_about(basis: Basis, page: ControlPage, fingerprint: bytes | None) -> Doubt:
    """fingerprint: of the source now; None if it is not known.

    Tokens of another page cannot be compared. Then whatever was invalidated on this page counts, and what may have
    been on the other is told by the source, if it has not changed since: else the file is as suspect as that page.
    """
    had, said = basis.tokens, page.tokens()
    since, why = had.ring, ""
    if had.page == said.page:
        hard, soft = had.hard != said.hard, had.soft != said.soft
    else:
        since, hard, soft = 0, said.hard != 0, said.soft != 0
        if had.page != 0 and not fingerprint == basis.fingerprint != NO_FINGERPRINT:
            soft = True
            why = "it was built with another control page, which is not here"
            # Where no page can be, none went missing: while the source cannot be asked, the file is the best there is.
            if page.distrusts(had.page) and (page.shared or fingerprint is not None):
                hard = True
    if hard:
        why = why or f"everything was invalidated ({_reason(page, 'hard')})"
    elif not 0 <= said.ring - since <= RING_SIZE:
        hard, why = True, f"more than {RING_SIZE} ids were invalidated"
    elif soft:
        why = why or f"it was invalidated softly ({_reason(page, 'soft')})"
    return Doubt(hard=hard, soft=hard or soft, since=since, until=since if hard else said.ring, why=why)


def _reason(page: ControlPage, kind: str) -> str:
    notice = page.last(kind)
    return notice.reason if notice is not None else "no reason known"
