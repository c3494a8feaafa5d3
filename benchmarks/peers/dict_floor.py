"""What a process can keep to itself, and no shared store can be much faster than: id -> msgpack bytes in a dict, one
float32 matrix, and lists and sets of ids. It is filled from the bank, by every process for itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from .base import Facets, Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet


class DictFloor(Peer):
    name = "dict floor"
    how = "msgpack bytes in a dict, one matrix; not shared"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )
    suffix = ".db"

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        """Another name of the bank."""
        os.link(data.bank, path)

    def __init__(self, address: str) -> None:
        from benchmarks.data import read_bank, record_of

        self.records: dict[str, bytes] = {}
        self.rows: dict[str, int] = {}
        self.lists: dict[str, list[str]] = {}
        self.sets: tuple[dict[str, set[str]], ...] = ({}, {}, {})
        pack = msgpack.Packer().pack
        embeddings = bytearray()
        for i, row in enumerate(read_bank(address)):
            id_, type_, domain, framework = row[:4]
            self.records[id_] = pack(record_of(row))
            self.rows[id_] = i
            embeddings += row[-1]
            self.lists.setdefault(domain, []).append(id_)
            for ids, term in zip(self.sets, (domain, type_, framework), strict=True):
                ids.setdefault(term, set()).add(id_)
        self.matrix: NDArray[np.float32] = np.frombuffer(embeddings, np.float32).reshape(len(self.rows), -1)

    def warm(self) -> None:
        """Filling it did."""

    def close(self) -> None:
        vars(self).clear()

    def get(self, ids: Sequence[str]) -> Any:
        value, records, unpackb = None, self.records, msgpack.unpackb
        for id_ in ids:
            value = unpackb(records[id_])["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, get = None, self.records.get
        for id_ in ids:
            found = get(id_)
        return found

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        found: list[Any] = []
        records, unpackb = self.records, msgpack.unpackb
        for ids in batches:
            found = [unpackb(records[id_]) for id_ in ids]
        return [record["domain"] for record in found]

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, matrix, rows = np.empty(0, np.float32), self.matrix, self.rows
        for id_ in ids:
            vector = matrix[rows[id_]]
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        found, matrix, rows = np.empty((0, 0), np.float32), self.matrix, self.rows
        for ids in batches:
            found = matrix.take([rows[id_] for id_ in ids], axis=0)
        return found

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = list(self.lists[domain])
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        for names in facets:
            one, two, three = sorted((ids[name] for ids, name in zip(self.sets, names, strict=True)), key=len)
            found = list(one & two & three)
        return found

    def scan_ids(self) -> list[str]:
        return list(self.records)

    def scan_records(self) -> int:
        n, unpackb = 0, msgpack.unpackb
        for record in self.records.values():
            n += bool(unpackb(record)["domain"])
        return n

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.matrix @ query
