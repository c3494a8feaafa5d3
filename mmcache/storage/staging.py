"""The first of the three steps of a build: read a source once, encode what it gives, and keep it in scratch files.

    staged = [stage(collection) for each]     read the source once, streaming; the big data goes to scratch files:
                                              `admission`, which decides about rows that `Staged` refuses
    plan = lay_out(staged, ...)               pure arithmetic: every section's place and the file's exact size
    digest = write(plan, file)                one pass: copy, and hash what was not hashed when it was staged

Memory is a small constant, some 120 bytes a record (`python -m benchmarks.build` measures it), and some 110 and its
bytes for each distinct term of the indexed fields; neither records nor embeddings are ever held.

The same records in the same order give the same bytes.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from ..errors import BuildError
from ..format.header import MAX_SECTIONS
from ..format.keys import Key, check_key, key_of, type_of
from ..format.layout import most_sections
from ..format.leftout import NOTHING_LEFT_OUT, LeftOut
from ..format.records import MAX_KEY_BYTES, MAX_RECORD_BYTES, Encoder
from ..format.sketch import words_in
from ..format.slots import in_order
from ..progress import Progress
from ..query import terms_of
from ..schema import MAX_DIM, Schema
from ..sources.base import SourceRecord
from ..sources.vectors import is_finite
from .carriers import FieldTerms, TermsMark, column_of, renumbered
from .lane import Lane
from .leaves import Sums
from .signing import signs_of
from .spool import Scratch, Spool

__all__ = ["Mark", "Progress", "Staged", "check_count"]

_PLAIN_KEYS = {str, int, bytes}


def _kept(values: array[int], kept: NDArray[np.bool_]) -> array[int]:
    return array(values.typecode, np.array(values)[kept].tobytes())


class _Keys:
    """The keys of a collection, met so far: what the sections `ids` and `rows` hold of them. fields: of a key."""

    def __init__(self, fields: int) -> None:
        self._fields = fields
        self.hashes = array("Q")
        self.lengths = array("H")
        self.types: set[str] = set()
        self._pack = msgpack.Packer().pack

    def add(self, keys: Sequence[Any]) -> list[Key] | None:
        """The next ones; as plain values where they are not quite that, or None. Raises one of _UNUSABLE."""
        types = set(map(type, keys))
        if types == {str} and self._fields == 1:
            raw = list(map(str.encode, keys))
            sizes = np.fromiter(map(len, raw), np.int64, len(raw))
            sizes += 1 + (sizes > 31) + (sizes > 255)
            self._take(raw, sizes)
            self.types.add("str")
            return None
        plain = list(map(check_key, keys))
        for key in plain if self._fields > 1 or tuple in types else ():
            if (len(key) if isinstance(key, tuple) else 1) != self._fields:
                raise ValueError(f"the key {key!r:.80} is not one value for each of {self._fields} key fields")
        packed = list(map(self._pack, plain))
        texts = [key.encode() if type(key) is str else data for key, data in zip(plain, packed, strict=True)]
        self._take(texts, np.fromiter(map(len, packed), np.int64, len(packed)))
        self.types.update(map(type_of, plain))
        return None if _PLAIN_KEYS.issuperset(types) else plain

    def _take(self, hashed: Sequence[bytes], sizes: NDArray[np.int64]) -> None:
        if sizes.max() > MAX_KEY_BYTES:
            raise ValueError(f"the key has {sizes.max()} bytes; at most {MAX_KEY_BYTES} are possible")
        self.hashes.extend(map(xxh3_64_intdigest, hashed))
        self.lengths.frombytes(sizes.astype(np.uint16).tobytes())

    def mark(self) -> tuple[int, set[str]]:
        """See `FieldTerms.mark`."""
        return len(self.hashes), set(self.types)

    def restore(self, mark: tuple[int, set[str]]) -> None:
        n, self.types = mark
        del self.hashes[n:], self.lengths[n:]

    def keep(self, rows: NDArray[np.bool_]) -> None:
        self.hashes, self.lengths = _kept(self.hashes, rows), _kept(self.lengths, rows)

    def blame(self, key: object) -> str | None:
        """What is wrong with a key, or None."""
        try:
            _Keys(self._fields).add([key])
        except UnicodeEncodeError as error:
            return f"the key is not valid Unicode ({error.reason})"
        except (TypeError, ValueError) as error:
            return str(error)
        return None


_UNUSABLE = TypeError, ValueError
"""Raised for a key that is none, is too long, or is not valid Unicode."""


class _Vectors:
    """The embeddings of one field, met so far."""

    def __init__(self, schema: Schema, name: str, spool: Spool, signs: Spool | None) -> None:
        """signs: of what `sketching` makes a sketch; None for none."""
        self.name = name
        self.spool = spool
        self.signs = signs
        self.dim = schema.dim_of(name) or 0
        self.n = 0
        self.missing: list[int] = []
        self._norms: list[NDArray[np.float32]] = []
        self._allow_nan = schema.allow_nan
        self._label = f"embedding {name!r}" if len(schema.embeddings) > 1 else "embedding"
        self._not_finite = (
            f"the {self._label} has NaN or infinite numbers; mend it, or build with Schema(allow_nan=True)"
        )

    def add(self, vectors: Sequence[bytes | None]) -> tuple[int | None, str] | None:
        """Those of the next records. Where one cannot be taken: which of them, if it is that, and why."""
        if not self.dim and (found := self._learn_dim(vectors)):
            return found
        stride = 4 * self.dim
        if None in vectors:
            blank = bytes(stride)
            self.missing.extend(self.n + i for i, vector in enumerate(vectors) if vector is None)
            filled = [blank if vector is None else vector for vector in vectors]
        else:
            filled = vectors  # type: ignore[assignment]
        self.n += len(vectors)
        if not stride:
            self._norms.append(np.zeros(len(vectors), np.float32))
            return None
        if {stride} != set(map(len, filled)):
            i = next(i for i, vector in enumerate(filled) if len(vector) != stride)
            return i, (
                f"{self._label} of {len(filled[i]) // 4} numbers, expected {self.dim} (float32) as in the others"
            )
        data = b"".join(filled)
        matrix = np.frombuffer(data, "<f4").reshape(-1, self.dim)
        norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
        if not self._allow_nan and not np.isfinite(norms).all():
            i = int(np.flatnonzero(~np.isfinite(norms))[0])
            return i, self._not_finite
        with np.errstate(over="ignore", invalid="ignore"):  # a length beyond float32 is infinite
            self._norms.append(norms.astype(np.float32))
        self.spool.append(data)
        if self.signs is not None:
            self.signs.append(signs_of(matrix).tobytes())
        return None

    def _learn_dim(self, vectors: Sequence[bytes | None]) -> tuple[int | None, str] | None:
        """From the first one, unless it cannot be taken."""
        at = next((i for i, vector in enumerate(vectors) if vector is not None), None)
        first = None if at is None else vectors[at]
        if first is None:
            return None
        if not self._allow_nan and not is_finite(first):
            return at, self._not_finite
        self.dim = len(first) // 4
        if not 1 <= self.dim <= MAX_DIM:
            return None, f"{self._label}s of {self.dim} numbers; 1 to {MAX_DIM} are possible"
        blank = bytes(4 * self.dim)
        for _ in range(self.n):  # records before the first embedding
            self.spool.append(blank)
            if self.signs is not None:
                self.signs.append(bytes(8 * words_in(self.dim)))
        return None

    def take(self, norms: NDArray[np.float32], missing: Sequence[int], size: int) -> None:
        """Those of further rows, which lie in the scratch file already. missing: rows of these without an embedding.
        size: of the scratch file, now."""
        self.missing.extend(self.n + row for row in missing)
        self.n += len(norms)
        self._norms.append(norms)
        self.spool.size = size

    def mark(self) -> tuple[int, int, int, int, int]:
        """See `FieldTerms.mark`."""
        return self.spool.size, self.dim, self.n, len(self.missing), len(self._norms)

    def restore(self, mark: tuple[int, int, int, int, int]) -> None:
        size, self.dim, self.n, missing, norms = mark
        self.spool.shorten(size)
        if self.signs is not None:
            self.signs.shorten(8 * words_in(self.dim) * self.n)
        del self.missing[missing:], self._norms[norms:]

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """The embeddings stay where they are: see `Staged.places`."""
        numbers = renumbered(rows)
        self.missing = [int(numbers[row]) for row in self.missing if rows[row]]
        self._norms = [self.norms[rows]]
        self.n = int(rows.sum())

    @property
    def norms(self) -> NDArray[np.float32]:
        return np.concatenate([np.empty(0, np.float32), *self._norms])


class Mark(NamedTuple):
    """A state of `Staged`."""

    n: int
    rows: int
    size: int
    encoder: tuple[int, int, int]
    keys: tuple[int, set[str]]
    vectors: list[tuple[int, int, int, int, int]]
    terms: list[TermsMark]


@dataclass
class Staged:
    """One collection, read and encoded; the small parts in memory, records and embeddings in scratch files.

    The arrays are in the order of the source. slot_order: its rows in the order of the table of ids. places: where each
    row lies in the scratch files, by ordinal; None where all that lie there are rows. left_out: what is no row of it.
    refused: keys of rows that were left out, with the number of the next row; kept only where a key may stand twice.
    """

    schema: Schema
    cluster_by: str | None
    records: Spool
    keys: _Keys
    vectors: list[_Vectors]
    terms: dict[str, FieldTerms]
    encoder: Encoder = field(default_factory=Encoder)
    n: int = 0
    lengths: array[int] = field(default_factory=lambda: array("I"))
    shapes: array[int] = field(default_factory=lambda: array("H"))
    digests: array[int] = field(default_factory=lambda: array("Q"))
    places: NDArray[np.int64] | None = None
    left_out: LeftOut = NOTHING_LEFT_OUT
    refused: list[tuple[int, Key]] = field(default_factory=list)

    @classmethod
    def begin(
        cls, schema: Schema, cluster_by: str | None, scratch: Callable[[], Scratch], lane: Lane | None = None
    ) -> Staged:
        """Nothing yet. `scratch()` makes an empty scratch file: one is used for the records, and one for each
        embedding. lane: in which they are written, and summed, unless their order will be another."""

        def spool() -> Spool:
            return Spool(scratch(), lane, Sums() if lane is not None and cluster_by is None else None)

        def signs() -> Spool | None:
            return Spool(scratch(), lane, None) if schema.sketch else None

        records, embeddings = spool(), [spool() for _ in schema.embeddings]
        vectors = [_Vectors(schema, *one, signs()) for one in zip(schema.embeddings, embeddings, strict=True)]
        terms = {name: FieldTerms() for name in schema.index}
        return cls(schema, cluster_by, records, _Keys(len(schema.key_fields)), vectors, terms)

    def mark(self) -> Mark:
        """What `restore` needs to forget all that was added since, also by an `add` that raised."""
        return Mark(
            self.n,
            len(self.lengths),
            self.records.size,
            self.encoder.mark(),
            self.keys.mark(),
            [vectors.mark() for vectors in self.vectors],
            [terms.mark() for terms in self.terms.values()],
        )

    def restore(self, mark: Mark) -> None:
        self.n, rows = mark.n, mark.rows
        self.records.shorten(mark.size)
        del self.lengths[rows:], self.shapes[rows:], self.digests[rows:]
        self.encoder.restore(mark.encoder)
        self.keys.restore(mark.keys)
        for vectors, state in zip(self.vectors, mark.vectors, strict=True):
            vectors.restore(state)
        for terms, known in zip(self.terms.values(), mark.terms, strict=True):
            terms.restore(known)

    def drop(self, rows: Iterable[int]) -> None:
        """Once all are added: leave out some rows, which stay in the scratch files."""
        kept = np.ones(self.n, np.bool_)
        kept[list(rows)] = False
        self.offsets = self.offsets[kept]
        self.places = np.flatnonzero(kept)
        self.refused = [(int(np.searchsorted(self.places, at)), key) for at, key in self.refused]
        self.keys.keep(kept)
        for vectors in self.vectors:
            vectors.keep(kept)
        for terms in self.terms.values():
            terms.keep(kept)
        self.lengths, self.shapes, self.digests = (_kept(v, kept) for v in (self.lengths, self.shapes, self.digests))
        self.n = len(self.places)

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return sum(self.lengths)

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
        if len(self.vectors) == 1:
            self._add_vectors(values, [vectors])
        elif self.vectors:
            self._add_vectors(values, list(zip(*vectors, strict=True)))
        self.n += len(run)

    def _add_vectors(self, values: Sequence[Sequence[Any]], columns: Sequence[Sequence[bytes | None]]) -> None:
        for vectors, column in zip(self.vectors, columns, strict=True):
            if found := vectors.add(column):
                at, reason = found
                raise self.fail(None if at is None else values[at][0], reason)

    def _add_alike(self, names: tuple[Any, ...], values: Sequence[Sequence[Any]]) -> None:
        """Records with the same fields."""
        if {len(names)} != set(map(len, values)):
            key = next((row[0] for row in values if row and len(row) != len(names)), None)
            raise self.fail(key, f"the source gave values that do not match its {len(names)} fields")
        keys = [row[0] for row in values]
        try:
            plain = self.keys.add(keys)
        except _UNUSABLE:
            raise self._blame_key(keys) from None
        first_row = len(self.lengths)
        for name, terms in self.terms.items():
            column = column_of(name, names, values)
            try:
                terms.add(first_row, column)
            except TypeError:
                raise self._blame_term(name, keys, column) from None
        if plain is not None:
            values = [
                [list(key) if type(key) is tuple else key, *row[1:]] for key, row in zip(plain, values, strict=True)
            ]
        try:
            packed, shapes = self.encoder.encode_run(names, values)
        except (TypeError, ValueError, OverflowError):
            raise self._blame_record(names, values) from None
        lengths = list(map(len, packed))
        if max(lengths) > MAX_RECORD_BYTES:
            key = keys[lengths.index(max(lengths))]
            raise self.fail(key, f"{max(lengths)} bytes when encoded; a record may have {MAX_RECORD_BYTES}")
        self.lengths.extend(lengths)
        self.shapes.extend(shapes)
        self.digests.extend(map(xxh3_64_intdigest, packed))
        self.records.append(b"".join(packed))

    def _blame_key(self, keys: Sequence[Any]) -> BuildError:
        for key in keys:
            reason = self.keys.blame(key)
            if reason is not None:
                return self.fail(f"{key[:40]}..." if isinstance(key, str) and len(key) > 200 else key, reason)
        raise AssertionError("keys that fail together fail one by one")

    def _blame_term(self, name: str, keys: Sequence[Any], column: Sequence[Any]) -> BuildError:
        for key, value in zip(keys, column, strict=True):
            try:
                terms_of(value)
            except TypeError as error:
                return self.fail(key, f"indexed field {name!r}: {error}")
        raise AssertionError("values that fail together fail one by one")

    def _blame_record(self, names: tuple[Any, ...], values: Sequence[Sequence[Any]]) -> BuildError:
        for row in values:
            try:
                self.encoder.encode_one(names, row)
            except ValueError as error:
                return self.fail(tuple(row[0]) if isinstance(row[0], list) else row[0], str(error))
        raise AssertionError("records that fail together fail one by one")

    # What the plan asks, once everything is staged.

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each record begins in the scratch file."""
        lengths = np.array(self.lengths, np.int64)
        return np.cumsum(lengths) - lengths

    def settle(self) -> None:
        """Once all are added: what lies in the scratch files can be read."""
        for spool in (self.records, *(vectors.spool for vectors in self.vectors)):
            spool.settle()

    def raw_key(self, row: int) -> bytes:
        """The key's bytes of a row as staged, read back from the scratch file."""
        at = int(self.offsets[row]) + self.encoder.shapes[self.shapes[row]].prefix
        return self.records.read(at, self.keys.lengths[row])

    @cached_property
    def slot_order(self) -> NDArray[np.uint32]:
        """Raises BuildError for a key that stands twice."""

        def twice(first: int, row: int) -> None:
            key = key_of(msgpack.unpackb(self.raw_key(row)))
            way = 'on_duplicate="first" or "last" takes one of them, and a key=(...) of more fields all of them'
            raise self.fail(key, f"the key stands twice, in records {first} and {row} (from 0); {way}")

        return in_order(np.array(self.keys.hashes, np.uint64), self.raw_key, twice)


def check_count(schemas: Sequence[Schema]) -> None:
    """Raises BuildError for more sections than a file can have, before anything is read."""
    most = most_sections(schemas)
    if most > MAX_SECTIONS:
        reason = (
            f"{len(schemas)} collections with {sum(len(schema.index) for schema in schemas)} indexed fields may take "
            f"{most} sections; a file has at most {MAX_SECTIONS}: index fewer fields, or make several files"
        )
        raise BuildError(reason, reason=reason)
