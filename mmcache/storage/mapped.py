"""`Mapped`: the bytes of one collection in a mapped file, read with every number checked and every block verified.

This is the careful way, which whatever is quicker falls back to: it may take a file of any bytes for what it is not,
and raises CorruptFileError or ClosedError, never anything else. `careful` sees to that for a whole method.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import msgpack

from ..arrays import np
from ..errors import ClosedError, CorruptFileError, MmcacheError
from ..format.frame import place_arrays
from ..format.header import Section
from ..format.layout import ROW_SIZE, CollectionLayout, ids_sizes
from ..format.records import MAX_RECORD_BYTES, Shape, checksum, decode
from ..native import core
from .blocks import Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["UNEXPECTED", "Mapped", "careful"]

UNEXPECTED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error, msgpack.UnpackException)
"""What reading hostile, damaged or closed memory can raise before the careful path has looked at it."""

_unpack_row = struct.Struct("<QIHHQ").unpack_from
_KEYS = (str, int, bytes, list)
"""Types of a record's first value."""

P = ParamSpec("P")
T = TypeVar("T")


_FIELDS: Final = {"offset": "<u8", "length": "<u4", "key_length": "<u2", "shape": "<u2", "checksum": "<u8"}


@cache
def _row_type() -> np.dtype[Any]:
    """Of a row entry, as arrays have it."""
    return np.dtype(list(_FIELDS.items()))


class _HasFile(Protocol):
    @property
    def file(self) -> Mapped: ...


S = TypeVar("S", bound=_HasFile)


