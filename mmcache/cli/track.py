"""`mmcache track`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..schema import Schema
from ..text import number, plural, printable
from .options import FILE_COMPLETION, OK, UsageError, count, names
from .output import Output

if TYPE_CHECKING:
    from ..sources.opening import Connect
    from ..sources.tracking import Tracking

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Let a database log which records change, whatever writes to it, so that caches of it need not guess.

DB is a SQLite database, or the URL of a PostgreSQL server. Installs triggers and two small tables in it, or repairs
them after a table was made anew; run twice, it does nothing more. --like takes the database, tables and keys from a
cache file; give the URL as well where it needs a password.

Each row that is written to a tracked table adds one of some 20 bytes and its key to the log, which keeps --limit of
them. A commit of one row takes 1.1 to 2 times as long, a bulk insert 2 to 3.5 times. Views and queries cannot be
tracked.

Before a migration that drops or renames a tracked table or its columns, remove the tracking, and track again after it:
SQLite refuses to drop a column that a trigger names, and PostgreSQL to write to a table whose key was renamed.

  mmcache track shop.db --table items --key sku
  mmcache track --like items.mmc
  mmcache track shop.db --remove
  mmcache track postgresql://owner@db/shop --table items
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    database = parser.add_argument("database", metavar="DB", nargs="?", help="the SQLite database, or a URL")
    database.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument(
        "--table",
        dest="tables",
        action="append",
        metavar="T",
        help="a table to track; repeatable (default: the only one)",
    )
    parser.add_argument(
        "--key",
        type=names,
        metavar="A,B",
        help="the columns that identify a record (default: the primary key, else the rowid)",
    )
    parser.add_argument("--preset", choices=("patterns",), help="a known kind of database, with all its tables")
    like = parser.add_argument("--like", metavar="FILE.mmc", help="take database, tables and keys from a cache file")
    like.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument(
        "--connect", metavar="MODULE:FUNCTION", help="what opens the connections, in the place of sqlite3.connect"
    )
    parser.add_argument("--limit", type=count, metavar="N", help="changes to remember (default: 65536)")
    parser.add_argument("--remove", action="store_true", help="remove all triggers and tables of tracking")


def run(arguments: argparse.Namespace, output: Output) -> int:
    path, schemas = _from_file(arguments) if arguments.like is not None else _from_words(arguments)
    with _tracker(path, schemas, arguments) as tracker:
        return _remove(tracker, output) if arguments.remove else _install(tracker, arguments, output)


class _Tracker(NamedTuple):
    """path: without a password. log: where it stands."""

    path: str
    log: str
    track: Callable[..., Tracking]
    untrack: Callable[[], tuple[str, ...]]


@contextmanager
def _tracker(path: str, schemas: Sequence[Schema], arguments: argparse.Namespace) -> Iterator[_Tracker]:
    """Of a SQLite database, or of a URL. Raises SourceError, UsageError."""
    if not _is_url(path):
        from ..sources.tracking import track, untrack

        connect = _connect(arguments)
        log = "two tables: _mmcache_changes (the log, about {} changes) and _mmcache_tracking"
        install, remove = partial(track, path, schemas, connect=connect), partial(untrack, path, connect=connect)
        yield _Tracker(path, log, install, remove)
        return
    if arguments.connect is not None:
        raise UsageError("--connect is for SQLite; leave it out with a URL")
    with closing(_source(path, schemas)) as source:
        yield _Tracker(
            source.url, "the schema _mmcache: changes (the log, about {} changes)", source.track, source.untrack
        )


def _source(url: str, schemas: Sequence[Schema]) -> Any:
    from ..sources.at import source_at

    return source_at(url, *schemas or [Schema("none", key="id")])


def _install(tracker: _Tracker, arguments: argparse.Namespace, output: Output) -> int:
    from ..sources.tracking import LIMIT

    limit = LIMIT if arguments.limit is None else arguments.limit
    if not 1 <= limit < 2**31:
        raise UsageError(f"--limit: expected 1 to {2**31 - 1}, found {limit}")
    done = tracker.track(limit=limit)
    if output.json:
        output.document({**done._asdict(), "tables": [table._asdict() for table in done.tables]})
        return OK
    import shlex

    name = printable(tracker.path)
    output.say(f"{name}: {'tracked from now on' if done.changed else 'tracked already, nothing changed'}")
    for table in done.tables:
        key = table.key if isinstance(table.key, str) else ", ".join(table.key)
        output.say(f"  {printable(table.table)}, by {printable(key)}: {plural(len(table.triggers), 'trigger')}")
    output.say(f"  in {tracker.log.format(number(done.limit))}")
    output.say("Every row that is written to a tracked table now adds one to the log.")
    output.say(f"To remove it, also before a migration of these tables: mmcache track {shlex.quote(name)} --remove")
    return OK


def _connect(arguments: argparse.Namespace) -> Connect | None:
    from ..sources.opening import Hook

    try:
        return Hook.of(arguments.connect).function
    except ValueError as error:
        raise UsageError(f"--connect: {error}") from None


def _remove(tracker: _Tracker, output: Output) -> int:
    removed = tracker.untrack()
    if output.json:
        output.document({"path": tracker.path, "removed": removed})
        return OK
    for name in removed:
        output.say(f"removed {printable(name)}")
    if not removed:
        output.note(f"{tracker.path}: not tracked, nothing to remove")
    return OK


def _from_file(arguments: argparse.Namespace) -> tuple[str, Sequence[Schema]]:
    """The database and the schemas that a cache file names. Raises UnusableFileError."""
    if arguments.tables or arguments.key is not None or arguments.preset is not None:
        raise UsageError("--like says what to track; leave out --table, --key and --preset")
    from ..storage.describe import layout_from_file_or_backup

    layout = layout_from_file_or_backup(arguments.like)
    source = layout.source or {}
    path = arguments.database or source.get("path") or source.get("url")
    path = os.fsdecode(path) if isinstance(path, bytes) else path
    if source.get("kind") not in ("sqlite", "patterns", "sqlalchemy") or not isinstance(path, str):
        raise UsageError(f"{arguments.like} was not built from SQLite or PostgreSQL; only those can be tracked")
    return _located(path), [collection.schema for collection in layout.collections.values()]


def _is_url(where: str) -> bool:
    from ..sources.recognize import is_url

    return is_url(where)


def _located(where: str) -> str:
    """A path made absolute; a URL as it is."""
    if where.startswith("sqlite:"):
        from ..sources.at import source_at

        with closing(source_at(where, Schema("none", key="id"))) as source:
            where = source.path
    return where if _is_url(where) else os.path.abspath(where)


def _from_words(arguments: argparse.Namespace) -> tuple[str, Sequence[Schema]]:
    if arguments.database is None:
        raise UsageError("say which database, or --like FILE.mmc to take it from a cache file")
    path = _located(arguments.database)
    if arguments.remove:
        if arguments.tables or arguments.key is not None or arguments.preset is not None:
            raise UsageError("--remove removes the tracking of all tables; leave out --table, --key and --preset")
        return path, ()
    if arguments.preset == "patterns":
        if arguments.tables or arguments.key is not None:
            raise UsageError("--preset says it all; leave out --table and --key")
        from ..presets.patterns import AGENT_CONFIGS, PATTERNS

        return path, (PATTERNS, AGENT_CONFIGS)
    from .tables import only_table

    tables = arguments.tables
    if not tables and _is_url(path):
        raise UsageError("say which table, with --table; one of another schema as schema.table")
    tables = tables or [only_table(path, views=False, connect=_connect(arguments))]
    # The collection's name means nothing here, and a table's may be longer than one can be.
    return path, [Schema(f"table {i}", key=arguments.key, table=table) for i, table in enumerate(tables, 1)]
