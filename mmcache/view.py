"""`View`: which tier answers, as of one decision. Reads take it as a whole and never see half of a change."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from .format.keys import Key
from .sharing.decide import Decision
from .sharing.events import Dirty
from .storage.expiring import Expiring, expired_at
from .storage.overlay import Overlay
from .storage.snapshot import FileCollection, Snapshot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["NOTHING", "View"]

_REMEMBERED: Final = 4096
"""Records of a source that a view keeps, at most."""


class View:
    """Immutable, but for the source's answers for dirty ids, which it remembers: an event or a poll brings a new view.

    snapshot: the file that is open, whether it may answer or not. fingerprint: of the source, when it held what the
    file has. readers: collection -> what a lookup by key asks,
    where the file may answer at all; None stands for the default collection. Its dirty ids raise DirtyError.
    wholes: the same -> what is read as a whole, an `Overlay` where ids are dirty or records have expired, as far as it
    is known by now.
    """

    __slots__ = ("decision", "fingerprint", "readers", "snapshot", "wholes")

    def __init__(self, decision: Decision, snapshot: Snapshot | None = None, fingerprint: bytes = b"") -> None:
        self.decision = decision
        self.snapshot = snapshot
        self.fingerprint = fingerprint
        self.readers: Mapping[str | None, FileCollection] = {}
        self.wholes: dict[str | None, FileCollection | Overlay] = {}
        if snapshot is not None and decision.serves:
            self.readers = _readers(snapshot, decision)
            self.wholes = {
                name: reader
                for name, reader in self.readers.items()
                if not isinstance(reader, Expiring) and not self.dirty(reader.name)
            }

    @property
    def cause(self) -> str:
        """Why the source answers where the file does not."""
        return self.decision.cause

    def stale_if_error(self) -> View:
        """The view in which the file answers although it is not its turn, because the source has failed."""
        return View(self.decision._replace(serves=True), self.snapshot)

    def dirty(self, name: str) -> Dirty:
        """The dirty ids of a collection. It may grow meanwhile."""
        return self.decision.dirty.get(name, _NONE)

    def overlay(
        self, name: str | None, ask: Callable[[FileCollection, list[Key], NDArray[np.uint32]], Overlay]
    ) -> FileCollection | Overlay | None:
        """A collection with the source's answers for its dirty ids, without what has expired by now; None where they
        cannot be named.

        ask: makes it, of the file's collection, these keys and the expired rows. Two threads may ask at once.
        """
        assert self.snapshot is not None
        collection = self.snapshot.collection(self.readers[name].name)
        named = [key for keys in tuple(self.dirty(collection.name).values()) for key in keys]
        keys = [key for key in named if key is not None]
        if len(keys) < len(named):
            return None
        known = self.snapshot.expired
        gone = known[collection.name] = expired_at(time.time(), collection, known.get(collection.name))
        found = ask(collection, keys, gone.rows) if keys or len(gone.rows) else collection
        if len(keys) <= _REMEMBERED:
            self.wholes[name] = found
        return found


_NONE: Final[Dirty] = {}


def _readers(snapshot: Snapshot, decision: Decision) -> Mapping[str | None, FileCollection]:
    readers: dict[str | None, FileCollection] = {}
    for name, collection in snapshot.collections.items():
        if name not in decision.closed:
            dirty = decision.dirty.get(name)
            if collection.schema.expires is not None:
                collection = collection.around(dirty or _NONE, Expiring)
            elif dirty:
                collection = collection.around(dirty)
            readers[name] = collection
    if snapshot.default.name in readers:
        readers[None] = readers[snapshot.default.name]
    return readers


NOTHING: Final = View(Decision("starting", "nothing was looked at yet", serves=False, cause="missing"))
