"""The `meta` section, and `validate`: the one place that says whether a file is exactly right. Without numpy.

`meta` is a msgpack map, the only section that is decoded at open:

    {"writer": "mmcache 0.1.0", "source": {...} or nil, "metadata": {...}, "collections": [
        {"schema": {...}, "dim": 768, "shapes": [[...]], "ids": [bits, max_probe, seed],
         "index": {"domain": [slots, bits, max_probe, seed, terms, terms_size, rows_size]},
         "missing": 3, "cluster_by": "domain"}]}

Sections of a collection are named `<collection>/ids`, `<collection>/index.<field>` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from ..errors import CorruptFileError
from ..schema import MAX_DIM, Schema
from .frame import place_arrays
from .header import BLOCK, HEADER_SIZE, KINDS, Header, Section, align, parse_header, parse_table
from .records import MAX_SHAPES, Shape

META_NAME = "meta"
BLOCKS_NAME = "blocks"
MAX_META_BYTES = 2**20
"""Decoded at every open, of files of unknown origin too: at worst, 1 MiB of msgpack becomes 73 MiB of objects."""
ROW_SIZE = 24
"""Of a row entry: offset u64, length u32, key length u16, shape u16, checksum u64."""

MAX_ROWS = 2**32 - 2
"""Rows are u32, and 2^32-1 means none."""
MAX_PROBE = 1024
"""Slots that a look-up may walk: bounds the time of one on hostile bytes."""
INDEX_ENTRY_SIZE = 32

Read = Callable[[int, int], bytes]
"""read(offset, length): bytes of the file, fewer at its end."""


class IdsLayout(NamedTuple):
    """What `meta` says about an `ids` section, beside the number of slots that the section table has."""

    bits: int
    max_probe: int
    seed: int


class IndexLayout(NamedTuple):
    """What `meta` says about an index section; with it, every array in it can be found by arithmetic."""

    slots: int
    bits: int
    max_probe: int
    seed: int
    terms: int
    terms_size: int
    rows_size: int

    def sizes(self) -> dict[str, int]:
        return {
            "hash": 8 * self.slots,
            "term": 4 * self.slots,
            "entries": INDEX_ENTRY_SIZE * self.terms,
            "terms": self.terms_size,
            "rows": self.rows_size,
        }


@dataclass(frozen=True, slots=True)
class CollectionLayout:
    """One collection of a file: what it is, and the sections it is in.

    n: records. dim: numbers in an embedding, 0 without. missing: records without an embedding.
    sections: by the part of the name after the slash.
    """

    schema: Schema
    n: int
    dim: int
    missing: int
    shapes: tuple[Shape, ...]
    ids: IdsLayout
    index: Mapping[str, IndexLayout]
    cluster_by: str | None
    sections: Mapping[str, Section] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """A validated file: everything that a reader needs to know before it touches a record.

    asked: the schemas that its builder asked for, where the file has more for other versions; else empty.
    """

    header: Header
    sections: Mapping[str, Section]
    collections: Mapping[str, CollectionLayout]
    blocks: Section
    writer: str
    source: dict[str, Any] | None
    metadata: dict[str, Any]
    asked: tuple[Schema, ...] = ()


def section_name(collection: str, part: str) -> str:
    return f"{collection}/{part}"


def ids_sizes(slots: int) -> dict[str, int]:
    """The arrays of an `ids` section: hash u64[slots], row u32[slots]."""
    return {"hash": 8 * slots, "row": 4 * slots}


def bitmap_size(n: int) -> int:
    """Bytes of a bitmap over n rows: whole 8-byte words."""
    return align(-(-n // 8), 8)


def block_count(blocks_offset: int) -> int:
    """How many 64 KiB blocks lie before the `blocks` section."""
    return -(-blocks_offset // BLOCK)


def encode_meta(
    writer: str,
    source: Mapping[str, Any] | None,
    metadata: Mapping[str, Any],
    collections: list[CollectionLayout],
    asked: Iterable[Schema] = (),
) -> bytes:
    """The bytes of `meta`. Raises ValueError when the user's metadata or the shapes do not fit or do not encode."""
    plain: dict[str, Any] = {
        "writer": writer,
        "source": source,
        "metadata": metadata,
        "collections": [
            {
                "schema": c.schema.to_dict(),
                "dim": c.dim,
                "missing": c.missing,
                "cluster_by": c.cluster_by,
                "ids": list(c.ids),
                "index": {name: list(layout) for name, layout in c.index.items()},
                "shapes": [shape.to_plain() for shape in c.shapes],
            }
            for c in collections
        ],
    }
    if asked:
        plain["asked"] = [schema.to_dict() for schema in asked]
    try:
        data: bytes = msgpack.packb(plain)
        msgpack.unpackb(data)  # not all that packs unpacks: a map with keys that are not text
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"metadata does not encode: {error}") from None
    if len(data) > MAX_META_BYTES:
        raise ValueError(f"metadata and field names take {len(data)} bytes; at most {MAX_META_BYTES} fit")
    return data


