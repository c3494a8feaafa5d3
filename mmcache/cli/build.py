"""Make a cache file from a database or from a file of records, and publish it at FILE.

SOURCE is a SQLite or DuckDB database; a file of CSV, TSV, JSON, JSON lines, Parquet, Arrow or Feather; a directory of
such files, or a pattern; or - for standard input. What it is, its content says. The file remembers how it was built:
after changes, `mmcache rebuild FILE` is enough.

  mmcache build shop.db --table items --key sku --index kind,tags --json tags --embedding vector -o items.mmc
  mmcache build "$(llm collections path)" --preset llm -o notes.mmc
"""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from ..schema import DTYPES, Schema
from .options import FILE_COMPLETION, OK, UsageError, count, file_argument, names, setting
from .output import Output
from .rebuild import add_rules, add_timeout, report, rules_of

if TYPE_CHECKING:
    from ..sources import Source

__all__ = ["add_arguments", "run"]

_ARROW = ("parquet", "arrow", "duckdb")
_SQLITE_ONLY = ("table", "query", "json_columns")
_OF_SCHEMA = (
    "collection",
    "key",
    "index",
    "columns",
    "embedding",
    "dim",
    "dtype",
    "metric",
    "allow_nan",
    *_SQLITE_ONLY,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser, "source", "a database, or a file, directory or pattern of records; - is standard input")
    out = parser.add_argument(
        "-o", "--output", dest="file", metavar="FILE", required=True, help="the cache file to make"
    )
    out.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    records = parser.add_argument_group("records")
    records.add_argument("--table", help="the table (default: the only one)")
    records.add_argument("--query", metavar="SQL", help="a SELECT that gives the records, in place of a table")
    records.add_argument("--collection", metavar="NAME", help="what to call them (default: as the table or the source)")
    records.add_argument(
        "--key",
        type=names,
        metavar="A,B",
        help="the field that identifies a record, or several (default: the table's primary key, else its rowid; id)",
    )
    records.add_argument(
        "--index", type=names, action="extend", metavar="A,B", help="fields that `find` can ask for; lists are possible"
    )
    records.add_argument("--columns", type=names, action="extend", metavar="A,B", help="columns to take (default: all)")
    records.add_argument(
        "--json",
        dest="json_columns",
        type=names,
        action=_JSONOrColumns,
        nargs="?",
        metavar="A,B",
        help="columns of JSON text to decode; without names: print the report as JSON",
    )
    records.add_argument(
        "--default",
        metavar="MODULE:FUNCTION",
        help="what makes of a value that a record cannot hold one that it can; of Parquet files",
    )
    records.add_argument(
        "--preset", choices=("patterns", "llm"), help="a known kind of database, with all its collections"
    )
    vectors = parser.add_argument_group("embeddings")
    vectors.add_argument(
        "--embedding", type=names, action="extend", metavar="A,B", help="the fields that hold embeddings, mostly one"
    )
    vectors.add_argument(
        "--dim", type=_dims, metavar="N", help="numbers in an embedding (default: as in the first); of several: 384,768"
    )
    vectors.add_argument(
        "--dtype",
        type=names,
        metavar="TYPE",
        help=f"of the numbers in BLOBs: {', '.join(DTYPES)} (default: f4, float32, unless they are clearly others)",
    )
    vectors.add_argument("--metric", choices=("cosine", "dot", "euclidean"), help="what they are compared by; stored")
    vectors.add_argument("--allow-nan", action="store_true", default=None, help="accept NaN and infinite numbers")
    file = parser.add_argument_group("the file")
    file.add_argument(
        "--cluster-by", metavar="FIELD", help="let records with equal values of this field stand together"
    )
    file.add_argument(
        "--metadata",
        type=_metadata,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="words of your own to keep in the file; KEY:=JSON for what is not text",
    )
    add_rules(parser)
    add_timeout(parser)


