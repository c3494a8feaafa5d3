"""One msgpack map of id to record, the embedding within it, which every worker decodes whole at open.

The garbage collector is off meanwhile, as the "Performance tips" of msgpack recommend for large messages. What is
decoded is a worker's own: a get is that of a dict, and of embeddings there are as many copies as workers.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from ..data import FACETS, read_bank, record_of
from .base import Facets, Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet

Postings = dict[str, dict[str, set[str]]]
"""field -> value -> ids"""


class Decoded(Peer):
    """What a worker can do once it has all records in a dict, and sets of ids: all but the embeddings."""

    records: dict[str, dict[str, Any]]
    postings: Postings

    def get(self, ids: Sequence[str]) -> Any:
        value, records = None, self.records
        for id_ in ids:
            value = records[id_]["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, get = None, self.records.get
        for id_ in ids:
            found = get(id_)
        return found

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        found: list[Any] = []
        records = self.records
        for ids in batches:
            found = [records[id_] for id_ in ids]
        return [record["domain"] for record in found]

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = list(self.postings["domain"][domain])
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        domains, types, frameworks = (self.postings[field] for field in FACETS)
        for domain, type_, framework in facets:
            found = list(domains[domain] & types[type_] & frameworks[framework])
        return found

    def scan_ids(self) -> list[str]:
        return list(self.records)

    def scan_records(self) -> int:
        n = 0
        for record in self.records.values():
            n += bool(record["domain"])
        return n


class MsgpackBlob(Decoded):
    name = "msgpack blob"
    how = "decoded whole at open"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )
    suffix = ".msgpack"

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        packer = msgpack.Packer()
        with open(path, "wb") as file:
            file.write(packer.pack_map_header(data.n))
            for row in read_bank(data.bank):
                record = record_of(row)
                file.write(packer.pack(record["id"]) + packer.pack({**record, "embedding": row[-1]}))

    def __init__(self, address: str) -> None:
        enabled = gc.isenabled()
        gc.disable()
        try:
            with open(address, "rb") as file:
                self.records = msgpack.unpackb(file.read())
            self.postings = postings_of(self.records.values())
        finally:
            if enabled:
                gc.enable()

    def close(self) -> None:
        del self.records, self.postings

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, records, frombuffer = np.empty(0, "<f4"), self.records, np.frombuffer
        for id_ in ids:
            vector = frombuffer(records[id_]["embedding"], "<f4")
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, records = np.empty((0, 0), "<f4"), self.records
        for ids in batches:
            vectors = b"".join([records[id_]["embedding"] for id_ in ids])
            matrix = np.frombuffer(vectors, "<f4").reshape(len(ids), -1)
        return matrix

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors = b"".join([record["embedding"] for record in self.records.values()])
        return np.frombuffer(vectors, "<f4").reshape(-1, len(query)) @ query


def postings_of(records: Iterable[Mapping[str, Any]]) -> Postings:
    found: Postings = {field: {} for field in FACETS}
    for record in records:
        for field, ids in found.items():
            ids.setdefault(record[field], set()).add(record["id"])
    return found
