"""Hearing: the page that a cache uses, and what was said on it since the baseline of the file that the cache has open.

Called by one thread at a time. Hearing reads the head and the new events, and nothing else; attaching to another page
is a matter of polls, but for a page that was moved or damaged, whose readers have to find the new one at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Final

from ..errors import MmcacheError, PublishError
from ..format.header import Header
from .attach import PATIENCE, attach
from .decide import Baseline, baseline_of
from .events import Event, Kind, Said, fold
from .head import Announced, Failure, Head
from .page import MovedError, Page, private_page

__all__ = ["Hearing", "settle"]

_IDS_PER_EVENT: Final = 256


class Hearing:
    """page: that is used; None before the first `renew`. said: since the baseline. baseline: of the header that was
    given last; None without a file. foreign: whether that was built with a page that this one knows nothing of."""

    def __init__(self, path: str, page: Page | None = None, *listeners: Callable[[Event, Head], None]) -> None:
        """listeners: are given each event that is heard, and the head of then; return at once, and raise nothing."""
        self.path = path
        self._listeners = listeners
        self._nonce = 0  # of the page that `said` is of
        self.page = page
        self.said = Said(0, 0)
        self.baseline: Baseline | None = None
        self.foreign = False
        self._head: Head | None = None
        self._header: Header | None = None

    # --- what was heard

    @property
    def announced(self) -> Announced | None:
        return None if self._head is None else self._head.announced

    @property
    def panicked(self) -> bool:
        """Whether everything was invalidated without the page lock, after the baseline was captured."""
        if self._head is None or self.baseline is None:
            return False
        return self._head.panic != (0 if self.foreign else self.baseline.tokens.hard)

    @property
    def distrusted(self) -> bool:
        """Whether something may have been said, after the build, on the page that the file was built with."""
        return self.page is not None and self.baseline is not None and self.page.distrusts(self.baseline.tokens.page)

    @property
    def last_build(self) -> object:
        """What the page said of the last build when it was heard last: see `rebuild.last_build`."""
        head = self._head
        return None if head is None else (head.announced, head.covered, head.failure_record)

    @property
    def taken(self) -> float:
        """See `Head.taken`."""
        return 0.0 if self._head is None else self._head.taken

    def failure(self, monotonic: float) -> Failure | None:
        return None if self._head is None else self._head.failure(monotonic)

    @property
    def position(self) -> int:
        """Up to which everything was heard."""
        return self.said.until

    # --- hearing

    def hear(self, woken: int) -> bool:
        """Take in what is new; whether that explains the word, so that it need not be heard again.

        Raises MovedError where the page is damaged, or another one is at its path.
        """
        page = self.page
        assert page is not None
        if self.said.lost:  # perhaps it could not be read for a moment only
            self._refold(self._header)
            return page.accepts(woken, self._head) if self._head is not None else False
        news = page.since(self.said.until, self.said.chain)
        self._head = news.head
        if self._header is not None and baseline_of(self._header, news.head.covered) != self.baseline:
            self._refold(self._header)
        elif news.events is None:
            self.said.lost = True
        else:
            self._pass_on(news.events, news.head)
            fold(self.said, news.events, news.until, news.chain)
        if page.accepts(woken, news.head):
            return True
        if not page.is_current():
            raise MovedError
        return False

    def _pass_on(self, events: Iterable[Event], head: Head) -> None:
        for event in events:
            for listener in self._listeners:
                listener(event, head)

    def rebase(self, header: Header | None) -> None:
        """Take the header of the file that is open from now on. Raises MovedError."""
        self._refold(header)

    def is_based_on(self, header: Header) -> bool:
        """Whether `rebase` has taken this header, and came to its end."""
        return self._header == header

    def _refold(self, header: Header | None) -> None:
        """Begin anew at the baseline of a file."""
        page = self.page
        assert page is not None
        before = self.said if self._nonce == page.nonce else None
        head = page.head()
        if head is None or head.logged is None:
            raise MovedError
        baseline = None if header is None else baseline_of(header, head.covered)
        at: tuple[int, int] | None = head.logged, head.chain
        if baseline is not None:
            at = page.position_of(baseline.tokens)
        # A page that was written over by an earlier copy of itself has logged less than the file has seen.
        is_foreign = at is None or at[0] > head.logged
        since, chain = (page.identity.origin, 0) if at is None or is_foreign else at
        said = Said(since, since, chain)
        news = page.since(since, chain)
        if news.events is None:
            said.lost = True
        else:
            fold(said, news.events, news.until, news.chain)
        # Case: an exception, or a fork in C, comes between two of these. Then more is dirty than has to be, and the
        # header is not taken: see `is_based_on`.
        self._head, self.baseline, self.foreign = head, baseline, is_foreign
        self.said, self._nonce = said, page.nonce
        self._header = header
        if before is not None and before.until < said.until:  # which no listener was given
            self._pass_on(page.since(before.until, before.chain).events or (), head)

    # --- the page

    def settle(self) -> None:
        """Bring the word in line with the count, where a writer left it behind."""
        page = self.page
        with contextlib.suppress(MmcacheError):
            head = None if page is None else page.head()
            if page is not None and head is not None:
                page.settle(head)

    def renew(self, *, patience: float = PATIENCE) -> bool:
        """Use the page that is at its path now; whether that is another one. One `stat` where it is the same."""
        old = self.page
        is_lost = False
        if old is not None and old.shared:
            is_lost = not self._hear_the_last(old)
            if not is_lost and old.is_current():
                return False
        new = attach(self.path, previous=old, lost=is_lost, patience=patience)
        if old is not None and not old.shared and not new.shared:
            old.problem, old.word = new.problem, new.word
            return False
        open_facts = self.said if old is not None else Said(0, 0)
        self.page = new
        if old is not None:
            _carry_over(open_facts, old, new, patience)
        self._refold(self._header)
        return True

    def _hear_the_last(self, old: Page) -> bool:
        """A page that has lost its name can still be read: what was said on it must not be forgotten. False for one
        that is damaged, or was put back to an earlier state."""
        try:
            news = old.since(self.said.until, self.said.chain)
        except MovedError:
            return False
        if news.events is not None:
            self._pass_on(news.events, news.head)
            fold(self.said, news.events, news.until, news.chain)
        return True

    def forget_own(self, built: float) -> None:
        """What was said on a page of our own is covered by a file that was built after it was said."""
        page = self.page
        if page is None or page.shared:
            return
        if 0.0 < page.last_said() < built:
            self.page = private_page(self.path, page.problem)
            self.page.word = page.word


def _carry_over(said: Said, old: Page, new: Page, patience: float) -> None:
    """Say on the new page what is known from the old one, unless it took that over.

    Where the old one was shared, its other readers know more than we do: then the file is suspect to all. patience:
    seconds to wait for the page lock, for reads wait meanwhile."""
    # Case: the new page took over an earlier copy of the old one, and lacks what was said since.
    is_there = new.shared and new.identity.parent == old.nonce and new.identity.taken >= said.until
    if is_there or not said.is_open():
        return
    events = _again(said)
    if old.shared and new.shared:
        events.append(Event(Kind.SUSPECT))
    try:
        if not new.say(events, patience):
            new.panic()
    except (PublishError, MovedError):
        pass  # a page that we may only read: those that may write it are about to do the same


def settle(page: Page) -> None:
    """Bring the word in line with the count, where a writer left it behind."""
    try:
        head = page.head()
        if head is not None:
            page.settle(head)
    except MmcacheError:
        return


def _again(said: Said) -> list[Event]:
    """The events that say the same."""
    events = [Event(Kind.COLLECTION, "manual", (name,)) for name in sorted(said.closed)]
    for name, dirty in said.dirty.items():
        keys = [key for one in dirty.values() for key in one if key is not None]
        hashes = [number for number, one in dirty.items() if None in one]
        for i in range(0, max(len(keys), len(hashes)), _IDS_PER_EVENT):
            part = slice(i, i + _IDS_PER_EVENT)
            events.append(Event(Kind.IDS, "manual", (name, tuple(keys[part]), tuple(hashes[part]))))
    if said.hard or said.lost:
        events.append(Event(Kind.HARD, said.hard or "manual"))
    elif said.soft:
        events.append(Event(Kind.SOFT, said.soft))
    if said.suspect:
        events.append(Event(Kind.SUSPECT))
    return events
