"""Which local invalidations a release covers: the tokens of its local header.

A release knows nothing of the control page of a node. It holds what its publisher's source held when it was made. So an
event of this node is covered

- by a release whose fingerprint is that which the node's own source has now: then it holds what the source holds;
- by a release that was made later than the event, by more than the skew that clocks of publisher and node may have;
- where the node has no source: nothing could answer in its place.

The log is walked from a place before which everything is covered. Where there is none, the tokens are those of a page
that is not here, and a cache with a source believes the file no more than one that came from elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ..errors import MmcacheError
from ..format.header import Header, Tokens, is_telling
from ..sharing.announce import Announcer
from ..sharing.following import Mark
from ..sharing.page import BOOT_TAG, WINDOW, MovedError, Page
from ..sources.base import Source, fingerprint_of

__all__ = ["covered", "marked"]


def covered(
    page: Page, header: Header, current: Header | None, *, mark: Mark | None, skew_ns: int, source: Source | None
) -> Tokens:
    """The tokens for a release on this page.

    header: of the release. current: of the file that is there. mark: of an earlier poll. source: the node's own, where
    this process can ask it. Raises MovedError, where another page has taken the place of this one.
    """
    now = page.tokens()  # before the source is asked
    if is_telling(header.fingerprint) and source is not None and _fingerprint(source) == header.fingerprint:
        return now
    until_ns = header.created_ns - skew_ns
    hard = now.hard if mark is not None and mark.tokens.hard == now.hard and mark.seen_ns < until_ns else 0
    best: tuple[int, int] | None = None
    for position, chain in _starts(page, now, mark, until_ns, is_first=not _is_lost(page, current)):
        reached = _walked(page, position, chain, until_ns)
        if reached is not None and (best is None or reached > best):
            best = reached
    if best is None:
        return Tokens(0, hard, 0, _elsewhere(page))
    return Tokens(best[1], hard, best[0], page.nonce)


def _fingerprint(source: Source) -> bytes | None:
    try:
        return fingerprint_of(source)
    except Exception:  # noqa: BLE001 (a source of a user's own may raise anything)
        return None


def _is_lost(page: Page, current: Header | None) -> bool:
    """Whether there was an earlier page on this machine that this one knows nothing of."""
    if page.identity.suspect:
        return True
    before = 0 if current is None else current.page
    return before not in (0, page.nonce, page.identity.parent) and page.distrusts(before)


def _starts(page: Page, now: Tokens, mark: Mark | None, until_ns: int, *, is_first: bool) -> Iterator[tuple[int, int]]:
    """Positions, and the chain there, before which everything is covered. is_first: no page was before."""
    identity = page.identity
    is_before = identity.created_ns < until_ns  # whatever was said on an earlier page
    if identity.origin == 0 and now.ring <= WINDOW and (is_before or is_first):
        yield 0, 0
    if is_before:
        yield identity.taken, identity.chain
    if mark is not None and mark.seen_ns < until_ns:
        there = page.position_of(mark.tokens)
        if there is not None and there[0] <= now.ring:
            yield there


def _walked(page: Page, position: int, chain: int, until_ns: int) -> tuple[int, int] | None:
    """The last position up to which every event is covered; None where the log cannot be read from there."""
    try:
        extent = page.since(position, chain).extent
    except MovedError:  # Case: the page was put back to an earlier state since the mark was made
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


def marked(path: str, mark: Mark | None) -> Mark | None:
    """The mark to keep after a poll: the one before, until the page is another or has said more than a mark reaches."""
    control = Announcer(path)
    with contextlib.closing(control), contextlib.suppress(MmcacheError, MovedError):
        tokens = control.tokens()
        is_same = mark is not None and mark.tokens[1::2] == tokens[1::2]  # hard, and the page
        if mark is not None and is_same and tokens.ring - mark.tokens.ring < WINDOW // 2:
            return mark
        return Mark(time.time_ns(), tokens)
    return mark
