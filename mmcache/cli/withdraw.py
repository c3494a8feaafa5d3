"""`mmcache withdraw`."""

from __future__ import annotations

import argparse
from typing import Final

from .output import Output
from .releases import add_number, report, url_argument
from .rollback import add_reason

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Have every follower leave a release, pinned ones as well, for the newest that was not withdrawn.

Its content is not published again by `mmcache publish`; `mmcache rollback URL --to N` brings it back.

  mmcache withdraw s3://bucket/items 42 --reason 'half of the prices are zero'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    url_argument(parser)
    add_number(parser, "the release to leave")
    add_reason(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..remote.operating import withdraw

    done = withdraw(arguments.url, arguments.number, reason=arguments.reason)
    left = f"release {arguments.number} is withdrawn"
    return report(done, arguments.url, left if done is None else f"{left}, followers adopt {done.number}", output)
