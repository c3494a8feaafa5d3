"""Small shared files: made whole by one of many, never resized; locks that die with their holders."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mmcache import CorruptFileError, PublishError, UntrustedPathError, UnusableFileError
from mmcache.storage import fs, shared
from mmcache.storage.shared import HeldLock, create, create_held, is_locked, open_small, take_held
from tests.support.faults import Ends, FailName, Short, faults
from tests.support.processes import in_child, together

pytestmark = pytest.mark.usefixtures("no_leaks")

SIZE = 4096
ZEROS = bytes(SIZE)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "words")


def opened(path: str) -> shared.SmallFile:
    file = open_small(path, SIZE)
    assert file is not None
    return file


def content(path: str) -> bytes:
    with opened(path) as file:
        return file.read(0, SIZE)


def numbered(number: int) -> bytes:
    return struct.pack(f"={SIZE // 8}Q", *[number + 1] * (SIZE // 8))


# --- making -----------------------------------------------------------------------------------------------------------


def test_one_of_many_makes_the_file_and_it_is_whole(path):
    made = together(8, lambda number: create(path, numbered(number)))
    assert made.count(True) == 1
    assert content(path) == numbered(made.index(True))
    assert os.listdir(os.path.dirname(path)) == ["words"]
    assert os.stat(path).st_nlink == 1


def test_a_file_that_is_there_stays(path):
    assert create(path, numbered(0))
    before = os.stat(path)
    assert not create(path, numbered(1))
    assert os.stat(path).st_ino == before.st_ino
    assert content(path) == numbered(0)


@pytest.mark.parametrize(("call", "error"), [("pwrite", errno.ENOSPC), ("pwrite", errno.EDQUOT), ("open", errno.EROFS)])
def test_what_the_system_refuses_is_an_error_and_leaves_nothing(path, call, error):
    with faults(FailName(call, error)), pytest.raises(PublishError) as raised:
        create(path, ZEROS)
    assert raised.value.errno == error
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links_no_file_is_made(path, error):
    with faults(FailName("link", error)), pytest.raises(PublishError, match="has no hard links"):
        create(path, ZEROS)
    assert os.listdir(os.path.dirname(path)) == []


# --- opening ----------------------------------------------------------------------------------------------------------


def test_nothing_is_there(path):
    assert open_small(path, SIZE) is None


@pytest.mark.parametrize("size", [0, 8, SIZE - 8, SIZE + 8])
def test_another_size_is_damage(path, size):
    Path(path).write_bytes(bytes(size))
    with pytest.raises(CorruptFileError, match=f"expected {SIZE} bytes, found {size}"):
        open_small(path, SIZE)
    assert os.stat(path).st_size == size


@pytest.mark.parametrize("plant", ["fifo", "symlink", "directory"])
def test_what_is_no_regular_file_is_neither_followed_nor_waited_for(path, tmp_path, plant):
    victim = tmp_path / "victim"
    victim.write_bytes(ZEROS)
    if plant == "fifo":
        os.mkfifo(path)
    elif plant == "symlink":
        os.symlink(victim, path)
    else:
        os.mkdir(path)
    with pytest.raises(UnusableFileError):
        open_small(path, SIZE)
    assert victim.read_bytes() == ZEROS


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners, which takes root")
def test_a_strangers_file_is_not_trusted(path):
    create(path, ZEROS)
    os.chown(path, 61_234, 61_234)
    with pytest.raises(UntrustedPathError, match="owned by uid 61234"):
        open_small(path, SIZE)


def test_where_writing_is_refused_it_is_opened_for_reading(path):
    create(path, numbered(4))

    def refuse(number: int, name: str, args: tuple[object, ...], call: Callable[[], object]) -> object:
        if name == "open" and args[0] == path and int(str(args[1])) & os.O_RDWR:
            raise OSError(errno.EACCES, "refused")
        return call()

    with faults(refuse):
        file = opened(path)
    with file:
        assert not file.writable
        assert file.read(0, SIZE) == numbered(4)
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.write(0, b"x")


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_limit_of_descriptors_or_memory_is_an_unusable_file(path, error):
    create(path, ZEROS)
    with faults(FailName("open", error)), pytest.raises(UnusableFileError):
        open_small(path, SIZE)


# --- locks ------------------------------------------------------------------------------------------------------------


def test_who_holds_lives(path):
    create(path, ZEROS)
    assert not is_locked(path)
    assert not is_locked(f"{path}.missing")
    holding = HeldLock(path)
    assert is_locked(path)
    with pytest.raises(BlockingIOError):
        HeldLock(path)
    assert in_child(lambda: None if is_locked(path) else pytest.fail("a child sees its parent's lock")) == 0
    assert is_locked(path)
    holding.close()
    assert not is_locked(path)


def test_a_file_is_held_before_it_has_content(path):
    seen = []

    def look(number: int, name: str, args: tuple[object, ...], call: Callable[[], object]) -> object:
        if name == "pwrite":
            seen.append(is_locked(path))
        return call()

    with faults(look):
        holding = create_held(path, numbered(2))
    assert seen == [True]
    assert Path(path).read_bytes() == numbered(2)
    assert is_locked(path)
    holding.close()


# --- by descriptor ----------------------------------------------------------------------------------------------------


def test_what_one_writes_another_reads(path):
    assert open_small(path, SIZE) is None
    create(path, ZEROS)
    with opened(path) as one, opened(path) as other:
        one.write(8, b"12345678")
        assert other.read(0, 24) == bytes(8) + b"12345678" + bytes(8)
        assert one.writable


def test_a_file_emptied_in_place_is_damage_and_no_signal(path):
    create(path, numbered(1))
    with opened(path) as file:
        os.truncate(path, 16)
        assert file.read(0, 16) == numbered(1)[:16]
        with pytest.raises(CorruptFileError, match="ends before byte 24"):
            file.read(8, 16)
        os.truncate(path, 0)
        with pytest.raises(CorruptFileError):
            file.read(0, 8)
    with pytest.raises(CorruptFileError, match=f"expected {SIZE} bytes, found 0"):
        open_small(path, SIZE)


def test_a_refused_read_or_write_is_an_error(path):
    create(path, ZEROS)
    with opened(path) as file:
        with faults(FailName("pread", errno.EIO)), pytest.raises(UnusableFileError):
            file.read(0, 8)
        with faults(FailName("pwrite", errno.ENOSPC)), pytest.raises(OSError, match="No space"):
            file.write(0, b"x")
        with faults(Ends(0)), pytest.raises(OSError, match="nothing was written"):
            file.write(0, b"x")
        with faults(Short()):
            file.write(0, numbered(7))
            assert file.read(0, SIZE) == numbered(7)


def test_a_number_that_another_file_got_is_not_closed(path, tmp_path):
    create(path, ZEROS)

    def work() -> None:
        holding, file = HeldLock(path), opened(path)
        os.closerange(3, 256)
        mine = [(tmp_path / f"mine{i}").open("wb") for i in range(32)]
        holding.close()
        file.close()
        for one in mine:
            os.fstat(one.fileno())

    assert in_child(work) == 0


# --- a lock that lost its holder --------------------------------------------------------------------------------------


def test_what_lost_its_holder_is_taken_once_and_written(path):
    Path(path).write_bytes(ZEROS)
    one = take_held(path)
    assert one is not None
    assert take_held(path) is None
    one.write(b"abc", 8)
    assert one.read(16) == bytes(8) + b"abc" + bytes(5)
    one.close()
    again = take_held(path)
    assert again is not None
    again.close()
    os.link(path, f"{path}.second")
    assert take_held(path) is None
    os.unlink(path)
    assert take_held(path) is None


@pytest.mark.parametrize("plant", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_regular_file_is_not_taken(path, plant):
    plant(path)
    with pytest.raises((UnusableFileError, OSError)):
        take_held(path)


# --- what kind of file system -----------------------------------------------------------------------------------------


class Mounted:
    """The file system as it is, but for the table of mounts."""

    def __init__(self, table: str) -> None:
        self._table = table.encode()
        self._fds: dict[int, bytes] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def open(self, path: str, *args: int, **more: int | None) -> int:
        fd = os.open("/dev/null" if path.endswith("mountinfo") else path, *args, **more)  # type: ignore[arg-type]
        if path.endswith("mountinfo"):
            self._fds[fd] = self._table
        return fd

    def read(self, fd: int, size: int) -> bytes:
        if fd not in self._fds:
            return os.read(fd, size)
        data, self._fds[fd] = self._fds[fd][:size], self._fds[fd][size:]
        return data

    def close(self, fd: int) -> None:
        self._fds.pop(fd, None)
        os.close(fd)


ROOT = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("", "ext4"),
        ("40 22 0:50 / {} rw shared:9 - nfs4 server:/x rw\n", "nfs4"),
        ("40 22 0:50 / {} rw - fuse.sshfs me@there: rw\n", "fuse.sshfs"),
        ("40 22 0:50 / {} rw - nfs4 server:/x rw\n41 40 0:51 / {}/sub rw - xfs /dev/sdb rw\n", "nfs4"),
        ("40 22 0:50 / {}x rw - nfs4 server:/x rw\n", "ext4"),
        ("short line\n\n40 22 0:50 / {} rw - tmpfs none rw\n40 22 0:52 / {} rw - 9p none rw\n", "9p"),
    ],
    ids=["root", "nfs", "fuse", "a mount below", "a like name", "mounted over"],
)
def test_the_kind_is_that_of_the_nearest_mount(tmp_path, monkeypatch, mounts, kind):
    directory = tmp_path / "with space"
    directory.mkdir()
    monkeypatch.setattr(fs, "system", Mounted(ROOT + mounts.replace("{}", str(directory).replace(" ", "\\040"))))
    assert shared.kind_of_file_system(str(directory)) == kind


def test_without_a_table_of_mounts_the_kind_is_not_known(tmp_path):
    with faults(FailName("open", errno.ENOENT)):
        assert shared.kind_of_file_system(str(tmp_path)) == ""
    assert shared.kind_of_file_system(str(tmp_path / "missing")) == ""
