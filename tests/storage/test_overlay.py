"""A collection while ids are dirty, against a model in plain Python."""

from __future__ import annotations

import itertools
import pickle

import pytest
from hypothesis import given, strategies as st

from mmcache import ClosedError, Snapshot
from mmcache.storage.overlay import Overlay
from tests.storage.mixed import FILE, N, answering, build, check, entry, overlaid

KEYS = [*(e.key for e in FILE), "new-1", "new-2", "new-ä", 7, -1, b"k03", ("k03", 1)]
MORE = [{}, {"size": 2.5}, {"tags": ["x", {}]}, {"tags": "x"}, {"kind": []}, {"extra": True}]


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    with Snapshot.open(build(tmp_path_factory.mktemp("overlay") / "i.mmc")) as snapshot:
        yield snapshot.default


def overlay_of(items, dirty, source):
    return Overlay(items, dirty, [e.given for key, e in source.items() if key in set(dirty)])


@st.composite
def changes(draw):
    """Dirty keys in any order, and what the source has in its order: nothing for some, new values for others."""
    source = {}
    for key in draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=12)):
        more = draw(
            st.sampled_from([{}, {"size": 2.5}, {"tags": ["x", {}]}, {"tags": "x"}, {"kind": []}, {"extra": True}])
        )
        source[key] = entry(key, draw(st.integers(0, 30)), None, **more)
    gone = draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=5))
    return draw(st.permutations(list(dict.fromkeys([*source, *gone])))), source


terms = st.lists(st.sampled_from([None, "a", "b", "x", "y", 1, 2, True]), min_size=1, max_size=3).map(tuple)
queries = st.dictionaries(st.sampled_from(["kind", "size", "tags"]), terms, max_size=2)


@given(changes(), queries)
def test_an_overlay_answers_as_the_model_does(items, changed, query):
    dirty, source = changed
    expected = overlaid(dirty, source)
    overlay = overlay_of(items, dirty, source)
    assert len(overlay) == len(expected)
    assert list(overlay.keys()) == [e.key for e in expected]
    check(overlay.everything(), expected)
    check(overlay.find(query), answering(expected, query))
    check(overlay.find(query), answering(expected, query))  # from the terms that the first one collected


@given(changes(), queries, st.slices(N), st.slices(N // 2))
def test_slices_of_slices_keep_the_order(items, changed, query, one, two):
    dirty, source = changed
    expected = answering(overlaid(dirty, source), query)
    chosen = overlay_of(items, dirty, source).find(query)
    check(chosen[one], expected[one])
    check(chosen[one][two], expected[one][two])


def test_a_dirty_record_stands_at_its_old_row_and_a_new_one_at_the_end(items):
    records = [entry("new-2", 1).given, entry("k03", 5).given, entry("new-1", 1).given, entry("k00", 1).given]
    overlay = Overlay(items, ["k00", "k03", "k05", "new-1", "new-2"], records)
    assert overlay.everything().ids[:5] == ["k00", "k01", "k02", "k03", "k04"]
    assert overlay.everything().ids[-3:] == ["k29", "new-2", "new-1"]
    assert overlay.find({"kind": ("a",)}).ids[:4] == ["k00", "k01", "k03", "k09"]
    assert len(overlay) == N + 1


def test_an_order_leaves_the_selection_that_it_was_asked_of(items):
    source = {"k03": entry("k03", 5), "new-1": entry("new-1", 8, extra=1), "k29": entry("k29", 2)}
    dirty = [*source, "k10"]
    expected = overlaid(dirty, source)
    chosen = overlay_of(items, dirty, source).everything()
    by_size = sorted(expected, key=lambda e: e.fields.get("size", -1))
    assert chosen.order_by("size").limit(9).ids == [e.key for e in by_size[:9]]
    assert chosen.order_by("extra", descending=True).limit(1).ids == ["new-1"]
    with pytest.raises(ValueError, match=r"no record has a field 'nope' .* there are: .*extra"):
        chosen.order_by("nope")
    check(pickle.loads(pickle.dumps(chosen)), expected)
    check(chosen, expected)
    assert chosen.order_by("size").limit(9).ids == [e.key for e in by_size[:9]]


def test_of_sets_of_answers_the_dirty_rows_stay_out(items):
    source = {"k03": entry("k03", 5), "new-1": entry("new-1", 5)}
    dirty = [*source, "k01", "k05"]
    overlay, expected = overlay_of(items, dirty, source), overlaid(dirty, source)
    of_kind = {kind: answering(expected, {"kind": (kind,)}) for kind in ("a", "b")}
    a, b = (overlay.find({"kind": (kind,)}) for kind in of_kind)
    check(a & overlay.everything(), of_kind["a"])
    check(overlay.everything() - a - b, [e for e in expected if e not in of_kind["a"] + of_kind["b"]])
    check(a | b, [e for e in expected if e in of_kind["a"] + of_kind["b"]])


def test_without_a_match_in_the_source_an_answer_is_rows_alone(items):
    overlay = Overlay(items, ["k00"], [entry("k00", 2).given])
    assert overlay.find({"kind": ("b",)}).complete is False
    assert overlay.find({"kind": (None,)}).complete is True
    assert "k00" not in overlay.find({"kind": (None,)}).ids


def test_a_key_that_differs_from_the_dirty_one_is_not_there_twice(items):
    """As with a collation of the source that takes K05 for k05."""
    overlay = Overlay(items, ["K05"], [entry("k05", 1).given])
    assert overlay.everything().ids == [e.key for e in FILE]
    assert len(overlay) == N


def test_an_overlay_of_an_empty_file_has_the_records_of_the_source(tmp_path):
    with Snapshot.open(build(tmp_path / "none.mmc", [])) as snapshot:
        overlay = Overlay(snapshot.default, ["a", "b"], [entry("b", 1).given, entry("a", 2).given])
        check(overlay.everything(), [entry("b", 1), entry("a", 2)])
        check(overlay.find({"kind": ("b",)}), [entry("a", 2)])


def test_an_overlay_of_an_unchanged_file_is_the_file(items):
    overlay = Overlay(items, [], [])
    check(overlay.everything(), FILE)
    assert overlay.collection is items


def test_keys_are_read_as_they_are_iterated(tmp_path):
    """The snapshot is closed halfway: what was not read by then is refused."""
    snapshot = Snapshot.open(build(tmp_path / "i.mmc", [entry(f"k{i:05}", i) for i in range(5000)]))
    keys = Overlay(snapshot.default, ["k00001"], []).keys()
    assert list(itertools.islice(keys, 2)) == ["k00000", "k00002"]
    snapshot.close()
    with pytest.raises(ClosedError):
        list(keys)
