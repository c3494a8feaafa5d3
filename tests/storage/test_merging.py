"""A merged file has the bytes of one build of all records, or is refused by name."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import mmcache
from mmcache import BuildError, BuildReport, CorruptFileError, MissingFileError, Schema, Snapshot
from mmcache.errors import IncompatibleFormatError
from mmcache.format.records import MAX_NESTED_SHAPES
from mmcache.sharing import merging, publishing
from tests.storage.helpers import Image, reseal
from tests.support import inside

pytestmark = pytest.mark.usefixtures("no_disk_wait", "no_leaks")

Row = dict[str, Any]
DATA = Path(__file__).parent.parent / "data"


def content(path: Any) -> bytes:
    """All but the header, which differs from publish to publish."""
    with open(path, "rb") as file:
        return file.read()[256:]


def in_shards(rows: Sequence[Row], cuts: Sequence[int]) -> Iterator[Sequence[Row]]:
    """Some may be empty."""
    ends = sorted(cut % (len(rows) + 1) for cut in cuts)
    for begin, end in zip([0, *ends], [*ends, len(rows)], strict=True):
        yield rows[begin:end]


def check(
    at: Path,
    rows: Sequence[Row],
    schema: Schema,
    cuts: Sequence[int],
    *,
    cluster_by: str | None = None,
    clustered: bool = False,
) -> BuildReport | None:
    """Merging files of parts of the rows, and one build of all rows, do the same. clustered: the files, too."""
    files: list[Path] = []
    whole, error = None, None
    try:
        whole = mmcache.build(at / "whole.mmc", rows, schema, cluster_by=cluster_by)
    except BuildError as refused:
        error = refused
    try:
        for i, some in enumerate(in_shards(rows, cuts)):
            files.append(at / f"{i}.mmc")
            mmcache.build(files[-1], some, schema, cluster_by=cluster_by if clustered else None)
        merged = mmcache.merge(at / "merged.mmc", files, cluster_by=None if clustered else cluster_by)
    except BuildError:
        assert error is not None
        return None
    assert whole is not None, error
    assert content(at / "merged.mmc") == content(at / "whole.mmc")
    assert (merged.build_id, merged.sha256) == (whole.build_id, whole.sha256)
    assert (merged.records, merged.left_out) == (whole.records, whole.left_out)
    return merged


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all examples of a test."""
    return tmp_path_factory.mktemp("merging")


SCALARS = (
    None,
    True,
    False,
    0,
    1,
    7,
    1.0,
    0.5,
    -0.0,
    float("nan"),
    2**53 + 1,
    2.0**53,
    -(2**63),
    2**64 - 1,
    "",
    "a",
    "b",
    "\u00e4",
)
KEYS: dict[str, Callable[[random.Random], Any]] = {
    "text": lambda rng: rng.choice("abcdefghij") * rng.choice([1, 1, 40]),
    "int": lambda rng: rng.choice([*range(-3, 12), 2**64 - 1, -(2**63)]),
    "any": lambda rng: rng.choice([*range(6), *"abc", b"", b"x"]),
}


def row_of(seed: int, key: str, *, pair: bool, odd: bool, none: bool) -> Row:
    """A record of a little of everything: lists, maps, fields that only some have, in any order."""
    rng = random.Random(seed)

    def scalar() -> Any:
        return rng.choice(SCALARS)

    def inner() -> Any:
        names = rng.sample([*"xyz", *([1, 2] if odd else [])], rng.randrange(3))
        return {name: scalar() for name in names}

    def vector() -> Any:
        return None if rng.random() < 0.3 else [rng.uniform(-8, 8), rng.uniform(-8, 8)]

    row = {"id": KEYS[key](rng), "kind": scalar(), "tags": scalar(), "v": vector(), "w": vector()}
    if rng.random() < 0.5:
        row["tags"] = [scalar() for _ in range(rng.randrange(4))]
    if pair:
        row["b"] = KEYS["any"](rng)
    for name, value in (("m", inner), ("n", scalar), ("o", lambda: [inner()])):
        if rng.random() < 0.6:
            row[name] = value() if rng.random() < 0.8 or (name == "m" and not none) else None
    return dict(reversed(row.items())) if rng.random() < 0.2 else row


