"""Publishing: what becomes a release, what is refused, and that nothing is half published."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

import mmcache
from mmcache import ReleaseError, Schema, StoreError
from mmcache.cli import main
from tests.remote.shop import SCHEMA, build, number_of, publish
from tests.storage.helpers import arrays_in, build_bytes, reseal, reseal_records

pytestmark = pytest.mark.usefixtures("no_leaks", "no_disk_wait")

ROOT = Path(__file__).parents[2]


def numbers(url: str) -> list[int]:
    return [release.number for release in mmcache.releases(url)]


def test_releases_are_numbered_from_one_without_gaps(url, made, node):
    for number in range(1, 5):
        release = publish(made, url, number)
        assert (release.number, release.changed, release.current) == (number, True, True)
    assert numbers(url) == [4, 3, 2, 1]
    mmcache.follow(url, node)
    assert number_of(node) == 4
    newest = mmcache.releases(url, limit=1)[0]
    assert newest.records == {"items": 200}
    assert newest.size == made.stat().st_size


@pytest.mark.integration
def test_a_file_that_is_uploaded_in_parts_arrives_whole(url, made, node):
    """S3 refuses parts below 5 MiB but for the last."""
    publish(made, url, 1, size=100_000)
    assert made.stat().st_size > 2 * 8 * 2**20
    mmcache.follow(url, node)
    assert number_of(node) == 1


def test_the_same_content_is_published_once(url, made):
    first = publish(made, url, 1)
    again = mmcache.publish(made, url)
    assert (again.number, again.changed) == (first.number, False)
    assert numbers(url) == [1]


def test_a_file_found_unchanged_is_released_again_without_its_bytes(tmp_path, made, node):
    url = f"file://{tmp_path}/store"
    with mmcache.open(made, load=lambda: [{"id": "a", "n": 1}], schema=Schema("items"), executor="external") as cache:
        mmcache.publish(made, url)
        mmcache.follow(url, node)
        before = mmcache.releases(url)[0]
        assert not cache.rebuild().changed
        after = mmcache.publish(made, url)
    assert after.number == 2
    assert after.created > before.created
    assert after.sha256 == before.sha256
    assert len(list((tmp_path / "store" / "blobs").iterdir())) == 1
    with mmcache.open(node) as follower:
        old = follower.status()
        mmcache.follow(url, node)
        new = follower.status()
    assert new.generation == old.generation, "the file stays"
    assert new.revalidated


def test_a_collection_that_shrinks_too_much_is_refused(url, made):
    publish(made, url, 1, n=200)
    build(made, 2, n=99)
    with pytest.raises(ReleaseError, match="99 records, and 200") as refused:
        mmcache.publish(made, url)
    assert refused.value.rule == "records"
    assert numbers(url) == [1]
    assert mmcache.publish(made, url, min_records_ratio=0.4).number == 2


def test_a_collection_that_is_gone_is_refused(url, made):
    mmcache.build(made, {"items": [{"id": "a"}], "notes": [{"id": "b"}]}, Schema("items"), Schema("notes"))
    mmcache.publish(made, url)
    mmcache.build(made, [{"id": "a"}], Schema("items"))
    with pytest.raises(ReleaseError, match="'notes'"):
        mmcache.publish(made, url)
    assert mmcache.publish(made, url, min_records_ratio=0).number == 2


def is_small(snapshot: mmcache.Snapshot) -> bool:
    return len(snapshot) < 100


def complains(_: mmcache.Snapshot) -> str:
    return "prices are wrong"


def fails(snapshot: mmcache.Snapshot) -> None:
    raise KeyError("no such item")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (is_small, "objects$"),
        (complains, "prices are wrong"),
        (fails, "KeyError"),
        ("tests.remote.test_publish:fails", "no such item"),
    ],
)
def test_a_check_that_objects_refuses_the_file(url, made, check, message):
    build(made, 1)
    with pytest.raises(ReleaseError, match=message):
        mmcache.publish(made, url, checks=[check])
    assert numbers(url) == []
    assert mmcache.publish(made, url, checks=[lambda snapshot: len(snapshot) == 200]).number == 1


def test_a_damaged_file_is_refused(tmp_path, url, made):
    build(made, 1, size=1000)
    data = bytearray(made.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = tmp_path / "damaged.mmc"
    damaged.write_bytes(data)
    with pytest.raises(mmcache.CorruptFileError):
        mmcache.publish(damaged, url)
    assert numbers(url) == []


def test_a_key_that_stands_twice_is_refused(tmp_path, url, made):
    """No builder of ours makes such a file: it is forged, with right checksums."""
    data = bytearray(build_bytes(made, [{"id": "item-0"}, {"id": "item-1"}], Schema("items")))
    at = data.index(b"item-1")
    data[at : at + 6] = b"item-0"
    arrays = arrays_in(data, "0/ids")
    first, second = (xxh3_64_intdigest(key).to_bytes(8, "little") for key in (b"item-0", b"item-1"))
    for slot in range(arrays["hash"].start, arrays["hash"].stop, 8):
        if data[slot : slot + 8] == second:
            data[slot : slot + 8] = first
    forged = tmp_path / "forged.mmc"
    forged.write_bytes(reseal(reseal_records(data)))
    with pytest.raises(ReleaseError, match="key 'item-0' stands twice") as refused:
        mmcache.publish(forged, url)
    assert refused.value.rule == "duplicates"
    assert numbers(url) == []


def test_what_was_withdrawn_is_not_published_again(url, made):
    publish(made, url, 1)
    publish(made, url, 2)
    mmcache.withdraw(url, 2)
    with pytest.raises(ReleaseError, match="withdrawn as release 2") as refused:
        mmcache.publish(made, url)
    assert refused.value.rule == "withdrawn"
    assert publish(made, url, 3).current


def test_what_was_withdrawn_and_pruned_is_not_published_again(url, made):
    """Else a cron job that publishes an unchanged file would bring it back, days later and by itself."""
    publish(made, url, 1)
    mmcache.withdraw(url, 1)
    for number in (2, 3, 4):
        publish(made, url, number)
    assert mmcache.prune(url, keep=1, older_than=0).releases
    build(made, 1)
    with pytest.raises(ReleaseError, match=r"withdrawn as release 1: .* other metadata") as found:
        mmcache.publish(made, url)
    assert found.value.rule == "withdrawn"
    with mmcache.Snapshot.open(made) as snapshot:
        records = [record.asdict() for record in snapshot.values()]
    mmcache.build(made, records, SCHEMA, metadata={"release": "the same, and meant"})
    assert mmcache.publish(made, url).current


def test_a_rollback_to_what_was_withdrawn_lets_it_be_published_again(url, made):
    publish(made, url, 1)
    mmcache.withdraw(url, 1)
    publish(made, url, 2)
    mmcache.rollback(url, to=1)
    publish(made, url, 3)
    assert publish(made, url, 1).current


def test_no_url_and_an_unknown_scheme_are_refused(made):
    build(made, 1)
    for url in ("/mnt/items", "ftp://host/items", "s4://bucket"):
        with pytest.raises(StoreError, match="is no URL of an object store"):
            mmcache.publish(made, url)


BAD_URLS = {
    "https://[bad": "is no URL",
    "http://host:port/items": "is no URL",
    "s3://": "names no bucket",
    "https:///items": "names no bucket or host",
    "file:///mnt/items?x=SECRET": "%3F",
    "file:///mnt/items#x": "%23",
    "file:///mnt/it\0ems": "NUL",
}
IN_WRONG_PLACES: Any = [None, 7, b"s3://bucket/items", Path("/mnt/items")]
OF_ALL: dict[str, Callable[[Any, Path], object]] = {
    "publish": lambda url, path: mmcache.publish(path, url),
    "follow": mmcache.follow,
    "releases": lambda url, _: mmcache.releases(url),
    "pin": lambda url, _: mmcache.pin(url, 1),
    "unpin": lambda url, _: mmcache.unpin(url),
    "withdraw": lambda url, _: mmcache.withdraw(url, 1),
    "rollback": lambda url, _: mmcache.rollback(url),
    "prune": lambda url, _: mmcache.prune(url),
}


@pytest.mark.parametrize("name", OF_ALL)
def test_what_is_no_url_of_a_store_is_named(made, name):
    build(made, 1)
    ask_for = OF_ALL[name]
    for url, words in BAD_URLS.items():
        with pytest.raises(StoreError, match=words) as failed:
            ask_for(url, made)
        assert "SECRET" not in str(failed.value)
    for url in IN_WRONG_PLACES:
        with pytest.raises(TypeError, match="the URL of a store must be a str"):
            ask_for(url, made)


WRONG_NUMBERS: list[tuple[str, Callable[[str, Path, Any], object], list[Any]]] = [
    ("pin", lambda url, path, one: mmcache.follow(url, path, pin=one), [0, -1, 1.0, True, "1"]),
    ("skew", lambda url, path, one: mmcache.follow(url, path, skew=one), [-1, math.nan, math.inf, "60", None]),
    ("timeout", lambda url, path, one: mmcache.follow(url, path, timeout=one), [-1, math.nan, math.inf, None, True]),
    ("keep", lambda url, _, one: mmcache.prune(url, keep=one), [0, 1.5, True, None]),
    ("older_than", lambda url, _, one: mmcache.prune(url, older_than=one), [-1, math.nan, math.inf, "7d"]),
    ("limit", lambda url, _, one: mmcache.releases(url, limit=one), [0, -1, 1.5]),
    (
        "min_records_ratio",
        lambda url, path, one: mmcache.publish(path, url, min_records_ratio=one),
        [-0.1, math.nan, math.inf, "1"],
    ),
]


@pytest.mark.parametrize(("name", "ask_for", "values"), WRONG_NUMBERS, ids=[name for name, *_ in WRONG_NUMBERS])
def test_a_number_that_cannot_be_meant_is_named_and_nothing_is_asked(tmp_path, made, name, ask_for, values):
    build(made, 1)
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be"):
            ask_for(f"file://{tmp_path}/store", made, value)
    assert not (tmp_path / "store").exists()


def test_a_secret_in_a_url_is_in_no_message():
    with pytest.raises(StoreError) as failed:
        mmcache.releases("nope://user:secret@host/items?token=secret")
    assert "secret" not in str(failed.value)


def test_a_secret_of_a_request_is_in_no_message(node):
    with pytest.raises(StoreError) as failed:
        mmcache.follow("http://user:secret@127.0.0.1:1/items?token=secret", node)
    assert "secret" not in str(failed.value)
    assert "127.0.0.1:1/items" in str(failed.value)


# --- kills ------------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from mmcache.store import Store
at, when = int(sys.argv[1]), sys.argv[2]
calls = 0
def watched(name):
    real = getattr(Store, name)
    def call(self, *args):
        global calls
        number, calls = calls, calls + 1
        if number == at and when == "before":
            os._exit(9)
        found = real(self, *args)
        if number == at:
            os._exit(9)
        return found
    setattr(Store, name, call)
for name in ("get", "stat", "listed", "create", "upload", "hint", "remove"):
    watched(name)
import mmcache
mmcache.publish(sys.argv[3], sys.argv[4], reason="by the one that may be killed")
print(calls)
"""


