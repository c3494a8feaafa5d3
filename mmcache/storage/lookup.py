"""`Lookup`: from a key to its row, through the table of ids.

The quick way reads what it needs and proves the result: the key's bytes, or the whole record, are compared. Whatever it
cannot prove (two keys with one hash, damage, a closed snapshot, a miss in a part that is not verified) goes the
careful way. That verifies each block that it compares before it believes a miss.

The attributes are for `PureByKey.__getitem__`, which goes the quick way itself: one more call is a tenth of a get.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_intdigest

from ..arrays import np
from ..format.frame import place_arrays
from ..format.keys import Key, check_key, check_keys, check_length, digested, hashed_bytes, pack_key
from ..format.layout import ROW_SIZE, ids_sizes
from ..format.slots import STEPS, find_ordinal
from ..native import bound
from .mapped import UNEXPECTED, Mapped, careful

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DirtyError", "Lookup"]

_new = object.__new__
_unpack_key = struct.Struct("<Q4xHH").unpack_from
"""Of a row entry, what leads to the key: offset, length of the key, shape."""


class DirtyError(Exception):
    """The key was invalidated after the file was built: its source has to answer. Never leaves a `Cache`."""


bound(DirtyError, "DirtyError")
bound(check_keys, "check_keys")


def _between() -> None:
    """What the compiled core calls between the keys of a long batch: see `let_others_run` in core/batches.c."""


bound(_between, "between")


class Lookup:
    """encode: from a key to the bytes that are hashed, see `keys.digested`. hash, row: the table. shift: from a hash to
    its home. length: of the keys, where they are tuples. dirty: hash -> keys that only the source may answer; None for
    none.
    """

    __slots__ = ("_hash_at", "_row_at", "dirty", "encode", "file", "hash", "length", "prefixes", "row", "shift")

    def __init__(self, file: Mapped) -> None:
        layout = file.layout
        ids = layout.sections["ids"]
        arrays = place_arrays(ids_sizes(ids.count)).offsets
        self._hash_at, self._row_at = ids.offset + arrays["hash"], ids.offset + arrays["row"]
        self.file = file
        self.hash = file.view[self._hash_at : self._hash_at + 8 * ids.count].cast("Q")
        self.row = file.view[self._row_at : self._row_at + 4 * ids.count].cast("I")
        self.shift = 64 - layout.ids.bits
        self.encode: Callable[[Any], bytes] = digested(layout.key_types)
        self.length = len(layout.schema.key_fields)
        self.prefixes = [shape.prefix for shape in layout.shapes]
        self.dirty: Mapping[int, object] | None = None

    def around(self, dirty: Mapping[int, Sequence[Key | None]]) -> Lookup:
        """The same, which raises DirtyError for these keys."""
        twin = _new(Lookup)
        for name in Lookup.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.dirty = dirty
        return twin

    def is_dirty(self, key: Key) -> bool:
        return self.dirty is not None and xxh3_64_intdigest(hashed_bytes(key)) in self.dirty

    def close(self) -> None:
        self.hash = memoryview(b"").cast("Q")
        self.row = memoryview(b"").cast("I")

    def find(self, key: Any) -> int:
        """The row of a key, proved by comparing the key's bytes. Raises KeyError, TypeError for what is no key, and
        DirtyError."""
        absent = False
        file, encode = self.file, self.encode
        try:
            raw = encode(key)
            hashed = xxh3_64_intdigest(raw)
            if self.dirty is not None and hashed in self.dirty:
                raise DirtyError
            slot = hashed >> self.shift
            found = self.hash[slot]
            if found < hashed:
                last = slot + STEPS
                while found < hashed and slot < last:
                    slot += 1
                    found = self.hash[slot]
            if found == hashed:
                row = self.row[slot]
                offset, length, number = _unpack_key(file.buffer, file.rows_at + ROW_SIZE * row)
                at = offset + self.prefixes[number]
                # Of a text, behind its header, as keys.header_size has it.
                begin = at + (1 if length <= 32 else 2 if length <= 257 else 3) if type(key) is str else at
                if file.buffer[begin : at + length] == raw and row < file.n:
                    if not file.ids_verified:
                        file.touch(file.rows_at + ROW_SIZE * row, ROW_SIZE)
                    return row
            else:
                absent = file.ids_verified and found > hashed
        except UNEXPECTED:
            pass
        if absent:
            check_length(key, self.length)
            raise KeyError(key)
        return self.locate(self.checked(key))

    def checked(self, key: object) -> Key:
        """The value as a key that a record may have. Raises TypeError for any other."""
        found = check_key(key)
        check_length(found, self.length)
        return found

    @careful
    def locate(self, key: Key) -> int:
        """The row of a key, every byte on the way verified and every number checked before it is used."""
        file = self.file
        file.check_open()
        raw, hashed = pack_key(key), xxh3_64_intdigest(hashed_bytes(key))
        if self.dirty is not None and hashed in self.dirty:
            raise DirtyError
        compared: list[int] = []

        def raw_key(row: int) -> bytes:
            compared.append(row)
            return file.raw_key(row)

        hashes: Sequence[int] = self.hash
        rows: Sequence[int] = self.row
        if file.blocks is not None:
            hashes, rows = _Verified(self.hash, self._hash_at, 8, file), _Verified(self.row, self._row_at, 4, file)
        try:
            row = find_ordinal(hashes, rows, 64 - self.shift, hashed, raw=raw, key=raw_key)
        except IndexError:
            raise file.corrupt("ids", f"a slot lies outside of the table of {len(self.hash)}") from None
        if row is None:
            for other in compared:  # of other keys with the same hash; or one is damaged, and says so
                file.values(other)
            raise KeyError(key)
        return row

    def probe(self, keys: Sequence[Any]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """The rows of many keys, and whether there is one: by their hashes alone. Raises DirtyError, or one of
        UNEXPECTED where single look-ups must tell what is wrong."""
        digests = list(map(xxh3_64_intdigest, map(self.encode, keys)))
        if self.dirty is not None and not self.dirty.keys().isdisjoint(digests):
            raise DirtyError
        hashed = np.array(digests, np.uint64)
        hashes = np.frombuffer(self.hash, np.uint64)
        slots = (hashed >> np.uint64(self.shift)).view(np.int64)
        found = hashes.take(slots, mode="clip")
        for _ in range(STEPS):
            smaller = found < hashed
            if not smaller.any():
                break
            slots += smaller
            found = hashes.take(slots, mode="clip")
        else:
            slots = hashes.searchsorted(hashed)
            found = hashes.take(slots, mode="clip")
        return np.frombuffer(self.row, np.uint32).take(slots, mode="clip"), found == hashed


class _Verified(Sequence[int]):
    """An array in a map, each item of which is verified when it is read."""

    def __init__(self, array: memoryview, at: int, size: int, file: Mapped) -> None:
        self._array = array
        self._at = at
        self._size = size
        self._file = file

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, i: Any) -> Any:
        found = self._array[i]
        self._file.touch(self._at + self._size * i, self._size)
        return found
