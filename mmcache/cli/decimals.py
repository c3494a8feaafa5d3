"""Numbers of float32 as decimals that are short, and give the same float32 again.

Exact for all. Short for what embeddings hold; numbers of very large or small size may keep all digits of float64.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["shortest"]

_DIGITS: Final = (9, 8, 7, 6)
"""Nine digits tell all numbers of float32 apart, and six are always kept."""

_LEAST: Final = -50
_POWERS: Final = np.array([float(f"1e{exponent}") for exponent in range(_LEAST, 61)])


def shortest(numbers: NDArray[np.float32]) -> list[Any]:
    """Lists of float in the shape of the array: 0.1 for the float32 that prints so, where float64 has 0.10000000149."""
    exact = numbers.astype(np.float64)
    with np.errstate(all="ignore"):  # zeros, NaN and infinities stay as they are
        order = np.floor(np.log10(np.abs(exact)))
        is_plain = np.isfinite(order)
        place = np.where(is_plain, order, 0).astype(np.int64)
        found = exact
        for digits in _DIGITS:
            scale = _POWERS[digits - 1 - place - _LEAST]
            rounded = np.rint(exact * scale) / scale
            found = np.where(is_plain & (rounded.astype(np.float32) == numbers), rounded, found)
    return found.tolist()  # type: ignore[no-any-return]