@st.composite
def tables(draw: Callable[..., Any], *, every: bool = False) -> tuple[Schema, list[Row]]:
    """Records with typed keys and keys of two fields, and a schema that says what becomes of keys that stand twice.

    every: also what a file does not tell of the rows that its build dropped: whether they had maps, and of which keys.
    """
    key, pair = draw(st.sampled_from(sorted(KEYS))), draw(st.booleans())
    rule = draw(st.sampled_from(["raise", "first", "last"]))
    every = every or rule == "raise"
    seeds = draw(st.lists(st.integers(0, 2**20), max_size=25))
    rows = [row_of(seed, key, pair=pair, odd=every, none=every) for seed in seeds]
    if rule == "raise" and draw(st.booleans()):
        rows = unique(rows, pair=pair)
    fields = ("id", "b") if pair else "id"
    return Schema("t", key=fields, index=("kind", "tags"), embedding=("v", "w"), on_duplicate=rule), rows


def unique(rows: list[Row], *, pair: bool) -> list[Row]:
    return list({repr((row["id"], row["b"] if pair else None)): row for row in rows}.values())


cuts = st.lists(st.integers(0, 30), min_size=1, max_size=2)


@given(tables(), cuts, st.sampled_from([None, "kind"]))
def test_merging_files_gives_the_bytes_of_one_build(place, table, at, cluster_by):
    schema, rows = table
    check(place, rows, schema, at, cluster_by=cluster_by)


@given(tables(), cuts)
def test_merging_clustered_files_gives_the_bytes_of_one_clustered_build(place, table, at):
    """Where no record is encoded again: here all have the same fields, and no map."""
    schema, rows = table
    fields = (*schema.key_fields, "kind", "tags", "v", "w")
    alike = [{name: row[name] for name in fields} for row in unique(rows, pair=len(schema.key_fields) > 1)]
    check(place, alike, schema, at, cluster_by="kind", clustered=True)


def plain(i: int) -> Row:
    return {
        "id": f"k{i}",
        "kind": f"x{i * 7 % 5}",
        "tags": [f"t{i % 3}", f"t{i % 4}"][: i % 3],
        "n": i / 2,
        "m": {"a": i} if i % 3 else None,
        "v": [float(i), 1.0] if i % 4 else None,
    }


SCHEMA = Schema("t", index=("kind", "tags", "n", "m.a"), embedding="v")
ROWS = [plain(i) for i in range(3000)]


@pytest.mark.parametrize("cluster_by", [None, "kind"])
@pytest.mark.parametrize("cuts", [[1000, 1001], [0, 3000], [1500] * 3, list(range(0, 3000, 100))])
def test_lists_bitmaps_and_ranges_are_merged(tmp_path, cuts, cluster_by):
    merged = check(tmp_path, ROWS, SCHEMA, cuts, cluster_by=cluster_by)
    assert merged is not None
    with Snapshot.open(tmp_path / "merged.mmc") as snapshot:
        assert snapshot["k1234"].asdict() == {name: value for name, value in plain(1234).items() if name != "v"}
        assert snapshot.where(kind="x3").ids == [row["id"] for row in ROWS if row["kind"] == "x3"]


def test_many_distinct_terms_are_merged(tmp_path):
    rows = [{"id": i, "one": f"term {i * 7919 % 20_000}", "many": [i, i + 1, f"{i}"]} for i in range(20_000)]
    check(tmp_path, rows, Schema("t", index=("one", "many")), [9000, 12_000])


def test_several_collections_are_merged_in_their_order(tmp_path):
    schemas = Schema("t", index=("kind",), embedding="v"), Schema("u", index=("n",))
    parts = [ROWS[:700], ROWS[700:]]
    mmcache.build(tmp_path / "whole.mmc", {"t": ROWS, "u": ROWS}, *schemas, metadata={"a": 1}, cluster_by="kind")
    for i, some in enumerate(parts):
        mmcache.build(tmp_path / f"{i}.mmc", {"t": some, "u": some}, *schemas, metadata={"a": 1}, cluster_by="kind")
    merged = mmcache.merge(tmp_path / "merged.mmc", [tmp_path / "0.mmc", tmp_path / "1.mmc"])
    assert content(tmp_path / "merged.mmc") == content(tmp_path / "whole.mmc")
    assert merged.records == {"t": 3000, "u": 3000}


