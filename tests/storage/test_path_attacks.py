"""Whatever stands under one of our names: nothing is followed, waited on, written into or trusted."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import MissingFileError, MmcacheError, PublishError, Schema, Snapshot, UntrustedPathError
from mmcache.format.keys import Key
from mmcache.storage import fs
from tests.support import inside
from tests.support.processes import in_child

pytestmark = pytest.mark.usefixtures("no_disk_wait")

SCHEMA = Schema("items")
NAMES = ["items.mmc", "items.mmc.lock", "items.mmc.bak", "items.mmc.bak.new", ".items.mmc.0123456789abcdef.tmp"]
NOBODY, STRANGER = 65_534, 61_234
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners, which takes root")


def publish(path: Path | str, generation: int = 1, **options: Any) -> mmcache.BuildReport:
    return mmcache.build(path, [{"id": f"k{generation}"}], SCHEMA, **options)


@contextlib.contextmanager
def no_waiting(seconds: int = 20) -> Iterator[None]:
    """Fails the test instead of hanging."""

    def ring(*_: object) -> None:
        raise AssertionError("blocked")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def plant_socket(place: Path, victim: Path) -> None:
    here = os.getcwd()
    os.chdir(place.parent)  # the address of a socket has room for 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(place.name)
    finally:
        os.chdir(here)


def plant_full_directory(place: Path, victim: Path) -> None:
    place.mkdir()
    (place / "x").write_text("x")


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "symlink": lambda place, victim: place.symlink_to(victim),
    "dangling symlink": lambda place, victim: place.symlink_to(victim.with_name("not there")),
    "symlink to itself": lambda place, victim: place.symlink_to(place.name),
    "symlink to a device": lambda place, victim: place.symlink_to("/dev/zero"),
    "fifo": lambda place, victim: os.mkfifo(place),
    "socket": plant_socket,
    "directory": lambda place, victim: place.mkdir(),
    "full directory": plant_full_directory,
    "hard link": lambda place, victim: os.link(victim, place),
}
if os.geteuid() == 0:
    PLANTS["device"] = lambda place, victim: os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_stands_under_a_name_is_followed_waited_on_or_written_into(tmp_path, name, kind):
    for victim_is_cache in (False, True):
        for published in (False, True):
            directory = tmp_path / f"{victim_is_cache}{published}"
            directory.mkdir()
            path, place, victim = (
                directory / "items.mmc",
                directory / name,
                tmp_path / f"victim{victim_is_cache}{published}",
            )
            if published:
                publish(path, 1)
            publish(victim, 9) if victim_is_cache else victim.write_text("precious")
            before, status = victim.read_bytes(), victim.stat()
            if place.exists():
                place.unlink()
            PLANTS[kind](place, victim)
            with no_waiting():
                for generation in (2, 3):
                    with contextlib.suppress(MmcacheError):
                        publish(path, generation, timeout=0)
                with contextlib.suppress(MmcacheError), Snapshot.open(path) as snapshot:
                    assert next(iter(snapshot)) in [f"k{i}" for i in (1, 2, 3, 9)]
                    assert len(snapshot) == 1
            assert victim.read_bytes() == before
            assert (victim.stat().st_ino, victim.stat().st_mode, victim.stat().st_size) == (
                status.st_ino,
                status.st_mode,
                status.st_size,
            )
            assert not (tmp_path / "not there").exists()


@pytest.mark.parametrize("kind", [kind for kind in PLANTS if kind != "hard link"])
@pytest.mark.parametrize("name", NAMES[:3])
def test_what_is_not_a_regular_file_is_refused_and_named(tmp_path, name, kind):
    path = tmp_path / "items.mmc"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    PLANTS[kind](tmp_path / name, victim)
    with no_waiting(), pytest.raises(MmcacheError) as caught:
        publish(path, timeout=0)
    assert str(tmp_path / "items.mmc") in str(caught.value)
    assert (tmp_path / name).is_symlink() or not (tmp_path / name).is_file()
    assert not [other for other in os.listdir(tmp_path) if other.endswith(".tmp")]
    if name == "items.mmc":
        with no_waiting(), pytest.raises(UntrustedPathError):
            Snapshot.open(path)


def test_a_symbolic_link_in_the_way_to_the_directory_is_the_users_own_choice(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    publish(tmp_path / "alias" / "items.mmc")
    with Snapshot.open(tmp_path / "alias" / "items.mmc") as snapshot:
        assert "k1" in snapshot
    assert (tmp_path / "real" / "items.mmc").is_file()


def test_a_temporary_name_that_is_foreseen_does_not_help(path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    foreseen = f".items.mmc.{'0' * 16}.tmp"
    names = [foreseen, foreseen, *(f".items.mmc.{i:016x}.tmp" for i in range(1, 50))]
    (tmp_path / foreseen).symlink_to(victim)
    with inside.temp_names(names):
        publish(path)
    assert victim.read_text() == "precious"
    with (
        inside.temp_names(itertools.repeat(foreseen)),
        pytest.raises(PublishError, match="could not find a free temporary name"),
    ):
        publish(path, 2)
    assert victim.read_text() == "precious"


def test_only_files_that_writers_left_are_swept(path, tmp_path):
    ours = [".items.mmc.0123456789abcdef.tmp", "items.mmc.bak.new"]
    others = [
        ".items.mmc.0123456789abcdeg.tmp",
        ".items.mmc.0123456789abcde.tmp",
        ".items.mmc.0123456789ABCDEF.tmp",
        ".items.mmc.tmp",
        ".items.mmcx.0123456789abcdef.tmp",
        ".other.mmc.0123456789abcdef.tmp",
        "items.mmc.0123456789abcdef.tmp",
        "items.mmc.tmp",
        "items.mmc.bak.newer",
        "items.mmc.new",
        "other.mmc.bak.new",
        ".items.mmc.0123456789abcdef.tmp.txt",
    ]
    for name in (*ours, *others):
        (tmp_path / name).write_text(name)
    (tmp_path / ".items.mmc.fedcba9876543210.tmp").mkdir()
    publish(path)
    left = set(os.listdir(tmp_path))
    assert not left & set(ours)
    assert left >= {*others, ".items.mmc.fedcba9876543210.tmp"}
    assert all((tmp_path / name).read_text() == name for name in others)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_published_file_may_be_read_by_all_and_written_by_none_whatever_the_umask(path, umask):
    before = os.umask(umask)
    try:
        publish(path, 1)
        publish(path, 2)
    except MmcacheError:
        assert umask == 0o777
        assert os.geteuid() != 0
        return
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE(Path(f"{path}.bak").stat().st_mode) == 0o444
    assert stat.S_IMODE(Path(f"{path}.lock").stat().st_mode) == 0o660 & ~umask


def test_a_relative_path_means_the_current_directory(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    report = publish(path.name)
    assert report.path == str(path)
    with Snapshot.open(path.name) as snapshot:
        assert "k1" in snapshot


def test_what_cannot_be_a_file_is_refused_with_a_reason(tmp_path):
    (tmp_path / "file").write_text("x")
    for place, error in (
        (tmp_path / "file" / "items.mmc", PublishError),
        (tmp_path / ("x" * 250), PublishError),
        (tmp_path, UntrustedPathError),
        (Path("/"), MmcacheError),
    ):
        with pytest.raises(error) as caught:
            publish(place)
        assert caught.value.path
    for place in (tmp_path / "none" / "items.mmc", tmp_path / "file" / "items.mmc", tmp_path / "none"):
        with pytest.raises(MissingFileError):
            Snapshot.open(place)
    with pytest.raises(MmcacheError):
        Snapshot.open(tmp_path / ("x" * 300))
    assert not Path("/.lock").exists()


def test_a_path_that_changes_between_symlink_and_file_is_never_written_through(tmp_path):
    """A second thread keeps swapping what stands under our names while files are published."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory = tmp_path / "work"
    directory.mkdir()
    path = directory / "items.mmc"
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            for name in NAMES[:4]:
                link = directory / "link"
                with contextlib.suppress(OSError):
                    link.symlink_to(victim)
                    os.rename(link, directory / name)
                with contextlib.suppress(OSError):
                    os.unlink(directory / name)

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        with no_waiting(60):
            end = time.monotonic() + 1.5
            generation = 0
            while time.monotonic() < end:
                generation += 1
                with contextlib.suppress(MmcacheError):
                    publish(path, generation, timeout=0)
                with contextlib.suppress(MmcacheError):
                    Snapshot.open(path).close()
    finally:
        stop.set()
        attacker.join()
    assert victim.read_text() == "precious"
    assert stat.S_ISREG(victim.lstat().st_mode)


