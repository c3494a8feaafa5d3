"""`mmcache releases`, and what the commands about releases share."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from ..text import ago, bytes_of, number, plural, printable, short
from .options import OK, UsageError, count
from .output import Output

if TYPE_CHECKING:
    from ..remote.publishing import Release

__all__ = ["HELP", "add_arguments", "add_number", "report", "run", "url_argument"]

HELP: Final = """\
List the releases of a store, the newest first.

  mmcache releases s3://bucket/items
  mmcache releases file:///mnt/share/items --limit 100 --json
"""

_LIMIT: Final = 20


def url_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url", metavar="URL", type=_url, help="the store: s3://bucket/items, gs://, az://, https://, file:///mnt/items"
    )


def _url(text: str) -> str:
    if "://" not in text:
        raise argparse.ArgumentTypeError(
            f"expected a URL such as s3://bucket/items or file:///mnt/items, found {text!r}"
        )
    return text


def add_number(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("number", metavar="N", type=count, help=text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    url_argument(parser)
    parser.add_argument("--limit", type=count, default=_LIMIT, metavar="N", help=f"at most so many (default: {_LIMIT})")


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..remote.operating import releases
    from ..store import public_url

    if arguments.limit < 1:
        raise UsageError("--limit must be 1 or more")
    found = releases(arguments.url, limit=arguments.limit)
    if output.json:
        output.document({"url": public_url(arguments.url), "releases": [asdict(release) for release in found]})
        return OK
    columns = ("release", "published", "by", "records", "size", "what")
    output.table(columns, [_cells(release) for release in found], right=(0, 3, 4))
    return OK


def _cells(release: Release) -> tuple[str, ...]:
    marks = [
        word
        for word, holds in (
            ("adopted", release.current),
            ("pinned", release.pinned),
            ("withdrawn", release.withdrawn),
            (f"content of {release.of}", release.of is not None),
        )
        if holds
    ]
    what = ", ".join([*marks, printable(release.reason)] if release.reason else marks)
    return (
        str(release.number),
        ago(max(0.0, time.time() - release.published)),
        short(release.publisher, 24),
        number(sum(release.records.values())),
        bytes_of(release.size),
        what,
    )


def report(release: Release | None, url: str, done: str, output: Output) -> int:
    """What followers adopt now. done: a sentence for people."""
    from ..store import public_url

    url = public_url(url)
    if output.json:
        output.document({"url": url, "release": None if release is None else asdict(release)})
        return OK
    if release is None:
        output.say(f"{printable(url)}: {done}; no release is left, and followers keep what they have")
        return OK
    records = plural(sum(release.records.values()), "record")
    output.say(f"{printable(url)}: {done} ({records}, {bytes_of(release.size)})")
    return OK
