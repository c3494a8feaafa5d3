"""A second reader, written from docs/format.md alone: struct, msgpack and XXH3, and not a line of mmcache.

Slow and literal on purpose. If it and `Snapshot` disagree, the page or the code is wrong.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import xxhash

HEADER = struct.Struct("<8sHHHHIIQQQQQ16s32s32sQQQQ72sQ")
SECTION = struct.Struct("<32sIIQQQQQ16s")
ROW = struct.Struct("<QIHHQ")
ENTRY = struct.Struct("<QQIIII")
MAGIC = bytes.fromhex("894D4D430D0A1A0A")
NONE = 2**32 - 1
FLAGS = {
    "meta": (1, 1),
    "ids": (2, 3),
    "rows": (3, 1),
    "records": (4, 1),
    "index": (5, 3),
    "embeddings": (6, 1),
    "norms": (7, 2),
    "presence": (8, 1),
    "blocks": (9, 3),
    "chunks": (11, 3),
}
"""Part of a name -> kind and flags."""


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
        self.collections = {
            plain["schema"]["name"]: Collection(self, number, plain)
            for number, plain in enumerate(self.meta["collections"])
        }

    def _header(self) -> None:
        need(len(self.data) >= 256, "length")
        fields = HEADER.unpack_from(self.data)
        need(fields[0] == MAGIC, "magic")
        need(fields[1] == 2, "major")
        need(xxhash.xxh3_64_intdigest(self.data[:248]) == fields[20], "header checksum")
        need(fields[5] == 0, "flags")
        (self.section_count, table_offset, file_size, self.generation, self.created_ns, self.elapsed_ns) = fields[6:12]
        (self.build_id, self.sha256, self.fingerprint) = fields[12:15]
        need(file_size == len(self.data), "file size")
        need(table_offset == 256, "table offset")
        need(1 <= self.section_count <= 4096, "section count")
        need(1 <= self.generation < 2**63, "generation")
        need(fields[4] == 0 and not any(fields[19]), "reserved bytes")

    def _table(self) -> None:
        end = 256 + 96 * self.section_count
        table = self.data[256:end]
        need(xxhash.xxh3_128_digest(table) == self.build_id, "build id")
        self.table_end = end
        self.sections: dict[str, Section] = {}
        for raw, *numbers, reserved in SECTION.iter_unpack(table):
            section = Section(raw.rstrip(b"\0").decode(), *numbers)
            need(not any(reserved), "reserved bytes of a section")
            need(section.name and section.name not in self.sections, "section name")
            part = section.name.rpartition("/")[2].partition(".")[0]
            need(FLAGS.get(part) == (section.kind, section.flags), "kind and flags")
            need(section.offset % (4096 if section.kind in (4, 6) else 64) == 0, "alignment")
            need(0 <= section.offset - end < 4096, "order")
            end = section.offset + section.length
            self.sections[section.name] = section
        need(end == len(self.data), "end of the last section")
        need(list(self.sections)[-2:] == ["blocks", "chunks"], "the last two sections")
        need(hashlib.sha256(table + self.section("chunks")).digest() == self.sha256, "sha256")

    def _padding_and_checksums(self) -> None:
        end = self.table_end
        for section in self.sections.values():
            need(not any(self.data[end : section.offset]), "padding")
            end = section.offset + section.length
            need(
                xxhash.xxh3_64_intdigest(self.section(section.name)) == section.checksum, f"checksum of {section.name}"
            )
        blocks = self.sections["blocks"]
        need(
            blocks.count == math.ceil(blocks.offset / 65_536) and blocks.length == 8 * blocks.count, "number of blocks"
        )
        for k, (checksum,) in enumerate(struct.iter_unpack("<Q", self.section("blocks"))):
            begin, stop = max(65_536 * k, self.table_end), min(65_536 * (k + 1), blocks.offset)
            need(xxhash.xxh3_64_intdigest(self.data[begin:stop], k) == checksum, f"checksum of block {k}")
        digests = b"".join(
            hashlib.sha256(whole[at : at + 131_072]).digest()
            for name in self.sections
            if name != "chunks"
            for whole in [self.section(name)]
            for at in range(0, len(whole), 131_072)
        )
        need(digests == self.section("chunks"), "chunks")
        need(self.sections["chunks"].count == len(digests) // 32, "number of chunks")

    def section(self, name: str) -> bytes:
        section = self.sections[name]
        return self.data[section.offset : section.offset + section.length]


class Collection:
    """One collection of a file."""

    def __init__(self, file: File, number: int, plain: dict[str, Any]) -> None:
        self._file = file
        self._number = number
        self.schema = plain["schema"]
        self.name = self.schema["name"]
        key = self.schema.get("key", "id")
        self.key_fields = key if isinstance(key, list) else [key]
        embedding = self.schema.get("embedding") or []
        self.embeddings = embedding if isinstance(embedding, list) else [embedding]
        self.dims = [dim for dim, _ in plain["embeddings"]]
        self.missing = [missing for _, missing in plain["embeddings"]]
        need(len(self.dims) == len(self.embeddings), "an entry for each embedding")
        self.cluster_by = plain["cluster_by"]
        self.shapes = plain["shapes"]
        self._plain = plain
        rows = self._section("rows")
        self.n = file.sections[f"{number}/rows"].count
        need(len(rows) == 24 * self.n, "rows")
        self._rows = list(ROW.iter_unpack(rows))
        (self.bits,) = plain["ids"]
        self.ids = self.framed("ids", ("hash", "row"))
        self.index = {field: self._postings(field, i) for i, field in enumerate(self.schema.get("index", []))}
        self._check_key_types(plain["key_types"])

    def _section(self, part: str) -> bytes:
        return self._file.section(f"{self._number}/{part}")

    def _check_key_types(self, named: list[str] | None) -> None:
        types = set()
        for row in range(self.n):
            key = msgpack.unpackb(self.key_bytes(row))
            if isinstance(key, list):
                types.add(f"({', '.join(type(part).__name__ for part in key)})")
            else:
                types.add(type(key).__name__)
        need(named == (sorted(types) if len(types) <= 16 else None), "types of keys")

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
                need(self._file.sections[f"{self._number}/{part}"].payload == begin, "payload")
            at = begin + len(arrays[name])
        need(at == len(raw), "end of a frame")
        return arrays

    def record(self, row: int) -> dict[str, Any]:
        """A record's fields, the key first, after its checksum was checked."""
        offset, length, key_length, shape, checksum = self._rows[row]
        raw = self._file.data[offset : offset + length]
        need(xxhash.xxh3_64_intdigest(raw) ^ shape == checksum, "checksum of a record")
        values = msgpack.unpackb(raw, strict_map_key=False)
        need(msgpack.packb(values[0]) == self.key_bytes(row), "bytes of a key")
        need(key_length <= 65_535, "length of a key")
        fields: dict[str, Any] = {}
        for i, (name, value) in enumerate(zip(self.shapes[shape], values, strict=True)):
            if isinstance(name, list) and not i:
                fields |= dict(zip(name, value, strict=True))
            elif isinstance(name, list):
                fields[name[0]] = dict(zip(name[1], value, strict=True))
            else:
                fields[name] = value
        need(list(fields)[: len(self.key_fields)] == self.key_fields, "the key comes first")
        return fields

    def key_bytes(self, row: int) -> bytes:
        """A record's key, by arithmetic and without decoding it."""
        offset, _, key_length, shape, _ = self._rows[row]
        fields = len(self.shapes[shape])
        begin = offset + (1 if fields < 16 else 3 if fields < 65_536 else 5)
        return self._file.data[begin : begin + key_length]

    def stream(self) -> Iterator[list[Any]]:
        """The records as a stock msgpack library reads the section, from front to back."""
        return iter(msgpack.Unpacker(io.BytesIO(self._section("records")), strict_map_key=False))

    def find(self, key: Any) -> int | None:
        """The row of a key, or None."""
        hashed = xxhash.xxh3_64_intdigest(key.encode() if isinstance(key, str) else msgpack.packb(key))
        return self._find(
            self.ids["hash"], self.ids["row"], self.bits, hashed, raw=msgpack.packb(key), of=self.key_bytes
        )

    @staticmethod
    def _find(hashes: bytes, ordinals: bytes, bits: int, h: int, *, raw: bytes, of: Any) -> int | None:
        slots = len(hashes) // 8
        need(slots % 8 == 0 and slots > 2**bits and len(ordinals) == 4 * slots, "number of slots")

        def hash_at(slot: int) -> int:
            return struct.unpack_from("<Q", hashes, 8 * slot)[0]

        def first(low: int, above: Any) -> int:
            """The first slot from `low` on of which `above` is true."""
            high = slots
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if above(middle) else (middle + 1, high)
            return low

        begin = first(h >> (64 - bits), lambda slot: hash_at(slot) >= h)
        end = first(begin, lambda slot: hash_at(slot) > h)

        def bytes_at(slot: int) -> Any:
            (ordinal,) = struct.unpack_from("<I", ordinals, 4 * slot)
            return None if ordinal == NONE else of(ordinal)

        found = first(begin, lambda slot: slot >= end or bytes_at(slot) is None or bytes_at(slot) >= raw)
        if found < end and bytes_at(found) == raw:
            return struct.unpack_from("<I", ordinals, 4 * found)[0]
        return None

    def check_table(self) -> None:
        """The invariants of the gapped table of ids."""
        hashes = [h for (h,) in struct.iter_unpack("<Q", self.ids["hash"])]
        rows = [row for (row,) in struct.iter_unpack("<I", self.ids["row"])]
        entries = [(h, b"" if row == NONE else self.key_bytes(row)) for h, row in zip(hashes, rows, strict=True)]
        used = [entry for entry, row in zip(entries, rows, strict=True) if row != NONE]
        need(used == sorted(used), "order of the slots")
        need({row for row in rows if row != NONE} == set(range(self.n)), "every row has a slot")
        last = {row: slot for slot, row in enumerate(rows) if row != NONE}
        before = -1
        for row, slot in last.items():
            key = msgpack.unpackb(self.key_bytes(row))
            h = xxhash.xxh3_64_intdigest(key.encode() if isinstance(key, str) else self.key_bytes(row))
            need(hashes[slot] == h, "hash of a key")
            need(slot == max(h >> (64 - self.bits), before + 1), "place of an entry")
            before = slot
        need(before + 1 < len(rows), "slots after the last entry")
        for slot in range(before + 1, len(rows)):
            need((hashes[slot], rows[slot]) == (2**64 - 1, NONE), "slots after the last entry")

    def _postings(self, field: str, number: int) -> dict[Any, list[int]]:
        slots, bits, terms, terms_size, rows_size = self._plain["index"][field]
        arrays = self.framed(f"index.{number}", ("hash", "term", "entries", "terms", "rows"))
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
            h = xxhash.xxh3_64_intdigest(raw)
            at = self._find(arrays["hash"], arrays["term"], bits, h, raw=raw, of=raw_terms.__getitem__)
            need(at == code, "a term is found")
        need(len(found) == terms, "every term once")
        self._check_terms(list(found))
        return found

    @staticmethod
    def _check_terms(terms: list[Any]) -> None:
        for term in terms:
            need(
                not isinstance(term, bool) and not (isinstance(term, float) and math.isnan(term)), "a term is canonical"
            )
            need(not (isinstance(term, float) and term.is_integer() and -(2**63) <= term < 2**64), "an int is one")
        kinds = [0 if term is None else 2 if isinstance(term, str) else 1 for term in terms]
        need(kinds == sorted(kinds), "null, numbers, text")
        numbers = [term for term, kind in zip(terms, kinds, strict=True) if kind == 1]
        need(all(one < other for one, other in itertools.pairwise(numbers)), "numbers ascend")
        texts = [term.encode() for term, kind in zip(terms, kinds, strict=True) if kind == 2]
        need(all(one < other for one, other in itertools.pairwise(texts)), "texts ascend")

    def embedding(self, row: int, e: int = 0) -> list[float] | None:
        """An embedding of a row as numbers."""
        if not self.has_embedding(row, e):
            return None
        dim = self.dims[e]
        return list(struct.unpack_from(f"<{dim}f", self._section(f"embeddings.{e}"), 4 * dim * row))

    def has_embedding(self, row: int, e: int = 0) -> bool:
        if e >= len(self.dims) or not self.dims[e]:
            return False
        return not self.missing[e] or bool(self._section(f"presence.{e}")[row >> 3] >> (row & 7) & 1)

    def norm(self, row: int, e: int = 0) -> float:
        if f"{self._number}/norms.{e}" not in self._file.sections:
            return struct.unpack("<f", struct.pack("<f", math.hypot(*(self.embedding(row, e) or ()))))[0]
        return struct.unpack_from("<f", self._section(f"norms.{e}"), 4 * row)[0]
