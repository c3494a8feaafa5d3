"""What can be said about a cache from outside: file, control page, builder, and all workers that have it open."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..additive import covers
from ..errors import UnusableFileError
from ..format.header import HEADER_SIZE, Header, parse_header
from ..format.layout import Layout, left_out_of, validate
from ..format.leftout import LeftOut
from ..freshness import Freshness, Policy
from ..sources.base import Source
from ..storage import shared
from ..storage.fs import ReadFile
from ..storage.names import lock_name
from .alerts import Alert, Rules, broken
from .asking import ask
from .attach import open_existing
from .counters import read_fleet
from .decide import Decision, Facts, Rules as DecisionRules, Trouble, decide
from .fleet import Fleet, State
from .following import Following, following_now
from .head import Builder, Failure
from .hearing import Hearing
from .levers import BY_ENVIRONMENT, read_levers
from .page import MovedError, Page, private_page
from .widening import promised_by, still_there

__all__ = ["Status", "check", "status_of"]


@dataclass(frozen=True, slots=True)
class Status:
    """One look at a cache.

    state: "fresh", "stale", "expired" or "invalidated"; "slow" while a circuit is open; or why there is no file to be
    used: "missing", "corrupt", "incompatible", "unreadable", "untrusted"; or "disabled"; or "held", by a rollback.
    why: a sentence. header: of the file; None where it cannot be read. freshness: by the clock alone. revalidated:
    whether a rebuild found it unchanged. dirty: ids that the source answers, as far as they can be told apart; -1 for
    more than can. control: None where workers share a control page, else why they cannot. building: whether a process
    holds the build lock, and builder: who said so. failure: of the last build, if it failed. fleet: the workers, and
    what they counted. left_out: of each collection of which the file leaves rows out, how many, and the first ones.
    following: the releases that it follows; None for a file that follows none.

    >>> status = cache.status()
    >>> status.state, status.why, status.generation, status.dirty, status.building
    ('fresh', '...', 1, 0, False)
    """

    path: str
    state: State
    why: str
    header: Header | None
    freshness: Freshness | None
    revalidated: bool
    dirty: int
    control: str | None
    building: bool
    builder: Builder | None
    failure: Failure | None
    fleet: Fleet
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
    following: Following | None = None

    @property
    def generation(self) -> int | None:
        """Of the file; None where there is none."""
        return None if self.header is None else self.header.generation


def status_of(
    path: str,
    policy: Policy,
    source: Source | None = None,
    *,
    decided: Decision | None = None,
    disabled: bool = False,
) -> Status:
    """Reads headers and counters, changes nothing.

    source: is asked whether it was written to; None leaves that out. decided: what a cache that has the file open makes
    of it; by default what a cache that opened it now would, with MMCACHE_DISABLE set where `disabled` says so.
    """
    path = os.path.abspath(path)
    found = open_existing(path)
    control = None if found is not None else "there is no control page: no worker has made one, or none can"
    header, layout, trouble = _header(path, source)
    with contextlib.closing(found or private_page(path, control)) as page:
        hearing = Hearing(path, page)
        with contextlib.suppress(MovedError):
            hearing.rebase(header)
        failure = hearing.failure(time.monotonic())
        if decided is None:
            facts = _facts(hearing, page, source, trouble, failure, disabled=disabled)
            decided = decide(facts, DecisionRules(policy))
        head = page.head()
    return Status(
        path=path,
        state=decided.state,
        why=decided.why,
        header=header,
        freshness=decided.freshness,
        revalidated=hearing.baseline is not None and hearing.baseline.revalidated,
        dirty=decided.ids,
        control=control,
        building=shared.is_locked(lock_name(path)),
        builder=None if head is None else head.builder,
        failure=failure,
        fleet=read_fleet(path),
        left_out={} if layout is None else left_out_of(layout),
        following=following_now(path),
    )


def _facts(
    hearing: Hearing,
    page: Page,
    source: Source | None,
    trouble: Trouble | None,
    failure: Failure | None,
    *,
    disabled: bool,
) -> Facts:
    """What a cache that opened the file now would decide by. Asks the source."""
    levers = read_levers(hearing.path)
    return Facts(
        now=time.time(),
        monotonic=time.monotonic(),
        said=hearing.said,
        baseline=None if trouble is not None else hearing.baseline,
        trouble=trouble,
        page=page.shared,
        foreign=hearing.foreign,
        distrusted=hearing.distrusted,
        panicked=hearing.panicked,
        source=None if source is None else ask(source, hearing.baseline),
        failure=failure,
        disabled=BY_ENVIRONMENT if disabled else levers.disabled,
        held=levers.held,
        resumed=levers.resumed,
    )


def _header(path: str, source: Source | None) -> tuple[Header | None, Layout | None, Trouble | None]:
    """The header of the file and what it says of itself, where they can be read; and why the file cannot be used, where
    it cannot."""
    header = None
    try:
        file = ReadFile(path)
        try:
            header = parse_header(file.read(0, HEADER_SIZE), file.size)
            layout = validate(file.read, file.size)
        finally:
            file.close()
    except UnusableFileError as error:
        return header, None, Trouble(error.cause, error.message)
    if source is not None and not covers(promised_by(layout), still_there(source)):
        other = "was built with other schemas than the source has now: rebuild it"
        return header, layout, Trouble("incompatible", other)
    return header, layout, None


def check(status: Status, rules: Rules, now: float) -> list[Alert]:
    """The rules that are broken; a file that cannot be used, or may not answer, breaks one as well. now: wall clock."""
    return broken(status.state, status.why, status.fleet, rules, now, following=status.following)
