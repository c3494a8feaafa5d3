"""Tables in text: CSV, TSV, and what else has one delimiter.

The types of columns are given (`Schema.casts`, `Schema.json`), or decided by all values of the column, for which the
file is read twice: see `inference`. So the same file has the same types wherever and however often it is read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain, islice
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

from ..errors import BuildError
from ..schema import R_co, Schema
from ..values import Values
from .base import Where
from .casts import cast, clash, declared, is_kept, unknown_fields
from .files import FileReading, FileSource
from .inference import Guess, read_by
from .mappings import Unread
from .parts import COMPRESSED, Part
from .streams import decompressed, encoding_of

__all__ = ["CSVSource", "reader_of", "text_of"]

DELIMITERS = (",", "\t", ";", "|")
_RUN = 1024
_MAX_FIELD = 1 << 26
"""Characters of one field. The limit of the csv module counts for the whole process, and is raised, never lowered."""


class _Columns(NamedTuple):
    """The columns of one file. names: the fields that are kept; places: where they stand; extra: what the directories
    say; width: all columns."""

    names: tuple[str, ...]
    places: tuple[int, ...]
    extra: Mapping[str, Any]
    width: int


class _Line(NamedTuple):
    """An item: the texts of one row."""

    columns: _Columns
    texts: list[str]


class CSVSource(FileSource[R_co]):
    """Files of one record a line, under a header that names the fields. See `FileSource`.

    delimiter: None takes of comma, tab, semicolon and bar the one that cuts the header into most fields.
    quotechar: around fields that hold a delimiter, a line end or, twice, itself.
    encoding: None takes what a byte order mark says, else UTF-8. What is not in it makes its row a bad one.
    fields: the names of the columns, for files without a header.
    nulls: the texts that stand for None, quoted or not; by default the empty one.

    A row of more or fewer fields than the header, or with a value that does not fit the type given for its column, is
    one that cannot be taken, named by its line.

    >>> with open("items.csv", "w") as file:
    ...     _ = file.write("sku,zip,price\\nyo-yo,01234,2.5\\nsaw,99999,20\\n")
    >>> source = mmcache.CSVSource("items.csv", Schema("items", key="sku", index=("price",)))
    >>> with mmcache.open("items.mmc", source) as items:
    ...     items["yo-yo"]["zip"], items.where(price=mmcache.above(3)).ids  # a leading zero makes a column text
    ('01234', ['saw'])
    """

    kind = "csv"
    suffixes = (".csv", ".tsv", ".tab", ".psv")
    options = ("embeddings", "delimiter", "quotechar", "encoding", "fields", "nulls")
    _gives_plain: ClassVar[bool] = True

    def __init__(
        self,
        path: Where,
        schema: Schema[R_co],
        *,
        embeddings: Where | None = None,
        delimiter: str | None = None,
        quotechar: str | None = None,
        encoding: str | None = None,
        fields: Sequence[str] | None = None,
        nulls: Sequence[str] | None = None,
    ) -> None:
        super().__init__(path, schema, embeddings=embeddings)
        for name, value in (("delimiter", delimiter), ("quotechar", quotechar)):
            if value is not None and (not isinstance(value, str) or len(value) != 1 or value in "\r\n"):
                raise ValueError(f"{name} must be one character, not {value!r}")
        if encoding is not None:
            try:
                "".encode(encoding)
            except (LookupError, TypeError, ValueError) as error:
                raise ValueError(f"encoding={encoding!r} is not known to Python: {error}") from None
        for name, texts in (("fields", fields), ("nulls", nulls)):
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts or ()):
                raise ValueError(f"{name} must be a sequence of texts, not {texts!r}")
        self.delimiter = delimiter
        self.quotechar = quotechar
        self.encoding = encoding
        self.fields = None if fields is None else tuple(fields)
        self.nulls = None if nulls is None else tuple(nulls)


class CSVReading(FileReading):
    """See `CSVSource`."""

    unit = "line"
    values_by = Values()

    def adapter(self, schema: Schema) -> _Typed:
        """Decides the types first, where the schema does not give them all."""
        kinds = declared(schema)
        return _Typed(kinds, self._guessed(schema, kinds), self._nulls, self.source.encoding)

    @property
    def _nulls(self) -> frozenset[str]:
        return frozenset(("",) if self.source.nulls is None else self.source.nulls)

    def _guessed(self, schema: Schema, given: Mapping[str, str]) -> dict[str, str]:
        guesses: dict[str, Guess] = {}
        for file, part in self.each_file():
            with closing(self._rows(file, part, schema)) as rows:
                self._see(rows, guesses, {*given, *schema.embeddings})
        self.lines.clear()
        return {name: guess.kind for name, guess in guesses.items()}

    def _see(self, rows: Iterator[Any], guesses: dict[str, Guess], given: set[str]) -> None:
        """What one file tells."""
        columns = next(rows)
        places = dict(zip(columns.names, columns.places, strict=True))
        sought = {name: guesses.setdefault(name, Guess()) for name in columns.names if name not in given}
        while not all(guess.is_settled for guess in sought.values()) and (run := list(islice(rows, _RUN))):
            lines = [item.texts for item in run if isinstance(item, _Line) and len(item.texts) == columns.width]
            for name, guess in sought.items():
                guess.see(list(map(itemgetter(places[name]), lines)), self._nulls)

    def items(self, file: io.BufferedReader, part: Part, schema: Schema) -> Iterator[Any]:
        rows = self._rows(file, part, schema)
        next(rows)
        return rows

    def _rows(self, file: io.BufferedReader, part: Part, schema: Schema) -> Generator[Any, None, None]:
        """The columns, then the lines."""
        with text_of(file, self.source.encoding) as text:
            yield from self._lines(text, part, schema)

    def _lines(self, text: io.TextIOWrapper, part: Part, schema: Schema) -> Iterator[Any]:
        source = self.source
        reader, skipped = reader_of(text, part.path, source.delimiter, source.quotechar)
        names = source.fields
        if names is None:
            try:
                names = next(reader, [])
            except csv.Error as error:
                raise self._refused(schema, part, f"the header in line {skipped}: {error}") from error
        if any(map(_is_undecoded, names)):
            what = f"the header in line {skipped} is not {source.encoding or 'UTF-8'}: {list(names)!r:.200}"
            raise self._refused(schema, part, f"{what}; say what it is by encoding=, as in 'cp1252'")
        columns = self._columns(list(names), part, schema)
        yield columns
        yield from self._rest(reader, columns, skipped - 1)

    def _rest(self, reader: Any, columns: _Columns, skipped: int) -> Iterator[Any]:
        """The lines below the header. skipped: lines that the reader does not know of."""
        remember = self.lines.append
        new: Any = tuple.__new__  # without the constructor of the NamedTuple, which is Python
        first = reader.line_num + skipped + 1
        while True:
            try:
                for texts in reader:
                    line, first = first, reader.line_num + skipped + 1
                    if texts:
                        remember(line)
                        yield new(_Line, (columns, texts))
                return
            except csv.Error as error:
                remember(first)
                yield Unread(f"line {first}: {error}; is a quote without its second?")
                first = reader.line_num + skipped + 1

    def _columns(self, header: list[str], part: Part, schema: Schema) -> _Columns:
        renames = dict(schema.renames)
        if not header:
            raise self._refused(schema, part, "the file has no header; name the columns by fields=")
        names = [renames.get(name, name) for name in header]
        if len(set(names)) < len(names):
            raise self._refused(schema, part, clash(header, renames))
        extra = {renames.get(name, name): value for name, value in part.fields.items()}
        extra = {name: value for name, value in extra.items() if name not in names}
        unknown = unknown_fields(schema, (*header, *part.fields))
        if unknown and len(self.parts) == 1:
            raise self._refused(schema, part, unknown)
        if lacking := [name for name in schema.key_fields if name not in names and name not in extra]:
            reason = f"no column {lacking[0]!r}, which is the key, in the header: {', '.join(map(repr, header))}"
            raise self._refused(schema, part, f"{reason}; give key=, or fields= for a file without a header")
        kept = [place for place, name in enumerate(names) if is_kept(schema, name)]
        return _Columns(tuple(names[place] for place in kept), tuple(kept), extra, len(names))

    def _refused(self, schema: Schema, part: Part, reason: str) -> BuildError:
        error = BuildError.of(schema.name, None, reason)
        error.path = part.path
        return error


CSVSource._reads = CSVReading


class _Typed:
    """The `Adapter` of text tables."""

    def __init__(
        self, given: Mapping[str, str], guessed: Mapping[str, str], nulls: frozenset[str], encoding: str | None
    ) -> None:
        self._given = {name: cast(kind) for name, kind in given.items()}
        self._kinds = given
        self._guessed = {name: read_by[kind] for name, kind in guessed.items() if kind != "str"}
        self._nulls = nulls
        self._encoding = encoding

    def one(self, item: Any) -> tuple[Mapping[str, Any], str | None]:
        columns, texts = item
        if len(texts) != columns.width:
            raise ValueError(f"{len(texts)} fields, and the header has {columns.width}; quote what holds a delimiter")
        record: dict[str, Any] = {}
        fault = None
        for name, place in zip(columns.names, columns.places, strict=True):
            text = texts[place]
            if text in self._nulls:
                record[name] = None
                continue
            record[name] = text
            if _is_undecoded(text):
                record[name] = text.encode("utf-8", "surrogateescape").decode("latin-1")
                fault = (
                    f"field {name!r} is not {self._encoding or 'UTF-8'}; say what it is by encoding=, as in 'cp1252'"
                )
                continue
            try:
                record[name] = self._value(name, text)
            except ValueError as error:
                fault = fault or f"field {name!r}: {error}; the Schema casts it to {self._kinds.get(name, 'a number')}"
        return record | dict(columns.extra), fault

    def _value(self, name: str, text: str) -> Any:
        function = self._given.get(name) or self._guessed.get(name)
        return text if function is None else function(text)

    def run(self, items: list[Any]) -> list[Any] | None:
        if set(map(type, items)) != {_Line}:
            return None
        columns = items[0].columns
        rows = [item.texts for item in items]
        if {id(item.columns) for item in items} != {id(columns)} or set(map(len, rows)) != {columns.width}:
            return None
        by_place = list(zip(*rows, strict=True))
        found = [self._column(name, by_place[place]) for name, place in zip(columns.names, columns.places, strict=True)]
        names, extra = columns.names, columns.extra
        if not extra:
            return [dict(zip(names, values, strict=True)) for values in zip(*found, strict=True)]
        return [dict(zip(names, values, strict=True)) | extra for values in zip(*found, strict=True)]

    def _column(self, name: str, texts: tuple[str, ...]) -> Iterable[Any]:
        """Raises ValueError."""
        "\n".join(texts).encode()  # what was no text of the encoding cannot be encoded
        nulls, function = self._nulls, self._given.get(name) or self._guessed.get(name)
        if function is None:
            return [None if text in nulls else text for text in texts] if nulls else texts
        return [None if text in nulls else function(text) for text in texts]


def _is_undecoded(text: str) -> bool:
    """Whether it holds what was no text of the encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


