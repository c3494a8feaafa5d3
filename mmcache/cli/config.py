"""`--config cache.toml`: several collections, each with its source.

    output = "shop.mmc"
    source = "shop.db"
    [metadata]
    owner = "team"
    [collections.items]
    key = "sku"
    index = ["kind"]

Paths are relative to the file. A collection takes the fields of `Schema`, `source`, `cluster_by`, and the options of
its source. Whatever is not known is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from .options import UsageError
from .wanted import SCHEMA_FIELDS, Wanted

__all__ = ["Config", "read"]

_KNOWN = {"output": str, "source": str, "metadata": dict, "collections": dict}


class Config(NamedTuple):
    """output: the cache file, if it is named. cluster_by: of each collection that has one."""

    output: str | None
    wanted: list[Wanted]
    cluster_by: dict[str, str]
    metadata: dict[str, Any]


def read(path: str, source: str | None = None) -> Config:
    """source: takes the place of the one at the top. Raises UsageError."""
    given = _parsed(path)
    directory = os.path.dirname(path)
    _check(given, path)
    default = source if source is not None else _beside(directory, given.get("source"))
    wanted, cluster_by = [], {}
    for name, options in given.get("collections", {}).items():
        place = f"{path}: [collections.{name}]: "
        if not isinstance(options, Mapping):
            raise UsageError(f"{place}expected a table, found {options!r}")
        own = options.get("source")
        if own is not None and not isinstance(own, str):
            raise UsageError(f"{place}source must be text, not {own!r}")
        where = default if own is None else _beside(directory, own)
        if where is None:
            raise UsageError(f"{place}has no source; give it one, or one for all at the top: source = 'shop.db'")
        schema = {field: value for field, value in options.items() if field in SCHEMA_FIELDS}
        rest = {key: options[key] for key in options if key not in schema and key not in ("source", "cluster_by")}
        if isinstance(vectors := rest.get("embeddings"), str):
            rest["embeddings"] = _beside(directory, vectors)
        wanted.append(Wanted(name, where, schema, rest, place))
        if "cluster_by" in options:
            cluster_by[name] = options["cluster_by"]
    if not wanted:
        raise UsageError(f"{path}: no collections; each is a table: [collections.NAME]")
    return Config(_beside(directory, given.get("output")), wanted, cluster_by, given.get("metadata", {}))


def _parsed(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML ({error})") from None


def _check(given: Mapping[str, Any], path: str) -> None:
    if unknown := [name for name in given if name not in _KNOWN]:
        raise UsageError(f"{path}: unknown: {unknown[0]!r}; known: {', '.join(_KNOWN)}")
    for name, value in given.items():
        if not isinstance(value, _KNOWN[name]):
            kind = "text" if _KNOWN[name] is str else "a table"
            raise UsageError(f"{path}: {name} must be {kind}, not {value!r}")


def _beside(directory: str, where: str | None) -> str | None:
    """A path that is relative to the directory of the file; a URL, or - for stdin, as it is."""
    return where if where is None or where == "-" or "://" in where else os.path.join(directory, where)
