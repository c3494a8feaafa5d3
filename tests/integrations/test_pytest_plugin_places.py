"""Where caches are kept: a persistent place that is unfit for any reason costs a line of warning, not a test."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.pytest_runs import Project, respect_modes

pytest.importorskip("xdist", reason="pytest-xdist is not installed")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = pytest.mark.integration  # it wants root, other users and full disks

PERSISTENT = 'scope="persistent", key="one"'
TEST = """
import pytest

@pytest.mark.parametrize("i", range(4))
def test_reads(items, i):
    assert items["k1"]["n"] == 1
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    project.write(options=PERSISTENT, tests=TEST)
    yield project
    subprocess.run(["umount", "-l", project.home / ".pytest_cache"], stderr=subprocess.DEVNULL, check=False)


def place_of(project: Project) -> Path:
    """Made by a first run, whose file is then removed, as by a job that was cancelled."""
    project.run("-n0")
    (path,) = project.home.rglob("items.mmc")
    for file in path.parent.iterdir():
        file.unlink()
    for note in project.notes.iterdir():
        note.unlink()
    return path.parent


def foreign(place: Path) -> None:
    os.chown(place, 1001, 1001)


def foreign_whole(place: Path) -> None:
    """The file is there, and can be read."""
    for path in (place, place.parent):
        os.chown(path, 1001, 1001)


def anyone(place: Path) -> None:
    place.chmod(0o777)


def read_only(place: Path) -> None:
    place.chmod(0o555)


def closed(place: Path) -> None:
    place.chmod(0o000)


def a_file(place: Path) -> None:
    place.rmdir()
    place.touch()


def a_file_above(place: Path) -> None:
    place.rmdir()
    place.parent.rmdir()
    place.parent.touch()


def a_link(place: Path) -> None:
    place.rename(place.parent / "elsewhere")
    place.symlink_to("elsewhere")


def a_link_above(place: Path) -> None:
    place.parent.rename(place.parent.parent / "elsewhere")
    place.parent.symlink_to("elsewhere")


def a_dangling_link(place: Path) -> None:
    place.rmdir()
    place.symlink_to("nothing")


def a_linked_file(place: Path) -> None:
    (place / "items.mmc").symlink_to("/dev/null")


def a_directory_for_the_file(place: Path) -> None:
    (place / "items.mmc" / "x").mkdir(parents=True)


def a_pipe_for_the_file(place: Path) -> None:
    os.mkfifo(place / "items.mmc")


def a_directory_for_the_lock(place: Path) -> None:
    (place / "items.mmc.lock").mkdir()


def a_directory_for_the_page(place: Path) -> None:
    (place / "items.mmc.ctl").mkdir()


UNFIT: dict[Callable[[Path], None], str] = {
    anyone: "can be written by anyone",
    read_only: "cannot be written|Permission denied",
    closed: "cannot be written|Permission denied",
    a_file: "File exists|Not a directory",
    a_file_above: "File exists|Not a directory",
    a_link: "is a symbolic link",
    a_link_above: "is a symbolic link",
    a_dangling_link: "File exists",
    a_linked_file: "symbolic link",
    a_directory_for_the_file: "found a directory",
    a_pipe_for_the_file: "found a named pipe",
    a_directory_for_the_lock: "",
    a_directory_for_the_page: "",
}


def falls_back(project: Project, why: str, *arguments: str, **options) -> None:
    out = project.run(*arguments, **options)
    assert "4 passed" in out
    assert re.findall(r"^mmcache: items: warning: .*", out, re.MULTILINE) == re.findall(
        rf"^mmcache: items: warning: not kept for the next run: .*(?:{why}).*", out, re.MULTILINE
    ), out
    assert out.count("not kept for the next run") == 1, out
    project.has_one_build()


@pytest.mark.parametrize("spoil", UNFIT, ids=lambda spoil: spoil.__name__)
def test_an_unfit_place_is_named_once_and_the_cache_is_of_the_run(project, spoil):
    spoil(place_of(project))
    try:
        falls_back(project, UNFIT[spoil], "-n2", preexec_fn=respect_modes)
    finally:
        for path in project.home.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)


@root_only
@pytest.mark.parametrize("spoil", [foreign, foreign_whole])
def test_the_place_of_another_user_is_not_used(project, spoil):
    spoil(place_of(project))
    falls_back(project, "owned by uid 1001", "-n2")


@root_only
def test_a_whole_cache_of_another_user_is_not_used(project):
    project.run("-n0")
    (project.notes / "builds").unlink()
    (project.notes / "generations").unlink()
    subprocess.run(["chown", "-R", "1001:1001", project.home / ".pytest_cache"], check=True)
    falls_back(project, "owned by uid 1001", "-n0")


@pytest.mark.integration
@root_only
def test_a_full_disk_is_named_once_and_the_cache_is_of_the_run(project):
    disk = project.home / ".pytest_cache"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    (disk / "CACHEDIR.TAG").touch()
    (disk / "d" / "mmcache").mkdir(parents=True)
    with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    falls_back(project, "No space left", "-n2")


def test_a_path_that_is_too_long_is_named_once(project):
    long = project.home
    while len(str(long)) < 3800:
        long /= "x" * 200
    long /= "x" * (4060 - len(str(long)))
    falls_back(project, "File name too long", "-n0", "-o", f"cache_dir={long}", "-p", "no:stepwise")


def test_without_the_cache_of_pytest_the_line_says_so(project):
    falls_back(project, "-p no:cacheprovider", "-n2", "-p", "no:cacheprovider")


def test_a_project_whose_path_is_not_utf8_has_its_cache(project):
    home = project.home.parent / os.fsdecode(b"caf\xe9")
    project.home.rename(home)
    project.home = home
    assert "4 passed" in project.run("-n0")
    assert project.builds == 1


def test_an_open_umask_is_no_reason(project):
    """Containers have such a umask: what mmcache makes is its own all the same."""
    for _ in range(2):
        out = project.run("-n2", preexec_fn=lambda: os.umask(0))
        assert "warning" not in out
    project.has_one_build()


@pytest.mark.parametrize("options", ["", PERSISTENT])
def test_an_error_of_the_build_is_no_reason(project, options):
    """It is raised in every worker, and the function is called once."""
    project.write(how="raise PermissionError('closed')", options=options, tests=TEST)
    out = project.run("-n2", code=1)
    assert "4 errors" in out
    assert "PermissionError: closed" in out
    assert "not kept" not in out
    assert project.builds == 1


def test_the_directory_of_a_killed_run_is_removed_by_a_later_one(project):
    old, new = (project.scratch / f"mmcache-run-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.mkdir()
    os.utime(old, (1, 1))
    project.write(tests=TEST)
    project.run("-n2")
    assert not old.exists()
    assert new.exists()
