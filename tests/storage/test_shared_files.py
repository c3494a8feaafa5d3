"""Files of words: made whole by one of many, never torn, never resized; locks that die with their holders."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmcache import CorruptFileError, PublishError, UntrustedPathError, UnusableFileError
from mmcache.storage import fs, shared
from mmcache.storage.shared import Holding, create, create_held, is_held, open_shared, open_small, replace
from tests.storage.faults import Ends, FailName, Short, faults, in_child

pytestmark = pytest.mark.usefixtures("no_leaks")

SIZE = 4096
ZEROS = bytes(SIZE)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "words")


def together(count: int, action: Callable[[int], bool]) -> list[bool]:
    """What an action says in as many processes, which begin at the same moment."""
    begin_read, begin = os.pipe()
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.close(begin)
                os.read(begin_read, 1)  # until the writing end is closed everywhere
                code = int(action(number))
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(begin_read)
    os.close(begin)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert set(codes) <= {0, 1}
    return [code == 1 for code in codes]


def opened(path: str, size: int = SIZE) -> shared.SharedFile:
    file = open_shared(path, size)
    assert file is not None
    return file


def numbered(number: int) -> bytes:
    return struct.pack(f"={SIZE // 8}Q", *[number + 1] * (SIZE // 8))


# --- making -----------------------------------------------------------------------------------------------------------


def test_one_of_many_makes_the_file_and_it_is_whole(path):
    made = together(8, lambda number: create(path, numbered(number)))
    assert made.count(True) == 1
    assert set(opened(path).words.tolist()) == {made.index(True) + 1}
    assert os.listdir(os.path.dirname(path)) == ["words"]
    assert os.stat(path).st_nlink == 1


def test_a_file_that_is_there_stays(path):
    assert create(path, numbered(0))
    before = os.stat(path)
    assert not create(path, numbered(1))
    assert os.stat(path).st_ino == before.st_ino
    assert opened(path).words[0] == 1


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
    assert open_shared(path, SIZE) is None


@pytest.mark.parametrize("size", [0, 8, SIZE - 8, SIZE + 8])
def test_another_size_is_damage(path, size):
    Path(path).write_bytes(bytes(size))
    with pytest.raises(CorruptFileError, match=f"expected {SIZE} bytes, found {size}"):
        open_shared(path, SIZE)
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
        open_shared(path, SIZE)
    assert victim.read_bytes() == ZEROS


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners, which takes root")
def test_a_strangers_file_is_not_trusted(path):
    create(path, ZEROS)
    os.chown(path, 61_234, 61_234)
    with pytest.raises(UntrustedPathError, match="owned by uid 61234"):
        open_shared(path, SIZE)


def test_where_writing_is_refused_it_is_mapped_for_reading(path):
    create(path, numbered(4))

    def refuse(number: int, name: str, args: tuple[object, ...], call: Callable[[], object]) -> object:
        if name == "open" and args[0] == path and int(str(args[1])) & os.O_RDWR:
            raise OSError(errno.EACCES, "refused")
        return call()

    with faults(refuse):
        file = opened(path)
    assert not file.writable
    assert file.words[0] == 5
    with pytest.raises(TypeError):
        file.words[0] = 1


def test_another_descriptor_or_memory_limit_is_an_unusable_file(path):
    create(path, ZEROS)
    for call, error in (("open", errno.EMFILE), ("map_file", errno.ENOMEM)):
        with faults(FailName(call, error)), pytest.raises(UnusableFileError):
            open_shared(path, SIZE)


# --- stores -----------------------------------------------------------------------------------------------------------


def test_a_store_is_never_seen_in_part(path):
    """The writer stores words of eight equal bytes; the reader looks for one that is not."""
    create(path, ZEROS)

    def write() -> None:
        words = opened(path).words
        values = [int.from_bytes(bytes([byte]) * 8, "little") for byte in range(256)]
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            for value in values:
                words[5] = value
        words[6] = 1

    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            write()
            code = 0
        finally:
            os._exit(code)
    words = opened(path).words
    seen = set()
    deadline = time.monotonic() + 60
    while not words[6] and time.monotonic() < deadline:
        seen.update([words[5] for _ in range(1000)])
        seen.update(words[5:6].tolist())
    assert os.waitpid(pid, 0)[1] == 0
    whole = {int.from_bytes(bytes([byte]) * 8, "little") for byte in range(256)}
    assert seen <= whole
    assert len(seen) > 2


def test_a_mapped_file_lives_as_long_as_its_words(path):
    create(path, numbered(6))
    words = opened(path).words
    os.unlink(path)
    assert words[1] == 7
    words[1] = 8
    assert words[1] == 8


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_lock_excludes_and_dies_with_its_holder(path):
    create(path, ZEROS)
    file = opened(path)
    holds_read, holds = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with opened(path).locked() as held:
                os.write(holds, b"y" if held else b"n")
                time.sleep(60)
        finally:
            os._exit(0)
    assert os.read(holds_read, 1) == b"y"
    os.close(holds)
    os.close(holds_read)
    with file.locked(0.02) as held:
        assert not held
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with file.locked() as held:
        assert held
    with file.locked(0) as again:
        assert again


def test_shared_locks_go_together_and_keep_an_exclusive_one_out(path):
    create(path, ZEROS)
    file = opened(path)
    with file.locked(exclusive=False) as one, file.locked(0, exclusive=False) as two, file.locked(0) as three:
        assert (one, two, three) == (True, True, False)


def test_a_forked_child_does_not_keep_its_parents_lock(path):
    create(path, ZEROS)
    file = opened(path)
    go_read, go = os.pipe()
    with file.locked() as held:
        assert held
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(go_read, 1)  # lives until its parent has seen
            os._exit(0)
    try:
        with file.locked(20) as held:  # the child may not have run yet
            assert held
    finally:
        os.close(go)
        os.close(go_read)
        os.waitpid(pid, 0)


def test_a_file_that_was_replaced_cannot_be_locked_and_says_so(path):
    create(path, ZEROS)
    file = opened(path)
    assert file.is_current()
    os.unlink(path)
    assert not file.is_current()
    with file.locked(5) as held:
        assert not held
    create(path, ZEROS)
    begun = time.monotonic()
    with file.locked(5) as held:
        assert not held
    assert time.monotonic() - begun < 4
    assert not file.is_current()


def test_threads_exclude_one_another(path):
    create(path, ZEROS)
    file = opened(path)
    words = file.words

    def add() -> None:
        for _ in range(50):
            with file.locked(30) as held:
                assert held
                value = words[0]
                time.sleep(0)
                words[0] = value + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert words[0] == 200


def test_who_holds_lives(path):
    create(path, ZEROS)
    assert not is_held(path)
    assert not is_held(f"{path}.missing")
    holding = Holding(path)
    assert is_held(path)
    with pytest.raises(BlockingIOError):
        Holding(path)
    assert in_child(lambda: None if is_held(path) else pytest.fail("a child sees its parent's lock")) == 0
    assert is_held(path)
    holding.close()
    assert not is_held(path)


def test_a_file_is_held_before_it_has_content(path):
    seen = []

    def look(number: int, name: str, args: tuple[object, ...], call: Callable[[], object]) -> object:
        if name == "pwrite":
            seen.append(is_held(path))
        return call()

    with faults(look):
        holding = create_held(path, numbered(2))
    assert seen == [True]
    assert Path(path).read_bytes() == numbered(2)
    assert is_held(path)
    holding.close()


# --- by descriptor ----------------------------------------------------------------------------------------------------


def small(path: str) -> shared.SmallFile:
    file = open_small(path, SIZE)
    assert file is not None
    return file


def test_what_one_writes_another_reads(path):
    assert open_small(path, SIZE) is None
    create(path, ZEROS)
    with small(path) as one, small(path) as other:
        one.write(8, b"12345678")
        assert other.read(0, 24) == bytes(8) + b"12345678" + bytes(8)
        assert one.writable
        assert one.is_current()


def test_a_file_emptied_in_place_is_damage_and_no_signal(path):
    create(path, numbered(1))
    with small(path) as file:
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
    with small(path) as file:
        with faults(FailName("pread", errno.EIO)), pytest.raises(UnusableFileError):
            file.read(0, 8)
        with faults(FailName("pwrite", errno.ENOSPC)), pytest.raises(OSError, match="No space"):
            file.write(0, b"x")
        with faults(Ends(0)), pytest.raises(OSError, match="nothing was written"):
            file.write(0, b"x")
        with faults(Short()):
            file.write(0, numbered(7))
            assert file.read(0, SIZE) == numbered(7)


def test_the_lock_of_an_open_file_excludes_until_it_is_closed(path):
    create(path, ZEROS)
    with small(path) as one, small(path) as other:
        assert one.lock()
        assert not other.lock(0)
        assert not other.lock(0, exclusive=False)
        assert is_held(path)
        one.close()
        assert other.lock(0, exclusive=False)
        with small(path) as third:
            assert third.lock(0, exclusive=False)
            assert not third.lock(0)
    assert not is_held(path)


def test_a_replaced_file_gives_no_lock(path):
    create(path, ZEROS)
    with small(path) as old, small(path) as older:
        assert older.lock()
        replace_by_hand(path)
        assert not old.is_current()
        assert not old.lock(60)  # at once, although another holds the old one
        older.close()
        assert not old.lock(0)


def replace_by_hand(path: str) -> None:
    Path(f"{path}.new").write_bytes(ZEROS)
    os.rename(f"{path}.new", path)


def test_a_lock_taken_by_descriptor_does_not_outlive_its_process_in_a_child(path):
    create(path, ZEROS)
    go_read, go = os.pipe()
    with small(path) as file:
        assert file.lock()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(go_read, 1)  # lives until its parent has seen
            os._exit(0)
    try:
        with small(path) as file:
            assert file.lock(20)  # the child may not have run yet
    finally:
        os.close(go)
        os.close(go_read)
        os.waitpid(pid, 0)


def test_a_number_that_another_file_got_is_not_closed(path, tmp_path):
    create(path, ZEROS)

    def work() -> None:
        holding, file = Holding(path), small(path)
        os.closerange(3, 256)
        mine = [(tmp_path / f"mine{i}").open("wb") for i in range(32)]
        holding.close()
        file.close()
        for one in mine:
            os.fstat(one.fileno())

    assert in_child(work) == 0


# --- replacing --------------------------------------------------------------------------------------------------------


def test_many_replace_a_wrong_file_once(path):
    Path(path).write_bytes(b"wrong")

    def mend(number: int) -> bool:
        replace(path, numbered(number), lambda: os.stat(path).st_size != SIZE)
        return len(set(opened(path).words.tolist())) == 1

    assert together(8, mend) == [True] * 8
    assert os.listdir(os.path.dirname(path)) == ["words"]


def test_what_became_right_meanwhile_is_not_replaced(path):
    create(path, numbered(0))
    inode = os.stat(path).st_ino
    replace(path, numbered(1), lambda: False)
    assert os.stat(path).st_ino == inode


def test_a_replaced_file_stays_whole_for_those_that_have_it_mapped(path):
    create(path, numbered(0))
    old = opened(path)
    replace(path, numbered(1), lambda: True)
    assert set(old.words.tolist()) == {1}
    assert not old.is_current()
    assert set(opened(path).words.tolist()) == {2}


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
    shared._kind_of_device.cache_clear()
    directory = tmp_path / "with space"
    directory.mkdir()
    monkeypatch.setattr(fs, "system", Mounted(ROOT + mounts.replace("{}", str(directory).replace(" ", "\\040"))))
    try:
        assert shared.kind_of_file_system(str(directory)) == kind
    finally:
        shared._kind_of_device.cache_clear()


def test_without_a_table_of_mounts_the_kind_is_not_known(tmp_path):
    shared._kind_of_device.cache_clear()
    with faults(FailName("open", errno.ENOENT)):
        assert shared.kind_of_file_system(str(tmp_path)) == ""
    shared._kind_of_device.cache_clear()
    assert shared.kind_of_file_system(str(tmp_path / "missing")) == ""
