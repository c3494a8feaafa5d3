"""pyarrow: one IPC file, memory-mapped and read without a copy, as "Efficiently Writing and Reading Arrow Data" has it.

One record batch, as `write_table` makes of a table, so that the embeddings are one array. Arrow has no index: every
worker makes a dict of id to row at open, and `domain` and `facets` compare whole columns. A record is read value by
value from the arrays, which takes a third of the time of `slice(row, 1).to_pylist()`; many by `take`. The metadata are
msgpack in a binary column: as a struct a single get would take twice as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data import FIELDS, read_bank, record_of
from .base import Facets, Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet

CHUNK = 10_000
"""Records of a scan that are Python objects at one time."""


class ArrowIpc(Peer):
    name = "Arrow IPC"
    how = "mapped table, dict of rows"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )
    suffix = ".arrow"

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        columns = {
            name: pa.array((row[i] for row in read_bank(data.bank)), pa.string()) for i, name in enumerate(FIELDS[:-1])
        }
        metadata = (msgpack.packb(record_of(row)["metadata"]) for row in read_bank(data.bank))
        columns["metadata"] = pa.array(metadata, pa.binary())
        vectors = np.frombuffer(b"".join(row[-1] for row in read_bank(data.bank)), "<f4")
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors), data.dim)
        table = pa.table(columns)
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def __init__(self, address: str) -> None:
        self.file = pa.memory_map(address)
        table = pa.ipc.open_file(self.file).read_all()
        self.records = table.select(FIELDS)
        self.columns = {name: self.records[name].chunk(0) for name in FIELDS}
        self.rows = {id_: row for row, id_ in enumerate(self.columns["id"].to_pylist())}
        vectors = table["embedding"].chunk(0)
        self.matrix: NDArray[np.float32] = vectors.flatten().to_numpy(zero_copy_only=True).reshape(len(vectors), -1)

    def warm(self) -> None:
        assert self.scan_records()
        self.matrix.sum()

    def close(self) -> None:
        del self.records, self.columns, self.rows, self.matrix
        self.file.close()

    def get(self, ids: Sequence[str]) -> Any:
        value, rows, unpackb = None, self.rows, msgpack.unpackb
        columns = list(self.columns.items())
        for id_ in ids:
            row = rows[id_]
            record = {name: column[row].as_py() for name, column in columns}
            record["metadata"] = unpackb(record["metadata"])
            value = record["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, get = None, self.rows.get
        for id_ in ids:
            found = get(id_)
        return found

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        records: list[Any] = []
        rows, unpackb = self.rows, msgpack.unpackb
        for ids in batches:
            records = self.records.take([rows[id_] for id_ in ids]).to_pylist()
            for record in records:
                record["metadata"] = unpackb(record["metadata"])
        return [record["domain"] for record in records]

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        matrix, rows = self.matrix, self.rows
        vector = matrix[:0]
        for id_ in ids:
            vector = matrix[rows[id_]]
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, rows = self.matrix, self.rows
        found = matrix[:0]
        for ids in batches:
            found = matrix.take([rows[id_] for id_ in ids], axis=0)
        return found

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        columns = self.columns
        for domain in domains:
            found = columns["id"].filter(pc.equal(columns["domain"], domain)).to_pylist()
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        columns = self.columns
        for domain, type_, framework in facets:
            matches = pc.and_(pc.equal(columns["domain"], domain), pc.equal(columns["type"], type_))
            matches = pc.and_(matches, pc.equal(columns["framework"], framework))
            found = columns["id"].filter(matches).to_pylist()
        return found

    def scan_ids(self) -> list[str]:
        return self.columns["id"].to_pylist()  # type: ignore[no-any-return]

    def scan_records(self) -> int:
        n, unpackb = 0, msgpack.unpackb
        for batch in self.records.to_batches(max_chunksize=CHUNK):
            for record in batch.to_pylist():
                record["metadata"] = unpackb(record["metadata"])
                n += bool(record["domain"])
        return n

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.matrix @ query
