"""The records of a file, as `survey` needs them: a sample, and which field could be the key."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from ..schema import Schema
from ..text import number
from .options import UsageError
from .survey import SAMPLE, Survey, is_unique

__all__ = ["survey_file"]

_LIKELY: Final = re.compile(r"(^|_)(id|key|code|sku|uuid|slug|name)$", re.IGNORECASE)


_FILES: Final = ("jsonl", "json", "csv", "parquet", "arrow")


def survey_file(where: str, name: str, kind: str) -> Survey:
    """kind: as of a spec. Raises SourceError and UsageError."""
    from ..sources.at import source_at

    if kind not in _FILES:
        raise UsageError(f"{where} is {kind}: init looks at SQLite databases and files of records; see build --help")
    source: Any = source_at(where, Schema(name))
    with source.read() as reading:
        items = _table(source.parts()[0].path) if kind == "csv" else _items(reading, source.schemas[0])
        rows = list(islice(items, SAMPLE))
        count = len(rows) if len(rows) < SAMPLE else reading.count(name)
    key, reason = _key(rows)
    return Survey(name, rows, count, key, reason, casts=kind != "csv")


def _items(reading: Any, schema: Schema) -> Iterator[Mapping[str, Any]]:
    """What the files hold, which is not a record before it has a key."""
    for file, part in reading.each_file():
        for item in reading.items(file, part, schema):
            if isinstance(item, Mapping):
                yield {**part.fields, **item}


def _table(path: str) -> Iterator[Mapping[str, Any]]:
    """The first rows of a file of CSV, with types that fit them."""
    from ..sources.csvfile import reader_of, text_of
    from ..sources.inference import Guess, read_by
    from ..sources.streams import open_file

    lines: list[list[str]] = []
    with open_file(path) as file, text_of(file, errors="replace") as text, suppress(csv.Error):  # the build says which
        lines.extend(line for line in islice(reader_of(text, path)[0], SAMPLE + 1) if line)
    header, *rows = lines or [[]]
    rows = [row for row in rows if len(row) == len(header)]
    readers = []
    for column in zip(*rows, strict=True):
        guess = Guess()
        guess.see(column, ("",))
        readers.append(read_by[guess.kind])
    for row in rows:
        yield {name: read(text) if text else None for name, read, text in zip(header, readers, row, strict=True)}


def _key(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...] | None, str]:
    """The field that every row has, each with another value; of several the likeliest by name, then the first."""
    could = [name for name in (rows[0] if rows else ()) if is_unique([[row.get(name)] for row in rows])]
    could.sort(key=lambda name: (name != "id", _LIKELY.search(name) is None))
    sample = "all rows" if len(rows) < SAMPLE else f"the first {number(len(rows))} rows"
    if not could:
        return None, f"no field is unique and not null in {sample}"
    others = f"; so could be {', '.join(could[1:4])}" if could[1:] else ""
    return (could[0],), f"unique in {sample}{others}"
