"""The `meta` section, and `validate`: the one place that says whether a file is exactly right. Without numpy.

`meta` is a msgpack map, the only section that is decoded at open:

    {"writer": "mmcache 0.1.0", "source": {...} or nil, "metadata": {...}, "collections": [
        {"schema": {...}, "key_types": ["str"], "shapes": [[...]], "ids": [bits],
         "index": {"domain": [slots, bits, terms, terms_size, rows_size]},
         "embeddings": [[dim, missing]], "cluster_by": "domain",
         "left_out": [invalid, duplicates, [[key, reason]]]}]}           only where rows were left out

Sections are named by ordinals, `<collection>/index.<indexed field>`; here and in `CollectionLayout.sections` they are
known by the names of the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from ..errors import CorruptFileError, wrong_checksum
from ..schema import MAX_DIM, Schema
from .curves import SketchLayout
from .frame import place_arrays
from .header import (
    BLOCK,
    DIGEST,
    HEADER_SIZE,
    KINDS,
    LEAF,
    VERSION,
    Header,
    Section,
    align,
    parse_header,
    parse_table,
)
from .leftout import NOTHING_LEFT_OUT, LeftOut
from .older import meta_of
from .records import MAX_SHAPES, Shape

META_NAME = "meta"
BLOCKS_NAME = "blocks"
CHUNKS_NAME = "chunks"
MAX_META_BYTES = 4 * 2**20
"""Decoded at every open, of files of unknown origin too: at worst, it becomes 80 MiB of objects."""
MAX_META_PARTS = 2**18
"""Arrays and maps in `meta`: empty ones take the most memory for a byte."""
MAX_KEY_TYPES = 16
ROW_SIZE = 24
"""Of a row entry: offset u64, length u32, key length u16, shape u16, checksum u64."""

MAX_ROWS = 2**32 - 2
"""Rows are u32, and 2^32-1 means none."""
INDEX_ENTRY_SIZE = 32

Read = Callable[[int, int], bytes]
"""read(offset, length): bytes of the file, fewer at its end."""


class IdsLayout(NamedTuple):
    """What `meta` says about an `ids` section, beside the number of slots that the section table has."""

    bits: int


class IndexLayout(NamedTuple):
    """What `meta` says about an index section; with it, every array in it can be found by arithmetic."""

    slots: int
    bits: int
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


class EmbeddingLayout(NamedTuple):
    """dim: numbers in each, 0 where no record has one. missing: records without, where dim > 0."""

    dim: int
    missing: int


@dataclass(frozen=True, slots=True)
class CollectionLayout:
    """One collection of a file: what it is, and the sections it is in.

    n: records. key_types: of its keys, as `keys.type_of` names them; None where there are more than fit. embeddings: by
    field. sections: by part, which is `ids`, `rows`, `records`, or index, norms, presence, sketch or embeddings with a
    dot and the field. Norms and sketch, which are not REQUIRED, may be missing. sketches: by field of an embedding.
    """

    schema: Schema
    n: int
    key_types: tuple[str, ...] | None
    shapes: tuple[Shape, ...]
    ids: IdsLayout
    index: Mapping[str, IndexLayout]
    embeddings: Mapping[str, EmbeddingLayout]
    cluster_by: str | None
    sections: Mapping[str, Section] = field(default_factory=dict)
    left_out: LeftOut = NOTHING_LEFT_OUT
    sketches: Mapping[str, SketchLayout] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Of the first embedding; 0 without."""
        return next(iter(self.embeddings.values()), _NO_EMBEDDING).dim

    @property
    def missing(self) -> int:
        """Records without the first embedding, where others have one."""
        return next(iter(self.embeddings.values()), _NO_EMBEDDING).missing


