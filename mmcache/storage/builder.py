"""From records to the bytes of a file: stage, plan, write.

    staged = [stage(collection) for each]     read the source once, streaming; the big data goes to scratch files
    plan = lay_out(staged, ...)               pure arithmetic: every section's place and the file's exact size
    digest = write(plan, file)                one pass in file order: copy, and hash what is copied

Memory is a small constant, some 120 bytes a record (`python -m benchmarks.build` measures it), and the distinct terms
the indexed fields; neither records nor embeddings are ever held. The header is the publisher's to write, last.

The same records in the same order give the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64, xxh3_64_intdigest

from ..errors import BuildError
from ..format import header as h
from ..format.frame import glue, place_arrays
from ..format.layout import (
    BLOCKS_NAME,
    MAX_ROWS,
    META_NAME,
    ROW_SIZE,
    CollectionLayout,
    IdsLayout,
    bitmap_size,
    block_count,
    encode_meta,
    ids_sizes,
    section_name,
)
from ..format.postings import EncodedIndex, encode_index, encode_term
from ..format.records import MAX_KEY_BYTES, MAX_RECORD_BYTES, Encoder, decode
from ..format.slots import EMPTY, equal_hashes, seeded_slots
from ..schema import MAX_DIM, Schema, terms_of
from ..sources.base import SourceRecord
from .fs import CHUNK

__all__ = ["Plan", "Progress", "Staged", "lay_out", "stage", "write"]

_RUN = 1024
"""Records handled at a time: enough to let C loops do the work, few enough to stay in the CPU's cache."""

_PLAIN_TERMS = {str, int, bool, type(None)}

Progress = Callable[[str, int, int | None], None]
"""progress(stage, done, total): stage is a collection's name (done counts records) or "write" (bytes)."""

ROW = np.dtype([("offset", "<u8"), ("length", "<u4"), ("key_length", "<u2"), ("shape", "<u2"), ("checksum", "<u8")])
assert ROW.itemsize == ROW_SIZE

Piece = Any
"""Bytes or an array: anything with a C-contiguous buffer."""


class Scratch(Protocol):
    """Where staged bytes wait: `fs.WriteFile`, or anything that writes and reads back at offsets."""

    def write(self, offset: int, data: bytes | memoryview) -> None: ...

    def read(self, offset: int, length: int) -> bytes: ...


class _Spool:
    """An append-only scratch file."""

    def __init__(self, file: Scratch) -> None:
        self._file = file
        self.size = 0

    def append(self, data: bytes) -> None:
        self._file.write(self.size, data)
        self.size += len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._file.read(offset, length)

    def in_order(self) -> Iterator[bytes]:
        for offset in range(0, self.size, CHUNK):
            yield self._file.read(offset, min(CHUNK, self.size - offset))

    def permuted(self, offsets: Iterable[int], lengths: Iterable[int]) -> Iterator[bytes]:
        pieces = map(self._file.read, offsets, lengths)
        while batch := list(itertools.islice(pieces, 4 * _RUN)):
            yield b"".join(batch)


# --- stage ------------------------------------------------------------------------------------------------------------


