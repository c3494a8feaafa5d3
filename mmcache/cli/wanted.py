"""From the collections that are asked for, by options or by a file of TOML, to the one source of all of them.

Collections of one database are read together, in one consistent read; several sources are joined by `Sources`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

from ..errors import MmcacheError
from ..schema import Schema
from .groups import flags
from .options import UsageError
from .tables import only_table, spelled

if TYPE_CHECKING:
    from ..sources import Source

__all__ = ["SCHEMA_FIELDS", "Gathered", "Wanted", "gathered", "kind_at", "path_of_database", "stem_of"]

SCHEMA_FIELDS: Final = tuple(field.name for field in fields(Schema) if field.name not in ("name", "model"))
"""What a collection may say of itself, besides its name."""

_DATABASES: Final = ("sqlite", "sqlalchemy", "duckdb")
"""Kinds of sources that have tables."""

_SEVERAL: Final = ("sqlite", "sqlalchemy")
"""Those of which one source has several collections."""

_REFUSED: Final = {"json": ("table", "query", "json"), "jsonl": ("table", "query", "json")}
"""Kind -> what it has no use for; of other files tables and queries."""


class Wanted(NamedTuple):
    """One collection. name: None for that of its table or file. source: a path, or what else `source_at` takes.
    schema: arguments of `Schema`. options: of its source. place: where it was asked for, for messages, or ""."""

    name: str | None
    source: str
    schema: dict[str, Any]
    options: dict[str, Any]
    place: str = ""


class _Part(NamedTuple):
    """What becomes one source."""

    where: str
    options: dict[str, Any]
    place: str
    schemas: list[Schema]


class Gathered(NamedTuple):
    """names: of the collections, in the order in which they were asked for."""

    source: Source
    names: list[str]


def gathered(wanted: Sequence[Wanted]) -> Gathered:
    """Raises UsageError and SourceError."""
    parts: list[_Part] = []
    names: list[str] = []
    for one in wanted:
        kind = kind_at(one.source)
        schema = _schema(one, kind)
        if schema.name in names:
            raise UsageError(f"two collections are called {schema.name!r}: name one otherwise")
        names.append(schema.name)
        same = (part for part in parts if (part.where, part.options) == (one.source, one.options))
        part = next(same, None) if kind in _SEVERAL else None
        if part is None:
            part = _Part(one.source, one.options, one.place, [])
            parts.append(part)
        part.schemas.append(schema)
    sources = [_made(part) for part in parts]
    if len(sources) == 1:
        return Gathered(sources[0], names)
    from ..sources import Sources

    return Gathered(Sources(*sources), names)


def _made(part: _Part) -> Source:
    from ..sources.at import source_at

    try:
        if part.options:
            _make_importable()
            _check_options(part, source_at(part.where, *part.schemas))
        source: Source = source_at(part.where, *part.schemas, **part.options)
    except ImportError as error:
        raise UsageError(f"{part.place}{part.where} needs a package that is not installed: {error}") from None
    except MmcacheError:
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(f"{part.place}{error}") from None
    return source


def _check_options(part: _Part, source: Source) -> None:
    known = _options_of(source)
    unknown = [name for name in part.options if name not in known]
    if not unknown:
        return
    of_source = f"options of {part.where}: {', '.join(known) or 'none'}"
    if not is_config(part.place):
        raise UsageError(f"{part.place}{flags(unknown)} is no option of this source; {of_source}")
    raise UsageError(
        f"{part.place}unknown: {unknown[0]!r}; known: source, cluster_by, {', '.join(SCHEMA_FIELDS)}; {of_source}"
    )


def _options_of(source: Source) -> list[str]:
    parameters = signature(type(source)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY]


def _schema(one: Wanted, kind: str) -> Schema:
    useless = () if kind in _DATABASES else _REFUSED.get(kind, ("table", "query"))
    if wrong := [name for name in useless if name in one.schema]:
        given = ", ".join(wrong) if is_config(one.place) else flags(wrong)
        raise UsageError(f"{one.place}{given} is for databases, and {one.source} is {_KINDS.get(kind, kind)}")
    origin = {name: one.schema[name] for name in ("table", "query") if name in one.schema}
    rest = {name: value for name, value in one.schema.items() if name not in origin}
    if kind == "sqlite" and "query" not in origin:
        origin["table"] = _table(one, origin.get("table"))
    name = one.name or origin.get("table") or stem_of(one.source) or "records"
    if origin.get("table") == name:
        del origin["table"]  # the table is the collection's name unless it says otherwise
    try:
        return Schema(name, **rest, **origin)
    except (ValueError, TypeError) as error:
        hint = "" if one.name or not str(error).startswith("collection name") else "; name it: --collection"
        raise UsageError(f"{one.place}{error}{hint}") from None


_KINDS: Final = {
    "jsonl": "a file of JSON lines",
    "json": "a JSON file",
    "csv": "a CSV file",
    "arrow": "an Arrow file",
    "parquet": "a Parquet file",
    "npy": "an array of numpy",
}


def _table(one: Wanted, given: str | None) -> str:
    """What is wrong with one that was given, the build says."""
    path = path_of_database(one.source)
    from ..sources.opening import Hook

    connect = Hook.of(one.options.get("connect")).function
    if given is not None:
        return spelled(path, given, connect) or given
    return (one.name and spelled(path, one.name, connect)) or only_table(path, connect=connect)


def _make_importable() -> None:
    """What an option names by "module:function" may be in the working directory."""
    if (here := os.path.abspath(".")) not in sys.path:
        sys.path.append(here)


def kind_at(where: str) -> str:
    """The kind of source at a path, a pattern, a directory, "-" or a URL. Raises SourceError."""
    from ..sources.objects import is_object_url
    from ..sources.recognize import kind_of

    if is_object_url(where):
        return kind_of(where)
    scheme, is_url, rest = where.partition("://")
    if not is_url:
        return kind_of(where)
    if scheme.lower() == "file":
        return kind_of(unquote(rest))
    return "sqlite" if scheme.lower().startswith("sqlite") else "sqlalchemy"


def path_of_database(where: str) -> str:
    """Of a SQLite database, of which a URL may be given: sqlite:///shop.db is the path shop.db."""
    _, is_url, rest = where.partition("://")
    return unquote(rest.partition("?")[0][1:]) if is_url else where


def is_config(place: str) -> bool:
    """Whether it was asked for in a file."""
    return "[collections." in place


def stem_of(where: str) -> str:
    """What a path, pattern or URL is called, without its endings; "" where that says nothing."""
    last = os.path.basename(where.partition("?")[0].rstrip("/"))
    return "".join(letter for letter in last.split(".")[0] if letter not in "*?[]").strip("-_")
