"""Print the records that have these values in indexed fields.

  mmcache find packages.mmc section=games tags=role::program        both
  mmcache find packages.mmc section=games section=editors           either
  mmcache find packages.mmc priority:=null                          JSON, where text will not do

A value is text. If no record has that text and it spells an int, null, true or false that one has, it is that.
On a terminal the records are a table, elsewhere one JSON document a line; with --json, one list.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..words import number, plural, short
from .get import add_reading, collection_of, fields_of, open_snapshot
from .options import OK, count, file_argument
from .output import Output

if TYPE_CHECKING:
    from ..storage.record import Record
    from ..storage.selection import Selection
    from ..storage.snapshot import Collection

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    parser.add_argument(
        "terms", nargs="*", metavar="FIELD=VALUE", help="what they have in common (default: all records)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ids", action="store_true", help="print ids only, one a line")
    what.add_argument("--count", action="store_true", help="print only how many there are")
    parser.add_argument("--limit", type=count, metavar="N", help="print at most N")
    add_reading(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from .queries import parse_terms

    with open_snapshot(arguments) as snapshot:
        collection = collection_of(snapshot, arguments.collection)
        found = collection.where(parse_terms(collection, arguments.terms))
        shown = found[: arguments.limit] if arguments.limit is not None else found
        if arguments.count:
            output.document(len(found))
            return OK
        if arguments.ids:
            _print_ids(shown.ids, output)
        elif output.json:
            output.document([fields_of(collection, record, embedding=False) for record in shown])
        elif output.is_terminal and not output.quiet:
            _print_table(collection, shown, output)
        else:
            for record in shown:
                output.row(fields_of(collection, record, embedding=False))
        if output.is_terminal or len(shown) < len(found):
            few = f" ({number(len(shown))} shown)" if len(shown) < len(found) else ""
            output.note(f"{plural(len(found), 'record')}{few}")
    return OK


def _print_ids(ids: Iterable[str], output: Output) -> None:
    if output.json:
        output.document(list(ids))
        return
    for key in ids:
        output.text(key)


def _print_table(collection: Collection, records: Selection, output: Output) -> None:
    """Key and indexed fields: what was asked for, and what could be asked next."""
    schema = collection.schema
    columns = [schema.key, *(field for field in schema.index if field != schema.key)]
    rows = [[_cell(record, field) for field in columns] for record in records]
    if rows:
        output.table([short(column, 24) for column in columns], rows)


def _cell(record: Record, field: str) -> str:
    value: Any = record.get(field)
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "" if value is None else short(str(value), 48)