class _FieldTerms:
    """The terms of one indexed field, met so far, and which row carries which."""

    def __init__(self) -> None:
        self._codes: defaultdict[Any, int] = defaultdict(itertools.count().__next__)
        self._code_of_row = array("I")
        self._row = array("I")
        self._rows_implied = True

    def add(self, first_row: int, column: Sequence[Any]) -> None:
        """The values of consecutive rows. Raises TypeError for a value that cannot be a term."""
        types = set(map(type, column))
        if self._rows_implied and _PLAIN_TERMS.issuperset(types):
            if int in types:
                _check_range(column)
            self._code_of_row.extend(map(self._codes.__getitem__, column))
            return
        self._list_rows()
        for row, value in enumerate(column, first_row):
            for term in terms_of(value):
                self._code_of_row.append(self._codes[term])
                self._row.append(row)

    def _list_rows(self) -> None:
        """From here on, a row may have several terms, or none."""
        if self._rows_implied:
            self._rows_implied = False
            self._row = array("I", range(len(self._code_of_row)))

    @property
    def single(self) -> bool:
        """Whether every row has exactly one term."""
        return self._rows_implied

    def codes(self) -> NDArray[np.uint32]:
        return np.frombuffer(self._code_of_row, np.uint32) if self._code_of_row else np.empty(0, np.uint32)

    def encode(self, new_row: NDArray[np.uint32] | None, n: int) -> EncodedIndex:
        """The index section; `new_row` maps a row as staged to its row in the file."""
        rows = np.arange(n, dtype=np.uint32) if self._rows_implied else np.array(self._row, np.uint32)
        codes = self.codes()
        if new_row is not None:
            rows = new_row[rows]
            order = np.argsort(rows, kind="stable")
            rows, codes = rows[order], codes[order]
        return encode_index(list(map(encode_term, self._codes)), codes, rows, n)


def _check_range(column: Sequence[Any]) -> None:
    for value in column:
        if type(value) is int and not -(2**63) <= value < 2**64:
            terms_of(value)


