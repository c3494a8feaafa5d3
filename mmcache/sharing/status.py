"""What can be said about a cache from outside: file, control page, builder, and all workers that have it open."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..errors import MmcacheError, UnusableFileError
from ..format.header import HEADER_SIZE, Header, parse_header
from ..freshness import Freshness, Policy
from ..sources.base import Source, TrackedSource
from ..storage import shared
from ..storage.fs import ReadFile, lock_name
from .control import Builder, ControlPage, Failure, look
from .metrics import Fleet, read_fleet
from .staleness import Basis, basis_of, doubt_about, freshness_of

__all__ = ["Alert", "Rules", "Status", "check", "status_of"]


@dataclass(frozen=True, slots=True)
class Status:
    """One look at a cache.

    state: "fresh", "stale", "expired" or "invalidated"; or why there is no file to be used: "missing", "corrupt",
    "incompatible", "unreadable", "untrusted". why: a sentence. header: of the file; None where it cannot be read.
    freshness: by the clock alone. revalidated: whether a rebuild found it unchanged.
    dirty: ids that the source answers, as far as they can be told apart; -1 for more than can.
    control: None where workers share a control page, else why they cannot. building: whether somebody holds the build
    lock, and builder: who said so. failure: of the last build, if it failed. fleet: the workers, and what they counted.
    """

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


def status_of(path: str, policy: Policy, source: Source | None = None) -> Status:
    """Reads headers and counters, changes nothing. source: is asked whether it was written to; None leaves that out."""
    page = look(path)
    control = None
    if page is None:
        control = "there is no control page: no worker has made one, or none can"
        page = ControlPage(None)
    state, why, dirty, fresh, basis = "missing", "", 0, None, None
    header = None
    try:
        header = _header(path)
    except UnusableFileError as error:
        state, why = error.cause, error.message
    else:
        basis = basis_of(header, page)
        fresh = freshness_of(basis, policy, time.time())
        state, why, dirty = _judge(basis, page, fresh, source)
    return Status(
        path=path,
        state=state,
        why=why,
        header=header,
        freshness=fresh,
        revalidated=basis is not None and basis.revalidated,
        dirty=dirty,
        control=control,
        building=shared.is_held(lock_name(path)),
        builder=page.builder,
        failure=page.failure,
        fleet=read_fleet(path),
    )


def _header(path: str) -> Header:
    file = ReadFile(path)
    try:
        return parse_header(file.read(0, HEADER_SIZE), file.size)
    except UnusableFileError as error:
        error.path = error.path or path
        raise
    finally:
        file.close()


def _judge(basis: Basis, page: ControlPage, fresh: Freshness, source: Source | None) -> tuple[str, str, int]:
    """State, sentence, and how many ids are dirty."""
    fingerprint = None
    trouble = ""
    changed: int | None = 0
    if source is not None:
        try:
            fingerprint = source.fingerprint()
            changed = _changed(basis, source, fingerprint)
        except MmcacheError as error:
            trouble = f"the source cannot be read ({error})"
    doubt = doubt_about(basis, page, fingerprint)
    if doubt.hard:
        return "invalidated", doubt.why, -1
    entries = page.entries(doubt.since, doubt.until)
    if entries is None:
        return "invalidated", "ids are being invalidated at this moment", -1
    dirty = len(set(entries)) + (changed or 0)
    if fresh.state == "expired":
        return "expired", fresh.reason, dirty
    if doubt.soft:
        return "stale", doubt.why, dirty
    if dirty:
        return "stale", f"{dirty} ids were invalidated since it was built, and are answered by the source", dirty
    if changed is None:
        return "stale", "the source was written to since it was built", dirty
    return fresh.state, trouble or fresh.reason, dirty


def _changed(basis: Basis, source: Source, fingerprint: bytes) -> int | None:
    """Ids that changed in the source since the file was built; None if only that something did."""
    if fingerprint == basis.fingerprint or not any(basis.fingerprint):
        return 0
    changes = source.changes(basis.fingerprint) if isinstance(source, TrackedSource) else None
    return None if changes is None else sum(map(len, changes.keys.values()))


def check(status: Status, rules: Rules, now: float) -> list[Alert]:
    """The rules that are broken; a file that cannot be used, or may not answer, breaks one as well."""
    alerts = []
    if status.header is None:
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
