"""`mmcache init`."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from ..text import number, plural, printable
from .options import FILE_COMPLETION, OK, UsageError, file_argument
from .output import Output

if TYPE_CHECKING:
    from .survey import Survey

__all__ = ["HELP", "add_arguments", "run"]

HELP: Final = """\
Look at a database or file, and write a TOML file for `mmcache build --config`: every table with its key, the indexes
that are worth it, embeddings, columns of JSON. Comments in it say what was chosen, and why.

A start, to be read and changed: it comes from the first 1,000 rows of each table. Nothing is built, and nothing is
written to the source. A file that is there is not overwritten.

  mmcache init shop.db                     writes cache.toml here
  mmcache init shop.db -o -                prints it
  mmcache init postgresql://app@db/shop    looks at a server
  mmcache build --config cache.toml        makes shop.mmc
"""

_WIDTH: Final = 110
_MAX_CALLED: Final = 200
"""Bytes of a name that is made of a longer one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser, "source", "a SQLite database, the URL of another one, or a file that `mmcache build` takes")
    out = parser.add_argument(
        "-o", "--output", metavar="TOML", default="cache.toml", help="the file to write (default: cache.toml); - prints"
    )
    out.complete = FILE_COMPLETION  # type: ignore[attr-defined]


def run(arguments: argparse.Namespace, output: Output) -> int:
    target: str = arguments.output
    surveys, left_out = _surveys(arguments.source)
    shown = _shown(arguments.source)
    if not surveys:
        raise UsageError(f"{shown} has no tables")
    if shown != arguments.source:
        left_out.append("the password; give the whole URL as SOURCE of `mmcache build`, which wins")
    text = "\n".join(_document(shown, target, surveys, left_out))
    if target == "-":
        print(text)
        return OK
    _write(target, text)
    if output.json:
        output.document({"path": target, "collections": [survey.name for survey in surveys if survey.is_on]})
        return OK
    chosen = plural(sum(survey.is_on for survey in surveys), "collection")
    output.say(f"{printable(target)}: {chosen}; read it, change it, then: mmcache build --config {printable(target)}")
    return OK


def _shown(where: str) -> str:
    """A URL without its password, which is not to be written down."""
    if "://" not in where:
        return where
    try:
        from ..sources.sql_urls import without_secrets
    except ImportError:
        return where.partition("://")[0] + "://..."
    return without_secrets(where)


def _write(target: str, text: str) -> None:
    try:
        with open(target, "x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError:
        raise UsageError(
            f"{target} is there: choose another name with -o, print it with -o -, or remove it first"
        ) from None
    except OSError as error:
        raise UsageError(f"-o {target}: cannot be written ({error.strerror})") from None


def _surveys(where: str) -> tuple[list[Survey], list[str]]:
    from .wanted import kind_at, path_of_database, stem_of

    kind = kind_at(where)
    if kind == "sqlite":
        from .survey_sqlite import survey_database

        return survey_database(path_of_database(where))
    if kind == "sqlalchemy":
        try:
            from .survey_sql import survey_url
        except ImportError as error:
            raise UsageError(f"{_shown(where)} needs a package that is not installed: {error}") from None

        return survey_url(where)
    from .survey_files import survey_file

    return [survey_file(where, stem_of(where) or "records", kind)], []


# --- the document


def _document(where: str, target: str, surveys: Sequence[Survey], left_out: Sequence[str]) -> Iterator[str]:
    from .wanted import stem_of

    stem = stem_of(where) or "cache"
    yield f"# From `mmcache init {printable(where)}`, which looked at it and chose. Change what is wrong, then:"
    yield f"#     mmcache build --config {'cache.toml' if target == '-' else printable(os.path.basename(target))}"
    yield "# Paths are relative to this file. A collection also takes: query, columns, on_invalid, on_duplicate, ..."
    for one in left_out:
        yield f"# Left out: {printable(one)}."
    yield ""
    yield f"output = {_toml(f'{stem}.mmc')}"
    yield f"source = {_toml(_seen_from(target, where))}"
    names = {survey.name for survey in surveys}
    for survey in surveys:
        yield ""
        yield from _collection(survey, _called(survey.name, names))


def _seen_from(target: str, where: str) -> str:
    if "://" in where or where == "-" or target == "-" or os.path.isabs(where):
        return where
    return os.path.relpath(where, os.path.dirname(target) or ".")


def _called(table: str, taken: set[str]) -> str:
    """What a collection of this table is called: as the table, unless that can be no name. taken: gets that name."""
    from .survey import can_be_named

    if can_be_named(table):
        return table
    plain = "".join(letter if letter.isprintable() else "_" for letter in table)
    plain = plain.encode()[:_MAX_CALLED].decode("utf-8", "ignore") or "table"
    name = next(name for i in count(1) if (name := plain if i == 1 else f"{plain}_{i}") not in taken)
    taken.add(name)
    return name


def _collection(survey: Survey, name: str) -> Iterator[str]:
    from .survey import choices

    size = "rows not counted, that takes long" if survey.size is None else plural(survey.size, "row")
    off = "" if survey.is_on else "# "
    if survey.is_view:
        yield from _comment("A view, which has rows of tables once more. To have it, take off the first signs:")
    elif off:
        yield from _comment("Name a key, and take off the first signs:")
    yield f"{off}[collections.{_bare(name)}]  # {size}"
    if name != survey.name:
        yield f"{off}table = {_toml(survey.name)}"
    key: Any = list(survey.key or ())
    yield f"{off}key = {_toml(key[0] if len(key) == 1 else key) if key else '...'}  # {printable(survey.reason)}"
    if not survey.rows:
        yield from _comment("no rows to look at: index, json and embedding are yours to name")
    for choice in choices(survey):
        yield from _comment(choice.reason, off)
        yield f"{off}{choice.field} = {_toml(choice.value)}"
    if survey.size is not None and survey.size > len(survey.rows) > 0:
        yield from _comment(f"from the first {number(len(survey.rows))} rows", off)


def _comment(text: str, off: str = "") -> Iterator[str]:
    for line in textwrap.wrap(printable(text), _WIDTH, break_long_words=False, break_on_hyphens=False):
        yield f"{off}# {line}"


def _bare(name: str) -> str:
    is_bare = name.isascii() and name.replace("_", "a").replace("-", "a").isalnum()
    return name if is_bare else _toml(name)


def _toml(value: Any) -> str:
    """Text, a number, a list of these, or a mapping."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_bare(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        import json

        # A basic string of TOML escapes as JSON does, but for DEL, which it forbids.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