@pytest.mark.parametrize("rule", ["first", "last"])
def test_a_key_of_several_files_counts_as_its_schema_says(tmp_path, rule):
    rows = [{"id": i % 70, "kind": i % 9, "v": [float(i)]} for i in range(200)]
    merged = check(tmp_path, rows, Schema("t", index=("kind",), embedding="v", on_duplicate=rule), [50, 90, 130])
    assert merged is not None
    assert merged.left_out["t"].duplicates == 130


def test_a_key_of_two_files_is_refused_by_name(tmp_path):
    for name in "ab":
        mmcache.build(tmp_path / f"{name}.mmc", [{"id": name}, {"id": "both"}], Schema("t"))
    with pytest.raises(BuildError, match=r"key 'both': the key stands twice, in records 1 and 3 \(from 0\)"):
        mmcache.merge(tmp_path / "m.mmc", [tmp_path / "a.mmc", tmp_path / "b.mmc"])
    assert (
        sorted(os.listdir(tmp_path)) == ["a.mmc", "a.mmc.ctl", "b.mmc", "b.mmc.ctl"]
        or not (tmp_path / "m.mmc").exists()
    )


def test_what_files_left_out_is_counted_and_named_together(tmp_path):
    schema = Schema("t", index=("kind",), on_invalid="skip")
    bad = {"id": "bad", "kind": {"no": "term"}}
    rows = [*ROWS[:30], bad, *ROWS[30:60], bad, bad, *[dict(bad, id=f"bad {i}") for i in range(30)], *ROWS[60:90]]
    rows = [{name: row[name] for name in ("id", "kind")} for row in rows]
    merged = check(tmp_path, rows, schema, [31, 62, 70])
    assert merged is not None
    assert merged.left_out["t"].invalid == 33
    assert len(merged.left_out["t"].rows) == 20


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_one_path_is_not_taken_for_several(tmp_path, kind):
    mmcache.build(tmp_path / "a.mmc", [{"id": 1}], Schema("t"))
    with pytest.raises(TypeError, match=r"shards must be several paths.*a\.mmc.*put it into a list"):
        mmcache.merge(tmp_path / "m.mmc", kind(tmp_path / "a.mmc"))
    assert os.listdir(tmp_path).count("m.mmc") == 0


def test_more_bad_rows_than_allowed_over_all_files_are_refused(tmp_path):
    schema = Schema("t", index=("kind",), on_invalid="skip", max_invalid=1)
    files = [tmp_path / "a.mmc", tmp_path / "b.mmc"]
    for i, file in enumerate(files):
        mmcache.build(file, [{"id": i, "kind": "a"}, {"id": f"bad {i}", "kind": {}}], schema)
    with pytest.raises(BuildError, match="max_invalid=1"):
        mmcache.merge(tmp_path / "m.mmc", files)


def test_records_whose_first_map_is_in_a_later_file_are_encoded_anew(tmp_path):
    rows = [{"id": i, "m": None if i < 5 else {"a": i}} for i in range(20)]
    check(tmp_path, rows, Schema("t"), [5, 9])
    check(tmp_path, rows[::-1], Schema("t"), [3, 16])


def test_maps_that_are_not_split_are_merged_as_one_build_has_them(tmp_path):
    rows = [{"id": i, "m": {f"{i % 3}-{j:090}": j for j in range(60 if i in (0, 9) else 3)}} for i in range(20)]
    check(tmp_path, rows, Schema("t"), [5, 9])
    check(tmp_path, rows, Schema("t"), [9, 15])


def test_more_sets_of_fields_than_maps_are_split_for_are_encoded_anew(tmp_path):
    rows = [{"id": i, "m": {f"f{i % 400}": i}} for i in range(900)]
    check(tmp_path, rows, Schema("t"), [MAX_NESTED_SHAPES - 1, 500])


def test_fields_in_another_order_are_put_in_that_of_the_first_file(tmp_path):
    rows = [{"id": i, "a": i, "b": {"c": i}} if i < 10 else {"b": {"c": i}, "a": i, "id": i} for i in range(20)]
    check(tmp_path, rows, Schema("t"), [10])


def test_shapes_that_a_dropped_row_met_first_keep_their_number(tmp_path):
    rows: list[Row] = [{"id": 0, "a": 1, "m": {}}, {"id": 1}, {"id": 2, "n": 1}, {"m": {}, "a": 2, "id": 3}, {"id": 1}]
    check(tmp_path, rows, Schema("t", on_duplicate="last"), [1])
    check(tmp_path, [*rows[:4], {"id": 1, "z": 1}], Schema("t", on_duplicate="last"), [1])


