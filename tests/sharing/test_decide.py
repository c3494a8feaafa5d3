"""`decide` as a table: what was observed -> which tier answers, which ids are dirty, what is shown and built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import given, strategies as st

from mmcache import SourceError
from mmcache.format.header import Header, Tokens
from mmcache.format.keys import Key, hash_key
from mmcache.freshness import Policy
from mmcache.sharing.decide import (
    MANY_DIRTY,
    NO_FINGERPRINT,
    STATES,
    Baseline,
    Decision,
    Facts,
    Rules,
    SourceFacts,
    Trouble,
    baseline_of,
    decide,
)
from mmcache.sharing.events import Event, Kind, Said, fold, ids_events
from mmcache.sharing.head import Coverage, Failure

NOW, MONOTONIC, TOOK = 1e9, 5000.0, 2.0
RULES = Rules(Policy(ttl=1000.0, refresh_at=0.5, max_stale=500.0, jitter=0.0), rebuild_after=60.0)
SAME, OTHER = b"s" * 32, b"o" * 32
PAGE = 0x1234 << 16

UNASKED = SourceFacts()
UNCHANGED = SourceFacts(SAME)
WRITTEN = SourceFacts(OTHER, None)
"""Written to since the build; which keys, it cannot tell."""
WORDLESS = SourceFacts(NO_FINGERPRINT)
"""A source without fingerprint."""
LOCKED = SourceFacts(error="database is locked")


def tracked(**changed: Any) -> SourceFacts:
    """Written to since the build, and these keys of each collection."""
    return SourceFacts(OTHER, {name: frozenset(keys) for name, keys in changed.items()})


def said(*events: Event, lost: bool = False) -> Said:
    found = Said(0, 0, lost=lost)
    fold(found, events, 8, 0)
    return found


def ids(*keys: Key, collection: str = "items") -> Event:
    (event,) = ids_events(collection, keys, "record_stored")
    return event


def seen(
    *events: Event,
    age: float = 100.0,
    source: SourceFacts | None = UNCHANGED,
    built_from: bytes = SAME,
    built_with: int = PAGE,
    lost: bool = False,
    **more: Any,
) -> Facts:
    """Facts about a file of an age. events: said since it was built."""
    baseline = Baseline(Tokens(0, 0, 0, built_with), NOW - age, TOOK, built_from, revalidated=False)
    return Facts(NOW, MONOTONIC, said(*events, lost=lost), baseline, source=source, **more)


def elsewhere(source: SourceFacts | None, *events: Event, **more: Any) -> Facts:
    """A file that was built with a page that is not here."""
    return seen(*events, source=source, foreign=True, **more)


def failed(until: float) -> Failure:
    return Failure(1, MONOTONIC - 1, until, SourceError("x"))


HARD, SOFT = Event(Kind.HARD, "config_updated"), Event(Kind.SOFT, "record_stored")
ALL_NOTES = Event(Kind.COLLECTION, "manual", ("notes",))
SUSPECT = Event(Kind.SUSPECT)


class Row(NamedTuple):
    """state, serves, cause: as decided. why, rebuild: a part of each sentence; "" for a rebuild that is not due.

    dirty: the keys of each collection that the source answers."""

    facts: Facts
    state: str
    serves: bool = True
    cause: str = "invalidated"
    why: str = ""
    rebuild: str = ""
    dirty: Mapping[str, set[Key]] = {}
    ids: int = 0
    stale_if_error: bool = False
    closed: frozenset[str] = frozenset()


def source_answers(facts: Facts, state: str, why: str = "", rebuild: str = "", **more: Any) -> Row:
    return Row(facts, state, serves=False, cause=state, why=why, rebuild=rebuild, **more)


def hard(facts: Facts, why: str = "everything was invalidated", **more: Any) -> Row:
    return source_answers(facts, "invalidated", why, why, ids=-1, **more)


WRITTEN_TO, HAS_CHANGED = "the source was written to", "the source has changed"
NOT_HERE, ASKED_FOR = "another control page", "ids were invalidated"
SOFTLY = "invalidated softly (record_stored)"
NOTES = frozenset({"notes"})
HELD = "held by rollback since yesterday"
RESUMED = "rolled back, and resumed since today"
DISABLED = "disabled by mmcache disable since yesterday"

ROWS: dict[str, Row] = {
    # --- what was said
    "nothing was said": Row(seen(), "fresh", why="built 100 seconds ago"),
    "softly": Row(seen(SOFT), "stale", why=SOFTLY, rebuild=SOFTLY),
    "hard": hard(seen(HARD), "everything was invalidated (config_updated)"),
    "hard, then softly": hard(seen(HARD, SOFT)),
    "softly, then hard": hard(seen(SOFT, HARD)),
    "without the page lock": hard(seen(panicked=True), "could not take the page lock"),
    "more than the page remembers": hard(seen(lost=True), "more was invalidated than the control page remembers"),
    "an id": Row(seen(ids("a")), "stale", why="1 id was", rebuild=ASKED_FOR, dirty={"items": {"a"}}, ids=1),
    "ids of two collections": Row(
        seen(ids("a", 7, b"x"), ids(("a", 1), collection="notes")),
        "stale",
        why="4 ids",
        rebuild=ASKED_FOR,
        dirty={"items": {"a", 7, b"x"}, "notes": {("a", 1)}},
        ids=4,
    ),
    "an id twice": Row(seen(ids("a"), ids("a")), "stale", rebuild=ASKED_FOR, dirty={"items": {"a"}}, ids=1),
    "ids, and softly": Row(seen(ids("a"), SOFT), "stale", why=SOFTLY, rebuild=SOFTLY, dirty={"items": {"a"}}, ids=1),
    "ids, and hard": hard(seen(ids("a"), HARD), dirty={"items": {"a"}}),
    "a collection": Row(seen(ALL_NOTES), "stale", why="all of 'notes'", rebuild=ASKED_FOR, closed=NOTES, ids=-1),
    "a collection and ids of another": Row(
        seen(ALL_NOTES, ids("a")), "stale", rebuild=ASKED_FOR, closed=NOTES, dirty={"items": {"a"}}, ids=-1
    ),
    "what builders say": Row(seen(Event(Kind.PUBLISHED), Event(Kind.COVERED), Event(Kind.FAILED)), "fresh"),
    # --- the source, asked
    "written to, keys unknown": Row(seen(source=WRITTEN), "stale", why=WRITTEN_TO, rebuild=HAS_CHANGED),
    "written to, keys known": Row(
        seen(source=tracked(items={"a", 7})), "stale", why="2 ids", rebuild=ASKED_FOR, dirty={"items": {"a", 7}}, ids=2
    ),
    "keys known to it and said": Row(
        seen(ids("a"), source=tracked(items={"a", "b"}, notes={"n"})),
        "stale",
        rebuild=ASKED_FOR,
        dirty={"items": {"a", "b"}, "notes": {"n"}},
        ids=3,
    ),
    "written to what is in no file": Row(seen(source=tracked(items=())), "fresh"),
    "ids, and keys unknown": Row(
        seen(ids("a"), source=WRITTEN),
        "stale",
        why="1 id was",
        rebuild=HAS_CHANGED,
        dirty={"items": {"a"}},
        ids=1,
    ),
    "written to, and expired": source_answers(
        seen(source=WRITTEN, age=1100), "expired", "expired at", "expired at", stale_if_error=True
    ),
    "written to, and locked then": Row(
        seen(source=SourceFacts(OTHER, None, "disk I/O error")),
        "stale",
        why="since it was built, and cannot name the keys (disk I/O error)",
        rebuild=HAS_CHANGED,
    ),
    "locked": Row(seen(source=LOCKED), "fresh", why="cannot be read (database is locked)"),
    "not asked yet": Row(seen(source=UNASKED), "fresh"),
    "without fingerprint": Row(seen(source=WORDLESS, built_from=NO_FINGERPRINT), "fresh"),
    # --- age
    "old": Row(seen(age=600), "stale", why="built 10 minutes ago", rebuild="built 10 minutes ago"),
    "expired": source_answers(seen(age=1100), "expired", "expired at", "expired at", stale_if_error=True),
    "expired for long": source_answers(seen(age=1600), "expired", "expired at", "expired at"),
    "expired, and hard": hard(seen(HARD, age=1100)),
    "expired, and an id": source_answers(
        seen(ids("a"), age=1100), "expired", rebuild="expired", stale_if_error=True, dirty={"items": {"a"}}, ids=1
    ),
    "of the future": Row(seen(age=-100), "stale", why="ahead of this clock", rebuild="ahead of this clock"),
    # --- built with a page that is not here
    "without a page": Row(elsewhere(WRITTEN, built_with=0), "stale", why=WRITTEN_TO, rebuild=HAS_CHANGED),
    "without a page, unasked": Row(elsewhere(UNASKED, built_with=0, distrusted=True), "fresh"),
    "without a page, hard": hard(elsewhere(UNCHANGED, HARD, built_with=0)),
    "without a page, an id": Row(
        elsewhere(UNCHANGED, ids("a"), built_with=0), "stale", rebuild=ASKED_FOR, dirty={"items": {"a"}}, ids=1
    ),
    "gone page, unchanged": Row(elsewhere(UNCHANGED, distrusted=True), "fresh"),
    "gone page, unchanged, an id": Row(
        elsewhere(UNCHANGED, ids("a"), distrusted=True), "stale", rebuild=ASKED_FOR, dirty={"items": {"a"}}, ids=1
    ),
    "gone page, unchanged, hard": hard(elsewhere(UNCHANGED, HARD, distrusted=True)),
    "gone page, written": hard(elsewhere(WRITTEN, distrusted=True), NOT_HERE),
    "gone page, keys known": hard(elsewhere(tracked(items={"a"}), distrusted=True), NOT_HERE, dirty={"items": {"a"}}),
    "gone page, locked": hard(elsewhere(LOCKED, distrusted=True), NOT_HERE),
    "gone page, wordless": hard(elsewhere(WORDLESS, distrusted=True, built_from=NO_FINGERPRINT), NOT_HERE),
    "foreign page, unchanged": Row(elsewhere(UNCHANGED), "fresh"),
    "foreign page, written": Row(elsewhere(WRITTEN), "stale", why=WRITTEN_TO, rebuild=HAS_CHANGED),
    "foreign page, locked": Row(elsewhere(LOCKED), "stale", why=NOT_HERE, rebuild=NOT_HERE),
    "foreign page, wordless": Row(
        elsewhere(WORDLESS, built_from=NO_FINGERPRINT), "stale", why=NOT_HERE, rebuild=NOT_HERE
    ),
    "suspect page, written": hard(elsewhere(WRITTEN, SUSPECT), NOT_HERE),
    "suspect page, unchanged": Row(elsewhere(UNCHANGED, SUSPECT), "fresh"),
    "suspect page, its own file": Row(seen(SUSPECT, source=WRITTEN), "stale", why=WRITTEN_TO, rebuild=HAS_CHANGED),
    # --- where no page can be
    "no page here, unchanged": Row(elsewhere(UNCHANGED, page=False, distrusted=True), "fresh"),
    "no page here, written": hard(elsewhere(WRITTEN, page=False, distrusted=True), NOT_HERE),
    "no page here, locked": Row(
        elsewhere(LOCKED, page=False, distrusted=True), "stale", why=NOT_HERE, rebuild=NOT_HERE
    ),
    "no page here, nor there, locked": Row(elsewhere(LOCKED, page=False), "stale", why=NOT_HERE, rebuild=NOT_HERE),
    "no page here, nor there, written": Row(
        elsewhere(WRITTEN, page=False), "stale", why=WRITTEN_TO, rebuild=HAS_CHANGED
    ),
    "no page here, hard": hard(elsewhere(UNCHANGED, HARD, page=False, distrusted=True)),
    # --- slow
    "slow": source_answers(seen(slow=True), "slow", "take too long", stale_if_error=True),
    "slow, and hard": hard(seen(HARD, slow=True)),
    "slow, and softly": source_answers(seen(SOFT, slow=True), "slow", rebuild=SOFTLY, stale_if_error=True),
    "slow, and expired": source_answers(seen(slow=True, age=1600), "expired", rebuild="expired"),
    # --- when it is built again
    "an id of a young file": Row(seen(ids("a"), age=30), "stale", dirty={"items": {"a"}}, ids=1),
    "a collection of a young file": Row(seen(ALL_NOTES, age=30), "stale", closed=NOTES, ids=-1),
    "written to, young": Row(seen(source=WRITTEN, age=30), "stale", why=WRITTEN_TO),
    "hard, young": hard(seen(HARD, age=30)),
    "hard, just built": source_answers(seen(HARD, age=TOOK + 1), "invalidated", ids=-1),
    "softly, just built": Row(seen(SOFT, age=TOOK + 1), "stale"),
    "damaged": Row(seen(repair="a record of the file is damaged"), "fresh", rebuild="damaged"),
    "damaged, after a failure": Row(seen(repair="damaged", failure=failed(MONOTONIC + 5)), "fresh"),
    "old, after a failure": Row(seen(age=600, failure=failed(MONOTONIC + 5)), "stale"),
    "old, long after a failure": Row(
        seen(age=600, failure=failed(MONOTONIC - 5)), "stale", rebuild="built 10 minutes ago"
    ),
    "hard, after a failure": source_answers(seen(HARD, failure=failed(MONOTONIC + 5)), "invalidated", ids=-1),
    # --- held by an operator: age, fingerprint and tracking are not consulted, and nothing is built
    "held": Row(seen(held=HELD), "held", why=HELD),
    "held, expired for long": Row(seen(age=1600, held=HELD), "held", why=HELD),
    "held, of the future": Row(seen(age=-100, held=HELD), "held"),
    "held, written to": Row(seen(source=WRITTEN, held=HELD), "held"),
    "held, keys known": Row(seen(source=tracked(items={"a"}), held=HELD), "held"),
    "held, locked": Row(seen(source=LOCKED, held=HELD), "held"),
    "held, an id": Row(seen(ids("a"), age=600, held=HELD), "held", why="1 id was", dirty={"items": {"a"}}, ids=1),
    "held, a collection": Row(seen(ALL_NOTES, held=HELD), "held", closed=NOTES, ids=-1),
    "held, softly": Row(seen(SOFT, held=HELD), "held"),
    "held, hard": source_answers(seen(HARD, held=HELD), "invalidated", "everything was invalidated", ids=-1),
    "held, without the page lock": source_answers(seen(panicked=True, held=HELD), "invalidated", ids=-1),
    "held, more than the page remembers": source_answers(seen(lost=True, held=HELD), "invalidated", ids=-1),
    "held, gone page, written": Row(elsewhere(WRITTEN, distrusted=True, held=HELD), "held"),
    "held, gone page, an id": Row(
        elsewhere(WRITTEN, ids("a"), SUSPECT, distrusted=True, held=HELD), "held", dirty={"items": {"a"}}, ids=1
    ),
    "held, foreign page, wordless": Row(elsewhere(WORDLESS, built_from=NO_FINGERPRINT, held=HELD), "held"),
    "held, damaged": Row(seen(repair="a record of the file is damaged", held=HELD), "held"),
    "held, slow": source_answers(seen(slow=True, held=HELD), "slow", stale_if_error=True),
    "held, alone": Row(seen(source=None, age=1600, held=HELD), "held"),
    # --- resumed: nothing but a line beside the file tells that its records are older than it says
    "resumed": Row(seen(resumed=RESUMED), "stale", why=RESUMED, rebuild=RESUMED),
    "resumed, alone": Row(seen(source=None, resumed=RESUMED), "stale", why=RESUMED),
    "resumed, gone page": Row(elsewhere(UNCHANGED, resumed=RESUMED), "stale", why=RESUMED, rebuild=RESUMED),
    "resumed, hard": hard(seen(HARD, resumed=RESUMED)),
    "resumed, and held again": Row(seen(resumed=RESUMED, held=HELD), "held", why=HELD),
    # --- without a source, the file is all there is
    "alone": Row(seen(source=None), "fresh"),
    "alone, hard": Row(seen(HARD, source=None), "invalidated", ids=-1),
    "alone, expired": Row(seen(source=None, age=1600), "expired"),
    "alone, old": Row(seen(source=None, age=600), "stale"),
    "alone, an id": Row(seen(ids("a"), source=None), "stale", ids=1),
    "alone, a collection": Row(seen(ALL_NOTES, source=None), "stale", ids=-1),
    "alone, slow": Row(seen(source=None, slow=True), "slow"),
    "alone, damaged": Row(seen(source=None, repair="damaged"), "fresh"),
    "alone, gone page": Row(elsewhere(None, distrusted=True), "invalidated", ids=-1, why=NOT_HERE),
    "alone, foreign page": Row(elsewhere(None), "stale", why=NOT_HERE),
}


def without_file(trouble: Trouble | None, **more: Any) -> Facts:
    return Facts(NOW, MONOTONIC, said(), trouble=trouble, **more)


for _cause in ("missing", "corrupt", "incompatible", "unreadable", "untrusted"):
    _trouble = Trouble(_cause, f"it is {_cause}")
    ROWS[_cause] = source_answers(without_file(_trouble, source=UNCHANGED), _cause, f"it is {_cause}")
    ROWS[f"{_cause}, alone"] = source_answers(without_file(_trouble), _cause, f"it is {_cause}")
    ROWS[f"{_cause}, and disabled"] = source_answers(without_file(_trouble, disabled=DISABLED), "disabled", DISABLED)
    ROWS[f"{_cause}, and held"] = source_answers(without_file(_trouble, source=UNCHANGED, held=HELD), _cause, "it is")
ROWS["not looked for yet"] = source_answers(without_file(None, source=UNASKED), "missing", "no file yet")
ROWS["first build by another"] = Row(
    without_file(Trouble("missing", "it is missing"), building=True), "missing", serves=False, cause="building"
)
ROWS["disabled"] = source_answers(seen(HARD, disabled=DISABLED), "disabled", DISABLED)
ROWS["disabled, and held"] = source_answers(seen(disabled=DISABLED, held=HELD), "disabled", DISABLED)


def keys_of(decision: Decision) -> dict[str, set[Any]]:
    return {name: {key for keys in dirty.values() for key in keys} for name, dirty in decision.dirty.items()}


@pytest.mark.parametrize("name", ROWS)
def test_what_was_observed_decides(name):
    row = ROWS[name]
    found = decide(row.facts, RULES)
    assert (found.state, found.serves, found.cause) == (row.state, row.serves, row.cause)
    assert row.why in found.why
    assert found.why
    assert row.rebuild in found.rebuild
    assert bool(found.rebuild) == bool(row.rebuild)
    assert keys_of(found) == row.dirty
    assert (found.closed, found.ids, found.stale_if_error) == (row.closed, row.ids, row.stale_if_error)


def test_the_table_has_every_state():
    assert {row.state for row in ROWS.values()} == set(STATES) - {"starting"}


@pytest.mark.parametrize(("count", "is_due"), [(MANY_DIRTY, False), (MANY_DIRTY + 1, True)])
def test_many_ids_of_a_young_file_do_not_wait(count, is_due):
    events = ids_events("items", range(count), "record_stored")
    assert bool(decide(seen(*events, age=30), RULES).rebuild) == is_due


def test_a_key_known_by_its_hash_alone_is_dirty_by_hash():
    key = "x" * 5000
    found = decide(seen(ids(key)), RULES)
    assert found.dirty == {"items": {hash_key(key): (None,)}}
    assert found.ids == 1


def test_deciding_changes_no_fact():
    """The ids that were said are shared with reads of other threads."""
    facts = seen(ids("a"), source=tracked(items={"b"}))
    decide(facts, RULES)
    assert facts.said == said(ids("a"))


def test_the_draw_of_a_process_moves_its_refresh():
    policy = Policy(ttl=1000.0, refresh_at=0.5, jitter=0.1)
    found = [decide(seen(age=500), Rules(policy, jitter=draw)).state for draw in (-1.0, 1.0)]
    assert found == ["stale", "fresh"]


def test_a_file_that_never_expires_stays_fresh():
    assert decide(seen(age=1e8), Rules(Policy(ttl=math.inf))).state == "fresh"


# --- any facts --------------------------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.sampled_from([HARD, SOFT, ALL_NOTES, SUSPECT, ids("a"), ids(1, "b"), Event(Kind.FAILED)]), max_size=3
)
SOURCES = st.sampled_from([None, UNASKED, UNCHANGED, WRITTEN, WORDLESS, LOCKED, tracked(items={"c"})])
TROUBLE = st.sampled_from([Trouble("missing", "gone"), Trouble("corrupt", "broken"), None])
FLAGS = ("page", "foreign", "distrusted", "panicked", "slow", "building")


@st.composite
def any_facts(draw: st.DrawFn) -> Facts:
    flags: dict[str, Any] = {name: draw(st.booleans()) for name in FLAGS}
    facts = seen(
        *draw(EVENTS),
        age=draw(st.sampled_from([-100.0, 0.0, 3.0, 30.0, 100.0, 600.0, 1100.0, 1600.0])),
        source=draw(SOURCES),
        lost=draw(st.booleans()),
        repair=draw(st.sampled_from(["", "damaged"])),
        failure=draw(st.sampled_from([None, failed(MONOTONIC + 5), failed(MONOTONIC - 5)])),
        built_with=draw(st.sampled_from([0, PAGE])),
        disabled=draw(st.sampled_from(["", "", "", DISABLED])),
        held=draw(st.sampled_from(["", HELD])),
        resumed=draw(st.sampled_from(["", RESUMED])),
        **flags,
    )
    return facts if draw(st.booleans()) else facts._replace(baseline=None, trouble=draw(TROUBLE))


@given(any_facts())
def test_a_decision_contradicts_itself_nowhere(facts):
    found = decide(facts, RULES)
    assert found == decide(facts, RULES)
    assert found.state in STATES
    assert found.why
    if facts.baseline is None or facts.disabled:
        assert not found.serves
        assert found.rebuild == ""
    elif facts.source is None:
        assert found.serves
        assert (found.dirty, found.closed, found.rebuild) == ({}, frozenset(), "")
    else:
        assert found.serves == (found.state in ("fresh", "stale", "held"))
    if found.state == "fresh":
        assert not facts.said.hard
        assert not facts.resumed
        assert (found.dirty, found.closed, found.ids) == ({}, frozenset(), 0)
        assert found.rebuild == ("" if facts.failure == failed(MONOTONIC + 5) or facts.source is None else facts.repair)
    if found.stale_if_error:
        assert not found.serves
    if facts.held:
        assert found.rebuild == ""
        assert found.state not in ("fresh", "stale", "expired")
    if facts.failure is not None and facts.failure.until > facts.monotonic:
        assert found.rebuild == ""


# --- the baseline -----------------------------------------------------------------------------------------------------

HEADER = Header(
    file_size=4096,
    section_count=3,
    generation=7,
    created_ns=5 * 10**9,
    elapsed_ns=2 * 10**9,
    build_id=bytes(range(16)),
    sha256=bytes(32),
    fingerprint=SAME,
    soft=1,
    hard=2,
    ring=3,
    page=4,
)
COVERED = Coverage(7, HEADER.build_id, Tokens(9, 8, 7, 6), 60 * 10**9, 3 * 10**9, OTHER)


def test_a_file_is_as_good_as_its_build():
    assert baseline_of(HEADER, None) == Baseline(Tokens(1, 2, 3, 4), 5.0, 2.0, SAME, revalidated=False)


def test_or_as_the_last_rebuild_that_found_it_unchanged():
    assert baseline_of(HEADER, COVERED) == Baseline(Tokens(9, 8, 7, 6), 60.0, 3.0, OTHER, revalidated=True)


@pytest.mark.parametrize("other", [{"generation": 8}, {"build_id": bytes(16)}])
def test_what_covers_another_file_covers_not_this_one(other):
    assert not baseline_of(HEADER, COVERED._replace(**other)).revalidated


def test_age_counts_from_the_revalidation():
    rules = Rules(Policy(ttl=100.0, refresh_at=0.5, jitter=0.0))
    facts = Facts(104.0, MONOTONIC, said(), baseline_of(HEADER, None), source=UNCHANGED)
    assert decide(facts, rules).state == "stale"
    fresh = decide(facts._replace(baseline=baseline_of(HEADER, COVERED)), rules)
    assert fresh.state == "fresh"
    assert fresh.freshness is not None
    assert fresh.freshness.age == 44.0
