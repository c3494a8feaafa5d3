"""The bits of a sketch as the compiled core makes them: in one pass over the embeddings, at the speed of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..format import sketch
from ..native import core

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["signs_of"]


def signs_of(matrix: NDArray[np.float32]) -> NDArray[np.uint64]:
    """u64, (rows, words): what `format.sketch.signs_of` gives. matrix: float32, (rows, dim), C-contiguous."""
    rows, dim = matrix.shape
    if core is None or not dim:
        return sketch.signs_of(matrix)
    signs = np.empty((rows, sketch.words_in(dim)), np.uint64)
    core.signs(matrix, dim, signs)
    return signs
