"""Paths that are not UTF-8, and limits of descriptors: what is logged, what a file names, and what errors say."""

from __future__ import annotations

import logging
import os
import resource
import sys
from pathlib import Path

import pytest

import mmcache
from mmcache import Schema, SourceError, SQLiteSource
from mmcache.cli import main
from tests.support.console import SHOP, make_shop, run, write
from tests.support.processes import ask_child

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    made.mkdir()
    return made


def test_log_lines_can_be_written_as_utf8(directory, tmp_path, capfd):
    source = make_shop(directory / "shop.db")
    handler = logging.FileHandler(tmp_path / "log", encoding="utf-8")
    log = logging.getLogger("mmcache")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        with mmcache.open(directory / "items.mmc", source, executor="external") as cache:
            cache.invalidate(["s1"])
            cache.rebuild()
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
        handler.close()
        source.close()
    assert "Logging error" not in capfd.readouterr().err
    assert r"caf\udce9" in (tmp_path / "log").read_text("utf-8")


@pytest.mark.parametrize("kind", ["sqlite", "jsonl"])
def test_a_file_names_its_source_and_is_rebuilt_from_it(directory, kind):
    path = directory / "items.mmc"
    if kind == "sqlite":
        source: mmcache.Source = make_shop(directory / "shop.db")
    else:
        (directory / "items.jsonl").write_text('{"id": "a"}\n')
        source = mmcache.JSONLinesSource(directory / "items.jsonl", Schema("items"))
    mmcache.build(path, source)
    if kind == "sqlite":
        write(directory / "shop.db", "UPDATE items SET price = 7")
    else:
        (directory / "items.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    done = run("rebuild", path)
    assert done.code == 0, done.err
    assert "generation 2" in done.out
    assert run("status", path, "--json").code == 0
    if isinstance(source, SQLiteSource):
        source.close()
        assert main(["--quiet", "track", "--like", str(path)]) == 0


def test_sqlite_without_descriptors_says_so(tmp_path):
    source = make_shop(tmp_path / "shop.db")
    source.close()

    def ask() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        try:
            SQLiteSource(tmp_path / "shop.db", SHOP).fetch("items", ["s1"])
        except SourceError as error:
            return str(error)
        return ""

    error = ask_child(ask)
    assert "too many open files" in error
    assert "ulimit -n is 64" in error
