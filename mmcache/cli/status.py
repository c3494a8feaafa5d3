"""`mmcache status`."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from .. import native, wallclock
from ..errors import MmcacheError, UnusableFileError
from ..format.header import Header
from ..format.layout import CollectionLayout, Layout
from ..storage.names import backup_name
from ..text import ago, bytes_of, number, plural, printable, short, source_path, span
from . import fleet
from .files import layout_of
from .options import (
    OK,
    STALE,
    add_policy,
    count,
    file_argument,
    milliseconds,
    policy_of,
    seconds,
    setting,
    share,
    window,
)
from .output import Output

if TYPE_CHECKING:
    from ..freshness import Policy
    from ..sharing.alerts import Alert, Rules
    from ..sharing.status import Status
    from ..sources.base import Source

__all__ = ["HELP", "StatusReport", "add_arguments", "report_of", "run", "source_of"]

HELP: Final = """\
Say what a cache file is, whether it is fresh, and what the workers that have it open are doing.

Reads header, section table and meta, however large the file is, the control page, and what workers count; `mmcache
verify` checks every byte. The source is asked for its fingerprint only. --profile or --ttl must be what the workers
were told: no file says how long it is good for.

With --check it prints a line for each broken rule, or one that all is well. Exit codes:
  0  no rule is broken. A stale file is no alert: it answers, and is due to be built again; if none does, it expires
  4  it has expired or was invalidated, so that the source answers everything; or a rule about the workers is broken:
     hit rate in the last --window seconds, load time, damaged places in a day, rebuilds in an hour, lag of a release
  5  it is damaged; 3: there is no file; 1: it cannot be used for another reason
Without --check: 3, 5 and 1 as here, else 0.

  mmcache status items.mmc
  mmcache status items.mmc --watch
  mmcache status items.mmc --check --ttl 3600 || echo 'a rule is broken'
"""

_EVERY = 2.0
"""Seconds between two looks of --watch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--watch",
        type=_interval,
        nargs="?",
        const=_EVERY,
        metavar="SECONDS",
        help=f"look again and again, every {_EVERY:g} seconds by default, until Ctrl-C",
    )
    way.add_argument("--check", action="store_true", help="only name the rules that are broken; see the exit codes")
    add_policy(parser)
    parser.add_argument(
        "--window",
        type=window,
        metavar="SECONDS",
        help="over which the hit rate is taken, to a second below a minute, else to a minute or an hour (default: 600)",
    )
    parser.add_argument(
        "--min-hit-rate", type=share, metavar="SHARE", help="of all workers, from 0 to 1 (default: 0.9)"
    )
    parser.add_argument(
        "--max-load-ms", type=milliseconds, metavar="MS", help="the last opening of any worker (default: 10)"
    )
    parser.add_argument("--max-corruptions", type=count, metavar="N", help="in the last day (default: 1)")
    parser.add_argument("--max-rebuilds", type=count, metavar="N", help="in the last hour (default: 10)")
    parser.add_argument(
        "--max-lag",
        type=seconds,
        metavar="SECONDS",
        help="for which the file may be of another release than it should (default: 300)",
    )


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.05 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds, 0.05 or more, found {text!r}: write --watch after FILE")
    return value


def run(arguments: argparse.Namespace, output: Output) -> int:
    path: str = arguments.file
    policy = policy_of(arguments)
    if arguments.check:
        return _check(path, policy, _rules(arguments), output)
    if arguments.watch is not None:
        _watch(arguments, path, policy, output)
    seen = report_of(path, policy)._replace(window=setting(arguments, "window"))
    if output.json:
        output.document(_to_json(seen))
    if seen.error is not None:
        raise seen.error
    _print(seen, output)
    return OK


class StatusReport(NamedTuple):
    """One look. layout: of a file that can be used; else error: why it cannot. trouble: why no source can be asked.
    window: seconds over which the hit rate is shown."""

    path: str
    layout: Layout | None
    error: UnusableFileError | None
    trouble: str | None
    status: Status
    window: float = 600.0


