"""Records of a file whose end has passed since it was built.

A look-up by key compares the end of the record that it finds with the clock. What is read as a whole leaves out the
rows that the order of the index gives, as of the moment at which a view was first asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from ..arrays import np
from ..format.keys import Key, check_keys
from ..query import Interval, Prefix
from .collection import FileCollection
from .ends import has_ended
from .readable import EmbeddingRef
from .record import Record
from .rows import joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Expired", "Expiring", "expired_at"]


class Expiring(FileCollection):
    """A collection whose look-ups by key do not find what has ended. All else is as in the file: see `around`."""

    __slots__ = ()

    def _living(self, record: Record | None, now: float) -> Record | None:
        field = self.schema.expires
        return None if record is None or field is None or has_ended(record.get(field), now) else record

    def __getitem__(self, key: Key) -> Record:
        record = self._living(super().__getitem__(key), time.time())
        if record is None:
            raise KeyError(key)
        return record

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except (KeyError, TypeError):
            return False
        return True

    def get_many(self, keys: Iterable[Key], *, embeddings: bool = False) -> list[Record | None]:
        """See `FileCollection.get_many`."""
        now = time.time()
        return [self._living(record, now) for record in super().get_many(keys, embeddings=embeddings)]

    def row(self, key: Key) -> int:
        """See `FileCollection.row`."""
        return self[key]._row

    def embedding(self, key: Key, field: str | None = None) -> NDArray[np.float32] | None:
        """See `FileCollection.embedding`."""
        self[key]
        return super().embedding(key, field)

    def get_embeddings(self, keys: Iterable[Key], field: str | None = None) -> NDArray[np.float32]:
        """See `FileCollection.get_embeddings`."""
        wanted = check_keys(keys)
        for key, record in zip(wanted, self.get_many(wanted), strict=True):
            if record is None:
                raise KeyError(key)
        return super().get_embeddings(wanted, field)

    def embedding_ref(self, key: Key, field: str | None = None) -> EmbeddingRef:
        """See `FileCollection.embedding_ref`."""
        self[key]
        return super().embedding_ref(key, field)


class Expired(NamedTuple):
    """rows: uint32, ascending: those of records that had ended at a moment."""

    moment: float
    rows: NDArray[np.uint32]


def expired_at(now: float, collection: FileCollection, before: Expired | None) -> Expired:
    """What has ended. before: what had at an earlier moment, if that is known; then only what ended since is looked up.
    Costs that, and the records that end in this second. Raises UnusableFileError for a damaged index."""
    field = collection.schema.expires
    if field is None:
        return Expired(now, np.empty(0, np.uint32))
    if before is None or now < before.moment:  # the clock went back
        before = Expired(-math.inf, np.empty(0, np.uint32))
    rows = collection.find({field: _ended_between(before.moment, now)}).rows
    day, clock = _spelled(now)
    present: Any = (Prefix(f"{day} {clock}"), Prefix(f"{day}T{clock}"))
    here = collection.find({field: present})
    ended = [row for row, record in zip(here.rows.tolist(), here, strict=True) if has_ended(record.get(field), now)]
    if not len(rows) and not ended:
        return Expired(now, before.rows)
    return Expired(now, joined(before.rows, rows, np.array(ended, np.uint32)))


def _ended_between(moment: float, now: float) -> Any:
    """As a query has it: numbers from one moment to another, and texts from its second to before that of the other."""
    day, clock = _spelled(now)
    if moment == -math.inf:
        first, of_today = "", f"{day}T"
    else:
        begun, at = _spelled(moment)
        first, of_today = f"{begun} {at}", f"{day}T{at}" if begun == day else f"{day}T"
    # All texts of an earlier day, with a blank or a "T", are before those of this day.
    return (
        Interval(None if moment == -math.inf else moment, now),
        Interval(first, f"{day} {clock}", high_open=True),
        Interval(of_today, f"{day}T{clock}", high_open=True),
    )


def _spelled(moment: float) -> tuple[str, str]:
    """Day and second, as texts have them."""
    day, _, clock = datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%d %H:%M:%S").partition(" ")
    return day, clock
