"""`mmcache invalidate`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from ..errors import CorruptFileError
from ..presets.reasons import ALIASES
from ..storage.describe import layout_from_file_or_backup
from ..text import plural, printable
from .files import layout_of
from .keys import keys_of, types_in
from .options import FILE_COMPLETION, OK, UsageError, file_argument, one_of
from .output import Output

if TYPE_CHECKING:
    from ..format.keys import Key
    from ..format.layout import Layout

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Tell every worker on this machine that the source has changed; write there first, and commit.

With IDs: exactly these, new and deleted ones too, are answered by the source until a newer generation of the file has
them. Without: everything, as the reason says: softly (the file goes on answering while it is built again) for
record_stored and ttl_expired, hard (the source answers until it is built again) for the others, unless --hard or --soft
decides. With --collection and no IDs, hard means that collection only. When the command ends, no get that begins later
overlooks it. An ID is what `mmcache get` takes for a key; one that can be read as several keys of the collection
means all of them.

  mmcache invalidate patterns.mmc pattern-7 pattern-9 --reason record_stored
  changed-ids | mmcache invalidate patterns.mmc --ids-from -
  mmcache invalidate patterns.mmc --reason schema_migration
"""

REASONS: Final = ("manual", "record_stored", "record_deleted", "config_updated", "schema_migration", "ttl_expired")
"""Those of `sharing.events`, spelt out so that building the parser does not need it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    parser.add_argument("ids", nargs="*", metavar="ID", help="which records (default: everything)")
    source = parser.add_argument("--ids-from", metavar="FILE", help="read ids from here, one a line; - is stdin")
    source.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--collection", metavar="NAME", help="whose ids they are (default: the first collection)")
    parser.add_argument(
        "--reason",
        type=one_of((*REASONS, *ALIASES)),
        default="manual",
        metavar="R",
        help=f"{', '.join(REASONS)} (default: manual); of patterns also {', '.join(ALIASES)}",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--hard", action="store_true", default=None, help="without IDs: the source answers until it is built again"
    )
    how.add_argument(
        "--soft", action="store_false", dest="hard", default=None, help="without IDs: the file answers on meanwhile"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    path: str = arguments.file
    words = _words(arguments)
    if words is not None and arguments.hard is not None:
        raise UsageError("--hard and --soft are for everything: single ids are always answered by the source")
    layout = _layout(path)
    collection = _collection(layout, arguments.collection, has_ids=words is not None)
    ids = None
    if words is not None and collection is not None:
        types = types_in(layout.collections[collection])
        ids = list(dict.fromkeys(key for word in words for key in keys_of(word, types)))

    from ..sharing.counters import read_fleet
    from ..sharing.invalidation import invalidate_file

    kind = invalidate_file(path, collection, ids, reason=arguments.reason, hard=arguments.hard)
    workers = len(read_fleet(path).workers)
    if output.json:
        output.document(
            {
                "path": path,
                "kind": kind,
                "collection": collection,
                "ids": None if ids is None else len(ids),
                "reason": arguments.reason,
                "workers": workers,
            }
        )
        return OK
    listening = f"{plural(workers, 'worker')} told" if workers else "no worker has it open"
    output.say(f"{printable(path)}: {_told(kind, collection, ids)} ({arguments.reason}; {listening})")
    return OK


def _layout(path: str) -> Layout:
    """What the file says of itself, or if it is damaged, its backup. Raises UnusableFileError."""
    try:
        return layout_of(path)
    except CorruptFileError:
        return layout_from_file_or_backup(path)


def _words(arguments: argparse.Namespace) -> list[str] | None:
    """All that were named, each once; None where none was asked for."""
    if not arguments.ids and arguments.ids_from is None:
        return None
    ids = list(arguments.ids)
    if arguments.ids_from is not None:
        ids += _lines(arguments.ids_from)
    return list(dict.fromkeys(ids))


def _lines(name: str) -> list[str]:
    """The lines of a file that are not empty. An id of other bytes than UTF-8 is one that no file has."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read() if sys.stdin is not None else b""
        else:
            with open(name, "rb") as file:
                data = file.read()
    except OSError as error:
        raise UsageError(f"--ids-from {name}: cannot be read ({error.strerror})") from None
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    return [line.removesuffix("\r") for line in lines if line.removesuffix("\r")]


def _collection(layout: Layout, wanted: str | None, *, has_ids: bool) -> str | None:
    """Raises UsageError for one that the file does not have."""
    names = list(layout.collections)
    if wanted is not None and wanted not in names:
        raise UsageError(f"no collection {wanted!r}; there are: {', '.join(names)}")
    return names[0] if wanted is None and has_ids else wanted


def _told(kind: str, collection: str | None, ids: list[Key] | None) -> str:
    if kind == "soft":
        return "everything, softly: the file goes on answering while it is built again"
    if kind == "hard":
        what = "everything" if ids is None else f"everything, for {plural(len(ids), 'id')} are too many to name"
        return f"{what}: answered by the source until a newer generation"
    what = (
        f"all of {printable(str(collection))!r}"
        if ids is None
        else f"{plural(len(ids), 'id')} of {printable(str(collection))!r}"
    )
    return f"{what}: answered by the source until a newer generation" if ids != [] else "no ids, so nothing is changed"
