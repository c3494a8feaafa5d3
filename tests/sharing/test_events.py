"""Events as bytes and as what they come to: what was logged is read back or not believed, and nothing in between."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import assume, given, strategies as st
from xxhash import xxh3_64_intdigest

from mmcache.format.keys import hash_key, pack_key
from mmcache.sharing.events import (
    MAX_APPEND,
    MAX_IDS,
    REASONS,
    Event,
    Kind,
    Said,
    add_dirty,
    decode,
    encode,
    fold,
    ids_events,
)
from mmcache.sharing.page import WINDOW

LONGEST_KEY = "k" * 1021
"""1,024 bytes with the header of three bytes: the longest that stands in an event."""
TIME = 1_700_000_000_000_000_000

TEXT = st.text(max_size=40)
SCALARS = TEXT | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40)
KEYS = SCALARS | st.lists(SCALARS, min_size=2, max_size=8).map(tuple)
NAMES = st.sampled_from(list(REASONS))
IDS = st.builds(ids_events, TEXT, st.lists(KEYS | st.just("x" * 2000), max_size=5), NAMES)
SIMPLE = st.sampled_from([Kind.SOFT, Kind.HARD, Kind.FAILED, Kind.SUSPECT])
OTHERS = st.tuples(SIMPLE, NAMES).map(lambda one: Event(*one))
COLLECTIONS = st.builds(lambda name, reason: Event(Kind.COLLECTION, reason, (name,)), TEXT, NAMES)
PUBLISHED = st.builds(lambda number: Event(Kind.PUBLISHED, "manual", (number,)), st.integers(0, 2**62))
EVENTS = st.lists(IDS | (OTHERS | COLLECTIONS | PUBLISHED).map(lambda one: [one]), max_size=5).map(
    lambda several: [event for one in several for event in one]
)
CHAINS = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**60).map(lambda n: 8 * n)


def said(*events: Event) -> Said:
    found = Said(0, 0)
    fold(found, events, 8, 0)
    return found


def keys_of(found: Said) -> dict[str, set[Any]]:
    return {name: {key for keys in dirty.values() for key in keys} for name, dirty in found.dirty.items()}


def decoded(data: bytes, position: int, chain: int) -> tuple[Any, ...] | None:
    """What was logged, without where each event ends."""
    found = decode(data, position, chain)
    return None if found is None else tuple(found[:3])


# --- bytes ------------------------------------------------------------------------------------------------------------


@given(EVENTS, POSITIONS, CHAINS)
def test_what_was_logged_is_read_back(events, position, before):
    data, chain = encode(events, position, TIME, before)
    assert len(data) % 8 == 0
    found = decode(data, position, before)
    assert found is not None
    assert found[:3] == (events, [TIME] * len(events), chain)
    assert found.ends[-1:] == [(position + len(data), chain)] * bool(events)
    for i, (end, behind) in enumerate(found.ends):
        assert encode(events[: i + 1], position, TIME, before) == (data[: end - position], behind)


@given(EVENTS, EVENTS, POSITIONS)
def test_one_append_after_another_is_one_extent(first, second, position):
    data, between = encode(first, position, 1)
    more, chain = encode(second, position + len(data), 2, between)
    assert decoded(data + more, position, 0) == (first + second, [1] * len(first) + [2] * len(second), chain)


@given(EVENTS.filter(bool), EVENTS.filter(bool), CHAINS, CHAINS)
def test_events_that_follow_other_ones_are_none(first, second, one, other):
    """A log that was put back to an earlier state, and written on, is no continuation of what was heard."""
    assume(one != other)
    data, chain = encode(first, 0, TIME, one)
    assert decoded(data, 0, other) is None
    more, _ = encode(second, len(data), TIME, chain)
    assert decoded(more, len(data), encode(first, 0, TIME, other)[1]) is None


@given(EVENTS.filter(bool), POSITIONS, st.data())
def test_mutated_bytes_never_become_another_event(events, position, drawn):
    data = bytearray(encode(events, position, TIME)[0])
    for _ in range(drawn.draw(st.integers(1, 4))):
        data[drawn.draw(st.integers(0, len(data) - 1))] ^= drawn.draw(st.integers(1, 255))
    found = decode(bytes(data), position, 0)
    assert found is None or found.events == events, "only padding may differ"


@given(EVENTS.filter(bool), POSITIONS, st.data())
def test_an_extent_that_was_cut_is_a_beginning_or_nothing(events, position, drawn):
    data, _ = encode(events, position, TIME)
    found = decode(data[: drawn.draw(st.integers(0, len(data) - 1))], position, 0)
    assert found is None or found.events == events[: len(found.events)]


@given(EVENTS.filter(bool), POSITIONS, POSITIONS)
def test_events_of_another_place_are_none(events, position, other):
    """Those of an earlier lap stand where newer ones are expected."""
    assert (decode(encode(events, position, TIME)[0], other, 0) is None) == (position != other)


@given(st.binary(max_size=300), POSITIONS, CHAINS)
def test_any_bytes_are_events_or_none(data, position, chain):
    found = decoded(data, position, chain)
    assert found is None or (found == ([], [], chain) and not data)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.integers(0, 9), inner, max_size=3),
    max_leaves=12,
)


@given(st.integers(0, 12), st.integers(0, 12), PLAIN.map(msgpack.packb) | st.binary(max_size=60))
def test_any_payload_under_a_checksum_is_an_event_that_folds_or_none(kind, reason, payload):
    """Bytes of another version, say."""
    record = struct.pack("<QQIHH", 64, TIME, len(payload), kind, reason) + payload
    record += struct.pack("<Q", xxh3_64_intdigest(record))
    found = decode(record + bytes(-len(record) % 8), 64, 0)
    if found is not None:
        assert found.times == [TIME]
        fold(Said(64, 64), found.events, 128, found.chain)


def test_a_claimed_length_beyond_the_longest_event_is_none():
    record = struct.pack("<QQIHH", 0, TIME, 2**32 - 1, Kind.HARD, 0)
    assert decoded(record + bytes(64), 0, 0) is None


def test_the_bytes_are_as_described():
    """A process of another version reads them."""
    (event,) = ids_events("items", ["a", 7, b"x", ("a", 1)], "record_deleted")
    payload = bytes.fromhex("93 a5 6974656d73 94 a161 07 c40178 92a16101 90")
    record = struct.pack("<QQIHH", 4096, TIME, len(payload), 1, 2) + payload
    chain = xxh3_64_intdigest(record, 77)
    record += struct.pack("<Q", chain)
    record += bytes(-len(record) % 8)
    assert encode([event], 4096, TIME, 77) == (record, chain)


def test_kinds_and_reasons_keep_their_numbers():
    """They stand in pages that processes of two versions share."""
    assert [(kind.name, kind.value) for kind in Kind] == [
        *(("IDS", 1), ("COLLECTION", 2), ("SOFT", 3), ("HARD", 4)),
        *(("PUBLISHED", 5), ("COVERED", 6), ("FAILED", 7), ("SUSPECT", 8), ("LEVER", 9)),
    ]
    numbers = [struct.unpack_from("<H", encode([Event(Kind.HARD, reason)], 0, 0)[0], 22)[0] for reason in REASONS]
    assert list(zip(REASONS, numbers, strict=True)) == [
        *(("manual", 0), ("record_stored", 1), ("record_deleted", 2)),
        *(("config_updated", 3), ("schema_migration", 4), ("ttl_expired", 5)),
    ]


# --- ids --------------------------------------------------------------------------------------------------------------


def test_an_id_that_is_named_twice_stands_once():
    (event,) = ids_events("items", ["a", "b", "a", 1, 1], "manual")
    assert event == Event(Kind.IDS, "manual", ("items", ("a", "b", 1), ()))


def test_no_ids_are_no_event():
    assert ids_events("items", [], "manual") == []


@pytest.mark.parametrize("wrong", [None, 1.5, True, [], {}, ("a",), ("a", ("b", "c")), 2**64, -(2**63) - 1])
def test_what_no_key_can_be_is_refused(wrong):
    with pytest.raises(TypeError, match="key"):
        ids_events("items", ["a", wrong], "manual")


def test_a_longer_key_is_told_by_its_hash_alone():
    longer = LONGEST_KEY + "k"
    (event,) = ids_events("items", [LONGEST_KEY, longer, ("a", "b" * 1024)], "manual")
    assert event.payload == ("items", (LONGEST_KEY,), (hash_key(longer), hash_key(("a", "b" * 1024))))
    assert len(pack_key(LONGEST_KEY)) == 1024


@pytest.mark.parametrize("keys", [[f"k{i}" for i in range(1000)], ["x" * 2000 + str(i) for i in range(300)]])
def test_many_ids_are_several_events_that_are_read_back(keys):
    events = ids_events("items", keys, "manual")
    assert len(events) > 1
    data, chain = encode(events, 0, TIME)
    assert decoded(data, 0, 0) == (events, [TIME] * len(events), chain)
    assert said(*events).ids == len(keys)


def test_an_event_of_the_longest_keys_is_read_back():
    keys = [f"{i:03}" + "k" * 1018 for i in range(256)]
    (event,) = ids_events("n" * 255, keys, "manual")
    data, chain = encode([event], 0, TIME)
    assert decoded(data, 0, 0) == ([event], [TIME], chain)


def test_the_log_has_room_for_as_many_single_ids_as_one_call_may_name():
    one, _ = encode(ids_events("n" * 255, [LONGEST_KEY], "manual"), 0, TIME)
    assert MAX_IDS * len(one) <= WINDOW
    assert len(encode(ids_events("items", range(MAX_IDS), "manual"), 0, TIME)[0]) <= MAX_APPEND


# --- what they come to ------------------------------------------------------------------------------------------------


@given(EVENTS, st.integers(0, 20))
def test_events_folded_in_two_parts_are_those_folded_at_once(events, cut):
    found = Said(0, 0)
    fold(found, events[:cut], 8, 8)
    fold(found, events[cut:], 16, 16)
    at_once = Said(0, 0)
    fold(at_once, events, 16, 16)
    assert found == at_once


@given(st.lists(KEYS, max_size=10), st.lists(KEYS, max_size=10))
def test_exactly_the_ids_that_were_named_are_dirty(items, notes):
    found = said(*ids_events("items", items, "manual"), *ids_events("notes", notes, "manual"))
    assert keys_of(found) == {name: set(keys) for name, keys in (("items", items), ("notes", notes)) if keys}
    assert found.ids == len(set(items)) + len(set(notes))
    for name, keys in (("items", items), ("notes", notes)):
        assert all(key in found.dirty[name][hash_key(key)] for key in keys)


def test_keys_that_share_a_hash_stand_together():
    dirty: dict[int, Any] = {}
    assert add_dirty(dirty, 5, "a")
    assert add_dirty(dirty, 5, b"b")
    assert add_dirty(dirty, 5, None)
    assert not add_dirty(dirty, 5, "a")
    assert not add_dirty(dirty, 5, None)
    assert dirty == {5: ("a", b"b", None)}


def test_two_keys_of_one_hash_are_two_ids():
    """The hash of a text leaves its header out, so it may be that of a number."""
    assert hash_key(7) == hash_key("\a")
    found = said(*ids_events("items", [7, "\a", 7], "manual"))
    assert (found.ids, found.dirty) == (2, {"items": {hash_key(7): (7, "\a")}})


LATEST = [Event(Kind.SOFT, "record_stored"), Event(Kind.SOFT, "ttl_expired"), Event(Kind.HARD, "config_updated")]


def test_the_reason_of_the_last_event_of_a_kind_counts():
    assert (said(*LATEST).soft, said(*LATEST).hard) == ("ttl_expired", "config_updated")


@pytest.mark.parametrize("kind", Kind)
def test_what_only_a_rebuild_covers_is_open(kind):
    payload = {Kind.IDS: ("items", ("a",), ()), Kind.COLLECTION: ("items",), Kind.PUBLISHED: (7,)}.get(kind, ())
    is_open = kind not in (Kind.PUBLISHED, Kind.COVERED, Kind.FAILED, Kind.LEVER)
    assert said(Event(kind, "manual", payload)).is_open() == is_open


def test_what_was_lost_is_open():
    assert Said(0, 0, lost=True).is_open()
    assert not Said(0, 0).is_open()


def test_folding_moves_the_position():
    found = Said(16, 16)
    fold(found, [Event(Kind.HARD)], 64, 5)
    assert (found.since, found.until, found.chain) == (16, 64, 5)
