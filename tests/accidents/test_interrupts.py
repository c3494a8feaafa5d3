"""An exception at any instruction of an operation leaves nothing behind that outlives it.

Each operation is run again and again, interrupted at another instruction each time. After each, no other process finds
a lock held, another thread of this one is answered, the next invalidation is one of ids, the next build publishes and
sweeps what was left, and no descriptor stays open.

The short form tries a sample of the instructions at which CPython handles signals, the nightly one all instructions.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, MmcacheError, Snapshot
from mmcache.sharing import operate
from tests.accidents.stage import PATIENCE, change, database, execute, source, truth, until
from tests.support import inside, observe
from tests.support.instructions import Interrupted, Interrupts, Place
from tests.support.processes import Child, child

SAMPLE = 24
"""Instructions of each operation in the short form."""

PARTS = 4
"""Of the instructions of an operation, beside each other in the long form: some of them wait for a pause."""

Operation = Callable[[], Any]


class Scene:
    """A bank of a few items, its file, and a cache that has read it."""

    def __init__(self, place: Path, n: int) -> None:
        self.db, self.path, self.n = place / "source" / "items.db", place / "items.mmc", n
        self.cache = self.open()

    def open(self, **options: Any) -> Cache:
        settings: dict[str, Any] = {"executor": "external", "check_interval": 1e9, "ttl": 1e9, "wait": 0.3}
        return Cache(self.path, source(self.db), **settings | options)

    def ready(self) -> None:
        self.cache.get("k1")

    def reopen(self, **options: Any) -> None:
        self.cache.close()
        self.cache = self.open(**options)
        self.cache.get("k1")

    def change(self) -> None:
        change(self.db, "k1", note=f"note {self.n}")

    def build(self) -> Any:
        return mmcache.build(self.path, source(self.db), metadata={"n": self.n})


OPERATIONS: dict[str, Callable[[Scene], Operation]] = {}


def operation(prepare: Callable[[Scene], Operation]) -> Callable[[Scene], Operation]:
    OPERATIONS[prepare.__name__] = prepare
    return prepare


@operation
def invalidate(scene: Scene) -> Operation:
    return lambda: scene.cache.invalidate(["k1"])


@operation
def invalidate_all(scene: Scene) -> Operation:
    return lambda: scene.cache.invalidate(None)


@operation
def build(scene: Scene) -> Operation:
    return scene.build


@operation
def rebuild_unchanged(scene: Scene) -> Operation:
    return scene.cache.rebuild


@operation
def first_get(scene: Scene) -> Operation:
    scene.cache.close()
    scene.path.unlink()
    scene.cache = scene.open()
    return lambda: scene.cache.get("k1")


@operation
def adopt(scene: Scene) -> Operation:
    scene.build()
    return lambda: scene.cache.get("k1")


@operation
def open_again(scene: Scene) -> Operation:
    scene.cache.close()
    scene.cache = scene.open()
    return lambda: scene.cache.get("k2")


@operation
def adopt_what_covers(scene: Scene) -> Operation:
    scene.change()
    scene.cache.invalidate(["k1"])
    scene.build()
    return lambda: scene.cache.get("k2")


@operation
def poll(scene: Scene) -> Operation:
    return scene.cache.refresh


@operation
def attach(scene: Scene) -> Operation:
    Path(f"{scene.path}.ctl").unlink()
    return scene.cache.refresh


def _start(executor: str) -> Callable[[Scene], Operation]:
    def start(scene: Scene) -> Operation:
        scene.reopen(executor=executor, rebuild_after=0.0)
        scene.change()
        return scene.cache.refresh

    start.__name__ = f"start_{executor}"
    return operation(start)


for _executor in ("inline", "thread", "subprocess"):
    _start(_executor)


@operation
def close(scene: Scene) -> Operation:
    return scene.cache.close


@operation
def clear(scene: Scene) -> Operation:
    return lambda: inside.clear(scene.path)


@operation
def verify(scene: Scene) -> Operation:
    def act() -> None:
        with Snapshot.open(scene.path, verify="full") as snapshot:
            snapshot.verify()

    return act


@operation
def pickled(scene: Scene) -> Operation:
    def act() -> None:
        inside.close(pickle.loads(pickle.dumps(scene.cache)))

    return act


@operation
def rollback(scene: Scene) -> Operation:
    scene.build()
    scene.cache.get("k1")
    return lambda: scene.cache.rollback(reason="interrupted")


@operation
def resume(scene: Scene) -> Operation:
    rollback(scene)()
    return scene.cache.resume


@operation
def disable(scene: Scene) -> Operation:
    return lambda: operate.disable(scene.path)


@operation
def enable(scene: Scene) -> Operation:
    operate.disable(scene.path)
    return lambda: operate.enable(scene.path)


@operation
def merge(scene: Scene) -> Operation:
    part = scene.path.parent / "source" / "part.mmc"
    mmcache.build(part, source(scene.db), metadata={"n": scene.n})
    return lambda: mmcache.merge(scene.path, [part])


@operation
def sharded(scene: Scene) -> Operation:
    def act() -> None:
        with ThreadPoolExecutor(2) as executor:
            mmcache.build(scene.path, source(scene.db), metadata={"n": scene.n}, shards=2, executor=executor)

    return act


@operation
def merge_into_itself(scene: Scene) -> Operation:
    part = scene.path.parent / "source" / "more.mmc"
    more = part.with_name("more.db")
    if not more.exists():
        execute(database(more, 3), "UPDATE items SET id = 'm' || id")
    mmcache.build(part, source(more))
    scene.build()
    return lambda: mmcache.merge(scene.path, [scene.path, part])


def _store(scene: Scene) -> str:
    return f"file://{scene.path.parent}/store"


def _release(scene: Scene) -> int:
    """A release of a file that another machine built."""
    made = scene.path.parent / "source" / "made.mmc"
    mmcache.build(made, source(scene.db), metadata={"n": -scene.n})
    return mmcache.publish(made, _store(scene)).number


@operation
def publish(scene: Scene) -> Operation:
    _release(scene)
    scene.build()
    return lambda: mmcache.publish(scene.path, _store(scene))


@operation
def publish_a_delta(scene: Scene) -> Operation:
    scene.build()
    mmcache.publish(scene.path, _store(scene))
    scene.change()
    scene.build()
    return lambda: mmcache.publish(scene.path, _store(scene))


@operation
def pin(scene: Scene) -> Operation:
    number = _release(scene)
    mmcache.unpin(_store(scene))
    return lambda: mmcache.pin(_store(scene), number)


@operation
def follow(scene: Scene) -> Operation:
    _release(scene)
    mmcache.unpin(_store(scene))
    return lambda: mmcache.follow(_store(scene), scene.path, source=source(scene.db))


@operation
def begin_process(scene: Scene) -> Operation:
    """In a forked child, which this process might be."""
    return inside.begin_process


# --- what is left -----------------------------------------------------------------------------------------------------


def _watch(place: Path) -> Callable[[Child], None]:
    """Another process, which answers whether a lock of the directory is held."""

    def watch(there: Child) -> None:
        while there.hear():
            there.say(b"1" if _held(place) else b"0")

    return watch


def _held(place: Path) -> bool:
    for name in place.glob("*.mmc.*"):
        if name.suffix in (".lock", ".ctl"):
            with name.open("r+b") as file:
                for lock in (fcntl.flock, fcntl.lockf):
                    try:
                        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except OSError:
                        return True
    return False


def _is_held(watcher: Child) -> bool:
    watcher.say()
    return watcher.hear() == b"1"


def _in_thread(action: Callable[[], Any]) -> Any:
    """What it returns in another thread; fails where that waits for ever."""
    results: list[Any] = []

    def act() -> None:
        try:
            results.append(action())
        except Exception as error:  # noqa: BLE001 (it is the result)
            results.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert results, "another thread waits for ever"
    return results[0]


def _faults(scene: Scene, watcher: Child, name: str, open_before: dict[int, str]) -> list[str]:
    """What an interrupted operation has left."""
    found = []
    if _is_held(watcher):
        gc.collect()  # the exception's frames may be in a cycle
        try:
            until("locks are free", lambda: not _is_held(watcher), 5.0)
        except AssertionError:
            found.append("a lock is held")
    if name.startswith("start"):
        until("the source's change is published", lambda: _is_rebuilt(scene))
    if name == "close":
        scene.cache.close()
        scene.cache = scene.open()
    if name == "rollback":
        found += _faults_of_a_rollback(scene)
    if (scene.path.parent / "store").exists():
        found += _faults_of_a_store(scene)
    operate.enable(scene.path)
    scene.cache.refresh()
    found += _faults_of_use(scene, scene.cache)
    scene.cache.close()
    del scene.cache
    observe.await_polls()
    left = [name for name in observe.beside(scene.path) if name.endswith((".tmp", ".new"))]
    wakes = [name for name in scene.path.parent.iterdir() if name.suffix == ".wake"]
    found += [f"files: {left}"] * bool(left) + [f"{len(wakes)} wake files"] * (len(wakes) > 1)
    if _opened(scene, open_before):
        gc.collect()
        with contextlib.suppress(AssertionError):  # a thread that reads the source may be about to end
            until("nothing is open", lambda: not _opened(scene, open_before), PATIENCE)
    found += [f"open: {what}" for what in _opened(scene, open_before)]
    return found


def _faults_of_a_rollback(scene: Scene) -> list[str]:
    """What is published is held if it came back by a rollback, and only then; the others are the backup."""
    with Snapshot.open(scene.path) as there, Snapshot.open(f"{scene.path}.bak") as backup:
        is_back = there.metadata.get("n") != scene.n
        if is_back and backup.metadata.get("n") != scene.n:
            return ["the records that were rolled back are gone"]
    is_held = scene.path.with_name("items.mmc.hold").exists()
    return [f"rolled back: {is_back}, held: {is_held}"] * (is_back != is_held)


def _faults_of_a_store(scene: Scene) -> list[str]:
    """Its log is whole, takes the next release, and leads a node to it; what an upload left, a prune knows."""
    url, store = _store(scene), scene.path.parent / "store"
    mmcache.unpin(url)
    number = _release(scene)
    node = scene.path.parent / "source" / "node.mmc"
    found = [f"a node follows {said.release}" for said in [mmcache.follow(url, node)] if said.release != number]
    entries = sorted(int(name.stem) for name in (store / "generations").iterdir())
    found += [f"entries: {entries}"] * (entries != list(range(1, len(entries) + 1)))
    odd = [name.name for name in store.rglob("*.*") if name.suffix not in (".json", ".mmc", ".mmd")]
    return found + [f"in the store: {odd}"] * bool(odd)


def _is_rebuilt(scene: Scene) -> bool:
    scene.cache.refresh()
    return scene.cache["k1"]["note"] == f"note {scene.n}" and not observe.is_building(scene.path)


def _faults_of_use(scene: Scene, cache: Cache) -> list[str]:
    """Another thread uses the cache."""
    found = []
    expected = truth(scene.db, ["k2"])
    answer = _in_thread(lambda: cache["k2"]["note"])
    found += [f"a thread reads {answer!r}"] * (answer != expected[0])
    kind = _in_thread(lambda: cache.invalidate(["k2"]))
    found += [f"the next invalidation is {kind!r}"] * (kind != "ids")
    scene.n += 1_000_000
    report = _in_thread(scene.build)
    if not getattr(report, "changed", False):
        found.append(f"the next build: {report!r}")
    elif _in_thread(lambda: (cache.get("k1"), cache.refresh(), cache.generation)[2]) != report.generation:
        found.append("the next generation is not adopted")
    return found


def _opened(scene: Scene, before: dict[int, str]) -> list[str]:
    place = str(scene.path.parent)
    return [what for fd, what in observe.open_files().items() if before.get(fd) != what and place in what]


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """An exception in a finalizer is printed and lost; gives those that are not ours."""
    others: list[str] = []

    def hook(what: Any) -> None:
        if not isinstance(what.exc_value, Interrupted):
            others.append(repr(what.exc_value))

    before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield others
    finally:
        sys.unraisablehook = before


def _try_all(place: Path, name: str, chosen: Callable[[list[Place]], list[Place]], *, every: bool) -> str:
    (place / "source").mkdir()
    db = database(place / "source" / "items.db", 6)
    interrupts, found, tried = Interrupts(every=every), [], 0
    with inside.no_fsync(), child(_watch(place)) as watcher, _quiet() as others:
        before = observe.open_files()
        mmcache.build(place / "items.mmc", source(db))
        places: list[Place] = []
        for n in (-2, -1):  # once for what is imported, once for the count
            scene = Scene(place, n)
            scene.ready()
            places = interrupts.places(OPERATIONS[name](scene))
            assert not _faults(scene, watcher, name, before)
        todo = chosen(places)
        for n, at in enumerate(todo, 1):
            scene = Scene(place, n)
            scene.ready()
            action = OPERATIONS[name](scene)
            tried += interrupts.run(action, at)
            del action
            try:
                faults = _faults(scene, watcher, name, before)
            except (AssertionError, MmcacheError) as error:
                faults = [repr(error)]
            found += [f"{at}: {fault}" for fault in faults]
            if len(found) > 20:
                break
    assert not found, "\n".join(found)
    assert not others, others
    assert tried >= len(todo) / 2
    return f"{name}: interrupted at {tried} of {len(places)} instructions"


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_exception_at_a_call_leaves_nothing_behind(place, name, capsys):
    def sample(places: list[Place]) -> list[Place]:
        draw = random.Random(name)
        few = SAMPLE // 3 if name == "start_subprocess" else SAMPLE
        return draw.sample(places, min(few, len(places)))

    counted = _try_all(place, name, sample, every=False)
    with capsys.disabled():
        print(f"\n{counted}")


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "start_subprocess"])
def test_an_exception_at_any_instruction_leaves_nothing_behind(place, name, part, capsys):
    counted = _try_all(place, name, lambda places: places[part::PARTS], every=True)
    with capsys.disabled():
        print(f"\n{counted}, part {part}")


def test_an_exception_at_any_instruction_of_the_counters_leaves_no_file_open(place):
    def of_counters(places: list[Place]) -> list[Place]:
        return [at for at in places if at.code.co_filename.endswith(f"{os.sep}counters.py")]

    _try_all(place, "close", of_counters, every=True)


@pytest.mark.parametrize("name", ["open_again", "adopt_what_covers"])
def test_an_exception_while_a_file_is_taken_leaves_no_id_to_the_source(place, name):
    (place / "source").mkdir()
    db = database(place / "source" / "items.db", 6)
    interrupts, found, tried = Interrupts(every=True), [], 0
    with inside.no_fsync(), _quiet() as others:
        mmcache.build(place / "items.mmc", source(db))
        scene = Scene(place, 0)
        scene.ready()
        places = interrupts.places(OPERATIONS[name](scene))
        scene.cache.close()
        todo = [at for at in places if at.code.co_filename.endswith((f"{os.sep}watch.py", f"{os.sep}hearing.py"))]
        for n, at in enumerate(todo[:: 1 + len(todo) // 120], 1):
            scene = Scene(place, n)
            scene.ready()
            tried += interrupts.run(OPERATIONS[name](scene), at)
            scene.cache.get("k1")  # as the next request does
            scene.cache.refresh()
            before = scene.cache.stats()
            assert scene.cache["k1"]["note"] == truth(db, ["k1"])[0]
            after = scene.cache.stats()
            if (after.state, after.hits) != ("fresh", before.hits + 1):
                found.append(f"{at}: {after.state}, {after.fallbacks}")
            scene.cache.close()
    assert not found, "\n".join(found)
    assert not others, others
    assert tried > 40
