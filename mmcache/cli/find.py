"""`mmcache find`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from ..errors import MmcacheError
from ..query import follow, path_of
from ..text import number, plural, short
from .get import add_reading, collection_of, fields_of, open_snapshot
from .options import OK, UsageError, count, file_argument
from .output import Output

if TYPE_CHECKING:
    from ..format.keys import Key
    from ..storage.record import Record
    from ..storage.selection import Selection
    from ..storage.snapshot import FileCollection

__all__ = ["HELP", "add_arguments", "cell_of", "run"]

HELP: Final = """\
Print the records that have these values in indexed fields.

  mmcache find packages.mmc section=games tags=role::program        both
  mmcache find packages.mmc section=games section=editors           either
  mmcache find packages.mmc section!=games                          no such value
  mmcache find packages.mmc size:1000..2000                         a range, both ends included; 1000.. and ..2000
  mmcache find packages.mmc 'size:>1000'                            and >=, <, <=
  mmcache find packages.mmc 'name:lib*'                             text that begins with lib
  mmcache find packages.mmc --order-by size --desc --limit 10       the largest
  mmcache find packages.mmc priority:=null                          JSON, where text will not do

A value is text. If no record has that text and it spells a number, null, true or false that one has, it is that. Bounds
that spell numbers are numbers, unless no record has one in that field; in double quotes they are text.
On a terminal the records are a table, elsewhere one JSON document a line; with --json, one list.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    parser.add_argument(
        "terms", nargs="*", metavar="FIELD=VALUE", help="what they have in common, or a range (default: all records)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ids", action="store_true", help="print ids only, one a line")
    what.add_argument("--count", action="store_true", help="print only how many there are")
    parser.add_argument("--order-by", metavar="FIELD", help="smallest first: null, then numbers, then text")
    parser.add_argument("--desc", action="store_true", help="with --order-by: largest first")
    parser.add_argument("--limit", type=count, metavar="N", help="print at most N")
    add_reading(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from .queries import selected

    if arguments.desc and arguments.order_by is None:
        raise UsageError("--desc needs --order-by FIELD")
    with open_snapshot(arguments) as snapshot:
        collection = collection_of(snapshot, arguments.collection)
        found = selected(collection, arguments.terms)
        if arguments.order_by is not None:
            found = _ordered(found, arguments.order_by, descending=arguments.desc)
        shown = found.limit(arguments.limit) if arguments.limit is not None else found
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


def _ordered(found: Selection, field: str, *, descending: bool) -> Selection:
    try:
        return found.order_by(field, descending=descending)
    except MmcacheError:
        raise
    except ValueError as error:
        raise UsageError(f"--order-by: {error}") from None


def _print_ids(ids: Iterable[Key], output: Output) -> None:
    """As text, each is what `mmcache get` and `invalidate` take for it."""
    from .keys import text_of

    if output.json:
        output.document(list(ids))
        return
    for key in ids:
        output.text(text_of(key))


def _print_table(collection: FileCollection, records: Selection, output: Output) -> None:
    """Key and indexed fields: what was asked for, and what could be asked next."""
    schema = collection.schema
    columns = list(dict.fromkeys((*schema.key_fields, *schema.index)))
    rows = [[cell_of(record, field) for field in columns] for record in records]
    if rows:
        output.table([short(column, 24) for column in columns], rows)


def cell_of(record: Record, field: str) -> str:
    root, steps = path_of(field)
    value: Any = record[field] if field in record else follow(record.get(root), steps)
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "" if value is None else short(str(value), 48)
