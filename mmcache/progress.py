"""How far a build is, on stderr: a bar by rich where that is installed, or one line that is written over.

On a terminal alone, once the work takes long enough to wonder. NO_COLOR means no escape sequence at all.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TextIO, cast

from .text import bytes_of, number, printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "Shown", "Step", "check_shown", "console_of", "shown", "unseen", "wants_colour"]

_SHOW_AFTER: Final = 0.3
"""Seconds of work before progress is worth a line on a terminal."""

_LINE_EVERY: Final = 2.0
"""Seconds between lines that stay."""

Progress = Callable[[str, int, int | None], None]
"""progress(stage, done, total): stage is a collection's name (done counts records) or "write" (bytes)."""

Shown = bool | Literal["lines"] | Progress | None
"""What `progress=` takes: True, on a terminal; "lines", lines of text wherever stderr goes; or a function."""


class Step(Protocol):
    """progress(stage, done, total), as builds call it; stage "write" and "verify" count bytes."""

    def __call__(self, stage: str, done: int, total: int | None, /) -> None: ...


def check_shown(progress: object) -> None:
    """Raises TypeError for what `progress=` does not take."""
    if progress is not None and not isinstance(progress, bool) and progress != "lines" and not callable(progress):
        raise TypeError(f"progress must be True, 'lines', or a function(stage, done, total), not {progress!r:.80}")


@contextmanager
def shown(progress: Shown) -> Iterator[Step | None]:
    """Something to call as work goes on; None where nothing is to be shown."""
    check_shown(progress)
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if callable(progress):
        yield progress
    elif not progress or sys.stderr is None or not (is_terminal or progress == "lines"):
        yield None
    else:
        meter: _Lines | _Line | _Bars
        if progress == "lines":
            meter = _Lines(sys.stderr)
        else:  # a moving bar is made of escape sequences
            console = console_of(sys.stderr) if wants_colour() else None
            meter = _Line(sys.stderr) if console is None else _Bars(console)
        try:
            yield meter
        finally:
            meter.close()


def unseen(_stage: str, _done: int, _total: int | None, /) -> None:
    """Progress that is not shown."""


def wants_colour() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console_of(file: TextIO) -> Console | None:
    """A console of rich; None without rich, or on a terminal that can do nothing."""
    from importlib.util import find_spec

    if find_spec("rich") is None or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console

    system = "auto" if wants_colour() else None
    return Console(file=file, highlight=False, markup=False, emoji=False, color_system=cast("Any", system))


def _amount(stage: str, done: int) -> str:
    return bytes_of(done) if stage in ("write", "verify") else number(done)


class _Lines:
    """A line every now and then, and one for the end of each stage."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._next = time.monotonic() + _LINE_EVERY
        self._last: tuple[str, int, int | None] | None = None

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if self._last is not None and self._last[0] != stage:
            self.close()
        self._last = stage, done, total
        if time.monotonic() >= self._next:
            self.close()

    def close(self) -> None:
        if self._last is not None:
            stage, done, total = self._last
            of = f" of {_amount(stage, total)}" if total else ""
            print(f"mmcache: {printable(stage)}: {_amount(stage, done)}{of}", file=self._file, flush=True)
            self._last = None
            self._next = time.monotonic() + _LINE_EVERY


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
