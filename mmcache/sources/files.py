"""Files of records without an index: where they are, how they are read whole, and lookups among them.

A `FileSource` is the file, or the files of a pattern or directory, of one collection. Its `FileReading` is one look at
them: each kind of file gives the items of one file, and all else is here. Memory does not grow with the records, but
for lookups, which keep them all: there is no index to ask.
"""

from __future__ import annotations

import io
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from typing import Any, ClassVar, Generic, Self

from ..errors import BuildError, SourceError
from ..query import Query
from ..schema import AnySchema, R_co, Schema
from ..shown import internal
from ..values import Values
from .base import Invalid, Key, Reading, Row, SourceRecord, Where, flat, path_in, plain_path
from .casts import Adapter
from .catalog import Catalog
from .fingerprint import lasting, stamp_of
from .mappings import LOOKED_AT, Keyed, Sought, Unread, shape_records, unknown_to, without
from .objects import Objects, fingerprint_of_objects, is_object_url
from .parts import Part, absolute, joined, parts_of
from .slices import balanced
from .streams import STDIN, is_pipe, open_file
from .vectors import Decoders, Learned, Vector

__all__ = ["FileReading", "FileSource"]

_REMEMBERED = 1024
"""Lines that are known of the last items: more than are taken together."""
_LATELY = 1.0
"""Seconds for which misses believe the fingerprint of objects that was asked for last."""