def validate(read: Read, size: int, *, older: bool = False) -> Layout:
    """Check a file's structure, header first, and describe it. O(1) in the number of records.

    Raises IncompatibleFormatError for a whole file that this version does not understand, CorruptFileError for
    everything that is not exactly right; each names the section, what was expected and what was found.
    older: also of an older major version, for what the file says of itself; its records may mean something else.
    """
    head = read(0, 16_384)
    header = parse_header(head, size, older=older)
    end = HEADER_SIZE + header.table_size
    table = head[HEADER_SIZE:end] if end <= len(head) else read(HEADER_SIZE, header.table_size)
    sections = parse_table(header, table)
    meta = _required(sections, META_NAME)
    blocks = _required(sections, BLOCKS_NAME)
    if meta.length > MAX_META_BYTES:
        raise _corrupt(META_NAME, f"{meta.length} bytes; at most {MAX_META_BYTES} are read")
    if blocks.length != 8 * block_count(blocks.offset) or blocks.count != block_count(blocks.offset):
        raise _corrupt(BLOCKS_NAME, f"expected {block_count(blocks.offset)} block checksums, found {blocks.count}")
    if blocks.end != size:
        raise _corrupt(BLOCKS_NAME, f"expected to be last, but the file goes on to {size}")
    raw = head[meta.offset : meta.end] if meta.end <= len(head) else read(meta.offset, meta.length)
    plain = _decode_meta(raw, meta)
    try:
        parts = _by_collection(sections)
        collections: dict[str, CollectionLayout] = {}
        for item in plain["collections"]:
            layout = _collection(item, parts)
            if layout.schema.name in collections:
                raise ValueError(f"collection {layout.schema.name!r} stands twice")
            collections[layout.schema.name] = layout
        if not collections:
            raise ValueError("expected at least one collection")
        writer, source, metadata = plain["writer"], plain["source"], plain["metadata"]
        if not (isinstance(writer, str) and isinstance(source, (dict, type(None))) and isinstance(metadata, dict)):
            raise TypeError("expected writer, source and metadata")
        asked = tuple(map(Schema.from_dict, plain.get("asked", ())))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        # RecursionError: what msgpack decodes may nest deeper than repr() goes.
        if isinstance(error, CorruptFileError):
            raise
        raise _corrupt(META_NAME, f"not as a writer writes it ({type(error).__name__}: {error!s:.200})") from None
    return Layout(header, sections, collections, blocks, writer, source, metadata, asked)


