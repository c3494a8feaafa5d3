"""What a search may be told beside the vector, how many, and among which records: the types of keyword arguments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypedDict

from ..arrays import np
from ..format.keys import Key
from ..schema import Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["SearchOptions", "one_of"]


class SearchOptions(TypedDict, total=False):
    """The keyword arguments of `nearest` and `nearest_many`; `Collection.nearest` says what they mean."""

    embedding: str | None
    metric: Metric | None
    min_score: float | None
    skip: Iterable[Key]
    threads: int | None
    deadline: float | None
    recall: float | None


def one_of(vector: ArrayLike) -> Any:
    """A matrix of one row: the vector, (dim,), or what is one already, as models give it for one text: (1, dim)."""
    try:
        shape = np.shape(vector)
    except ValueError:  # lists of several lengths, which the search refuses
        shape = ()
    return vector if len(shape) == 2 and shape[0] == 1 else [vector]
