"""What a source is, by its content first and its name second.

A SQLite database is asked by SQLite: to open and close its file otherwise would drop the locks of this process's
connections to it. What cannot be read raises a SourceError that says what it is and the way out.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
from collections.abc import Mapping

from ..errors import SourceError
from .objects import Objects, is_object_url
from .parts import absolute, is_pattern, parts_of
from .streams import compression_of, decompressed, encoding_of, is_pipe, open_file
from .unreadable import foreign_directory, foreign_file, foreign_text

__all__ = ["KINDS", "NAMES", "content_of", "is_url", "kind_of"]

_HEAD = 1 << 16
_SQLITE_PAGE = 512
_URL = re.compile(r"([a-z][a-z0-9.]*(?:\+[a-z0-9_]+)?)://", re.IGNORECASE)
_STREAMED = ("csv", "json", "jsonl", "arrow")
_SINGLE = ("sqlite", "duckdb", "npy")
"""Of which several files are no one source."""

KINDS: Mapping[str, tuple[str, tuple[str, ...], str | None]] = {
    "sqlite": ("mmcache.sources.sqlite:SQLiteSource", (".db", ".sqlite", ".sqlite3", ".db3"), None),
    "jsonl": ("mmcache.sources.jsonfiles:JSONLinesSource", (".jsonl", ".ndjson"), None),
    "json": ("mmcache.sources.jsonfiles:JSONSource", (".json",), None),
    "csv": ("mmcache.sources.csvfile:CSVSource", (".csv", ".tsv", ".tab", ".psv"), None),
    "parquet": ("mmcache.sources.arrow:ParquetSource", (".parquet", ".parq", ".pq"), "arrow"),
    "arrow": ("mmcache.sources.arrow:ArrowSource", (".arrow", ".arrows", ".feather", ".ipc"), "arrow"),
    "duckdb": ("mmcache.sources.duckdbfile:DuckDBSource", (".duckdb", ".ddb"), "duckdb"),
    "npy": ("", (".npy",), None),
}
"""Kind -> its class, what its files' names end with, and the extra that it needs."""

NAMES = {
    "sqlite": "a SQLite database",
    "jsonl": "JSON lines",
    "json": "JSON",
    "csv": "CSV",
    "parquet": "a Parquet file",
    "arrow": "an Arrow file",
    "duckdb": "a DuckDB database",
    "npy": "a .npy file",
}
"""Kind -> what it is in a message."""

_FOREIGN = ", which is no source here"

_TEXTS = ("csv", "json", "jsonl")
_CONTROLS = b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x0e\x0f\x10"
"""Bytes that text has only where its name says that it is some."""

_READABLE = (
    "a SQLite or DuckDB database, CSV, TSV, JSON, JSON lines, Parquet, Arrow or Feather; text also as .gz, .bz2, .xz, "
    ".zst"
)


