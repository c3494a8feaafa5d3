"""Many rows at once: their keys and their records, decoded in batches by C loops.

A batch that is not exactly right raises one of `UNEXPECTED`; its rows are then read one by one, which tells what is
wrong. Rows are uint32 and below n.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from msgpack import unpackb
from xxhash import xxh3_64_intdigest

from ..arrays import np
from ..format.keys import Key, check_key, key_of
from ..format.layout import ROW_SIZE
from ..format.records import MAX_RECORD_BYTES
from .mapped import UNEXPECTED, Mapped, careful
from .record import Owner, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BATCH", "SMALL_BATCH", "Batches"]

BATCH = 2048
"""Records decoded at a time by whatever reads many."""

SMALL_BATCH = 24
"""Below so many keys or rows, one after the other is faster than numpy."""

_FEW_UNVERIFIED = 4096
"""Up to so many rows, verifying what their keys lie in one by one is faster than importing numpy."""

_SHORT_KEY = 64
_MANY_KEYS = 256
"""Up to so many bytes, from so many keys on, gathering them as a matrix is faster than slicing them out one by one."""

_INT = 9
"""Bytes of the longest int."""
_INT_LENGTHS = bytes([1] * 128 + [0] * 76 + [2, 3, 5, 9] + [0] * 48)
"""By its first byte, of an int that is not negative; else 0."""

_new = object.__new__
_unpack_key = struct.Struct("<Q4xHH").unpack_from
_unpack_record = struct.Struct("<QI2xHQ").unpack_from
"""Of a row entry, what leads to the key, and what leads to the record."""


def _plain(rows: NDArray[np.uint32] | bytes) -> NDArray[np.uint32]:
    """uint32, C-contiguous."""
    return np.frombuffer(rows, np.uint32) if type(rows) is bytes else np.ascontiguousarray(rows, np.uint32)


class Batches:
    """The rows of a collection. Those of the compiled core come as bytes of uint32."""

    __slots__ = ("_are_ints", "_are_texts", "_prefixes", "file")

    def __init__(self, file: Mapped) -> None:
        self.file = file
        self._are_texts = file.layout.key_types == ("str",)
        self._are_ints = file.layout.key_types == ("int",)
        self._prefixes = [shape.prefix for shape in file.shapes]

    def split(self, rows: NDArray[np.uint32]) -> Iterator[NDArray[np.uint32]]:
        """Rows in batches of which each is decoded at once."""
        self.file.check_open()
        average = self.file.layout.sections["records"].length // max(1, self.file.n)
        size = max(1, min(BATCH, MAX_RECORD_BYTES // 2 // max(1, average)))
        for begin in range(0, len(rows), size):
            yield rows[begin : begin + size]

    def everything(self) -> NDArray[np.uint32]:
        return np.arange(self.file.n, dtype=np.uint32)

    @careful
    def keys(self, rows: NDArray[np.uint32] | bytes) -> list[Key]:
        """The keys of rows."""
        file = self.file
        if file.table is not None:
            file.check_open()
            packed = rows if type(rows) is bytes else _plain(rows)
            found: list[Key] | None = file.table.keys(packed)
            if found is None and type(rows) is bytes and len(rows) <= 4 * _FEW_UNVERIFIED:
                file.section("rows")
                for row in memoryview(rows).cast("I"):
                    file.raw_key(row)  # verifies what the key lies in
                found = file.table.keys(packed)
            if found is not None:
                return found
        rows = _plain(rows)
        if file.blocks is None and len(rows) < SMALL_BATCH:
            file.check_open()
            return list(map(self._key, rows.tolist()))
        file.section("rows")
        prefixes = np.array(self._prefixes, np.uint64)
        keys: list[Key] = []
        for batch in self.split(rows):
            offsets, _, key_lengths, numbers, _ = file.entries(batch)
            lengths = key_lengths.astype(np.uint64)
            begins = offsets + prefixes[numbers]
            if self._are_texts:  # behind the header of each, as keys.header_size has it
                headers = np.uint64(1) + (lengths > 32) + (lengths > 257)
                begins += headers
                lengths = np.maximum(lengths, headers) - headers
            if file.blocks is not None:
                file.blocks.touch_many(begins, lengths)
            keys += self._texts(begins, lengths) if self._are_texts else self._others(begins, lengths)
        return keys

    def _key(self, row: int) -> Key:
        """The key of a row of a file that is wholly verified."""
        buffer = self.file.buffer
        offset, length, number = _unpack_key(buffer, self.file.rows_at + ROW_SIZE * row)
        at = offset + self._prefixes[number]
        if self._are_texts:
            at, end = at + (1 if length <= 32 else 2 if length <= 257 else 3), at + length
            return buffer[at:end].decode()  # type: ignore[no-any-return]
        key = unpackb(buffer[at : at + length])
        return key if type(key) is int else check_key(key_of(key))

    def _texts(self, begins: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> list[str]:
        """The texts at these places; short ones gathered by numpy, a line each, and decoded together."""
        buffer = self.file.buffer
        longest = int(lengths.max(initial=0))
        # A window must not reach beyond the file, as one of a short key in the last bytes would.
        if longest <= _SHORT_KEY and len(begins) >= _MANY_KEYS and int(begins.max(initial=0)) + longest < len(buffer):
            data = np.frombuffer(buffer, np.uint8)
            # What sliding_window_view gives, in a third of its time.
            windows = np.ndarray((len(data) - longest, longest + 1), np.uint8, data, 0, (1, 1))
            lines = windows[begins.astype(np.int64)]
            lines[np.arange(len(lines)), lengths.astype(np.int64)] = ord("\n")
            if int(lengths.min()) != longest:
                lines = lines[np.arange(longest + 1) <= lengths.astype(np.int64)[:, None]]
            keys = lines.tobytes().decode().split("\n")
            if len(keys) == len(lengths) + 1:  # unless a key has a line feed
                return keys[:-1]
        return [raw.decode() for raw in self._slices(begins, lengths)]

    def _others(self, begins: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> list[Key]:
        """The keys of any type at these places."""
        if self._are_ints and (found := self._ints(begins, lengths)) is not None:
            return found  # type: ignore[return-value]
        raw = b"".join(self._slices(begins, lengths))
        keys = unpackb(b"\xdd" + len(begins).to_bytes(4, "big") + raw)
        types = set(map(type, keys))
        if not types <= {str, int, bytes}:
            keys = [check_key(key_of(key)) for key in keys]
        return keys  # type: ignore[no-any-return]

    def _ints(self, begins: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> list[int] | None:
        """The ints at these places, those that are not negative and in their shortest form; None if any other is."""
        data = np.frombuffer(self.file.buffer, np.uint8)
        if int(begins.max(initial=0)) + _INT > len(data):
            return None  # a window must not reach beyond the file
        windows = np.ndarray((len(data) - _INT + 1, _INT), np.uint8, data, 0, (1, 1))
        found = windows[begins.astype(np.int64)]
        first = found[:, 0].astype(np.uint64)
        if not (np.frombuffer(_INT_LENGTHS, np.uint8)[found[:, 0]] == lengths).all():
            return None
        values = np.ascontiguousarray(found[:, 1:]).view(">u8")[:, 0].astype(np.uint64)
        small = lengths == 1
        values >>= np.where(small, 0, 72 - 8 * lengths).astype(np.uint64)
        return np.where(small, first, values).tolist()  # type: ignore[no-any-return]

    def _slices(self, begins: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> list[bytes]:
        buffer, ends = self.file.buffer, begins + lengths
        return [buffer[i:j] for i, j in zip(begins.tolist(), ends.tolist(), strict=True)]

    def records(self, rows: NDArray[np.uint32] | bytes, owner: Owner) -> Iterator[Record]:
        """The records of rows, decoded in batches."""
        if type(rows) is bytes and len(rows) < 4 * SMALL_BATCH:
            yield from self._few(memoryview(rows).cast("I").tolist(), owner)
            return
        plain = _plain(rows)
        if len(plain) < SMALL_BATCH:
            yield from self._few(plain.tolist(), owner)
            return
        end = 0
        for batch in self.split(plain):
            end = self._check(batch, end)
            try:
                records = self.decode(batch, owner)
            except UNEXPECTED:
                yield from (self.record(row, owner) for row in batch.tolist())
            else:
                yield from records

    def _few(self, rows: list[int], owner: Owner) -> Iterator[Record]:
        """The records of rows, each as a get gives it once it has found the row."""
        file = self.file
        file.check_open()
        if file.table is not None:
            found = file.table.records(array("I", rows), owner)
            yield from found if found is not None else map(partial(self.record, owner=owner), rows)
            return
        for row in rows:
            try:
                buffer = file.buffer
                offset, length, number, expected = _unpack_record(buffer, file.rows_at + ROW_SIZE * row)
                raw = buffer[offset : offset + min(length, MAX_RECORD_BYTES)]
                values = unpackb(raw)
                shape = file.shapes[number]
                if len(values) != shape.count or xxh3_64_intdigest(raw) ^ number != expected or file.blocks is not None:
                    raise LookupError
            except UNEXPECTED:
                yield self.record(row, owner)
                continue
            record = _new(Record)
            record._shape = shape
            record._values = values
            record._owner = owner
            record._row = row
            yield record

    @careful
    def record(self, row: int, owner: Owner) -> Record:
        """The record of a row. Raises CorruptFileError with the reason."""
        return Record(*self.file.values(row), owner, row)

    @careful
    def _check(self, rows: NDArray[np.uint32], end: int) -> int:
        """Verify the entries of these rows, and that they lead to records that follow each other, in whatever order.

        end: where the last record before them ends, if all ascend. Gives where theirs end. Records that overlap would
        decode to more than a file of this size can hold.
        """
        file = self.file
        file.check_open()
        file.touch_rows(rows, file.rows_at, ROW_SIZE)
        begins, lengths, *_ = file.entries(rows)
        ends = begins + lengths
        is_ascending = bool((rows[1:] > rows[:-1]).all())
        if not is_ascending:  # what was turned around, or ordered by a field
            sequence = np.argsort(begins)
            begins, ends, end = begins[sequence], ends[sequence], 0
        if begins[0] < end or (begins[1:] < ends[:-1]).any():
            raise file.corrupt("rows", "two records lie in the same place")
        return int(ends[-1]) if is_ascending else 0

    def decode(self, rows: NDArray[np.uint32], owner: Owner) -> list[Record]:
        """Many records with one decode. Raises one of UNEXPECTED where any of them is not right."""
        if self.file.table is not None:
            records: list[Record] | None = self.file.table.records(np.ascontiguousarray(rows, np.uint32), owner)
            if records is None:
                raise LookupError("one by one tells what is wrong")
            return records
        begins, lengths, _, numbers, expected = self.file.entries(rows)
        if lengths.sum() > MAX_RECORD_BYTES:
            raise ValueError("more than is decoded at once")
        buffer = self.file.buffer
        raw = [buffer[begin:end] for begin, end in zip(begins.tolist(), (begins + lengths).tolist(), strict=True)]
        checksums = np.fromiter(map(xxh3_64_intdigest, raw), np.uint64, len(raw))
        if not (checksums ^ numbers == expected).all():
            raise ValueError("a record does not match its checksum")
        decoded: list[list[Any]] = unpackb(b"\xdd" + len(raw).to_bytes(4, "big") + b"".join(raw))
        shapes = self.file.shapes
        each = map(shapes.__getitem__, numbers.tolist())
        found: list[Record] = list(map(_new, repeat(Record, len(decoded))))
        for record, values, row, shape in zip(found, decoded, rows.tolist(), each, strict=True):
            if len(values) != shape.count:
                raise ValueError("a record does not have the values of its shape")
            record._shape = shape
            record._values = values
            record._owner = owner
            record._row = row
        return found
