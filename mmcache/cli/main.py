"""`main`: the arguments in, an exit code out; every error one line on stderr that names the next step.

A command is a module with `add_arguments(parser)` and `run(arguments, output) -> exit code`, named once in COMMANDS.
Only the module of the command that was given is imported, and at its top it imports only what its arguments need:
`mmcache status` starts in every cron job and health check.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Final

from .. import __version__
from ..errors import (
    CorruptFileError,
    IncompatibleFormatError,
    LockTimeoutError,
    MissingFileError,
    MmcacheError,
)
from .options import BROKEN_PIPE, CORRUPT, ERROR, INTERRUPTED, LOCKED, MISSING, OK, USAGE, UsageError
from .output import Output

__all__ = ["main", "make_parser"]

COMMANDS: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "init": ("init", (), "look at a database or file, and write the TOML for `build --config`"),
    "build": ("build", (), "make a cache file from databases and files"),
    "rebuild": ("rebuild", ("optimize",), "make a cache file anew from the source that it names; optimize is the same"),
    "merge": ("merge", (), "make one cache file of several with the same schemas"),
    "rollback": ("rollback", (), "put the backup back, for all workers, and hold it there"),
    "resume": ("resume", (), "let a file that was rolled back be built again"),
    "disable": ("disable", (), "have the source answer in place of a file, in all workers"),
    "enable": ("enable", (), "let a file that was disabled answer again"),
    "status": ("status", (), "say what a cache file is, how fresh, and what its workers are doing"),
    "verify": ("verify", (), "check every byte of a cache file"),
    "get": ("get", (), "print records by id, as JSON"),
    "find": ("find", (), "print the records that have these values in indexed fields"),
    "nearest": ("nearest", (), "print the records whose embeddings are nearest to a vector or a record"),
    "measure": ("measure", (), "measure what a search with a recall finds, on queries of your own"),
    "export": ("export", (), "write the records to JSON lines, CSV, Parquet or Arrow"),
    "inspect": ("inspect", (), "show the sections, shapes and indexes of a cache file"),
    "invalidate": ("invalidate", (), "tell all workers that records, or everything, changed"),
    "track": ("track", (), "let a database log which records change, whatever writes"),
    "metrics": ("metrics", (), "print what all workers have counted, for Prometheus; alert rules, a dashboard"),
    "clear": ("clear", (), "remove a cache file, its backup, its metrics and what dead builds left"),
    "publish": ("publish", (), "make a cache file a release of an object store"),
    "follow": ("follow", (), "keep a cache file at the release of an object store"),
    "releases": ("releases", (), "list the releases of an object store"),
    "pin": ("pin", (), "have every follower of a store stay with a release"),
    "unpin": ("unpin", (), "have them adopt the newest again"),
    "withdraw": ("withdraw", (), "have every follower of a store leave a release"),
    "prune": ("prune", (), "remove old releases from a store"),
    "diff": ("diff", (), "say what two releases or files differ in"),
    "doctor": ("doctor", (), "check that a directory, a file, a store and this machine can do what caches need"),
    "completion": ("completion", (), "print a completion script for a shell"),
}
"""Name -> module, other names, what it does."""

_EPILOG = """\
exit codes: 0 ok, 1 error, 2 usage, 3 missing, 4 may not answer, or a rule is broken (status --check), 5 corrupt,
            75 another build holds the lock
settings:   flag (--timeout) > MMCACHE_TIMEOUT > timeout of [tool.mmcache] in pyproject.toml > default; the same for
            --verify, --access, --profile, --ttl, and the rules of `status --check` (--max-load-ms, max_load_ms)
"""


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """only: the command whose arguments will be parsed; the others are then known by name."""
    parser = argparse.ArgumentParser(
        prog="mmcache",
        description="One immutable file of records, indexes and embeddings, mapped by many worker processes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mmcache {__version__}")
    _add_common(parser, json=False, quiet=False, verbose=False)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for name, (module, aliases, text) in COMMANDS.items():
        sub = commands.add_parser(
            name, aliases=aliases, help=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if only is None or only in (name, *aliases):
            command = import_module(f".{module}", __package__)
            sub.description = command.HELP
            command.add_arguments(sub)
            _add_common(sub)
            sub.set_defaults(run=command.run)
    return parser


def _add_common(parser: argparse.ArgumentParser, **defaults: bool) -> None:
    """Flags that stand before or after the command."""
    for flags, text in (
        (("--json",), "print JSON on stdout"),
        (("-q", "--quiet"), "print only data and errors"),
        (("-v", "--verbose"), "print the log, and tracebacks of errors"),
    ):
        default = defaults.get(flags[-1].lstrip("-"), argparse.SUPPRESS)
        parser.add_argument(*flags, action="store_true", default=default, help=text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `arguments` without the program's name, by default those of this process."""
    output = Output()
    try:
        try:
            code = _run(arguments, output)
        except SystemExit as stop:  # argparse: --help, --version, a wrong argument
            code = stop.code if isinstance(stop.code, int) else OK
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, AttributeError):
                stream.close()  # so that the interpreter does not try to flush it once more, and complain
        return BROKEN_PIPE
    except KeyboardInterrupt:
        output.error("mmcache: interrupted")
        return INTERRUPTED
    except OSError as error:
        # Ours are MmcacheErrors; this is stdout.
        output.error(f"mmcache: cannot write the output: {error.strerror or error}")
        with contextlib.suppress(OSError, AttributeError):
            sys.stdout.close()
        return ERROR
    return code


