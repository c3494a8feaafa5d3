"""The k nearest of records that a source streams, where no file may answer. Some of them are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SourceError
from ..schema import Schema
from ..sources.base import SourceRecord
from ..storage.rows import NO_ROW, Given, NoFile
from .asked import Search
from .best import Best
from .neighbours import Neighbours, Offered, joined, scored, skipped
from .sketched import check_sketch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Streamed"]

_TOGETHER = 2**20
"""Bytes of vectors that are scored together."""


class Streamed:
    """One search over the records of a schema. dim: numbers in an embedding; None where that is not known.

    Raises ValueError for what cannot be searched for, before a record is read.
    """

    def __init__(
        self, schema: Schema[Any], dim: int | None, matrix: ArrayLike, k: int, options: Mapping[str, Any]
    ) -> None:
        self._file = NoFile.of(schema)
        self._asked = Search.of(self._file, matrix, k, options)
        check_sketch(self._asked, schema)
        width = self._asked.matrix.shape[1]
        if dim not in (None, 0, width):
            raise ValueError(f"a vector of shape ({dim},) is expected, one for each search; found ({width},)")
        self._is_known = bool(dim)
        self._best: list[tuple[Best, list[Offered]]] = [(best, []) for best in self._asked.best()]

    def over(self, records: Iterable[SourceRecord]) -> list[Neighbours[Any]]:
        """The answer. Raises SearchTimeoutError, and SourceError for embeddings of several lengths."""
        size = max(1, _TOGETHER // (4 * self._asked.matrix.shape[1]))
        some: list[SourceRecord] = []
        read = 0
        for read, record in enumerate(records, 1):
            some.append(record)
            if len(some) == size:
                self._offer(some, read)
                some = []
        self._offer(some, read)
        return [
            joined(self._file, best, offered, self._asked.k, skipped(self._file, self._asked))
            for best, offered in self._best
        ]

    def _offer(self, records: list[SourceRecord], read: int) -> None:
        """read: how many there were, these included, which are the last of them."""
        self._asked.between()
        places = np.arange(len(records))
        given = Given(records, places, NO_ROW + read - len(records) + places)
        self._check_dim(given)
        for best, offered in self._best:
            offered += scored(given, best, self._asked, self._file.embedding_fields)
            offered.sort(key=lambda one: one.rank)
            del offered[best.k :]
            if len(offered) == best.k:
                best.floor = max(best.floor, offered[-1].score)

    def _check_dim(self, given: Given) -> None:
        """The first embedding tells whether the vector fits the collection, or else a record does not."""
        width, fields = self._asked.matrix.shape[1], self._file.embedding_fields
        for vector, key in zip(given.vectors(fields, self._asked.field), given.keys, strict=True):
            if vector is None:
                continue
            dim = len(vector) // 4
            if dim != width and not self._is_known:
                raise ValueError(f"a vector of shape ({dim},) is expected, one for each search; found ({width},)")
            if dim != width:
                raise SourceError(f"the embedding of {key!r} has {dim} numbers, where others have {width}")
            self._is_known = True
