"""A second reader, written from docs/format.md alone: struct, msgpack and XXH3, and not a line of mmcache.

Slow and literal on purpose. If it and `Snapshot` disagree, the page or the code is wrong.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import xxhash

HEADER = struct.Struct("<8sHHHHIIQQQQQ16s32s32sQQQQ72sQ")
SECTION = struct.Struct("<72sIIQQQQQQ")
ROW = struct.Struct("<QIHHQ")
ENTRY = struct.Struct("<QQIIII")
MAGIC = bytes.fromhex("894D4D430D0A1A0A")
NONE = 2**32 - 1
KINDS = {
    1: "meta",
    2: "ids",
    3: "rows",
    4: "records",
    5: "index",
    6: "embeddings",
    7: "norms",
    8: "presence",
    9: "blocks",
}


class NotAsSpecifiedError(Exception):
    """The bytes are not as the page says."""


def need(condition: object, what: str) -> None:
    if not condition:
        raise NotAsSpecifiedError(what)


@dataclass
class Section:
    name: str
    kind: int
    flags: int
    offset: int
    length: int
    payload: int
    count: int
    checksum: int


class File:
    """A whole file in memory, checked from end to end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._header()
        self._table()
        self._padding_and_checksums()
        self.meta: dict[str, Any] = msgpack.unpackb(self.section("meta"))
        self.collections = {plain["schema"]["name"]: Collection(self, plain) for plain in self.meta["collections"]}

    def _header(self) -> None:
        need(len(self.data) >= 256, "length")
        fields = HEADER.unpack_from(self.data)
        need(fields[0] == MAGIC, "magic")
        need(fields[1] == 1, "major")
        need(xxhash.xxh3_64_intdigest(self.data[:248]) == fields[20], "header checksum")
        need(fields[5] == 0, "flags")
        (self.section_count, table_offset, file_size, self.generation, self.created_ns, self.elapsed_ns) = fields[6:12]
        (self.build_id, self.sha256, self.fingerprint) = fields[12:15]
        need(file_size == len(self.data), "file size")
        need(table_offset == 256, "table offset")
        need(1 <= self.section_count <= 4096, "section count")
        need(self.generation >= 1, "generation")
        need(fields[4] == 0 and not any(fields[19]), "reserved bytes")

    def _table(self) -> None:
        end = 256 + 128 * self.section_count
        table = self.data[256:end]
        need(xxhash.xxh3_128_digest(table) == self.build_id, "build id")
        need(hashlib.sha256(self.data[end:]).digest() == self.sha256, "sha256")
        self.table_end = end
        self.sections: dict[str, Section] = {}
        for raw, *numbers, reserved in SECTION.iter_unpack(table):
            section = Section(raw.rstrip(b"\0").decode(), *numbers)
            need(reserved == 0, "reserved bytes of a section")
            need(section.name and section.name not in self.sections, "section name")
            need(section.kind in KINDS or not section.flags & 1, "required kind")
            need(section.offset % (4096 if section.kind in (4, 6) else 64) == 0, "alignment")
            need(0 <= section.offset - end < 4096, "order")
            end = section.offset + section.length
            self.sections[section.name] = section
        need(end == len(self.data), "end of the last section")

    def _padding_and_checksums(self) -> None:
        end = self.table_end
        for section in self.sections.values():
            need(not any(self.data[end : section.offset]), "padding")
            end = section.offset + section.length
            need(
                xxhash.xxh3_64_intdigest(self.section(section.name)) == section.checksum, f"checksum of {section.name}"
            )
        blocks = self.sections["blocks"]
        need(list(self.sections)[-1] == "blocks", "blocks are last")
        need(
            blocks.count == math.ceil(blocks.offset / 65_536) and blocks.length == 8 * blocks.count, "number of blocks"
        )
        for k, (checksum,) in enumerate(struct.iter_unpack("<Q", self.section("blocks"))):
            begin, stop = max(65_536 * k, self.table_end), min(65_536 * (k + 1), blocks.offset)
            need(xxhash.xxh3_64_intdigest(self.data[begin:stop], k) == checksum, f"checksum of block {k}")

    def section(self, name: str) -> bytes:
        section = self.sections[name]
        return self.data[section.offset : section.offset + section.length]


