"""`mmcache follow`."""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from ..errors import MmcacheError
from ..text import printable
from .following import to_json
from .options import FILE_COMPLETION, MISSING, OK, UsageError, count, file_argument, seconds, setting
from .output import Output
from .rebuild import add_timeout
from .releases import url_argument

if TYPE_CHECKING:
    from ..sharing.following import Following
    from ..sources.base import Source

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Keep a cache file at the release that a store has for it, until Ctrl-C or SIGTERM; with --once bring it there, and end.

A release is downloaded once a node: side-cars, workers and cron jobs that follow for FILE take the build lock for it.
What an interrupted download left, and what this machine has of the release already, is not transferred again. Every
byte is proved by the release's digest before FILE is replaced, and workers move over within their next get.

Local invalidations stay until a release covers them: one with the fingerprint that --source has now, or one that was
made more than --skew seconds after them. A file that is held by `mmcache rollback` stays as it is.

With --once the exit code is 0 where FILE is of the release, 3 where it is of none: there is no such release, each was
withdrawn, or FILE is held; and 75 where another process still builds FILE after --timeout.

  mmcache follow s3://bucket/items /var/cache/shop/items.mmc
  mmcache follow s3://bucket/items /var/cache/shop/items.mmc --once      before the workers start
  mmcache follow s3://bucket/items /var/cache/shop/items.mmc --pin 41
"""

_SLOWEST: Final = 60.0
"""Seconds between polls of a store that fails again and again, unless --every is longer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    url_argument(parser)
    file_argument(parser)
    parser.add_argument("--every", type=seconds, metavar="SECONDS", default=5.0, help="between two polls (default: 5)")
    parser.add_argument("--once", action="store_true", help="poll once, and say what came of it by the exit code")
    parser.add_argument("--pin", type=count, metavar="N", help="stay with this release, until it is withdrawn")
    parser.add_argument(
        "--skew",
        type=seconds,
        metavar="SECONDS",
        default=60.0,
        help="by which the clocks of publishers and this machine may differ (default: 60)",
    )
    source = parser.add_argument(
        "--source", metavar="PATH|URL", help="the workers' source, where this process can ask it"
    )
    source.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    parser.add_argument("--no-source", action="store_true", help="workers have none: every release covers everything")
    add_timeout(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..remote.follower import Follower, Orders
    from ..storage import fs

    if arguments.source is not None and arguments.no_source:
        raise UsageError("give --source or --no-source, not both")
    if arguments.every <= 0:
        raise UsageError("--every must be above 0")
    path = fs.with_name(arguments.file)
    fs.make_directory(path.rpartition("/")[0] or "/")
    with output.progress() as progress:
        source = _source(path, arguments.source)
        orders = Orders(arguments.pin, arguments.skew, not arguments.no_source, source)
        follower = Follower(path, arguments.url, orders, progress)
        if not arguments.once:
            return _loop(follower, arguments, output)
        said = follower.poll(timeout=setting(arguments, "timeout"))
    _say(said, path, output)
    if said.error:
        output.note(f"mmcache follow: {said.error}")
    return MISSING if said.error else OK


def _source(path: str, where: str | None) -> Source | None:
    """The workers' source: as the file, once there is one, names it, in another place."""
    if where is None:
        return None
    from ..errors import UnusableFileError
    from .files import layout_of
    from .status import source_of

    try:
        return source_of(layout_of(path), where)
    except UnusableFileError:
        return None


def _loop(follower: Any, arguments: argparse.Namespace, output: Output) -> int:
    path, failures = follower.path, 0
    shown: object = None
    while True:
        try:
            if follower.orders.source is None and arguments.source is not None:
                follower.ask(_source(path, arguments.source))
            said = follower.poll()
        except MmcacheError as error:
            failures += 1
            if shown != error.message:
                output.error(f"mmcache follow: {error}")
            shown = error.message
        else:
            failures = 0
            now = said.release, said.generation, said.error
            if shown != now:
                _say(said, path, output)
                if said.error:
                    output.note(f"mmcache follow: {said.error}")
                if sys.stdout is not None:
                    sys.stdout.flush()
            shown = now
        pause = min(arguments.every * 2 ** min(failures, 6), max(_SLOWEST, arguments.every))
        time.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 (so that a fleet does not poll at one moment)


def _say(said: Following, path: str, output: Output) -> None:
    if output.json:
        output.row({"path": path, **to_json(said)})
        return
    pinned = f", pinned; the newest is {said.newest}" if said.pinned is not None else ""
    release = "no release" if said.release is None else f"release {said.release}"
    output.say(f"{printable(path)}: {release} as generation {said.generation}{pinned}")