def test_embeddings_of_other_sizes_are_refused_with_the_way_out(tmp_path):
    for name, vector in (("a", None), ("b", [1.0, 2.0]), ("c", [1.0])):
        mmcache.build(tmp_path / f"{name}.mmc", [{"id": name, "v": vector}], Schema("t", embedding="v"))
    files = [tmp_path / f"{name}.mmc" for name in "abc"]
    with pytest.raises(BuildError, match=r"c\.mmc has embeddings 'v' of 1 numbers, and .*b\.mmc of 2; .*dim="):
        mmcache.merge(tmp_path / "m.mmc", files)
    merged = mmcache.merge(tmp_path / "m.mmc", files[:2])
    assert merged.embeddings["t"]["v"].records == 1
    with Snapshot.open(tmp_path / "m.mmc") as snapshot:
        assert snapshot.embeddings.tolist() == [[0.0, 0.0], [1.0, 2.0]]
        assert snapshot.has_embedding.tolist() == [False, True]


def test_norms_are_computed_where_a_file_has_none(tmp_path):
    rows = [{"id": i, "v": [float(i), 2.0]} for i in range(10)]
    schema = Schema("t", embedding="v")
    check(tmp_path, rows, schema, [4])
    image = Image.of((tmp_path / "1.mmc").read_bytes())
    image.parts = [part for part in image.parts if not part.name.startswith("0/norms")]
    os.unlink(tmp_path / "1.mmc")
    (tmp_path / "1.mmc").write_bytes(image.pack())
    mmcache.merge(tmp_path / "merged.mmc", [tmp_path / "0.mmc", tmp_path / "1.mmc"])
    assert content(tmp_path / "merged.mmc") == content(tmp_path / "whole.mmc")


# What does not fit together -------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "a.mmc", tmp_path / "b.mmc"]
    for i, file in enumerate(files):
        mmcache.build(file, ROWS[50 * i : 50 * i + 50], SCHEMA)
    return files


@pytest.mark.parametrize(
    ("schemas", "why"),
    [
        ([Schema("t", index=("kind",), embedding="v")], r"b\.mmc was built with index=\['kind'\], and .*a\.mmc with"),
        ([Schema("u", index=SCHEMA.index, embedding="v")], r"b\.mmc has the collections u, and .*a\.mmc has t"),
        ([SCHEMA, Schema("u")], "has the collections t, u"),
    ],
)
def test_files_of_other_schemas_are_refused_by_what_differs(two, schemas, why):
    mmcache.build(two[1], {schema.name: ROWS[:10] for schema in schemas}, *schemas)
    with pytest.raises(BuildError, match=why):
        mmcache.merge(two[0].parent / "m.mmc", two)
    assert not (two[0].parent / "m.mmc").exists()


def test_a_file_of_an_older_format_is_refused_by_name(two):
    with pytest.raises(IncompatibleFormatError, match=r"golden-1\.1\.0\.mmc"):
        mmcache.merge(two[0].parent / "m.mmc", [two[0], DATA / "golden-1.1.0.mmc"])


def test_no_file_and_a_missing_file_are_refused(two):
    with pytest.raises(BuildError, match="no file to merge"):
        mmcache.merge(two[0].parent / "m.mmc", [])
    with pytest.raises(MissingFileError, match=r"none\.mmc"):
        mmcache.merge(two[0].parent / "m.mmc", [two[0], two[0].parent / "none.mmc"])


def test_a_damaged_file_is_refused_wherever_the_damage_is(two):
    whole = two[1].read_bytes()
    os.chmod(two[1], 0o600)
    for at in np.linspace(0, len(whole) - 1, 60).astype(int).tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        two[1].write_bytes(damaged)
        with pytest.raises((CorruptFileError, IncompatibleFormatError), match=r"b\.mmc"):
            mmcache.merge(two[0].parent / "m.mmc", two)
    assert not (two[0].parent / "m.mmc").exists()