def report_of(
    path: str, policy: Policy, source_override: str | None = None, given: Mapping[str, Any] | None = None
) -> StatusReport:
    """At everything; changes nothing. source_override: where the source is now. given: as of `from_spec`."""
    seen = _report_of(path, policy, source_override, given)
    for _ in range(3):
        if _is_of_one_file(seen):
            break
        seen = _report_of(path, policy, source_override, given)  # another file was published between the two looks
    return seen


def _is_of_one_file(seen: StatusReport) -> bool:
    if seen.layout is not None:
        return seen.status.header == seen.layout.header
    return seen.error is None or seen.status.state in (seen.error.cause, "disabled")


def _report_of(path: str, policy: Policy, source_override: str | None, given: Mapping[str, Any] | None) -> StatusReport:
    from ..options import is_disabled
    from ..sharing.status import status_of
    from ..sources import closing

    layout, error = None, None
    try:
        layout = layout_of(path)
    except UnusableFileError as found:
        error = found
    source, trouble = _asked(layout, source_override, given)
    with closing(source):
        status = status_of(path, policy, source, disabled=is_disabled())
    return StatusReport(path, layout, error, trouble, status)


def source_of(
    layout: Layout, source_override: str | None = None, given: Mapping[str, Any] | None = None
) -> Source | None:
    """The source that a file names, or the same kind of source in another place. Raises SourceError."""
    if layout.source is None:
        return None
    from ..sources import from_spec, moved

    spec = layout.source if source_override is None else moved(layout.source, source_override)
    return from_spec(spec, [collection.schema for collection in layout.collections.values()], given)


def _asked(
    layout: Layout | None, source_override: str | None, given: Mapping[str, Any] | None
) -> tuple[Source | None, str | None]:
    """The source of a file, if it answers; else why not. One that is not told enough of is none."""
    from ..sources.base import UntoldError

    if layout is None:
        return None, None
    try:
        source = source_of(layout, source_override, given)
        if source is not None:
            source.fingerprint()
    except UntoldError:
        return None, None
    except MmcacheError as error:
        return None, error.message
    return source, None


# --- --check ----------------------------------------------------------------------------------------------------------


def _rules(arguments: argparse.Namespace) -> Rules:
    from ..sharing.alerts import Rules

    return Rules(
        hit_rate=setting(arguments, "min_hit_rate"),
        load=setting(arguments, "max_load_ms") / 1e3,
        corruptions=setting(arguments, "max_corruptions"),
        rebuilds=setting(arguments, "max_rebuilds"),
        lag=setting(arguments, "max_lag"),
        window=setting(arguments, "window"),
    )


def _check(path: str, policy: Policy, rules: Rules, output: Output) -> int:
    from ..sharing.status import check

    seen = report_of(path, policy)._replace(window=rules.window)
    alerts: list[Alert] = check(seen.status, rules, wallclock.now())
    if output.json:
        broken = [dataclasses.asdict(alert) for alert in alerts]
        output.document({**_to_json(seen), "broken": broken})
    for alert in alerts:
        output.say(f"{printable(path)}: {alert.rule}: {printable(alert.text)}")
    if seen.error is not None:
        raise seen.error
    if not alerts:
        output.say(f"{printable(path)}: ok, {seen.status.state}: {printable(seen.status.why)}")
    return STALE if alerts else OK


# --- --watch ----------------------------------------------------------------------------------------------------------


def _watch(arguments: argparse.Namespace, path: str, policy: Policy, output: Output) -> NoReturn:
    had_terminal = output.is_terminal
    every, seconds = arguments.watch, setting(arguments, "window")
    with _screen(output) as show:
        while True:
            show(report_of(path, policy)._replace(window=seconds))
            if sys.stdout is not None:
                sys.stdout.flush()
            if had_terminal and not output.is_terminal:  # to rich it is a file from now on, and it writes no more
                raise OSError(errno.EIO, "the terminal is gone")
            time.sleep(every)