@contextmanager
def text_of(
    file: io.BufferedReader, encoding: str | None = None, errors: str = "surrogateescape"
) -> Iterator[io.TextIOWrapper]:
    """A file as text. encoding: as of `CSVSource`. errors: as of `open`."""
    data = decompressed(file)
    mark = encoding_of(data.peek(4))
    encoding = encoding or mark or "utf-8"
    if mark == "utf-8-sig" and encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = mark
    text = io.TextIOWrapper(data, encoding, errors=errors, newline="")
    try:
        yield text
    finally:
        text.detach()


def reader_of(
    text: io.TextIOWrapper, path: str, delimiter: str | None = None, quotechar: str | None = None
) -> tuple[Any, int]:
    """What gives the rows of a text as lists, the header first; and in which line that is. Raises csv.Error in time."""
    if csv.field_size_limit() < _MAX_FIELD:
        csv.field_size_limit(_MAX_FIELD)
    first, number = "", 0
    while not first.strip("\r\n") and (line := text.readline()):
        first, number = line, number + 1
    quote = quotechar or '"'
    delimiter = delimiter or _delimiter_of(path, first, quote)
    return csv.reader(chain([first], text), delimiter=delimiter, quotechar=quote, strict=True), number


def _delimiter_of(path: str, first: str, quotechar: str) -> str:
    """That which cuts the header into most fields; of several the first. first: its first line."""
    name = path.lower()
    stem = name[: name.rindex(".")] if name.endswith(COMPRESSED) else name
    if stem.endswith((".tsv", ".tab")):
        return "\t"
    counts = {}
    for delimiter in DELIMITERS:
        # The second line ends a field that goes on in the next one.
        reader = csv.reader([first, quotechar], delimiter=delimiter, quotechar=quotechar, strict=True)
        try:
            counts[delimiter] = len(next(reader, []))
        except csv.Error:  # it stands in a field that is quoted
            counts[delimiter] = 0
    return max(DELIMITERS, key=counts.__getitem__)
