"""Trust by name: which owners of a directory and its files are accepted, and errors that say how to accept them.

The tests are root, and act as other users in children.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import MmcacheError, PublishError, Schema, Snapshot, UntrustedPathError
from mmcache.cli import main
from tests.support.console import make_shop
from tests.support.faults import FailName, faults
from tests.support.processes import ask_child

OTHER, THIRD, GROUP = 1234, 4321, 5000
ITEMS = Schema("items")
RECORDS = [{"id": "a"}]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may reach, and this user alone may write."""
    reached = Path(tempfile.mkdtemp(prefix="mmcache-trust-"))
    reached.chmod(0o755)
    made = reached / "place"
    made.mkdir(mode=0o755)
    yield made / "items.mmc"
    shutil.rmtree(reached, ignore_errors=True)


def given_to(place: Path, uid: int, mode: int = 0o755) -> None:
    os.chown(place.parent, uid, -1)
    place.parent.chmod(mode)


def build(place: Path, **options: Any) -> str:
    """The error, or ""."""
    try:
        mmcache.build(place, RECORDS, ITEMS, **options)
    except MmcacheError as error:
        return str(error)
    return ""


def read(place: Path) -> str:
    try:
        with Snapshot.open(place) as snapshot:
            return "" if "a" in snapshot else "no record"
    except MmcacheError as error:
        return str(error)


def as_user(uid: int, action: Any) -> Any:
    """In a group that all users here are in, as the volumes of a pod have one."""

    def act() -> Any:
        os.umask(0o002)
        os.setgroups([])
        os.setgid(GROUP)
        os.setuid(uid)
        return action()

    return ask_child(act)


def test_root_builds_in_a_directory_of_another_owner_once_named(place):
    given_to(place, OTHER)
    assert f"trust=[{OTHER}]" in build(place)
    assert build(place, trust=OTHER) == ""
    assert ask_child(lambda: build(place, trust=[str(OTHER)])) == ""


@pytest.mark.parametrize("text", [str(OTHER), f"root, {OTHER}", f"no-such-user {OTHER}"])
def test_the_environment_names_owners_too(place, monkeypatch, text):
    given_to(place, OTHER)
    monkeypatch.setenv("MMCACHE_TRUST", text)
    assert ask_child(lambda: build(place)) == ""


def test_users_are_named_by_name(place):
    """Of every system: root."""
    given_to(place, 0, 0o777)
    assert ask_child(lambda: build(place, trust="root")) == ""


def test_a_directory_that_anyone_may_write_wants_its_owner_named(place):
    """As an emptyDir: owned by root, 0777, used by one other user."""
    given_to(place, 0, 0o777)
    error = as_user(OTHER, lambda: build(place))
    assert "sub-directory" in error
    assert "trust=[0]" in error
    assert as_user(OTHER, lambda: build(place, trust=[0])) == ""
    assert "trust=[0]" in as_user(OTHER, lambda: read(place))


def test_files_of_others_in_it_are_still_refused(place):
    given_to(place, 0, 0o777)
    assert as_user(THIRD, lambda: build(place, trust=[0])) == ""
    assert f"owned by uid {THIRD}" in as_user(OTHER, lambda: build(place, trust=[0]))
    assert as_user(OTHER, lambda: build(place, trust=[0, THIRD])) == ""


def test_a_sub_directory_of_it_works_without_a_name(place):
    given_to(place, 0, 0o777)
    assert as_user(OTHER, lambda: build(place.parent / "mine" / "items.mmc")) == ""


def test_naming_one_directory_says_nothing_of_others(place, tmp_path):
    given_to(place, OTHER)
    other = tmp_path / "other"
    other.mkdir()
    os.chown(other, OTHER, -1)
    assert build(place, trust=OTHER) == ""
    assert f"owned by uid {OTHER}" in build(other / "items.mmc")


def test_a_cache_trusts_and_so_does_the_process_that_builds_for_it(place, tmp_path):
    given_to(place, OTHER)
    source = make_shop(tmp_path / "shop.db")
    options: dict[str, Any] = {"check_interval": 0.02, "rebuild_after": 0.0}
    with mmcache.open(place, source, trust=[OTHER], **options) as cache:
        assert cache.generation == 1
        cache.invalidate(["s1"])
        from tests.support.waits import until

        until("rebuilt", lambda: (cache.get("s1") and cache.refresh()) or cache.stats().state == "fresh")
    with mmcache.open(place.with_name("second.mmc"), source, trust=str(OTHER)) as cache:
        assert cache.stats().state == "fresh"
    source.close()


