"""What the storage tests share: records and what they should answer, files as bytes, files re-sealed after damage.

`sweep` asks a snapshot everything and compares with what is right; `damaged` opens bytes as a file without a file
system; `reseal` makes every checksum of a file right again, so that only structure stands between a reader and
hostile bytes; `Image` takes a file apart into sections and puts it together again.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_digest

import mmcache
from mmcache import MmcacheError, Schema, Snapshot
from mmcache.schema import terms_of
from tests.support import inside

HEADER = struct.Struct("<8s 3H2x II 5Q 16s 32s 32s 4Q 72x Q")
TABLE_ROW = struct.Struct("<32s II 5Q 16x")
ROW_ENTRY = struct.Struct("<QIHHQ")
PAGED = {4, 6}
BLOCK = 65_536
LEAF = 131_072


# --- values -----------------------------------------------------------------------------------------------------------


_PLAIN = {str, int, bool, bytes, type(None)}


def same(one: object, other: object) -> bool:
    """Equal in value and type, NaN to NaN, and -0.0 apart from 0.0; a mapping to a dict. As deep as need be."""
    pairs: list[tuple[Any, Any]] = [(one, other)]
    while pairs:
        one, other = pairs.pop()
        if type(one) is type(other) and type(one) in _PLAIN:
            if one != other:
                return False
        elif isinstance(one, float) and isinstance(other, float):
            if struct.pack("<d", one) != struct.pack("<d", other) and not (math.isnan(one) and math.isnan(other)):
                return False
        elif isinstance(one, Mapping) and isinstance(other, Mapping):
            if len(one) != len(other):
                return False
            pairs += zip(one.keys(), other.keys(), strict=True)
            pairs += zip(one.values(), other.values(), strict=True)
        elif type(one) is not type(other):
            return False
        elif isinstance(one, list) and isinstance(other, list):
            if len(one) != len(other):
                return False
            pairs += zip(one, other, strict=True)
        elif one != other:
            return False
    return True


def same_record(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """The same fields with the same values. Their order is that of the first record with these fields."""
    return found.keys() == expected.keys() and all(same(found[name], value) for name, value in expected.items())


def vector(seed: int, dim: int) -> list[float]:
    """An embedding with a number of its own in every place."""
    return [float(np.float32(math.sin(seed + 1) * (i + 1) + 0.25 * i)) for i in range(dim)]


@dataclass
class Expected:
    """A collection as a dict: what every tier must answer. Rows are in the order of the file."""

    schema: Schema
    records: dict[Any, dict[str, Any]]
    vectors: dict[Any, list[float] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, schema: Schema, items: Sequence[Mapping[str, Any]], cluster_by: str | None = None) -> Expected:
        ordered = list(items)
        if cluster_by is not None:
            first: dict[Any, int] = {}
            for item in ordered:
                first.setdefault(item.get(cluster_by), len(first))
            ordered.sort(key=lambda item: first[item.get(cluster_by)])
        records, vectors = {}, {}
        (key_field,), embedding = schema.resolved().key_fields, schema.embeddings[0] if schema.embeddings else None
        for item in ordered:
            key = item[key_field]
            names = [key_field, *(name for name in item if name not in (key_field, embedding))]
            records[key] = {name: item[name] for name in names}
            vectors[key] = item.get(embedding) if embedding else None
        return cls(schema, records, vectors)

    def where(self, query: Mapping[str, Any]) -> list[str]:
        wanted = {name: set(terms_of(list(v) if isinstance(v, (set, frozenset)) else v)) for name, v in query.items()}
        return [
            key
            for key, record in self.records.items()
            if all(wanted[name] & set(terms_of(record.get(name))) for name in wanted)
        ]

    def terms(self, name: str) -> dict[Any, int]:
        counts: dict[Any, int] = {}
        for record in self.records.values():
            for term in terms_of(record.get(name)):
                counts[term] = counts.get(term, 0) + 1
        return counts


class WrongAnswerError(AssertionError):
    """An answer that is neither right nor an error."""


def _same_array(found: Any, expected: list[float] | None) -> bool:
    if found is None or expected is None:
        return found is None and expected is None
    return bool(np.array_equal(found, np.array(expected, np.float32), equal_nan=True))


def questions(expected: Expected, absent: Sequence[str] = ("", "nobody", "k-1", "K0")) -> Iterator[tuple[str, Any]]:
    """(name, ask): `ask(collection)` gives True where the collection answers as it should."""
    keys = list(expected.records)
    records = expected.records
    some = (keys * 26)[:26] if keys else []  # enough for the path of many keys

    def lookup(key: str) -> Callable[[Any], bool]:
        return lambda c: (record := c[key]).id == key and same_record(record, records[key])

    def record_vector(key: str) -> Callable[[Any], bool]:
        return lambda c: _same_array(c[key].embedding, expected.vectors[key])

    def are(found: list[Any], wanted: list[str]) -> bool:
        return [r.id for r in found] == wanted and all(same_record(r, records[r.id]) for r in found)

    def missing(key: str) -> Callable[[Any], bool]:
        return lambda c: c.get(key) is None and key not in c

    for key in keys:
        yield f"[{key!r}]", lookup(key)
        yield f"{key!r} in", lambda c, key=key: key in c
        yield f"row({key!r})", lambda c, key=key: c.row(key) == keys.index(key)
    for key in keys:
        yield f"[{key!r}].embedding", record_vector(key)
        yield f"embedding({key!r})", lambda c, key=key: _same_array(c.embedding(key), expected.vectors[key])
    yield "get_many(few)", lambda c: [r.id for r in c.get_many(keys[:3])] == keys[:3]
    yield "get_many(many)", lambda c: are(c.get_many(some), some)
    for key in absent:
        if key not in records:
            yield f"get({key!r})", missing(key)
    mixed = [key for pair in zip(some[:13], ["nobody"] * 13, strict=False) for key in pair]
    yield (
        "get_many(mixed)",
        lambda c: [r and r.id for r in c.get_many(mixed)] == [key if key in records else None for key in mixed],
    )
    yield "list", lambda c: list(c) == keys
    yield "len", lambda c: len(c) == len(keys)
    yield "values", lambda c: are(list(c.values()), keys)
    yield "items", lambda c: [key for key, _ in c.items()] == keys
    yield "values embeddings", lambda c: all(_same_array(r.embedding, expected.vectors[r.id]) for r in c.values())
    for name in expected.schema.index:
        counts = expected.terms(name)
        yield f"terms({name})", lambda c, name=name, counts=counts: c.terms(name) == counts
        for term in [*counts, "no such term"]:
            found = expected.where({name: term})
            yield (
                f"where({name}={term!r})",
                lambda c, name=name, term=term, found=found: (
                    (chosen := c.where({name: term})).ids == found and [r.id for r in chosen] == found
                ),
            )
    if expected.schema.index:
        query = {name: list(expected.terms(name))[:2] for name in expected.schema.index}
        both = expected.where(query)
        yield "where(all fields)", lambda c: c.where(query).ids == both
    if expected.schema.embedding is not None:
        dim = next(
            (len(v) for v in expected.vectors.values() if v is not None),
            expected.schema.dim_of(expected.schema.embeddings[0]) or 0,
        )
        matrix = np.array([v if v is not None else [0.0] * dim for v in expected.vectors.values()], np.float32)
        matrix = matrix.reshape(len(keys), dim)
        norms = np.sqrt((matrix.astype(np.float64) ** 2).sum(axis=1))
        present = [v is not None for v in expected.vectors.values()]
        yield "embeddings", lambda c: np.array_equal(c.embeddings, matrix)
        picked = [*range(len(keys) - 1, -1, -1), *range(len(keys))] * 3
        yield (
            "get_embeddings",
            lambda c: np.array_equal(c.get_embeddings([keys[i] for i in picked]), matrix[picked]),
        )
        yield (
            "get_embeddings(few)",
            lambda c: np.array_equal(c.get_embeddings([keys[i] for i in picked[:3]]), matrix[picked[:3]]),
        )
        yield "norms", lambda c: not c.dim or np.allclose(c.norms, norms, rtol=1e-6)
        alike = [i for i in range(len(keys)) if present[i] and np.isfinite(matrix[i]).all()]
        alike.sort(key=lambda i: (-math.fsum(matrix[i].astype(np.float64).tolist()), i))
        nearest = [keys[i] for i in alike]

        def found_by(c: Any, few: int) -> bool:
            with inside.searched_by(3, few=few):
                return c.nearest([1.0] * dim, len(keys), metric="dot").ids == nearest

        if dim and nearest:
            yield "nearest", lambda c: found_by(c, 64)
            yield "nearest(by products)", lambda c: found_by(c, 0)
        yield "has_embedding", lambda c: c.has_embedding.tolist() == present or not dim


def sweep(snapshot: Snapshot, expected: Mapping[str, list[tuple[str, Any]]]) -> int:
    """Ask everything; how many questions were refused with an error. Raises WrongAnswerError for a wrong answer."""
    refused = 0
    for name, asked in expected.items():
        collection = snapshot.collection(name)
        for what, ask in asked:
            try:
                right = ask(collection)
            except MmcacheError:
                refused += 1
                continue
            except KeyError as error:
                raise WrongAnswerError(f"{name}: {what}: KeyError({error})") from None
            if not right:
                raise WrongAnswerError(f"{name}: {what}: wrong answer")
    return refused


# --- files as bytes ---------------------------------------------------------------------------------------------------


class Bytes:
    """Stands in for `fs.ReadFile`: a file that is bytes in memory, which the test may change meanwhile."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.path = "/bytes.mmc"
        self.size = len(data)
        self.identity = (0, 0)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def map(self) -> Any:
        return self.data

    def close(self) -> None:
        pass