@pytest.mark.parametrize("section", ["0/ids", "0/rows", "0/index.0", "0/index.1", "0/index.2", "0/norms.0"])
def test_wrong_numbers_under_right_checksums_merge_or_are_refused(two, section):
    """No exception but ours, whatever stands there."""
    whole = two[1].read_bytes()
    image = Image.of(whole)
    place = next(i for i, part in enumerate(image.parts) if part.name == section)
    rng = np.random.default_rng(7)
    os.chmod(two[1], 0o600)
    refused = 0
    for _ in range(40):
        other = Image.of(whole)
        data = other.parts[place].data
        at = int(rng.integers(0, len(data)))
        data[at] = int(rng.integers(0, 256))
        two[1].write_bytes(reseal(other.pack()))
        try:
            mmcache.merge(two[0].parent / "m.mmc", two)
        except (CorruptFileError, BuildError):
            refused += 1
    assert refused or section == "0/norms.0"


# Publishing -----------------------------------------------------------------------------------------------------------


def test_a_merge_publishes_as_a_build_does(two):
    out = two[0].parent / "m.mmc"
    first = mmcache.merge(out, two, metadata={"by": "merge"})
    again = mmcache.merge(out, two, metadata={"by": "merge"})
    assert (first.generation, first.changed, again.generation, again.changed) == (1, True, 1, False)
    cache = mmcache.open(out)
    with cache:
        assert len(cache) == 100
        mmcache.merge(out, two[:1])
        assert cache.get("k70") is None or len(cache) == 50


def test_a_file_can_be_merged_into_its_own_place(two):
    merged = mmcache.merge(two[0], two)
    assert (merged.generation, merged.records) == (2, {"t": 100})


@pytest.mark.parametrize("times", [1, 3])
def test_a_merge_into_its_own_place_adds_to_what_another_published_meanwhile(tmp_path, monkeypatch, times):
    """Another merge publishes between the look at the file and the build lock, again and again."""
    out, part, left = tmp_path / "out.mmc", tmp_path / "part.mmc", list(range(times))
    mmcache.build(out, [{"id": "first"}], Schema("t"))
    mmcache.build(part, [{"id": "part"}], Schema("t"))
    real = publishing.build_once

    def overtaken(*args: Any, **options: Any) -> BuildReport:
        if left:
            monkeypatch.setattr(merging, "build_once", real)
            other = tmp_path / "other.mmc"
            mmcache.build(other, [{"id": f"other {left.pop()}"}], Schema("t"))
            mmcache.merge(out, [out, other])
            monkeypatch.setattr(merging, "build_once", overtaken)
        return real(*args, **options)

    monkeypatch.setattr(merging, "build_once", overtaken)
    report = mmcache.merge(out, [out, part])
    assert (report.changed, report.records) == (True, {"t": 2 + times})
    with Snapshot.open(out) as snapshot:
        assert set(snapshot) == {"first", "part", *(f"other {i}" for i in range(times))}