@pytest.mark.parametrize("owner", ["no-such-user", -1, True, 2**40, 1.5])
def test_an_owner_that_does_not_exist_is_an_error_of_the_caller(place, owner):
    with pytest.raises(ValueError, match="trust"):
        mmcache.open(place, trust=[owner])
    with pytest.raises(ValueError, match="trust"):
        mmcache.build(place, RECORDS, ITEMS, trust=owner)


# --- directories that are missing -------------------------------------------------------------------------------------


def test_a_missing_directory_is_made_and_only_we_may_write_it(place, monkeypatch):
    deep = place.parent / "a" / "b" / "items.mmc"
    before = os.umask(0)
    try:
        assert build(deep) == ""
    finally:
        os.umask(before)
    assert {directory.stat().st_mode & 0o777 for directory in (deep.parent, deep.parent.parent)} == {0o755}


def test_a_directory_that_cannot_be_made_is_an_error_of_open(place, tmp_path):
    (place.parent / "file").write_text("")
    source = make_shop(tmp_path / "shop.db")
    with pytest.raises(PublishError, match="no directory"):
        mmcache.open(place.parent / "file" / "items.mmc", source)
    source.close()
    with pytest.raises(mmcache.MissingFileError):
        mmcache.open(place.parent / "none" / "items.mmc")
    assert not (place.parent / "none").exists()


def test_processes_that_make_a_directory_at_once_all_succeed(place):
    from tests.support.processes import together

    deep = place.parent / "a" / "b" / "c" / "items.mmc"
    assert together(8, lambda number: build(deep)) == [""] * 8


# --- hints ------------------------------------------------------------------------------------------------------------


def test_a_link_names_the_file_to_open(place):
    """As in a mounted ConfigMap: items.mmc -> ..data/items.mmc, and ..data -> ..2024_06_01."""
    hidden = place.parent / "..2024_06_01"
    hidden.mkdir()
    assert build(hidden / "items.mmc") == ""
    (place.parent / "..data").symlink_to(hidden.name)
    place.symlink_to("..data/items.mmc")
    error = read(place)
    own = str(place.parent / "..data" / "items.mmc")
    assert own in error
    assert read(Path(own)) == ""
    assert "..data/items.mmc" in build(place)


@pytest.mark.parametrize(("number", "limit"), [(errno.EMFILE, "ulimit -n"), (errno.ENFILE, "fs.file-max")])
def test_too_many_open_files_are_told_with_the_limit(place, number, limit):
    assert build(place) == ""
    with faults(FailName("open", number)):
        found = read(place), build(place)
    assert all("too many open files" in error.lower() and limit in error for error in found), found


def test_a_busy_file_names_mount_and_directory(place):
    assert build(place) == ""
    with faults(FailName("rename", errno.EBUSY)), pytest.raises(PublishError, match="mount point") as caught:
        mmcache.build(place, [{"id": "b"}], ITEMS)
    assert str(place.parent) in str(caught.value)
    assert caught.value.errno == errno.EBUSY


def test_foreign_owners_are_told_how_to_be_named(place):
    assert build(place) == ""
    os.chown(place, OTHER, -1)
    with pytest.raises(UntrustedPathError, match=rf"MMCACHE_TRUST={OTHER}"):
        Snapshot.open(place)


def test_doctor_fails_where_root_may_write_and_does_not_trust(place, monkeypatch, capsys):
    given_to(place, OTHER)
    assert main(["doctor", str(place.parent)]) == 1
    assert f"MMCACHE_TRUST={OTHER}" in capsys.readouterr().out
    monkeypatch.setenv("MMCACHE_TRUST", str(OTHER))
    assert ask_child(lambda: main(["--quiet", "doctor", str(place.parent)])) == 0


def test_doctor_accepts_a_directory_whose_owner_is_named(place, monkeypatch, capsys):
    given_to(place, 0, 0o777)
    assert main(["doctor", str(place.parent)]) == 1
    assert "sub-directory" in capsys.readouterr().out
    monkeypatch.setenv("MMCACHE_TRUST", "0")
    assert ask_child(lambda: main(["--quiet", "doctor", str(place.parent)])) == 0
