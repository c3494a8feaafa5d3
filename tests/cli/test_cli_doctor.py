"""`mmcache doctor`: what it finds in good places and in bad ones, and that nothing of it is left behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest

import mmcache
from mmcache.cli import doctor, main
from mmcache.cli.doctor_directory import check_space
from mmcache.format.header import HEADER_SIZE, parse_header
from tests.support import inside
from tests.support.console import endless_build, make_shelf, make_shop, ok, run
from tests.support.faults import FailName, faults
from tests.support.waits import until

OF_A_DIRECTORY = (
    *("python", "dependencies", "compiled core", "BLAS threads", "directory", "write access", "hard links", "fsync"),
    *("file system", "shared map", "build lock", "disk space"),
)
OF_A_FILE = (*OF_A_DIRECTORY, "file", "clock", "source", "freshness", "control page", "builds", "leftovers")


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / "items.mmc"
    mmcache.build(path, make_shop(tmp_path / "shop.db"))
    return path


@pytest.fixture
def diagnosed(capsys):
    """The checks by name; the exit code is 1 if one has failed, and nothing was left behind."""

    def ask(target):
        place = target if os.path.isdir(target) else os.path.dirname(target)
        before = sorted(os.listdir(place))
        code = main(["doctor", str(target), "--json"])
        found = json.loads(capsys.readouterr().out)
        checks = {check["name"]: check for check in found["checks"]}
        assert len(checks) == len(found["checks"])
        assert code == (0 if found["ok"] else 1) == int(any(check["level"] == "fail" for check in checks.values()))
        assert place == "/proc" or sorted(os.listdir(place)) == before
        return checks

    return ask


def levels(checks) -> dict[str, str]:
    return {name: check["level"] for name, check in checks.items() if check["level"] != "ok"}


# all is well ---------------------------------------------------------------------------------------------------------


def test_a_good_directory_passes_every_check(tmp_path, diagnosed):
    checks = diagnosed(tmp_path)
    assert tuple(checks) == OF_A_DIRECTORY
    assert levels(checks) == {}
    assert "200 writes each way were seen" in checks["shared map"]["text"]
    assert "after its holder was killed" in checks["build lock"]["text"]


def test_a_good_file_passes_every_check(shop, diagnosed):
    checks = diagnosed(shop)
    assert tuple(checks) == OF_A_FILE
    assert levels(checks) == {}
    assert checks["file"]["text"].startswith("generation 1, 10 records")


def test_it_speaks_to_people_about_the_directory_they_are_in(tmp_path):
    done = ok("doctor", cwd=tmp_path)
    assert [line[6:19].strip() for line in done.out.splitlines()] == list(OF_A_DIRECTORY)
    assert {line[:4].strip() for line in done.out.splitlines()} == {"ok"}
    assert not list(tmp_path.iterdir())
    assert ok("doctor", "-q", cwd=tmp_path).out == ""


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no other file system to try")
def test_another_file_system_is_named(diagnosed):
    directory = f"/dev/shm/mmcache-test-{os.getpid()}"
    os.mkdir(directory, 0o700)
    try:
        assert diagnosed(directory)["file system"]["text"].startswith("tmpfs: ")
    finally:
        os.rmdir(directory)


# the machine ---------------------------------------------------------------------------------------------------------


def test_threads_of_blas_are_counted_where_threadpoolctl_is_installed(tmp_path, diagnosed):
    check: dict[str, str] = {}
    for threads, level, text in (
        (None, "ok", "not known without threadpoolctl"),
        (1, "ok", "has 1 thread: a search has the thread that calls"),
        (
            2,
            "ok",
            "has 2 threads: nearest has the thread that calls, nearest_many all of these for large products; where",
        ),
        (9, "warn", "and this process has 4 cores"),
    ):
        with inside.blas_with(threads=threads), inside.cores(4):
            check = diagnosed(tmp_path)["BLAS threads"]
        assert check["level"] == level
        assert text in check["text"]
    assert check["advice"] == "OPENBLAS_NUM_THREADS=1 in the environment of the workers"


def test_threads_of_blas_are_those_that_the_environment_asks_for(tmp_path):
    pytest.importorskip("threadpoolctl")
    for threads in ("1", "2"):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads}
        command = [sys.executable, "-m", "mmcache", "doctor", str(tmp_path), "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
        (text,) = [check["text"] for check in json.loads(done.stdout)["checks"] if check["name"] == "BLAS threads"]
        if "openblas" in text:
            assert f"has {threads} thread" in text


# directories ---------------------------------------------------------------------------------------------------------


def test_a_directory_that_anyone_may_write_fails(shop, diagnosed):
    shop.parent.chmod(0o777)
    assert diagnosed(shop.parent)["directory"]["advice"].startswith("chmod o-w it, use a sub-directory")
    assert levels(diagnosed(shop))["file"] == "fail"
    shop.parent.chmod(0o1777)
    assert levels(diagnosed(shop)) == {"directory": "warn"}


def test_a_directory_that_is_not_there_fails(tmp_path):
    for target in (tmp_path / "no" / "items.mmc", tmp_path / "no" / "where" / "items.mmc"):
        done = run("doctor", target)
        assert (done.code, done.err) == (1, "")
        assert done.out.splitlines()[-2].startswith("fail  directory ")


def test_a_directory_that_we_may_not_write_is_a_warning(tmp_path, diagnosed):
    tmp_path.chmod(0o555)
    place = "/proc" if os.geteuid() == 0 else tmp_path  # root may write everywhere else
    checks = diagnosed(place)
    assert levels(checks) == {"write access": "warn"}
    assert "files here can be read, but not built" in checks["write access"]["text"]


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners, which takes root")
def test_a_directory_of_another_user_is_a_warning(tmp_path, diagnosed):
    os.chown(tmp_path, 12345, 12345)
    assert "owned by uid 12345" in diagnosed(tmp_path)["write access"]["text"]


@pytest.mark.parametrize(
    ("refused", "found"),
    [
        (FailName("link", errno.EPERM), {"hard links": "warn", "shared map": "warn"}),
        (FailName("link", errno.EIO), {"hard links": "fail", "shared map": "warn"}),
        (FailName("fsync", errno.EIO), {"fsync": "fail"}),
        (FailName("pwrite", errno.ENOSPC), {"fsync": "fail", "file system": "warn", "shared map": "warn"}),
    ],
    ids=["no links", "link fails", "fsync fails", "disk full"],
)
def test_what_the_file_system_refuses_is_told(tmp_path, diagnosed, refused, found):
    with faults(refused):
        assert levels(diagnosed(tmp_path)) == found


def test_where_nothing_can_be_renamed_there_is_no_control_page(tmp_path, diagnosed):
    with faults(FailName("rename", errno.EPERM)):
        checks = diagnosed(tmp_path)
    assert "no control page" in checks["file system"]["text"]
    assert "none can invalidate" in checks["file system"]["advice"]
    assert "after its holder was killed" in checks["build lock"]["text"]


def test_disk_space_is_held_against_the_size_of_the_file(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert [check_space(str(tmp_path), size).level for size in (0, 1, free * 3 // 4, free * 2)] == [
        *("ok", "ok", "warn", "fail")
    ]


# the other process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def other():
    """Starts a process that says and does what its code does."""
    processes = []

    def start(code: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code]
        processes.append(subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_write_that_is_not_answered_fails(tmp_path, other):
    path = tmp_path / "probe"
    path.write_bytes(bytes(4096))
    with inside.impatient_doctor(), inside.probe(path) as probe:
        check = inside.check_map(probe, other("input()"))
        assert (check.level, "was not seen by another" in check.text) == ("fail", True)
        ended = other("raise SystemExit(7)")
        ended.wait(30)
        check = inside.check_map(probe, ended)
        assert (check.level, "ended with code 7" in check.text) == ("fail", True)
        with faults(FailName("pwrite", errno.ENOSPC)):
            check = inside.check_map(probe, ended)
        assert (check.level, "No space left on device" in check.text) == ("fail", True)


def test_a_lock_that_does_not_exclude_fails(tmp_path, other):
    check = inside.check_lock(tmp_path / "probe", other("input(); print('held', flush=True); input()"))
    assert (check.level, check.text) == ("fail", "it was given to us while another process held it")
    check = inside.check_lock(tmp_path / "probe", other("input(); print('no', flush=True)"))
    assert (check.level, check.text) == ("fail", "another process could not take it")


def test_a_lock_that_outlives_its_holder_fails(tmp_path, other):
    with inside.impatient_doctor(), inside.build_lock(tmp_path / "probe"):
        check = inside.check_lock(tmp_path / "probe", other("input(); print('held', flush=True); input()"))
    assert (check.level, "was not free after its holder was killed" in check.text) == ("fail", True)


def test_another_process_that_dies_or_cannot_be_started_is_told(tmp_path, monkeypatch, diagnosed):
    script = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(script))
    begun = time.monotonic()
    assert levels(diagnosed(tmp_path)) == {"build lock": "warn"}
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o700)
    checks = diagnosed(tmp_path)
    assert levels(checks) == {"shared map": "fail", "build lock": "fail"}
    assert "ended with code 3" in checks["shared map"]["text"]
    assert time.monotonic() - begun < inside.DOCTORS_PATIENCE


# the machine ---------------------------------------------------------------------------------------------------------


def test_dependencies_that_are_old_or_missing_fail_with_the_command_to_run(monkeypatch, diagnosed, tmp_path):
    monkeypatch.setitem(doctor.DEPENDENCIES, "numpy", "99.1")
    monkeypatch.setitem(doctor.DEPENDENCIES, "no-such-distribution-of-ours", "1")
    check = diagnosed(tmp_path)["dependencies"]
    assert check["level"] == "fail"
    assert check["advice"] == "pip install 'numpy>=99.1' 'no-such-distribution-of-ours>=1'"
    assert "no-such-distribution-of-ours is missing" in check["text"]


# files ---------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_a_warning_and_one_that_is_damaged_fails(tmp_path, diagnosed):
    path = tmp_path / "items.mmc"
    assert levels(diagnosed(path)) == {"file": "warn", "freshness": "warn"}
    make_shelf(path)
    for place, cause in ((100, "corrupt"), (8, "incompatible")):
        data = bytearray(path.read_bytes())
        data[place] ^= 8
        broken = tmp_path / f"{cause}.mmc"
        broken.write_bytes(data)
        check = diagnosed(broken)["file"]
        assert (check["level"], check["text"].startswith(f"{cause}: ")) == ("fail", True)
        assert check["advice"] == "mmcache rebuild FILE"


def test_a_file_of_the_future_is_a_warning(shop, diagnosed):
    data = bytearray(shop.read_bytes())
    header = parse_header(bytes(data[:HEADER_SIZE]), len(data))
    later = dataclasses.replace(header, created_ns=time.time_ns() + 3600 * 10**9)
    data[:HEADER_SIZE] = later.pack()
    shop.unlink()
    shop.write_bytes(data)
    checks = diagnosed(shop)
    assert levels(checks) == {"clock": "warn"}
    assert "ahead of this clock" in checks["clock"]["text"]


def test_it_says_what_workers_learn_from_the_source(tmp_path, shop, diagnosed):
    check = diagnosed(shop)["source"]
    assert ("not tracked" in check["text"], check["advice"].split(",")[0]) == (True, f"mmcache track --like {shop}")
    ok("track", "--like", shop)
    assert ", tracked: workers learn which records" in diagnosed(shop)["source"]["text"]
    (tmp_path / "shop.db").unlink()
    check = diagnosed(shop)["source"]
    assert (check["level"], "cannot be asked" in check["text"]) == ("fail", True)
    make_shelf(tmp_path / "shelf.mmc")
    assert diagnosed(tmp_path / "shelf.mmc")["source"]["text"].startswith("the file names none")


def test_a_control_page_that_is_none_fails_or_will_be_replaced(shop, diagnosed):
    page = shop.with_name("items.mmc.ctl")
    page.unlink()
    assert "there is none yet" in diagnosed(shop)["control page"]["text"]
    os.mkfifo(page)
    check = diagnosed(shop)["control page"]
    assert (check["level"], "expected a regular file" in check["text"]) == ("fail", True)
    page.unlink()
    for content in (b"", b"\0" * 4096):  # cut short; of no boot that was ever
        page.write_bytes(content)
        check = diagnosed(shop)["control page"]
        assert (check["level"], "puts another in its place" in check["advice"]) == ("warn", True)


def test_a_control_page_that_we_may_not_write_is_a_warning(shop, diagnosed):
    page = shop.with_name("items.mmc.ctl")
    page.chmod(0o444)

    class OnlyToRead(FailName):
        """As for a user who is not root."""

        def __call__(self, number, name, args, call):
            if name == "open" and args[0] == str(page) and args[1] & os.O_RDWR:
                raise PermissionError(errno.EACCES, "no")
            return call()

    with faults(OnlyToRead("open", errno.EACCES)):
        check = diagnosed(shop)["control page"]
    assert (check["level"], "cannot invalidate" in check["text"]) == ("warn", True)


def test_leftovers_and_failures_of_builds_are_warnings(tmp_path, shop, diagnosed):
    (tmp_path / ".items.mmc.0123456789abcdef.tmp").touch()
    (tmp_path / "shop.db").rename(tmp_path / "away.db")
    assert main(["-q", "rebuild", str(shop)]) == 1
    checks = diagnosed(shop)
    assert "1 failure in a row" in checks["builds"]["text"]
    assert levels(checks) == {"source": "fail", "builds": "warn"}  # that rebuild has swept up
    (tmp_path / "away.db").rename(tmp_path / "shop.db")
    assert main(["-q", "rebuild", str(shop)]) == 0
    (tmp_path / ".items.mmc.0123456789abcdef.tmp").touch()
    checks = diagnosed(shop)
    assert levels(checks) == {"leftovers": "warn"}
    assert "1 temporary file of builds that died: .items.mmc.0123456789abcdef.tmp" in checks["leftovers"]["text"]
    with inside.build_lock(shop):
        checks = diagnosed(shop)
    assert levels(checks) == {}
    assert "of the build that is running" in checks["leftovers"]["text"]
    assert "a process holds the build lock" in checks["builds"]["text"]


def test_a_build_that_takes_long_is_a_warning_with_what_to_do(tmp_path, capsys):
    path, empty = tmp_path / "items.mmc", tmp_path / "empty.db"
    make_shelf(path)

    def builds(level: str) -> Any:
        main(["doctor", str(path), "--json"])
        found = json.loads(capsys.readouterr().out)["checks"]
        (check,) = (check for check in found if check["name"] == "builds")
        return check if check["level"] == level else None

    with endless_build(empty, path) as builder:
        until("there is a builder", lambda: inside.status(path).builder)
        with inside.any_build_is_long():
            check = until("it takes ten times as long as the last one", lambda: builds("warn"), pause=0.05)
        assert f"kill {builder.pid}: the lock is free at once" in check["advice"]
        assert builds("ok")["text"].startswith(f"pid {builder.pid} has been building for ")