class _JSONOrColumns(argparse.Action):
    """`--json a,b` names columns, `--json` alone asks for JSON on stdout, as in every other command."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        if values is None:
            namespace.json = True
        else:
            namespace.json_columns = (*(namespace.json_columns or ()), *values)


def _dims(text: str) -> tuple[int, ...]:
    return tuple(map(count, names(text)))


def _metadata(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.rstrip(":"):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found {text!r}")
    if not key.endswith(":"):
        return key, value
    try:
        return key[:-1], json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} after := is not JSON ({error})") from None


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..sharing.publishing import build
    from .files import refuse_foreign

    refuse_foreign(arguments.file)
    source = _source(arguments)
    with output.progress() as progress:
        done = build(
            arguments.file,
            source,
            cluster_by=arguments.cluster_by,
            metadata=dict(arguments.metadata),
            progress=progress,
            timeout=setting(arguments, "timeout"),
            **rules_of(arguments),
        )
    report(done, arguments.file, output)
    return OK


def _source(arguments: argparse.Namespace) -> Source:
    path: str = arguments.source
    given = [name for name in _OF_SCHEMA if getattr(arguments, name) is not None]
    if arguments.preset is not None and given:
        raise UsageError(f"--preset says it all; leave out {_flags(given)}")
    if arguments.preset == "patterns":
        from ..presets.patterns import PatternsSource

        return PatternsSource(path)
    if arguments.preset == "llm":
        from ..presets.llm import llm_source

        return llm_source(path)
    from ..sources.recognize import kind_of

    kind = kind_of(path)
    if arguments.default is not None and kind not in _ARROW:
        raise UsageError(
            f"--default is for Parquet, Arrow and DuckDB: every value of {path} is one that a record can hold"
        )
    if arguments.table is not None and arguments.query is not None:
        raise UsageError("give --table or --query, not both")
    if kind != "sqlite":
        return _file_source(arguments, path, kind, given)
    from ..sources import SQLiteSource

    if arguments.query is not None:
        return SQLiteSource(path, _schema(arguments, {"query": arguments.query}, _stem(path)))
    table = _only_table(path) if arguments.table is None else _spelled(path, arguments.table)
    return SQLiteSource(path, _schema(arguments, {"table": table}, table))


def _file_source(arguments: argparse.Namespace, path: str, kind: str, given: list[str]) -> Source:
    from ..sources.recognize import source_at

    unfit = () if kind == "duckdb" else ("table", "query")
    wrong = [name for name in given if name in unfit or (name == "json_columns" and kind in ("json", "jsonl"))]
    if wrong:
        raise UsageError(f"{_flags(wrong)} is for databases, and {path} holds {kind}")
    origin: dict[str, Any] = {name: getattr(arguments, name) for name in given if name in ("table", "query")}
    options = {} if arguments.default is None else {"default": arguments.default}
    schema = _schema(arguments, origin, arguments.table or _stem(path))
    try:
        source: Source = source_at(path, schema, **options)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return source


def _schema(arguments: argparse.Namespace, origin: dict[str, Any], name: str) -> Schema:
    name = arguments.collection or name
    if origin.get("table") == name:
        origin = {}  # the table is the collection's name unless it says otherwise
    options = {
        field: value
        for field in ("key", "index", "columns", "embedding", "dim", "dtype", "metric", "allow_nan")
        if (value := getattr(arguments, field)) is not None
    }
    for field in ("dim", "dtype"):  # one for all embeddings
        if len(options.get(field, ())) == 1:
            (options[field],) = options[field]
    if arguments.json_columns is not None:
        options["json"] = arguments.json_columns
    try:
        return Schema(name, **options, **origin)
    except ValueError as error:
        hint = "" if arguments.collection or not str(error).startswith("collection name") else "; name it: --collection"
        raise UsageError(f"{error}{hint}") from None


def _spelled(path: str, table: str) -> str:
    """The table as the database writes it. What is wrong, the build says."""
    import sqlite3

    from ..errors import SourceError
    from ..sources.connections import Connections
    from ..sources.names import find_table

    connections = Connections(os.path.abspath(path), timeout=5.0)
    try:
        with connections.take() as connection:
            return find_table(connection, table)[0]
    except (ValueError, SourceError, sqlite3.Error):
        return table
    finally:
        connections.close()


def _only_table(path: str) -> str:
    """The table of a database that has one. Raises UsageError naming those that there are, or SourceError."""
    import sqlite3

    from ..sources.connections import Connections
    from ..sources.listing import tables_of

    connections = Connections(os.path.abspath(path), timeout=5.0)
    try:
        with connections.take() as connection:
            tables = tables_of(connection)
    except sqlite3.Error as error:
        raise connections.error(error) from None
    finally:
        connections.close()
    if len(tables) != 1:
        raise UsageError(f"say which table, with --table; {path} has: {', '.join(tables) or 'none'}")
    return tables[0]


def _stem(path: str) -> str:
    name = os.path.basename(os.path.abspath(path)).split(".")[0]
    return name if name[:1].isalnum() and path != "-" and "*" not in name else "records"


def _flags(fields: list[str]) -> str:
    return ", ".join("--" + field.removesuffix("_columns").replace("_", "-") for field in fields)
