"""What a file covers that holds what its source held at a time of the past: a merge of shards, a release.

The log is walked from a place before which everything is covered, up to the first event of that time or later. Where
there is no such place, the tokens are those of a page that is not here; a cache with a source believes the file no
more than one that came from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..format.header import Header, Tokens
from .page import BOOT_TAG, WINDOW, MovedError, Page

__all__ = ["tokens_as_of"]


def tokens_as_of(
    page: Page, until_ns: int, current: Header | None, *, hard: int, before: tuple[int, int] | None
) -> Tokens:
    """The tokens of a file that holds what was committed before a time.

    until_ns: wall clock. current: header of the file that is there. hard: as in the tokens. before: position and chain
    before which everything is covered, if one is known. Reads the log. Raises MovedError.
    """
    now = page.tokens()
    best: tuple[int, int] | None = None
    for position, chain in _starts(page, now, before, until_ns, is_first=not _is_lost(page, current)):
        reached = _walked(page, position, chain, until_ns)
        if reached is not None and (best is None or reached > best):
            best = reached
    if best is None:
        return Tokens(0, hard, 0, _elsewhere(page))
    return Tokens(best[1], hard, best[0], page.nonce)


def _is_lost(page: Page, current: Header | None) -> bool:
    """Whether there was an earlier page on this machine that this one knows nothing of."""
    if page.identity.suspect:
        return True
    before = 0 if current is None else current.page
    return before not in (0, page.nonce, page.identity.parent) and page.distrusts(before)


def _starts(
    page: Page, now: Tokens, before: tuple[int, int] | None, until_ns: int, *, is_first: bool
) -> Iterator[tuple[int, int]]:
    """Positions, and the chain there, before which everything is covered. is_first: no page was before."""
    identity = page.identity
    is_before = identity.created_ns < until_ns  # whatever was said on an earlier page
    if identity.origin == 0 and now.ring <= WINDOW and (is_before or is_first):
        yield 0, 0
    if is_before:
        yield identity.taken, identity.chain
    if before is not None and before[0] <= now.ring:
        yield before


def _walked(page: Page, position: int, chain: int, until_ns: int) -> tuple[int, int] | None:
    """The last position up to which every event is covered; None where the log cannot be read from there."""
    try:
        extent = page.since(position, chain).extent
    except MovedError:  # Case: the page was put back to an earlier state since that place was noted
        return None
    if extent is None:
        return None
    for time_ns, end in zip(extent.times, extent.ends, strict=True):
        if time_ns >= until_ns:
            break
        position, chain = end
    return position, chain


def _elsewhere(page: Page) -> int:
    """The nonce of a page of this boot that is not here: what was said on it may be anything."""
    return (page.nonce ^ (1 << 40)) & ~BOOT_TAG | page.identity.boot & BOOT_TAG
