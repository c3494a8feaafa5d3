"""The second step of a build: every section's place and the file's exact size. Pure arithmetic but for the encoding of
`meta`, tables and indexes, which are small beside records and embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import BuildError
from ..format import header as h
from ..format.curves import SketchLayout
from ..format.frame import array_headers, place_arrays
from ..format.layout import (
    BLOCKS_NAME,
    CHUNKS_NAME,
    MAX_KEY_TYPES,
    META_NAME,
    ROW_SIZE,
    CollectionLayout,
    EmbeddingLayout,
    IdsLayout,
    IndexLayout,
    bitmap_size,
    block_count,
    encode_meta,
    ids_sizes,
    leaf_count,
    section_name,
    sketch_size,
)
from ..format.postings import EncodedIndex
from ..format.slots import EMPTY, build_slots
from ..schema import Schema
from .leaves import Sums
from .sketching import Ordered, sketched
from .spool import Spool
from .staging import Staged

__all__ = ["ROW", "Part", "Piece", "Plan", "lay_out"]

ROW = np.dtype([("offset", "<u8"), ("length", "<u4"), ("key_length", "<u2"), ("shape", "<u2"), ("checksum", "<u8")])
assert ROW.itemsize == ROW_SIZE

Piece = Any
"""Bytes or an array: anything with a C-contiguous buffer."""

Pieces = Callable[[], Iterable[Piece]]
"""Gives pieces when they are written."""

Order = NDArray[np.int64] | None
"""order[new row] = staged row; None where the order stays."""


class Part(NamedTuple):
    """A section before it has a place. `pieces(offsets)` gives its bytes, told where every section begins.

    sums: of its bytes, where they are known; they have all bytes once the lane was waited for. spool: in which these
    bytes lie in their order; then pieces gives none.
    """

    name: str
    kind: int
    length: int
    pieces: Callable[[Mapping[str, int]], Iterable[Piece]]
    payload: int = 0
    entries: int = 0
    sums: Sums | None = None
    spool: Spool | None = None


@dataclass(frozen=True)
class Plan:
    """Every section with its offset, in file order; the last two are filled while the rest is written."""

    parts: tuple[Part, ...]
    offsets: Mapping[str, int]
    size: int


def lay_out(
    staged: Sequence[Staged],
    *,
    writer: str,
    source: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    asked: Sequence[Schema] = (),
    sketches: bool = True,
) -> Plan:
    """Encode the small sections and give every section its place. Raises BuildError.

    sketches: False leaves out those that the schemas ask for.
    """
    layouts, parts = [], []
    for number, collection in enumerate(staged):
        layout, own = _collection_parts(number, collection, sketches=sketches)
        layouts.append(layout)
        parts.extend(own)
    try:
        meta = encode_meta(writer, source, metadata or {}, layouts, asked)
    except ValueError as error:
        raise BuildError(str(error), reason=str(error)) from None
    return assign_offsets([Part(META_NAME, h.META, len(meta), lambda _: [meta], entries=len(layouts)), *parts])


def assign_offsets(parts: Sequence[Part]) -> Plan:
    """Offsets for these sections in this order, and for the checksums after them."""
    offsets = {}
    end = h.HEADER_SIZE + (len(parts) + 2) * h.TABLE_ROW_SIZE
    for part in parts:
        offsets[part.name] = h.align(end, h.ALIGNMENT.get(part.kind, h.ALIGN))
        end = offsets[part.name] + part.length
    offsets[BLOCKS_NAME] = h.align(end)
    count = block_count(offsets[BLOCKS_NAME])
    blocks = Part(BLOCKS_NAME, h.BLOCKS, 8 * count, lambda _: [], entries=count)
    offsets[CHUNKS_NAME] = h.align(offsets[BLOCKS_NAME] + blocks.length)
    leaves = leaf_count(part.length for part in (*parts, blocks))
    chunks = Part(CHUNKS_NAME, h.CHUNKS, h.DIGEST * leaves, lambda _: [], entries=leaves)
    return Plan((*parts, blocks, chunks), offsets, offsets[CHUNKS_NAME] + chunks.length)


def _collection_parts(number: int, staged: Staged, *, sketches: bool) -> tuple[CollectionLayout, list[Part]]:
    schema, n = staged.schema, staged.n
    order, new_row = _clustered(staged)
    index: dict[str, IndexLayout] = {}
    indexes: list[Part] = []
    for i, (name, terms) in enumerate(staged.terms.items()):
        index[name], part = _index_part(i, terms.encode(new_row, n), staged.records.put_aside)
        indexes.append(part)
    slots = build_slots(np.array(staged.keys.hashes, np.uint64), staged.slot_order)
    if new_row is not None:
        slots = slots._replace(ordinal=np.append(new_row, np.uint32(EMPTY))[np.minimum(slots.ordinal, n)])

    records = section_name(number, "records")
    ids: dict[str, Pieces] = {"hash": lambda: [slots.hash], "row": lambda: [slots.ordinal]}
    parts = [
        _framed("ids", h.IDS, ids, ids_sizes(len(slots.hash)), len(slots.hash)),
        Part("rows", h.ROWS, ROW_SIZE * n, lambda offsets: [_rows(staged, order, offsets[records])], entries=n),
        *indexes,
    ]
    beside, measured = _beside(staged, order, new_row, sketches=sketches)
    parts += beside
    parts.append(_records(staged, order))
    parts.extend(_vectors(staged, order))
    types = staged.keys.types
    described = CollectionLayout(
        schema=schema,
        n=n,
        key_types=tuple(sorted(types)) if len(types) <= MAX_KEY_TYPES else None,
        shapes=tuple(staged.encoder.shapes),
        ids=IdsLayout(slots.bits),
        index=index,
        embeddings={
            vectors.name: EmbeddingLayout(vectors.dim, len(vectors.missing) if vectors.dim else 0)
            for vectors in staged.vectors
        },
        cluster_by=staged.cluster_by,
        left_out=staged.left_out,
        sketches=measured,
    )
    return described, [part._replace(name=section_name(number, part.name)) for part in parts]


def _beside(
    staged: Staged, order: Order, new_row: NDArray[np.uint32] | None, *, sketches: bool
) -> tuple[list[Part], dict[str, SketchLayout]]:
    """What goes with the embeddings, and what was measured of their sketches."""
    schema, n = staged.schema, staged.n
    parts: list[Part] = []
    measured: dict[str, SketchLayout] = {}
    for i, vectors in enumerate(staged.vectors):
        if not vectors.dim:
            continue
        norms = vectors.norms if order is None else vectors.norms[order]
        present = _presence(vectors.missing, n, new_row) if vectors.missing else None
        parts.append(_whole(f"norms.{i}", h.NORMS, norms, n))
        if present is not None:
            parts.append(_whole(f"presence.{i}", h.PRESENCE, present, n))
        if schema.sketch and sketches:
            places = _places(staged, order)
            ordered = Ordered(vectors.spool, vectors.signs, vectors.dim, places=places, norms=norms, present=present)
            measured[vectors.name], give = sketched(ordered, schema.metric_of(vectors.name))
            size = sketch_size(n, vectors.dim)
            parts.append(Part(f"sketch.{i}", h.SKETCH, size, _anywhere(give), entries=n))
    return parts, measured


def _anywhere(give: Callable[[], Iterator[Any]]) -> Callable[[Mapping[str, int]], Iterator[Any]]:
    """What gives a section that names no place in the file."""
    return lambda _: give()


def _clustered(staged: Staged) -> tuple[Order, NDArray[np.uint32] | None]:
    """order[new row] = staged row, new_row[staged row] = new row; None, None where the order stays."""
    if staged.cluster_by is None:
        return None, None
    order = np.argsort(staged.terms[staged.cluster_by].codes(), kind="stable")
    new_row = np.empty(staged.n, np.uint32)
    new_row[order] = np.arange(staged.n, dtype=np.uint32)
    return order, new_row


def _whole(name: str, kind: int, data: NDArray[Any], entries: int) -> Part:
    return Part(name, kind, data.nbytes, lambda _: [data], entries=entries)


def _index_part(i: int, encoded: EncodedIndex, aside: Callable[[Any], Pieces]) -> tuple[IndexLayout, Part]:
    """The section of an indexed field. aside: keeps bytes until they are written."""
    layout = encoded.layout
    arrays = {name: aside(data) for name, data in encoded.arrays.items()}
    return layout, _framed(f"index.{i}", h.INDEX, arrays, layout.sizes(), layout.terms)


def _framed(name: str, kind: int, arrays: Mapping[str, Pieces], sizes: dict[str, int], entries: int) -> Part:
    offsets, length = place_arrays(sizes)
    between = array_headers(sizes)

    def pieces(_: Mapping[str, int]) -> Iterator[Piece]:
        for array_name, data in arrays.items():
            yield between[array_name]
            yield from data()

    return Part(name, kind, length, pieces, payload=min(offsets.values()), entries=entries)


def _rows(staged: Staged, order: Order, records_at: int) -> Piece:
    """The row entries, in file order, with absolute offsets."""
    rows = np.empty(staged.n, ROW)
    rows["length"] = staged.lengths
    rows["key_length"] = staged.keys.lengths
    rows["shape"] = staged.shapes
    rows["checksum"] = np.array(staged.digests, np.uint64) ^ rows["shape"]  # see format.records.checksum
    if order is not None:
        rows = rows[order]
    lengths = rows["length"].astype(np.uint64)
    rows["offset"] = np.cumsum(lengths) - lengths + np.uint64(records_at)
    return rows


def _records(staged: Staged, order: Order) -> Part:
    lengths, spool = np.array(staged.lengths, np.int64), staged.records
    part = Part("records", h.RECORDS, staged.size, lambda _: (), entries=staged.n)
    if order is None and staged.places is None:
        return _unmoved(part, spool)
    rows = slice(None) if order is None else order
    return part._replace(pieces=lambda _: spool.permuted(staged.offsets[rows].tolist(), lengths[rows].tolist()))


def _vectors(staged: Staged, order: Order) -> Iterator[Part]:
    places = _places(staged, order)
    for i, vectors in enumerate(staged.vectors):
        stride, spool = 4 * vectors.dim, vectors.spool

        def pieces(_: object, stride: int = stride, spool: Spool = spool) -> Iterator[bytes]:
            assert places is not None
            return spool.permuted((places * stride).tolist(), itertools.repeat(stride, staged.n))

        part = Part(f"embeddings.{i}", h.EMBEDDINGS, stride * staged.n, pieces, entries=staged.n)
        if stride:
            yield _unmoved(part, spool) if places is None else part


def _places(staged: Staged, order: Order) -> NDArray[np.int64] | None:
    """Of the file's rows in the scratch files; None where all lie there in this order."""
    if order is None:
        return staged.places
    return order if staged.places is None else staged.places[order]


def _unmoved(part: Part, spool: Spool) -> Part:
    """A section that has what was appended to a scratch file, in that order."""
    if spool.sums is None:  # which are taken in the order of the bytes
        return part._replace(pieces=lambda _: spool.in_order())
    return part._replace(pieces=lambda _: (), sums=spool.sums, spool=spool)


def _presence(absent: Sequence[int], n: int, new_row: NDArray[np.uint32] | None) -> NDArray[np.uint8]:
    """Bit i & 7 of byte i >> 3 tells whether row i has an embedding."""
    bits = np.zeros(8 * bitmap_size(n), np.uint8)
    bits[:n] = 1
    missing = np.array(absent, np.int64)
    bits[missing if new_row is None else new_row[missing]] = 0
    return np.packbits(bits, bitorder="little")
