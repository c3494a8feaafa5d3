"""Which local invalidations a release covers: the tokens of its local header.

A release knows nothing of the control page of a node. It holds what its publisher's source held when it was made. So an
event of this node is covered

- by a release whose fingerprint is that which the node's own source has now: then it holds what the source holds;
- by a release that was made later than the event, by more than the skew that clocks of publisher and node may have;
- where the node has no source: nothing could answer in its place.

How the log is walked: see `sharing.covering`.
"""

from __future__ import annotations

import contextlib

from .. import wallclock
from ..errors import MmcacheError
from ..format.header import Header, Tokens, is_telling
from ..sharing.announce import Announcer
from ..sharing.covering import tokens_as_of
from ..sharing.following import Mark
from ..sharing.page import WINDOW, MovedError, Page
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
    before = None
    if mark is not None and mark.seen_ns < until_ns:
        before = page.position_of(mark.tokens)
    return tokens_as_of(page, until_ns, current, hard=hard, before=before)


def _fingerprint(source: Source) -> bytes | None:
    try:
        return fingerprint_of(source)
    except Exception:  # noqa: BLE001 (a source of a user's own may raise anything)
        return None


def marked(path: str, mark: Mark | None) -> Mark | None:
    """The mark to keep after a poll: the one before, until the page is another or has said more than a mark reaches."""
    control = Announcer(path)
    with contextlib.closing(control), contextlib.suppress(MmcacheError, MovedError):
        tokens = control.tokens()
        is_same = mark is not None and mark.tokens[1::2] == tokens[1::2]  # hard, and the page
        if mark is not None and is_same and tokens.ring - mark.tokens.ring < WINDOW // 2:
            return mark
        return Mark(wallclock.now_ns(), tokens)
    return mark