@internal(
    "fingerprint_lately", "kind", "opened", "options", "parts", "pieces", "remade", "size_of", "suffixes", "takes"
)
@internal("with_rules")
class FileSource(Generic[R_co]):
    """A file of records without an index; or several: a pattern such as `logs/*.jsonl`, or a directory.

    path: made absolute at once. "-" is standard input, which no other process can read again. A URL of an object store
        names an object, a pattern of them, or all below a prefix: see `objects`. Needs the extra `remote`.
    embeddings: the path of a .npy file whose row i is the embedding of record i, in place of embeddings in the records.

    Lookups are from a dict of all records, read anew when a file has changed. Pickles to its arguments.
    """

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    """What the names of such files in a directory end with."""
    options: ClassVar[tuple[str, ...]] = ("embeddings",)
    """Arguments that a spec holds, each in an attribute of its name; those that are None are left out."""
    takes: ClassVar[tuple[str, ...]] = ()
    """Arguments that only a program or a command line gives."""
    _reads: ClassVar[type[FileReading]]
    _not_for_files: ClassVar[tuple[str, ...]] = ("table", "query", "tracks")
    """Fields of a schema that say nothing here."""
    _is_cut: ClassVar[bool] = False
    """Whether files can be read apart from each other."""
    _shard: tuple[int, list[Part], bool] | None = None
    """Of a part of a source: which it is, and its files."""

    def __init__(self, path: Where, schema: Schema[R_co], *, embeddings: Where | None = None) -> None:
        where = os.fsdecode(os.fspath(path))
        self._objects = Objects(where) if is_object_url(where) else None
        self.path = where if self._objects is not None else absolute(where)
        if "\0" in self.path:
            raise ValueError(f"a path cannot hold a NUL character: {self.path!r}")
        self._catalog = Catalog([schema], key="id")
        self._schema = self._catalog[schema.name]
        for argument in self._not_for_files:
            if getattr(schema, argument):
                raise ValueError(f"Schema {schema.name!r}: {argument}= is for databases, and this is {self.path}")
        if embeddings is not None and not isinstance(embeddings, (str, bytes, os.PathLike)):
            raise TypeError(f"embeddings= is the path of a .npy file, not a {type(embeddings).__name__}")
        self.embeddings = None if embeddings is None else os.path.abspath(os.fsdecode(os.fspath(embeddings)))
        if self.embeddings is not None and len(schema.embeddings) != 1:
            raise ValueError(
                f"embeddings= is one array, and the Schema {schema.name!r} names {len(schema.embeddings)} embedding "
                "fields; name one: Schema(embedding=...)"
            )
        self._lookup: tuple[bytes, Keyed] | None = None
        self._lately: tuple[float, bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        if self.path == STDIN:
            raise TypeError("standard input cannot be sent to another process; write it to a file first")
        return self.__dict__ | {"_lookup": None, "_lately": None}  # and see `Objects`

    @property
    def schemas(self) -> tuple[AnySchema, ...]:
        """The one, with its key."""
        return (self._schema,)

    @property
    def schema(self) -> Schema[R_co]:
        """The one, with its key."""
        return self._schema

    def scans(self, collection: str) -> bool:
        """See `ScanningSource`: there is no index."""
        self._catalog[collection]
        return True

    def with_rules(self, **rules: Any) -> Self:
        """See `sources.with_rules`."""
        other = copy(self)
        other._schema = replace(self._schema, **rules)
        other._catalog = Catalog([other._schema])
        other._lookup = None
        return other

    def parts(self) -> list[Part]:
        """The files, as they are now. Raises SourceError where there is none."""
        if self._shard is not None:
            return self._shard[1]
        if self._objects is not None:
            return self._objects.parts(self.suffixes)
        return parts_of(self.path, self.suffixes)

    def shards(self, n: int) -> list[Self]:
        """See `ShardedSource`: runs of files, or pieces of files. Raises SourceError for a format that has none, and
        with embeddings= apart."""
        if not self._is_cut or self.embeddings is not None or is_pipe(self.path):
            what = "embeddings= apart" if self._is_cut and self.embeddings else f"a {type(self).__name__}"
            raise SourceError(f"{what} cannot be read in shards; build without shards=", path=self.path)
        try:
            parts = self.parts()
            pieces = [piece for part in parts for piece in self.pieces(part, n)]
        except OSError as error:
            raise self._error(error) from error
        found = []
        for number, run in enumerate(balanced([weight for _, weight in pieces], n)):
            shard = copy(self)
            shard._lookup = None
            shard._shard = number, joined(part for part, _ in pieces[run.start : run.stop]), len(parts) > 1
            found.append(shard)
        return found

    def pieces(self, part: Part, n: int) -> list[tuple[Part, int]]:  # noqa: ARG002 (for formats that can be cut)
        """A file, as a whole or cut n times at most, and how much work each is. Raises OSError."""
        return [(part, self.size_of(part))]

    def size_of(self, part: Part) -> int:
        """Bytes of a file. Raises OSError."""
        return os.stat(part.path).st_size if part.found is None else part.found.size

    def opened(self, part: Part) -> io.BufferedReader:
        """A file, seekable. Raises OSError."""
        if self._objects is None or part.found is None:
            return open_file(part.path)
        return self._objects.open(part)

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """One file as it is now, held open; several are opened in turn. That they do not change while they are read is
        checked at the end."""
        with ExitStack() as held:
            reading = self._reads(self, self.parts(), held)
            reading.begin()
            yield reading

    def fetch(self, collection: str, ids: Sequence[Key]) -> list[Row | None]:
        return self._by_key(collection).fetch(ids)

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        """See `OrderedSource`."""
        return self._by_key(collection).in_order(ids)

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        return self._by_key(collection).find(query)

    def fingerprint(self) -> bytes:
        """Of the identity, size and times of all files, and their names if they are several; of objects, of their
        names, sizes and tags. Raises SourceError where there is none.

        Of files that were written within the last 20 ms, whose times cannot tell of another write, it is one that is
        never given again. Ask again a moment later for one that lasts.
        """
        if is_pipe(self.path):
            return bytes(32)
        begun_ns = time.time_ns()
        parts = self.parts()
        files = [part.path for part in parts if part.found is None]
        others = [self.embeddings] if self.embeddings is not None else []
        try:
            stamps = [stamp_of(os.stat(path)) for path in (*files, *others)]
        except OSError as error:
            raise self._error(error) from error
        found = lasting(begun_ns, *stamps)
        if self._objects is not None:
            return blake2b(found + fingerprint_of_objects(parts), digest_size=32).digest()
        if [part.path for part in parts] == [self.path]:
            return found
        names = "\0".join(part.path for part in parts)
        return blake2b(found + os.fsencode(names), digest_size=32).digest()

    def fingerprint_lately(self) -> bytes:
        """See `base.fingerprint_lately`. A file costs no more than a look at it."""
        if self._objects is None:
            return self.fingerprint()
        begun, known = time.monotonic(), self._lately
        if known is None or begun - known[0] > _LATELY:
            self._lately = known = begun, self.fingerprint()
        return known[1]

    def available(self, schemas: Iterable[AnySchema]) -> tuple[AnySchema, ...]:
        """See `EvolvingSource`. A file has one collection; its first records say which fields it has."""
        asked = [schema for schema in schemas if schema.name == self._schema.name]
        unknown = {field for schema in asked for field in unknown_to(self._schema, schema)}
        lacking = self._lacking(unknown) if unknown else ()
        return tuple(without(schema, lacking) for schema in asked)

    def _lacking(self, fields: set[str]) -> set[str]:
        """Which of these fields, of other versions of a program, would be taken for misspelt."""
        sought = Sought(self._schema, fields)
        with self.with_rules(columns=None).read() as reading, suppress(BuildError):  # which the build raises again
            for record in islice(reading.records(self._schema.name), LOOKED_AT - 1):
                if not isinstance(record, Invalid):
                    sought.see(flat(record.names), record.names, record.values)
        return set(sought.fields)

    def spec(self) -> dict[str, Any] | None:
        """None for what no other process can read again."""
        if is_pipe(self.path):
            return None
        given = {name: value for name in self.options if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            given[name] = plain_path(value) if name == "embeddings" else list(value) if type(value) is tuple else value
        return {"kind": self.kind, "path": plain_path(self.path), **given}

    @classmethod
    def remade(cls, spec: Mapping[str, Any], schemas: Sequence[AnySchema], given: Mapping[str, Any]) -> Self:
        """See `sources.from_spec`."""
        if len(schemas) != 1:
            raise ValueError(f"it holds one collection, not {len(schemas)}")
        options = {name: spec[name] for name in cls.options if name in spec}
        if isinstance(options.get("embeddings"), bytes):
            options["embeddings"] = os.fsdecode(options["embeddings"])
        return cls(path_in(spec), schemas[0], **options, **{name: given[name] for name in cls.takes if name in given})

    def _by_key(self, collection: str) -> Keyed:
        self._catalog[collection]
        now = self.fingerprint()
        if self._lookup is None or self._lookup[0] != now:
            with self.read() as reading:
                self._lookup = now, Keyed(self._schema, reading.records(collection))
        return self._lookup[1]

    def _error(self, error: Exception, path: str | None = None) -> SourceError:
        path = path or getattr(error, "filename", None) or self.path
        if isinstance(error, FileNotFoundError):
            return SourceError("there is no file at this path; check the path", path=path)
        from .recognize import content_of

        return SourceError(f"cannot read the file: {error}{content_of(os.fspath(path), self.kind)}", path=path)


class FileReading:
    """One look at the files of a source; made by `FileSource.read`, and good until that ends.

    A kind of file gives `items`, and says by `unit` or by `lines` where each one is.
    """

    unit: ClassVar[str] = "row"
    values_by: Values | None = None
    """See `shape_records`."""
    failures: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError, UnicodeError)
    """What reading raises where the file cannot be read."""

    def __init__(self, source: Any, parts: list[Part], held: ExitStack) -> None:
        self.source = source
        self.parts = parts
        self._is_one = len(parts) == 1 and not (source._shard and source._shard[2])
        self.lines: deque[int] = deque(maxlen=_REMEMBERED)
        self._held = held
        self._first: io.BufferedReader | None = None
        self._seen = 0
        self._starts: list[tuple[int, Part]] = []
        self._before: dict[str, int] = {}
        self._decoders = {schema.name: Decoders(schema) for schema in source.schemas}

    def begin(self) -> None:
        """Open what is to be held. Raises SourceError."""
        if len(self.parts) == 1:
            self._first = self._open(self.parts[0], self._held)

    def items(self, file: io.BufferedReader, part: Part, schema: Schema) -> Iterator[Any]:
        """What one file holds, from its beginning; what cannot be read as `Unread`."""
        raise NotImplementedError

    def adapter(self, schema: Schema) -> Adapter | None:  # noqa: ARG002 (for kinds that have their own)
        """See `shape_records`. Called before the first item."""
        return None

    def dtypes(self, collection: str) -> Mapping[str, str]:
        """See `IterableSource.dtypes`."""
        return self._decoders[collection].dtypes

    def learned(self, collection: str) -> Learned:
        """See `IterableSource.learned`."""
        return self._decoders[collection].learned

    def count(self, collection: str) -> int | None:
        """None: only reading would tell."""
        self.source._catalog[collection]
        return None

    def records(self, collection: str) -> Iterator[Row]:
        source, schema = self.source, self.source._catalog[collection]
        self._seen = 0
        self._starts.clear()
        self.lines.clear()
        try:
            with ExitStack() as held:
                yield from shape_records(
                    schema,
                    self._items(schema),
                    self._location,
                    self._vectors(schema, held),
                    decoders=self._decoders[collection],
                    values_by=self.values_by,
                    adapter=self.adapter(schema),
                    shard=source._shard and source._shard[0],
                )
        except BuildError as error:
            error.path = error.path or source.path
            raise
        except self.failures as error:
            raise source._error(error, self._starts[-1][1].path if self._starts else None) from error

    def each_file(self) -> Iterator[tuple[io.BufferedReader, Part]]:
        """Each of the files in turn, open. Raises SourceError if one was written to meanwhile."""
        for part in self.parts:
            with ExitStack() as held:
                file = self._first or self._open(part, held)
                file.seek(0)
                if part.found is not None:
                    yield file, part  # whose every range is of the object that was listed
                    continue
                before = os.fstat(file.fileno())
                yield file, part
                after = os.fstat(file.fileno())
                if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                    raise SourceError("the file changed while it was being read; read it again", path=part.path)

    def _open(self, part: Part, held: ExitStack) -> io.BufferedReader:
        try:
            return held.enter_context(self.source.opened(part))
        except OSError as error:
            raise self.source._error(error, part.path) from error

    def _items(self, schema: Schema) -> Iterator[Any]:
        for file, part in self.each_file():
            self._starts.append((self._seen, part))
            for item in self.items(file, part, schema):
                self._seen += 1
                if part.fields and type(item) is dict:
                    for name, value in part.fields.items():
                        item.setdefault(name, value)
                elif type(item) is Unread and not self._is_one:
                    yield Unread(f"{part.path}: {item.reason}")
                    continue
                yield item

    def _location(self, ordinal: int) -> str:
        start, part = next((one for one in reversed(self._starts) if one[0] <= ordinal), (0, None))
        back = ordinal - self._seen
        known = self.lines and -len(self.lines) <= back < 0
        ahead = 0 if part is None else self._ahead(part)
        where = f"line {self.lines[back] + ahead}" if known else f"{self.unit} {ordinal - start + ahead}"
        return where if part is None or self._is_one else f"{part.path}, {where}"

    def _ahead(self, part: Part) -> int:
        """Lines, or rows, of its file before a piece: counted only where a row of it is to be named."""
        if part.piece is None or not part.piece[0]:
            return 0
        if part.path not in self._before:
            self._before[part.path] = self.before(part, part.piece[0])
        return self._before[part.path]

    def before(self, part: Part, begin: int) -> int:
        """How many lines, or rows, a file has before the piece that begins there. Raises one of `failures`."""
        raise NotImplementedError

    def _vectors(self, schema: Schema, held: ExitStack) -> Iterator[Vector] | None:
        if self.source.embeddings is None:
            return None
        from .npy import rows_of_npy

        return rows_of_npy(self.source.embeddings, schema, held)
