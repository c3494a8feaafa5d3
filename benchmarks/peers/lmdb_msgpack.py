"""LMDB through py-lmdb: msgpack maps and bytes of embeddings under the ids, no checksums.

As its documentation recommends: written in one transaction of sorted keys by `putmulti(append=True)`; read in one read
transaction that is kept, batches by `getmulti`, what is large as buffers. A single process may open a file once only,
so that both classes share what is open. The ids of every domain, and of every combination of the three facets, are
sorted duplicates of one key: an index made for just that question.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import lmdb
import msgpack
import numpy as np

from .base import Facets, Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet

_BATCH = 1_000
_SCORED = 100
"""Embeddings that are multiplied at a time: few enough for a CPU's cache."""

_opened: weakref.WeakValueDictionary[str, lmdb.Environment] = weakref.WeakValueDictionary()


class Lmdb(Peer):
    name = "LMDB"
    how = "one read transaction kept"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "everything", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        from benchmarks.data import read_bank, record_of

        map_size = 4 * os.path.getsize(data.bank) + 2**24
        with lmdb.open(path, map_size=map_size, max_dbs=4) as env:
            records, embeddings = env.open_db(b"records"), env.open_db(b"embeddings")
            domains, facets = env.open_db(b"domains", dupsort=True), env.open_db(b"facets", dupsort=True)
            pack = msgpack.Packer().pack
            by_facets: dict[bytes, list[bytes]] = {}
            by_domain: dict[bytes, list[bytes]] = {}
            with env.begin(write=True) as txn:
                into_records, into_embeddings = txn.cursor(records), txn.cursor(embeddings)
                rows = read_bank(data.bank, "id")
                while batch := list(islice(rows, _BATCH)):
                    into_records.putmulti([(row[0].encode(), pack(record_of(row))) for row in batch], append=True)
                    into_embeddings.putmulti([(row[0].encode(), row[-1]) for row in batch], append=True)
                    for id_, type_, domain, framework, *_ in batch:
                        by_facets.setdefault(_key(domain, type_, framework), []).append(id_.encode())
                        by_domain.setdefault(domain.encode(), []).append(id_.encode())
                for db, index in (facets, by_facets), (domains, by_domain):
                    cursor = txn.cursor(db)
                    for key, ids in sorted(index.items()):
                        cursor.putmulti([(key, id_) for id_ in ids], append=True)

    def __init__(self, address: str) -> None:
        env = _opened.get(address)
        if env is None:
            env = _opened[address] = lmdb.open(address, readonly=True, max_dbs=4, max_spare_txns=2)
        self.env = env
        self.records, self.embeddings = env.open_db(b"records"), env.open_db(b"embeddings")
        domains, facets = env.open_db(b"domains", dupsort=True), env.open_db(b"facets", dupsort=True)
        self.txn = env.begin(self.records)
        self.vectors = env.begin(self.embeddings, buffers=True)
        self.domain_ids, self.facet_ids = self.txn.cursor(domains), self.txn.cursor(facets)

    def warm(self) -> None:
        for _, value in self.txn.cursor():
            assert value
        for _, vector in self.vectors.cursor():
            assert np.frombuffer(vector, np.float32).any()
        for cursor in self.domain_ids, self.facet_ids:
            for id_ in cursor.iternext(keys=False):
                assert id_

    def close(self) -> None:
        """The last one that lets go of the environment closes it."""
        self.vectors.abort()
        self.txn.abort()
        vars(self).clear()

    def get(self, ids: Sequence[str]) -> Any:
        """Records are read as bytes and embeddings as buffers: each is the faster way for its size."""
        value, get, unpackb = None, self.txn.get, msgpack.unpackb
        for id_ in ids:
            value = unpackb(get(id_.encode()))["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, get = None, self.txn.get
        for id_ in ids:
            found = get(id_.encode())
        return found

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        records, getmulti, unpackb = [], self.txn.cursor().getmulti, msgpack.unpackb
        for ids in batches:
            records = [unpackb(value) for _, value in getmulti([id_.encode() for id_ in ids])]
        return [record["domain"] for record in records]

    def everything(self, batches: Sequence[list[str]]) -> list[Any]:
        read, getmulti, unpackb = [], self.txn.cursor().getmulti, msgpack.unpackb
        get, frombuffer = self.vectors.get, np.frombuffer
        for ids in batches:
            keys = [id_.encode() for id_ in ids]
            records = [unpackb(value) for _, value in getmulti(keys)]
            vectors = [frombuffer(get(key), np.float32) for key in keys]  # type: ignore[arg-type]
            read = [
                (
                    record["id"],
                    record["type"],
                    record["domain"],
                    record["framework"],
                    record["content"],
                    record["metadata"],
                    vector[0],
                )
                for record, vector in zip(records, vectors, strict=True)
            ]
        return read

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, get, frombuffer = np.empty(0, np.float32), self.vectors.get, np.frombuffer
        for id_ in ids:
            vector = frombuffer(get(id_.encode()), np.float32)  # type: ignore[arg-type]
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        """Joining buffers copies each once, and is faster than `getmulti` or rows of a matrix."""
        matrix, get = np.empty((0, 0), np.float32), self.vectors.get
        for ids in batches:
            joined = b"".join([get(id_.encode()) for id_ in ids])  # type: ignore[misc]
            matrix = np.frombuffer(joined, np.float32).reshape(len(ids), -1)
        return matrix

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            self.domain_ids.set_key(domain.encode())
            found = list(map(bytes.decode, self.domain_ids.iternext_dup()))
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        for names in facets:
            self.facet_ids.set_key(_key(*names))
            found = list(map(bytes.decode, self.facet_ids.iternext_dup()))
        return found

    def scan_ids(self) -> list[str]:
        return list(map(bytes.decode, self.txn.cursor().iternext(values=False)))

    def scan_records(self) -> int:
        n, unpackb = 0, msgpack.unpackb
        for value in self.txn.cursor().iternext(keys=False):
            n += bool(unpackb(value)["domain"])
        return n

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = []
        vectors = self.vectors.cursor().iternext(keys=False)
        while run := list(islice(vectors, _SCORED)):
            scores.append(np.frombuffer(b"".join(run), np.float32).reshape(len(run), -1) @ query)
        return np.concatenate(scores)


class LmdbNewTransaction(Lmdb):
    """A transaction for each question, which sees what was written before it: what a long-lived worker would do."""

    name = "LMDB, new transaction"
    how = "sees what was written before"
    operations = frozenset({"get", "get_many", "embedding"})
    store = Lmdb

    def warm(self) -> None:
        """`Lmdb` warms the same file."""

    def get(self, ids: Sequence[str]) -> Any:
        value, begin, records, unpackb = None, self.env.begin, self.records, msgpack.unpackb
        for id_ in ids:
            with begin(records) as txn:
                value = unpackb(txn.get(id_.encode()))["domain"]
        return value

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        found, begin, records, unpackb = [], self.env.begin, self.records, msgpack.unpackb
        for ids in batches:
            with begin(records) as txn:
                found = [unpackb(value) for _, value in txn.cursor().getmulti([id_.encode() for id_ in ids])]
        return [record["domain"] for record in found]

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """As bytes: a buffer ends with its transaction."""
        vector, begin, embeddings, frombuffer = np.empty(0, np.float32), self.env.begin, self.embeddings, np.frombuffer
        for id_ in ids:
            with begin(embeddings) as txn:
                vector = frombuffer(txn.get(id_.encode()), np.float32)  # type: ignore[arg-type]
        return vector


def _key(domain: str, type_: str, framework: str) -> bytes:
    return f"{domain}\0{type_}\0{framework}".encode()
