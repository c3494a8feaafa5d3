"""Downloads over HTTP that are cut, truncated, flipped, refused and killed: the file serves, and then the newest."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmcache
from mmcache import CorruptFileError, IncompatibleFormatError, MissingFileError, MmcacheError, PublishError, StoreError
from mmcache.remote import download
from tests.remote.shop import build, number_of, publish, told
from tests.support import inside, stores
from tests.support.faults import FailName, faults
from tests.support.observe import beside
from tests.support.samples import sampled

pytestmark = pytest.mark.usefixtures("no_leaks", "no_disk_wait")

ROOT = Path(__file__).parents[2]
SIZE = 20_000
"""Bytes of a record: 200 of them are 31 chunks, and one request of 8 MiB."""
LEFT = ["items.mmc", "items.mmc.bak", "items.mmc.ctl", "items.mmc.follow", "items.mmc.lock"]


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr(download, "_PAUSE", 0.001)


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def served(tmp_path: Path, local: str, made: Path, node: Path) -> Iterator[stores.Served]:
    """A store with two releases, the first of which the node has."""
    publish(made, local, 1, size=SIZE)
    with stores.Served(tmp_path / "store") as served:
        mmcache.follow(served.url, node)
        build(made, 2, size=SIZE + 1)
        mmcache.publish(made, local)
        served.requests.clear()
        served.sent = 0
        yield served


def adopts(served: stores.Served, node: Path) -> None:
    """Once its cause is gone, the newest is reached, and nothing is left behind."""
    served.change, served.refuse = lambda _, body: body, lambda _: None
    said = mmcache.follow(served.url, node)
    assert (said.release, said.error, said.behind) == (2, "", 0.0)
    assert number_of(node) == 2
    assert beside(node) == LEFT


def test_a_plain_http_server_is_followed(served, node):
    adopts(served, node)
    for _ in range(3):
        served.requests.clear()
        mmcache.follow(served.url, node)
        assert not any(path.startswith("blobs/") for _, path in served.requests)


def test_numbers_beyond_the_hint_and_without_one_are_found(served, tmp_path, local, made, node):
    (tmp_path / "store" / "newest.json").write_text("1")
    adopts(served, node)
    (tmp_path / "store" / "newest.json").unlink()
    publish(made, local, 3, size=SIZE)
    (tmp_path / "store" / "newest.json").unlink()
    assert mmcache.follow(served.url, node).release == 3


def is_blob(path: str) -> bool:
    return path.startswith("blobs/")


def flipped(body: bytes) -> bytes:
    return body[:-7] + bytes([body[-7] ^ 4]) + body[-6:]


DAMAGE = {
    "flipped": lambda path, body: flipped(body) if is_blob(path) else body,
    "short": lambda path, body: body[:-1] if is_blob(path) and len(body) > 1 else body,
    "cut": lambda path, body: None if is_blob(path) else body,
    "empty": lambda path, body: b"" if is_blob(path) else body,
    "zeros": lambda path, body: bytes(len(body)) if is_blob(path) else body,
    "another": lambda path, body: body[::-1] if is_blob(path) else body,
    "an entry cut": lambda path, body: None if path.startswith("generations/") else body,
    "an entry flipped": lambda path, body: flipped(body) if path.startswith("generations/") else body,
}


@pytest.mark.parametrize("damage", sampled(DAMAGE, 3))
def test_what_arrives_damaged_is_never_published(served, node, damage):
    served.change = DAMAGE[damage]
    with pytest.raises((StoreError, CorruptFileError)) as failed:
        mmcache.follow(served.url, node)
    assert number_of(node) == 1, "what was there serves"
    with mmcache.open(node) as cache:
        assert cache["item-3"]["number"] == 1
        said = told(cache)
    assert said.error == str(failed.value)
    assert said.behind > 0
    adopts(served, node)


@pytest.mark.parametrize("step", sampled(range(12), 3))
def test_one_damaged_answer_at_any_step_is_asked_for_again(served, node, step):
    """The release is reached at once, or by the next poll."""
    answers = 0

    def change(path: str, body: bytes) -> bytes | None:
        nonlocal answers
        answers += 1
        return flipped(body) if answers == step + 1 else body

    served.change = change
    try:
        mmcache.follow(served.url, node)
    except MmcacheError:
        assert number_of(node) == 1
    adopts(served, node)


@pytest.mark.parametrize("step", sampled(range(10), 3))
def test_a_connection_cut_at_any_answer_delays_and_no_more(served, node, step):
    answers = 0

    def change(path: str, body: bytes) -> bytes | None:
        nonlocal answers
        answers += 1
        return None if answers == step + 1 else body

    served.change = change
    try:
        mmcache.follow(served.url, node)
    except MmcacheError:
        assert number_of(node) == 1
    adopts(served, node)


@pytest.mark.parametrize("status", sampled([401, 403, 404, 500, 503], 2))
@pytest.mark.parametrize("what", ["generations/", "blobs/"])
def test_a_store_that_refuses_is_told_and_what_is_there_serves(served, node, status, what, monkeypatch):
    inside.stores_try_once(monkeypatch)
    served.refuse = lambda path: status if path.startswith(what) else None
    with pytest.raises((StoreError, MissingFileError)):
        mmcache.follow(served.url, node)
    assert number_of(node) == 1
    said = told(node)
    assert said.error
    adopts(served, node)


def test_credentials_that_expire_in_the_middle_are_no_end(served, node, monkeypatch):
    monkeypatch.setattr("mmcache.store.PIECE", 2**18)
    inside.stores_try_once(monkeypatch)
    served.refuse = lambda path: 403 if is_blob(path) and len(served.requests) > 9 else None
    with pytest.raises(StoreError, match="403"):
        mmcache.follow(served.url, node)
    assert number_of(node) == 1
    assert [name for name in beside(node) if name.endswith(".tmp")], "what was brought stays"
    before = served.sent
    assert before > 2**18
    adopts(served, node)
    assert served.sent - before < 4_100_000 - 2**18, "and is not transferred again"


def test_a_download_that_was_killed_goes_on_where_it_was(served, node):
    """By SIGKILL, in another process, again and again; each brings something."""
    code = "import sys, mmcache; mmcache.follow(sys.argv[1], sys.argv[2])"
    bodies = 0

    def change(path: str, body: bytes) -> bytes:
        nonlocal bodies
        if is_blob(path) and len(body) > 50_000:
            bodies += 1
            if bodies > 2:
                os.kill(follower.pid, signal.SIGKILL)
        return body

    served.change = change
    start = f"import mmcache.store as s; s.PIECE = 2**18; {code}"
    for _ in range(3):
        bodies = 0
        command = [sys.executable, "-c", start, served.url, str(node)]
        follower = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        assert follower.wait(60) == -signal.SIGKILL
        assert number_of(node) == 1
    before = served.sent
    adopts(served, node)
    assert served.sent - before < 4_100_000 - 4 * 2**18


def test_chunks_that_this_machine_has_are_not_transferred(served, local, made, node):
    adopts(served, node)
    mmcache.rollback(local, to=1)
    before = served.sent
    assert mmcache.follow(served.url, node).release == 3
    assert served.sent - before < 20_000, "the backup has it"
    assert number_of(node) == 1


def test_a_damaged_file_is_mended_by_its_damaged_chunks_alone(served, node):
    adopts(served, node)
    data = bytearray(node.read_bytes())
    data[2_000_000] ^= 1
    node.unlink()
    node.write_bytes(data)
    node.with_name("items.mmc.follow").unlink()
    before = served.sent
    mmcache.follow(served.url, node)
    assert number_of(node) == 2
    assert served.sent - before < 3 * 131_072


@pytest.mark.parametrize("call", sampled(["posix_fallocate", "pwrite", "fchmod", "rename", "link", "open"], 2))
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_full_or_failing_disk_leaves_the_file(served, node, call, error):
    with faults(FailName(call, error)), pytest.raises(MmcacheError) as failed:
        mmcache.follow(served.url, node)
    assert isinstance(failed.value, (PublishError, StoreError, mmcache.UnusableFileError))
    assert number_of(node) == 1
    adopts(served, node)


def test_a_format_that_this_version_does_not_read_leaves_the_file(served, tmp_path, node):
    entry = tmp_path / "store" / "generations" / f"{2:020}.json"
    text = entry.read_text()
    entry.chmod(0o644)
    entry.write_text(text.replace("894d4d430d0a1a0a0200", "894d4d430d0a1a0a0300"))
    with pytest.raises(IncompatibleFormatError, match=r"format 3\.0\.0"):
        mmcache.follow(served.url, node)
    assert number_of(node) == 1
    assert "format 3.0.0" in told(node).error
    entry.write_text(text)
    adopts(served, node)


def test_a_blob_that_was_removed_by_hand_is_told(served, tmp_path, node):
    entry = json.loads((tmp_path / "store" / "generations" / f"{2:020}.json").read_text())
    blob = tmp_path / "store" / "blobs" / entry["file"]["blob"]
    away = tmp_path / "away"
    blob.rename(away)
    with pytest.raises(MmcacheError, match="blobs/"):
        mmcache.follow(served.url, node)
    assert number_of(node) == 1
    away.rename(blob)
    adopts(served, node)


def test_a_held_file_stays_and_follows_once_it_is_not(served, node):
    adopts(served, node)
    with mmcache.open(node) as cache:
        cache.rollback(reason="2 is bad")
        said = mmcache.follow(served.url, node)
        assert "held" in said.error
        assert cache["item-1"]["number"] == 1
        cache.resume()
        assert mmcache.follow(served.url, node).release == 2
        assert cache["item-1"]["number"] == 2


def test_a_file_rolled_back_and_resumed_between_two_polls_follows(served, node):
    adopts(served, node)
    with mmcache.open(node) as cache:
        cache.rollback()
        cache.resume()
        assert cache["item-1"]["number"] == 1
        assert mmcache.follow(served.url, node).release == 2
        assert cache["item-1"]["number"] == 2
        assert cache.stats().state == "fresh"


def test_a_server_without_ranges_is_refused(served, node):
    whole: dict[str, bytes] = {}

    def change(path: str, body: bytes) -> bytes:
        return whole.setdefault(path, (served.directory / path).read_bytes()) if is_blob(path) else body

    served.change = change
    with pytest.raises((StoreError, CorruptFileError)):
        mmcache.follow(served.url, node)
    assert number_of(node) == 1
    adopts(served, node)
