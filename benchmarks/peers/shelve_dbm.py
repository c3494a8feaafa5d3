"""shelve: pickled values in the database that `dbm.open` picks on this machine, which `how` names.

One shelf for records, one for embeddings as bytes, one for lists of ids; opened with flag "r" and without writeback,
which would keep every record ever read. `dbm.dumb`, the one that is always there, reads its whole index at open and
opens its file at every get: that is what a Python without gdbm, ndbm or `dbm.sqlite3` (3.13) has.
"""

from __future__ import annotations

import importlib
import os
import shelve
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import FACETS, read_bank, record_of
from .base import Facets, Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet


def _picked() -> str:
    """The first of `dbm`'s own order of preference that can be imported."""
    for name in ("dbm.sqlite3", "dbm.gnu", "dbm.ndbm"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        return name
    return "dbm.dumb"


class Shelve(Peer):
    name = "shelve"
    how = f"{_picked()}, pickled values"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        os.mkdir(path)
        found = defaultdict(list)
        with _shelf(path, "records", "n") as records, _shelf(path, "embeddings", "n") as embeddings:
            for row in read_bank(data.bank):
                record = record_of(row)
                records[record["id"]] = record
                embeddings[record["id"]] = row[-1]
                found["ids"].append(record["id"])
                for field in FACETS:
                    found[f"{field}:{record[field]}"].append(record["id"])
        with _shelf(path, "lists", "n") as lists:
            lists.update(found)

    def __init__(self, address: str) -> None:
        self.records, self.embeddings, self.lists = (
            _shelf(address, name, "r") for name in ("records", "embeddings", "lists")
        )

    def warm(self) -> None:
        for shelf in self.records, self.embeddings, self.lists:
            for value in shelf.values():
                assert value

    def close(self) -> None:
        for shelf in self.records, self.embeddings, self.lists:
            shelf.close()

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

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, embeddings, frombuffer = np.empty(0, "<f4"), self.embeddings, np.frombuffer
        for id_ in ids:
            vector = frombuffer(embeddings[id_], "<f4")
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, embeddings = np.empty((0, 0), "<f4"), self.embeddings
        for ids in batches:
            matrix = np.frombuffer(b"".join([embeddings[id_] for id_ in ids]), "<f4").reshape(len(ids), -1)
        return matrix

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = self.lists[f"domain:{domain}"]
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        lists = self.lists
        for domain, type_, framework in facets:
            one, two = lists[f"domain:{domain}"], lists[f"type:{type_}"]
            found = list(set(one).intersection(two, lists[f"framework:{framework}"]))
        return found

    def scan_ids(self) -> list[str]:
        return self.lists["ids"]  # type: ignore[no-any-return]

    def scan_records(self) -> int:
        n = 0
        for record in self.records.values():
            n += bool(record["domain"])
        return n

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        matrix = np.frombuffer(b"".join(self.embeddings.values()), "<f4").reshape(-1, len(query))
        return matrix @ query


def _shelf(path: str, name: str, flag: Any) -> shelve.Shelf[Any]:
    return shelve.open(os.path.join(path, name), flag=flag, writeback=False)