@dataclass
class Staged:
    """One collection, read and encoded; the small parts in memory, records and embeddings in scratch files.

    The arrays are in the order of the source; `order` lists the rows as they will stand in the file.
    """

    schema: Schema
    cluster_by: str | None
    records: _Spool
    vectors: _Spool
    encoder: Encoder = field(default_factory=Encoder)
    dim: int = 0
    n: int = 0
    missing: list[int] = field(default_factory=list)
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("I"))
    key_lengths: array[int] = field(default_factory=lambda: array("H"))
    shapes: array[int] = field(default_factory=lambda: array("H"))
    digests: array[int] = field(default_factory=lambda: array("Q"))
    norms: list[NDArray[np.float32]] = field(default_factory=list)
    terms: dict[str, _FieldTerms] = field(default_factory=dict)

    def fail(self, key: object, reason: str) -> BuildError:
        return BuildError.of(self.schema.name, key, reason)

    def add(self, run: Sequence[SourceRecord]) -> None:
        """Take the next records. Raises BuildError naming the first that cannot be taken."""
        names, values, vectors = zip(*run, strict=True)
        if names.count(names[0]) == len(run):
            self._add_alike(names[0], values)
        else:
            begin = 0
            for fields, alike in itertools.groupby(names):
                end = begin + sum(1 for _ in alike)
                self._add_alike(fields, values[begin:end])
                begin = end
        if self.schema.embedding is not None:
            self._add_vectors([row[0] for row in values], vectors)
        self.n += len(run)
        if self.n > MAX_ROWS:
            raise self.fail(None, f"more than {MAX_ROWS} records do not fit into one collection")

    def _add_alike(self, names: tuple[str, ...], values: Sequence[Sequence[Any]]) -> None:
        """Records with the same fields."""
        if {len(names)} != set(map(len, values)):
            key = next((row[0] for row in values if row and len(row) != len(names)), None)
            raise self.fail(key, f"the source gave values that do not match its {len(names)} fields")
        keys = [row[0] for row in values]
        raw_keys = self._encode_keys(keys)
        first_row = len(self.lengths)
        for name, terms in self.terms.items():
            column = list(map(itemgetter(names.index(name)), values)) if name in names else [None] * len(values)
            try:
                terms.add(first_row, column)
            except TypeError:
                raise self._blame_term(name, keys, column) from None
        try:
            packed, shapes = self.encoder.encode_run(names, values)
        except (TypeError, ValueError, OverflowError):
            raise self._blame_record(names, values) from None
        lengths = list(map(len, packed))
        if max(lengths) > MAX_RECORD_BYTES:
            key = keys[lengths.index(max(lengths))]
            raise self.fail(key, f"{max(lengths)} bytes when encoded; a record may have {MAX_RECORD_BYTES}")
        self.hashes.extend(map(xxh3_64_intdigest, raw_keys))
        self.lengths.extend(lengths)
        self.key_lengths.extend(map(len, raw_keys))
        self.shapes.extend(shapes)
        self.digests.extend(map(xxh3_64_intdigest, packed))
        self.records.append(b"".join(packed))

    def _encode_keys(self, keys: Sequence[Any]) -> list[bytes]:
        try:
            raw = [key.encode() for key in keys]
            if {str}.issuperset(map(type, keys)) and all(raw) and max(map(len, raw)) <= MAX_KEY_BYTES:
                return raw
        except (AttributeError, UnicodeEncodeError):
            pass
        for key in keys:
            if type(key) is not str:
                raise self.fail(key, f"a key must be a str, not {type(key).__name__}: convert it in the source")
            if not key:
                raise self.fail(key, "the key is empty")
            try:
                size = len(key.encode())
            except UnicodeEncodeError as error:
                raise self.fail(key, f"the key is not valid Unicode ({error.reason})") from None
            if size > MAX_KEY_BYTES:
                raise self.fail(f"{key[:40]}...", f"the key has {size} bytes; at most {MAX_KEY_BYTES} are possible")
        raise AssertionError("keys that fail together fail one by one")

    def _blame_term(self, name: str, keys: Sequence[Any], column: Sequence[Any]) -> BuildError:
        for key, value in zip(keys, column, strict=True):
            try:
                terms_of(value)
            except TypeError as error:
                return self.fail(key, f"indexed field {name!r}: {error}")
        raise AssertionError("values that fail together fail one by one")

    def _blame_record(self, names: tuple[str, ...], values: Sequence[Sequence[Any]]) -> BuildError:
        for row in values:
            try:
                self.encoder.encode_one(names, row)
            except ValueError as error:
                return self.fail(row[0], str(error))
        raise AssertionError("records that fail together fail one by one")

    def _add_vectors(self, keys: Sequence[Any], vectors: Sequence[bytes | None]) -> None:
        if not self.dim:
            self._learn_dim(vectors)
        stride = 4 * self.dim
        if None in vectors:
            blank = bytes(stride)
            self.missing.extend(self.n + i for i, vector in enumerate(vectors) if vector is None)
            filled = [blank if vector is None else vector for vector in vectors]
        else:
            filled = vectors  # type: ignore[assignment]
        if not stride:
            self.norms.append(np.zeros(len(vectors), np.float32))
            return
        if {stride} != set(map(len, filled)):
            i = next(i for i, vector in enumerate(filled) if len(vector) != stride)
            raise self.fail(
                keys[i], f"embedding of {len(filled[i]) // 4} numbers, expected {self.dim} (float32) as in the others"
            )
        data = b"".join(filled)
        matrix = np.frombuffer(data, "<f4").reshape(-1, self.dim)
        norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
        if not self.schema.allow_nan and not np.isfinite(norms).all():
            i = int(np.flatnonzero(~np.isfinite(norms))[0])
            raise self.fail(
                keys[i], "the embedding has NaN or infinite numbers; mend it, or build with Schema(allow_nan=True)"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # a length beyond float32 is infinite
            self.norms.append(norms.astype(np.float32))
        self.vectors.append(data)

    def _learn_dim(self, vectors: Sequence[bytes | None]) -> None:
        first = next((vector for vector in vectors if vector is not None), None)
        if first is None:
            return
        self.dim = len(first) // 4
        if not 1 <= self.dim <= MAX_DIM:
            raise self.fail(None, f"embeddings of {self.dim} numbers; 1 to {MAX_DIM} are possible")
        blank = bytes(4 * self.dim)
        for _ in range(self.n):  # records before the first embedding
            self.vectors.append(blank)

    # What the plan asks, once everything is staged.

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each record begins in the scratch file."""
        lengths = np.array(self.lengths, np.int64)
        return np.cumsum(lengths) - lengths

    def key(self, row: int) -> str:
        """The key of a row as staged, read back from the scratch file."""
        return str(decode(self.records.read(int(self.offsets[row]), self.lengths[row]))[0])

    def seeded_hashes(self, seed: int) -> NDArray[np.uint64]:
        if seed == 0:
            return np.frombuffer(self.hashes, np.uint64) if self.hashes else np.empty(0, np.uint64)
        return np.fromiter(
            (xxh3_64_intdigest(key.encode(), seed) for key in map(self.key, range(self.n))), np.uint64, self.n
        )

    def check_unique(self) -> None:
        for rows in equal_hashes(self.seeded_hashes(0)):
            first: dict[str, int] = {}
            for row in rows:
                key = self.key(row)
                if key in first:
                    raise self.fail(key, f"the key stands twice, in records {first[key]} and {row} (from 0)")
                first[key] = row


def stage(
    schema: Schema,
    records: Iterable[SourceRecord],
    scratch: Callable[[], Scratch],
    *,
    cluster_by: str | None = None,
    total: int | None = None,
    progress: Progress | None = None,
) -> Staged:
    """Read one collection to its end. `scratch()` makes an empty scratch file, of which two are used.

    Raises BuildError naming collection, key and reason.
    """
    staged = Staged(schema, cluster_by, _Spool(scratch()), _Spool(scratch()), dim=schema.dim or 0)
    staged.terms = {name: _FieldTerms() for name in schema.index}
    if cluster_by is not None and cluster_by not in schema.index:
        known = ", ".join(schema.index) or "none"
        raise staged.fail(None, f"cannot cluster by {cluster_by!r}, which is not indexed; indexed fields: {known}")
    iterator = iter(records)
    while run := list(itertools.islice(iterator, _RUN)):
        staged.add(run)
        if progress is not None:
            progress(schema.name, staged.n, total)
    staged.check_unique()
    if cluster_by is not None and not staged.terms[cluster_by].single:
        raise staged.fail(None, f"cannot cluster by {cluster_by!r}: some records have a list of values of it")
    return staged


# --- plan -------------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A section before it has a place. `pieces(offsets)` gives its bytes, told where every section begins."""

    name: str
    kind: int
    length: int
    pieces: Callable[[Mapping[str, int]], Iterable[Piece]]
    payload: int = 0
    entries: int = 0


@dataclass(frozen=True)
class Plan:
    """Every section with its offset, in file order; the last, `blocks`, is filled while the rest is written."""

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
) -> Plan:
    """Encode the small sections and give every section its place. Raises BuildError."""
    layouts, parts = [], []
    for collection in staged:
        layout, own = _collection_parts(collection)
        layouts.append(layout)
        parts.extend(own)
    try:
        meta = encode_meta(writer, source, metadata or {}, layouts, asked)
    except ValueError as error:
        raise BuildError(str(error), reason=str(error)) from None
    return place([Part(META_NAME, h.META, len(meta), lambda _: [meta], entries=len(layouts)), *parts])


