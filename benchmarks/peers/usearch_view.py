"""usearch: an index restored as a view of its file, asked for vectors by key.

As its documentation has it for serving from disk (`view=True`), in float32, with an integer for each id in a pickled
dict beside it. Keys are looked up and vectors copied; what it is made for, the nearest neighbours, no other here
answers. The graph for that is built with the usual settings.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from usearch.index import Index

from ..data import read_bank
from .base import Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet


class UsearchView(Peer):
    name = "usearch"
    how = "view of the file, f32"
    operations = frozenset({"embedding", "gather"})

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        os.mkdir(path)
        vectors = b"".join(row[-1] for row in read_bank(data.bank))
        index: Any = Index(ndim=data.dim, metric="cos", dtype="f32")
        index.add(np.arange(data.n), np.frombuffer(vectors, "<f4").reshape(data.n, data.dim))
        index.save(os.path.join(path, "embeddings.usearch"))
        index.reset()
        with open(os.path.join(path, "keys.pickle"), "wb") as file:
            pickle.dump({row[0]: key for key, row in enumerate(read_bank(data.bank))}, file, pickle.HIGHEST_PROTOCOL)

    def __init__(self, address: str) -> None:
        self.index: Any = Index.restore(os.path.join(address, "embeddings.usearch"), view=True)
        with open(os.path.join(address, "keys.pickle"), "rb") as file:
            self.keys: dict[str, int] = pickle.load(file)

    def warm(self) -> None:
        for key in self.keys.values():
            assert self.index.get(key) is not None

    def close(self) -> None:
        self.index.reset()
        del self.index, self.keys

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, get, keys = np.empty(0, "<f4"), self.index.get, self.keys
        for id_ in ids:
            vector = get(keys[id_])
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, get, keys = np.empty((0, 0), "<f4"), self.index.get, self.keys
        for ids in batches:
            matrix = np.stack(get(np.array([keys[id_] for id_ in ids], np.uint64)))
        return matrix
