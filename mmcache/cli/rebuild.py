"""`mmcache rebuild`."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ..schema import DTYPES, ON_DUPLICATE, ON_INVALID
from ..text import bytes_of, plural, printable, span
from .options import FILE_COMPLETION, OK, UsageError, add_policy, count, file_argument, policy_of, seconds, setting
from .output import Output

if TYPE_CHECKING:
    from ..storage.publish import BuildReport
    from .status import StatusReport

__all__ = ["HELP", "add_arguments", "add_rules", "add_timeout", "report", "rules_of", "run"]

HELP: Final = """\
Make a cache file anew from the source that it names, with the same schemas, clustering and metadata.

Needs nothing but FILE; where FILE is damaged or gone, its backup says how. A file of an older format is built in the
format of today; one of a newer format is left alone, and `mmcache build` replaces it. If the content is the same, the
published file stays, and counts as built now. Workers that have it open move to the new file within their next get.

--if-stale is for cron: it does nothing, and ends with 0, while the file is fresh. --profile or --ttl must then be what
the workers were told. Not fresh is what is due by its age, was invalidated, in whole or in single ids, or whose source
was written to since. A file that is held after a rollback stays as it is; without --if-stale, a rebuild ends that.

`mmcache optimize` is another name of this command: a file holds no garbage, so that to build it anew is all there is.

  mmcache rebuild items.mmc
  mmcache rebuild items.mmc --if-stale --ttl 3600          from cron
  mmcache rebuild items.mmc --source /new/place/shop.db
"""

_FUNCTIONS = {
    "default": "as for `mmcache build`; a file cannot import it",
    "load": "the function that gives the records, of a file that was built from one; likewise",
    "fingerprint": "the function that says whether they have changed, if it was built with one; likewise",
    "connect": "what opens the connections of SQLite, as for `mmcache build`",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    source = parser.add_argument(
        "--source", metavar="PATH|URL", help="where the source is now, if it moved; the new file names this one"
    )
    source.complete = FILE_COMPLETION  # type: ignore[attr-defined]
    for flag, what in _FUNCTIONS.items():
        parser.add_argument(f"--{flag}", metavar="MODULE:FUNCTION", help=what)
    parser.add_argument("--exact", action="store_true", help="drop what the file has for other versions of the program")
    parser.add_argument("--if-stale", action="store_true", help="only if it is due: for cron")
    add_policy(parser)
    add_rules(parser)
    add_timeout(parser)


def add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="how long to wait for another build of it (default: 600)"
    )


def add_rules(parser: argparse.ArgumentParser) -> None:
    """What becomes of bad rows; kept in the file."""
    group = parser.add_argument_group("bad rows")
    group.add_argument(
        "--on-invalid",
        choices=ON_INVALID,
        help="a row that cannot be taken is an error, or is left out (default: raise)",
    )
    group.add_argument("--max-invalid", type=count, metavar="N", help="more rows left out than this are an error")
    group.add_argument(
        "--on-duplicate",
        choices=ON_DUPLICATE,
        help="a key of several rows is an error, or the first or last of them counts (default: raise)",
    )


def rules_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments for them. Raises UsageError."""
    if arguments.max_invalid is not None and arguments.on_invalid == "raise":
        raise UsageError("--max-invalid goes with --on-invalid skip")
    return {name: getattr(arguments, name) for name in ("on_invalid", "max_invalid", "on_duplicate")}


def run(arguments: argparse.Namespace, output: Output) -> int:
    timeout: float = setting(arguments, "timeout")
    source_override: str | None = arguments.source
    asked_ns = None
    if arguments.if_stale:
        asked_ns = time.time_ns()  # what another process builds from now on will do
        seen = _seen(arguments, source_override)
        if seen.status.state in ("fresh", "held"):
            _report_fresh(seen, output)
            return OK
    elif arguments.profile is not None or arguments.ttl is not None:
        raise UsageError("--profile and --ttl say what is stale: they go with --if-stale")
    from ..sharing.publishing import rebuild

    with output.progress() as progress:
        done = rebuild(
            arguments.file,
            progress=progress,
            timeout=timeout,
            asked_ns=asked_ns,
            source=source_override,
            given=_given(arguments),
            exact=arguments.exact,
            **rules_of(arguments),
        )
    report(done, arguments.file, output)
    return OK


def _given(arguments: argparse.Namespace) -> dict[str, str]:
    """What is to be imported because it is given here, and not because a file names it. From the working directory,
    too."""
    if "" not in sys.path:
        sys.path.append("")
    return {name: value for name in _FUNCTIONS if (value := getattr(arguments, name)) is not None}


def _seen(arguments: argparse.Namespace, source_override: str | None) -> StatusReport:
    from .status import report_of

    return report_of(arguments.file, policy_of(arguments), source_override, _given(arguments))


def _report_fresh(seen: StatusReport, output: Output) -> None:
    """Nothing to do, or nothing that cron may do."""
    status = seen.status
    if output.json:
        plain = {"path": seen.path, "generation": status.generation, "changed": False}
        output.document({**plain, "state": status.state, "why": status.why})
        return
    output.say(
        f"{printable(seen.path)}: {status.state}, generation {status.generation} stays ({printable(status.why)})"
    )


def report(done: BuildReport, path: str, output: Output) -> None:
    """What is published now."""
    if output.json:
        output.document(asdict(done))
        return
    held = ", ".join(f"{printable(name)}: {plural(n, 'record')}" for name, n in done.records.items())
    what = f"generation {done.generation}" if done.changed else f"unchanged, generation {done.generation} stays"
    output.say(f"{printable(path)}: {what} ({held}, {bytes_of(done.size)}, {span(done.seconds)})")
    for collection, fields in done.embeddings.items():
        for field, one in fields.items():
            place = f"{printable(collection)}.{printable(field)}"
            source = f", read from {DTYPES[one.dtype]}" if one.dtype not in (None, "f4") else ""
            ends = "" if one.shortest is None else f", norms {one.shortest:.4g} to {one.longest:.4g}"
            output.say(f"  embeddings {place}: {plural(one.records, 'record')}, {one.dim} x float32{source}{ends}")
    for collection, rows in done.left_out.items():
        output.say(f"  left out of {printable(collection)}: {printable(str(rows))}")