def is_url(where: str) -> bool:
    """Whether it is a URL and not a path."""
    return _URL.match(where) is not None


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind of source at a path, a pattern, a directory, "-", or a URL of an object store: a key of `KINDS`. Raises
    SourceError.

    A file that is not there is of the kind that its name says, if it does."""
    if is_object_url(os.fsdecode(os.fspath(path))):
        return _kind_of_objects(os.fsdecode(os.fspath(path)))
    path = absolute(os.fsdecode(os.fspath(path)))
    if not is_pipe(path) and (is_pattern(path) or os.path.isdir(path)):
        return _kind_of_several(path)
    return _kind_of_file(path)


def content_of(path: str, kind: str) -> str:
    """What a file that cannot be read as this kind holds instead, as the end of a message; "" where that is unknown."""
    if is_pipe(path) or not os.path.isfile(path):
        return ""
    try:
        found = kind_of(path)
    except SourceError as error:
        return f"; {error.message}" if _FOREIGN in error.message else ""
    reader = KINDS[found][0].partition(":")[2]
    return "" if found == kind else f"; this is {NAMES[found]}" + f", which {reader} reads" * bool(reader)


def _kind_of_several(path: str) -> str:
    """That of the files that the pattern or directory has; the first one tells."""
    if os.path.isdir(path):
        names = frozenset(os.listdir(path))
        found = foreign_directory(names)
        if found is not None:
            raise _refusal(found, path)
        held = [kind for kind, (_, suffixes, _) in KINDS.items() if kind not in _SINGLE and _holds(path, suffixes)]
        if len(held) > 1:
            kinds = " and ".join(suffix for kind in held for suffix in KINDS[kind][1][:1])
            raise SourceError(
                f"this directory holds files of several kinds, {kinds}; name those of one by a pattern: "
                f"{os.path.basename(path)}/**/*{KINDS[held[0]][1][0]}",
                path=path,
            )
        if held:
            return held[0]
        shown = ", ".join(sorted(names)[:5]) or "nothing"
        raise SourceError(
            f"this is a directory without files of Parquet, Arrow, CSV or JSON; it holds: {shown}; give a file, or a "
            "pattern",
            path=path,
        )
    parts = parts_of(path, ())
    kind = _kind_of_file(parts[0].path)
    if len(parts) > 1 and kind in _SINGLE:
        raise SourceError(f"{len(parts)} files match, and the first is {NAMES[kind]}: give one path", path=path)
    return kind


def _kind_of_objects(url: str) -> str:
    """That of the first object, by its name, or else by its content; of several, all names must say the same."""
    objects = Objects(url)
    found = foreign_directory(objects.steps())
    if found is not None:
        raise _refusal(found, url)
    parts = objects.parts(())
    named = {by_name[0] for part in parts if (by_name := _by_name(part.path)) is not None}
    if len(named) > 1:
        kinds = " and ".join(sorted(KINDS[kind][1][0] for kind in named))
        raise SourceError(f"objects of several kinds, {kinds}; name those of one by a pattern", path=url)
    if named:
        (kind,) = named
    else:
        try:
            with objects.open(parts[0]) as file:
                kind = _kind_of_open(file, parts[0].path, None)
        except OSError as error:
            raise SourceError(f"cannot read the object: {error}", path=parts[0].path) from error
    if kind in _SINGLE:
        raise SourceError(f"this is {NAMES[kind]}, which is not read from an object store; download it", path=url)
    return kind


def _holds(path: str, suffixes: tuple[str, ...]) -> bool:
    try:
        return bool(parts_of(path, suffixes))
    except SourceError:
        return False


def _kind_of_file(path: str) -> str:
    by_name = _by_name(path)
    if not is_pipe(path) and (kind := _by_status(path, by_name)) is not None:
        return kind
    try:
        with open_file(path) as file:
            return _kind_of_open(file, path, by_name)
    except OSError as error:
        raise SourceError(f"cannot read the file: {error}", path=path) from error


def _kind_of_open(file: io.BufferedReader, path: str, by_name: tuple[str, bool] | None) -> str:
    """By what it begins with. Raises OSError and SourceError."""
    inner = b""
    head = file.read(_HEAD)
    if (compressed := compression_of(head)) is not None:
        inner = decompressed(file).read(_HEAD)
    if compressed is None:
        return _told(head, path, by_name)
    if not inner:
        raise SourceError(
            f"the file is compressed as {compressed} and holds nothing; check what was to write it", path=path
        )
    kind = _told(inner, path, by_name)
    if kind not in _STREAMED or (kind == "arrow" and inner.startswith(b"ARROW1")):
        raise SourceError(
            f"this is {NAMES[kind]}, compressed as {compressed}, which cannot be read in place; decompress it first",
            path=path,
        )
    return kind


def _by_status(path: str, by_name: tuple[str, bool] | None) -> str | None:
    """The kind, where a file need not be read to know it. Raises SourceError for what can be no source."""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        if by_name is not None:
            return by_name[0]
        raise SourceError("there is no file at this path; check the path", path=path) from error
    except OSError as error:
        raise SourceError(str(error), path=path) from error
    if not stat.S_ISREG(found.st_mode):
        raise SourceError("this is no regular file; give a file, a directory, or - for standard input", path=path)
    if found.st_size == 0:
        raise SourceError("the file is empty, which is no source of any kind; check what was to write it", path=path)
    return "sqlite" if found.st_size % _SQLITE_PAGE == 0 and _is_sqlite(path) else None


def _by_name(path: str) -> tuple[str, bool] | None:
    """The kind that the name says, and whether it says it of something compressed."""
    name = path.lower()
    stem = re.sub(r"\.(gz|bz2|xz|zst|zstd)$", "", name)
    for kind, (_, suffixes, _) in KINDS.items():
        if stem.endswith(suffixes):
            return kind, stem != name
    return None


def _is_sqlite(path: str) -> bool:
    """DuckDB locks what SQLite does, so a file that is locked is looked at without; by SQLite still: see above."""
    return any(_answers(path, options) for options in ("", "&immutable=1"))


def _answers(path: str, options: str) -> bool:
    import sqlite3
    from urllib.parse import quote

    try:
        connection = sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro{options}", uri=True, timeout=0)
    except sqlite3.Error:
        return False
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        none = ("SQLITE_NOTADB", "SQLITE_CANTOPEN", "SQLITE_BUSY", "")
        return getattr(error, "sqlite_errorname", "") not in none
    finally:
        connection.close()
    return True


def _told(head: bytes, path: str, by_name: tuple[str, bool] | None) -> str:
    """The kind of what begins so. Raises SourceError."""
    kind = _binary(head)
    if kind is not None:
        return kind
    found = foreign_file(head, _names_in(path) if head.startswith(b"PK\x03\x04") else ())
    if found is not None:
        raise _refusal(found, path)
    text = _text(head)
    if text is None and by_name is not None and by_name[0] in _TEXTS:
        text = _text_with_controls(head)
    if text is None:
        raise SourceError(_unknown(head, path, by_name), path=path)
    return _of_text(text, path, by_name)


def _binary(head: bytes) -> str | None:
    if head.startswith(b"SQLite format 3\0"):
        return "sqlite"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1") or (
        head.startswith(b"\xff\xff\xff\xff") and 0 < int.from_bytes(head[4:8], "little") < 1 << 28
    ):
        return "arrow"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    return "duckdb" if head[8:12] == b"DUCK" else None


def _text(head: bytes) -> str | None:
    """As text, whatever it is encoded by; None for bytes that are none."""
    encoding = encoding_of(head)
    if encoding is not None:
        return head.decode(encoding, "replace")
    if any(byte in head for byte in _CONTROLS):
        return None
    return head.decode("utf-8", "replace")


def _text_with_controls(head: bytes) -> str | None:
    if 3 * sum(map(head.count, _CONTROLS)) > len(head):
        return None
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(head)  # whose last character may be cut
    except UnicodeDecodeError:
        return None


def _of_text(text: str, path: str, by_name: tuple[str, bool] | None) -> str:
    named = None if by_name is None else by_name[0]
    start = text.lstrip("\ufeff \t\r\n")
    if not start:
        what = "holds white space only" if text else "is empty"
        raise SourceError(f"the file {what}, which is no source of any kind", path=path)
    if named == "csv":
        return "csv"
    if start[0] == "[":  # of objects, whatever the name; lines that are arrays are no records, and named as lines
        return "json" if named != "jsonl" or start[1:].lstrip()[:1] in ("", "{", "]") else "jsonl"
    if start[0] == "{":
        return _lines_or_values(start, named)
    found = foreign_text(text)
    if found is not None:
        raise _refusal(found, path)
    if named in ("json", "jsonl"):
        return named
    first = start.partition("\n")[0]
    if any(delimiter in first for delimiter in ",\t;|"):
        return "csv"
    raise SourceError(
        f"this is text, and neither a table nor JSON: it begins with {first.strip()[:60]!r}; expected {_READABLE}",
        path=path,
    )


def _lines_or_values(start: str, named: str | None) -> str:
    """Whether objects stand one a line, or, as jq prints them, over several lines each."""
    import json

    line, end, _ = start.partition("\n")
    try:
        json.loads(line)
    except RecursionError:
        return "json" if named == "json" else "jsonl"
    except ValueError:
        # Case: a first line that is longer than what was read.
        return "jsonl" if not end and named != "json" else "jsonl" if named == "jsonl" else "json"
    return "jsonl"


def _names_in(path: str) -> tuple[str, ...]:
    import zipfile

    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            return tuple(archive.namelist()[:10_000])
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return ()


def _unknown(head: bytes, path: str, by_name: tuple[str, bool] | None) -> str:
    named = None if by_name is None else by_name[0]
    if not any(head):
        return "the file holds zeros only, as after a crash or an unfinished download; put it in place again"
    if named == "sqlite" or (
        named is None and len(set(head[:4096])) > 200 and os.path.exists(path) and os.path.getsize(path) % 512 == 0
    ):
        return (
            "this is no SQLite database that can be read: it does not begin as one; it is encrypted (SQLCipher, SEE), "
            "or of another program; decrypt it to a copy, as by sqlcipher_export(), or export its table as CSV"
        )
    said = "" if named is None else f", though its name says {NAMES[named]}"
    if not any(head[1:64:2]) or not any(head[:64:2]):
        said += ", unless it is UTF-16 without its byte order mark: save it as UTF-8"
    return f"the content is of no kind that is known here{said}: it begins with {head[:8]!r}; expected {_READABLE}"


def _refusal(found: tuple[str, str], path: str) -> SourceError:
    what, way = found
    return SourceError(f"this is {what}{_FOREIGN}; {way}", path=path)
