"""`mmcache publish`."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from .options import file_argument, share
from .output import Output
from .releases import report, url_argument
from .rollback import add_reason

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Make a cache file a release of an object store, which every follower of the store adopts.

Every byte is checked, then the validators: no key stands twice, each collection of the release before is there with
--min-records-ratio of its records, and each --check, which is given the opened snapshot, does not object. Then the file
is uploaded, and announced by one entry that is created once: of several publishers each gets a number of its own.
Credentials are those of the environment, as AWS_ACCESS_KEY_ID or a role of the machine. Needs the extra remote.

  mmcache publish items.mmc s3://bucket/items
  mmcache publish items.mmc s3://bucket/items --min-records-ratio 0.9 --check checks:prices_are_positive
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    url_argument(parser)
    parser.add_argument(
        "--min-records-ratio",
        type=share,
        default=0.5,
        metavar="SHARE",
        help="of the records of the release before, for each collection (default: 0.5; 0: whatever it has)",
    )
    parser.add_argument(
        "--check",
        dest="checks",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="is called with the snapshot; raises, or returns False or a sentence, where it must not be published",
    )
    parser.add_argument("--no-deltas", action="store_true", help="upload whole files only")
    add_reason(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..remote.publishing import publish
    from .options import UsageError

    if "" not in sys.path:
        sys.path.append("")
    try:
        with output.progress() as progress:
            done = publish(
                arguments.file,
                arguments.url,
                min_records_ratio=arguments.min_records_ratio,
                checks=arguments.checks,
                deltas=not arguments.no_deltas,
                reason=arguments.reason,
                progress=progress,
            )
    except ValueError as error:
        if type(error) is ValueError:  # --check leads to no function
            raise UsageError(str(error)) from None
        raise
    what = f"release {done.number}" if done.changed else f"release {done.number} has the same already"
    return report(done, arguments.url, what, output)