# Other users ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="mmcache-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def as_user(uid: int, action: Callable[[], Any]) -> None:
    """Run in a child as another user. What fails there fails here."""

    def switched() -> None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        with no_waiting():
            action()

    assert in_child(switched) == 0


def refuses(error: type[BaseException], match: str, action: Callable[[], Any]) -> Callable[[], None]:
    def check() -> None:
        with pytest.raises(error, match=match):
            action()

    return check


def opened(path: Path) -> list[Key]:
    with Snapshot.open(path) as snapshot:
        return list(snapshot)


@ROOT
def test_a_reader_trusts_itself_root_the_directorys_owner_and_no_other(shared):
    path = shared / "items.mmc"
    publish(path)
    as_user(NOBODY, lambda: opened(path))
    os.chown(path, STRANGER, STRANGER)
    as_user(
        NOBODY, refuses(UntrustedPathError, f"owned by uid {STRANGER}; trusted here: 0, {NOBODY}", lambda: opened(path))
    )
    with pytest.raises(UntrustedPathError, match="trusted here: 0"):
        opened(path)
    os.chown(shared, STRANGER, STRANGER)
    as_user(NOBODY, lambda: opened(path))
    assert opened(path) == ["k1"]


@ROOT
def test_a_reader_needs_no_right_to_write_anything(shared):
    path = shared / "items.mmc"
    publish(path)
    before = sorted(os.listdir(shared))

    def read() -> None:
        with Snapshot.open(path) as snapshot:
            snapshot.verify(deep=True)
            assert snapshot["k1"].id == "k1"

    as_user(NOBODY, read)
    as_user(NOBODY, refuses(PublishError, "this user may not write here", lambda: publish(path, 2)))
    assert sorted(os.listdir(shared)) == before


