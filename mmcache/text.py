"""How sizes, times and text of unknown origin are written for people."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["ago", "bytes_of", "html_of", "number", "open_files", "plural", "printable", "short", "source_path", "span"]


def number(value: int) -> str:
    return f"{value:,}"


def plural(value: int, noun: str) -> str:
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def bytes_of(size: int) -> str:
    """8,294,400 as "8.3 MB": decimal units, two digits or more."""
    if size < 1000:
        return plural(size, "byte")
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def span(seconds: float) -> str:
    """A measured time: "4.21 µs", "13.4 ms", "125 s"."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        value = seconds * factor
        if value >= 1:
            return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def ago(seconds: float) -> str:
    """An age: "5 minutes ago"."""
    if seconds < 0:
        return "in the future, by this clock"
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or (unit == "day" and seconds >= length):
            return f"{plural(int(seconds // length), unit)} ago"
    return f"{plural(int(seconds), 'second')} ago"


def printable(text: str) -> str:
    """Text that cannot move a cursor, ring a bell or turn the direction of writing."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def source_path(spec: Mapping[str, object]) -> str:
    """Where a source is, as its spec has it: the path, or the bytes of one that is not UTF-8; else its URL or function;
    of several each."""
    parts = spec.get("sources")
    if isinstance(parts, (list, tuple)):
        return ", ".join(f"{printable(str(part.get('kind')))} {source_path(part)}" for part in parts)
    path = next((spec[name] for name in ("path", "url", "load") if name in spec), None)
    return printable(
        path.decode(sys.getfilesystemencoding(), "surrogateescape") if isinstance(path, bytes) else str(path)
    )


def short(text: str, limit: int) -> str:
    text = printable(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def open_files(number: int | None) -> str:
    """What to do about an error number, if it says that there are too many open files; else ""."""
    if number == errno.ENFILE:
        return ": the whole system has too many open files (fs.file-max): raise its limit, or end some processes"
    if number != errno.EMFILE:
        return ""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f": this process has too many open files (ulimit -n is {limit}): raise the limit, or keep fewer caches open"


def html_of(title: str, facts: Mapping[str, str], header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """What a notebook shows: a title, a line of facts, and a table. Text that is given stays text."""
    from html import escape  # of a notebook alone

    told = ", ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in facts.items())
    lines = [f"<p><code>{escape(title)}</code><br>{told}</p>"]
    if header:
        lines += ["<table>", _row("th", header), *(_row("td", row) for row in rows), "</table>"]
    return "\n".join(lines)


def _row(cell: str, texts: Iterable[str]) -> str:
    from html import escape

    return "<tr>" + "".join(f"<{cell}>{escape(text)}</{cell}>" for text in texts) + "</tr>"
