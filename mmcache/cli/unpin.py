"""`mmcache unpin`."""

from __future__ import annotations

import argparse
from typing import Final

from .output import Output
from .releases import report, url_argument
from .rollback import add_reason

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
End `mmcache pin`: every follower of the store adopts the newest release that was not withdrawn.

  mmcache unpin s3://bucket/items
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    url_argument(parser)
    add_reason(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..remote.operating import unpin

    done = unpin(arguments.url, reason=arguments.reason)
    what = "not pinned" if done is None else f"not pinned, followers adopt release {done.number}"
    return report(done, arguments.url, what, output)
