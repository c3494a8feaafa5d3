"""What can be said about a cache from outside: file, control page, builder, and all workers that have it open."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from ..errors import UnusableFileError
from ..format.header import HEADER_SIZE, Header, parse_header
from ..format.layout import validate
from ..freshness import Freshness, Policy
from ..sources.base import Source
from ..storage import shared
from ..storage.fs import ReadFile, lock_name
from .asking import ask
from .attach import look
from .decide import Decision, Facts, Rules as DecisionRules, Trouble, decide
from .fleet import CAUSES_WITHOUT_FILE
from .head import Builder, Failure
from .hearing import Hearing
from .levers import BY_ENVIRONMENT, look as look_at_levers
from .metrics import Fleet, read_fleet
from .page import MovedError, private_page

__all__ = ["Alert", "Rules", "Status", "check", "status_of"]


@dataclass(frozen=True, slots=True)
class Status:
    """One look at a cache.

    state: "fresh", "stale", "expired" or "invalidated"; "slow" while a circuit is open; or why there is no file to be
    used: "missing", "corrupt", "incompatible", "unreadable", "untrusted"; or "disabled"; or "held", by a rollback.
    why: a sentence. header: of the file; None where it cannot be read. freshness: by the clock alone. revalidated:
    whether a rebuild found it unchanged. dirty: ids that the source answers, as far as they can be told apart; -1 for
    more than can. control: None where workers share a control page, else why they cannot. building: whether somebody
    holds the build lock, and builder: who said so. failure: of the last build, if it failed. fleet: the workers, and
    what they counted."""

    path: str
    state: str
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

    @property
    def generation(self) -> int | None:
        return None if self.header is None else self.header.generation


@dataclass(frozen=True, slots=True)
class Rules:
    """What must hold. hit_rate: at least. load: seconds, the longest last opening of a worker. corruptions: a day.
    rebuilds: an hour."""

    hit_rate: float = 0.90
    load: float = 0.010
    corruptions: int = 1
    rebuilds: int = 10


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that is broken. rule: a field of `Rules`, or "file" or "state"; text: a sentence."""

    rule: str
    text: str


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
    found = look(path)
    control = None if found is not None else "there is no control page: no worker has made one, or none can"
    page = found or private_page(path, control)
    hearing = Hearing(path, page)
    header, trouble = _header(path, source)
    with contextlib.suppress(MovedError):
        hearing.rebase(header)
    monotonic = time.monotonic()
    failure = hearing.failure(monotonic)
    if decided is None:
        levers = look_at_levers(path)
        facts = Facts(
            now=time.time(),
            monotonic=monotonic,
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
        )
        decided = decide(facts, DecisionRules(policy))
    head = page.head()
    builder = None if head is None else head.builder
    page.close()
    return Status(
        path=path,
        state=decided.state,
        why=decided.why,
        header=header,
        freshness=decided.freshness,
        revalidated=hearing.baseline is not None and hearing.baseline.revalidated,
        dirty=decided.ids,
        control=control,
        building=shared.is_held(lock_name(path)),
        builder=builder,
        failure=failure,
        fleet=read_fleet(path),
    )


def _header(path: str, source: Source | None) -> tuple[Header | None, Trouble | None]:
    """The header of the file, where it has one; and why the file cannot be used, where it cannot."""
    header = None
    try:
        file = ReadFile(path)
        try:
            header = parse_header(file.read(0, HEADER_SIZE), file.size)
            layout = validate(file.read, file.size)
        finally:
            file.close()
    except UnusableFileError as error:
        return header, Trouble(error.cause, error.message)
    schemas = tuple(collection.schema for collection in layout.collections.values())
    if source is not None and schemas != source.schemas:
        return header, Trouble("incompatible", "was built with other schemas than the source has now: rebuild it")
    return header, None


def check(status: Status, rules: Rules, now: float) -> list[Alert]:
    """The rules that are broken; a file that cannot be used, or may not answer, breaks one as well."""
    alerts = []
    if status.state in CAUSES_WITHOUT_FILE:
        alerts.append(Alert("file", f"the file is {status.state}: {status.why}"))
    elif status.state in ("expired", "invalidated"):
        alerts.append(Alert("state", f"the file is {status.state}: {status.why}"))
    fleet = status.fleet
    if fleet.hit_rate < rules.hit_rate:
        alerts.append(Alert("hit_rate", f"hit rate {fleet.hit_rate:.1%}, expected at least {rules.hit_rate:.1%}"))
    load = max((worker.load_seconds for worker in fleet.workers), default=0.0)
    if load > rules.load:
        alerts.append(
            Alert("load", f"a worker opened the file in {load * 1e3:.1f} ms, expected {rules.load * 1e3:g} ms")
        )
    for rule, kind, span, unit, limit in (
        ("corruptions", "corruption", 86_400.0, "day", rules.corruptions),
        ("rebuilds", "rebuild", 3_600.0, "hour", rules.rebuilds),
    ):
        found = sum(event.kind == kind and now - span < event.time <= now for event in fleet.events)
        if found > limit:
            alerts.append(Alert(rule, f"{found} {rule} in the last {unit}, expected at most {limit}"))
    return alerts
