"""Where a command's words go: data to stdout, everything else to stderr.

rich draws tables and progress if it is installed and a person is looking (a terminal); otherwise the same words are
plain text. NO_COLOR means no escape sequence at all.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from ..words import bytes_of, number, printable, short

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Output", "Step"]

_SHOW_AFTER = 0.3
"""Seconds of work before progress is worth a line."""


class Step(Protocol):
    """progress(stage, done, total), as builds call it; stage "write" and "verify" count bytes."""

    def __call__(self, stage: str, done: int, total: int | None, /) -> None: ...


class Output:
    """json: stdout gets JSON and nothing else. quiet: only data and errors. verbose: tracebacks and the log."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self.colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @property
    def is_terminal(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()

    # --- stdout

    def document(self, value: Any) -> None:
        """One JSON document; indented for a person."""
        from .jsontext import dumps

        print(dumps(value, indent=2 if self.is_terminal else None, ascii_only=_ascii_only(sys.stdout)))

    def row(self, value: Any) -> None:
        """One JSON document on a line of its own."""
        from .jsontext import dumps

        print(dumps(value, ascii_only=_ascii_only(sys.stdout)))

    def text(self, text: str) -> None:
        """A line of data that is not JSON: as it is, but on a terminal without what would command it."""
        print(_encodable(printable(text) if self.is_terminal else text, sys.stdout))

    def say(self, text: str = "") -> None:
        """A result for people, on stdout."""
        if not self.json and not self.quiet:
            print(_encodable(text, sys.stdout))

    def heading(self, text: str) -> None:
        self.say(f"\x1b[1m{text}\x1b[0m" if self.is_terminal and self.colour else text)

    def pairs(self, rows: Sequence[tuple[str, str]], *, indent: int = 2) -> None:
        """Names and values, aligned."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.say(f"{' ' * indent}{name:<{width}}  {value}".rstrip())

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
        """right: the columns, from 0, whose text is aligned to the right."""
        if self.json or self.quiet:
            return
        if self.is_terminal and (console := self._console(sys.stdout)) is not None:
            from rich import box
            from rich.table import Table
            from rich.text import Text

            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
            for i, column in enumerate(columns):
                justify: Literal["left", "right"] = "right" if i in right else "left"
                table.add_column(column, justify=justify, no_wrap=True, overflow="ellipsis")
            # On a narrow terminal the last column gives way.
            room = max(12, console.width - sum(_widths(columns, rows)[:-1]) - 3 * len(columns))
            rows = [[*cells[:-1], short(cells[-1], room)] for cells in rows]
            for cells in rows:
                table.add_row(*map(Text, cells))
            console.print(table)
            return
        widths = _widths(columns, rows)
        for cells in (columns, ["-" * width for width in widths], *rows):
            aligned = (
                cell.rjust(width) if i in right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            self.say("  " + "  ".join(aligned).rstrip())

    def change(self, path: str, word: str, *, is_changed: bool, done: str, unchanged: str) -> None:
        """What moving a lever did. word: for it in JSON. done, unchanged: what a person reads behind the path."""
        if self.json:
            self.document({"path": path, word: is_changed})
        elif is_changed:
            self.say(f"{printable(path)}: {done}")
        else:
            self.note(f"{path}: {unchanged}")

    # --- stderr

    def note(self, text: str) -> None:
        if not self.quiet:
            self.error(text)

    def error(self, text: str) -> None:
        """One line, whatever is in the text."""
        if sys.stderr is not None:
            print(_encodable(printable(" ".join(text.split("\n"))), sys.stderr), file=sys.stderr)

    @contextmanager
    def progress(self) -> Iterator[Step]:
        """Something to call as work goes on; shown on a terminal once the work takes long enough to wonder."""
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            yield _unseen
            return
        console = self._console(sys.stderr) if self.colour else None  # a moving bar is made of escape sequences
        meter = _Line(sys.stderr) if console is None else _Bars(console)
        try:
            yield meter
        finally:
            meter.close()

    def _console(self, file: TextIO) -> Console | None:
        from importlib.util import find_spec

        if find_spec("rich") is None or os.environ.get("TERM") == "dumb":
            return None
        from rich.console import Console

        system = "auto" if self.colour else None
        return Console(file=file, highlight=False, markup=False, emoji=False, color_system=system)  # type: ignore[arg-type]


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]


def _unseen(_stage: str, _done: int, _total: int | None, /) -> None:
    """Progress that is not shown."""


def _ascii_only(file: TextIO | None) -> bool:
    return not (getattr(file, "encoding", None) or "ascii").lower().startswith("utf")


def _encodable(text: str, file: TextIO | None) -> str:
    """Text in what the stream can carry, the rest as escapes: a terminal set to ASCII must not end a command.

    A stream that is closed is None, and print() then does nothing.
    """
    encoding = getattr(file, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _amount(stage: str, done: int) -> str:
    return bytes_of(done) if stage in ("write", "verify") else number(done)


class _Line:
    """Progress without rich: one line that is written over."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._next = time.monotonic() + _SHOW_AFTER
        self._shown = False

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.1
            self._shown = True
            of = f" of {_amount(stage, total)}" if total else ""
            print(f"\r{printable(stage)}: {_amount(stage, done)}{of}".ljust(60), end="", file=self._file, flush=True)

    def close(self) -> None:
        if self._shown:
            print("\r" + " " * 60 + "\r", end="", file=self._file, flush=True)


class _Bars:
    """Progress by rich: a bar a stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin = time.monotonic() + _SHOW_AFTER
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if self._bars is None:
            if time.monotonic() < self._begin:
                return
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        of = f" of {_amount(stage, total)}" if total else ""
        amount = f"{_amount(stage, done)}{of}"
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(printable(stage), total=total, amount=amount)
        self._bars.update(self._tasks[stage], completed=done, total=total, amount=amount)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
