"""The `sketch` section: one bit for the sign of each number of an embedding.

    a tile for each `TILE` rows, the last of fewer:  u64, (words, rows of the tile)

Bit b of word w of a row is set where number 64 w + b is above 0; bits beyond the last number are 0. So the bits of a
row follow from its embedding alone. The number of bits in which two rows differ, their *distance*, grows with their
angle.

Words lie beside those of other rows, for numpy counts bits of long arrays at once; in tiles, so that what is compared
at a time lies together, and a section is written from its beginning to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..arrays import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TILE", "signs_of", "words_in"]

TILE: Final = 8192
"""Rows of a tile: their bits, and what is made of them, stay in the CPU's cache."""


def words_in(dim: int) -> int:
    """Of a row of so many numbers."""
    return -(-dim // 64)


def signs_of(matrix: NDArray[Any]) -> NDArray[np.uint64]:
    """u64, (rows, words): the bits of each row of a matrix, (rows, dim)."""
    rows, dim = matrix.shape
    bits = np.packbits(matrix > 0, axis=1, bitorder="little")
    if dim % 64:
        padded = np.zeros((rows, 8 * words_in(dim)), np.uint8)
        padded[:, : bits.shape[1]] = bits
        bits = padded
    return bits.view("<u8")
