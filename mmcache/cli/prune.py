"""`mmcache prune`."""

from __future__ import annotations

import argparse
import re
from typing import Final

from ..text import bytes_of, plural, printable
from .options import OK, UsageError, count
from .output import Output
from .releases import url_argument

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Remove releases that are old and not among the newest from a store, and blobs that no release needs.

Kept are the newest --keep that were not withdrawn, what is pinned or adopted, and what is younger than --older-than by
the store's clock. Blobs of publishers that died go after a day.

  mmcache prune s3://bucket/items --keep 5 --older-than 7d
  mmcache prune s3://bucket/items --dry-run
"""

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


def age(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw]?)", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 7d, 12h, 30m or seconds, found {text!r}")
    return float(found[1]) * _UNITS[found[2] or "s"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    url_argument(parser)
    parser.add_argument("--keep", type=count, default=5, metavar="N", help="of the newest releases (default: 5)")
    parser.add_argument(
        "--older-than", type=age, default=7 * 86_400.0, metavar="AGE", help="7d, 12h, 30m or seconds (default: 7d)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..remote.operating import prune
    from ..store import public_url

    if arguments.keep < 1:
        raise UsageError("--keep must be 1 or more")
    url = public_url(arguments.url)
    done = prune(arguments.url, keep=arguments.keep, older_than=arguments.older_than, dry_run=arguments.dry_run)
    if output.json:
        output.document({"url": url, "dry_run": arguments.dry_run, **done._asdict()})
        return OK
    verb = "would remove" if arguments.dry_run else "removed"
    numbers = f" ({', '.join(map(str, done.releases))})" if done.releases else ""
    entries, blobs = plural(len(done.releases), "entry").replace("entrys", "entries"), plural(len(done.blobs), "blob")
    output.say(f"{printable(url)}: {verb} {entries}{numbers} and {blobs}, {bytes_of(done.bytes)}")
    return OK