def place(parts: Sequence[Part]) -> Plan:
    """Offsets for these sections in this order, and for the block checksums after them. Pure arithmetic."""
    offsets = {}
    end = h.HEADER_SIZE + (len(parts) + 1) * h.TABLE_ROW_SIZE
    for part in parts:
        offsets[part.name] = h.align(end, h.ALIGNMENT.get(part.kind, h.ALIGN))
        end = offsets[part.name] + part.length
    offsets[BLOCKS_NAME] = h.align(end)
    count = block_count(offsets[BLOCKS_NAME])
    blocks = Part(BLOCKS_NAME, h.BLOCKS, 8 * count, lambda _: [], entries=count)
    return Plan((*parts, blocks), offsets, offsets[BLOCKS_NAME] + blocks.length)


def _collection_parts(staged: Staged) -> tuple[CollectionLayout, list[Part]]:
    schema, n = staged.schema, staged.n
    order, new_row = _clustered(staged)
    try:
        slots, seed = seeded_slots(staged.seeded_hashes)
        index = {name: terms.encode(new_row, n) for name, terms in staged.terms.items()}
    except ValueError as error:
        raise staged.fail(None, str(error)) from None
    if new_row is not None:
        slots = slots._replace(ordinal=np.append(new_row, np.uint32(EMPTY))[np.minimum(slots.ordinal, n)])

    records = section_name(schema.name, "records")
    ids: dict[str, Piece] = {"hash": slots.hash, "row": slots.ordinal}
    parts = [
        _framed("ids", h.IDS, ids, ids_sizes(len(slots.hash)), len(slots.hash)),
        Part("rows", h.ROWS, ROW_SIZE * n, lambda offsets: [_rows(staged, order, offsets[records])], entries=n),
    ]
    for name, encoded in index.items():
        layout = encoded.layout
        parts.append(_framed(f"index.{name}", h.INDEX, encoded.arrays, layout.sizes(), layout.terms))
    if staged.dim:
        norms = np.concatenate([np.empty(0, np.float32), *staged.norms])
        parts.append(Part("norms", h.NORMS, 4 * n, lambda _: [norms if order is None else norms[order]], entries=n))
        if staged.missing:
            present = _presence(staged, new_row)
            parts.append(Part("presence", h.PRESENCE, len(present), lambda _: [present], entries=n))
    parts.append(Part("records", h.RECORDS, staged.records.size, lambda _: _records(staged, order), entries=n))
    if staged.dim:
        size = 4 * staged.dim * n
        parts.append(Part("embeddings", h.EMBEDDINGS, size, lambda _: _vectors(staged, order), entries=n))
    described = CollectionLayout(
        schema=schema,
        n=n,
        dim=staged.dim,
        missing=len(staged.missing) if staged.dim else 0,
        shapes=tuple(staged.encoder.shapes),
        ids=IdsLayout(slots.bits, slots.max_probe, seed),
        index={name: encoded.layout for name, encoded in index.items()},
        cluster_by=staged.cluster_by,
    )
    return described, [part._replace(name=section_name(schema.name, part.name)) for part in parts]


