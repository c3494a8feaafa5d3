"""The facts of one process: what it knows itself, and what page, file and counters tell it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from . import wallclock
from .counting import Counting
from .errors import ClosedError
from .filetier import FileTier
from .lines import Lines
from .remote.keeper import Keeper
from .sharing.decide import Facts, Rules, SourceFacts
from .sharing.hearing import Hearing
from .switches import Switches

__all__ = ["Known", "closed"]


@dataclass(slots=True)
class Known:
    """What one process knows besides the page and the file.

    asked: what the source said last; asked_at: when that question began. is_polled: whether a read has tried to open or
    build the first file, so that polls do from now on. is_closed, is_ended: `close` has begun, and has done all.
    attaching: threads that open the first file. lines: for the log and the callback. keeper: of a cache that follows
    releases.
    """

    rules: Rules
    lines: Lines
    switches: Switches
    asked: SourceFacts = field(default_factory=SourceFacts)
    asked_at: float = 0.0
    is_polled: bool = False
    is_closed: bool = False
    is_ended: bool = False
    attaching: set[int] = field(default_factory=set)
    keeper: Keeper | None = None

    def facts(self, hearing: Hearing, files: FileTier, counting: Counting, *, building: bool) -> Facts:
        """Of now. The clocks are read here, once for each decision."""
        monotonic = time.monotonic()
        has_file = files.snapshot is not None and hearing.page is not None
        return Facts(
            now=wallclock.now(),
            monotonic=monotonic,
            said=hearing.said,
            baseline=hearing.baseline if has_file else None,
            trouble=files.trouble,
            page=hearing.page is not None and hearing.page.shared,
            foreign=hearing.foreign,
            distrusted=has_file and hearing.distrusted,
            panicked=has_file and hearing.panicked,
            source=self.asked,
            failure=hearing.failure(monotonic),
            repair=files.repair,
            slow=monotonic < counting.slow_until,
            building=building,
            disabled=self.switches.disabled,
            held=self.switches.held,
            resumed=self.switches.resumed,
            conflict=files.conflict,
            taken=hearing.taken,
            lacking=files.lacking,
        )


def closed(path: str) -> ClosedError:
    """For what is asked of a cache after its end, before anything is done."""
    return ClosedError("the cache was closed: open it again with mmcache.open(path, source)", path=path)
