"""Where does the time of a look-up go, and what of it could other code save?

Every part of a get, of a batch of 100 and of an embedding view is done by itself, for the same ids, as the hot path in
`mmcache/storage/collection.py` does it: the least of many turns, less that of an empty loop. What the parts do not add
up to is the interpreter's own: calls, attributes, comparisons, and, of a batch, numpy's. The floor is what a reader
pays that hands out records as Python objects: decode the bytes and make one; of an embedding, to make an array.
"""

from __future__ import annotations

import gc
import math
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from msgpack import unpackb
from xxhash import xxh3_64_intdigest

import mmcache
from mmcache.format.keys import header_size
from mmcache.format.layout import ROW_SIZE
from mmcache.storage import collection as hot
from mmcache.storage.record import Record

from .common import Report, Settings, dim_of, parser, settings_of, time_text
from .data import DataSet
from .peers.mmcache_file import Mmcache

QUESTION = "Where does the time of a look-up go?"
IDS = 400
BATCH = 100

WHOLE = {
    "get": ("hash", "probe", "entry", "copy", "checksum", "decode", "make"),
    "get_many": ("hash", "copy", "checksum", "decode together", "make"),
    "embedding": ("hash", "probe", "entry", "key", "view"),
}
"""What is asked, and its parts."""

FLOOR = ("decode", "decode together", "make", "view")


class Loops:
    """One method for each part, which does it for all ids; what it needs was made before."""

    def __init__(self, snapshot: mmcache.Snapshot) -> None:
        collection: Any = snapshot.default
        self.snapshot, self.collection = snapshot, collection
        self.file, self.look = collection.file, collection._lookup
        self.ids = random.Random("anatomy").choices(list(map(str, snapshot)), k=IDS)
        self.batches = [self.ids[i : i + BATCH] for i in range(0, IDS, BATCH)]
        self.hashes = [xxh3_64_intdigest(id_.encode()) for id_ in self.ids]
        self.rows = [collection.row(id_) for id_ in self.ids]
        entries = [self.file.row_entry(row) for row in self.rows]
        self.extents = [(begin, begin + length) for begin, length, _, _, _ in entries]
        ends = [begin + self.look.prefixes[shape] + key for begin, _, key, shape, _ in entries]
        self.keys = [
            (end - key + header_size(key), end, id_.encode())
            for end, (_, _, key, _, _), id_ in zip(ends, entries, self.ids, strict=True)
        ]
        self.raw = [self.file.buffer[begin:end] for begin, end in self.extents]
        self.values = [unpackb(raw) for raw in self.raw]
        header = b"\xdd" + BATCH.to_bytes(4, "big")
        self.joined = [header + b"".join(self.raw[i : i + BATCH]) for i in range(0, IDS, BATCH)]
        self.matrix = snapshot.embeddings

    def nothing(self) -> None:
        for _ in self.ids:
            pass

    def hash(self) -> None:
        encode = self.look.encode
        for id_ in self.ids:
            xxh3_64_intdigest(encode(id_))

    def probe(self) -> None:
        table, rows, shift = self.look.hash, self.look.row, self.look.shift
        for hashed in self.hashes:
            slot = hashed >> shift
            while table[slot] < hashed:
                slot += 1
            rows[slot]

    def entry(self) -> None:
        buffer, at = self.file.buffer, self.file.rows_at
        for row in self.rows:
            hot._unpack_record(buffer, at + ROW_SIZE * row)

    def copy(self) -> None:
        buffer = self.file.buffer
        for begin, end in self.extents:
            buffer[begin:end]

    def checksum(self) -> None:
        for raw in self.raw:
            xxh3_64_intdigest(raw)

    def decode(self) -> None:
        for raw in self.raw:
            unpackb(raw)

    def decode_together(self) -> None:
        for joined in self.joined:
            unpackb(joined)

    def make(self) -> None:
        shape, owner, new = self.file.shapes[0], self.collection, object.__new__
        for values in self.values:
            record = new(Record)
            record._shape = shape
            record._values = values
            record._owner = owner
            record._row = 0

    def key(self) -> None:
        buffer = self.file.buffer
        for begin, end, key in self.keys:
            assert buffer[begin:end] == key

    def view(self) -> None:
        matrix = self.matrix
        for row in self.rows:
            matrix[row]

    def get(self) -> None:
        snapshot = self.snapshot
        for id_ in self.ids:
            snapshot[id_]

    def get_many(self) -> None:
        for batch in self.batches:
            self.snapshot.get_many(batch)

    def embedding(self) -> None:
        snapshot = self.snapshot
        for id_ in self.ids:
            snapshot.embedding(id_)


def least(loop: Callable[[], None], turns: int) -> float:
    """Seconds for one id."""
    best = math.inf
    for _ in range(turns):
        begin = time.perf_counter()
        loop()
        best = min(best, time.perf_counter() - begin)
    return best / IDS


def measure(data: DataSet, settings: Settings, report: Report) -> None:
    with mmcache.Snapshot.open(data.store(Mmcache)) as snapshot:
        loops = Loops(snapshot)
        names = dict.fromkeys(name for whole, parts in WHOLE.items() for name in (whole, *parts))
        gc.collect()
        gc.disable()
        turns = settings.repeat(501)
        empty = least(loops.nothing, turns)
        seconds = {name: least(getattr(loops, name.replace(" ", "_")), turns) - empty for name in names}
        gc.enable()
    rows = []
    for whole, parts in WHOLE.items():
        rest = seconds[whole] - sum(seconds[part] for part in parts)
        floor = sum(seconds[part] for part in parts if part in FLOOR)
        figures = {part: seconds[part] for part in parts} | {"the interpreter": rest}
        for part, figure in figures.items():
            title = f"{whole}, {time_text(seconds[whole])}" if part == parts[0] else ""
            rows.append([title, part, time_text(figure), f"{figure / seconds[whole]:.0%}"])
        rows.append(["", "floor", time_text(floor), f"{floor / seconds[whole]:.0%}"])
        rows.append([""] * 4)
        report.result(n=data.n, dim=data.dim, operation=whole, seconds=seconds[whole], parts=figures, floor=floor)
    report.table(f"{data.n:,} records, embeddings of {data.dim}", ("per id", "part", "least", "share"), rows[:-1])


def main() -> int:
    settings = settings_of(parser(QUESTION).parse_args())
    report = Report("anatomy", QUESTION, settings)
    for n in settings.sizes:
        measure(DataSet(n, dim_of(n), settings.data), settings, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
