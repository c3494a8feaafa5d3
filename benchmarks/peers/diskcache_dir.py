"""diskcache: one `Cache` in a directory, which is SQLite in WAL mode with a Python interface.

Eviction is off, as `diskcache.Index` has it, and SQLite maps the file. A value is msgpack bytes, which are stored as
they are; a pickled dict, which it would make of a record, takes a tenth longer to read. One `get` needs no transaction;
a batch is read inside `transact()`, which takes a seventh less and makes other writers wait. Lists of ids are values of
their own. Opening writes the settings anew: that is the library's way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import diskcache
import msgpack
import numpy as np

from ..data import FACETS, read_bank, record_of
from .base import Facets, Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet

CHUNK = 1_000
"""Records of a scan that are read in one transaction: it "should be as short as possible"."""


class DiskCache(Peer):
    name = "diskcache"
    how = "msgpack values, batches in transact()"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        lists = defaultdict(list)
        settings = {"eviction_policy": "none", "size_limit": 2**40, "cull_limit": 0, "sqlite_mmap_size": 2**31 - 65536}
        with diskcache.Cache(path, **settings) as cache, cache.transact():
            for row in read_bank(data.bank):
                record = record_of(row)
                cache[record["id"]] = msgpack.packb(record)
                cache[f"embedding:{record['id']}"] = row[-1]
                lists["ids"].append(record["id"])
                for field in FACETS:
                    lists[f"{field}:{record[field]}"].append(record["id"])
            for name, ids in lists.items():
                cache[name] = msgpack.packb(ids)

    def __init__(self, address: str) -> None:
        self.cache = diskcache.Cache(address)

    def warm(self) -> None:
        for key in self.cache:
            assert self.cache[key]

    def close(self) -> None:
        self.cache.close()

    def get(self, ids: Sequence[str]) -> Any:
        value, get, unpackb = None, self.cache.get, msgpack.unpackb
        for id_ in ids:
            value = unpackb(get(id_))["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, get = None, self.cache.get
        for id_ in ids:
            found = get(id_)
        return found

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        records: list[Any] = []
        get, unpackb = self.cache.get, msgpack.unpackb
        for ids in batches:
            with self.cache.transact():
                records = [unpackb(get(id_)) for id_ in ids]
        return [record["domain"] for record in records]

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, get, frombuffer = np.empty(0, "<f4"), self.cache.get, np.frombuffer
        for id_ in ids:
            vector = frombuffer(get(f"embedding:{id_}"), "<f4")
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, get = np.empty((0, 0), "<f4"), self.cache.get
        for ids in batches:
            with self.cache.transact():
                vectors = [get(f"embedding:{id_}") for id_ in ids]
            matrix = np.frombuffer(b"".join(vectors), "<f4").reshape(len(ids), -1)
        return matrix

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = msgpack.unpackb(self.cache.get(f"domain:{domain}"))
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        get, unpackb = self.cache.get, msgpack.unpackb
        for domain, type_, framework in facets:
            one, two = unpackb(get(f"domain:{domain}")), unpackb(get(f"type:{type_}"))
            found = list(set(one).intersection(two, unpackb(get(f"framework:{framework}"))))
        return found

    def scan_ids(self) -> list[str]:
        return msgpack.unpackb(self.cache.get("ids"))  # type: ignore[no-any-return]

    def scan_records(self) -> int:
        n, unpackb = 0, msgpack.unpackb
        for values in self._chunks(""):
            for value in values:
                n += bool(unpackb(value)["domain"])
        return n

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate(
            [
                np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1) @ query
                for vectors in self._chunks("embedding:")
            ]
        )

    def _chunks(self, prefix: str) -> Iterator[list[bytes]]:
        ids, get = self.scan_ids(), self.cache.get
        for start in range(0, len(ids), CHUNK):
            with self.cache.transact():
                values = [get(prefix + id_) for id_ in ids[start : start + CHUNK]]
            yield values
