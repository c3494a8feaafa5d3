"""The file tier: the file at the path as this process has it open, and why it cannot be used where it cannot."""

from __future__ import annotations

import contextlib
import weakref
from typing import Final

from .errors import IncompatibleFormatError, MissingFileError, PublishError, UnusableFileError
from .forks import Lock
from .format.header import Header
from .format.layout import Layout
from .options import Options
from .schema import Schema
from .sharing.decide import Trouble
from .sharing.page import Page
from .storage.fs import Identity, identity_of
from .storage.snapshot import Snapshot, UnverifiedError
from .storage.trust import name_owners

__all__ = ["DAMAGED", "FileTier", "is_ours_to_mend"]

DAMAGED: Final = "a record of the file is damaged"

_TRIES: Final = 5

_IN_THE_BYTES: Final = ("corrupt", "incompatible")
"""Causes of a refusal that stay for as long as the bytes do: the same file need not be tried again."""


class FileTier:
    """snapshot: the file that is open; None while there is none that can be used. error: why. repair: why the
    published file must be built anew, whatever its age. load_seconds: how long the last opening took.

    schemas: of the source; None without one. Not safe in threads: `Watch` calls it under a lock, or in one thread.
    """

    def __init__(self, path: str, schemas: tuple[Schema, ...] | None, options: Options) -> None:
        name_owners(path, options.uids)
        self.path = path
        self.schemas = schemas
        self.snapshot: Snapshot | None = None
        self.error: UnusableFileError | None = None
        self.repair = ""
        self.lock = Lock()
        self._options = options
        self._refused: Identity | None = None
        self._opened: list[weakref.ref[Snapshot]] = []  # a mapping has no hash

    @property
    def trouble(self) -> Trouble | None:
        return None if self.error is None else Trouble(self.error.cause, self.error.message)

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
        it. Raises UnusableFileError, and UnverifiedError for one that is not known."""
        host = None if page is None else _Host(page)
        snapshot = Snapshot.attach(self.path, self._options.verify, self._options.access, host, known=known)
        if not self.has_our_schemas(snapshot.layout):
            snapshot.close()
            raise IncompatibleFormatError(
                "was built with other schemas than the source has now: rebuild it", path=self.path
            )
        return snapshot

    def has_our_schemas(self, layout: Layout | None) -> bool:
        if layout is None:
            return False
        return self.schemas is None or self.schemas == tuple(one.schema for one in layout.collections.values())

    def take(self, snapshot: Snapshot) -> None:
        """Answer from this snapshot. A reader that took the old one before finishes with it; it is unmapped with its
        last user."""
        self.snapshot = snapshot
        self._opened.append(weakref.ref(snapshot))
        self.error = self._refused = None
        self.repair = ""

    # --- another file at the path

    def other(self, page: Page | None, *, known: bool = False) -> Snapshot | None:
        """The file at the path, opened, if it is another than ours. Raises UnusableFileError for one that is refused,
        and UnverifiedError as `open`."""
        ours = self.snapshot
        for _ in range(_TRIES):
            identity = identity_of(self.path)
            if identity is None:
                self.repair = "the file is missing"
                return None
            if ours is not None and identity == ours.identity:
                if self.repair != DAMAGED:  # it is there again
                    self.repair, self._refused = "", None
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
                if error.cause in _IN_THE_BYTES:
                    self._refused = identity
                if is_ours_to_mend(error):
                    self.repair = f"the file is {error.cause}"
                raise
        raise UnverifiedError

    def refuse(self, error: UnusableFileError) -> bool:
        """Remember why the file cannot be used; whether that is worth a line."""
        self.error = error.with_traceback(None)  # whose frames would keep the file before it mapped
        return not isinstance(error, MissingFileError)


def is_ours_to_mend(error: UnusableFileError) -> bool:
    """A missing or damaged file, or one with other schemas. A file of another major version belongs to workers of that
    version, and what we may not read or trust we do not replace."""
    return error.cause in ("missing", "corrupt") or (isinstance(error, IncompatibleFormatError) and error.found is None)


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
