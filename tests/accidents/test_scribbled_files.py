"""Files beside the published one are emptied, overwritten, replaced, removed or barred under workers that use them.

No signal ends a worker, no get after an `invalidate` that returned gives what was before, and invalidation works again
within seconds once the obstacle is gone. (Truncation in place of the published file, and of the wake file, is the
documented limit.)
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import mmcache
from mmcache import Cache
from tests.accidents.stage import (
    Crew,
    apart,
    become,
    companions,
    database,
    invalidate_changed,
    note_of,
    notes_of,
    opens,
    source,
    until,
)
from tests.support.crew import Worker

VICTIMS = {
    "page": (".ctl",),
    "counters": (".counts",),
    "lock": (".lock",),
    "wake": (".wake",),
    "all": (".ctl", ".counts", ".lock"),
}

Damage = Callable[[Path], None]


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def halved(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def zeroed(file: Path) -> None:
    overwrite(file, bytes(file.stat().st_size))


def overwritten(file: Path) -> None:
    overwrite(file, os.urandom(file.stat().st_size))


def overwrite(file: Path, data: bytes) -> None:
    fd = os.open(file, os.O_WRONLY)
    os.pwrite(fd, data, 0)
    os.close(fd)


def extended(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(os.urandom(70_000))


def removed(file: Path) -> None:
    file.unlink()


def replaced(file: Path) -> None:
    """By garbage of the same size, under the same name."""
    size = file.stat().st_size
    file.unlink()
    file.write_bytes(os.urandom(size))


def copied_anew(file: Path) -> None:
    """By a copy of itself, as an editor or `sed -i` does."""
    copy = file.parent / ".copy"
    shutil.copy2(file, copy)
    os.rename(copy, file)


IN_PLACE: list[Damage] = [emptied, halved, zeroed, overwritten, extended]
REPLACED: list[Damage] = [removed, replaced, copied_anew]


def put(file: Path, make: Callable[[], object]) -> None:
    """Make something under a name, faster than a worker that makes its file again."""
    for _ in range(100):
        file.unlink(missing_ok=True)
        try:
            make()
        except FileExistsError:
            continue
        return
    pytest.fail(f"{file.name} is made again at once, a hundred times")


def directory(file: Path) -> None:
    put(file, file.mkdir)
    (file / "content").write_text("x")


def fifo(file: Path) -> None:
    put(file, lambda: os.mkfifo(file))


def link_to_nothing(file: Path) -> None:
    put(file, lambda: file.symlink_to("nothing"))


def link_to_another_file(file: Path) -> None:
    (file.parent / "another").write_bytes(os.urandom(9_000))
    put(file, lambda: file.symlink_to(file.parent / "another"))


OBSTACLES: list[Damage] = [directory, fifo, link_to_nothing, link_to_another_file]


def take_away(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def victims(path: Path, name: str) -> list[Path]:
    found = companions(path, *VICTIMS[name])
    if not found:
        pytest.skip(f"no file {' or '.join(VICTIMS[name])} beside the published one")
    return found


def read_on(cache: Cache, db: Path, key: str) -> list[str]:
    """Gets for a while, of a key and of others; what the key had."""
    found = []
    for _ in range(200):
        found.append(note_of(cache, key))
        assert note_of(cache, "k150") == "old"
    cache.refresh()
    cache.stats()
    return sorted(set(found))


@pytest.fixture
def workers(path, db, crew: Crew):
    """Two that read and invalidate, at generation 1; what `crew` hires later comes after them."""
    hired = crew.hire(opens(path, db), 2)
    for worker in hired:
        assert worker(note_of) == "old"
        worker("invalidate", ["k199"])
    return hired


@pytest.fixture
def stage(path, db, crew, workers):
    return path, db, crew, workers


def invalidate_under_damage(workers, db: Path, n: int) -> int:
    """How many of n invalidations returned; what did is answered by both workers as the source has it."""
    returned = 0
    for i in range(n):
        key = f"k{i}"
        if workers[i % 2](invalidate_changed, db, key):
            returned += 1
            assert [worker(note_of, key) for worker in workers] == ["new", "new"]
    return returned


def recovers(path, workers, db: Path, crew: Crew) -> None:
    """Invalidation works again, and running and new workers hear of it."""
    until("invalidation works again", lambda: workers[0](invalidate_changed, db, "k100"), timeout=15.0)
    newcomer = crew.hire(opens(path, db))
    everyone = (*workers, newcomer)
    until("workers without a page notice", lambda: {worker(note_of, "k100") for worker in everyone} == {"new"})
    assert newcomer(invalidate_changed, db, "k101")
    # At once, but for those whose wake word was spoilt: they learn of the page in its place by a poll.
    until("all hear of it", lambda: [worker(note_of, "k101") for worker in everyone] == ["new"] * 3)
    newcomer("rebuild")
    for worker in (*workers, newcomer):
        worker("refresh")
        assert worker(notes_of, ["k100", "k101", "k150"]) == ["new", "new", "old"]


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("damage", [*IN_PLACE, *REPLACED], ids=lambda damage: damage.__name__)
def test_damage_beside_the_file_is_survived(stage, victim, damage):
    path, db, crew, workers = stage
    if victim == "wake" and damage in (emptied, halved):
        pytest.skip("the documented limit")
    victims(path, victim)
    assert workers[0](invalidate_changed, db, "k120")
    assert workers[1](note_of, "k120") == "new"
    for worker in workers:
        worker.begin(read_on, db, "k120")
    for _ in range(5):
        for file in victims_now(path, victim):
            damage(file)
    assert [worker.result() for worker in workers] == [["new"], ["new"]]
    for file in victims_now(path, victim):
        damage(file)
    invalidate_under_damage(workers, db, 6)
    recovers(path, workers, db, crew)


def victims_now(path: Path, name: str) -> list[Path]:
    return [file for file in companions(path, *VICTIMS[name]) if file.suffix != ".tmp"]


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda obstacle: obstacle.__name__)
def test_an_obstacle_in_the_place_of_a_file_is_survived(stage, victim, obstacle):
    path, db, crew, workers = stage
    hurt = victims(path, victim)
    for worker in workers:
        worker.begin(read_on, db, "k150")
    for file in hurt:
        obstacle(file)
    assert [worker.result() for worker in workers] == [["old"], ["old"]]
    invalidate_under_damage(workers, db, 6)
    for file in hurt:
        take_away(file)
    recovers(path, workers, db, crew)


@pytest.mark.parametrize("victim", ["page", "all"])
@pytest.mark.parametrize("damage", [emptied, halved, zeroed, overwritten, removed, replaced], ids=lambda d: d.__name__)
def test_a_damaged_page_forgets_nothing_for_a_new_worker(stage, victim, damage):
    path, db, crew, workers = stage
    for i in range(10):
        assert workers[i % 2](invalidate_changed, db, f"k{i}")
    for file in victims(path, victim):
        damage(file)
    newcomer = crew.hire(opens(path, db))
    keys = [f"k{i}" for i in range(10)]
    assert [worker(notes_of, keys) for worker in (newcomer, *workers)] == [["new"] * 10] * 3


# --- the published file itself, written to in place and not truncated -----------------------------------------------


def item(number: int) -> dict[str, str]:
    return {"id": f"k{number}", "kind": "abc"[number % 3], "note": "old"}


def wrong_gets(cache: Cache, rounds: int) -> list[str]:
    """Reads by key that were not answered as the source has it."""
    expected = [item(7 * i % 200) for i in range(rounds)]
    return [one["id"] for one in expected if dict(cache[one["id"]]) != one or one["id"] not in cache]


def wrong_answers(cache: Cache, rounds: int) -> list[str]:
    """Reads of every kind that were not."""
    wrong = wrong_gets(cache, rounds)
    for _ in range(rounds):
        for n, kind in enumerate("abc"):
            if sorted(cache.where(kind=kind).ids) != sorted(f"k{i}" for i in range(n, 200, 3)):
                wrong.append(f"where {kind}")
        if sorted(cache) != sorted(f"k{i}" for i in range(200)) or cache.get_many(["k7", "absent"]) != [item(7), None]:
            wrong.append("iteration or get_many")
    return wrong


@pytest.mark.parametrize("seed", range(4))
def test_random_writes_into_the_published_file_give_no_wrong_answer(path, db, crew, seed):
    """By a program that means another file. A get is right throughout; what indexes answer, from the next poll on, for
    they are verified once. A rebuild mends it without a person."""
    verify = ["auto", "lazy"][seed % 2]
    workers = crew.hire(opens(path, db, executor="thread", rebuild_after=0.0, verify=verify), 3)
    assert [worker(note_of) for worker in workers] == ["old"] * 3
    chance = random.Random(seed)
    for worker in workers:
        worker.begin(wrong_gets, 1000)
    for _ in range(40):
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(chance.randrange(0, path.stat().st_size - 64))
            file.write(chance.randbytes(chance.choice([1, 8, 64])))
        time.sleep(0.02)
    assert [worker.result(120.0) for worker in workers] == [[], [], []]
    for worker in workers:
        worker("refresh")
    assert [worker(wrong_answers, 20) for worker in workers] == [[], [], []]

    def is_whole(worker: Worker) -> bool:
        before = worker("stats").hits
        return worker(wrong_answers, 5) == [] and worker("stats").hits >= before + 5

    until("the file answers again", lambda: all(is_whole(worker) for worker in workers), timeout=60.0)
    if verify == "auto":  # "lazy" believes what no read touches
        with mmcache.Snapshot.open(path) as snapshot:
            snapshot.verify(deep=True)


def test_a_file_written_to_in_place_answers_no_more_though_it_has_lost_its_name(path, db):
    """Another file took its name, and is damaged, too: what is open is not what was refused."""
    with mmcache.open(path, source(db), executor="external") as cache:
        assert cache.where(kind="a").ids
        spoilt = bytearray(path.read_bytes())
        spoilt[len(spoilt) // 2] ^= 1
        other = path.with_name("other")
        other.write_bytes(spoilt)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(len(spoilt) // 2)
            file.write(spoilt[len(spoilt) // 2 :][:1])
        other.replace(path)
        cache.refresh()
        hits = cache.stats().hits
        assert cache.where(kind="a").ids
        assert cache.stats().hits == hits, "the source answers"


def test_an_old_page_copied_over_the_page_takes_nothing_back(path, db, crew, workers):
    assert workers[0](invalidate_changed, db, "k1")
    (page,) = victims(path, "page")
    old = page.read_bytes()
    for key in ("k2", "k3"):
        assert workers[0](invalidate_changed, db, key)
        assert workers[1](note_of, key) == "new"
    page.write_bytes(old)  # in place, as `cp backup/* .` does
    for worker in workers:
        assert worker(read_on, db, "k2") == ["new"]
    recovers(path, workers, db, crew)


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o200])
@pytest.mark.parametrize("victim", VICTIMS)
def test_files_without_permissions_are_survived(place, victim, mode):
    if os.geteuid():
        pytest.skip("needs root, to become a user that permissions bind")
    apart(change_modes, place, victim, mode)


def change_modes(place: Path, victim: str, mode: int) -> None:
    with mmcache.open(place / "warm.mmc", source(database(place / "warm.db")), executor="external") as cache:
        cache.invalidate(["k1"])  # all is imported before the change of user
        note_of(cache)
        cache.rebuild()
        cache.status()
    home = place / "home"
    home.mkdir()
    become(40_000 + os.getpid() % 20_000, home)
    path, db = home / "c.mmc", database(home / "items.db")
    with Crew() as crew:
        workers = crew.hire(opens(path, db), 2)
        assert [worker(note_of) for worker in workers] == ["old", "old"]
        hurt = victims(path, victim)
        for file in hurt:
            file.chmod(mode)
        for worker in workers:
            assert worker(read_on, db, "k150") == ["old"]
        invalidate_under_damage(workers, db, 6)
        for file in hurt:
            if file.exists():
                file.chmod(0o660)
        recovers(path, workers, db, crew)
