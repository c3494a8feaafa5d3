"""`mmcache rollback`, `resume`, `disable` and `enable`: what they print, and their exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmcache
from mmcache.cli.main import make_parser
from tests.support import inside
from tests.support.console import document, make_shop, run_here as run, write

LEVERS = ("rollback", "resume", "disable", "enable")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    source = make_shop(tmp_path / "shop.db")
    made = tmp_path / "items.mmc"
    mmcache.build(made, source)
    write(tmp_path / "shop.db", "UPDATE items SET price = 99")
    mmcache.build(made, source)
    source.close()
    return made


def test_a_rollback_and_its_end(path, capsys):
    code, out, err = run(capsys, "rollback", path, "--reason", "bad\nprices")
    assert code == 0
    assert "generation 3" in out
    assert "mmcache resume" in err
    seen = document(capsys, "status", path)
    assert seen["state"] == "held"
    assert "bad\\nprices" in seen["held"]
    assert "held by rollback since" not in run(capsys, "status", path)[2]
    assert "resume" in run(capsys, "doctor", path)[1]
    assert document(capsys, "rollback", path)["generation"] == 4
    assert document(capsys, "resume", path) == {"path": str(path), "resumed": True}
    assert document(capsys, "resume", path) == {"path": str(path), "resumed": False}
    assert run(capsys, "resume", path)[0] == 0
    assert document(capsys, "status", path)["held"] is None


def test_disable_and_enable(path, capsys):
    assert document(capsys, "disable", path, "--reason", "test") == {"path": str(path), "disabled": True}
    assert document(capsys, "disable", path) == {"path": str(path), "disabled": False}
    seen = document(capsys, "status", path)
    assert seen["state"] == "disabled"
    assert seen["disabled"]
    assert "mmcache enable" in run(capsys, "doctor", path)[1]
    assert document(capsys, "enable", path) == {"path": str(path), "enabled": True}
    assert run(capsys, "enable", path)[:2] == (0, "")
    assert document(capsys, "status", path)["state"] == "fresh"


def test_what_is_not_there_ends_with_3(tmp_path, path, capsys):
    assert run(capsys, "rollback", tmp_path / "none.mmc")[0] == 3
    assert run(capsys, "disable", tmp_path / "none.mmc")[0] == 3
    path.with_name("items.mmc.bak").unlink()
    code, _, err = run(capsys, "rollback", path)
    assert code == 3
    assert "backup" in err


def test_a_damaged_backup_ends_with_5(path, capsys):
    backup = path.with_name("items.mmc.bak")
    data = bytearray(backup.read_bytes())
    data[-100] ^= 1
    backup.unlink()
    backup.write_bytes(data)
    assert run(capsys, "rollback", path)[0] == 5


def test_a_rollback_that_finds_a_build_ends_with_75(path, capsys):
    with inside.build_lock(path):
        assert run(capsys, "rollback", path, "--timeout", "0")[0] == 75


def test_a_rollback_of_a_file_that_is_not_ours_touches_nothing(path, capsys):
    path.unlink()
    path.write_bytes(b"a document of the user's")
    assert run(capsys, "rollback", path)[0] == 1
    assert path.read_bytes() == b"a document of the user's"


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_without_a_file_is_a_usage_error(capsys, name):
    assert run(capsys, name)[0] == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_the_levers(shell):
    shtab = pytest.importorskip("shtab")
    script = shtab.complete(make_parser(), shell)
    assert all(name in script for name in LEVERS)
