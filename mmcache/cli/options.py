"""What the commands share before they do anything: exit codes, usage errors, settings, types of arguments.

A setting is the command's own flag, else MMCACHE_<NAME>, else `[tool.mmcache]` in the nearest pyproject.toml, else
the default. Nothing here imports more than argparse needs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ..freshness import Policy

OK: Final = 0
ERROR: Final = 1
USAGE: Final = 2
MISSING: Final = 3
STALE: Final = 4
"""The file may not answer, because it has expired or was invalidated, or a rule of `status --check` is broken."""
CORRUPT: Final = 5
LOCKED: Final = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""What a shell reports for a program that SIGPIPE ended."""

FILE_COMPLETION = {
    "bash": "_shtab_compgen_files",
    "zsh": "_files",
    "tcsh": "f",
    "fish": "(__fish_complete_path (commandline -ct))",
}
"""What shtab calls FILE; spelt out so that building the parser does not need shtab."""


class UsageError(Exception):
    """The command line cannot be meant like this; ends in exit code 2."""


# --- types of arguments ----------------------------------------------------------------------------------------------


def names(text: str) -> tuple[str, ...]:
    """`a,b` as ("a", "b"); a name that has a comma is quoted, as in CSV: `"a,b",c`."""
    found = text.split(",")
    if '"' in text:
        import csv

        found = next(csv.reader([text], skipinitialspace=True), [])
    parts = tuple(part.strip() for part in found)
    if not all(parts):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, found {text!r}")
    return parts


def _number(expected: str, accepts: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")  # which no comparison accepts
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
        return value

    return parse


seconds = _number("seconds, 0 or more", lambda value: 0 <= value < 1e9)
lifetime = _number("seconds above 0, or inf for ever", lambda value: value > 0)
milliseconds = _number("milliseconds, 0 or more", lambda value: value >= 0)
window = _number("seconds from 1 to 86400, a day", lambda value: 1 <= value <= 86_400)
share = _number("a share from 0 to 1", lambda value: 0 <= value <= 1)


def count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(choices)}, found {text!r}")
        return text

    return parse


def file_argument(parser: argparse.ArgumentParser, name: str = "file", text: str = "the cache file") -> None:
    action = parser.add_argument(name, metavar=name.upper(), help=text)
    action.complete = FILE_COMPLETION  # type: ignore[attr-defined]


def add_policy(parser: argparse.ArgumentParser) -> None:
    """--profile and --ttl, as `policy_of` reads them."""
    parser.add_argument(
        "--profile",
        type=one_of(PROFILES),
        metavar="P",
        help=f"how long a file is good for: {', '.join(PROFILES)} (default: staging, an hour)",
    )
    parser.add_argument(
        "--ttl", type=lifetime, metavar="SECONDS", help="the same in seconds, as the workers were told; inf: for ever"
    )


# --- settings --------------------------------------------------------------------------------------------------------

PROFILES: Final = ("development", "staging", "production")
"""Those of `freshness`, spelt out so that building the parser does not need it."""

SETTINGS: Final[dict[str, tuple[Callable[[str], Any], Any]]] = {
    "timeout": (seconds, 600.0),
    "verify": (one_of(("auto", "full", "lazy")), "lazy"),
    "access": (one_of(("mmap", "copy")), "mmap"),
    "profile": (one_of(PROFILES), "staging"),
    "ttl": (lifetime, None),
    "window": (window, 600.0),
    "min_hit_rate": (share, 0.9),
    "max_load_ms": (milliseconds, 10.0),
    "max_corruptions": (count, 1),
    "max_rebuilds": (count, 10),
    "max_lag": (seconds, 300.0),
}
"""Name -> how its text is read, and its default. A new one is a row here and a flag of a command."""


def setting(arguments: argparse.Namespace, name: str) -> Any:
    """The value of a setting for this call. Raises UsageError where it is set to nonsense, naming the place."""
    parse, default = SETTINGS[name]
    if (value := getattr(arguments, name, None)) is not None:
        return value
    variable = f"MMCACHE_{name.upper()}"
    if text := os.environ.get(variable):
        return _parsed(parse, text, variable)
    project, table = _project_settings()
    if name in table:
        return _parsed(parse, str(table[name]), f"{name} of [tool.mmcache] in {project}")
    return default


def policy_of(arguments: argparse.Namespace) -> Policy:
    """What --profile and --ttl, or the settings of these names, say."""
    from ..freshness import policy

    return policy(setting(arguments, "profile"), ttl=setting(arguments, "ttl"))


def _parsed(parse: Callable[[str], Any], text: str, place: str) -> Any:
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{place}: {error}") from None


def _project_settings() -> tuple[str, dict[str, Any]]:
    """The nearest pyproject.toml from here upwards, and what its [tool.mmcache] says."""
    from pathlib import Path

    here = Path.cwd()
    for directory in (here, *here.parents):
        project = directory / "pyproject.toml"
        try:
            text = project.read_text("utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{project}: cannot be read ({error})") from None
        if "mmcache" not in text:
            return str(project), {}
        return str(project), _table(str(project), text)
    return "", {}


def _table(project: str, text: str) -> dict[str, Any]:
    import tomllib

    try:
        table = tomllib.loads(text).get("tool", {}).get("mmcache", {})
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{project}: not valid TOML ({error})") from None
    if not isinstance(table, dict):
        raise UsageError(f"{project}: [tool.mmcache] must be a table")
    unknown = sorted(table.keys() - SETTINGS.keys())
    if unknown:
        raise UsageError(f"{project}: unknown in [tool.mmcache]: {', '.join(unknown)}; known: {', '.join(SETTINGS)}")
    return table
