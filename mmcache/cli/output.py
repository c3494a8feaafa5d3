"""Where a command's words go: data to stdout, everything else to stderr.

rich draws tables and progress if it is installed and a person is looking (a terminal); otherwise the same words are
plain text. NO_COLOR means no escape sequence at all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from ..progress import Step, console_of, shown, unseen, wants_colour
from ..text import printable, short

__all__ = ["Output", "Step"]


class Output:
    """json: stdout gets JSON and nothing else. quiet: only data and errors. verbose: tracebacks and the log."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self.colour = wants_colour()

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
        if self.is_terminal and (console := console_of(sys.stdout)) is not None:
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
        with shown(not self.quiet) as step:
            yield step or unseen


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]


def _ascii_only(file: TextIO | None) -> bool:
    return not (getattr(file, "encoding", None) or "ascii").lower().startswith("utf")


def _encodable(text: str, file: TextIO | None) -> str:
    """Text in what the stream can carry, the rest as escapes: a terminal set to ASCII must not end a command.

    A stream that is closed is None, and print() then does nothing.
    """
    encoding = getattr(file, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)