_NO_EMBEDDING = EmbeddingLayout(0, 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """A validated file: everything that a reader needs to know before it touches a record.

    asked: the schemas that its builder asked for, where the file has more for other versions; else empty.
    """

    header: Header
    sections: Mapping[str, Section]
    collections: Mapping[str, CollectionLayout]
    writer: str
    source: dict[str, Any] | None
    metadata: dict[str, Any]
    asked: tuple[Schema, ...] = ()

    @property
    def blocks(self) -> Section:
        return self.sections[BLOCKS_NAME]

    @property
    def chunks(self) -> Section:
        return self.sections[CHUNKS_NAME]


def left_out_of(layout: Layout) -> dict[str, LeftOut]:
    """Of each collection of which rows were left out."""
    return {name: collection.left_out for name, collection in layout.collections.items() if collection.left_out}


def section_name(collection: int, part: str, ordinal: int | None = None) -> str:
    return f"{collection}/{part}" if ordinal is None else f"{collection}/{part}.{ordinal}"


def most_sections(schemas: Iterable[Schema]) -> int:
    """How many sections a file with these collections has at most."""
    return 3 + sum(3 + len(schema.index) + (3 + schema.sketch) * len(schema.embeddings) for schema in schemas)


def ids_sizes(slots: int) -> dict[str, int]:
    """The arrays of an `ids` section: hash u64[slots], row u32[slots]."""
    return {"hash": 8 * slots, "row": 4 * slots}


def bitmap_size(n: int) -> int:
    """Bytes of a bitmap over n rows: whole 8-byte words."""
    return align(-(-n // 8), 8)


def sketch_size(n: int, dim: int) -> int:
    """Bytes of a bit for each number of n embeddings: whole 8-byte words each."""
    return 8 * n * (-(-dim // 64))


def block_count(blocks_offset: int) -> int:
    """How many 64 KiB blocks lie before the `blocks` section."""
    return -(-blocks_offset // BLOCK)


def leaf_count(lengths: Iterable[int]) -> int:
    """How many SHA-256 there are for sections of these lengths."""
    return sum(-(-length // LEAF) for length in lengths)


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
                "key_types": None if c.key_types is None else list(c.key_types),
                "embeddings": [list(embedding) for embedding in c.embeddings.values()],
                "cluster_by": c.cluster_by,
                "ids": list(c.ids),
                "index": {name: list(layout) for name, layout in c.index.items()},
                "shapes": [shape.to_plain() for shape in c.shapes],
                **({"left_out": c.left_out.to_plain()} if c.left_out else {}),
                **({"sketches": [s and s.to_plain() for s in map(c.sketches.get, c.embeddings)]} if c.sketches else {}),
            }
            for c in collections
        ],
    }
    if asked:
        plain["asked"] = [schema.to_dict() for schema in asked]
    try:
        data: bytes = msgpack.packb(plain)
        _unpack_meta(data)  # not all that packs unpacks: a map with keys that are not text
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"metadata does not encode: {error}") from None
    if len(data) > MAX_META_BYTES:
        raise ValueError(
            f"metadata and field names take {len(data)} bytes; at most {MAX_META_BYTES} fit: put fields that differ "
            "from record to record into one field, as a map"
        )
    return data


def validate(read: Read, size: int, *, older: bool = False) -> Layout:
    """Check a file's structure, header first, and describe it. O(1) in the number of records.

    Raises IncompatibleFormatError for a whole file that this version does not understand, CorruptFileError for
    everything that is not exactly right; each names the section, what was expected and what was found.
    older: also of an older major version, for what the file says of itself; its records may mean something else.
    """
    head = read(0, 16_384)
    header = parse_header(head, size, older=older)
    if header.version[0] < VERSION[0]:
        return _older(header, read)
    end = HEADER_SIZE + header.table_size
    table = head[HEADER_SIZE:end] if end <= len(head) else read(HEADER_SIZE, header.table_size)
    sections = parse_table(header, table)
    meta = _required(sections, META_NAME)
    if meta.length > MAX_META_BYTES:
        raise _corrupt(META_NAME, f"{meta.length} bytes; at most {MAX_META_BYTES} are read")
    _check_ends(sections)
    raw = head[meta.offset : meta.end] if meta.end <= len(head) else read(meta.offset, meta.length)
    if (found := xxh3_64_intdigest(raw)) != meta.checksum:
        raise wrong_checksum(META_NAME, meta.checksum, found)
    return _described(header, sections, raw, _collection)


def _older(header: Header, read: Read) -> Layout:
    """What a file of an older major version says of itself."""
    raw = meta_of(header, read)

    def collection(plain: dict[str, Any], *_: object) -> CollectionLayout:
        schema = Schema.from_dict(plain["schema"])
        cluster_by = plain.get("cluster_by")
        return CollectionLayout(
            schema, 0, None, (), IdsLayout(1), {}, {}, cluster_by if cluster_by in schema.index else None
        )

    return _described(header, {}, raw, collection)


def _described(
    header: Header,
    sections: dict[str, Section],
    raw: bytes,
    collection: Callable[[dict[str, Any], int, Mapping[str, Section]], CollectionLayout],
) -> Layout:
    try:
        plain = _unpack_meta(raw)
    except (ValueError, msgpack.UnpackException, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise _corrupt(META_NAME, f"does not decode ({error})") from None
    if not isinstance(plain, dict):
        raise _corrupt(META_NAME, f"expected a map, found {type(plain).__name__}")
    try:
        collections: dict[str, CollectionLayout] = {}
        for i, item in enumerate(plain["collections"]):
            layout = collection(item, i, sections)
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
    return Layout(header, sections, collections, writer, source, metadata, asked)


def _check_ends(sections: Mapping[str, Section]) -> None:
    """The last two sections are the checksums of the others."""
    blocks, chunks = _required(sections, BLOCKS_NAME), _required(sections, CHUNKS_NAME)
    if list(sections)[-2:] != [BLOCKS_NAME, CHUNKS_NAME]:
        raise _corrupt(BLOCKS_NAME, f"expected to be the last but {CHUNKS_NAME!r}")
    if blocks.length != 8 * block_count(blocks.offset) or blocks.count != block_count(blocks.offset):
        raise _corrupt(BLOCKS_NAME, f"expected {block_count(blocks.offset)} block checksums, found {blocks.count}")
    leaves = leaf_count(section.length for section in sections.values() if section is not chunks)
    if chunks.length != DIGEST * leaves or chunks.count != leaves:
        raise _corrupt(CHUNKS_NAME, f"expected {leaves} digests, found {chunks.count}")


def _unpack_meta(raw: bytes) -> Any:
    left = MAX_META_PARTS

    def count(part: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_META_PARTS} arrays and maps")
        return part

    return msgpack.unpackb(raw, list_hook=count, object_hook=count)


class _Found(NamedTuple):
    """The sections of one collection, by its number."""

    sections: Mapping[str, Section]
    number: int

    def required(self, part: str, ordinal: int | None = None) -> Section:
        """Raises CorruptFileError where there is none."""
        return _required(self.sections, section_name(self.number, part, ordinal))

    def optional(self, part: str, ordinal: int) -> Section | None:
        """None where there is none, or one of a kind that is not known: of a writer that has retired ours."""
        section = self.sections.get(section_name(self.number, part, ordinal))
        return None if section is None or section.kind not in KINDS else self.required(part, ordinal)


def _collection(plain: dict[str, Any], number: int, sections: Mapping[str, Section]) -> CollectionLayout:
    schema = Schema.from_dict(plain["schema"])
    if not all(isinstance(name, (str, type(None))) for name in (schema.table, schema.query)):
        raise TypeError("expected names in the schema")
    if not all(isinstance(name, str) for name in (*(schema.columns or ()), *schema.json, *schema.embeddings)):
        raise TypeError("expected names of columns in the schema")

    found = _Found(sections, number)
    parts = {part: found.required(part) for part in ("ids", "rows", "records")}
    rows, ids = parts["rows"], parts["ids"]
    n = rows.count
    if n > MAX_ROWS or rows.length != ROW_SIZE * n:
        raise _corrupt(rows.name, f"expected {ROW_SIZE} bytes for each of {n} rows, found {rows.length}")
    ids_layout = IdsLayout(*_counts(plain["ids"], 1))
    _check_slots(ids.name, ids.count, ids_layout.bits)
    _check_frame(ids, ids_sizes(ids.count))
    if len(plain["shapes"]) > MAX_SHAPES:
        raise _corrupt(META_NAME, f"{len(plain['shapes'])} shapes; there can be {MAX_SHAPES}")
    shapes = tuple(Shape.from_plain(shape) for shape in plain["shapes"])
    key = schema.key_fields
    if any(shape.names[: len(key)] != key or len(shape.key or "1") != len(key) for shape in shapes):
        raise _corrupt(META_NAME, f"a shape does not begin with the key {schema.key!r}")
    cluster_by = plain["cluster_by"]
    if not (cluster_by is None or cluster_by in schema.index):
        raise _corrupt(META_NAME, f"clustered by {cluster_by!r:.80}, which is not an indexed field")
    return CollectionLayout(
        schema,
        n,
        _key_types(plain["key_types"]),
        shapes,
        ids_layout,
        _indexes(schema, plain["index"], found, parts),
        _embeddings(schema, plain["embeddings"], found, parts, n),
        cluster_by,
        parts,
        LeftOut.from_plain(plain["left_out"]) if "left_out" in plain else NOTHING_LEFT_OUT,
        _sketches(schema, plain.get("sketches", [])),
    )


def _key_types(plain: object) -> tuple[str, ...] | None:
    if plain is None:
        return None
    if not isinstance(plain, list) or len(plain) > MAX_KEY_TYPES or not all(isinstance(name, str) for name in plain):
        raise TypeError(f"expected the types of keys, found {plain!r:.80}")
    return tuple(plain)


def _indexes(
    schema: Schema, plain: Mapping[str, object], found: _Found, parts: dict[str, Section]
) -> dict[str, IndexLayout]:
    index = {}
    for i, name in enumerate(schema.index):
        layout = IndexLayout(*_counts(plain[name], 5))
        section = found.required("index", i)
        _check_slots(section.name, layout.slots, layout.bits)
        _check_frame(section, layout.sizes())
        if section.count != layout.terms:
            raise _corrupt(section.name, f"expected {layout.terms} terms, found {section.count}")
        index[name] = layout
        parts[f"index.{name}"] = section
    return index


def _embeddings(
    schema: Schema, plain: object, found: _Found, parts: dict[str, Section], n: int
) -> dict[str, EmbeddingLayout]:
    if not isinstance(plain, list) or len(plain) != len(schema.embeddings):
        raise TypeError(f"expected {len(schema.embeddings)} embeddings, found {plain!r:.80}")
    embeddings = {}
    for i, (name, counts) in enumerate(zip(schema.embeddings, plain, strict=True)):
        dim, missing = _counts(counts, 2)
        if dim > MAX_DIM or missing > n:
            raise _corrupt(META_NAME, f"collection {schema.name!r}: dim {dim}, {missing} of {n} embeddings missing")
        embeddings[name] = EmbeddingLayout(dim, missing)
        wanted = {"embeddings": 4 * dim * n, "norms": 4 * n, "sketch": sketch_size(n, dim)} if dim else {}
        if dim and missing:
            wanted["presence"] = bitmap_size(n)
        for part, length in wanted.items():
            section = found.optional(part, i) if part in ("norms", "sketch") else found.required(part, i)
            if section is None:
                continue
            parts[f"{part}.{name}"] = section
            if section.length != length or section.count != n:
                raise _corrupt(section.name, f"expected {length} bytes for {n} x {dim}, found {section.length}")
    return embeddings


def _sketches(schema: Schema, plain: object) -> dict[str, SketchLayout]:
    if not isinstance(plain, list) or len(plain) not in (0, len(schema.embeddings)):
        raise TypeError(f"expected {len(schema.embeddings)} sketches, found {plain!r:.80}")
    found = zip(schema.embeddings, plain, strict=False)
    return {name: SketchLayout.from_plain(one) for name, one in found if one is not None}


def _counts(plain: object, expected: int) -> list[int]:
    if not isinstance(plain, list) or len(plain) != expected:
        raise TypeError(f"expected {expected} numbers, found {plain!r:.80}")
    if not all(type(number) is int and 0 <= number < 2**63 for number in plain):
        raise TypeError(f"expected {expected} counts, found {plain!r:.80}")
    return plain


def _check_slots(name: str, slots: int, bits: int) -> None:
    if not 1 <= bits < 64 or not 1 << bits < slots or slots % 8:
        raise _corrupt(name, f"a table of {slots} slots and {bits} bits is none of ours")


def _check_frame(section: Section, sizes: dict[str, int]) -> None:
    offsets, length = place_arrays(sizes)
    if section.length != length or section.payload != min(offsets.values()):
        raise _corrupt(section.name, f"expected {length} bytes for its arrays, found {section.length}")


def _required(sections: Mapping[str, Section], name: str) -> Section:
    section = sections.get(name)
    if section is None:
        raise _corrupt(name, "is missing")
    if KINDS.get(section.kind) != name.rpartition("/")[2].partition(".")[0]:
        raise _corrupt(name, f"is of kind {section.kind}, which is not that of its name")
    return section


def _corrupt(section: str, reason: str) -> CorruptFileError:
    return CorruptFileError(f"section {section!r}: {reason}", section=section)
