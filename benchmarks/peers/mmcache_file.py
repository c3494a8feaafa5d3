"""mmcache: a `Snapshot` with the default verification. Every byte of a record is checksummed at every get."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mmcache

from .base import Facets, Peer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.data import DataSet


class Mmcache(Peer):
    name = "mmcache"
    how = "Snapshot, checksums on"
    operations = frozenset(
        {"get", "miss", "get_many", "everything", "embedding", "gather", "domain", "facets"}
        | {"scan_ids", "scan_records", "scan_embeddings"}
    )
    suffix = ".mmc"

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        mmcache.build(path, mmcache.SQLiteSource(data.bank, data.schema))
        os.unlink(f"{path}.lock")

    def __init__(self, address: str) -> None:
        self.snapshot: Any = mmcache.Snapshot.open(address)

    def warm(self) -> None:
        for record in self.snapshot.values():
            assert record.id
        self.snapshot.default.embeddings.sum()

    def close(self) -> None:
        self.snapshot.close()

    def get(self, ids: Sequence[str]) -> Any:
        value, snapshot = None, self.snapshot
        for id_ in ids:
            value = snapshot[id_]["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, snapshot = None, self.snapshot
        for id_ in ids:
            found = snapshot.get(id_)
        return found

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        records, snapshot = [], self.snapshot
        for ids in batches:
            records = snapshot.get_many(ids)
        return [record["domain"] for record in records]

    def everything(self, batches: Sequence[list[str]]) -> list[Any]:
        read, snapshot = [], self.snapshot
        for ids in batches:
            read = [
                (
                    record["id"],
                    record["type"],
                    record["domain"],
                    record["framework"],
                    record["content"],
                    record["metadata"],
                    record.embedding[0],
                )
                for record in snapshot.get_many(ids, embeddings=True)
            ]
        return read

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, snapshot = None, self.snapshot
        for id_ in ids:
            vector = snapshot.embedding(id_)
        assert vector is not None
        return vector  # type: ignore[no-any-return]

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, snapshot = None, self.snapshot
        for ids in batches:
            matrix = snapshot.get_embeddings(ids)
        assert matrix is not None
        return matrix  # type: ignore[no-any-return]

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = self.snapshot.where(domain=domain).ids
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        for domain, type_, framework in facets:
            found = self.snapshot.where(domain=domain, type=type_, framework=framework).ids
        return found

    def scan_ids(self) -> list[str]:
        return list(self.snapshot)

    def scan_records(self) -> int:
        n = 0
        for record in self.snapshot.values():
            n += bool(record["domain"])
        return n

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.snapshot.embeddings @ query  # type: ignore[no-any-return]


class MmcacheCache(Mmcache):
    """The same file through a `Cache`, which looks at every get whether anything is new, and counts."""

    name = "mmcache, Cache"
    how = "looks for news, counts"
    operations = frozenset({"get", "get_many", "everything", "embedding"})
    store = Mmcache

    def __init__(self, address: str) -> None:
        self.snapshot = mmcache.open(address)
        self.snapshot.get("")

    def warm(self) -> None:
        """`Mmcache` warms the same file."""
