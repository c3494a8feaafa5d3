"""Tables of text: what their columns are, and what is wrong with a row."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given, strategies as st

import mmcache
from mmcache import BuildError, CSVSource, Invalid, Schema, Snapshot, SourceError
from mmcache.sharing.publishing import rebuild
from mmcache.sources import from_spec

pytestmark = pytest.mark.usefixtures("no_leaks")


def records(path, schema=None, **options):
    with CSVSource(path, schema or Schema("t"), **options).read() as reading:
        return [dict(zip(row.names, row.values, strict=True)) for row in reading.records("t")]


def column(tmp_path, texts, **options):
    lines = "".join(f'{i},"{text}"\n' for i, text in enumerate(texts))
    (tmp_path / "t.csv").write_text("id,v\n" + lines)
    return [record["v"] for record in records(tmp_path / "t.csv", **options)]


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1", "-2", ""], [1, -2, None]),
        (["0", "18446744073709551615", "-9223372036854775808"], [0, 2**64 - 1, -(2**63)]),
        (["18446744073709551616"], ["18446744073709551616"]),
        (["1", "007"], ["1", "007"]),
        (["+1", "2"], ["+1", "2"]),
        (["1", "2.5"], [1.0, 2.5]),
        (["1e3", "-.5", "nan", "-inf"][:2], [1000.0, -0.5]),
        (["1.5", "-inf"], [1.5, float("-inf")]),
        (["nan", "inf"], ["nan", "inf"]),
        (["-0"], [-0.0]),
        (["1e999", "1"], ["1e999", "1"]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["true", "FALSE", "", "True"], [True, False, None, True]),
        (["true", "1"], ["true", "1"]),
        (["1", "2\n3"], ["1", "2\n3"]),
        (["1 ", "2"], ["1 ", "2"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["٣", "2"], ["٣", "2"]),
        (["", ""], [None, None]),
        (["2026-01-31", "x"], ["2026-01-31", "x"]),
    ],
)
def test_a_column_has_the_type_of_all_its_values(tmp_path, texts, values):
    found = column(tmp_path, texts)
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


@given(st.lists(st.sampled_from(["1", "-5", "0.5", "x", "", "true", "1e5", "00", "9007199254740993"]), max_size=8))
def test_the_type_does_not_depend_on_the_order_of_rows(tmp_path_factory, texts):
    directory = tmp_path_factory.mktemp("order")
    there = column(directory, texts)
    back = column(directory, texts[::-1])
    assert list(map(repr, there)) == list(map(repr, back[::-1]))


def test_one_late_value_makes_a_whole_column_text(tmp_path):
    assert column(tmp_path, [*map(str, range(5000)), "x"])[0] == "0"
    assert column(tmp_path, [*map(str, range(5000))])[0] == 0


def test_a_declared_type_is_kept_and_a_value_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("id,zip,n,tags\na,01234,5,[1]\nb,9,x,\n")
    schema = Schema("t", casts={"zip": "str", "n": "int"}, json=("tags",))
    with pytest.raises(
        BuildError, match=r"key 'b': line 3: field 'n': 'x' is no whole number; the Schema casts it to int"
    ):
        records(tmp_path / "t.csv", schema)
    skipping = Schema("t", casts={"zip": "str", "n": "int"}, json=("tags",), on_invalid="skip")
    report = mmcache.build(tmp_path / "t.mmc", CSVSource(tmp_path / "t.csv", skipping))
    assert report.left_out["t"].invalid == 1
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        assert snapshot["a"].asdict() == {"id": "a", "zip": "01234", "n": 5, "tags": [1]}
    (found,) = CSVSource(tmp_path / "t.csv", skipping).fetch("t", ["b"])
    assert isinstance(found, Invalid)
    assert found.record is not None
    assert found.record.values[0] == "b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,v\na,1\nb\n", "line 3: 1 fields, and the header has 2"),
        ("id,v\na,1\nb,2,3\n", "line 3: 3 fields, and the header has 2"),
        ('id,v\na,"x\ny"\n\nb\n', "line 5: 1 fields"),
        ('id,v\na,"x\n', "line 2: unexpected end of data"),
        ('id,v\na,"x"y\n', "line 2: ',' expected after"),
        ("id,v\n,1\n", "line 2: the key 'id': a key cannot be None"),
        ("key,v\na,1\n", "no column 'id', which is the key, in the header: 'key', 'v'"),
        ("id,v,v\na,1,2\n", "the columns 'v' and 'v' would both be the field 'v'"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_line(tmp_path, text, reason):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BuildError, match=reason) as caught:
        records(tmp_path / "t.csv")
    assert caught.value.path == str(tmp_path / "t.csv")


def test_rows_that_cannot_be_used_are_left_out_if_asked(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"id,v\na,1\nb\nc,2,3\nd,\xe9\ne,5\n")
    report = mmcache.build(tmp_path / "t.mmc", CSVSource(tmp_path / "t.csv", Schema("t", on_invalid="skip")))
    assert (report.left_out["t"].invalid, report.records) == (3, {"t": 2})


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("id,v\nü,1\n".encode(), {}),
        ("id,v\nü,1\n".encode("utf-8-sig"), {}),
        ("id,v\r\nü,1\r\n".encode("utf-16"), {}),
        ("id,v\nü,1\n".encode("cp1252"), {"encoding": "cp1252"}),
        (gzip.compress("id;v\nü;1\n".encode(), mtime=0), {}),
        ("id\tv\nü\t1\n".encode(), {}),
        ("id|v\nü|1\n".encode(), {}),
        ("\n\nid,v\nü,1".encode(), {}),
        ("ü,1\n".encode(), {"fields": ("id", "v")}),
        ("'id','v'\n'ü',1\n".encode(), {"quotechar": "'"}),
        ("id!v\nü!1\n".encode(), {"delimiter": "!"}),
    ],
)
def test_encodings_delimiters_and_headers(tmp_path, data, options):
    (tmp_path / "t.csv").write_bytes(data)
    assert records(tmp_path / "t.csv", **options) == [{"id": "ü", "v": 1}]
    source = CSVSource(tmp_path / "t.csv", Schema("t"), **options)
    mmcache.build(tmp_path / "t.mmc", source)
    spec = source.spec()
    assert spec is not None
    assert from_spec(spec, source.schemas).spec() == spec
    assert not rebuild(tmp_path / "t.mmc").changed


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.tsv.gz"])
def test_what_cuts_a_quoted_name_is_no_delimiter(tmp_path, name):
    mark = "\t" if "tsv" in name else ","
    text = f'"id"{mark}"a;b;c;d"\nk{mark}1\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert records(tmp_path / name) == [{"id": "k", "a;b;c;d": 1}]
    text = f"id{mark}a;b;c;d\nk{mark}1\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    if "tsv" in name:
        assert records(tmp_path / name) == [{"id": "k", "a;b;c;d": 1}]


def test_a_name_may_go_on_in_the_next_line(tmp_path):
    (tmp_path / "t.csv").write_text('id;c;"a,\nb"\nk;2;1\n')
    assert records(tmp_path / "t.csv") == [{"id": "k", "a,\nb": 1, "c": 2}]


def test_bytes_of_another_encoding_are_named_with_the_way(tmp_path):
    (tmp_path / "t.csv").write_bytes("id,v\na,x\nb,é\n".encode("cp1252"))
    (tmp_path / "header.csv").write_bytes("id,größe\na,1\n".encode("cp1252"))
    with pytest.raises(BuildError, match=r"the header in line 1 is not UTF-8: .*; say what it is by encoding="):
        mmcache.build(tmp_path / "t.mmc", CSVSource(tmp_path / "header.csv", Schema("t")))
    with pytest.raises(BuildError, match=r"line 3: field 'v' is not UTF-8; say what it is by encoding="):
        records(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes("id,v\na,x\n".encode("utf-16")[:-1])
    with pytest.raises((BuildError, SourceError), match=r"t\.csv"):
        records(tmp_path / "t.csv")


def test_null_is_what_nulls_says(tmp_path):
    assert column(tmp_path, ["", "NULL", "a"]) == [None, "NULL", "a"]
    assert column(tmp_path, ["", "NULL", "a"], nulls=("NULL",)) == ["", None, "a"]
    assert column(tmp_path, ["1", "NULL"], nulls=("NULL", "")) == [1, None]
    assert column(tmp_path, ["", "a"], nulls=()) == ["", "a"]


def test_a_long_field_is_read(tmp_path):
    assert column(tmp_path, ["x" * 1_000_000])[0] == "x" * 1_000_000


def test_names_of_the_schema_that_the_header_lacks_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("id,v\na,1\n")
    with pytest.raises(BuildError, match="casts: there is no column 'w'; there are: id, v"):
        records(tmp_path / "t.csv", Schema("t", casts={"w": "int"}))
    with pytest.raises(BuildError, match="renames: there is no column 'w'"):
        records(tmp_path / "t.csv", Schema("t", renames={"w": "x"}))
    renamed = Schema("t", key="name", renames={"id": "name"}, casts={"v": "str"}, columns=("v",))
    assert records(tmp_path / "t.csv", renamed) == [{"name": "a", "v": "1"}]


@pytest.mark.parametrize(
    "options", [{"delimiter": ",,"}, {"quotechar": "\n"}, {"encoding": "nope"}, {"fields": "id"}, {"nulls": (None,)}]
)
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"must be|is not known"):
        CSVSource(tmp_path / "t.csv", Schema("t"), **options)
    with pytest.raises(SourceError, match="cannot be made again"):
        from_spec({"kind": "csv", "path": "/t.csv", **options}, [Schema("t")])


def test_embeddings_are_text_of_json(tmp_path):
    (tmp_path / "t.csv").write_text('id,v\na,"[1, 2.5]"\nb,\n')
    with CSVSource(tmp_path / "t.csv", Schema("t", embedding="v")).read() as reading:
        assert [row.vector for row in reading.records("t")] == [b"\0\0\x80?\0\0 @", None]
