"""A directory with its control page is copied, and both copies go on.

Counts of two pages that began as one are no common history: an event of the one says nothing about the other. Files
that move between the copies are believed as far as the source bears them out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import mmcache
from tests.accidents.stage import (
    NOBODY,
    Crew,
    apart,
    become,
    change,
    companions,
    database,
    execute,
    heard,
    invalidate_changed,
    mount,
    note_of,
    notes_of,
    opens,
    run,
    source,
    truth,
    until,
)

NAME = "c.mmc"


def cp(old: Path, new: Path) -> None:
    run("cp", "-a", old, new)


def rsync(old: Path, new: Path) -> None:
    run("rsync", "-a", "--inplace", f"{old}/", new)


def tar(old: Path, new: Path) -> None:
    new.mkdir()
    run("sh", "-c", f"tar -C '{old}' -cf - . | tar -C '{new}' -xf -")


def hard_links(old: Path, new: Path) -> None:
    """Every file gets a second name but the lock, which is refused then."""
    run("cp", "-al", old, new)
    for file in companions(new / NAME, ".lock"):
        file.unlink()


def page_linked(old: Path, new: Path) -> None:
    """The files are copied, the page gets a second name."""
    run("cp", "-a", old, new)
    for file in companions(new / NAME, ".ctl"):
        file.unlink()
        os.link(old / file.name, file)


def copytree(old: Path, new: Path) -> None:
    shutil.copytree(old, new)


COPIES = [cp, rsync, tar, copytree, hard_links, page_linked]


@pytest.fixture(params=COPIES, ids=lambda copy: copy.__name__)
def copy(request: pytest.FixtureRequest) -> Callable[[Path, Path], None]:
    chosen: Callable[[Path, Path], None] = request.param
    return chosen


@pytest.fixture
def blue(tmp_path: Path) -> Path:
    (tmp_path / "blue").mkdir()
    return tmp_path / "blue" / NAME


@pytest.fixture
def green(tmp_path: Path) -> Path:
    return tmp_path / "green" / NAME


def move_file(old: Path, new: Path) -> None:
    """A published file gets into another directory."""
    shutil.copy(old, new.parent / ".moved")
    os.rename(new.parent / ".moved", new)


def test_a_file_moved_between_copies_undoes_no_invalidation(blue, green, db, copy, crew: Crew):
    here = crew.hire(opens(blue, db))
    here(note_of)
    copy(blue.parent, green.parent)
    there = crew.hire(opens(green, db))
    there(note_of)
    assert here(invalidate_changed, db, "k8")
    here("rebuild")
    assert there(invalidate_changed, db, "k1")
    assert there(note_of, "k1") == "new"
    move_file(blue, green)
    there("refresh")
    newcomer = crew.hire(opens(green, db))
    assert (there(note_of, "k1"), newcomer(note_of, "k1")) == ("new", "new")


def test_copies_that_both_go_on_answer_as_the_source(blue, green, db, copy, crew: Crew):
    here = crew.hire(opens(blue, db))
    here(note_of)
    copy(blue.parent, green.parent)
    there = crew.hire(opens(green, db))
    said: dict[str, list[str]] = {"blue": [], "green": []}
    for i in range(12):
        worker, name = ((here, "blue"), (there, "green"))[i % 2]
        assert worker(invalidate_changed, db, f"k{i}", f"new-{i}")
        said[name].append(f"k{i}")
        if i % 5 == 4:
            worker("rebuild")
            move_file(*((blue, green) if worker is here else (green, blue)))
        for running, path, keys in ((here, blue, said["blue"]), (there, green, said["green"])):
            newcomer = crew.hire(opens(path, db))
            assert running(notes_of, keys) == newcomer(notes_of, keys) == truth(db, keys)
            newcomer.end()


@pytest.mark.parametrize("kind", ["ids", "soft", "hard"])
def test_a_copy_keeps_what_the_original_had_invalidated(blue, db, copy, crew: Crew, kind):
    green = blue.parent.with_name("green") / NAME
    here = crew.hire(opens(blue, db))
    here(note_of)
    change(db, "k2")
    if kind == "ids":
        assert here("invalidate", ["k2"]) == kind
    else:
        assert here("invalidate", hard=kind == "hard") == kind
    copy(blue.parent, green.parent)
    there = crew.hire(opens(green, db))
    for worker in (here, there):
        state = worker("status").state
        assert state in ("stale", "invalidated") if kind == "soft" else state != "fresh"
        if kind != "soft":
            assert worker(note_of, "k2") == "new"


def test_a_copy_made_while_ids_are_invalidated_loses_none(blue, green, db, crew: Crew):
    here = crew.hire(opens(blue, db))
    here(note_of)
    keys = [f"k{i}" for i in range(30)]
    for key in keys:
        assert here(invalidate_changed, db, key)
    here.begin(invalidate_for_a_while, [f"k{i}" for i in range(100, 200)])
    run("cp", "-a", blue.parent, green.parent)
    here.result()
    there = crew.hire(opens(green, db))
    assert there(notes_of, keys) == ["new"] * 30


def invalidate_for_a_while(cache: mmcache.Cache, keys: list[str]) -> None:
    for key in keys:
        cache.invalidate([key])


def test_a_file_from_before_a_restored_backup_undoes_nothing(blue, tmp_path, db, crew: Crew):
    running = crew.hire(opens(blue, db))
    running(note_of)
    run("cp", "-a", blue.parent, tmp_path / "backup")
    assert running(invalidate_changed, db, "k8")
    running("rebuild")
    shutil.copy(blue, tmp_path / "later.mmc")
    os.rename(blue.parent, tmp_path / "lost")
    run("cp", "-a", tmp_path / "backup", blue.parent)
    running("refresh")
    assert running(invalidate_changed, db, "k1")
    assert running(note_of, "k1") == "new"
    move_file(tmp_path / "later.mmc", blue)
    running("refresh")
    newcomer = crew.hire(opens(blue, db))
    assert (running(note_of, "k1"), newcomer(note_of, "k1")) == ("new", "new")


def test_two_workers_of_a_copy_hear_of_each_other(blue, green, db, copy, crew: Crew):
    crew.hire(opens(blue, db))(note_of)
    copy(blue.parent, green.parent)
    one, other = crew.hire(opens(green, db, check_interval=3600.0), 2)
    assert [one(note_of), other(note_of)] == ["old", "old"]
    for i in range(1, 6):
        speaker, hearer = (one, other) if i % 2 else (other, one)
        assert speaker(invalidate_changed, db, f"k{i}")
        assert hearer(note_of, f"k{i}") == "new"


def test_an_isolated_cache_and_its_original_part_ways(tmp_path):
    script = f"""
        import sqlite3
        import mmcache
        from tests.accidents.stage import change, database, note_of, source
        from pathlib import Path

        def test_apart(mmcache_isolated, tmp_path):
            db = database(tmp_path / "items.db")
            (tmp_path / "shared").mkdir()
            cache = mmcache.open(tmp_path / "shared" / "{NAME}", source(db), executor="external", check_interval=0.0)
            change(db, "k3")
            cache.invalidate(["k3"])
            alone = mmcache_isolated(cache, check_interval=0.0)
            assert note_of(alone, "k3") == "new"
            change(db, "k1")
            alone.invalidate(["k1"])
            cache.invalidate(["k7"])
            cache.rebuild()
            change(db, "k5")
            alone.invalidate(["k5"])
            assert [note_of(alone, key) for key in ("k1", "k3", "k5")] == ["new"] * 3
            assert [note_of(cache, key) for key in ("k1", "k3")] == ["new"] * 2
            assert cache.status().state != "invalidated" and alone.status().state != "invalidated"
            cache.close()
    """
    (tmp_path / "test_apart.py").write_text(textwrap.dedent(script))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- an image's lower layer -------------------------------------------------------------------------------------------


def test_a_page_copied_up_by_root_gives_no_old_record(place):
    assert apart(invalidate_in_a_container, place, False, namespace=True) == (0, "new")


def test_a_page_copied_up_by_an_equal_gives_no_old_record(place):
    assert apart(invalidate_in_a_container, place, True, namespace=True) == (0, "new")


def invalidate_in_a_container(place: Path, is_equal: bool) -> tuple[int, str]:
    """A reader maps the page of the lower layer, another process writes to it: old answers after that, and the last."""
    merged = container_of(place)
    reader_opens = opens(merged / NAME, merged / "items.db")

    def as_reader() -> mmcache.Cache:
        with mmcache.open(place / "warm.mmc", source(database(place / "warm.db")), executor="external") as cache:
            cache.invalidate(["k1"])  # all is imported before the change of user
            note_of(cache)
            cache.rebuild()
        if not is_equal:
            become(NOBODY)
        return reader_opens()

    with Crew() as crew:
        reader = crew.hire(as_reader)
        assert reader(note_of) == "old"
        writer = crew.hire(reader_opens)
        assert writer(invalidate_changed, merged / "items.db", "k1")
        answers = [reader(note_of) for _ in range(50)]
        degraded = "degraded" in reader(heard)
        until("the reader notices", lambda: reader(note_of) == "new")
        stale = 0 if degraded else answers.count("old")
        return stale, reader(note_of)


def container_of(place: Path) -> Path:
    """An overlay whose lower layer holds a cache, its page and its database."""
    for name in ("lower", "built", "work1", "upper", "work2", "merged"):
        (place / name).mkdir()
    merged = place / "merged"
    layers = f"lowerdir={place}/lower,upperdir={place}/built,workdir={place}/work1"
    mount("-t", "overlay", "overlay", "-o", layers, merged)
    execute(database(merged / "items.db"), "PRAGMA journal_mode = DELETE")  # readers cannot write beside it
    with Crew() as crew:
        crew.hire(opens(merged / NAME, merged / "items.db"))(note_of)
    run("umount", merged)
    layers = f"lowerdir={place}/built:{place}/lower,upperdir={place}/upper,workdir={place}/work2"
    mount("-t", "overlay", "overlay", "-o", layers, merged)
    return merged
