"""SQLite as one writes it first: one table, the record as JSON text and the embedding as JSON text, an index a field.

A warm connection, opened read-only, nothing set. Statements are prepared once (sqlite3 keeps them), a batch is one
SELECT ... IN. `SqliteBlob` keeps the embedding as the bytes of its float32 instead, and changes nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .base import Facets, Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet

_VARIABLES = 10_000
"""Parameters of one statement; SQLite allows 32,766."""


class SqliteJson(Peer):
    name = "SQLite, JSON"
    how = "records and embeddings as JSON text"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "everything", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )
    suffix = ".db"
    slow = True

    EMBEDDING_TYPE: ClassVar[str] = "TEXT"

    @classmethod
    def encoded(cls, embedding: bytes) -> str | bytes:
        return json.dumps(np.frombuffer(embedding, np.float32).tolist())

    @staticmethod
    def decoded(embedding: Any) -> NDArray[np.float32]:
        return np.array(json.loads(embedding), np.float32)

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        from benchmarks.data import read_bank, record_of

        db = sqlite3.connect(path)
        db.execute(
            "CREATE TABLE patterns (id TEXT PRIMARY KEY, domain TEXT, type TEXT, framework TEXT, record TEXT,"
            f" embedding {cls.EMBEDDING_TYPE})"
        )
        with db:
            db.executemany(
                "INSERT INTO patterns VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (row[0], row[2], row[1], row[3], json.dumps(record_of(row)), cls.encoded(row[-1]))
                    for row in read_bank(data.bank)
                ),
            )
        for field in "domain", "type", "framework":
            db.execute(f"CREATE INDEX by_{field} ON patterns ({field})")
        db.execute("ANALYZE")
        db.close()

    def __init__(self, address: str) -> None:
        self.db = sqlite3.connect(f"file:{address}?mode=ro", uri=True, isolation_level=None)

    def warm(self) -> None:
        for row in self.db.execute("SELECT * FROM patterns"):
            assert row
        for field in "id", "domain", "type", "framework":
            for row in self.db.execute(f"SELECT id FROM patterns ORDER BY {field}"):
                assert row

    def close(self) -> None:
        self.db.close()

    def get(self, ids: Sequence[str]) -> Any:
        value, execute, loads = None, self.db.execute, json.loads
        for id_ in ids:
            value = loads(execute("SELECT record FROM patterns WHERE id = ?", (id_,)).fetchone()[0])["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, execute = None, self.db.execute
        for id_ in ids:
            found = execute("SELECT record FROM patterns WHERE id = ?", (id_,)).fetchone()
        return found

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        records, loads = [], json.loads
        for ids in batches:
            found = dict(self._those("record", ids))
            records = [loads(found[id_]) for id_ in ids]
        return [record["domain"] for record in records]

    def everything(self, batches: Sequence[list[str]]) -> list[Any]:
        read: list[Any] = []
        loads, decoded = json.loads, self.decoded
        for ids in batches:
            found = {id_: (record, embedding) for id_, record, embedding in self._those("record, embedding", ids)}
            read = []
            for id_ in ids:
                text, embedding = found[id_]
                record, vector = loads(text), decoded(embedding)
                read.append(
                    (
                        record["id"],
                        record["type"],
                        record["domain"],
                        record["framework"],
                        record["content"],
                        record["metadata"],
                        vector[0],
                    )
                )
        return read

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, execute, decoded = np.empty(0, np.float32), self.db.execute, self.decoded
        for id_ in ids:
            vector = decoded(execute("SELECT embedding FROM patterns WHERE id = ?", (id_,)).fetchone()[0])
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, decoded = np.empty((0, 0), np.float32), self.decoded
        for ids in batches:
            found = dict(self._those("embedding", ids))
            matrix = np.stack([decoded(found[id_]) for id_ in ids])
        return matrix

    def _those(self, column: str, ids: list[str]) -> Iterator[tuple[Any, ...]]:
        for begin in range(0, len(ids), _VARIABLES):
            some = ids[begin : begin + _VARIABLES]
            marks = ", ".join("?" * len(some))
            yield from self.db.execute(f"SELECT id, {column} FROM patterns WHERE id IN ({marks})", some)

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = [id_ for (id_,) in self.db.execute("SELECT id FROM patterns WHERE domain = ?", (domain,))]
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        for names in facets:
            rows = self.db.execute("SELECT id FROM patterns WHERE domain = ? AND type = ? AND framework = ?", names)
            found = [id_ for (id_,) in rows]
        return found

    def scan_ids(self) -> list[str]:
        return [id_ for (id_,) in self.db.execute("SELECT id FROM patterns")]

    def scan_records(self) -> int:
        n, loads = 0, json.loads
        for (record,) in self.db.execute("SELECT record FROM patterns"):
            n += bool(loads(record)["domain"])
        return n

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        decoded = self.decoded
        rows = self.db.execute("SELECT embedding FROM patterns")
        return np.array([decoded(embedding) @ query for (embedding,) in rows], np.float32)


class SqliteBlob(SqliteJson):
    name = "SQLite, BLOB"
    how = "records as JSON text, embeddings as bytes"
    operations = frozenset({"get", "get_many", "everything", "embedding", "gather", "scan_records", "scan_embeddings"})
    slow = False

    EMBEDDING_TYPE = "BLOB"

    @classmethod
    def encoded(cls, embedding: bytes) -> str | bytes:
        return embedding

    @staticmethod
    def decoded(embedding: Any) -> NDArray[np.float32]:
        return np.frombuffer(embedding, np.float32)
