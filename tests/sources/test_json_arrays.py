"""JSON arrays and values one after another, read piece by piece."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from mmcache import BuildError, JSONSource, Schema, SourceError

pytestmark = pytest.mark.usefixtures("no_leaks")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def records(path, schema=None):
    with JSONSource(path, schema or Schema("t")).read() as reading:
        return [dict(zip(row.names, row.values, strict=True)) for row in reading.records("t")]


@given(
    items=st.lists(values, max_size=12),
    pad=st.integers(65_400, 65_700),
    form=st.tuples(st.booleans(), st.sampled_from([None, 1]), st.booleans()),
)
def test_pieces_end_wherever_they_end(tmp_path_factory, items, pad, form):
    is_array, indent, is_ascii = form
    rows = [{"id": "first", "pad": "x" * pad}, *({"id": f"k{i}", "v": item} for i, item in enumerate(items))]
    texts = [json.dumps(row, indent=indent, ensure_ascii=is_ascii) for row in rows]
    path = tmp_path_factory.mktemp("json") / "t.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=is_ascii) if is_array else "\n".join(texts)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert records(path) == json.loads(json.dumps(rows))


def test_an_element_may_be_longer_than_a_piece(tmp_path):
    row = {"id": "a", "text": "\\é\n" * 500_000}
    (tmp_path / "t.json").write_text(json.dumps([row, {"id": "b"}]))
    assert records(tmp_path / "t.json") == [row, {"id": "b"}]


@pytest.mark.parametrize("text", ["[]", " [ ] \n", '[\n {"id": "a"}\n]\n', '\ufeff[{"id": "a"}]', '{"id": "a"}'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_marks_white_space_and_empty_arrays(tmp_path, text, encoding):
    (tmp_path / "t.json").write_bytes(
        text.removeprefix("\ufeff").encode(encoding) if encoding != "utf-8" else text.encode()
    )
    assert records(tmp_path / "t.json") == [{"id": "a"}] * ("a" in text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"id": "a"},\n {"id": "b"}', r"element 2, line 2: this is not JSON: the array does not end"),
        ('[{"id": "a"},\n {"id": "b"', r"element 1, line 2: this is not JSON: Expecting"),
        ('[{"id": "a"},\n {"id": "b}]', r"element 1, line 2: this is not JSON: Unterminated string"),
        ('[{"id": "a"},\n {"id": nope}, {"id": "c"}]', r"element 1, line 2: this is not JSON: Expecting value"),
        ('[{"id": "a"},\n]', r"element 1, line 2: this is not JSON: Expecting value"),
        ('[{"id": "a"}\n{"id": "b"}]', r"element 1, line 2: this is not JSON: expected ',' or ']'"),
        ('[{"id": "a"}]\n[]', r"there is more after the end of the array"),
        ("[" + "[" * 100_000, r"nests too deep"),
        ('[{"id": "a"}, 7]', r"element 1: a record must be a mapping, not int"),
        ('[{"id": "a"}, {"key": 7}]', r"element 1: no field 'id'"),
        ('[{"id": "a"},\n {"id": "b", "n": ' + "1" * 5000 + "}]", r"element 1, line 2: this is not JSON: .*digits"),
        (b'[{"id": "a"},\n {"id": "\xff"}]', r"near line 2: 'utf-8' codec"),
    ],
)
def test_what_cannot_be_used_is_named_by_element_and_line(tmp_path, text, reason):
    (tmp_path / "t.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BuildError, match=reason) as caught:
        records(tmp_path / "t.json")
    assert caught.value.path == str(tmp_path / "t.json")
    with pytest.raises(SourceError, match=reason):
        JSONSource(tmp_path / "t.json", Schema("t")).fetch("t", ["a"])


def test_an_early_error_is_found_early(tmp_path):
    (tmp_path / "t.json").write_text('[{"id": nope}, ' + ", ".join(['{"id": "a"}'] * 100_000) + "]")
    source = JSONSource(tmp_path / "t.json", Schema("t"))
    with source.read() as reading:
        with pytest.raises(BuildError, match="element 0, line 1"):
            next(reading.records("t"))
        (handle,) = open_files(source.path)
        assert handle <= 1 << 18


def open_files(path):
    """How far this process has read the file, for each descriptor of it."""
    import os

    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == path:
                with open(f"/proc/self/fdinfo/{name}") as info:
                    yield int(info.readline().split()[1])
        except FileNotFoundError:
            continue


def test_elements_that_are_no_records_are_left_out_if_asked(tmp_path):
    (tmp_path / "t.json").write_text('[{"id": "a"}, 7, {"id": 1.5}, {"id": "b"}]')
    with JSONSource(tmp_path / "t.json", Schema("t", on_invalid="skip")).read() as reading:
        assert [type(row).__name__ for row in reading.records("t")] == [
            "SourceRecord",
            "Invalid",
            "Invalid",
            "SourceRecord",
        ]
