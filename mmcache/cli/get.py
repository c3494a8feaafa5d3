"""`mmcache get`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from .options import ERROR, OK, UsageError, file_argument, one_of, setting
from .output import Output

if TYPE_CHECKING:
    from ..format.keys import Key
    from ..storage.record import Record
    from ..storage.snapshot import FileCollection, Snapshot

__all__ = ["HELP", "add_arguments", "add_reading", "collection_of", "fields_of", "found_of", "open_snapshot", "run"]

HELP: Final = """\
Print records by their keys, as JSON.

A key is a text; or, where the keys of the collection are, an int (7), bytes in hexadecimal (0xc0ffee), or a JSON list
of several values ('["EPSG", 4326]').

One record is one JSON document: indented on a terminal, else on a line of its own. With --json, all of them are one
list, in the order asked, null for an id that the file does not have (exit code 1). The file is asked, not its source.

  mmcache get items.mmc sku-7 sku-9
  mmcache get places.mmc '["EPSG", 4326]' --embedding
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    parser.add_argument("ids", nargs="+", metavar="ID", help="which records")
    parser.add_argument("--embedding", action="store_true", help="with the embedding, as a list of numbers")
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--collection", metavar="NAME", help="which collection (default: the first)")
    parser.add_argument(
        "--verify",
        type=one_of(("auto", "full", "lazy")),
        metavar="MODE",
        help="what is checked at open, beyond what is read: auto, full or lazy (default)",
    )
    parser.add_argument(
        "--access", type=one_of(("mmap", "copy")), metavar="MODE", help="map the file (mmap, default) or read it (copy)"
    )


def open_snapshot(arguments: argparse.Namespace) -> Snapshot:
    from ..storage.snapshot import Snapshot

    return Snapshot.open(arguments.file, verify=setting(arguments, "verify"), access=setting(arguments, "access"))


def collection_of(snapshot: Snapshot, name: str | None) -> FileCollection:
    if name is None:
        return next(iter(snapshot.collections.values()))
    if name not in snapshot.collections:
        raise UsageError(f"no collection {name!r}; there are: {', '.join(snapshot.collections)}")
    return snapshot.collections[name]


def fields_of(collection: FileCollection, record: Record, *, embedding: bool) -> dict[str, Any]:
    """The record's fields, and its embedding under the name that it has in the source."""
    fields = record.asdict()
    if embedding:
        from .decimals import shortest

        for field in collection.embedding_fields:
            vector = record.embedding_of(field)
            fields[field] = None if vector is None else shortest(vector)
    return fields


def found_of(collection: FileCollection, word: str) -> Record | None:
    """The record that a word is the key of; None where there is none."""
    from .keys import keys_of

    return _found(collection, keys_of(word, collection.key_types or ()))


def _found(collection: FileCollection, keys: Iterable[Key]) -> Record | None:
    """The record of the first of these keys that has one. One that can be no key of this collection has none."""
    for key in keys:
        with contextlib.suppress(TypeError):
            record: Record | None = collection.get(key)
            if record is not None:
                return record
    return None


def run(arguments: argparse.Namespace, output: Output) -> int:
    from .keys import keys_of, type_of, types_in

    with open_snapshot(arguments) as snapshot:
        collection = collection_of(snapshot, arguments.collection)
        if arguments.embedding and collection.schema.embedding is None:
            raise UsageError(f"collection {collection.name!r} has no embeddings")
        found: list[dict[str, Any] | None] = []
        missing = False
        types = types_in(snapshot.layout.collections[collection.name])
        for word in arguments.ids:
            record = _found(collection, keys_of(word, types))
            fields = None if record is None else fields_of(collection, record, embedding=arguments.embedding)
            if output.json:
                found.append(fields)
            elif fields is not None:
                (output.document if output.is_terminal else output.row)(fields)
            if fields is None:
                kinds = (
                    ""
                    if not types or {*map(type_of, keys_of(word, types))} & {*types}
                    else f", whose keys are {' or '.join(types)}"
                )
                output.error(f"mmcache get: {arguments.file}: no {word!r} in collection {collection.name!r}{kinds}")
                missing = True
        if output.json:
            output.document(found)
    return ERROR if missing else OK
