"""Which source an argument or a file's spec stands for, and what is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmcache import sources
from mmcache.errors import SourceError
from mmcache.presets.patterns import PatternsSource
from mmcache.schema import Schema
from mmcache.sources import IterableSource, JSONLinesSource, SQLiteSource, as_source, from_spec

ITEMS = Schema("items")


def run(script):
    subprocess.run([sys.executable, "-c", f"import sys\n{script}"], check=True)


def test_importing_sources_is_cheap():
    run("import mmcache.sources\nassert not {'numpy', 'sqlite3', 'gzip', 'mmcache.sources.sqlite'} & set(sys.modules)")
    run("from mmcache.sources import IterableSource\nassert not {'numpy', 'sqlite3'} & set(sys.modules)")
    run("from mmcache.sources import SQLiteSource\nassert 'sqlite3' in sys.modules and 'numpy' not in sys.modules")
    run("from mmcache.presets.patterns import PatternsSource\nassert 'numpy' not in sys.modules")


def test_every_public_name_is_there():
    for name in sources.__all__:
        assert getattr(sources, name).__module__.startswith("mmcache.sources")
    with pytest.raises(AttributeError, match="no attribute 'PatternsSource'"):
        sources.PatternsSource  # noqa: B018 (a preset is not a source's public name)


def test_a_source_is_itself(tmp_path):
    for source in (
        SQLiteSource(tmp_path / "x.db", ITEMS),
        JSONLinesSource(tmp_path / "x", ITEMS),
        IterableSource([], ITEMS),
    ):
        assert as_source(source, []) is source
        with pytest.raises(TypeError, match=r"a source has its own schemas \(items\)"):
            as_source(source, [ITEMS])


def test_anything_else_is_records():
    source = as_source([{"id": "a"}], iter([ITEMS]))
    assert isinstance(source, IterableSource)
    assert source.schemas == (ITEMS.resolved("id"),)
    several = as_source({"a": [{"id": "x"}], "b": []}, [Schema("a"), Schema("b")])
    with several.read() as reading:
        assert [record.values for record in reading.records("a")] == [("x",)]
    with pytest.raises(TypeError, match="records need a Schema"):
        as_source([{"id": "a"}], [])


def test_every_spec_makes_its_source_again(tmp_path):
    for source in (
        SQLiteSource(tmp_path / "x.db", ITEMS, Schema("b")),
        JSONLinesSource(tmp_path / "x.jsonl", ITEMS),
        PatternsSource(tmp_path / "x.db", ITEMS),
    ):
        spec = source.spec()
        assert spec == {"kind": source.kind, "path": source.path}
        again = from_spec(spec, source.schemas)
        assert type(again) is type(source)
        assert (again.spec(), again.schemas) == (spec, source.schemas)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            {"kind": "os:system", "path": "x"},
            "unknown kind of source 'os:system'; this version knows: sqlite, jsonl, json, csv, parquet, arrow",
        ),
        ({"kind": ["sqlite"], "path": "x"}, "unknown kind"),
        ({}, "unknown kind of source None"),
        ({"kind": "sqlite"}, "needs a path, found None"),
        ({"kind": "sqlite", "path": 5}, "needs a path, found 5"),
        ({"kind": "sqlite", "path": "a\0b"}, "cannot be made again: .*NUL"),
        ({"kind": "jsonl", "path": "x"}, "cannot be made again"),
    ],
)
def test_a_spec_from_a_file_is_not_trusted(spec, reason):
    with pytest.raises(SourceError, match=reason):
        from_spec(spec, [ITEMS, Schema("b")])
