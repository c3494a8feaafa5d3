"""`mmcache build`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .groups import add_collections, allow_missing, asked_for, assigned, flags
from .options import FILE_COMPLETION, OK, UsageError, file_argument, setting
from .output import Output
from .rebuild import add_rules, add_timeout, report, rules_of
from .sharding import add_shards, shards_of

if TYPE_CHECKING:
    from ..sources import Source
    from .wanted import Wanted

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Make a cache file from databases and files, and publish it at FILE.

SOURCE is a SQLite database or a file of JSON lines, JSON, CSV, Parquet or Arrow, each also compressed; a glob or a
directory of these, also in an object store (s3://bucket/items); - for stdin; or the URL of another database. What it
is, its content says. The file remembers how it was built: after changes, `mmcache rebuild FILE` is enough.

One collection:
  mmcache build shop.db --table items --key sku --index kind,tags --json-columns tags --embedding vector -o items.mmc
  mmcache build "$(llm collections path)" --preset llm -o notes.mmc
  mmcache build bank.db --preset patterns --dim 384 -o bank.mmc

By several processes, where records are slow to make:
  mmcache build "s3://bucket/items/*.parquet" --key sku --shards 16 -o items.mmc

Several, each begun by --collection; options before the first are for all of them:
  mmcache build shop.db --collection items --index kind --collection users --key email -o shop.mmc
  mmcache build --collection items --source shop.db --collection prices --source prices.csv --key sku -o shop.mmc

The same as a file, which `mmcache init shop.db` writes for a start:
  mmcache build --config cache.toml

    output = "shop.mmc"            # paths are relative to this file
    source = "shop.db"             # of every collection that names none
    [collections.items]
    index = ["kind", "tags"]       # key, table, query, columns, json, embedding, dim, ... as the options here
    json = ["tags"]
    [collections.prices]
    source = "prices.csv"
    key = "sku"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser, "source", "where the records are: a database, a file, a directory, a URL, or -")
    out = parser.add_argument(
        "-o", "--output", dest="file", metavar="FILE", required=True, help="the cache file to make"
    )
    out.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    config = parser.add_argument(
        "--config", action=_Config, metavar="TOML", help="a file that names collections, sources and output"
    )
    config.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument(
        "--preset", choices=("patterns", "llm"), help="a known kind of database, with all its collections"
    )
    add_collections(parser)
    parser.add_argument_group("the file").add_argument(
        "--metadata",
        type=assigned,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="words of your own to keep in the file; KEY:=JSON for what is not text",
    )
    add_rules(parser)
    add_shards(parser)
    add_timeout(parser)


class _Config(argparse.Action):
    """With a file that names them, source and output may be left out."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        namespace.config = values
        allow_missing(parser, "source", "file")


class _Order(NamedTuple):
    """What is to be built. cluster_by: as of `mmcache.build`."""

    file: str
    source: Source
    cluster_by: str | Mapping[str, str] | None
    metadata: Mapping[str, Any]


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..sharing.publishing import build
    from .files import refuse_foreign

    if arguments.file is not None:
        refuse_foreign(arguments.file)
    order = _preset(arguments) or _configured(arguments) or _grouped(arguments)
    if order.file != arguments.file:
        refuse_foreign(order.file)
    with output.progress() as progress, shards_of(arguments) as shards:
        done = build(
            order.file,
            order.source,
            cluster_by=order.cluster_by,
            metadata={**order.metadata, **dict(arguments.metadata)},
            progress=progress,
            timeout=setting(arguments, "timeout"),
            **rules_of(arguments),
            **shards,
        )
    report(done, order.file, output)
    return OK


def _preset(arguments: argparse.Namespace) -> _Order | None:
    if arguments.preset is None:
        return None
    is_patterns = arguments.preset == "patterns"
    _refuse_others(arguments, "--preset", but=("cluster_by", "dim") if is_patterns else ("cluster_by",))
    if arguments.config is not None:
        raise UsageError("give --preset or --config, not both")
    (group,) = asked_for(arguments)
    source: Source
    if is_patterns:
        from ..presets.patterns import AGENT_CONFIGS, PATTERNS, PatternsSource

        try:
            patterns = replace(PATTERNS, dim=group.get("dim", PATTERNS.dim))
        except ValueError as error:
            raise UsageError(str(error)) from None
        source = PatternsSource(arguments.source, patterns, AGENT_CONFIGS)
    else:
        from ..presets.llm import llm_source

        source = llm_source(arguments.source)
    return _Order(arguments.file, source, group.get("cluster_by"), {})


def _configured(arguments: argparse.Namespace) -> _Order | None:
    if arguments.config is None:
        return None
    from .config import read
    from .wanted import gathered

    _refuse_others(arguments, "--config")
    config = read(arguments.config, arguments.source)
    file = arguments.file or config.output
    if file is None:
        raise UsageError(f"{arguments.config} names no output: output = 'FILE', or -o FILE")
    return _Order(file, gathered(config.wanted).source, config.cluster_by or None, config.metadata)


def _grouped(arguments: argparse.Namespace) -> _Order:
    from .wanted import gathered

    groups = asked_for(arguments)
    found = gathered([_wanted(arguments.source, group, one_of=len(groups)) for group in groups])
    cluster_by = {
        name: group["cluster_by"] for name, group in zip(found.names, groups, strict=True) if "cluster_by" in group
    }
    return _Order(arguments.file, found.source, cluster_by or None, {})


def _wanted(source: str | None, group: dict[str, Any], *, one_of: int) -> Wanted:
    from .wanted import SCHEMA_FIELDS, Wanted

    name = group.get("collection")
    place = f"--collection {name}: " if one_of > 1 else ""
    where = group.get("source", source)
    if where is None:
        raise UsageError(f"{place}say where its records are: SOURCE, or --source for this collection")
    schema = {field: value for field, value in group.items() if field in (*SCHEMA_FIELDS, "renames", "casts")}
    for field in ("dim", "dtype"):  # one for all embeddings
        if len(schema.get(field, ())) == 1:
            (schema[field],) = schema[field]
    options = {**({"default": group["default"]} if "default" in group else {}), **dict(group.get("options", ()))}
    return Wanted(name, where, schema, options, place)


def _refuse_others(arguments: argparse.Namespace, flag: str, but: Sequence[str] = ()) -> None:
    given = [name for group in arguments.groups or () for name in group if name not in but]
    if given:
        raise UsageError(f"{flag} says it all; leave out {flags(given)}")
