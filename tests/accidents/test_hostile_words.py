"""Any 64-bit word of the live page, or of a sealed header, holds anything: a scribble, a flipped bit, malice.

Reads are right or raise an MmcacheError, `invalidate` too, and a file can be built again, with a generation that is
not the scribble's.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

import mmcache
from mmcache import MmcacheError, Snapshot
from tests.accidents.stage import change, companions, database, note_of, source, until

VALUES = (2**64 - 1, 2**63, 0x5DEECE66D1234567, 0)
WORDS = 512
"""In the first 4 KiB."""
SAMPLE = 64
"""Words beyond them."""
SANE = 2**30
HANGS = 10.0
"""Seconds; a call takes milliseconds, and a hang is seen for what it is on a busy machine too."""


def page_of(path: Path) -> Path:
    (page,) = companions(path, ".ctl")
    return page


def scribble(file: Path, word: int, value: int) -> None:
    fd = os.open(file, os.O_RDWR)
    os.pwrite(fd, struct.pack("<Q", value), 8 * word)
    os.close(fd)


class Trial:
    """One word of a page in use, and what the calls after it do that is not right."""

    def __init__(self, path: Path, db: Path) -> None:
        self.path, self.db, self.asked = path, db, source(db)
        self.wrong: list[str] = []
        self.round = 0

    def __call__(self, word: int, value: int) -> None:
        self.round += 1
        self.what = f"word {word} = {value:#x}"
        page_of(self.path).unlink()  # each trial has a page that no other trial damaged
        new = f"new-{self.round}"
        with mmcache.open(self.path, self.asked, executor="external", check_interval=0.0) as cache:
            note_of(cache)
            scribble(page_of(self.path), word, value)
            self.attempt("get", lambda: note_of(cache, "k1") == "old")
            change(self.db, "k2", note=new)
            said = self.attempt("invalidate ids", lambda: bool(cache.invalidate(["k2"])))
            if said:
                self.attempt("get of the id", lambda: note_of(cache, "k2") == new)
            self.attempt("where", lambda: len(cache.where(kind="a")) == 10)
            self.attempt("invalidate", lambda: bool(cache.invalidate(hard=bool(self.round % 2))))
            self.attempt("status and stats", lambda: bool(cache.status().state and cache.stats().state))
            self.attempt("build", self.build, must=True)
            self.attempt("get after the build", lambda: note_of(cache, "k2") == new)
        generation = self.generation()
        if generation > SANE:
            self.wrong.append(f"{self.what}: generation {generation}")
            self.begin_anew()

    def attempt(self, name: str, call: Callable[[], bool], *, must: bool = False) -> bool:
        begun, ok = time.monotonic(), False
        try:
            ok = call()
            if not ok:
                self.wrong.append(f"{self.what}: {name}: wrong answer")
        except MmcacheError as error:
            if must:
                self.wrong.append(f"{self.what}: {name}: {type(error).__name__}: {error}"[:200])
        except Exception as error:  # noqa: BLE001 (reported by the test)
            self.wrong.append(f"{self.what}: {name}: {type(error).__name__}: {error}"[:200])
        if time.monotonic() - begun > HANGS:
            self.wrong.append(f"{self.what}: {name} hangs")
        return ok

    def build(self) -> bool:
        mmcache.build(self.path, self.asked, metadata={"round": self.round}, timeout=1.0)
        return True

    def generation(self) -> int:
        with Snapshot.open(self.path) as snapshot:
            return snapshot.generation

    def begin_anew(self) -> None:
        for file in [self.path, *companions(self.path), self.path.parent / f"{self.path.name}.bak"]:
            file.unlink(missing_ok=True)
        mmcache.build(self.path, self.asked)


@pytest.fixture
def trial(path: Path, tmp_path: Path) -> Trial:
    db = database(tmp_path / "items.db", 30)
    with mmcache.open(path, source(db), executor="external") as cache:
        note_of(cache)
    return Trial(path, db)


def words_beyond(path: Path) -> list[int]:
    """Some of those of the page behind its first 4 KiB, the last one among them."""
    count = page_of(path).stat().st_size // 8
    if count <= WORDS:
        return []
    return sorted({*random.Random(7).sample(range(WORDS, count), min(SAMPLE, count - WORDS)), count - 1})


def report(wrong: list[str]) -> str:
    return f"{len(wrong)} findings:\n" + "\n".join(wrong[:40])


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value:#x}")
def test_a_scribbled_word_of_the_page_is_survived(trial, value):
    """Every word once, over the four values."""
    for word in range(VALUES.index(value), WORDS, len(VALUES)):
        trial(word, value)
    assert not trial.wrong, report(trial.wrong)


@pytest.mark.nightly
@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value:#x}")
def test_any_value_of_any_word_of_the_page_is_survived(trial, value):
    for word in range(WORDS):
        trial(word, value)
    assert not trial.wrong, report(trial.wrong)


def test_a_scribbled_word_beyond_4_kib_is_survived(trial):
    for i, word in enumerate(words_beyond(trial.path)):
        trial(word, VALUES[i % len(VALUES)])
    assert not trial.wrong, report(trial.wrong)


def test_random_words_in_numbers_are_survived(trial):
    """Fifty words at once, a hundred times."""
    draw = random.Random(11)
    for _ in range(60):
        page = page_of(trial.path)
        count = page.stat().st_size // 8
        for _ in range(50):
            scribble(page, draw.randrange(min(count, WORDS)), draw.choice([draw.getrandbits(64), *VALUES]))
        trial(draw.randrange(count), draw.getrandbits(64))
    assert not trial.wrong, report(trial.wrong)


def test_a_worker_that_heard_an_event_keeps_it_whatever_the_page_says(trial):
    words = [*range(0, WORDS, 5), *words_beyond(trial.path)[::4]]
    for i, word in enumerate(words):
        note = f"heard-{i}"
        with mmcache.open(trial.path, trial.asked, executor="external", check_interval=0.0) as cache:
            note_of(cache)
            change(trial.db, "k3", note=note)
            cache.invalidate(["k3"])
            assert note_of(cache, "k3") == note
            scribble(page_of(trial.path), word, VALUES[i % len(VALUES)])
            for _ in range(3):
                assert note_of(cache, "k3") == note, f"word {word}"
        trial.build()


@pytest.mark.parametrize("value", [2**64 - 1, 2**63, 2**62, 2**41])
def test_a_sealed_header_of_a_huge_generation_stops_no_build(trial, value):
    data = bytearray(trial.path.read_bytes())
    struct.pack_into("<Q", data, 40, value)
    struct.pack_into("<Q", data, 248, xxhash.xxh3_64_intdigest(bytes(data[:248])))
    replace(trial.path, data)
    change(trial.db, "k1")
    mmcache.build(trial.path, trial.asked, timeout=1.0)
    change(trial.db, "k2")
    mmcache.build(trial.path, trial.asked, timeout=1.0)
    with mmcache.open(trial.path, trial.asked, executor="external") as cache:
        assert (note_of(cache, "k1"), note_of(cache, "k2")) == ("new", "new")


def replace(path: Path, data: bytes | bytearray) -> None:
    """Put a file in the place of the published one, as a copy does."""
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(data)
    fresh.chmod(0o444)
    os.rename(fresh, path)


def test_words_scribbled_while_a_worker_reads_end_no_read(trial):
    """A scribbler writes words of the page at random, all the while."""
    ended, draw = threading.Event(), random.Random(3)
    page = page_of(trial.path)
    count = min(page.stat().st_size // 8, WORDS)

    def scribbles() -> None:
        while not ended.is_set():
            scribble(page, draw.randrange(count), draw.choice([draw.getrandbits(64), *VALUES]))

    scribbler = threading.Thread(target=scribbles)
    scribbler.start()
    try:
        with mmcache.open(trial.path, trial.asked, executor="external", check_interval=0.01) as cache:
            for _ in range(300):
                assert note_of(cache, "k5") == "old"
                with contextlib.suppress(MmcacheError):
                    cache.invalidate(["k6"])
    finally:
        ended.set()
        scribbler.join()
    with mmcache.open(trial.path, trial.asked, executor="external", check_interval=0.01) as cache:
        until("invalidation works again", lambda: cache.invalidate(["k6"]))
