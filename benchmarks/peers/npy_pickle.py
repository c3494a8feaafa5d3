"""numpy's own file, mapped (`np.load` with mmap_mode), and a pickle of everything else that each worker loads.

The memmap is looked at through a plain array once: indexing a memmap makes a memmap of every row, which takes ten times
as long. Records, row numbers and sets of ids are each worker's own; see `msgpack_blob.Decoded`.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..data import read_bank, record_of
from .msgpack_blob import Decoded, postings_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet


class NpyPickle(Decoded):
    name = "npy + pickle"
    how = "matrix mapped, records loaded"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        os.mkdir(path)
        vectors = b"".join(row[-1] for row in read_bank(data.bank))
        np.save(os.path.join(path, "embeddings.npy"), np.frombuffer(vectors, "<f4").reshape(data.n, data.dim))
        records = {row[0]: record_of(row) for row in read_bank(data.bank)}
        rows = {id_: row for row, id_ in enumerate(records)}
        with open(os.path.join(path, "records.pickle"), "wb") as file:
            pickle.dump((records, rows, postings_of(records.values())), file, pickle.HIGHEST_PROTOCOL)

    def __init__(self, address: str) -> None:
        self.matrix: NDArray[np.float32] = np.asarray(np.load(os.path.join(address, "embeddings.npy"), mmap_mode="r"))
        with open(os.path.join(address, "records.pickle"), "rb") as file:
            self.records, self.rows, self.postings = pickle.load(file)

    def warm(self) -> None:
        self.matrix.sum()

    def close(self) -> None:
        del self.matrix, self.records, self.rows, self.postings

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        matrix, rows = self.matrix, self.rows
        vector = matrix[:0]
        for id_ in ids:
            vector = matrix[rows[id_]]
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, rows = self.matrix, self.rows
        found = matrix[:0]
        for ids in batches:
            found = matrix.take([rows[id_] for id_ in ids], axis=0)
        return found

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.matrix @ query
