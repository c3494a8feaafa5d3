"""`mmcache export`."""

from __future__ import annotations

import argparse
import base64
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import NoneType
from typing import IO, TYPE_CHECKING, Any, Final

from ..text import bytes_of, plural, printable
from .get import add_reading, collection_of, open_snapshot
from .jsontext import dumps, plain
from .options import FILE_COMPLETION, OK, UsageError, file_argument, names
from .output import Output

if TYPE_CHECKING:
    from ..storage.snapshot import FileCollection
    from .output import Step

__all__ = ["FORMATS", "HELP", "add_arguments", "run"]

HELP: Final = """\
Write the records of a collection to a file or to stdout, in the order of the cache file; `mmcache build` takes it back.

Records are read and written one after the other, so that memory does not grow with their number. The file is asked, not
its source. A file OUT is put in place when it is whole.

  jsonl    one JSON object a line, with the fields that each record has. Bytes are base64, NaN is "nan"; stderr says
           with which --cast a build takes them back
  csv      a header and a line a record: text in quotes, lists and maps as JSON, nothing for null or a missing field
  parquet  one row a record, embeddings as lists of float32; a missing field is null
  arrow    the same as an Arrow file (Feather 2), or as a stream where OUT is -

parquet and arrow need pip install 'mmcache[arrow]', and that all values of a field have one type.

  mmcache export items.mmc > items.jsonl
  mmcache export items.mmc --no-embeddings -o items.csv
  mmcache export shop.mmc --collection users --columns email,name -o users.parquet
"""

