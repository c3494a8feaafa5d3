"""Publishers at one moment: each number has one winner, no number is missing, and no publisher's release is lost."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mmcache
from mmcache import StoreError
from mmcache.cli import main
from mmcache.remote.log import ReleaseLog
from mmcache.store import Store
from tests.remote.shop import build, number_of
from tests.support import stores

ROOT = Path(__file__).parents[2]
RACERS = 8


ROUNDS = [25, pytest.param(100, marks=pytest.mark.integration), pytest.param(1_000, marks=pytest.mark.nightly)]


def race(url: str, rounds: int) -> list[list[int]]:
    """By round, the numbers that the publishers got."""
    command = [sys.executable, "-m", "tests.remote.racer", url]
    racers = [
        subprocess.Popen(
            [*command, str(i), str(rounds)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for i in range(RACERS)
    ]
    found = []
    try:
        for _ in range(rounds):
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write("\n")
                racer.stdin.flush()
            found.append([int(racer.stdout.readline()) for racer in racers if racer.stdout is not None])
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    return found


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rounds", ROUNDS)
def test_each_number_has_one_winner_and_none_is_missing(url, rounds):
    found = race(url, rounds)
    for i, numbers in enumerate(found):
        assert sorted(numbers) == list(range(RACERS * i + 1, RACERS * (i + 1) + 1)), f"round {i}"
    log = ReleaseLog(Store(url))
    assert log.numbers() == list(range(1, RACERS * rounds + 1))
    for i in (0, len(found) // 2, len(found) - 1):
        for racer, number in enumerate(found[i]):
            assert log.release(number).reason == f"{racer}.{i}", "the entry is its winner's"


def test_publishers_of_one_file_make_one_release(url, made):
    build(made, 1)
    with ThreadPoolExecutor(RACERS) as pool:
        done = list(pool.map(lambda _: mmcache.publish(made, url), range(RACERS)))
    assert {release.number for release in done} == {1}
    assert sum(release.changed for release in done) == 1


def test_publishers_of_files_of_their_own_each_get_a_release(tmp_path, url, node):
    """Whole publications, with their uploads."""
    paths = [tmp_path / f"{i}.mmc" for i in range(RACERS)]
    for i, path in enumerate(paths):
        build(path, i, n=20)
    with ThreadPoolExecutor(RACERS) as pool:
        done = list(pool.map(lambda path: mmcache.publish(path, url), paths))
    assert sorted(release.number for release in done) == list(range(1, RACERS + 1))
    for i, release in enumerate(done):
        mmcache.follow(url, node, pin=release.number)
        assert number_of(node) == i


def test_a_commit_whose_answer_was_lost_is_known_as_ones_own(tmp_path, made, monkeypatch):
    """The library puts again, and is told that the object is there: it is ours."""
    url = f"file://{tmp_path}/store"
    build(made, 1)
    real = Store.create

    def create(self: Store, name: str, data: bytes) -> bool:
        made = real(self, name, data)
        return False if name.startswith("generations/") else made

    monkeypatch.setattr(Store, "create", create)
    assert mmcache.publish(made, url).number == 1
    assert [release.number for release in mmcache.releases(url)] == [1]


def test_a_committer_that_stood_still_fills_no_gap_that_a_prune_made(tmp_path, made, monkeypatch):
    url = f"file://{tmp_path}/store"
    for number in range(1, 4):
        build(made, number)
        mmcache.publish(made, url)
    log = ReleaseLog(Store(url))
    second = log.at(2)
    assert second is not None
    build(made, 9)
    mmcache.publish(made, url)
    mmcache.prune(url, keep=1, older_than=0)
    assert log.at(3) is None
    monkeypatch.setattr(
        ReleaseLog, "newest", lambda self, known=None, real=ReleaseLog.newest: real(self, known) if known else second
    )
    build(made, 10)
    with pytest.raises(StoreError, match="others went on"):
        mmcache.publish(made, url)
    monkeypatch.undo()
    assert [release.number for release in mmcache.releases(url)] == [4]


# --- stores that ignore the condition ---------------------------------------------------------------------------------


def check_refused(url: str, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(made, 1)
    for _ in range(2):
        with pytest.raises(StoreError, match="If-None-Match"):
            mmcache.publish(made, url)
    assert mmcache.releases(url) == []
    assert main(["doctor", url]) == 1
    out = capsys.readouterr().out
    assert "ignores it" in out


@pytest.mark.integration
def test_a_store_that_ignores_if_none_match_is_refused(tmp_path, endpoint, made, monkeypatch, capsys):
    with stores.Gate(endpoint) as gate:
        gate.drop = frozenset({"if-none-match"})
        for name, value in stores.environment(gate.url).items():
            monkeypatch.setenv(name, value)
        check_refused(f"s3://bucket/{tmp_path.name}", made, capsys)
        gate.drop = frozenset()
        assert mmcache.publish(made, f"s3://bucket/{tmp_path.name}").number == 1
        assert main(["doctor", f"s3://bucket/{tmp_path.name}"]) == 0


@pytest.mark.integration
def test_s3rver_is_refused(tmp_path, made, monkeypatch, capsys):
    (tmp_path / "npm").mkdir()
    with stores.s3rver(tmp_path / "npm") as endpoint:
        for name, value in stores.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        check_refused("s3://bucket/items", made, capsys)


EXPIRED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"""


@pytest.mark.integration
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_credentials_that_expire_change_nothing(tmp_path, endpoint, made, node, monkeypatch, method):  # noqa: PLR0917
    url = f"s3://bucket/{tmp_path.name}"
    with stores.Gate(endpoint) as gate:
        for name, value in stores.environment(gate.url).items():
            monkeypatch.setenv(name, value)
        build(made, 1)
        mmcache.publish(made, url)
        mmcache.follow(url, node)
        build(made, 2)
        gate.refuse = lambda verb, _: (400, EXPIRED) if verb == method else None
        with pytest.raises(StoreError, match=r"ExpiredToken|400"):
            mmcache.publish(made, url)
        if method == "GET":
            with pytest.raises(StoreError, match=r"ExpiredToken|400"):
                mmcache.follow(url, node)
        else:
            mmcache.follow(url, node)
        assert number_of(node) == 1
        gate.refuse = lambda *_: None
        mmcache.publish(made, url)
        mmcache.follow(url, node)
        assert number_of(node) == 2