class Collection:
    """One collection of a file."""

    def __init__(self, file: File, plain: dict[str, Any]) -> None:
        self._file = file
        self.schema = plain["schema"]
        self.name = self.schema["name"]
        self.key = self.schema.get("key", "id")
        self.dim, self.missing, self.cluster_by = plain["dim"], plain["missing"], plain["cluster_by"]
        self.shapes = plain["shapes"]
        self._plain = plain
        rows = self._section("rows")
        self.n = file.sections[f"{self.name}/rows"].count
        need(len(rows) == 24 * self.n, "rows")
        self._rows = list(ROW.iter_unpack(rows))
        self.bits, self.max_probe, self.seed = plain["ids"]
        self.ids = self.framed("ids", ("hash", "row"))
        self.index = {field: self._postings(field) for field in self.schema.get("index", [])}

    def _section(self, part: str) -> bytes:
        return self._file.section(f"{self.name}/{part}")

    def framed(self, part: str, names: tuple[str, ...]) -> dict[str, bytes]:
        """The arrays of a framed section, by stock msgpack and by arithmetic, which must agree."""
        raw = self._section(part)
        unpacked = msgpack.unpackb(raw)
        arrays = {name: unpacked[name] for name in names}
        need(list(unpacked) == [name for i, real in enumerate(names) for name in (f"_{i}", real)], "keys of a frame")
        need(not any(any(unpacked[f"_{i}"]) for i in range(len(names))), "padding of a frame")
        at = 1
        for i, name in enumerate(names):
            begin = -(-(at + 11 + len(name)) // 64) * 64
            need(raw[begin : begin + len(arrays[name])] == arrays[name], f"place of {name}")
            if i == 0:
                need(self._file.sections[f"{self.name}/{part}"].payload == begin, "payload")
            at = begin + len(arrays[name])
        need(at == len(raw), "end of a frame")
        return arrays

    def record(self, row: int) -> dict[str, Any]:
        """A record's fields, the key first, after its checksum was checked."""
        offset, length, key_length, shape, checksum = self._rows[row]
        raw = self._file.data[offset : offset + length]
        need(xxhash.xxh3_64_intdigest(raw) ^ shape == checksum, "checksum of a record")
        values = msgpack.unpackb(raw, strict_map_key=False)
        need(len(values[0].encode()) == key_length, "length of a key")
        fields = {}
        for name, value in zip(self.shapes[shape], values, strict=True):
            if isinstance(name, list):
                fields[name[0]] = dict(zip(name[1], value, strict=True))
            else:
                fields[name] = value
        need(next(iter(fields)) == self.key, "the key comes first")
        return fields

    def key_bytes(self, row: int) -> bytes:
        """A record's key, by arithmetic and without decoding it."""
        offset, _, key_length, shape, _ = self._rows[row]
        fields = len(self.shapes[shape])
        begin = offset + (1 if fields < 16 else 3 if fields < 65_536 else 5)
        begin += 1 if key_length < 32 else 2 if key_length < 256 else 3
        return self._file.data[begin : begin + key_length]

    def stream(self) -> Iterator[list[Any]]:
        """The records as a stock msgpack library reads the section, from front to back."""
        return iter(msgpack.Unpacker(io.BytesIO(self._section("records")), strict_map_key=False))

    def find(self, key: str) -> int | None:
        """The row of a key, or None."""
        raw = key.encode()
        return self._probe(
            self.ids["hash"], self.ids["row"], self.bits, self.max_probe, self.seed, raw=raw, of=self.key_bytes
        )

    @staticmethod
    def _probe(
        hashes: bytes, ordinals: bytes, bits: int, max_probe: int, seed: int, *, raw: bytes, of: Any
    ) -> int | None:
        slots = len(hashes) // 8
        need(slots % 8 == 0 and slots > 2**bits and len(ordinals) == 4 * slots, "number of slots")
        h = xxhash.xxh3_64_intdigest(raw, seed)
        home = h >> (64 - bits)
        for slot in range(home, min(home + max_probe + 2, slots)):
            (found,) = struct.unpack_from("<Q", hashes, 8 * slot)
            if found > h:
                return None
            if found == h:
                (ordinal,) = struct.unpack_from("<I", ordinals, 4 * slot)
                if ordinal != NONE and of(ordinal) == raw:
                    return ordinal
        return None

    def check_table(self) -> None:
        """The invariants of the gapped table of ids."""
        hashes = [h for (h,) in struct.iter_unpack("<Q", self.ids["hash"])]
        rows = [row for (row,) in struct.iter_unpack("<I", self.ids["row"])]
        entries = [(h, row) for h, row in zip(hashes, rows, strict=True) if row != NONE]
        need(entries == sorted(entries), "order of the slots")
        need({row for _, row in entries} == set(range(self.n)), "every row has a slot")
        last = {row: slot for slot, row in enumerate(rows) if row != NONE}
        for row, slot in last.items():
            h = xxhash.xxh3_64_intdigest(self.key_bytes(row), self.seed)
            need(hashes[slot] == h, "hash of a key")
            need(0 <= slot - (h >> (64 - self.bits)) <= self.max_probe <= 1024, "distance from home")
        for slot in range(max(last.values(), default=-1) + 1, len(rows)):
            need((hashes[slot], rows[slot]) == (2**64 - 1, NONE), "slots after the last entry")

    def _postings(self, field: str) -> dict[Any, list[int]]:
        slots, bits, max_probe, seed, terms, terms_size, rows_size = self._plain["index"][field]
        arrays = self.framed(f"index.{field}", ("hash", "term", "entries", "terms", "rows"))
        sizes = {"hash": 8 * slots, "term": 4 * slots, "entries": 32 * terms, "terms": terms_size, "rows": rows_size}
        need({name: len(array) for name, array in arrays.items()} == sizes, "sizes of an index")
        found: dict[Any, list[int]] = {}
        end = 0
        raw_terms = []
        for term_at, rows_at, count, term_length, kind, reserved in ENTRY.iter_unpack(arrays["entries"]):
            need(reserved == 0 and term_at == end and 1 <= count <= self.n, "entry of an index")
            end = term_at + term_length
            raw_terms.append(arrays["terms"][term_at:end])
            if kind == 2:
                rows = list(range(rows_at, rows_at + count))
            elif kind == 1:
                bitmap = arrays["rows"][rows_at : rows_at + 8 * math.ceil(self.n / 64)]
                rows = [row for row in range(8 * len(bitmap)) if bitmap[row >> 3] >> (row & 7) & 1]
            else:
                need(kind == 0, "kind of a posting list")
                rows = list(struct.unpack_from(f"<{count}I", arrays["rows"], rows_at))
            need(len(rows) == count and rows == sorted(set(rows)) and rows[-1] < self.n, "rows of a term")
            found[msgpack.unpackb(raw_terms[-1])] = rows
        need(end == terms_size, "end of the terms")
        for code, raw in enumerate(raw_terms):
            at = self._probe(arrays["hash"], arrays["term"], bits, max_probe, seed, raw=raw, of=raw_terms.__getitem__)
            need(at == code, "a term is found")
        return found

    def embedding(self, row: int) -> list[float] | None:
        """The embedding of a row as numbers."""
        if not self.dim or not self.has_embedding(row):
            return None
        return list(struct.unpack_from(f"<{self.dim}f", self._section("embeddings"), 4 * self.dim * row))

    def has_embedding(self, row: int) -> bool:
        if not self.missing:
            return bool(self.dim)
        return bool(self._section("presence")[row >> 3] >> (row & 7) & 1)

    def norm(self, row: int) -> float:
        return struct.unpack_from("<f", self._section("norms"), 4 * row)[0]
