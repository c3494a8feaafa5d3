"""What sends a process to the source, and what keeps the file as it is: the operator's levers, the environment, and the
share of processes that a roll-out lets use the file."""

from __future__ import annotations

import os

from .errors import UnusableFileError
from .forks import on_fork
from .lines import Lines
from .logs import WARNING
from .options import Options, is_disabled
from .sharing.events import Event, Kind
from .sharing.head import Head
from .sharing.levers import BY_ENVIRONMENT, LeverFiles

__all__ = ["Switches"]


class Switches:
    """held, resumed, disabled: why, or "". As last read, which no read of a record does.

    A cache without a source goes on with the file: only MMCACHE_DISABLE disables it.
    """

    def __init__(self, path: str, options: Options, lines: Lines, *, has_source: bool) -> None:
        def refused(error: UnusableFileError) -> None:
            lines.note(WARNING, "lever_refused", "%s", str(error))

        self.held = self.resumed = ""
        self.disabled = ""
        self._rollout = options.rollout
        self._has_source = has_source
        self._files = LeverFiles(path, refused)

    def read(self) -> bool:
        """Whether reads are sent to the source. Three `stat`s."""
        self.held, disabled, self.resumed = self._files.read()
        if is_disabled():
            disabled = BY_ENVIRONMENT
        elif not self._has_source:
            disabled = ""
        elif not disabled and _drawn.share >= self._rollout:
            disabled = f"this process is not among the {self._rollout:.4g} of all that use the file (rollout)"
        self.disabled = disabled
        return bool(disabled)

    def heard(self, event: Event, _: Head) -> None:
        """A listener of `Hearing`."""
        if event.kind is Kind.LEVER:
            self.read()


class _Draw:
    """share: from 0 to below 1, the same for as long as a process lives. From the system, since a fork in C leaves the
    state of `random` as it was."""

    def __init__(self) -> None:
        self.begin_process()
        on_fork(self)

    def begin_process(self) -> None:
        self.share = int.from_bytes(os.urandom(6), "little") / 2**48


_drawn = _Draw()
