"""The file tier: the file at the path as this process has it open, and why it cannot be used where it cannot."""

from __future__ import annotations

import contextlib
import time
import weakref
from typing import Final, Literal

from .additive import covers, missing_in
from .errors import IncompatibleFormatError, MissingFileError, PublishError, UnusableFileError
from .forks import Lock
from .format.header import Header
from .format.layout import Layout
from .options import Options
from .schema import Schema
from .sharing.decide import Trouble
from .sharing.page import Page
from .sharing.widening import promised_by, schemas_of, still_there
from .sources.base import Source
from .storage.fs import Identity, identity_of
from .storage.snapshot import Snapshot, UnverifiedError
from .storage.trust import name_owners

__all__ = ["DAMAGED", "FileTier", "is_ours_to_mend"]

DAMAGED: Final = "a record of the file is damaged"

_TRIES: Final = 5

Conflict = Literal["", "other schemas", "newer format"]

_OTHER_SCHEMAS: Final = "was built with other schemas than the source has now: rebuild it"

_IN_THE_BYTES: Final = ("corrupt", "incompatible")
"""Causes of a refusal that stay for as long as the bytes do: the same file need not be tried again."""


class FileTier:
    """snapshot: the file that is open; None while there is none that can be used. error: why. repair: why the
    published file must be built anew, whatever its age. conflict: why the published file is not ours to replace at
    once: it is of "other schemas", or of a "newer format"; "" where it is. lacking: which index ours has not.

    Not safe in threads: `Watch` calls it under a lock, or in one thread.
    """

    def __init__(self, path: str, source: Source | None, options: Options) -> None:
        name_owners(path, options.uids)
        self.path = path
        self.conflict: Conflict = ""
        self.lacking = ""
        self._source = source
        self._widened_until = 0.0
        self.snapshot: Snapshot | None = None
        self.error: UnusableFileError | None = None
        self.repair = ""
        self.lock = Lock()
        self._options = options
        self._refused: Identity | None = None
        self._opened: list[weakref.ref[Snapshot]] = []  # a mapping has no hash

    @property
    def trouble(self) -> Trouble | None:
        error = self.error
        return None if error is None else Trouble(error.cause, error.message, mends=is_ours_to_mend(error))

    @property
    def generation(self) -> int:
        """0 without a file."""
        return 0 if self.snapshot is None else self.snapshot.generation

    def pinned(self) -> list[Snapshot]:
        """All that this cache has opened and that is still in use."""
        self._opened = [opened for opened in self._opened if opened() is not None]
        return [snapshot for opened in self._opened if (snapshot := opened()) is not None]

    # --- opening

    def open(self, page: Page | None, *, known: bool = False) -> Snapshot:
        """Open the file at the path. known: only if that costs no more than a few reads, because this host has verified
        it, and the source need not be asked what it still has. Raises UnusableFileError, and UnverifiedError for one
        that is not known."""
        host = None if page is None else _Host(page)
        source, options = self._source, self._options
        choose = None if source is None else self._all_shown if known else self._shown
        snapshot = Snapshot.attach(self.path, options.verify, options.access, host, known=known, choose=choose)
        missing = [] if source is None or known else self._lacks(snapshot.layout, source.schemas)
        is_due = missing and time.monotonic() >= self._widened_until
        self.lacking = f"the file has no index of {', '.join(missing)}" if is_due else ""
        return snapshot

    def widen(self) -> None:
        """A build was started for what the file lacks: not again within a ttl, whatever comes of it."""
        self.lacking = ""
        self._widened_until = time.monotonic() + self._options.policy.ttl

    def serves(self, layout: Layout | None) -> bool:
        """Whether a file has all that the source has now."""
        try:
            return layout is not None and (self._source is None or not self._lacks(layout, self._shown(layout)))
        except IncompatibleFormatError:
            return False

    def _all_shown(self, layout: Layout) -> tuple[Schema, ...]:
        """The source's own, of which the file has all. Raises UnverifiedError where only the source can say more."""
        assert self._source is not None
        ours = self._source.schemas
        if missing_in(schemas_of(layout), ours) or not covers(promised_by(layout), ours):
            raise UnverifiedError
        return ours

    def _shown(self, layout: Layout) -> tuple[Schema, ...]:
        """The schemas with which a file is used: the source's own, less what the source no longer has."""
        assert self._source is not None
        found, ours = promised_by(layout), self._source.schemas
        if not covers(found, ours):
            ours = still_there(self._source)
            if not ours or ours[0].name != self._source.schemas[0].name or not covers(found, ours):
                raise IncompatibleFormatError(_OTHER_SCHEMAS, path=self.path)
        return ours

    def _lacks(self, layout: Layout, ours: tuple[Schema, ...]) -> list[str]:
        """Indexes that the file has not, and that a build would give it."""
        assert self._source is not None
        missing = missing_in(schemas_of(layout), ours)
        return missing and missing_in(schemas_of(layout), still_there(self._source))

    def take(self, snapshot: Snapshot) -> None:
        """Answer from this snapshot. A reader that took the old one before finishes with it; it is unmapped with its
        last user."""
        self.snapshot = snapshot
        self._opened.append(weakref.ref(snapshot))
        self.error = self._refused = None
        self.repair = self.conflict = ""

    # --- another file at the path

    def other(self, page: Page | None, *, known: bool = False) -> Snapshot | None:
        """The file at the path, opened, if it is another than ours. Raises UnusableFileError for one that is refused,
        and UnverifiedError as `open`."""
        ours = self.snapshot
        for _ in range(_TRIES):
            identity = identity_of(self.path)
            if identity is None and ours is not None:
                self.repair, self.conflict = "the file is missing", ""
                return None
            if ours is not None and identity == ours.identity:
                if self.repair != DAMAGED:  # it is there again
                    self.repair, self.conflict, self._refused = "", "", None
                return None
            if identity == self._refused:
                return None
            try:
                return self.open(page, known=known)
            except UnverifiedError:
                # Case: so many files were published since this one was opened that the page knows it no more.
                if identity_of(self.path) == identity:
                    raise
            except UnusableFileError as error:
                self._refused = identity if error.cause in _IN_THE_BYTES else None
                if is_ours_to_mend(error):
                    self.repair = f"the file is {error.cause}"
                raise
        raise UnverifiedError

    def drop_if_spoilt(self) -> None:
        """Called where the file at the path is refused as damaged. If the one that is open was written to in place, it
        answers no more where there is a source: its indexes were verified before, and would be believed. It may have
        lost its name since. Readers that have it finish with it."""
        ours = self.snapshot
        if self._source is None or ours is None:
            return
        with contextlib.suppress(OSError):  # a program has closed what is not its own
            if ours.file.written() != ours.identity[2:]:
                self.snapshot = None

    def there(self) -> Identity | None:
        """What is at the path now."""
        return identity_of(self.path)

    def refuse(self, error: UnusableFileError) -> bool:
        """Remember why the file cannot be used; whether that is worth a line. Where the cause may pass, each poll tries
        again."""
        before, self.error = self.error, error.with_traceback(None)  # whose frames would keep the file before it mapped
        self.conflict = _conflict(error)
        is_told = before is not None and (before.cause, before.message) == (error.cause, error.message)
        return not isinstance(error, MissingFileError) and (error.cause in _IN_THE_BYTES or not is_told)


def is_ours_to_mend(error: UnusableFileError) -> bool:
    """A missing or damaged file, one with other schemas, or one of an older format. What we may not read or trust we do
    not replace, and a newer format belongs to programs that know more than we do."""
    return error.cause in ("missing", "corrupt", "incompatible") and _conflict(error) != "newer format"


def _conflict(error: UnusableFileError) -> Conflict:
    if not isinstance(error, IncompatibleFormatError):
        return ""
    if error.found is None:
        return "other schemas"
    return "" if error.is_older else "newer format"


class _Host:
    """What a page remembers for all processes of the machine: which file was verified."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def knows(self, header: Header, identity: Identity) -> bool:
        return self._page.knows(header, identity)

    def verified(self, header: Header, identity: Identity) -> None:
        if self._page.writable:
            with contextlib.suppress(PublishError):  # the others verify it themselves
                self._page.record_verified(header, identity)
