"""What a builder records on the page and says to the other processes: `storage.publish` calls it under the build lock.

The page may be replaced while a build runs. What is said then is said on the new one; what was captured before stays
what it was, and the new file is compared with the new page by its readers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ..additive import union
from ..errors import PublishError
from ..format.header import Header, Tokens
from ..format.layout import Layout
from ..logs import log
from ..storage.fs import Identity
from .attach import attach, sweep
from .covering import tokens_as_of
from .events import Event, Kind
from .head import Announced, Failure
from .page import MovedError, Page
from .widening import schemas_of

__all__ = ["Announcer"]

_TRIES = 3
_PATIENCE = 1.0
"""Seconds that a builder waits for the page lock when it has to make a page."""


class Announcer:
    """superseded: whether something was invalidated while the file was built that was published last.

    path: of the cache file. page: one that is in use already. Nothing here fails a build: where the others cannot be
    told, they find the new file at their next poll.
    """

    def __init__(self, path: str, page: Page | None = None) -> None:
        self.path = path
        self.superseded = False
        self._page = _shared_or(path, page)
        self._owns = self._page is not page
        self._since_ns = 0

    def close(self) -> None:
        """Let go of a page that nothing else uses."""
        if self._owns:
            self._page.close()

    def _on_page(self, act: Callable[[Page], object]) -> bool:
        """Do this on the page that is at the path; whether it was done."""
        for _ in range(_TRIES):
            if not self._page.writable:
                return False
            try:
                act(self._page)
            except MovedError:
                old, self._page = self._page, attach(self.path, previous=self._page, patience=_PATIENCE)
                self._owns, _ = True, old
            except PublishError as error:
                log.debug("%s", str(error), extra={"event": "not_recorded", "path": self.path})
                return False
            else:
                return True
        return False

    def say(self, kind: Kind, payload: object = ()) -> None:
        """Log one event for all processes, where that is possible."""

        def say(page: Page) -> None:
            if not page.say([Event(kind, payload=payload)]):
                page.wake_readers()  # the page lock is stuck: the records say it, too

        self._on_page(say)

    # --- before and while the source is read

    @property
    def last(self) -> Announced | None:
        head = self._page.head()
        return None if head is None else head.announced

    @property
    def generation(self) -> int:
        """The last that was announced; 0 for none."""
        last = self.last
        return 0 if last is None else last.generation

    def tokens(self) -> Tokens:
        """What was said so far. Raises PublishError where no page can be read."""
        return self._found(Page.tokens)

    def tokens_as_of(self, read_ns: int, current: Header | None) -> Tokens:
        """The same of a file whose source was read at a time, wall clock. current: header of the file that is there."""
        is_later = current is not None and current.created_ns <= read_ns  # then it covers what the present file does

        def tokens(page: Page) -> Tokens:
            known = current.tokens if current is not None and is_later else Tokens()
            now = page.tokens().hard
            hard = now if now == known.hard else 0  # drawn anew each time, so that those of two pages differ
            return tokens_as_of(page, read_ns, current, hard=hard, before=page.position_of(known))

        return self._found(tokens)

    def _found(self, read: Callable[[Page], Tokens]) -> Tokens:
        """What is read of the page at the path. Raises PublishError where none can be read."""
        found: list[Tokens] = []
        self._on_page(lambda page: found.append(read(page)))
        if found:
            return found[0]
        try:
            return read(self._page)
        except MovedError:
            raise PublishError("the control page is replaced again and again", path=self.path) from None

    def begin(self) -> None:
        """We hold the build lock and build."""
        sweep(self.path)
        self._since_ns = time.monotonic_ns()
        head = self._page.head()
        builder = None if head is None else head.builder
        takes = 0 if builder is None else int(builder.takes * 1e9)
        self._on_page(lambda page: page.record_builder(os.getpid(), self._since_ns, takes))

    def end(self) -> None:
        """We do not build any more."""
        took = time.monotonic_ns() - self._since_ns
        self._on_page(lambda page: page.record_builder(0, self._since_ns, max(0, took)))

    # --- what came of it

    def noticed(self, header: Header) -> None:
        """A file is at the path. Where its builder was killed before it could say so, it is said now; and where it may
        have been killed before it woke the others, they are woken."""
        if self.last != Announced(header.generation, header.build_id):
            self._on_page(lambda page: page.record_announced(header))
            self.say(Kind.PUBLISHED, (header.generation,))
        else:
            self._on_page(Page.wake_again)

    def verified(self, header: Header, identity: Identity, *, keep: Identity | None) -> None:
        """Every byte of a file that is about to be published was checked. keep: of the one that is published now."""
        self._on_page(lambda page: page.record_built(header, identity, keep=keep))

    def published(self, layout: Layout, before: Layout | None) -> None:
        """A file is at the path, whole and verified. before: that which was there, or its backup."""
        header = layout.header
        self.superseded = self._differs(header.tokens)
        is_taken = before is not None and union(schemas_of(before), schemas_of(layout)) is None
        self._on_page(lambda page: page.record_announced(header, is_taken=is_taken))
        self.say(Kind.PUBLISHED, (header.generation,))

    def revalidated(self, header: Header, tokens: Tokens, checked_ns: int, elapsed_ns: int, fingerprint: bytes) -> bool:
        """The published file was found to be what a build would make now. False where that cannot be noted for all."""
        if not self._page.shared:
            return False
        self.superseded = self._differs(tokens)
        covered = header, tokens, checked_ns, elapsed_ns, fingerprint
        if not self._on_page(lambda page: page.record_covered(*covered)) or not self._page.shared:
            return False
        self.say(Kind.COVERED, (header.generation,))
        return True

    def _differs(self, tokens: Tokens) -> bool:
        try:
            return self._page.tokens() != tokens
        except MovedError:
            return True

    def covered_ns(self, header: Header) -> int:
        """As of when the file is known to be right: its own build, or a later one that found it unchanged."""
        head = self._page.head()
        covered = None if head is None else head.covered
        return covered.checked_ns if covered is not None and covered.is_of(header) else header.created_ns

    @property
    def failure(self) -> Failure | None:
        return self._page.failure

    def failed(self, error: BaseException) -> None:
        """A build has failed: no process tries for a while, and those that wait for it get the same error."""
        self._on_page(lambda page: page.record_failure(error))
        self.say(Kind.FAILED)

    def succeeded(self) -> None:
        """No build has failed since."""
        if self._page.failure is not None:
            self._on_page(lambda page: page.record_failure(None))

    def cleared(self) -> None:
        """The file was removed by a person: a worker that needs it looks for it again, and may build it at once."""
        self.succeeded()
        self.say(Kind.PUBLISHED, (0,))


def _shared_or(path: str, page: Page | None) -> Page:
    """The page that all share; else the one in memory that a cache has, so that it hears of its own failures."""
    if page is not None and page.shared:
        return page
    found = attach(path, previous=page, patience=_PATIENCE)
    if page is None or found.shared:
        return found
    found.close()
    return page