@contextmanager
def _screen(output: Output) -> Iterator[Callable[[StatusReport], None]]:
    """What shows a look: on a terminal in the place of the one before, elsewhere after it."""
    if output.json:
        yield lambda seen: output.row(_to_json(seen))
        return
    if not output.is_terminal or not output.colour:  # what moves a cursor is an escape sequence

        def append(seen: StatusReport) -> None:
            _print_brief(seen, output)
            output.say()

        yield append
        return
    try:
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        yield lambda seen: print(f"\x1b[H\x1b[2J{_rendered(seen, output)}", end="")
        return
    with Live(auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        yield lambda seen: live.update(Text.from_ansi(_rendered(seen, output)), refresh=True)


class _Page(io.TextIOWrapper):
    """Takes what is meant for the terminal."""

    def isatty(self) -> bool:
        return True


def _rendered(seen: StatusReport, output: Output) -> str:
    with _Page(io.BytesIO(), encoding=sys.stdout.encoding) as page:
        with redirect_stdout(page):
            _print_brief(seen, output)
        page.seek(0)
        return page.read()


# --- what it says -----------------------------------------------------------------------------------------------------


def _age(header: Header) -> float:
    return wallclock.now() - header.created_ns / 1e9


def _created(header: Header) -> datetime | None:
    try:
        return datetime.fromtimestamp(header.created_ns // 10**9, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _to_json(seen: StatusReport) -> dict[str, Any]:
    from ..sharing.levers import read_levers
    from .following import to_json as following_to_json

    status = seen.status
    now = time.monotonic()
    builder, failure = status.builder, status.failure
    levers = read_levers(seen.path)
    found: dict[str, Any] = {"path": seen.path, "state": status.state, "why": status.why}
    found |= {"held": levers.held or None, "disabled": levers.disabled or None}
    if seen.error is not None:
        found["error"] = seen.error.message
    if seen.layout is not None:
        found |= _file_to_json(seen.layout)
        found |= {"revalidated": status.revalidated, "dirty": status.dirty, "source_error": seen.trouble}
    return found | {
        "backup": _backup(seen.path),
        "control": {"shared": status.control is None, "problem": status.control},
        "building": status.building,
        "builder": None
        if builder is None or not status.building
        else {"pid": builder.pid, "seconds": round(now - builder.since, 3)},
        "failure": None
        if failure is None
        else {
            "attempts": failure.attempts,
            "error": str(failure.error),
            "age_seconds": round(now - failure.at, 3),
            "retry_seconds": round(max(0.0, failure.until - now), 3),
        },
        "following": None if status.following is None else following_to_json(status.following),
        "implementation": native.plain(),
        "fleet": fleet.to_json(status.fleet, seen.window),
    }


def _file_to_json(layout: Layout) -> dict[str, Any]:
    header = layout.header
    created = _created(header)
    return {
        "generation": header.generation,
        "created": created.isoformat() if created else None,
        "created_ns": header.created_ns,
        "age_seconds": round(_age(header), 3),
        "build_seconds": header.elapsed_ns / 1e9,
        "build_id": header.build_id.hex(),
        "sha256": header.sha256.hex(),
        "size": header.file_size,
        "sections": header.section_count,
        "format": ".".join(map(str, header.version)),
        "writer": layout.writer,
        "source": layout.source,
        "metadata": layout.metadata,
        "collections": {name: _collection_to_json(c) for name, c in layout.collections.items()},
    }


def _collection_to_json(collection: CollectionLayout) -> dict[str, Any]:
    schema = collection.schema
    return {
        "records": collection.n,
        "key": schema.key,
        "index": {name: index.terms for name, index in collection.index.items()},
        "embedding": schema.embedding,
        "dim": collection.dim or None,
        "metric": schema.metric if schema.embedding else None,
        "without_embedding": collection.missing,
        "cluster_by": collection.cluster_by,
        "shapes": len(collection.shapes),
        "left_out": dataclasses.asdict(collection.left_out),
    }


def _backup(path: str) -> dict[str, Any] | None:
    """The generation before this one, kept beside it."""
    try:
        header = layout_of(backup_name(path)).header
    except UnusableFileError as error:
        return None if error.cause == "missing" else {"state": error.cause}
    return {"state": "ok", "generation": header.generation, "size": header.file_size, "age_seconds": _age(header)}


def _print(seen: StatusReport, output: Output) -> None:
    output.heading(printable(seen.path))
    output.pairs(_rows(seen))
    if seen.layout is not None:
        for name, collection in seen.layout.collections.items():
            output.heading(f"{printable(name)}: {plural(collection.n, 'record')}")
            output.pairs(_collection(collection))
    fleet.render(seen.status.fleet, seen.window, output)


def _print_brief(seen: StatusReport, output: Output) -> None:
    """What changes from one look to the next."""
    output.heading(printable(seen.path))
    output.pairs(_live_rows(seen))
    fleet.render(seen.status.fleet, seen.window, output)


def _rows(seen: StatusReport) -> list[tuple[str, str]]:
    rows = _live_rows(seen)
    if seen.layout is not None:
        rows += _file_rows(seen.layout)
    rows.append(("backup", _backup_text(_backup(seen.path))))
    if seen.layout is not None:
        trouble = "" if seen.trouble is None else f", which cannot be asked now: {printable(seen.trouble)}"
        rows.append(("source", _source(seen.layout.source) + trouble))
        rows += [
            ("metadata", f"{short(key, 40)} = {short(str(value), 60)}") for key, value in seen.layout.metadata.items()
        ]
    return rows


def _live_rows(seen: StatusReport) -> list[tuple[str, str]]:
    status = seen.status
    rows = [("state", f"{status.state}: {printable(status.why)}")]
    if seen.layout is not None:
        header = seen.layout.header
        created = _created(header)
        when = f"{created.astimezone():%Y-%m-%d %H:%M:%S %z}, " if created else ""
        again = ", and found to be right by a later rebuild" if status.revalidated else ""
        rows.append(("generation", number(header.generation)))
        rows.append(("built", f"{when}{ago(_age(header))}, in {span(header.elapsed_ns / 1e9)}{again}"))
    rows.append(("builder", _builder(status)))
    if status.failure is not None:
        rows.append(("last build", _failure(status)))
    if status.following is not None:
        from .following import line_of

        rows.append(("release", line_of(status.following)))
    rows.append(("control page", "shared by all workers" if status.control is None else printable(status.control)))
    rows.append(("implementation", native.described()))
    return rows


def _file_rows(layout: Layout) -> list[tuple[str, str]]:
    header = layout.header
    return [
        ("size", f"{bytes_of(header.file_size)} ({plural(header.file_size, 'byte')}, {header.section_count} sections)"),
        ("format", f"{'.'.join(map(str, header.version))}, by {short(layout.writer, 60)}"),
        ("build id", header.build_id.hex()),
    ]


def _builder(status: Status) -> str:
    if not status.building:
        return "none"
    if status.builder is None:
        return "a process holds the build lock"
    return f"pid {status.builder.pid}, for {span(max(0.0, time.monotonic() - status.builder.since))}"


def _failure(status: Status) -> str:
    failure, now = status.failure, time.monotonic()
    assert failure is not None
    times = f"{plural(failure.attempts, 'failure')} in a row, the last {ago(max(0.0, now - failure.at))}"
    left = failure.until - now
    again = f"not tried again for {span(left)}" if left > 0 else "may be tried again"
    return f"{times}, {again}: {printable(str(failure.error))}"


def _collection(collection: CollectionLayout) -> list[tuple[str, str]]:
    schema = collection.schema
    terms = (f"{printable(name)} ({plural(index.terms, 'value')})" for name, index in collection.index.items())
    rows = [("key", ", ".join(map(printable, schema.key_fields))), ("indexes", ", ".join(terms) or "none")]
    for name, embedding in collection.embeddings.items():
        absent = f", {plural(embedding.missing, 'record')} without" if embedding.missing else ""
        rows.append(("embeddings", f"{printable(name)}: {embedding.dim} x float32, {schema.metric_of(name)}{absent}"))
    if collection.left_out:
        rows.append(("left out", printable(str(collection.left_out))))
    if collection.cluster_by is not None:
        rows.append(("clustered", f"by {printable(collection.cluster_by)}"))
    return rows


def _source(spec: dict[str, Any] | None) -> str:
    if spec is None:
        return "none: built from records in memory"
    return f"{short(str(spec.get('kind')), 20)} {source_path(spec)}"


def _backup_text(backup: dict[str, Any] | None) -> str:
    if backup is None:
        return "none"
    if backup["state"] != "ok":
        return str(backup["state"])
    return f"generation {backup['generation']}, {bytes_of(backup['size'])}, built {ago(backup['age_seconds'])}"
