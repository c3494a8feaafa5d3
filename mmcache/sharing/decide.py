"""One decision: which tier answers, which ids are dirty, what state to show, and whether to rebuild. Pure.

`Facts` are what the caller observed: a cache, `mmcache status`, doctor, an alert. No clock is read here and
no file; `decide` is the only function that knows what follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple, cast

from ..format.header import Header, Tokens, is_telling
from ..format.keys import Key, hash_key
from ..freshness import Freshness, Policy, freshness, may_answer
from .events import Dirty, Said, add_dirty
from .fleet import STATES, State
from .head import Coverage, Failure

__all__ = [
    "MANY_DIRTY",
    "NO_FINGERPRINT",
    "STATES",
    "Baseline",
    "Decision",
    "Facts",
    "Rules",
    "SourceFacts",
    "State",
    "Trouble",
    "baseline_of",
    "decide",
]

NO_FINGERPRINT: Final = bytes(32)
"""Of a source that cannot tell whether it has changed."""

MANY_DIRTY: Final = 2048
"""Dirty ids beyond which a rebuild does not wait for `rebuild_after`."""

_DAY: Final = 86_400.0

_EMPTY: Final[Mapping[str, Dirty]] = {}
_NO_KEYS: Final[Mapping[str, frozenset[Key]]] = {}


class Baseline(NamedTuple):
    """What a file is as good as: its own build, or the last rebuild that found it unchanged.

    built: wall clock, when the source was about to be read. took: seconds.
    """

    tokens: Tokens
    built: float
    took: float
    fingerprint: bytes
    revalidated: bool


class Trouble(NamedTuple):
    """Why no file can be used. cause: one of CAUSES_WITHOUT_FILE; why: a sentence. mends: whether a build would give a
    file that can be used."""

    cause: str
    why: str
    mends: bool = False


class SourceFacts(NamedTuple):
    """What the source said of itself. fingerprint: None where it was not asked, or could not be. changed: collection ->
    the keys written since the baseline; None where only that something may have been is known. error: why it could not
    be asked for one of these."""

    fingerprint: bytes | None = None
    changed: Mapping[str, frozenset[Key]] | None = _NO_KEYS
    error: str = ""


class Facts(NamedTuple):
    """All observations.

    now: wall clock. monotonic: seconds. baseline: of the file that is open; None where there is none, because of
    `trouble`. said: events after the baseline. page: whether processes share a page. foreign: the file was built with a
    page that is neither this one nor the one it took over. distrusted: something may have been said on that page after
    the build. panicked: everything was invalidated without the page lock, after the baseline. source: None for a cache
    without one. repair: why the published file must be built anew whatever its age is. slow: lookups in the file take
    too long for now. building: another process builds the first file. conflict: what of the published file is not ours,
    "other schemas" or "newer format"; taken: when such a file was published in the place of another, by `monotonic`;
    0.0 for never. lacking: which index the file has not. disabled: why every read goes to the source. held: why the
    file stays as it is; then age, fingerprint and tracking are not consulted. resumed: why it is older than it says.
    """

    now: float
    monotonic: float
    said: Said
    baseline: Baseline | None = None
    trouble: Trouble | None = None
    page: bool = True
    foreign: bool = False
    distrusted: bool = False
    panicked: bool = False
    source: SourceFacts | None = None
    failure: Failure | None = None
    repair: str = ""
    slow: bool = False
    building: bool = False
    disabled: str = ""
    held: str = ""
    resumed: str = ""
    conflict: str = ""
    taken: float = 0.0
    lacking: str = ""


class Rules(NamedTuple):
    """What a cache was told. rebuild_after: age in seconds before which changes alone start no rebuild. jitter: from -1
    to 1, drawn once by a process."""

    policy: Policy
    rebuild_after: float = 60.0
    jitter: float = 0.0


class Decision(NamedTuple):
    """What follows.

    state: one of STATES. why: a sentence. serves: whether the file answers; cause: why the source does, where it does.
    dirty: collection -> the ids that the source answers. closed: collections that it answers as a whole. ids: how many
    ids are dirty, -1 for more than can be told apart. stale_if_error: whether the file may answer if the source fails.
    rebuild: why the file should be built again now, or "".
    """

    state: State
    why: str
    serves: bool
    cause: str
    dirty: Mapping[str, Dirty] = _EMPTY
    closed: frozenset[str] = frozenset()
    ids: int = 0
    stale_if_error: bool = False
    rebuild: str = ""
    freshness: Freshness | None = None


def baseline_of(header: Header, covered: Coverage | None) -> Baseline:
    if covered is None or not covered.is_of(header):
        return Baseline(
            header.tokens, header.created_ns / 1e9, header.elapsed_ns / 1e9, header.fingerprint, revalidated=False
        )
    return Baseline(
        covered.tokens, covered.checked_ns / 1e9, covered.elapsed_ns / 1e9, covered.fingerprint, revalidated=True
    )


def decide(facts: Facts, rules: Rules) -> Decision:
    """The only place that knows."""
    if facts.disabled:
        return Decision("disabled", facts.disabled, serves=False, cause="disabled")
    if facts.baseline is None:
        trouble = facts.trouble or Trouble("missing", "there is no file yet")
        cause = "building" if facts.building else trouble.cause
        rebuild = trouble.why if trouble.mends and _may_build(facts, rules) else ""
        return Decision(cast("State", trouble.cause), trouble.why, serves=False, cause=cause, rebuild=rebuild)
    baseline = facts.baseline
    age = freshness(rules.policy, now=facts.now, built=baseline.built, build_seconds=baseline.took, draw=rules.jitter)
    doubt = _doubt(facts, baseline)
    dirty, ids, changed = _dirty(facts, baseline)
    state, why = _state(facts, age, doubt, ids, changed=changed)
    serves, cause = True, "invalidated"
    if facts.source is not None and state in ("invalidated", "expired", "slow"):
        serves, cause = False, state
    return Decision(
        state=state,
        why=why,
        serves=serves,
        cause=cause,
        dirty=dirty if facts.source is not None else _EMPTY,
        closed=facts.said.closed if facts.source is not None else frozenset(),
        ids=-1 if doubt.hard or facts.said.closed else ids,
        stale_if_error=cause == "slow" or (cause == "expired" and may_answer(rules.policy, age.age)),
        rebuild=_why_rebuild(facts, rules, age, doubt, ids, changed=changed),
        freshness=age,
    )


class _Doubt(NamedTuple):
    """hard: the file may not answer. soft: it may, and is due to be built again. Each a sentence, or ""."""

    hard: str = ""
    soft: str = ""


def _doubt(facts: Facts, baseline: Baseline) -> _Doubt:
    """What was said, and what may have been said and is lost.

    A file of another page: whatever was invalidated on this page counts. What may have been on the other is told by the
    source where its fingerprint is the file's. Else the file is as suspect as that page.
    """
    said = facts.said
    if said.hard:
        return _Doubt(hard=f"everything was invalidated ({said.hard})")
    if facts.panicked:
        return _Doubt(hard="everything was invalidated (by a process that could not take the page lock)")
    if said.lost:
        return _Doubt(hard="more was invalidated than the control page remembers")
    if facts.held:
        return _Doubt()
    fingerprint = None if facts.source is None else facts.source.fingerprint
    is_known = fingerprint is not None and is_telling(fingerprint)
    if facts.foreign and baseline.tokens.page and not (is_known and fingerprint == baseline.fingerprint):
        why = "it was built with another control page, which is not here"
        # Where no page can be, none went missing: while the source cannot be asked, the file is the best there is.
        if (facts.distrusted or said.suspect) and (facts.page or fingerprint is not None):
            return _Doubt(hard=why)
        if not is_known:  # else the source tells that it has changed
            return _Doubt(soft=why)
    if facts.resumed:
        return _Doubt(soft=f"it was {facts.resumed}")
    return _Doubt(soft=f"it was invalidated softly ({said.soft})" if said.soft else "")


def _dirty(facts: Facts, baseline: Baseline) -> tuple[Mapping[str, Dirty], int, bool]:
    """The ids that only the source may answer, how many, and whether the source has changed in a way that it cannot
    name."""
    source, said = facts.source, facts.said
    if source is None or facts.held or source.fingerprint == baseline.fingerprint:
        return said.dirty, said.ids, False
    if source.changed is None:
        return said.dirty, said.ids, True
    if not any(source.changed.values()):
        return said.dirty, said.ids, False
    ids = said.ids
    merged = {name: dict(dirty) for name, dirty in said.dirty.items()}
    for name, keys in source.changed.items():
        if keys:
            dirty = merged.setdefault(name, {})
            ids += sum(add_dirty(dirty, hash_key(key), key) for key in keys)
    return merged, ids, False


def _state(facts: Facts, age: Freshness, doubt: _Doubt, ids: int, *, changed: bool) -> tuple[State, str]:
    if doubt.hard:
        return "invalidated", doubt.hard
    if age.state == "expired" and not facts.held:
        return "expired", age.reason
    if facts.slow:
        return "slow", "lookups in the file take too long: the source answers for a while"
    if facts.conflict:
        return "stale", f"the published file has {facts.conflict}, and cannot be used here"
    if facts.held:
        return "held", f"{facts.held}; {_said(ids, 'since')}" if ids else facts.held
    if doubt.soft:
        return "stale", doubt.soft
    if facts.said.closed:
        return "stale", f"all of {', '.join(map(repr, sorted(facts.said.closed)))} was invalidated since it was built"
    if ids:
        return "stale", _said(ids, "since it was built")
    trouble = "" if facts.source is None else facts.source.error
    if changed:
        unnamed = f", and cannot name the keys ({trouble})" if trouble else ""
        return "stale", f"the source was written to since it was built{unnamed}"
    return age.state, f"the source cannot be read ({trouble})" if trouble else age.reason


def _said(ids: int, since: str) -> str:
    if ids == 1:
        return f"1 id was invalidated {since}, and is answered by the source"
    return f"{ids} ids were invalidated {since}, and are answered by the source"


def _why_rebuild(facts: Facts, rules: Rules, age: Freshness, doubt: _Doubt, ids: int, *, changed: bool) -> str:
    """A sentence, or "" where the file should not be built again now."""
    baseline = facts.baseline
    if baseline is None or not _may_build(facts, rules):
        return ""
    if facts.repair or facts.lacking:
        return facts.repair or facts.lacking
    rested = facts.now - baseline.built - baseline.took
    if (doubt.hard or doubt.soft) and not 0 <= rested < baseline.took:
        return doubt.hard or doubt.soft
    if age.state != "fresh":
        return age.reason
    why = "the source has changed" if changed else "ids were invalidated" if ids or facts.said.closed else ""
    is_settled = not 0 <= facts.now - baseline.built < rules.rebuild_after
    return why if why and (is_settled or ids > MANY_DIRTY) else ""


def _may_build(facts: Facts, rules: Rules) -> bool:
    """Whether a build is ours to start now: not while the file is held, or all pause after a build that failed. The
    file belongs to the process that published last: those with other schemas wait for a ttl, and a newer format is left
    alone."""
    failure = facts.failure
    if facts.held or facts.source is None or (failure is not None and facts.monotonic < failure.until):
        return False
    if facts.conflict == "other schemas":
        return not 0.0 < facts.taken <= facts.monotonic < facts.taken + min(rules.policy.ttl, _DAY)
    return not facts.conflict