def _clustered(staged: Staged) -> tuple[NDArray[np.int64] | None, NDArray[np.uint32] | None]:
    """order[new row] = staged row, new_row[staged row] = new row; None, None where the order stays."""
    if staged.cluster_by is None:
        return None, None
    order = np.argsort(staged.terms[staged.cluster_by].codes(), kind="stable")
    new_row = np.empty(staged.n, np.uint32)
    new_row[order] = np.arange(staged.n, dtype=np.uint32)
    return order, new_row


def _framed(name: str, kind: int, arrays: Mapping[str, Piece], sizes: dict[str, int], entries: int) -> Part:
    offsets, length = place_arrays(sizes)
    between = glue(sizes)

    def pieces(_: Mapping[str, int]) -> Iterator[Piece]:
        for array_name, data in arrays.items():
            yield between[array_name]
            yield data

    return Part(name, kind, length, pieces, payload=min(offsets.values()), entries=entries)


def _rows(staged: Staged, order: NDArray[np.int64] | None, records_at: int) -> Piece:
    """The row entries, in file order, with absolute offsets."""
    rows = np.empty(staged.n, ROW)
    rows["length"] = staged.lengths
    rows["key_length"] = staged.key_lengths
    rows["shape"] = staged.shapes
    rows["checksum"] = np.array(staged.digests, np.uint64) ^ rows["shape"]  # see format.records.checksum
    if order is not None:
        rows = rows[order]
    lengths = rows["length"].astype(np.uint64)
    rows["offset"] = np.cumsum(lengths) - lengths + np.uint64(records_at)
    return rows


def _records(staged: Staged, order: NDArray[np.int64] | None) -> Iterator[bytes]:
    if order is None:
        return staged.records.in_order()
    lengths = np.array(staged.lengths, np.int64)
    return staged.records.permuted(staged.offsets[order].tolist(), lengths[order].tolist())