@ROOT
def test_a_directory_that_anyone_may_write_is_refused_by_readers_and_writers(shared):
    path = shared / "items.mmc"
    publish(path)
    shared.chmod(0o777)
    for uid in (NOBODY, 0):
        as_user(uid, refuses(UntrustedPathError, "can be written by anyone", lambda: opened(path)))
        as_user(uid, refuses(UntrustedPathError, "can be written by anyone", lambda: publish(path, 2)))


@ROOT
def test_in_a_sticky_directory_every_file_must_be_our_own(shared):
    shared.chmod(0o1777)
    path = shared / "items.mmc"
    as_user(NOBODY, lambda: publish(path, 1))
    as_user(NOBODY, lambda: publish(path, 2))
    as_user(NOBODY, lambda: opened(path))
    assert path.stat().st_uid == NOBODY
    with pytest.raises(UntrustedPathError, match=f"owned by uid {NOBODY}"):
        opened(path)
    with pytest.raises(UntrustedPathError, match="directory that anyone may write"):
        publish(path, 3)
    for name in NAMES[:3]:
        place = shared / name
        os.chown(place, STRANGER, STRANGER)
        place.chmod(0o666)
        content = place.read_bytes()
        as_user(NOBODY, refuses(UntrustedPathError, f"owned by uid {STRANGER}", lambda: publish(path, 4)))
        assert place.read_bytes() == content
        os.chown(place, NOBODY, NOBODY)
        place.chmod(0o444 if name != "items.mmc.lock" else 0o660)
    as_user(NOBODY, lambda: publish(path, 5))
    for name in NAMES[3:]:
        (shared / name).write_text("precious")
        os.chown(shared / name, STRANGER, STRANGER)
        as_user(NOBODY, lambda: _try(lambda: publish(path, 6)))
        assert (shared / name).read_text() == "precious"


def _try(action: Callable[[], Any]) -> None:
    with contextlib.suppress(MmcacheError):
        action()


@ROOT
def test_a_directory_of_another_user_is_refused_by_writers(shared):
    os.chown(shared, STRANGER, STRANGER)
    with pytest.raises(UntrustedPathError, match=f"owned by uid {STRANGER}, neither us"):
        publish(shared / "items.mmc")
    assert os.listdir(shared) == []


@ROOT
def test_root_does_not_sweep_what_others_left(shared):
    path = shared / "items.mmc"
    place = shared / NAMES[4]
    place.write_text("precious")
    os.chown(place, STRANGER, STRANGER)
    publish(path)
    assert place.read_text() == "precious"


@ROOT
def test_files_that_we_may_not_read_are_an_error_that_says_so(shared):
    path = shared / "items.mmc"
    publish(path)
    path.chmod(0o400)
    as_user(NOBODY, refuses(mmcache.UnusableFileError, "cannot be read: Permission denied", lambda: opened(path)))
    shared.chmod(0o700)
    as_user(NOBODY, refuses(mmcache.UnusableFileError, "Permission denied", lambda: opened(path)))


def test_a_stray_print_in_a_process_without_standard_streams_does_not_land_in_the_file(path):
    def stray(*_: object) -> None:
        for fd in (0, 1, 2):
            with contextlib.suppress(OSError):
                os.write(fd, b"a stray print")

    def child() -> None:
        for fd in (0, 1, 2):
            os.close(fd)
        for generation in (1, 2):
            publish(path, generation, progress=stray)
            stray()

    assert in_child(child) == 0
    with Snapshot.open(path) as snapshot:
        snapshot.verify(deep=True)
        assert list(snapshot) == ["k2"]
    assert b"stray" not in Path(f"{path}.lock").read_bytes()


def test_descriptors_are_closed_on_exec(path):
    publish(path)
    file = fs.ReadFile(str(path))
    assert not os.get_inheritable(file.fd)
    file.close()
