"""`mmcache pin`."""

from __future__ import annotations

import argparse
from typing import Final

from .output import Output
from .releases import add_number, report, url_argument
from .rollback import add_reason

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Have every follower of a store adopt this release, and stay with it whatever is published, until `mmcache unpin`.

One node alone stays with a release by `mmcache follow --pin N`. `mmcache status FILE` shows the pin of a node.

  mmcache pin s3://bucket/items 41 --reason 'prices of 42 are wrong'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    url_argument(parser)
    add_number(parser, "the release to stay with")
    add_reason(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..remote.operating import pin

    done = pin(arguments.url, arguments.number, reason=arguments.reason)
    return report(done, arguments.url, f"every follower stays with release {done.number}", output)
