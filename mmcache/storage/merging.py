"""Cache files as the stages of a build: what they hold, end to end, as if one build had staged all of it.

    opened    every byte of each file is verified
    joined    one `Staged` for each collection: keys, terms and rows from the indexes of the files, in memory; records
              and embeddings stay in the files, and are copied from there when the merged file is written
    settled   keys of several rows, clustering, what is left out: by the code that a build asks

So `lay_out` and `write` make of it the bytes that one build of all records makes. Nothing is decoded, but where the
records of a later file would have been encoded otherwise after those of the earlier ones.

Memory is that of a build: see `staging`. It does not grow with records and embeddings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from ..errors import BuildError, CorruptFileError, UnusableFileError
from ..format.frame import place_arrays
from ..format.keys import Key
from ..format.layout import MAX_KEY_TYPES, MAX_ROWS, CollectionLayout, IndexLayout, Layout, ids_sizes
from ..format.leftout import MAX_NAMED, LeftOut
from ..format.postings import BITMAP, LIST, RANGE, entry_type, rows_of_bitmap
from ..format.records import Names, decode, is_split
from ..format.slots import EMPTY
from ..format.terms import PackedTerms, terms_end_to_end
from ..progress import Progress
from ..schema import Schema
from ..sources.vectors import Learned
from . import fs
from .admission import settle
from .pieces import Pieces
from .planning import ROW
from .spool import Scratch
from .staging import Staged
from .verify import verify_bytes

__all__ = ["Notes", "Segment", "joined", "opened", "same_schemas"]

_RUN: Final = 1024
"""Records that are encoded again together."""
_PIECE: Final = 2**16
"""Embeddings' rows whose lengths are computed together, at most."""


class Notes(NamedTuple):
    """What a build knows of a collection and a file does not say.

    refused: see `Staged`. maps_at: see `Encoder.maps_at`. learned: what its source says of that.
    """

    refused: list[tuple[int, Key]]
    maps_at: Mapping[Names, tuple[int, ...]]
    learned: Learned


class Segment(NamedTuple):
    """A file that is merged. name: for messages. notes: of each collection, or none of a file of unknown origin."""

    name: str
    file: fs.ReadFile
    layout: Layout
    notes: Mapping[str, Notes]


def opened(
    path: str, held: contextlib.ExitStack, notes: Mapping[str, Notes] | None = None, *, name: str | None = None
) -> Segment:
    """Open a file, and verify every byte of it. It is closed with `held`. Raises UnusableFileError."""
    file = fs.ReadFile(path)
    held.callback(file.close)
    try:
        layout = verify_bytes(file.read, file.size, digests=False)
    except UnusableFileError as error:
        error.path = error.path or path
        raise
    return Segment(path if name is None else name, file, layout, notes or {})


def same_schemas(segments: Sequence[Segment]) -> tuple[Schema, ...]:
    """The schemas of all of them. Raises BuildError that says what differs."""
    first, *others = segments
    expected = {name: one.schema for name, one in first.layout.collections.items()}
    for other in others:
        found = {name: one.schema for name, one in other.layout.collections.items()}
        if list(found) != list(expected):
            reason = (
                f"{other.name} has the collections {', '.join(found)}, and {first.name} has {', '.join(expected)}; "
                "files that are merged have the same ones, in one order"
            )
            raise BuildError(reason, reason=reason)
        for name, schema in found.items():
            _compare(name, (first.name, expected[name].to_dict()), (other.name, schema.to_dict()))
    return tuple(expected.values())


