"""Records of a file whose end has passed since it was built.

A look-up by key compares the end of the record that it finds with the clock. What is read as a whole leaves out the
rows that the order of the index gives, as of the moment at which a view was first asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ..format.keys import Key, check_keys
from ..query import Interval, Prefix
from .collection import Collection, EmbeddingRef
from .ends import has_ended
from .record import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Expiring", "expired_rows"]


class Expiring(Collection):
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

    def get_many(self, keys: Iterable[Key]) -> list[Record | None]:
        """See `Collection.get_many`."""
        now = time.time()
        return [self._living(record, now) for record in super().get_many(keys)]

    def row(self, key: Key) -> int:
        """See `Collection.row`."""
        return self[key]._row

    def embedding(self, key: Key, field: str | None = None) -> NDArray[np.float32] | None:
        """See `Collection.embedding`."""
        self[key]
        return super().embedding(key, field)

    def get_embeddings(self, keys: Iterable[Key], field: str | None = None) -> NDArray[np.float32]:
        """See `Collection.get_embeddings`."""
        wanted = check_keys(keys)
        for key, record in zip(wanted, self.get_many(wanted), strict=True):
            if record is None:
                raise KeyError(key)
        return super().get_embeddings(wanted, field)

    def embedding_ref(self, key: Key, field: str | None = None) -> EmbeddingRef:
        """See `Collection.embedding_ref`."""
        self[key]
        return super().embedding_ref(key, field)


def expired_rows(collection: Collection, now: float) -> NDArray[np.uint32]:
    """uint32, ascending: the rows of records that have ended. Costs these, and the records that end in this second.

    Raises UnusableFileError for a damaged index.
    """
    field = collection.schema.expires
    if field is None:
        return np.empty(0, np.uint32)
    moment = datetime.fromtimestamp(int(now), UTC)
    day, clock = moment.strftime("%Y-%m-%d"), moment.strftime("%H:%M:%S")
    past: Any = (
        Interval(None, now),
        Interval("", f"{day} {clock}", high_open=True),
        Interval(f"{day}T", f"{day}T{clock}", high_open=True),
    )
    rows = collection.find({field: past}).rows
    present: Any = (Prefix(f"{day} {clock}"), Prefix(f"{day}T{clock}"))
    here = collection.find({field: present})
    ended = [row for row, record in zip(here.rows.tolist(), here, strict=True) if has_ended(record.get(field), now)]
    return np.union1d(rows, np.array(ended, np.uint32)).astype(np.uint32)
