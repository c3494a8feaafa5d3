"""Records in JSON: one object a line, or the elements of one array, which is not read whole.

UTF-8, or what a byte order mark says. Compressed or not: see `streams`.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from json.decoder import WHITESPACE  # type: ignore[attr-defined]
from typing import IO, Any, ClassVar

from ..errors import BuildError
from ..schema import R_co, Schema
from .files import FileReading, FileSource
from .mappings import Unread
from .parts import Part
from .streams import decompressed, encoding_of

__all__ = ["JSONLinesSource", "JSONSource"]

_CHUNK = 1 << 16
_TAIL = 16
"""Characters at the end of what was read, in which an error may be for want of the rest: `-Infinity` is the longest
word, an escape of two surrogates the longest unit."""


class JSONLinesReading(FileReading):
    """See `JSONLinesSource`."""

    def items(self, file: io.BufferedReader, part: Part, schema: Schema) -> Iterator[Any]:  # noqa: ARG002
        data = decompressed(file)
        encoding = encoding_of(data.peek(4))
        lines: Iterable[bytes] = data if encoding in (None, "utf-8-sig") else _as_utf8(data, encoding)
        first = 1 if part.piece is None or not part.piece[0] else None
        for number, line in enumerate(lines if part.piece is None else _begun_in(file, *part.piece), 1):
            try:
                text = line.decode("utf-8-sig" if number == first else "utf-8")
                if text.isspace():
                    continue
                item = json.loads(text)
            except (ValueError, RecursionError) as error:
                item = Unread(f"line {number + self._ahead(part)} is not JSON: {error}")
            self.lines.append(number)
            yield item

    def before(self, part: Part, begin: int) -> int:
        """See `FileReading`."""
        count = 1  # the line that `_begun_in` skips
        with self.source.opened(part) as file:
            remaining = begin - 1
            while remaining and (data := file.read(min(_CHUNK, remaining))):
                count += data.count(b"\n")
                remaining -= len(data)
        return count


def _begun_in(file: io.BufferedReader, begin: int, end: int) -> Iterator[bytes]:
    """The lines that begin at these bytes of the file."""
    at = file.seek(max(begin - 1, 0))
    if begin:
        at += len(file.readline())
    while at < end and (line := file.readline()):
        at += len(line)
        yield line


def _as_utf8(data: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    text = io.TextIOWrapper(data, encoding, newline="\n")
    try:
        yield from map(str.encode, text)
    finally:
        text.detach()


class JSONLinesSource(FileSource[R_co]):
    """Files of one JSON object a line, compressed or not; blank lines are skipped. See `FileSource`.

    >>> mmcache.open("lines.mmc", JSONLinesSource("items.jsonl", Schema("items")))["b"]["size"]
    2
    """

    kind = "jsonl"
    suffixes = (".jsonl", ".ndjson")
    _reads = JSONLinesReading
    _gives_plain: ClassVar[bool] = True
    _is_cut: ClassVar[bool] = True

    def pieces(self, part: Part, n: int) -> list[tuple[Part, int]]:
        """See `FileSource`: ranges of bytes, of files that are UTF-8 and not compressed. Raises OSError."""
        size = self.size_of(part)
        with self.opened(part) as file:
            data = decompressed(file)
            if data is not file or encoding_of(data.peek(4)) not in (None, "utf-8-sig"):
                return [(part, size)]
        edges = [size * i // n for i in range(n + 1)]
        return [(part._replace(piece=(a, b)), b - a) for a, b in pairwise(edges) if a < b] or [(part, 0)]


class JSONReading(FileReading):
    """See `JSONSource`."""

    unit = "element"

    def items(self, file: io.BufferedReader, part: Part, schema: Schema) -> Iterator[Any]:
        try:
            yield from _Elements(decompressed(file))
        except ValueError as error:
            failure = BuildError.of(schema.name, None, str(error))
            failure.path = part.path
            raise failure from error


class JSONSource(FileSource[R_co]):
    """Files of one JSON array of objects, or of objects one after another, as `jq` prints them. See `FileSource`.

    An element is held at a time, and not the array. What is no JSON ends the read, as nothing after it has a meaning:
    `on_invalid` is for elements that are no records.

    >>> with open("items.json", "w") as file:
    ...     json.dump(records, file)
    >>> dict(mmcache.build("items.mmc", mmcache.JSONSource("items.json", Schema("items"))).records)
    {'items': 3}
    """

    kind = "json"
    suffixes = (".json",)
    _reads = JSONReading
    _gives_plain: ClassVar[bool] = True


class _Elements:
    """The elements of an array, or values one after another. Raises ValueError that says where there is no JSON.

    text: what was read and not used yet; at: how far it is used. What `raw_decode` cannot read may be right with what
    follows: so it is tried again with twice as much, until the error stands too far from the end for that.
    """

    def __init__(self, data: IO[bytes]) -> None:
        self._data = data
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._line = 1
        self._is_whole = False
        self._count = 0
        self._text_of: codecs.IncrementalDecoder = codecs.getincrementaldecoder("utf-8")()

    def __iter__(self) -> Iterator[Any]:
        self._start()
        is_array = self._next() == "["
        if is_array:
            self._at += 1
            if self._next() == "]":
                self._at += 1
                self._end()
                return
        while self._next():
            yield self._element()
            self._count += 1
            if not is_array:
                continue
            mark = self._next()
            if mark not in (",", "]"):
                raise self._wrong("expected ',' or ']'" if mark else "the array does not end; the file may be cut off")
            self._at += 1
            if mark == "]":
                self._end()
                return
        if is_array:
            raise self._wrong("the array does not end; the file may be cut off")

    def _start(self) -> None:
        head = self._data.read(_CHUNK)
        self._text_of = codecs.getincrementaldecoder(encoding_of(head) or "utf-8")()
        self._add(head)

    def _add(self, data: bytes) -> None:
        try:
            text = self._text_of.decode(data, final=not data)
        except UnicodeDecodeError as error:
            before = self._text.count("\n", self._at) + data.count(b"\n", 0, error.start)
            raise ValueError(f"near line {self._line + before}: {error}; expected UTF-8") from error
        self._line += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + text
        self._at = 0
        self._is_whole = not data

    def _more(self, size: int) -> bool:
        if self._is_whole:
            return False
        self._add(self._data.read(size))
        return True

    def _next(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            self._at = WHITESPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK):
                return ""

    def _element(self) -> Any:
        size = _CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TAIL
                if is_cut and self._more(size):
                    size *= 2
                    continue
                raise self._wrong(error.msg, error.pos) from error
            except RecursionError as error:
                raise self._wrong(f"nests too deep ({error})") from error
            except ValueError as error:  # of a number of more digits than Python reads
                raise self._wrong(str(error)) from error
            if end < len(self._text) or not self._more(size):  # else a number may go on
                self._at = end
                return value

    def _end(self) -> None:
        if self._next():
            raise self._wrong("there is more after the end of the array; for one object a line the file is JSON lines")

    def _wrong(self, what: str, at: int | None = None) -> ValueError:
        line = self._line + self._text.count("\n", 0, self._at if at is None else at)
        return ValueError(f"element {self._count}, line {line}: this is not JSON: {what}")