def _compare(collection: str, one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    for argument in one[1] | other[1]:
        a, b = one[1].get(argument), other[1].get(argument)
        if a != b:
            raise BuildError.of(
                collection,
                None,
                f"{other[0]} was built with {argument}={b!r:.200}, and {one[0]} with {argument}={a!r:.200}; files that "
                "are merged have the same schemas",
            )


def joined(
    segments: Sequence[Segment],
    clusters: Mapping[str, str],
    scratch: Callable[[], Scratch],
    progress: Progress | None = None,
) -> list[Staged]:
    """Every collection, as one build would have staged it. scratch: makes an empty scratch file.

    Raises BuildError, as that build would have.
    """
    same_schemas(segments)
    found = []
    for name in segments[0].layout.collections:
        joining = _Joining(segments[0].layout.collections[name].schema, clusters.get(name), scratch)
        total = sum(segment.layout.collections[name].n for segment in segments)
        for segment in segments:
            joining.add(_Part(segment, segment.layout.collections[name]))
            if progress is not None:
                progress(name, joining.staged.n, total)
        found.append(joining.end())
    return found


class _Part:
    """One collection of one file: its sections, as arrays. Nothing is kept."""

    def __init__(self, segment: Segment, layout: CollectionLayout) -> None:
        self.layout = layout
        self.n = layout.n
        self.name = segment.name
        self.notes = segment.notes.get(layout.schema.name)
        self._file = segment.file

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes of the file."""
        data = self._file.read(offset, length)
        if len(data) != length:
            raise CorruptFileError("became shorter while it was merged", path=self.name)
        return data

    def bad(self, section: str, reason: str) -> CorruptFileError:
        return CorruptFileError(f"section {section!r}: {reason}", section=section, path=self.name)

    def whole(self, part: str, dtype: Any) -> NDArray[Any]:
        section = self.layout.sections[part]
        return np.frombuffer(self.read(section.offset, section.length), dtype)

    def rows(self) -> NDArray[Any]:
        """ROW[n], whose records lie end to end in the section."""
        rows, records = self.whole("rows", ROW), self.layout.sections["records"]
        ends = np.cumsum(rows["length"], dtype=np.uint64) + np.uint64(records.offset)
        if not np.array_equal(rows["offset"], ends - rows["length"]) or (self.n and ends[-1] != records.end):
            raise self.bad(records.name, "the records do not lie end to end in the order of the rows")
        return rows

    def key_hashes(self) -> NDArray[np.uint64]:
        """u64[n]: from the table of ids."""
        section = self.layout.sections["ids"]
        arrays = self._arrays(section.offset, ids_sizes(section.count))
        return self._by_ordinal(section.name, arrays["hash"].view("<u8"), arrays["row"].view("<u4"), self.n)

    def _arrays(self, offset: int, sizes: dict[str, int]) -> dict[str, NDArray[np.uint8]]:
        places = place_arrays(sizes).offsets
        return {name: np.frombuffer(self.read(offset + at, sizes[name]), np.uint8) for name, at in places.items()}

    def _by_ordinal(
        self, section: str, hashes: NDArray[np.uint64], ordinals: NDArray[np.uint32], n: int
    ) -> NDArray[np.uint64]:
        """The hash of each ordinal in a gapped table."""
        used = ordinals != EMPTY
        hashes, ordinals = hashes[used], ordinals[used]
        found = np.zeros(n, np.uint64)
        seen = np.zeros(n, np.bool_)
        try:
            found[ordinals] = hashes
            seen[ordinals] = True
        except IndexError:
            raise self.bad(section, f"an ordinal is not below {n}") from None
        if not seen.all():
            raise self.bad(section, "an ordinal has no slot")
        return found

    def index(self, field: str) -> tuple[PackedTerms, NDArray[np.uint32], NDArray[np.uint32]]:
        """The terms of an index, ascending; and its postings, as ordinals of terms and rows, by term."""
        section, layout = self.layout.sections[f"index.{field}"], self.layout.index[field]
        arrays = self._arrays(section.offset, layout.sizes())
        entries = arrays["entries"].view(entry_type())
        lengths = entries["term_length"].astype(np.uint32)
        if not np.array_equal(entries["term_at"], np.cumsum(lengths, dtype=np.uint64) - lengths):
            raise self.bad(section.name, "the terms do not lie end to end")
        terms = terms_end_to_end(arrays["terms"].tobytes(), lengths)
        if terms is None:
            raise self.bad(section.name, "a term is none")
        rows = self._postings(section.name, entries, arrays["rows"], layout)
        codes = np.repeat(np.arange(layout.terms, dtype=np.uint32), entries["count"])
        return terms, codes, rows

    def _postings(
        self, section: str, entries: NDArray[Any], payload: NDArray[np.uint8], layout: IndexLayout
    ) -> NDArray[np.uint32]:
        """u32: the rows of all terms, one list after the other."""
        counts, at, kinds = entries["count"].astype(np.int64), entries["rows_at"].astype(np.int64), entries["kind"]
        # A posting takes a byte of its record at least, which bounds what a wrong count allocates.
        if len(counts) and (int(counts.max()) > self.n or counts.sum() > self.layout.sections["records"].length):
            raise self.bad(section, "there are more rows than the records can have")
        begins = np.cumsum(counts) - counts
        within = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(begins, counts)
        kind_of_each = np.repeat(kinds, counts)
        rows = (np.repeat(at, counts) + within).astype(np.uint32)  # of a RANGE
        lists = kind_of_each == LIST
        if lists.any():
            stored = payload[: len(payload) & -4].view("<u4")
            places = (np.repeat(at // 4, counts) + within)[lists]
            if int(places.max()) >= len(stored):
                raise self.bad(section, "a list of rows ends beyond the section")
            rows[lists] = stored[places]
        size = 8 * (-(-self.n // 64))
        for term in np.flatnonzero(kinds == BITMAP).tolist():
            begin, count = int(begins[term]), int(counts[term])
            found = rows_of_bitmap(payload[int(at[term]) : int(at[term]) + size], self.n)
            if len(found) != count:
                raise self.bad(section, f"a bitmap has {len(found)} rows of {count}")
            rows[begin : begin + count] = found
        if not np.isin(kinds, (LIST, BITMAP, RANGE)).all() or (len(rows) and int(rows.max()) >= self.n):
            raise self.bad(section, f"a list of rows of {layout.terms} terms is none")
        return rows

    def norms(self, field: str, dim: int) -> NDArray[np.float32]:
        if f"norms.{field}" in self.layout.sections:
            return self.whole(f"norms.{field}", "<f4")
        section, each = self.layout.sections[f"embeddings.{field}"], max(1, min(_PIECE, fs.CHUNK // (4 * dim)))
        found = [np.empty(0, np.float32)]
        for row in range(0, self.n, each):
            some = min(each, self.n - row)
            raw = self.read(section.offset + 4 * dim * row, 4 * dim * some)
            matrix = np.frombuffer(raw, "<f4").reshape(some, dim)
            with np.errstate(over="ignore", invalid="ignore"):
                found.append(np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)).astype(np.float32))
        return np.concatenate(found)

    def missing(self, field: str) -> list[int]:
        """The rows without this embedding."""
        dim, missing = self.layout.embeddings[field]
        if not dim:
            return list(range(self.n))
        if not missing:
            return []
        bits = np.unpackbits(self.whole(f"presence.{field}", np.uint8), count=self.n, bitorder="little")
        return np.flatnonzero(bits == 0).tolist()

    def maps_at(self, shapes: NDArray[np.uint16], rows: NDArray[Any]) -> dict[Names, tuple[int, ...]]:
        """See `Encoder.maps_at`: of a file of unknown origin, from its first record of each set of fields."""
        if self.notes is not None:
            return dict(self.notes.maps_at)
        numbers, first_rows = np.unique(shapes, return_index=True)
        first_of = dict(zip(numbers.tolist(), first_rows.tolist(), strict=True))
        found: dict[Names, tuple[int, ...]] = {}
        for number, shape in enumerate(self.layout.shapes):
            if shape.fields in found:
                continue
            at = {i for i in shape.nested if i > 0}
            if number in first_of:
                row = rows[first_of[number]]
                values = decode(self.read(int(row["offset"]), int(row["length"])))
                # One that can be split would have been, had there been a map in the first record.
                at |= {i for i, value in enumerate(values) if isinstance(value, dict) and not is_split(value)}
            found[shape.fields] = tuple(sorted(at))
        return found

    def records(self, rows: NDArray[Any]) -> Iterator[tuple[list[int], list[tuple[Names, list[Any]]]]]:
        """The shapes, and the fields and values, of all records, some at a time; maps as maps."""
        shapes = self.layout.shapes
        for begin in range(0, self.n, _RUN):
            some = rows[begin : begin + _RUN]
            data = self.read(int(some["offset"][0]), int(some["length"].sum(dtype=np.int64)))
            found, at = [], 0
            for length, number in zip(some["length"].tolist(), some["shape"].tolist(), strict=True):
                shape, values = shapes[number], decode(data[at : at + length])
                for i in shape.nested:
                    if i > 0:
                        values[i] = shape.inner(i, values)
                found.append((shape.fields, values))
                at += length
            yield some["shape"].tolist(), found


class _Joining:
    """One collection: the parts so far."""

    def __init__(self, schema: Schema, cluster_by: str | None, scratch: Callable[[], Scratch]) -> None:
        if cluster_by is not None and cluster_by not in schema.index:
            known = ", ".join(schema.index) or "none"
            reason = f"cannot cluster by {cluster_by!r}, which is not indexed; indexed fields: {known}"
            raise BuildError.of(schema.name, None, reason)
        self._pieces: list[Pieces] = []

        def pieces() -> Pieces:
            self._pieces.append(Pieces(scratch))
            return self._pieces[-1]

        self.staged = Staged.begin(schema, cluster_by, pieces)
        self._first_with: dict[str, str] = {}
        self._left_out = LeftOut()
        self._orders: dict[frozenset[Any], Names] = {}
        self._free: set[frozenset[Any]] = set()

    def add(self, part: _Part) -> None:
        """The next rows. Raises BuildError and CorruptFileError."""
        staged = self.staged
        if staged.n + part.n > MAX_ROWS:
            raise staged.fail(None, f"more than {MAX_ROWS} records do not fit into one collection")
        self._add_keys(part)
        self._add_records(part, part.rows())
        for field in staged.schema.index:
            self._add_index(part, field)
        for i in range(len(staged.vectors)):
            self._add_vectors(part, i)
        self._add_left_out(part)
        staged.n += part.n

    def _add_keys(self, part: _Part) -> None:
        keys, types = self.staged.keys, part.layout.key_types
        keys.hashes.frombytes(part.key_hashes().tobytes())
        if types is None:
            # More than a file names; so has the merged one.
            types = tuple(map("type {}".format, range(MAX_KEY_TYPES + 1)))
        keys.types.update(types)

    def _add_records(self, part: _Part, rows: NDArray[Any]) -> None:
        staged, pieces = self.staged, self._pieces[0]
        shapes = rows["shape"].astype(np.uint16)
        if len(shapes) and int(shapes.max()) >= len(part.layout.shapes):
            raise part.bad("rows", "a row has a shape that is none")
        staged.keys.lengths.frombytes(rows["key_length"].astype(np.uint16).tobytes())
        orders = self._other_orders(part)
        try:
            numbers = None if orders else staged.encoder.adopt(part.layout.shapes, part.maps_at(shapes, rows))
            if numbers is None:
                self._encode_again(part, rows, orders)
                return
        except ValueError as error:
            raise staged.fail(None, str(error)) from None
        staged.lengths.frombytes(rows["length"].astype(np.uint32).tobytes())
        staged.digests.frombytes((rows["checksum"] ^ rows["shape"]).tobytes())
        staged.shapes.frombytes(np.array(numbers, np.uint16)[shapes].tobytes() if len(shapes) else b"")
        section = part.layout.sections["records"]
        pieces.join(part.read, section.offset, section.length)
        staged.records.size = pieces.size

    def _other_orders(self, part: _Part) -> dict[Names, Names]:
        """Fields as the part has them -> in the order of the first file that has this set of fields, where it differs.

        A source of mappings gives all records with one set of fields in the order of the first of them. That
        may be a row that was left out. Where a file has a set in several orders, its source does not.
        """
        if part.notes is not None:
            for known, order in part.notes.learned.orders.items():
                self._orders.setdefault(known, order)
        found: dict[frozenset[Any], dict[Names, None]] = {}
        for shape in part.layout.shapes:
            found.setdefault(frozenset(shape.fields), {})[shape.fields] = None
        others = {}
        for fields, orders in found.items():
            first, *more = orders
            if more:
                self._free.add(fields)
            before = self._orders.setdefault(fields, first)
            if before != first and fields not in self._free:
                others[first] = before
        return others

    def _encode_again(self, part: _Part, rows: NDArray[Any], orders: Mapping[Names, Names]) -> None:
        """Records whose fields or maps one build of all would have treated otherwise. Raises ValueError."""
        staged, shapes = self.staged, part.layout.shapes
        met = 0

        def learn_before(number: int) -> None:
            """Shapes were numbered as they were first met, by rows that were dropped, too."""
            nonlocal met
            for shape in shapes[met:number]:
                names = orders.get(shape.fields, shape.fields)
                inner = {names.index(shape.fields[i]): fields for i, fields in shape.nested.items() if i > 0}
                staged.encoder.expect(names, inner)
            met = max(met, number + 1)

        for numbers, run in part.records(rows):
            for i, (names, values) in enumerate(run):
                if (order := orders.get(names)) is not None:
                    run[i] = order, [values[names.index(name)] for name in order]
            begin = 0
            for end in range(1, len(run) + 1):
                if end < len(run) and run[end][0] == run[begin][0] and numbers[end] <= met:
                    continue
                learn_before(numbers[begin])
                packed, found = staged.encoder.encode_run(run[begin][0], [values for _, values in run[begin:end]])
                staged.lengths.extend(map(len, packed))
                staged.shapes.extend(found)
                staged.digests.extend(map(xxh3_64_intdigest, packed))
                self._pieces[0].append(b"".join(packed))
                begin = end
        learn_before(len(shapes))
        staged.records.size = self._pieces[0].size

    def _add_index(self, part: _Part, field: str) -> None:
        terms, codes, rows = part.index(field)
        if field == self.staged.cluster_by and len(rows) == part.n:
            # Clusters come in the order in which their terms are first met.
            by_row = np.full(part.n, EMPTY, np.uint32)
            by_row[rows] = codes
            if not (by_row == EMPTY).any():
                used, first, numbers = np.unique(by_row, return_index=True, return_inverse=True)
                order = np.argsort(first)
                self.staged.terms[field].join(
                    terms.taken(used[order]), np.argsort(order)[numbers].astype(np.uint32), None
                )
                return
        self.staged.terms[field].join(terms, codes, rows + np.uint32(self.staged.n))

    def _add_vectors(self, part: _Part, i: int) -> None:
        vectors, pieces = self.staged.vectors[i], self._pieces[1 + i]
        field, dim = vectors.name, part.layout.embeddings[vectors.name].dim
        if dim and vectors.dim not in (0, dim):
            raise self.staged.fail(
                None,
                f"{part.name} has embeddings {field!r} of {dim} numbers, and {self._first_with.get(field)} of "
                f"{vectors.dim}; say how many with dim= in the Schema",
            )
        if dim and not vectors.dim:
            pieces.join(_zeros, 0, 4 * dim * vectors.n)  # records before the first embedding
        if dim:
            vectors.dim = dim
            self._first_with.setdefault(field, part.name)
            section = part.layout.sections[f"embeddings.{field}"]
            pieces.join(part.read, section.offset, section.length)
            norms = part.norms(field, dim)
        else:
            pieces.join(_zeros, 0, 4 * vectors.dim * part.n)
            norms = np.zeros(part.n, np.float32)
        vectors.take(norms, part.missing(field), pieces.size)

    def _add_left_out(self, part: _Part) -> None:
        staged, found, schema = self.staged, part.layout.left_out, self.staged.schema
        if part.notes is not None:
            staged.refused += [(at + staged.n, key) for at, key in part.notes.refused]
        rows = (*self._left_out.rows, *found.rows)[:MAX_NAMED]
        invalid = self._left_out.invalid + found.invalid
        self._left_out = LeftOut(invalid, self._left_out.duplicates + found.duplicates, rows)
        if schema.max_invalid is not None and invalid > schema.max_invalid:
            last = found.rows[-1][1] if found.rows else "not named"
            allowed = f"more rows cannot be taken than max_invalid={schema.max_invalid}; one of them: {last}"
            raise staged.fail(None, allowed)

    def end(self) -> Staged:
        """There are no more parts. Raises BuildError."""
        settle(self.staged, self._left_out)
        return self.staged


def _zeros(_: int, length: int) -> bytes:
    return bytes(length)