def killed(at: int, when: str, made: Path, url: str) -> int:
    command = [sys.executable, "-c", KILLED, str(at), when, str(made), url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (0, 9), done.stderr
    return done.returncode


def test_a_publisher_killed_at_any_call_leaves_the_release_whole_or_none(tmp_path, url, made, node):
    publish(made, url, 1)
    mmcache.follow(url, node)
    build(made, 2)
    expected, at = 1, 0
    while True:
        codes = {killed(at, when, made, url) for when in ("before", "after")}
        found = numbers(url)
        assert found in ([1], [2, 1]), "one release, whichever is killed"
        assert len(found) >= expected
        expected = len(found)
        mmcache.follow(url, node)
        assert number_of(node) == expected
        if codes == {0}:
            break
        at += 1
    assert at >= 8, "it was killed at every call"
    assert numbers(url) == [2, 1]


def test_the_blob_of_a_dead_publisher_is_pruned_after_a_day_and_not_before(tmp_path, made):
    url = f"file://{tmp_path}/store"
    publish(made, url, 1)
    orphan = tmp_path / "store" / "blobs" / f"{'0' * 64}-{'1' * 16}.mmc"
    orphan.write_bytes(b"half of a file")
    assert mmcache.prune(url).blobs == []
    os.utime(orphan, (0, 0))
    assert mmcache.prune(url).blobs == [orphan.name]
    assert not orphan.exists()


# --- without the extra ------------------------------------------------------------------------------------------------


def test_nothing_imports_the_library_until_a_store_is_opened(tmp_path):
    code = """
        import sys, mmcache
        for name in mmcache.__all__:
            getattr(mmcache, name)
        import mmcache.remote.keeper, mmcache.remote.background, mmcache.cli.main
        mmcache.build("items.mmc", [{"id": "a"}], mmcache.Schema("items"))
        with mmcache.open("items.mmc") as cache:
            cache["a"], cache.status()
        print([name for name in sys.modules if name.startswith("obstore")])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_the_extra_the_error_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['obstore'] = None; import mmcache; mmcache.releases('memory://x')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "pip install 'mmcache[remote]'" in done.stderr


def test_an_entry_is_json_that_people_read(tmp_path, made):
    url = f"file://{tmp_path}/store"
    build(made, 1)
    mmcache.publish(made, url, reason="the first")
    entry = json.loads((tmp_path / "store" / "generations" / f"{1:020}.json").read_text())
    assert (entry["number"], entry["kind"], entry["reason"], entry["current"]) == (1, "publish", "the first", 1)
    assert entry["file"]["records"] == {"items": 200}


def test_a_file_that_was_rolled_back_is_refused(url, made):
    """Its records are older than its header says: a release of it could hide what a node invalidated between."""
    build(made, 1)
    build(made, 2)
    assert main(["rollback", str(made)]) == 0
    with pytest.raises(ReleaseError, match=r"held .* mmcache rollback URL") as found:
        mmcache.publish(made, url)
    assert found.value.rule == "held"
    assert main(["resume", str(made)]) == 0  # and its records are as old as before
    with pytest.raises(ReleaseError, match=r"resumed .* mmcache rollback URL"):
        mmcache.publish(made, url)
    assert mmcache.releases(url) == []
    build(made, 3)
    assert mmcache.publish(made, url).number == 1
