"""`mmcache merge`."""

from __future__ import annotations

import argparse
from typing import Final

from .groups import assigned
from .options import FILE_COMPLETION, OK, file_argument, setting
from .output import Output
from .rebuild import add_timeout, report

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Merge cache files into one: the records of the first SHARD, then those of the next, as one build of all would have them.

The files must have the same collections and schemas; each is verified whole, and stays as it is. FILE is published
like any build, under its lock. A key that stands in several files is an error,
unless they were built with --on-duplicate first or last.

  mmcache merge items.mmc monday.mmc tuesday.mmc
  mmcache merge items.mmc shard-*.mmc --cluster-by kind
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser, text="the cache file to make")
    shards = parser.add_argument("shards", metavar="SHARD", nargs="+", help="a cache file to take the records of")
    shards.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--cluster-by", metavar="FIELD", help="keep records with one value of it together")
    parser.add_argument(
        "--metadata",
        type=assigned,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="words of your own to keep in the file, in place of those of the shards; KEY:=JSON for what is not text",
    )
    add_timeout(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..sharing.merging import merge
    from .files import refuse_foreign

    refuse_foreign(arguments.file)
    with output.progress() as progress:
        done = merge(
            arguments.file,
            arguments.shards,
            cluster_by=arguments.cluster_by,
            metadata=dict(arguments.metadata) or None,
            progress=progress,
            timeout=setting(arguments, "timeout"),
        )
    report(done, arguments.file, output)
    return OK
