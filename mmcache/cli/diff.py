"""`mmcache diff`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Final

from ..text import number, printable, short
from .options import FILE_COMPLETION, OK
from .output import Output

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Say what two releases, or files, differ in: keys added, removed and changed, and which fields of how many records.

A and B are files, or URLs of stores: URL@41 for a release, URL for the one that followers adopt.

  mmcache diff s3://bucket/items@41 s3://bucket/items@42
  mmcache diff s3://bucket/items items.mmc --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, text in (("a", "a file, or URL@N"), ("b", "what it is compared with")):
        action = parser.add_argument(name, metavar=name.upper(), help=text)
        action.complete = FILE_COMPLETION  # type: ignore[attr-defined]


def run(arguments: argparse.Namespace, output: Output) -> int:
    from ..remote.difference import diff
    from ..store import is_url, public_url

    found = diff(arguments.a, arguments.b)
    if output.json:
        plain = {name: asdict(one) for name, one in found.items()}
        a, b = (public_url(one) if is_url(one) else one for one in (arguments.a, arguments.b))
        output.document({"a": a, "b": b, "collections": plain})
        return OK
    for name, one in found.items():
        output.heading(printable(name))
        rows = [(kind, number(getattr(one, kind))) for kind in ("added", "removed", "changed", "same")]
        rows = [
            (kind, f"{count}: {short(', '.join(map(str, one.examples[kind])), 100)}" if kind in one.examples else count)
            for kind, count in rows
        ]
        output.pairs([*rows, *((f"field {printable(field)}", number(n)) for field, n in one.fields.items())])
    return OK