def test_merges_into_one_file_at_once_lose_nothing(tmp_path):
    """By threads: the build lock keeps those of one process apart, too. One of the files has a key that is there: its
    error is no other merge's."""
    out, n = tmp_path / "out.mmc", 8
    mmcache.build(out, [{"id": -1}], Schema("t"))
    parts = [tmp_path / f"{i}.mmc" for i in range(n)]
    for i, part in enumerate(parts):
        mmcache.build(part, [{"id": i or -1}], Schema("t"))

    def add(part: Path) -> int:
        try:
            return mmcache.merge(out, [out, part]).records["t"]
        except BuildError:
            return 0

    with ThreadPoolExecutor(n) as pool:
        sizes = sorted(pool.map(add, parts))
    assert sizes == [0, *range(2, n + 1)]
    with Snapshot.open(out) as snapshot:
        assert set(snapshot) == {-1, *range(1, n)}
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_metadata_and_source_stay_where_all_files_have_the_same(tmp_path):
    source = mmcache.JSONLinesSource(tmp_path / "t.jsonl", Schema("t", on_duplicate="first"))
    (tmp_path / "t.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    for name in "ab":
        mmcache.build(tmp_path / f"{name}.mmc", source, metadata={"x": 1})
    mmcache.merge(tmp_path / "m.mmc", [tmp_path / "a.mmc", tmp_path / "b.mmc"])
    with Snapshot.open(tmp_path / "m.mmc") as merged, Snapshot.open(tmp_path / "a.mmc") as one:
        assert merged.metadata == {"x": 1}
        assert merged.layout.source == one.layout.source
        assert merged.layout.header.fingerprint == one.layout.header.fingerprint
        assert len(merged) == 2
    mmcache.build(tmp_path / "b.mmc", [{"id": "c"}], Schema("t", on_duplicate="first"))
    mmcache.merge(tmp_path / "m.mmc", [tmp_path / "a.mmc", tmp_path / "b.mmc"])
    with Snapshot.open(tmp_path / "m.mmc") as merged:
        assert (merged.metadata, merged.layout.source, len(merged)) == ({}, None, 3)


def test_progress_tells_of_all_files(two):
    told: list[tuple[str, int, int | None]] = []
    mmcache.merge(two[0].parent / "m.mmc", two, progress=lambda *step: told.append(step))
    assert [step for step in told if step[0] == "t"] == [("t", 50, 100), ("t", 100, 100)]
    assert told[-1][0] == "write"
    assert told[-1][1] == told[-1][2]


def test_nothing_is_decoded_where_shapes_agree(tmp_path):
    with inside.no_record_is_encoded_again():
        check(tmp_path, ROWS[1:], SCHEMA, [1000, 2001])


@settings(max_examples=10)
@given(tables(), cuts)
def test_merging_merged_files_is_merging_all(place, table, at):
    schema, rows = table
    if check(place, rows, schema, at) is None:
        return
    files = sorted(place.glob("[0-9].mmc"))[: len(at) + 1]
    mmcache.merge(place / "some.mmc", files[1:])
    mmcache.merge(place / "all.mmc", [files[0], place / "some.mmc"])
    assert content(place / "all.mmc") == content(place / "whole.mmc")


def test_a_merge_hides_nothing_that_was_invalidated_since_its_files_were_built(tmp_path):
    with closing(sqlite3.connect(tmp_path / "t.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE t (id TEXT PRIMARY KEY, note TEXT)")
        db.execute("INSERT INTO t VALUES ('k1', 'old'), ('k2', 'old')")
        source = mmcache.SQLiteSource(tmp_path / "t.db", Schema("t"))
        shard = tmp_path / "shard.mmc"
        built = mmcache.build(shard, source)
        with mmcache.open(tmp_path / "t.mmc", source, executor="external", check_interval=1e9) as cache:
            assert cache["k1"]["note"] == "old"
            db.execute("UPDATE t SET note = 'new' WHERE id = 'k1'")
            cache.invalidate(["k1"])
            merged = mmcache.merge(tmp_path / "t.mmc", [shard], metadata={"merged": True})
            assert merged.changed
            cache.refresh()
            assert cache.generation == merged.generation
            assert [cache[key]["note"] for key in ("k1", "k2")] == ["new", "old"]
    with Snapshot.open(shard) as one, Snapshot.open(tmp_path / "t.mmc") as other:
        assert built.build_id != merged.build_id
        assert other.created == one.created


@pytest.mark.parametrize("there", ["nothing", "a later file"])
def test_a_merge_covers_nothing_that_its_files_lack(tmp_path, there):
    path, shard = tmp_path / "t.mmc", tmp_path / "shard.mmc"
    with closing(sqlite3.connect(tmp_path / "t.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE t (id TEXT PRIMARY KEY, note TEXT)")
        db.execute("INSERT INTO t VALUES ('k1', 'old'), ('k2', 'old'), ('k3', 'old')")
        source = mmcache.SQLiteSource(tmp_path / "t.db", Schema("t", index=("note",)))
        with mmcache.open(path, source, executor="external", build=False) as cache:
            assert cache["k1"]["note"] == "old"  # makes the page
            db.execute("UPDATE t SET note = 'new' WHERE id = 'k2'")
            cache.invalidate(["k2"])
            mmcache.build(shard, source)
            db.execute("UPDATE t SET note = 'new' WHERE id = 'k1'")
            cache.invalidate(["k1"])
            if there == "a later file":
                mmcache.build(path, source)
                cache.refresh()
                assert cache.status().state == "fresh"
            mmcache.merge(path, [shard], metadata={"merged": True})
            cache.refresh()
            assert [cache[key]["note"] for key in ("k1", "k2", "k3")] == ["new", "new", "old"]
            assert cache.where(note="new").ids == ["k1", "k2"]
            assert cache.stats().fallbacks["invalidated"] == 1 + 1  # a get and a where: what the shard has is its own