FORMATS: Final = ("jsonl", "csv", "parquet", "arrow")
_SUFFIXES: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_TOGETHER: Final = 256
"""Records that are read together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    out = parser.add_argument(
        "-o", "--output", metavar="OUT", help="the file to write (default, and as -: stdout, for jsonl and csv)"
    )
    out.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--format", choices=FORMATS, help="of what is written (default: as OUT ends, else jsonl)")
    parser.add_argument(
        "--columns", type=names, action="extend", metavar="A,B", help="only these fields, in this order"
    )
    parser.add_argument("--no-embeddings", action="store_true", help="leave the embeddings out")
    add_reading(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    target: str | None = None if arguments.output == "-" else arguments.output
    kind = _format(arguments)
    if target is None and output.json:
        raise UsageError("the records go to stdout; --json reports on a file: -o OUT")
    with open_snapshot(arguments) as snapshot:
        collection = collection_of(snapshot, arguments.collection)
        if arguments.collection is None and len(snapshot.collections) > 1:
            others = ", ".join(name for name in snapshot.collections if name != collection.name)
            output.note(f"collection {collection.name!r}; there are more, for --collection: {others}")
        wanted = _wanted(arguments, collection)
        with output.progress() as progress, _destination(target) as file:
            can_seek = target is not None and file.seekable()
            odd = _write(kind, collection, wanted, file, progress, is_stream=not can_seek)
            size = file.tell() if can_seek else 0
    for line in odd:
        output.note(line)
    if target is not None:
        _report(target, kind, collection, size, output)
    return OK


def _report(target: str, kind: str, collection: FileCollection, size: int, output: Output) -> None:
    if output.json:
        told = {"path": target, "format": kind, "collection": collection.name, "records": len(collection), "size": size}
        output.document(told)
        return
    held = f"{printable(collection.name)}: {plural(len(collection), 'record')}"
    output.say(f"{printable(target)}: {kind} ({held}, {bytes_of(size)})")


def _format(arguments: argparse.Namespace) -> str:
    """Raises UsageError."""
    kind: str | None = arguments.format
    target: str | None = arguments.output
    if kind is None and target not in (None, "-"):
        kind = _SUFFIXES.get(os.path.splitext(target)[1].lower())
        if kind is None:
            raise UsageError(f"what is {target} to be? Say --format, or end it in {', '.join(_SUFFIXES)}")
    kind = kind or "jsonl"
    if kind in ("parquet", "arrow") and target is None:
        raise UsageError(f"{kind} is not for a terminal: -o OUT; or -o - for stdout")
    return kind


def _wanted(arguments: argparse.Namespace, collection: FileCollection) -> list[str]:
    """The fields to write. Raises UsageError."""
    there = dict.fromkeys(name for shape in collection.layout.shapes for name in shape.names)
    vectors = list(collection.layout.embeddings)
    there |= dict.fromkeys(vectors)
    wanted = list(dict.fromkeys(arguments.columns or there))
    if unknown := [name for name in wanted if name not in there]:
        raise UsageError(f"--columns: no field {unknown[0]!r}; there are: {', '.join(there)}")
    return [name for name in wanted if not (arguments.no_embeddings and name in vectors)]


@contextmanager
def _destination(target: str | None) -> Iterator[IO[bytes]]:
    """stdout; or a new file, which takes the place of the target when it is whole. Raises UsageError."""
    if target is None:
        if sys.stdout is None:
            with open("/dev/null", "wb") as nowhere:
                yield nowhere
            return
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    from .files import refuse_cache

    refuse_cache(target)
    is_special = os.path.exists(target) and not os.path.isfile(target)  # a pipe, or /dev/null
    there = target if is_special else f"{target}.{os.getpid()}.tmp"
    try:
        file = open(there, "wb" if is_special else "xb")  # noqa: SIM115 (closed below, before it is renamed)
    except OSError as error:
        raise UsageError(f"-o {target}: cannot be written ({error.strerror})") from None
    try:
        with file:
            yield file
        if not is_special:
            os.replace(there, target)
    except BaseException:
        if not is_special:
            os.unlink(there)
        raise


def _write(
    kind: str, collection: FileCollection, wanted: list[str], file: IO[bytes], progress: Step, *, is_stream: bool
) -> list[str]:
    """What there is to say of values in another form. Raises UsageError, CorruptFileError."""
    if kind in ("parquet", "arrow"):
        try:
            from .export_arrow import write
        except ImportError as error:
            raise UsageError(f"{kind} needs pip install 'mmcache[arrow]' ({error})") from None
        write(kind, collection, wanted, file, progress, is_stream=is_stream)
        return _lacking(collection, wanted)
    rows = _counted(_rows(collection, wanted), len(collection), progress)
    if kind == "jsonl":
        return _write_lines(rows, file)
    return [*_write_csv(collection, rows, wanted, file), *_lacking(collection, wanted)]


def _lacking(collection: FileCollection, wanted: list[str]) -> list[str]:
    """What there is to say where all records have the same columns."""
    vectors, shapes = collection.layout.embeddings, collection.layout.shapes
    lacking = [name for name in wanted if name not in vectors and any(name not in {*shape.names} for shape in shapes)]
    return [f"not in all records, and null in the others: {', '.join(lacking)}"] if lacking else []


def _rows(collection: FileCollection, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Those of these fields that each record has. A record without an embedding has null there."""
    import numpy as np

    from .decimals import shortest

    layout = collection.layout.embeddings
    vectors = {field: collection.has_embedding_of(field) for field in wanted if field in layout and layout[field].dim}
    without = dict.fromkeys(field for field in wanted if field in layout)
    for begin in range(0, len(collection), _TOGETHER):
        rows = np.arange(begin, min(begin + _TOGETHER, len(collection)), dtype=np.uint32)
        lists = {field: shortest(collection.embeddings_at(rows, field)) for field in vectors}
        for place, record in enumerate(collection.records_at(rows)):
            fields = record.asdict() | without
            for field, numbers in lists.items():
                if vectors[field][begin + place]:
                    fields[field] = numbers[place]
            yield {name: fields[name] for name in wanted if name in fields}


