"""`ByKey`: the look-ups by key of a collection of a file, the quick way; and `First`, those of a snapshot.

The compiled core has a twin of each, which answers the same. Both read what they need and prove the result; what they
cannot prove, they leave to the careful methods of `FileCollection`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from msgpack import unpackb
from xxhash import xxh3_64_intdigest

from ..arrays import np
from ..format.keys import Key, check_keys, check_length, key_of
from ..format.layout import ROW_SIZE
from ..format.records import MAX_RECORD_BYTES
from ..format.slots import STEPS
from ..native import core
from .batches import BATCH, SMALL_BATCH, Batches
from .lookup import DirtyError, Lookup
from .mapped import UNEXPECTED, Mapped
from .record import Record, attach

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .collection import FileCollection
    from .vectors import Vectors

__all__ = ["ByKey", "First", "PureByKey", "PureFirst"]

T = TypeVar("T")
_new = object.__new__
_unpack_record = struct.Struct("<QI2xHQ").unpack_from
"""Of a row entry, all but the key's length."""


class PureByKey:
    """What is asked of a `FileCollection`, which this is the base of.

    _core, _dirty: what the compiled core reads; not used here.
    """

    __slots__ = ("_core", "_dirty")

    _batches: Batches
    _core: Any
    _dirty: Mapping[int, Sequence[Key | None]] | None
    _first: Vectors
    _lookup: Lookup
    file: Mapped

    def __getitem__(self, key: Key) -> Record:
        look, file = self._lookup, self.file
        encode = look.encode  # an attribute in a slot is found faster than a method of that name would be
        absent = False
        try:
            hashed = xxh3_64_intdigest(encode(key))
            dirty = look.dirty
            if dirty is not None and hashed in dirty:
                raise DirtyError
            slot = hashed >> look.shift
            found = look.hash[slot]
            if found < hashed:
                last = slot + STEPS
                while found < hashed and slot < last:
                    slot += 1
                    found = look.hash[slot]
            if found == hashed:
                row, buffer = look.row[slot], file.buffer
                offset, length, number, expected = _unpack_record(buffer, file.rows_at + ROW_SIZE * row)
                if length <= MAX_RECORD_BYTES:
                    raw = buffer[offset : offset + length]
                    if xxh3_64_intdigest(raw) ^ number == expected:
                        values = unpackb(raw)
                        shape = file.shapes[number]
                        if (
                            (values[0] == key or key_of(values[0]) == key)
                            and len(values) == shape.count
                            and row < file.n
                        ):
                            record = _new(Record)  # as Record() does, without a call from C into Python
                            record._shape = shape
                            record._values = values
                            record._owner = self  # type: ignore[assignment]  # a FileCollection
                            record._row = row
                            return record
            else:
                absent = file.ids_verified and found > hashed
        except UNEXPECTED:
            pass
        if absent:
            check_length(key, look.length)
            raise KeyError(key)
        return self._carefully(key)

    @overload
    def get(self, key: Key) -> Record | None: ...
    @overload
    def get(self, key: Key, default: T) -> Record | T: ...
    def get(self, key: Key, default: T | None = None) -> Record | T | None:
        """The record, or a default where there is none. Raises TypeError for what is no key."""
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        return self._contains_carefully(key)

    def get_many(self, keys: Iterable[Key], *, embeddings: bool = False) -> list[Record | None]:
        """The records of these keys, in their order, None where there is none. Cheaper than one by one.

        embeddings: read with the embedding of each, which `record.embedding` then has at hand.
        """
        wanted = check_keys(keys) if isinstance(keys, (str, bytes)) else list(keys)
        if len(wanted) < SMALL_BATCH:
            found = [self.get(key) for key in wanted]
        else:
            found = []
            for begin in range(0, len(wanted), BATCH):
                batch = wanted[begin : begin + BATCH]
                try:
                    found += self._get_batch(batch)
                except UNEXPECTED:
                    found += [self.get(key) for key in batch]
        if embeddings:
            attach(found)
        return found

    def _get_batch(self, keys: list[Key]) -> list[Record | None]:
        """Many look-ups at once. Raises one of UNEXPECTED where single ones must tell what is wrong."""
        rows, hit = self._lookup.probe(keys)
        if hit.all():
            records = self._batches.decode(rows, self)  # type: ignore[arg-type]  # a FileCollection
            found = [record._values[0] for record in records]
            if found != keys and list(map(key_of, found)) != keys:
                raise LookupError("two keys have one hash")
            return records  # type: ignore[return-value]
        if not self.file.ids_verified:
            raise LookupError("a miss is looked at one by one in a file that is not wholly verified")
        for i in np.flatnonzero(~hit).tolist() if self._lookup.length > 1 else ():
            check_length(keys[i], self._lookup.length)
        answers: list[Record | None] = [None] * len(keys)
        where = np.flatnonzero(hit).tolist()
        for i, record in zip(where, self._get_batch([keys[i] for i in where]) if where else (), strict=True):
            answers[i] = record
        return answers

    def row(self, key: Key) -> int:
        """The row of a key: its place in `embeddings` and every other array. Raises KeyError."""
        return self._row_carefully(key)

    def embedding(self, key: Key, field: str | None = None) -> NDArray[np.float32] | None:
        """float32, (dim,), a read-only view of the file; None for a record without one. Raises KeyError.

        field: which, of several embeddings; by default the first. Raises ValueError for a field that is none.
        """
        vectors = self._first
        if field is not None:
            return self._embedding_carefully(key, field)
        row = self._lookup.find(key)
        matrix = vectors.matrix
        if matrix is not None and vectors.is_plain:
            verified = vectors.verified
            if verified is None:
                return matrix[row]  # type: ignore[no-any-return]
            at = vectors.at + vectors.stride * row
            if verified[at >> 16] and verified[(at + vectors.stride - 1) >> 16]:
                return matrix[row]  # type: ignore[no-any-return]
        return vectors.of(row)

    def _rows_quickly(self, keys: list[Key]) -> bytes | None:
        """uint32 rows; None: one by one tells what is wrong. The compiled core's alone."""
        raise NotImplementedError

    # --- the careful way

    def _carefully(self, key: Key) -> Record:
        raise NotImplementedError

    def _contains_carefully(self, key: object) -> bool:
        raise NotImplementedError

    def _row_carefully(self, key: Key) -> int:
        raise NotImplementedError

    def _embedding_carefully(self, key: Key, field: str | None) -> NDArray[np.float32] | None:
        raise NotImplementedError


class PureFirst:
    """What is asked of a `Snapshot`, which this is the base of."""

    default: FileCollection
    """The first collection, which the snapshot itself is a mapping of."""

    def __getitem__(self, key: Key) -> Record:
        return self.default[key]

    def __contains__(self, key: object) -> bool:
        return key in self.default

    @overload
    def get(self, key: Key) -> Record | None: ...
    @overload
    def get(self, key: Key, default: T) -> Record | T: ...
    def get(self, key: Key, default: T | None = None) -> Record | T | None:
        """The record, or a default where there is none."""
        try:
            return self.default[key]
        except KeyError:
            return default

    def embedding(self, key: Key, field: str | None = None) -> NDArray[np.float32] | None:
        """See `Collection.embedding`."""
        return self.default.embedding(key, field)


if TYPE_CHECKING or core is None:
    ByKey = PureByKey
    First = PureFirst
else:
    ByKey = core.ByKey
    First = core.First
