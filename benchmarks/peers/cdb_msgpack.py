"""cdb: constant databases read by pure-cdb, which maps the file of `Reader.from_file_path`.

One database for records as msgpack, one for embeddings as they are, one for lists of ids. The reader is Python, with a
hash function in C. It makes bytes of what it finds; a memoryview of the map in place of the map saves nothing even for
embeddings, as each probe then makes views. `Reader` and not `Reader64`: each file stays below 4 GB at all sizes here,
and `Writer` refuses what does not.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cdblib
import msgpack
import numpy as np

from ..data import FACETS, read_bank, record_of
from .base import Facets, Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet


class Cdb(Peer):
    name = "cdb"
    how = "pure-cdb over mmap, msgpack"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        os.mkdir(path)
        lists = defaultdict(list)
        with (
            open(os.path.join(path, "records.cdb"), "wb") as one,
            open(os.path.join(path, "embeddings.cdb"), "wb") as two,
            cdblib.Writer(one) as records,
            cdblib.Writer(two) as embeddings,
        ):
            for row in read_bank(data.bank):
                record = record_of(row)
                records.put(record["id"].encode(), msgpack.packb(record))
                embeddings.put(record["id"].encode(), row[-1])
                lists["ids"].append(record["id"])
                for field in FACETS:
                    lists[f"{field}:{record[field]}"].append(record["id"])
        with open(os.path.join(path, "lists.cdb"), "wb") as three, cdblib.Writer(three) as writer:
            for name, ids in lists.items():
                writer.put(name.encode(), msgpack.packb(ids))

    def __init__(self, address: str) -> None:
        self.records, self.embeddings, self.lists = (
            cdblib.Reader.from_file_path(os.path.join(address, f"{name}.cdb"))
            for name in ("records", "embeddings", "lists")
        )

    def warm(self) -> None:
        for reader in self.records, self.embeddings, self.lists:
            for key in reader.iterkeys():
                assert reader.get(key)

    def close(self) -> None:
        for reader in self.records, self.embeddings, self.lists:
            reader.close()

    def get(self, ids: Sequence[str]) -> Any:
        value, get, unpackb = None, self.records.get, msgpack.unpackb
        for id_ in ids:
            value = unpackb(get(id_.encode()))["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, get = None, self.records.get
        for id_ in ids:
            found = get(id_.encode())
        return found

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        records: list[Any] = []
        get, unpackb = self.records.get, msgpack.unpackb
        for ids in batches:
            records = [unpackb(get(id_.encode())) for id_ in ids]
        return [record["domain"] for record in records]

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, get, frombuffer = np.empty(0, "<f4"), self.embeddings.get, np.frombuffer
        for id_ in ids:
            vector = frombuffer(get(id_.encode()), "<f4")
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, get = np.empty((0, 0), "<f4"), self.embeddings.get
        for ids in batches:
            matrix = np.frombuffer(b"".join([get(id_.encode()) for id_ in ids]), "<f4").reshape(len(ids), -1)
        return matrix

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = msgpack.unpackb(self.lists.get(f"domain:{domain}".encode()))
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        get, unpackb = self.lists.get, msgpack.unpackb
        for domain, type_, framework in facets:
            one, two = unpackb(get(f"domain:{domain}".encode())), unpackb(get(f"type:{type_}".encode()))
            found = list(set(one).intersection(two, unpackb(get(f"framework:{framework}".encode()))))
        return found

    def scan_ids(self) -> list[str]:
        return msgpack.unpackb(self.lists.get(b"ids"))  # type: ignore[no-any-return]

    def scan_records(self) -> int:
        n, unpackb = 0, msgpack.unpackb
        for value in self.records.itervalues():
            n += bool(unpackb(value)["domain"])
        return n

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        matrix = np.frombuffer(b"".join(self.embeddings.itervalues()), "<f4").reshape(-1, len(query))
        return matrix @ query
