"""A selection of rows of a file, of records of a source, and of both."""

from __future__ import annotations

import multiprocessing
import operator
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import mmcache
from mmcache import GenerationGoneError, Schema, Selection, Snapshot, SourceError, SourceRecord
from mmcache.storage.overlay import Overlay
from tests.storage.mixed import DIM, FILE, SCHEMA, N, build, check, entry, overlaid

pytestmark = pytest.mark.usefixtures("let_go")
only_tidies_up = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

# What a source says of dirty ids: two changed, two new, two gone; and later, when one more has changed.
SOURCE = {
    "new-b": entry("new-b", 1),
    "k03": entry("k03", 8),
    "new-a": entry("new-a", 5, extra=b"x"),
    "k10": entry("k10", 9),
}
DIRTY = ["new-a", "new-b", "k10", "k03", "k04", "k29"]
LATER = SOURCE | {"new-a": entry("new-a", 7), "k12": entry("k12", 1), "new-c": entry("new-c", 6)}
MIXED, MIXED_LATER = overlaid(DIRTY, SOURCE), overlaid([*DIRTY, "k12", "new-c"], LATER)
OTHER = [entry(f"k{i:02}", i + 100, row) for row, i in enumerate(range(N + 5, N - 15, -1))]
FROM_SOURCE = [entry(f"k{i:02}", i + 200) for i in (7, 3, 40, 31)] + [entry("new-a", 3)]
MODELS = {"file": FILE, "mixed": MIXED, "later": MIXED_LATER, "other": OTHER, "source": FROM_SOURCE}
ONE_GENERATION = {"file", "mixed", "later"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build(tmp_path_factory.mktemp("selection") / "i.mmc")


@pytest.fixture(scope="module")
def chosen(path, tmp_path_factory):
    """A selection of all records of each model."""
    other = build(tmp_path_factory.mktemp("other") / "i.mmc", OTHER)
    with Snapshot.open(path) as snapshot, Snapshot.open(other) as another:
        items = snapshot.default
        yield {
            "file": items.find({}),
            "mixed": Overlay(items, DIRTY, [e.given for e in SOURCE.values()]).everything(),
            "later": Overlay(items, [*DIRTY, "k12", "new-c"], [e.given for e in LATER.values()]).everything(),
            "other": another.default.find({}),
            "source": Selection.from_source([e.given for e in FROM_SOURCE], SCHEMA),
        }


kinds = st.sampled_from(sorted(MODELS))


@pytest.mark.parametrize("kind", MODELS)
def test_a_selection_in_each_state_is_what_the_model_is(chosen, kind):
    check(chosen[kind], MODELS[kind])


@only_tidies_up
@given(kinds, st.slices(N))
def test_a_slice_and_its_pickle_are_the_same_slice_of_the_model(chosen, kind, part):
    check(chosen[kind][part], MODELS[kind][part])
    check(pickle.loads(pickle.dumps(chosen[kind][part])), MODELS[kind][part])


# --- with another


def expected_of(operation, one, other, order):
    """What an operation by key gives; order: of all keys, for two selections of one generation."""
    mine, theirs = {e.key for e in one}, {e.key for e in other}
    found = {
        "or_": one + [e for e in other if e.key not in mine],
        "and_": [e for e in one if e.key in theirs],
        "sub": [e for e in one if e.key not in theirs],
    }[operation.__name__]
    return sorted(found, key=lambda e: order.index(e.key)) if order else found


parts = st.tuples(kinds, st.slices(N))
operations = st.sampled_from([operator.or_, operator.and_, operator.sub])


@only_tidies_up
@given(parts, parts, operations, st.booleans())
def test_operations_go_by_key_and_keep_the_left_record(chosen, left, right, operation, sent):
    a, b = chosen[left[0]][left[1]], chosen[right[0]][right[1]]
    mine, theirs = MODELS[left[0]][left[1]], MODELS[right[0]][right[1]]
    if sent:
        b = pickle.loads(pickle.dumps(b))
    order = None
    if {left[0], right[0]} <= ONE_GENERATION:
        order = [*(e.key for e in FILE), *(key for key in LATER if key.startswith("new"))]
    elif left[0] == right[0] == "other":
        order = [e.key for e in OTHER]
    elif left[0] != "source" and mine:  # records of another file arrive by value
        theirs = [e._replace(row=None) for e in theirs]
    check(operation(a, b), expected_of(operation, mine, theirs, order))


def test_a_union_of_two_queries_is_the_answer_of_one(chosen, path):
    with Snapshot.open(path) as snapshot:
        overlay = Overlay(snapshot.default, DIRTY, [e.given for e in SOURCE.values()])
        a, b = overlay.find({"tags": ("x",)}), overlay.find({"tags": ("y",)})
        assert (b | a).ids == (a[::-1] | b).ids == overlay.find({"tags": ("x", "y")}).ids
        assert (a & b).ids == (b[::-1] & a).ids
        assert len(a | b) == len(a - b) + len(b - a) + len(a & b)


def test_a_key_in_both_has_the_record_of_the_left_one(chosen):
    place = [e.key for e in MIXED].index("k03")
    assert (chosen["mixed"] | chosen["file"])[place].asdict() == SOURCE["k03"].fields
    assert (chosen["file"] | chosen["mixed"])[3].asdict() == FILE[3].fields
    assert (chosen["later"] & chosen["mixed"])[-1].asdict() == LATER["new-a"].fields


def test_rows_of_one_generation_are_joined_without_the_file(path):
    """By sets of rows: the file is closed, so that reading any record would raise."""
    with Snapshot.open(path) as snapshot:
        a, b = snapshot.where(kind="a"), snapshot.where(size=[1, 2])
        overlay = Overlay(snapshot.default, DIRTY, [e.given for e in SOURCE.values()])
        mixed = overlay.find({"kind": ("b",)})
    both = set(a.rows.tolist()) & set(b.rows.tolist())
    assert (a & b).rows.tolist() == sorted(both)
    assert len(a | b) == len(a) + len(b) - len(both)
    assert len(a - b) == len(a) - len(both)
    assert len(a | mixed) == len(mixed - a) + len(a)
    with pytest.raises(mmcache.ClosedError):
        (a & b).ids  # noqa: B018


def test_an_operation_with_anything_else_is_a_type_error(chosen):
    for other in (["k01"], {"k01"}, None, chosen["file"].rows):
        for operation in (operator.or_, operator.and_, operator.sub):
            with pytest.raises(TypeError):
                operation(chosen["mixed"], other)


# --- a sequence


@pytest.mark.parametrize("kind", MODELS)
def test_an_index_is_an_int_of_any_kind_or_a_slice(chosen, kind):
    found, model = chosen[kind], MODELS[kind]
    for one in (np.int64(2), np.uint32(2), np.array(2), True):
        assert found[one].id == model[int(one)].key
    for wrong in (np.array([1, 2]), np.array([True] * len(found)), [1], 1.0, "k01", None):
        with pytest.raises(TypeError, match=f"takes an int or a slice, not {type(wrong).__name__}"):
            found[wrong]
    with pytest.raises(IndexError, match=f"record {len(model)} of a Selection of {len(model)}"):
        found[len(model)]


def test_its_text_tells_how_many_the_source_gave(chosen):
    assert repr(chosen["file"]) == f"<Selection of {N} records>"
    assert repr(chosen["mixed"]) == f"<Selection of {N} records, 4 from the source>"
    assert repr(chosen["mixed"][:3]) == "<Selection of 3 records>"
    assert repr(chosen["source"]) == "<Selection of 5 records, 5 from the source>"


@pytest.mark.parametrize("kind", MODELS)
def test_two_selections_are_equal_only_if_they_are_one(chosen, kind):
    assert chosen[kind] == chosen[kind]
    assert chosen[kind] != chosen[kind][:]
    assert len({chosen[kind], chosen[kind][:]}) == 2


def test_a_record_of_the_source_is_the_callers_own(chosen):
    changed = chosen["mixed"][3]
    changed["about"]["tags"].append("mine")
    assert chosen["mixed"][3].asdict() == SOURCE["k03"].fields
    assert next(iter(chosen["mixed"][3:])).asdict() == SOURCE["k03"].fields


def test_an_empty_answer_of_a_source_is_complete():
    check(Selection.from_source([], SCHEMA), [])
    assert repr(Selection.from_source([], SCHEMA)) == "<Selection of 0 records>"


def test_what_the_source_fails_with_is_raised_when_it_is_asked():
    def failing():
        yield FROM_SOURCE[0].given
        raise SourceError("no such table")

    with pytest.raises(SourceError, match="no such table"):
        Selection.from_source(failing(), SCHEMA)


# --- embeddings


def test_consecutive_rows_are_a_view_of_the_file_also_as_a_slice(path):
    with Snapshot.open(path) as snapshot:
        found = Overlay(snapshot.default, DIRTY, [e.given for e in SOURCE.values()]).everything()
        assert np.shares_memory(found[11:20].embeddings, snapshot.embeddings)
        assert not np.shares_memory(found[:20].embeddings, snapshot.embeddings)
        assert not np.shares_memory(found[0:10:2].embeddings, snapshot.embeddings)


def test_the_length_of_embeddings_is_of_the_file_the_schema_or_the_first(tmp_path):
    plain, fixed = Schema("items", embedding="v"), Schema("items", embedding="v", dim=2)
    record = SourceRecord(("id",), ["a"], np.ones(2, "<f4").tobytes())
    bare = SourceRecord(("id",), ["b"], None)
    assert Selection.from_source([bare, record], plain).embeddings.tolist() == [[0, 0], [1, 1]]
    assert Selection.from_source([bare], plain).embeddings.shape == (1, 0)
    assert Selection.from_source([bare], fixed).embeddings.shape == (1, 2)
    mmcache.build(tmp_path / "none.mmc", [{"id": "a", "v": None}, {"id": "b"}, {"id": "c"}], plain)
    with Snapshot.open(tmp_path / "none.mmc") as snapshot:
        found = Overlay(snapshot.default, ["b"], [SourceRecord(("id",), ["b"], record.vector)]).everything()
        assert found.embeddings.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_an_embedding_of_another_length_is_an_error_that_names_the_key(path):
    wrong = SourceRecord(("id",), ["k05"], np.ones(DIM + 1, "<f4").tobytes())
    with Snapshot.open(path) as snapshot:
        found = Overlay(snapshot.default, ["k05"], [wrong]).everything()
        with pytest.raises(SourceError, match="embedding of 'k05' has 4 numbers, where others have 3"):
            found.embeddings  # noqa: B018
        assert found[:5].embeddings.shape == (5, DIM)


# --- Arrow


@pytest.mark.parametrize("kind", MODELS)
def test_a_selection_in_each_state_is_an_arrow_table(chosen, kind):
    pa = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    table = chosen[kind].to_arrow()
    table.validate(full=True)
    extra = ["extra"] if kind == "mixed" else []
    assert table.column_names == ["id", "kind", "tags", "about", "size", *extra, "v"]
    assert table.column("v").type == pa.list_(pa.float32(), DIM)
    for found, e in zip(table.to_pylist(), MODELS[kind], strict=True):
        assert found == dict.fromkeys(table.column_names) | e.fields | {"v": e.vector}
    assert chosen[kind].to_arrow(columns=["v", "id"]).column_names == ["v", "id"]
    with pytest.raises(ValueError, match="no column 'nope'; there are: id, kind"):
        chosen[kind].to_arrow(columns=["nope"])
    sent = pickle.loads(pickle.dumps(chosen[kind][::-2]))
    assert sent.to_arrow().equals(chosen[kind][::-2].to_arrow())


def test_a_selection_of_a_source_without_embeddings_has_no_such_column():
    pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    bare = SourceRecord(("id",), ["b"], None)
    assert Selection.from_source([bare], Schema("items", embedding="v")).to_arrow().column_names == ["id"]
    assert Selection.from_source([], Schema("items", embedding="v")).to_arrow().column_names == []
    assert Selection.from_source([bare], SCHEMA).to_arrow().column_names == ["id", "v"]


# --- sent to another process


def look_at(selection):
    """In the other process."""
    return selection.ids, selection.embeddings.tolist(), [r.asdict() for r in selection], selection.complete


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_another_process_reads_the_same_records_in_each_state(chosen, method):
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        for kind in MODELS:
            for found in (chosen[kind], chosen[kind][::-3], chosen[kind] - chosen["other"]):
                assert pool.submit(look_at, found).result() == look_at(found)


def test_a_few_records_of_the_source_add_little_to_a_pickle(tmp_path):
    entries = [entry(f"k{i:04}", i) for i in range(1000)]
    with Snapshot.open(build(tmp_path / "i.mmc", entries)) as snapshot:
        rows = snapshot.default.find({})
        mixed = Overlay(snapshot.default, DIRTY, [e.given for e in SOURCE.values()]).everything()
        assert len(pickle.dumps(mixed)) < 1.2 * len(pickle.dumps(rows))
        assert len(pickle.dumps(rows)) < 400 + 4 * len(rows) + len(str(tmp_path))
        assert len(pickle.dumps(mixed[500:])) < 400 + 4 * len(rows) // 2 + len(str(tmp_path)) + 400


def test_of_a_generation_that_is_gone_only_the_rows_are_lost(tmp_path):
    path = build(tmp_path / "i.mmc")
    with Snapshot.open(path) as snapshot:
        sent = pickle.dumps(Overlay(snapshot.default, DIRTY, [e.given for e in SOURCE.values()]).everything())
    build(path, FILE[1:])
    build(path, FILE[2:])
    found = pickle.loads(sent)
    assert len(found) == N
    assert found[3].asdict() == SOURCE["k03"].fields
    assert found[-1].asdict() == SOURCE["new-a"].fields
    for use in (lambda: found[0], lambda: found.ids, lambda: found.embeddings, lambda: list(found)):
        with pytest.raises(GenerationGoneError, match="expected generation 1, found generation 3"):
            use()
    given = found[-2:]
    assert given.ids == ["new-b", "new-a"]
    assert [record.asdict() for record in given] == [SOURCE["new-b"].fields, SOURCE["new-a"].fields]
    assert (given | found[3:4]).ids == ["k03", "new-b", "new-a"]