def _run(arguments: Sequence[str] | None, output: Output) -> int:
    if arguments is None:
        arguments = sys.argv[1:]
    # None of the flags before the command takes a value, so the command is the first word that is no flag.
    parser = make_parser(next((word for word in arguments if not word.startswith("-")), ""))
    if with_value := next((word for word in arguments if word.startswith("--json=")), None):
        parser.error(_JSON_TAKES_NOTHING.format(with_value.partition("=")[2]))
    parsed, rest = parser.parse_known_args(arguments)
    if rest:
        # Ids after an option, which argparse does not take for more of those before it.
        end = rest.index("--") if "--" in rest else len(rest)
        words = next(
            (found for name in ("ids", "terms") if isinstance(found := getattr(parsed, name, None), list)), None
        )
        if words is None or any(word.startswith("-") for word in rest[:end]):
            if parsed.command == "build" and (named := _after_json(arguments)):
                parser.error(_JSON_TAKES_NOTHING.format(named))
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        words += rest[:end] + rest[end + 1 :]
    if parsed.command is None:
        parser.print_help()
        return OK
    output.json, output.quiet, output.verbose = parsed.json, parsed.quiet, parsed.verbose
    try:
        with _log(output):
            code: int = parsed.run(parsed, output)
            return code
    except UsageError as error:
        output.error(f"mmcache {parsed.command}: {error}")
        output.note(f"see: mmcache {parsed.command} --help")
        return USAGE
    except MmcacheError as error:
        if output.verbose:
            _print_traceback(error)
        output.error(f"mmcache {parsed.command}: {_explain(error, parsed)}")
        return _exit_code(error)
    except MemoryError:
        output.error(f"mmcache {parsed.command}: out of memory")
        return ERROR


_JSON_TAKES_NOTHING: Final = "--json takes no value, it prints JSON; columns of JSON text are: --json-columns {}"


def _after_json(arguments: Sequence[str]) -> str | None:
    """What follows `--json` and may have been meant as names."""
    after = [word for flag, word in itertools.pairwise(arguments) if flag == "--json"]
    return after[0] if after and not {*after[0]} & {"-", "/", "."} else None


@contextlib.contextmanager
def _log(output: Output) -> Iterator[None]:
    """With -v, the package's log on stderr while a command runs."""
    if not output.verbose:
        yield
        return
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log = logging.getLogger("mmcache")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _print_traceback(error: MmcacheError) -> None:
    import traceback

    traceback.print_exception(error)


_WITHOUT_STEP: Final = (
    *("rollback", "disable"),  # of a backup, or a path, that no build makes
    *("follow", "releases", "pin", "unpin", "withdraw", "prune", "diff"),
)


def _exit_code(error: MmcacheError) -> int:
    if isinstance(error, MissingFileError):
        return MISSING
    if isinstance(error, CorruptFileError):
        return CORRUPT
    return LOCKED if isinstance(error, LockTimeoutError) else ERROR


def _explain(error: MmcacheError, arguments: argparse.Namespace) -> str:
    """What is wrong, and what to do next where the error does not say it itself."""
    if arguments.command in _WITHOUT_STEP:
        return str(error)
    text = f"{error.path}: there is no such file" if isinstance(error, MissingFileError) and error.path else str(error)
    step = _next_step(error, arguments)
    return f"{text.rstrip('.')}. Next: {step}" if step else text


def _next_step(error: MmcacheError, arguments: argparse.Namespace) -> str:
    file: Any = error.path or getattr(arguments, "file", None) or "FILE"
    rebuilding = arguments.command in ("rebuild", "optimize")
    if isinstance(error, CorruptFileError):
        if "not an mmcache file" in str(error) and _is_source(file):
            return f"mmcache build {_quoted(file)} -o FILE"
        return "mmcache build SOURCE -o FILE" if rebuilding else f"mmcache rebuild {_quoted(file)}"
    if isinstance(error, MissingFileError):
        return f"mmcache build SOURCE -o {_quoted(file)}"
    if isinstance(error, IncompatibleFormatError):
        return f"mmcache rebuild {_quoted(file)}" if "rebuild" not in str(error) else ""
    if isinstance(error, LockTimeoutError):
        return "wait longer with --timeout SECONDS"
    return ""


def _is_source(path: str) -> bool:
    from ..errors import SourceError
    from ..sources.recognize import kind_of

    try:
        return bool(kind_of(path))
    except SourceError:
        return False


def _quoted(path: str | os.PathLike[str]) -> str:
    import shlex

    return shlex.quote(os.fspath(path))