def careful(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """For the slow path: whatever reading raises leaves as an MmcacheError that names the path, or a KeyError.

    Another thread may close the snapshot at any point; what fails then, fails because of that.
    """

    @wraps(method)
    def checked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except MmcacheError as error:
            self.file.check_open()  # what looked like damage may be the empty tables that closing leaves
            error.path = error.path or self.file.path
            raise
        except KeyError:
            self.file.check_open()
            raise
        except UNEXPECTED as error:
            self.file.check_open()
            raise CorruptFileError(f"cannot be read as written ({error})", path=self.file.path) from None

    return checked


class Mapped:
    """path: of the file. buffer: the map, or the bytes that stand in for it. blocks: what is verified; None for a file
    that is. ids_verified: whether all that a look-up by key goes through was verified at open, so that a miss is one.
    table: the same for the compiled core; None in pure Python.
    """

    __slots__ = (
        "blocks",
        "buffer",
        "closed",
        "ids_verified",
        "layout",
        "n",
        "path",
        "rows_at",
        "shapes",
        "table",
        "view",
    )

    def __init__(
        self,
        path: str,
        buffer: Any,
        view: memoryview,
        layout: CollectionLayout,
        blocks: Blocks | None,
        *,
        ids_verified: bool,
    ) -> None:
        self.path = path
        self.buffer = buffer
        self.view = view
        self.layout = layout
        self.blocks = blocks
        self.ids_verified = ids_verified
        self.n = layout.n
        self.rows_at = layout.sections["rows"].offset
        self.shapes = layout.shapes
        self.table: Any = None if core is None else _table_of(self)
        self.closed = False

    def close(self) -> None:
        """Every read from here on fails, and then looks whether it fails because of this."""
        self.closed = True
        if self.table is not None:
            self.table.close()
        self.buffer = self.view = self.blocks = None  # type: ignore[assignment]

    def check_open(self) -> None:
        if self.closed:
            raise ClosedError("the snapshot was closed: open it again with Snapshot.open(path)", path=self.path)

    def corrupt(self, part: str, reason: str) -> CorruptFileError:
        """What to raise about a part of this collection."""
        section = self.layout.sections.get(part)
        name = part if section is None else section.name
        where = f"section {name!r} of collection {self.layout.schema.name!r}"
        return CorruptFileError(f"{where}: {reason}", path=self.path, section=name)

    def touch(self, offset: int, length: int) -> None:
        """Verify what these bytes lie in, where that was not done before."""
        if self.blocks is not None:
            self.blocks.touch(offset, length)

    def touch_rows(self, rows: NDArray[np.uint32], at: int, stride: int) -> None:
        """The same for one extent a row, no longer than a block, of which the first begins at `at`."""
        if self.blocks is not None:
            begins = rows.astype(np.uint64) * np.uint64(stride) + np.uint64(at)
            self.blocks.touch_many(begins, np.full(len(rows), stride, np.uint64))

    def section(self, part: str) -> Section:
        """A section, verified. Raises KeyError where there is none."""
        self.check_open()
        section = self.layout.sections[part]
        self.touch(section.offset, section.length)
        return section

    def bytes_of(self, part: str) -> memoryview:
        """The bytes of a section, verified; none where there is none."""
        if part not in self.layout.sections:
            self.check_open()
            return memoryview(b"")
        section = self.section(part)
        return self.view[section.offset : section.end]

    def entries(self, rows: NDArray[np.uint32]) -> tuple[NDArray[Any], ...]:
        """The entries of rows, as they stand: an array for each field, which is four times as fast as one of whole
        entries."""
        table = np.frombuffer(self.buffer, _row_type(), self.n, self.rows_at)
        return tuple([table[name][rows] for name in _FIELDS])

    def row_entry(self, row: int) -> tuple[int, int, int, int, int]:
        """offset, length, key length, shape and checksum of a row, checked."""
        if row >= self.n:
            raise self.corrupt("ids", f"row {row} of {self.n}")
        self.touch(self.rows_at + ROW_SIZE * row, ROW_SIZE)
        entry: tuple[int, int, int, int, int] = _unpack_row(self.view, self.rows_at + ROW_SIZE * row)
        offset, length, key_length, number, _ = entry
        records = self.layout.sections["records"]
        if length > MAX_RECORD_BYTES or not records.offset <= offset <= records.end - length:
            raise self.corrupt("rows", f"record {row} of {length} bytes at {offset} lies outside of the records")
        if number >= len(self.shapes) or key_length + self.shapes[number].prefix > length:
            raise self.corrupt("rows", f"record {row} has shape {number} and a key of {key_length} bytes")
        return entry

    def raw_key(self, row: int) -> bytes:
        """The bytes of a row's key."""
        offset, _, length, number, _ = self.row_entry(row)
        at = offset + self.shapes[number].prefix
        self.touch(at, length)
        return bytes(self.view[at : at + length])

    def values(self, row: int) -> tuple[Shape, list[Any]]:
        """The values of a row's record, after its checksum was compared."""
        self.check_open()
        offset, length, _, number, expected = self.row_entry(row)
        raw = bytes(self.view[offset : offset + length])
        if (found := checksum(raw, number)) != expected:
            error = self.corrupt("records", f"record {row} does not match its checksum")
            error.expected, error.found = f"{expected:016x}", f"{found:016x}"
            raise error
        values = decode(raw)
        shape = self.shapes[number]
        if type(values) is not list or len(values) != shape.count or type(values[0]) not in _KEYS:
            raise self.corrupt("records", f"record {row} does not have the {shape.count} values of its shape")
        return shape, values


def _table_of(file: Mapped) -> Any:
    """What the compiled core reads of a collection."""
    layout = file.layout
    ids = layout.sections["ids"]
    arrays = place_arrays(ids_sizes(ids.count)).offsets
    return core.Table(
        buffer=file.view,
        verified=None if file.blocks is None else file.blocks.verified,
        shapes=tuple((shape, shape.count, shape.prefix) for shape in file.shapes),
        n=file.n,
        slots=ids.count,
        hash_at=ids.offset + arrays["hash"],
        row_at=ids.offset + arrays["row"],
        rows_at=file.rows_at,
        shift=64 - layout.ids.bits,
        ids_verified=file.ids_verified,
        key_width=len(layout.schema.key_fields),
    )
