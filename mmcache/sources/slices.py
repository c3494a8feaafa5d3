"""Parts of records and arrays in memory: part i of n, each as long as the others but for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

from ..errors import SourceError

__all__ = ["balanced", "first_of", "slice_of", "slice_of_arrays"]


def slice_of(collection: str, records: Any, i: int, n: int) -> Any:
    """Of a list, a tuple, or a table of Arrow. Raises SourceError for what no part can be taken of."""
    if isinstance(records, Sequence):
        begin, end = _ends(len(records), i, n)
        return records[begin:end]
    if all(hasattr(records, name) for name in ("__arrow_c_stream__", "slice", "__len__")):
        begin, end = _ends(len(records), i, n)
        return records.slice(begin, end - begin)
    raise SourceError(
        f"the records of collection {collection!r} are of type {type(records).__name__}, which cannot be cut; "
        "give a list, or a table of Arrow"
    )


def first_of(records: Any, i: int, n: int) -> int:
    """The ordinal of the first record in a part, among all."""
    return _ends(len(records), i, n)[0] if isinstance(records, Sized) else 0


def slice_of_arrays(given: Any, size: int, i: int, n: int) -> Any:
    """The rows of embeddings that go with a slice of `size` records; those that are too many go with the last."""
    if isinstance(given, Mapping):
        return {field: slice_of_arrays(array, size, i, n) for field, array in given.items()}
    begin, end = _ends(size, i, n)
    return given[begin:] if i == n - 1 else given[begin:end]


def balanced(weights: Sequence[int], n: int) -> list[range]:
    """Runs of ordinals of about the same weight each, n at most, none of them empty; at least one."""
    total, begin, seen = sum(weights), 0, 0
    runs: list[range] = []
    for i, weight in enumerate(weights):
        seen += weight
        if seen * n >= total * (len(runs) + 1) and len(runs) < n - 1:
            runs.append(range(begin, i + 1))
            begin = i + 1
    if begin < len(weights) or not runs:
        runs.append(range(begin, len(weights)))
    return runs


def _ends(size: int, i: int, n: int) -> tuple[int, int]:
    return size * i // n, size * (i + 1) // n
