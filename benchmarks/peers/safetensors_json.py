"""safetensors for the embeddings, JSON for the records, which each worker decodes at open.

The file is mapped, but for numpy every tensor that is asked for is copied. So `get_slice`, which the documentation has
for a part of a tensor, copies one row at a time and leaves the matrix shared; it takes one row or a range, not a list.
`load_file` would be as fast as any array, and a private copy of the matrix in every worker; a scan makes one. The
records are as in `msgpack_blob.Decoded`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..data import read_bank, record_of
from .msgpack_blob import Decoded, postings_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet


class SafetensorsJson(Decoded):
    name = "safetensors + JSON"
    how = "slices, records decoded at open"
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
        matrix = np.frombuffer(vectors, "<f4").reshape(data.n, data.dim)
        save_file({"embeddings": matrix}, os.path.join(path, "embeddings.safetensors"))
        with open(os.path.join(path, "records.json"), "w") as file:
            json.dump({row[0]: record_of(row) for row in read_bank(data.bank)}, file)

    def __init__(self, address: str) -> None:
        self.tensors: Any = safe_open(os.path.join(address, "embeddings.safetensors"), framework="np")
        self.slice: Any = self.tensors.get_slice("embeddings")  # type: ignore[no-untyped-call]
        with open(os.path.join(address, "records.json")) as file:
            self.records = json.load(file)
        self.rows = {id_: row for row, id_ in enumerate(self.records)}
        self.postings = postings_of(self.records.values())

    def warm(self) -> None:
        self.tensors.get_tensor("embeddings").sum()

    def close(self) -> None:
        del self.slice, self.tensors, self.records, self.rows, self.postings

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, embeddings, rows = np.empty(0, "<f4"), self.slice, self.rows
        for id_ in ids:
            vector = embeddings[rows[id_]]
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, embeddings, rows = np.empty((0, 0), "<f4"), self.slice, self.rows
        for ids in batches:
            matrix = np.stack([embeddings[rows[id_]] for id_ in ids])
        return matrix

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.tensors.get_tensor("embeddings") @ query  # type: ignore[no-any-return]
