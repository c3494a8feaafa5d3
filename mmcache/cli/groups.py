"""The options of `build` that describe a collection, which each `--collection` begins anew.

What stands before the first `--collection` holds for all of them. A list, such as of indexes, is added to; any other
option of a collection takes the place of the one for all. In one collection none but a list is given twice.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from ..schema import DTYPES
from .options import FILE_COMPLETION, UsageError, count, names

__all__ = ["add_collections", "allow_missing", "asked_for", "assigned", "flags"]

_ORIGINS = ("table", "query")
"""Of which a collection has one."""


_LISTS = ("index", "columns", "json", "renames", "casts", "options", "embedding")

_WRITTEN = {"json": "json_columns", "renames": "rename", "casts": "cast", "options": "option"}


class _OfCollection(argparse.Action):
    """Keeps a value for the collection that was begun last. adds: to a list."""

    def __init__(self, *arguments: Any, adds: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **{"default": argparse.SUPPRESS} | options)
        self.adds = adds

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        groups = namespace.groups = namespace.groups or [{}]
        if self.dest == "source":
            allow_missing(parser, "source")
        if self.dest == "collection":
            groups.append({"collection": values})
        elif self.adds:
            groups[-1][self.dest] = (*groups[-1].get(self.dest, ()), *values)
        elif self.dest in groups[-1]:
            raise argparse.ArgumentError(self, f"is given twice{_hint(self.dest)}")
        else:
            groups[-1][self.dest] = True if self.nargs == 0 else values


def _hint(name: str) -> str:
    if name in _ORIGINS:
        return (
            "; for several collections begin each with --collection NAME: "
            f"--collection a --{name} ... --collection b --{name} ..."
        )
    return "; for a key of several fields: --key A,B" if name == "key" else " in one collection"


def allow_missing(parser: argparse.ArgumentParser, *names: str) -> None:
    """Let arguments that are required be left out."""
    for action in parser._actions:
        if action.dest in names:
            action.required = False


def add_collections(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(groups=None)
    _add_records(parser.add_argument_group("collections", "each --collection begins one; before it: for all"))
    _add_embeddings(parser.add_argument_group("embeddings, of a collection"))


def _add_records(group: argparse._ArgumentGroup) -> None:
    def add(flag: str, **options: Any) -> argparse.Action:
        return group.add_argument(flag, action=_OfCollection, **options)

    add("--collection", metavar="NAME", help="what to call it (default: as the table or the source)")
    where = add("--source", metavar="PATH", help="where its records are, if not in SOURCE")
    where.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    add("--table", help="the table (default: that of its name, or the only one)")
    add("--query", metavar="SQL", help="a SELECT that gives the records, in place of a table")
    add(
        "--key",
        type=names,
        metavar="A,B",
        help="the field that identifies a record, or several (default: the table's primary key, else its rowid; id)",
    )
    add("--index", type=names, adds=True, metavar="A,B", help="fields that `find` can ask for; lists are possible")
    add("--columns", type=names, adds=True, metavar="A,B", help="columns to take (default: all)")
    add("--json-columns", dest="json", type=names, adds=True, metavar="A,B", help="columns of JSON text to decode")
    add("--rename", dest="renames", type=_pairs, adds=True, metavar="COLUMN=FIELD,...", help="call columns otherwise")
    add(
        "--cast",
        dest="casts",
        type=_pairs,
        adds=True,
        metavar="FIELD=TYPE,...",
        help="what fields of files are: str, int, float, bool, bytes or json",
    )
    add("--cluster-by", metavar="FIELD", help="let records with equal values of this field stand together")
    add(
        "--default",
        metavar="MODULE:FUNCTION",
        help="what makes of a value that a record cannot hold one that it can; of Parquet, Arrow and DuckDB",
    )
    add(
        "--option",
        dest="options",
        type=_options,
        adds=True,
        metavar="NAME=VALUE",
        help="another argument of its source, such as embeddings=vectors.npy; NAME:=JSON for what is not text",
    )


def _add_embeddings(group: argparse._ArgumentGroup) -> None:
    def add(flag: str, **options: Any) -> None:
        group.add_argument(flag, action=_OfCollection, **options)

    add("--embedding", type=names, adds=True, metavar="A,B", help="the fields that hold embeddings, mostly one")
    add(
        "--dim", type=_dims, metavar="N", help="numbers in an embedding (default: as in the first); of several: 384,768"
    )
    add(
        "--dtype",
        type=names,
        metavar="TYPE",
        help=f"of the numbers in BLOBs: {', '.join(DTYPES)} (default: f4, float32, unless they are clearly others)",
    )
    add("--metric", choices=("cosine", "dot", "euclidean"), help="what they are compared by; stored")
    add("--sketch", nargs=0, help="keep their signs, too, for searches with a recall")
    add("--allow-nan", nargs=0, help="accept NaN and infinite numbers")


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [name.partition("=") for name in names(text)]
    if not all(before and after for before, _, after in pairs):
        raise argparse.ArgumentTypeError(f"expected NAME=NAME separated by commas, found {text!r}")
    return tuple((before, after) for before, _, after in pairs)


def _options(text: str) -> tuple[tuple[str, Any], ...]:
    return (assigned(text),)


def assigned(text: str) -> tuple[str, Any]:
    """NAME=TEXT, or NAME:=JSON."""
    key, equals, value = text.partition("=")
    if not equals or not key.rstrip(":"):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found {text!r}")
    if not key.endswith(":"):
        return key, value
    try:
        return key[:-1], json.loads(value)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{value!r} after := is not JSON ({error})") from None


def _dims(text: str) -> tuple[int, ...]:
    return tuple(map(count, names(text)))


def asked_for(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The options of each collection, one at least. Raises UsageError."""
    everywhere, *groups = arguments.groups or [{}]
    found = [_merged(everywhere, group) for group in groups] or [everywhere]
    for group in found:
        if all(name in group for name in _ORIGINS):
            raise UsageError("give --table or --query, not both")
    called = [group.get("collection") for group in found]
    if twice := [name for name in called if called.count(name) > 1]:
        raise UsageError(f"--collection {twice[0]} is given twice: each begins a collection of its own")
    return found


def _merged(everywhere: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    is_placed = any(name in group for name in _ORIGINS)
    merged = {name: value for name, value in everywhere.items() if not (is_placed and name in _ORIGINS)}
    for name, value in group.items():
        is_list = name in _LISTS
        merged[name] = (*merged.get(name, ()), *value) if is_list else value
    return merged


def flags(names: Iterable[str]) -> str:
    """Options by the names under which they are kept, as they are written."""
    return ", ".join(f"--{_WRITTEN.get(name, name).replace('_', '-')}" for name in names)
