"""The commands about releases: `publish`, `follow`, `pin`, ...; and `rollback` and `doctor` of a URL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mmcache
from mmcache import Schema
from mmcache.cli.main import make_parser
from tests.support.console import document, run_here as run
from tests.support.inside import build_lock

pytest.importorskip("obstore", reason="the extra remote is not installed")
pytestmark = pytest.mark.usefixtures("no_leaks")

ROOT = Path(__file__).parents[2]
COMMANDS = ("publish", "follow", "releases", "pin", "unpin", "withdraw", "prune", "diff")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.mmc"


def build(path: Path, number: int) -> None:
    mmcache.build(path, [{"id": f"k{i}", "n": number} for i in range(10)], Schema("items", index=("n",)))


def test_a_day_of_releases(tmp_path, path, url, capsys):
    node = tmp_path / "node" / "items.mmc"
    for number in (1, 2):
        build(path, number)
        done = document(capsys, "publish", path, url, "--reason", f"build {number}")["release"]
        assert (done["number"], done["current"], done["reason"]) == (number, True, f"build {number}")
    assert document(capsys, "publish", path, url)["release"]["changed"] is False
    assert document(capsys, "follow", url, node, "--once")["release"] == 2
    assert document(capsys, "pin", url, 1)["release"]["number"] == 1
    said = document(capsys, "follow", url, node, "--once")
    assert (said["release"], said["pinned"], said["newest"], said["lag"]) == (1, 1, 2, 1)
    status = document(capsys, "status", node)
    assert status["following"]["release"] == 1
    assert "pinned to 1, the newest is 2" in run(capsys, "status", node)[1]
    assert document(capsys, "metrics", node)["following"]["pinned"] == 1
    assert document(capsys, "unpin", url)["release"]["number"] == 2
    assert document(capsys, "withdraw", url, 2, "--reason", "zero prices")["release"]["number"] == 1
    assert run(capsys, "publish", path, url)[0] == 1
    assert document(capsys, "rollback", url, "--to", 2)["release"]["of"] == 2
    listed = document(capsys, "releases", url)["releases"]
    assert [(one["number"], one["withdrawn"], one["current"]) for one in listed] == [
        (6, False, True),
        (2, True, False),
        (1, False, False),
    ]
    text = run(capsys, "releases", url)[1]
    assert "adopted, content of 2" in text
    assert "withdrawn" in text
    seen = document(capsys, "prune", url, "--keep", 1, "--older-than", "0s", "--dry-run")
    assert seen["releases"] == [1, 2, 3, 4, 5]
    assert document(capsys, "prune", url, "--keep", 1, "--older-than", "0")["blobs"] == seen["blobs"]
    assert len(document(capsys, "releases", url)["releases"]) == 1


def test_a_diff_of_releases_and_files(path, url, capsys):
    build(path, 1)
    run(capsys, "publish", path, url)
    build(path, 2)
    found = document(capsys, "diff", f"{url}@1", path)["collections"]["items"]
    assert (found["changed"], found["fields"]) == (10, {"n": 10})
    code, out, _ = run(capsys, "diff", url, path)
    assert code == 0
    assert "field n  10" in out
    assert run(capsys, "diff", f"{url}@7", path)[0] == 3


def test_validators_of_the_command_line(path, url, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "checks_of_ours.py").write_text("def prices(snapshot):\n    return 'prices are zero'\n")
    build(path, 1)
    code, _, err = run(capsys, "publish", path, url, "--check", "checks_of_ours:prices")
    assert code == 1
    assert "prices are zero" in err
    assert run(capsys, "publish", path, url, "--check", "checks_of_ours:nope")[0] == 2
    assert run(capsys, "publish", path, url)[0] == 0
    mmcache.build(path, [{"id": "a", "n": 1}], Schema("items", index=("n",)))
    code, _, err = run(capsys, "publish", path, url)
    assert code == 1
    assert "--min-records-ratio" in err
    assert run(capsys, "publish", path, url, "--min-records-ratio", "0.1")[0] == 0


def test_what_is_not_there_ends_with_3_and_leads_to_no_build(tmp_path, path, url, capsys):
    for words in (("follow", url, path, "--once"), ("pin", url, 1), ("withdraw", url, 1), ("diff", url, path)):
        code, _, err = run(capsys, *words)
        assert code == 3, words
        assert "mmcache build" not in err
    assert run(capsys, "publish", path, url)[0] == 3
    assert document(capsys, "releases", url)["releases"] == []
    assert run(capsys, "rollback", url)[0] == 3
    assert not path.exists()


def test_follow_once_tells_that_the_file_is_of_no_release(tmp_path, path, url, capsys):
    node = tmp_path / "node.mmc"
    build(path, 1)
    run(capsys, "publish", path, url)
    assert run(capsys, "follow", url, node, "--once")[0] == 0
    run(capsys, "withdraw", url, 1)
    code, _, err = run(capsys, "follow", url, node, "--once")
    assert code == 3
    assert "every release was withdrawn" in err


def test_follow_once_waits_for_another_process_as_long_as_it_was_told(tmp_path, path, url, capsys):
    node = tmp_path / "node.mmc"
    build(path, 1)
    run(capsys, "publish", path, url)
    with build_lock(node):
        assert run(capsys, "follow", url, node, "--once", "--timeout", "0")[0] == 75
    assert not node.exists()
    assert run(capsys, "follow", url, node, "--once", "--timeout", "0")[0] == 0


def test_no_command_prints_a_secret_of_a_url(path, url, capsys):
    """A plain HTTP server has its signature in the query, and a password before the host."""
    build(path, 1)
    run(capsys, "publish", path, url)
    secret = "http://user:SECRET@127.0.0.1:1/items?sig=SECRET"
    commands = [
        *(("releases", secret), ("pin", secret, 1), ("unpin", secret), ("withdraw", secret, 1), ("prune", secret)),
        *(("publish", path, secret), ("follow", secret, f"{path}.node", "--once"), ("diff", secret, path)),
        *(("rollback", secret), ("doctor", secret)),
    ]
    for i, command in enumerate(commands):
        words = (*command, "--json") if i % 2 or command[0] == "doctor" else command
        code, out, err = run(capsys, *words)
        assert code != 0, words
        assert "SECRET" not in out + err, words
        assert "Traceback" not in err, words


@pytest.mark.parametrize(
    "words",
    [
        *((command,) for command in COMMANDS),
        ("releases", "items"),
        ("follow", "s3://b/i", "f", "--every", "0"),
        ("follow", "s3://b/i", "f", "--source", "x", "--no-source"),
        ("prune", "s3://b/i", "--keep", "0"),
        ("prune", "s3://b/i", "--older-than", "7x"),
        ("rollback", "items.mmc", "--to", "3"),
        ("releases", "s3://b/i", "--limit", "0"),
        ("pin", "s3://b/i", "newest"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(words, capsys):
    assert run(capsys, *words)[0] == 2


def test_doctor_looks_at_a_store_and_leaves_nothing(tmp_path, path, url, capsys):
    build(path, 1)
    run(capsys, "publish", path, url)
    before = sorted(str(p) for p in (tmp_path / "store").rglob("*.*"))
    found = document(capsys, "doctor", url)
    assert found["ok"]
    assert {check["name"] for check in found["checks"]} >= {"create", "read", "list", "clock", "releases"}
    assert sorted(str(p) for p in (tmp_path / "store").rglob("*.*")) == before
    assert run(capsys, "doctor", "nope://x")[0] == 1


def test_a_lag_breaks_a_rule(tmp_path, path, url, capsys):
    build(path, 1)
    run(capsys, "publish", path, url)
    node = tmp_path / "items2.mmc"
    run(capsys, "follow", url, node, "--once")
    assert run(capsys, "status", node, "--check")[0] == 0
    (tmp_path / "store").rename(tmp_path / "away")
    assert run(capsys, "follow", url, node, "--once")[0] == 3
    code, out, _ = run(capsys, "status", node, "--check", "--max-lag", "0")
    assert code == 4
    assert "lag: the file has not been of release 1" in out


def test_follow_goes_on_until_it_is_ended(tmp_path, path, url):
    build(path, 1)
    mmcache.publish(path, url)
    node = tmp_path / "node" / "items.mmc"
    command = [sys.executable, "-W", "error", "-m", "mmcache", "follow", url, str(node), "--every", "0.1", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["release"] == 1
        build(path, 2)
        mmcache.publish(path, url)
        assert json.loads(process.stdout.readline())["release"] == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_the_commands(shell):
    shtab = pytest.importorskip("shtab")
    script = shtab.complete(make_parser(), shell)
    assert all(command in script for command in COMMANDS)
