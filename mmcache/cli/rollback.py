"""`mmcache rollback`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Final

from ..text import printable
from .options import OK, UsageError, count, file_argument, setting
from .output import Output
from .rebuild import add_timeout

__all__ = ["HELP", "add_arguments", "add_reason", "run"]

HELP: Final = """\
Put the backup back, for all workers, and hold it until a person decides otherwise.

The records of FILE.bak are published under a new generation, and the present file becomes the backup: a second rollback
goes forward again. From then on the state is "held": age, fingerprint and tracking are not consulted, and no worker
rebuilds the file, also after a reboot. What is invalidated later counts as always. `mmcache rebuild`, `mmcache build`
or `mmcache resume` ends it. Workers move over within their next get.

With the URL of a store, the content of an earlier release becomes a new one, under a new number, and every follower
adopts that; nothing is uploaded, and nothing is held.

  mmcache rollback patterns.mmc --reason 'half of the patterns lack a domain'
  mmcache rollback s3://bucket/patterns --to 41
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser, text="the cache file, or the URL of a store")
    parser.add_argument("--to", type=count, metavar="N", help="of a store: the release whose content comes back")
    add_reason(parser)
    add_timeout(parser)


def add_reason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for `mmcache status`")


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..sharing.levers import read_levers
    from ..sharing.operate import rollback

    path: str = arguments.file
    if "://" in path:
        return _of_store(arguments, output)
    if arguments.to is not None:
        raise UsageError("--to names a release of a store: mmcache rollback URL --to N")
    done = rollback(path, timeout=setting(arguments, "timeout"), reason=arguments.reason)
    if output.json:
        output.document({**asdict(done), "held": read_levers(path).held})
        return OK
    output.say(f"{printable(path)}: generation {done.generation} has the records of the backup, and is held")
    output.note(f"to end that: mmcache rebuild {printable(path)}, or mmcache resume {printable(path)}")
    return OK


def _of_store(arguments: argparse.Namespace, output: Output) -> int:
    from ..remote.operating import rollback
    from .releases import report

    done = rollback(arguments.file, to=arguments.to, reason=arguments.reason)
    return report(done, arguments.file, f"release {done.number} has the content of {done.of}", output)