def damaged(data: bytes | bytearray, verify: Any = "lazy", access: Any = "mmap") -> Snapshot:
    """These bytes opened as a file."""
    return inside.snapshot_of(Bytes(data), verify, access)


SMALL = Schema("items", index=("kind", "tags"), embedding="v")


def small_items(n: int = 8, generation: int = 0) -> list[dict[str, Any]]:
    """A few records with a nested map, two shapes, a missing embedding, and list, bitmap and range postings."""
    return [
        {
            "id": f"k{i}",
            "kind": ("a", "a", "b", None)[i % 4],
            "tags": [["x"], ["x", "y"], [], ["z", "x"]][i % 4],
            "meta": {"count": i + 1000 * generation, "ok": bool(i % 2)},
            **({"extra": 2.5 * i} if i % 3 == 0 else {}),
            "v": None if i == 3 else vector(i + 100 * generation, 4),
        }
        for i in range(n)
    ]


def build_bytes(path: Any, items: Any, *schemas: Schema, **options: Any) -> bytes:
    """Build a file and give its bytes."""
    mmcache.build(path, items, *schemas, **options)
    with open(path, "rb") as file:
        return file.read()


# --- damage with right checksums --------------------------------------------------------------------------------------


def table_rows(data: bytes | bytearray) -> list[tuple[Any, ...]]:
    """The rows of the section table as they stand: name, kind, flags, offset, length, payload, count, checksum."""
    count, at = struct.unpack_from("<IQ", data, 20)
    rows = min(count, 4096, max(0, (len(data) - at) // TABLE_ROW.size))
    return [TABLE_ROW.unpack_from(data, at + TABLE_ROW.size * i) for i in range(rows)]


def arrays_in(data: bytes | bytearray, section: str) -> dict[str, range]:
    """Where the arrays of an ids or index section are in the file, found by walking its msgpack."""
    (row,) = [row for row in table_rows(data) if row[0].rstrip(b"\0") == section.encode()]
    at, found = row[3], {}
    pairs, at = data[at] & 0x0F, at + 1
    for _ in range(pairs):
        length = data[at] & 0x1F
        name, at = bytes(data[at + 1 : at + 1 + length]).decode(), at + 1 + length
        if data[at] == 0xC4:
            size, at = data[at + 1], at + 2
        else:
            (size,), at = struct.unpack_from(">I", data, at + 1), at + 5
        found[name] = range(at, at + size)
        at += size
    return {name: extent for name, extent in found.items() if not name.startswith("_")}


def reseal(
    data: bytearray, *, sections: bool = True, size: bool = False, chunks: bool = True, sha256: bool = True
) -> bytearray:
    """Make every checksum right: records, blocks, sections, build id, header. In place, and returned.

    sections: also those of sections, blocks and chunks. chunks, sha256: these too. size: also the file size in the
    header.
    """
    count, at = struct.unpack_from("<IQ", data, 20)
    extents = {row[0].rstrip(b"\0"): (row[3], row[4]) for row in table_rows(data)} if at == 256 else {}
    chunks_at, chunks_length = extents.get(b"chunks", (0, 0))
    if sections and at == 256:
        rows = table_rows(data)
        blocks_at, blocks_length = extents.get(b"blocks", (0, 0))
        begin = 256 + TABLE_ROW.size * len(rows)
        for block in range(min(blocks_length // 8, len(data) // BLOCK + 1)):
            low, high = max(block * BLOCK, begin), min((block + 1) * BLOCK, blocks_at)
            if blocks_at + 8 * block + 8 <= len(data):
                struct.pack_into("<Q", data, blocks_at + 8 * block, xxh3_64_intdigest(data[low:high], block))
        if chunks:
            leaves = b"".join(
                hashlib.sha256(data[begin : min(begin + LEAF, offset + length)]).digest()
                for name, _, _, offset, length, *_rest in rows
                if name.rstrip(b"\0") != b"chunks" and offset + length <= len(data)
                for begin in range(offset, offset + length, LEAF)
            )
            if len(leaves) == chunks_length and chunks_at + chunks_length <= len(data):
                data[chunks_at : chunks_at + chunks_length] = leaves
        for i, row in enumerate(rows):
            offset, length = row[3], row[4]
            if offset + length <= len(data):
                digest = xxh3_64_intdigest(data[offset : offset + length])
                struct.pack_into("<Q", data, at + TABLE_ROW.size * i + 72, digest)
    if size:
        struct.pack_into("<Q", data, 32, len(data))
    table_end = 256 + TABLE_ROW.size * count
    if table_end <= len(data):
        data[64:80] = xxh3_128_digest(data[256:table_end])
        if sha256:
            digests = data[chunks_at : chunks_at + chunks_length]
            data[80:112] = hashlib.sha256(data[256:table_end] + digests).digest()
    struct.pack_into("<Q", data, 248, xxh3_64_intdigest(data[:248]))
    return data


def reseal_records(data: bytearray) -> bytearray:
    """Make the checksum in every row entry right for the bytes that it points to, as far as it points to any."""
    for name, kind, _, offset, length, *_rest in table_rows(data):
        if kind == 3 and name and offset + length <= len(data):
            for at in range(offset, offset + length - 23, 24):
                start, size, key, shape, _ = ROW_ENTRY.unpack_from(data, at)
                if start + size <= len(data):
                    digest = xxh3_64_intdigest(data[start : start + size]) ^ shape
                    ROW_ENTRY.pack_into(data, at, start, size, key, shape, digest)
    return data


@dataclass
class Part:
    name: str
    kind: int
    flags: int
    data: bytearray
    payload: int
    count: int


@dataclass
class Image:
    """A file taken apart. `pack` puts it together with sections of whatever size, and seals it."""

    header: list[Any]
    parts: list[Part]

    @classmethod
    def of(cls, data: bytes) -> Image:
        header = list(HEADER.unpack_from(data))
        parts = [
            Part(name.rstrip(b"\0").decode(), kind, flags, bytearray(data[o : o + n]), payload, count)
            for name, kind, flags, o, n, payload, count, _ in table_rows(data)
        ]
        image = cls(header, parts)
        image._absolute_to_relative(data)
        return image

    def _absolute_to_relative(self, data: bytes) -> None:
        at = {row[0].rstrip(b"\0").decode(): row[3] for row in table_rows(data)}
        for part in self.parts:
            if part.kind == 3:
                self._shift_rows(part.data, -at[part.name.replace("/rows", "/records")])

    @staticmethod
    def _shift_rows(rows: bytearray, by: int) -> None:
        for at in range(0, len(rows) - 23, 24):
            (offset,) = struct.unpack_from("<Q", rows, at)
            struct.pack_into("<Q", rows, at, (offset + by) % 2**64)

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    @property
    def meta(self) -> Any:
        return msgpack.unpackb(bytes(self.part("meta").data), strict_map_key=False)

    @meta.setter
    def meta(self, plain: Any) -> None:
        self.part("meta").data = bytearray(plain if isinstance(plain, bytes) else msgpack.packb(plain))

    def pack(self) -> bytearray:
        """The file, sealed. Rows hold offsets from the start of their records until now."""
        parts = [part for part in self.parts if part.kind not in (9, 11)]
        end = 256 + 96 * len(self.parts)
        offsets: dict[str, int] = {}
        places = []
        for part in parts:
            alignment = 4096 if part.kind in PAGED else 64
            end = -(-end // alignment) * alignment
            offsets.setdefault(part.name, end)
            places.append(end)
            end += len(part.data)
        blocks_at = -(-end // 64) * 64
        count = -(-blocks_at // BLOCK)
        chunks_at = -(-(blocks_at + 8 * count) // 64) * 64
        leaves = sum(-(-length // LEAF) for length in (8 * count, *(len(part.data) for part in parts)))
        ends = {9: (blocks_at, 8 * count, count), 11: (chunks_at, 32 * leaves, leaves)}
        data = bytearray(chunks_at + 32 * leaves)
        for part, place in zip(parts, places, strict=True):
            content = bytearray(part.data)
            if part.kind == 3:
                self._shift_rows(content, offsets.get(part.name.replace("/rows", "/records"), 0))
            data[place : place + len(content)] = content
        remaining = iter(places)
        for i, part in enumerate(self.parts):
            offset, length, entries = ends.get(part.kind) or (next(remaining), len(part.data), part.count)
            row = TABLE_ROW.pack(part.name.encode(), part.kind, part.flags, offset, length, part.payload, entries, 0)
            data[256 + 96 * i : 352 + 96 * i] = row
        header = list(self.header)
        header[5], header[7] = len(self.parts), len(data)
        data[:256] = HEADER.pack(*header)
        return reseal(data)