def _decode_meta(raw: bytes, section: Section) -> dict[str, Any]:
    if len(raw) != section.length or xxh3_64_intdigest(raw) != section.checksum:
        raise _corrupt(META_NAME, "checksum does not match")
    try:
        plain = msgpack.unpackb(raw)
    except (ValueError, msgpack.UnpackException, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise _corrupt(META_NAME, f"does not decode ({error})") from None
    if not isinstance(plain, dict):
        raise _corrupt(META_NAME, f"expected a map, found {type(plain).__name__}")
    return plain


def _by_collection(sections: Mapping[str, Section]) -> dict[str, dict[str, Section]]:
    """Collection -> the part of the name after the slash -> section."""
    parts: dict[str, dict[str, Section]] = {}
    for name, section in sections.items():
        collection, slash, part = name.partition("/")
        if slash:
            parts.setdefault(collection, {})[part] = section
    return parts


def _collection(plain: dict[str, Any], parts: Mapping[str, Mapping[str, Section]]) -> CollectionLayout:
    schema = Schema.from_dict(plain["schema"])
    if not all(isinstance(name, (str, type(None))) for name in (schema.embedding, schema.table, schema.query)):
        raise TypeError("expected names in the schema")
    if not all(isinstance(name, str) for name in (*(schema.columns or ()), *schema.json)):
        raise TypeError("expected names of columns in the schema")
    own = parts.get(schema.name, {})
    rows = _required(own, "rows", schema.name)
    n = rows.count
    if n > MAX_ROWS or rows.length != ROW_SIZE * n:
        raise _corrupt(rows.name, f"expected {ROW_SIZE} bytes for each of {n} rows, found {rows.length}")
    ids = _required(own, "ids", schema.name)
    ids_layout = IdsLayout(*_counts(plain["ids"], 3))
    _check_slots(ids.name, ids.count, ids_layout.bits, ids_layout.max_probe)
    _check_frame(ids, ids_sizes(ids.count))
    _required(own, "records", schema.name)
    dim, missing = _counts([plain["dim"], plain["missing"]], 2)
    if dim > MAX_DIM or missing > n:
        raise _corrupt(META_NAME, f"collection {schema.name!r}: dim {dim}, {missing} of {n} embeddings missing")
    if dim:
        for part, length in ("embeddings", 4 * dim * n), ("norms", 4 * n):
            section = _required(own, part, schema.name)
            if section.length != length or section.count != n:
                raise _corrupt(section.name, f"expected {length} bytes for {n} x {dim}, found {section.length}")
        if missing and _required(own, "presence", schema.name).length != bitmap_size(n):
            raise _corrupt(f"{schema.name}/presence", f"expected {bitmap_size(n)} bytes for {n} rows")
    if len(plain["shapes"]) > MAX_SHAPES:
        raise _corrupt(META_NAME, f"{len(plain['shapes'])} shapes; there can be {MAX_SHAPES}")
    shapes = tuple(Shape.from_plain(shape) for shape in plain["shapes"])
    if any(shape.names[0] != schema.key for shape in shapes):
        raise _corrupt(META_NAME, f"a shape does not begin with the key {schema.key!r}")
    index = {}
    for name in schema.index:
        layout = IndexLayout(*_counts(plain["index"][name], 7))
        section = _required(own, f"index.{name}", schema.name)
        _check_slots(section.name, layout.slots, layout.bits, layout.max_probe)
        _check_frame(section, layout.sizes())
        if section.count != layout.terms:
            raise _corrupt(section.name, f"expected {layout.terms} terms, found {section.count}")
        index[name] = layout
    cluster_by = plain["cluster_by"]
    if not (cluster_by is None or cluster_by in schema.index):
        raise _corrupt(META_NAME, f"clustered by {cluster_by!r:.80}, which is not an indexed field")
    return CollectionLayout(schema, n, dim, missing, shapes, ids_layout, index, cluster_by, own)


def _counts(plain: object, expected: int) -> list[int]:
    if not isinstance(plain, list) or len(plain) != expected:
        raise TypeError(f"expected {expected} numbers, found {plain!r:.80}")
    if not all(type(number) is int and 0 <= number < 2**63 for number in plain):
        raise TypeError(f"expected {expected} counts, found {plain!r:.80}")
    return plain


def _check_slots(name: str, slots: int, bits: int, max_probe: int) -> None:
    if max_probe > MAX_PROBE or not 1 <= bits < 64 or not 1 << bits < slots or slots % 8:
        raise _corrupt(name, f"a table of {slots} slots, {bits} bits and probes of {max_probe} is none of ours")


def _check_frame(section: Section, sizes: dict[str, int]) -> None:
    offsets, length = place_arrays(sizes)
    if section.length != length or section.payload != min(offsets.values()):
        raise _corrupt(section.name, f"expected {length} bytes for its arrays, found {section.length}")


def _required(sections: Mapping[str, Section], part: str, collection: str = "") -> Section:
    section = sections.get(part)
    if section is None:
        name = section_name(collection, part) if collection else part
        raise _corrupt(name, "is missing")
    if KINDS.get(section.kind) != part.partition(".")[0]:
        raise _corrupt(section.name, f"is of kind {section.kind}, which is not that of its name")
    return section


def _corrupt(section: str, reason: str) -> CorruptFileError:
    return CorruptFileError(f"section {section!r}: {reason}", section=section)