def _vectors(staged: Staged, order: NDArray[np.int64] | None) -> Iterator[bytes]:
    if order is None:
        return staged.vectors.in_order()
    stride = 4 * staged.dim
    return staged.vectors.permuted((order * stride).tolist(), itertools.repeat(stride, staged.n))


def _presence(staged: Staged, new_row: NDArray[np.uint32] | None) -> bytes:
    """Bit i & 7 of byte i >> 3 tells whether row i has an embedding."""
    bits = np.zeros(8 * bitmap_size(staged.n), np.uint8)
    bits[: staged.n] = 1
    missing = np.array(staged.missing, np.int64)
    bits[missing if new_row is None else new_row[missing]] = 0
    return np.packbits(bits, bitorder="little").tobytes()


# --- write ------------------------------------------------------------------------------------------------------------


class Digest(NamedTuple):
    """What a header says about the sections. sha256: of every byte after the section table."""

    build_id: bytes
    sha256: bytes
    section_count: int
    size: int


def write(plan: Plan, file: Scratch, progress: Progress | None = None) -> Digest:
    """Write all but the header, in file order, hashing on the way: each section, each block, and the whole."""
    stream = _Stream(file, h.HEADER_SIZE + len(plan.parts) * h.TABLE_ROW_SIZE)
    sections = []
    for part in plan.parts:
        offset = plan.offsets[part.name]
        stream.pad_to(offset)
        digest = xxh3_64()
        pieces = [stream.blocks()] if part.kind == h.BLOCKS else part.pieces(plan.offsets)
        for piece in pieces:
            with memoryview(piece) as whole:
                data = whole.cast("B") if whole.nbytes else whole
                digest.update(data)
                stream.append(data)
            if progress is not None:
                progress("write", stream.at, plan.size)
        assert stream.at == offset + part.length, part.name
        sections.append(
            h.Section(
                name=part.name,
                kind=part.kind,
                flags=h.REQUIRED,
                offset=offset,
                length=part.length,
                payload=part.payload,
                count=part.entries,
                checksum=digest.intdigest(),
            )
        )
    stream.flush()
    table = b"".join(section.pack() for section in sections)
    file.write(h.HEADER_SIZE, table)
    return Digest(h.build_id_of(table), stream.sha256.digest(), len(sections), plan.size)


class _Stream:
    """Bytes in file order from the end of the section table on; written and hashed by whole blocks.

    Block k covers the bytes of [64 KiB * k, 64 KiB * (k + 1)) between the section table and the `blocks` section.
    """

    def __init__(self, file: Scratch, begin: int) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file
        self._pending = bytearray()
        self._written = begin
        self._checksums: list[int] = []

    @property
    def at(self) -> int:
        return self._written + len(self._pending)

    def append(self, data: memoryview) -> None:
        for begin in range(0, data.nbytes, CHUNK):
            self._pending += data[begin : begin + CHUNK]
            if len(self._pending) >= CHUNK:
                self._write((self.at & -h.BLOCK) - self._written)

    def pad_to(self, offset: int) -> None:
        self._pending += bytes(offset - self.at)

    def blocks(self) -> bytes:
        """The checksums of all blocks so far, the last one ending here."""
        self._write(len(self._pending))
        return np.array(self._checksums, "<u8").tobytes()

    def flush(self) -> None:
        self._write(len(self._pending))

    def _write(self, length: int) -> None:
        """Write the first `length` pending bytes, which end with a block, or with the last section."""
        with memoryview(self._pending) as pending, pending[:length] as data:
            self.sha256.update(data)
            at = 0
            while at < length:
                block, within = divmod(self._written + at, h.BLOCK)
                end = min(at + h.BLOCK - within, length)
                self._checksums.append(xxh3_64_intdigest(data[at:end], block))
                at = end
            self._file.write(self._written, data)
        del self._pending[:length]
        self._written += length