def _counted(rows: Iterable[Any], total: int, progress: Step) -> Iterator[Any]:
    for done, row in enumerate(rows):
        if done % _TOGETHER == 0:
            progress("records", done, total)
        yield row


class _Forms:
    """Values that the format has no form for: what is written in their place, and what a build needs to take it back.

    casts: field -> type. lost: fields that are not read back as they were. empty: fields with empty text, which CSV has
    for null, too. kinds: field -> the types of its values, as far as CSV can tell them apart.
    """

    def __init__(self) -> None:
        self.casts: dict[str, str] = {}
        self.lost: dict[str, None] = {}
        self.empty: dict[str, None] = {}
        self.kinds: dict[str, set[type]] = {}

    def scalar(self, name: str, value: Any) -> Any:
        """The value, or the text for it."""
        if isinstance(value, bytes):
            self.casts[name] = "bytes"
            return base64.b64encode(value).decode()
        if isinstance(value, float) and not math.isfinite(value):
            self.casts[name] = "float"
            return str(value)
        return value

    def plain(self, name: str, value: Any) -> Any:
        """As `jsontext.plain`."""
        written = plain(value)
        if written != value:
            self.lost[name] = None
        return written

    def notes(self) -> list[str]:
        found = []
        if self.casts:
            casts = ",".join(f"{name}={kind}" for name, kind in self.casts.items())
            found.append(f"to build it back: mmcache build ... --cast {casts}")
        if self.lost:
            found.append(f"written as `mmcache get` does, and not read back as it was: {', '.join(self.lost)}")
        if self.empty:
            found.append(f"empty text, which a build from CSV takes for null: {', '.join(self.empty)}")
        if mixed := [name for name, kinds in self.kinds.items() if len(kinds) > 1]:
            found.append(f"of several types, which a build from CSV takes for one: {', '.join(mixed)}")
        return found


def _write_lines(rows: Iterable[dict[str, Any]], file: IO[bytes]) -> list[str]:
    forms = _Forms()
    for fields in rows:
        for name, value in fields.items():
            if not isinstance(value, (str, int, NoneType)):
                fields[name] = forms.plain(name, forms.scalar(name, value))
        file.write(dumps(fields).encode() + b"\n")
    return forms.notes()


# --- CSV

_TYPED: Final = re.compile(
    r"-?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|true|false|nan|-?inf(inity)?", re.IGNORECASE | re.ASCII
)
"""Text that a reader of CSV takes for something else."""


def _write_csv(
    collection: FileCollection, rows: Iterable[dict[str, Any]], wanted: list[str], file: IO[bytes]
) -> list[str]:
    forms = _Forms()
    vectors = {field for field in wanted if field in collection.layout.embeddings}
    typed = dict.fromkeys(wanted, True)
    file.write(_csv_line(map(_quoted, wanted)))
    for fields in rows:
        for name, value in fields.items():
            if value is not None and name not in vectors:
                forms.kinds.setdefault(name, set()).add(list if type(value) is dict else type(value))
            if typed[name] and value is not None:
                typed[name] = isinstance(value, str) and _TYPED.fullmatch(value) is not None
            if isinstance(value, (list, dict)) and name not in vectors:
                forms.casts[name] = "json"
            elif value == "":
                forms.empty[name] = None
        file.write(_csv_line(_cell(forms, name, fields.get(name)) for name in wanted))
    forms.casts |= {name: "str" for name, all_typed in typed.items() if all_typed and str in forms.kinds.get(name, ())}
    return forms.notes()


def _csv_line(cells: Iterable[str]) -> bytes:
    return (",".join(cells) + "\n").encode()


def _cell(forms: _Forms, name: str, value: Any) -> str:
    """Text is quoted and nothing else is, so that 5 and "5", null and "" stay apart for readers that look."""
    if value is None:
        return ""
    value = forms.scalar(name, value)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (list, dict)):
        return _quoted(dumps(forms.plain(name, value)))
    return dumps(forms.plain(name, value))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
