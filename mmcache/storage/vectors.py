"""`Vectors`: the embeddings of one field of a collection, as views of the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..arrays import np
from ..errors import SourceError
from ..format.header import BLOCK
from ..format.keys import Key
from ..format.layout import ROW_SIZE, EmbeddingLayout
from ..format.sketch import words_in
from .mapped import Mapped, careful

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Vectors", "presence_of", "stacked"]


class Vectors:
    """name: of the field. dim: numbers in each; 0 where no record has one. at: where the first begins. matrix: all of
    them, once any was asked for. is_plain: whether a row of it is the answer where its one or two blocks are verified.
    extremes: the least length above 0 and the greatest, once a search has looked.
    """

    __slots__ = ("at", "dim", "extremes", "file", "is_plain", "matrix", "missing", "name", "stride", "verified")

    def __init__(self, file: Mapped, name: str, layout: EmbeddingLayout) -> None:
        self.file = file
        self.name = name
        self.dim, self.missing = layout
        self.at = file.layout.sections[f"embeddings.{name}"].offset if self.dim else 0
        self.stride = 4 * self.dim
        self.is_plain = 0 < self.stride <= BLOCK and not self.missing
        self.verified = None if file.blocks is None else file.blocks.verified
        self.matrix: NDArray[np.float32] | None = None
        self.extremes: tuple[float, float] | None = None

    @careful
    def everything(self) -> NDArray[np.float32]:
        """float32, (n, dim), C-contiguous, read-only view of the file, rows without an embedding zero."""
        self.file.bytes_of(f"embeddings.{self.name}")
        return self._whole()

    @careful
    def of(self, row: int) -> NDArray[np.float32] | None:
        """float32, (dim,): a read-only view; None for a record without one."""
        file = self.file
        file.check_open()
        if not self.dim:
            return None
        if not file.ids_verified:  # the row entry is what binds a key to a row, and so to an embedding
            file.touch(file.rows_at + ROW_SIZE * row, ROW_SIZE)
        if self.missing:
            at = file.layout.sections[f"presence.{self.name}"].offset + (row >> 3)
            file.touch(at, 1)
            if not file.view[at] >> (row & 7) & 1:
                return None
        file.touch(self.at + self.stride * row, self.stride)
        return self._whole()[row]  # type: ignore[no-any-return]

    @careful
    def at_rows(self, rows: NDArray[np.uint32]) -> NDArray[np.float32]:
        """float32, (len(rows), dim): a view for consecutive rows, else a copy."""
        self._touch(rows)
        if len(rows) and (rows[1:] == rows[:-1] + 1).all():
            return self._whole()[int(rows[0]) : int(rows[-1]) + 1]
        return self._whole()[rows]

    @careful
    def part(self, begin: int, end: int) -> NDArray[np.float32]:
        """float32, (end - begin, dim): a view of consecutive rows, those without an embedding zero."""
        self.file.check_open()
        self.file.touch(self.at + self.stride * begin, self.stride * (end - begin))
        return self._whole()[begin:end]

    @careful
    def take(self, rows: NDArray[np.uint32], out: NDArray[np.float32]) -> None:
        """Copy these rows into float32, (len(rows), dim), C-contiguous."""
        self._touch(rows)
        np.take(self._whole(), rows, axis=0, out=out, mode="clip")  # which needs no buffer of its own

    @careful
    def placed(self, rows: NDArray[np.uint32]) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """A matrix, float32, (m, dim), and the places of these rows in it: of a file, all of it and the rows."""
        self._touch(rows)
        return self._whole(), rows

    def _touch(self, rows: NDArray[np.uint32]) -> None:
        self.file.check_open()
        if self.stride > BLOCK:
            for row in rows.tolist():
                self.file.touch(self.at + self.stride * row, self.stride)
        elif self.dim:
            self.file.touch_rows(rows, self.at, self.stride)

    @property
    def has_norms(self) -> bool:
        """Whether the file has the lengths, which a writer may leave out."""
        return f"norms.{self.name}" in self.file.layout.sections

    @careful
    def norms(self) -> NDArray[np.float32]:
        """float32, (n,): the Euclidean length of each; a read-only view of the file, or made where it has none."""
        if not self.dim:
            self.file.check_open()
            return np.zeros(self.file.n, np.float32)
        if not self.has_norms:
            matrix = self.everything()
            squares: NDArray[np.float64] = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
            return np.sqrt(squares).astype(np.float32)
        return np.frombuffer(self.file.bytes_of(f"norms.{self.name}"), "<f4")

    def present(self) -> NDArray[np.bool_]:
        """bool, (n,): whether a row has one. O(n)."""
        n = self.file.n
        if not self.dim:
            return np.zeros(n, np.bool_)
        bits = self.bitmap()
        return (
            np.ones(n, np.bool_) if bits is None else np.unpackbits(bits, count=n, bitorder="little").astype(np.bool_)
        )

    @careful
    def bitmap(self) -> NDArray[np.uint8] | None:
        """The same as bits, the lowest first; None where every row has one, or none has."""
        if not self.dim or not self.missing:
            self.file.check_open()
            return None
        return np.frombuffer(self.file.bytes_of(f"presence.{self.name}"), np.uint8)

    @property
    def has_sketch(self) -> bool:
        """Whether the file has the signs, which a writer may leave out."""
        return f"sketch.{self.name}" in self.file.layout.sections

    @careful
    def signs(self, begin: int, end: int) -> NDArray[np.uint64]:
        """u64, (words * (end - begin),): the signs of rows in their tiles, a view of the file. See `format.sketch`.
        begin: the first of a tile. end: the same, or that of the file."""
        words = words_in(self.dim)
        at = self.file.layout.sections[f"sketch.{self.name}"].offset + 8 * words * begin
        self.file.check_open()
        self.file.touch(at, 8 * words * (end - begin))
        return np.frombuffer(self.file.view, "<u8", words * (end - begin), at)

    def close(self) -> None:
        self.matrix = None

    def _whole(self) -> NDArray[np.float32]:
        """The whole matrix; the caller that hands out a part of it has touched that part."""
        if self.matrix is None:
            n = self.file.n
            if self.dim:
                self.matrix = np.frombuffer(self.file.view, "<f4", n * self.dim, self.at).reshape(n, self.dim)
            else:
                self.matrix = np.zeros((n, 0), np.float32)
                self.matrix.flags.writeable = False
        return self.matrix


def presence_of(vectors: Sequence[NDArray[np.float32] | None]) -> NDArray[np.bool_]:
    """bool, (len(vectors),): which of them there are."""
    return np.array([vector is not None for vector in vectors], np.bool_)


def stacked(keys: Sequence[Key], vectors: Sequence[NDArray[np.float32] | None], dim: int | None) -> NDArray[np.float32]:
    """float32, (len(keys), dim), read-only: the embeddings of these keys, zeros for None. dim: None for that of the
    first one. Raises SourceError for one of another length."""
    dim = dim or next((len(vector) for vector in vectors if vector is not None), 0)
    matrix = np.zeros((len(vectors), dim), np.float32)
    for i, (key, vector) in enumerate(zip(keys, vectors, strict=True)):
        if vector is not None:
            if len(vector) != dim:
                raise SourceError(f"the embedding of {key!r} has {len(vector)} numbers, where others have {dim}")
            matrix[i] = vector
    matrix.flags.writeable = False
    return matrix
