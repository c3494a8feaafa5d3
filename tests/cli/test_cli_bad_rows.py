"""Bad rows on the command line: left out, counted and named, by choices that the file keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcache.cli import main
from tests.support.console import run

LINES = ['{"id": "a", "n": 1}', '{"id": "a", "n": 2}', '{"id": null}', "no JSON", '{"id": "b", "n": 3}']


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(LINES), "utf-8")
    return path


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Any:
    assert main([*map(str, words), "--json"]) == code
    return json.loads(capsys.readouterr().out or "null")


def test_build_leaves_bad_rows_out_and_names_them(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = source.with_suffix(".mmc")
    words = ["build", source, "-o", file, "--on-invalid", "skip", "--max-invalid", "2", "--on-duplicate", "last"]
    done = said(capsys, *words)
    assert done["records"] == {"items": 2}
    left_out = done["left_out"]["items"]
    assert (left_out["invalid"], left_out["duplicates"]) == (2, 1)
    assert left_out["rows"][1][1].startswith("line 4 is not JSON")
    assert said(capsys, "status", file)["collections"]["items"]["left_out"] == left_out
    assert json.loads(run("get", file, "a").out)["n"] == 2


def test_build_and_status_print_what_was_left_out(source: Path) -> None:
    file = source.with_suffix(".mmc")
    done = run("build", source, "-o", file, "--on-invalid", "skip", "--on-duplicate", "first")
    assert done.code == 0
    assert "left out of items: 2 that could not be taken and 1 with a key of another" in done.out
    assert done.err.count("leaves out rows of collection 'items'") <= 1
    assert "left out" in run("status", file).out


def test_rebuild_keeps_the_choice_or_takes_another(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = source.with_suffix(".mmc")
    said(capsys, "build", source, "-o", file, "--on-invalid", "skip", "--max-invalid", "2", "--on-duplicate", "first")
    assert json.loads(run("get", file, "a").out)["n"] == 1
    source.write_text("\n".join([*LINES, "{"]), "utf-8")
    assert "max_invalid=2" in run("rebuild", file).err
    done = said(capsys, "rebuild", file, "--max-invalid", "3", "--on-duplicate", "last")
    assert done["left_out"]["items"]["invalid"] == 3
    assert json.loads(run("get", file, "a").out)["n"] == 2
    assert run("rebuild", file, "--on-invalid", "raise").code == 1


def test_a_build_without_the_choice_fails_by_name(source: Path) -> None:
    done = run("build", source, "-o", source.with_suffix(".mmc"))
    assert done.code == 1
    assert "the key 'id'" in done.err
    for command in (["build", source, "-o", "x.mmc"], ["rebuild", "x.mmc"]):
        assert run(*command, "--max-invalid", 3, "--on-invalid", "raise").code == 2


def test_max_invalid_alone_means_to_leave_out(source: Path) -> None:
    file = source.with_suffix(".mmc")
    assert run("build", source, "-o", file, "--max-invalid", 2, "--on-duplicate", "first").code == 0
    assert run("build", source, "-o", file, "--max-invalid", 1, "--on-duplicate", "first").code == 1
