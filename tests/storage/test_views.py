"""Arrays handed out: the same memory as the map, aligned, read-only, and alive for as long as they are referenced.

Snapshots under threads and swaps: a value, a KeyError or a ClosedError, and nothing that grows.
"""

# mypy: disable-error-code="arg-type, index, type-arg, union-attr"
# What may be None fails the test where it is.

from __future__ import annotations

import gc
import itertools
import os
import pickle
import random
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import mmcache
from mmcache import ClosedError, Schema, Snapshot
from tests.storage.helpers import vector
from tests.support.observe import beside, mapped_files, open_files

pytestmark = pytest.mark.usefixtures("no_disk_wait")

SCHEMA = Schema("items", index=("kind", "tags"), embedding="v", dim=16)
LINUX = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="reads /proc")


def publish(path, generation: int, n: int = 200):
    items = [
        {
            "id": f"k{i}",
            "kind": i % 3,
            "tags": ["a", "b"][: i % 3],
            "generation": generation,
            "v": None if i % 50 == 7 else [float(generation), *vector(i, 15)],
        }
        for i in range(n)
    ]
    return mmcache.build(path, items, SCHEMA)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def mapping_of(path) -> list[range]:
    """The address ranges at which a file is mapped."""
    with open("/proc/self/maps") as lines:
        fields = [line.split(maxsplit=5) for line in lines]
    return [
        range(*(int(part, 16) for part in field[0].split("-")))
        for field in fields
        if len(field) == 6 and field[5].rstrip().removesuffix(" (deleted)") == str(path)
    ]


def every_view(snapshot: Snapshot) -> dict[str, np.ndarray]:
    collection = snapshot.default
    return {
        "embedding": snapshot.embedding("k1"),
        "record.embedding": snapshot["k2"].embedding,
        "embeddings": snapshot.embeddings,
        "a row of embeddings": snapshot.embeddings[3],
        "norms": collection.norms,
        "contiguous selection": snapshot.where()[10:20].embeddings,
    }


@LINUX
@pytest.mark.parametrize("verify", ["auto", "lazy"])
def test_views_are_the_memory_of_the_map_aligned_and_read_only(path, verify):
    publish(path, 1)
    with Snapshot.open(path, verify=verify) as snapshot:
        (extent,) = mapping_of(path)
        for name, view in every_view(snapshot).items():
            assert address(view) in extent, name
            assert address(view) + view.nbytes - 1 in extent, name
            assert view.dtype == np.float32, name
            assert not view.flags.writeable, name
            assert not view.flags.owndata, name
            with pytest.raises(ValueError, match="read-only"):
                view[...] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                view.flags.writeable = True
        assert address(snapshot.embeddings) % 64 == 0
        assert snapshot.embeddings.flags.c_contiguous
        assert np.shares_memory(snapshot.embedding("k1"), snapshot.embeddings)
        assert not snapshot.default.has_embedding.flags.writeable or snapshot.default.has_embedding.flags.owndata
        assert not snapshot.where(kind=1).rows.flags.writeable


@LINUX
def test_views_outlive_a_swap_and_a_close_and_the_map_goes_with_the_last(path):
    before = mapped_files(f"{path.parent}/")  # the last collection that arrived from another process stays
    publish(path, 1)
    snapshot = Snapshot.open(path)
    kept = every_view(snapshot)
    expected = {name: view.copy() for name, view in kept.items()}
    publish(path, 2)
    publish(path, 3)
    assert snapshot["k1"]["generation"] == 1
    snapshot.close()
    with pytest.raises(ClosedError):
        snapshot["k1"]
    collection = weakref.ref(snapshot.default)
    del snapshot
    gc.collect()
    assert collection() is None
    assert [view[0] if view.ndim == 1 else view[0, 0] for view in kept.values()] == [
        view[0] if view.ndim == 1 else view[0, 0] for view in expected.values()
    ]
    for name in list(kept):
        assert len(mapping_of(path)) == 1
        assert np.array_equal(kept.pop(name), expected[name])
        gc.collect()
    assert mapping_of(path) == []
    assert mapped_files(f"{path.parent}/") == before


@LINUX
def test_records_and_selections_held_after_close_do_not_keep_the_map(path):
    publish(path, 1)
    files = open_files()
    snapshot = Snapshot.open(path)
    record, other, selection = snapshot["k1"], snapshot["k2"], snapshot.where(kind=1)
    assert other.embedding is not None
    snapshot.close()
    gc.collect()
    assert mapping_of(path) == []
    assert open_files() == files
    assert record["generation"] == 1
    assert dict(record)["id"] == "k1"
    for read in (lambda: record.embedding, lambda: other.embedding, lambda: selection.ids, lambda: list(selection)):
        with pytest.raises(ClosedError):
            read()
    assert len(selection) == 67


def test_a_copy_does_not_depend_on_the_file_at_all(path):
    publish(path, 1)
    snapshot = Snapshot.open(path, access="copy")
    os.chmod(path, 0o644)
    path.write_bytes(b"")
    assert mapping_of(path) == [] if os.path.exists("/proc/self/maps") else True
    assert snapshot["k1"]["generation"] == 1
    assert snapshot.embedding("k1")[0] == 1
    assert not snapshot.embeddings.flags.writeable
    assert len(snapshot.where(kind=1).ids) == 67
    snapshot.verify(deep=True)
    kept = snapshot.embeddings
    snapshot.close()
    assert kept[1, 0] == 1


def test_everything_is_refused_after_close_and_close_may_be_repeated(path):
    publish(path, 1)
    for verify, access in itertools.product(("auto", "lazy"), ("mmap", "copy")):
        snapshot = Snapshot.open(path, verify=verify, access=access)
        if verify == "auto":
            every_view(snapshot)
        collection = snapshot.default
        started = iter(snapshot.values())
        next(started)
        snapshot.close()
        snapshot.close()
        for read in (
            lambda s=snapshot: s["k1"],
            lambda s=snapshot: s["nobody"],
            lambda s=snapshot: s.get("k1"),
            lambda s=snapshot: s.get("nobody"),
            lambda s=snapshot: "k1" in s,
            lambda s=snapshot: "nobody" in s,
            lambda s=snapshot: s.get_many(["k1"]),
            lambda s=snapshot: s.get_many(["k1"] * 40),
            lambda s=snapshot: s.get_many(["nobody"] * 40),
            lambda s=snapshot: s.where(kind=1),
            lambda s=snapshot: s.where(kind="nothing"),
            lambda s=snapshot: s.embedding("k1"),
            lambda s=snapshot: s.embedding("nobody"),
            lambda s=snapshot: s.get_embeddings(["k1"]),
            lambda s=snapshot: s.get_embeddings(["k1"] * 40),
            lambda s=snapshot: s.get_embeddings(["nobody"] * 40),
            lambda s=snapshot: s.embeddings,
            lambda c=collection: c.norms,
            lambda c=collection: c.has_embedding,
            lambda c=collection: c.terms("kind"),
            lambda c=collection: c.row("k1"),
            lambda c=collection: c.vector(1),
            lambda s=snapshot: list(s),
            lambda s=snapshot: list(s.values()),
            lambda s=snapshot: list(s.items()),
            lambda s=snapshot: s.verify(),
            lambda s=snapshot: s.verify(deep=True),
        ):
            with pytest.raises(ClosedError, match="open it again"):
                read()
        assert snapshot.generation == 1
        assert len(snapshot) == 200


def test_a_record_pickles_with_its_embedding_and_a_snapshot_does_not(path):
    publish(path, 1)
    with Snapshot.open(path) as snapshot:
        for key in ("k1", "k7"):
            record = snapshot[key]
            again = pickle.loads(pickle.dumps(record))
            assert again == record == dict(record)
            assert again.id == key
            assert (again.embedding is None) == (record.embedding is None)
            if record.embedding is not None:
                assert np.array_equal(again.embedding, record.embedding)
        with pytest.raises(TypeError, match="does not pickle"):
            pickle.dumps(snapshot)


# Threads --------------------------------------------------------------------------------------------------------------


def check_threads(path, rounds: int, threads: int = 8) -> None:
    publish(path, 1)
    publish(path, 2)
    wrong: list[str] = []
    answered = [0] * threads
    holder: list[Snapshot] = [Snapshot.open(path, verify="lazy")]
    stop = threading.Event()

    def read(number: int) -> None:
        chance = random.Random(number)
        while not stop.is_set():
            snapshot = holder[0]
            key = f"k{chance.randrange(220)}"
            present = int(key[1:]) < 200
            kind = chance.randrange(10)
            try:
                if kind == 0:
                    record = snapshot[key]
                    right = present and record["generation"] == 2 and record.id == key
                elif kind == 1:
                    found = snapshot.get_many([key, "k1"] * 30)
                    right = (found[0] is not None) == present and found[1] is not None and found[1].id == "k1"
                elif kind == 2:
                    right = len(snapshot.where(kind=1).ids) == 67
                elif kind == 3:
                    found_vector = snapshot.embedding(key)
                    right = present and (found_vector is None or found_vector[0] == 2)
                elif kind == 4:
                    right = [r["generation"] for r in snapshot.where(tags="b")] == [2] * 66
                elif kind == 5:
                    right = (key in snapshot) == present
                elif kind == 6:
                    right = float(snapshot.embeddings[1, 0]) == 2
                elif kind == 7:
                    right = sum(1 for _ in snapshot) == 200
                elif kind == 8:
                    right = snapshot.default.terms("kind") == {0: 67, 1: 67, 2: 66}
                else:
                    right = snapshot["k1"].embedding[0] == 2 and int(snapshot.default.has_embedding.sum()) == 196
                if not right:
                    wrong.append(f"{kind} {key}: wrong answer")
                answered[number] += 1
            except KeyError:
                if present:
                    wrong.append(f"{kind} {key}: KeyError")
            except ClosedError:
                pass
            except BaseException as error:  # noqa: BLE001 (to be reported, whatever it is)
                wrong.append(f"{kind} {key}: {type(error).__name__}: {error}")
            if wrong:
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    workers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    try:
        for worker in workers:
            worker.start()
        for i in range(rounds):
            before = sum(answered)
            old, holder[0] = (
                holder[0],
                Snapshot.open(path, verify=("lazy", "auto")[i % 2], access=("mmap", "copy")[i % 3 == 0]),
            )
            old.close()
            while sum(answered) < before + 3 and not wrong and any(worker.is_alive() for worker in workers):
                threading.Event().wait(0.0005)
            if wrong:
                break
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        sys.setswitchinterval(interval)
        holder[0].close()
    assert not wrong, wrong[:5]
    assert min(answered) > 0


def test_threads_that_read_while_others_close_see_values_or_that_it_was_closed(path, no_leaks):
    check_threads(path, 150)


@pytest.mark.nightly
def test_threads_that_read_for_long_while_others_close_see_values_or_that_it_was_closed(path, no_leaks):
    check_threads(path, 20_000)


# Swaps ----------------------------------------------------------------------------------------------------------------


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_swaps(path, count: int) -> None:
    """A reader that follows every publish, by path, holding one view of the generation before."""
    publish(path, 0)

    def swap(generation: int, held: list) -> None:
        publish(path, generation, 40)
        snapshot = Snapshot.open(path)
        assert snapshot["k1"]["generation"] == generation
        held.append(snapshot.embedding("k1"))
        snapshot.where(kind=1).ids  # noqa: B018
        if generation % 2:
            snapshot.close()
        assert held.pop(0)[0] == generation - 1

    held = [np.zeros(1, np.float32)]
    for generation in range(1, 100):
        swap(generation, held)
    gc.collect()
    files, maps, memory = len(open_files()), len(mapped_files(f"{path.parent}/")), resident()
    objects = len(gc.get_objects())
    for generation in range(100, count):
        swap(generation, held)
    gc.collect()
    assert len(open_files()) == files
    assert len(mapped_files(f"{path.parent}/")) == maps
    assert abs(len(gc.get_objects()) - objects) < 250
    assert resident() - memory < max(2**22, memory // 20)
    names = {"items.mmc", "items.mmc.bak", "items.mmc.ctl", "items.mmc.lock"}
    assert set(beside(path)) == names


@LINUX
def test_hundreds_of_swaps_leave_descriptors_maps_and_memory_flat(path):
    check_swaps(path, 300)


@LINUX
@pytest.mark.nightly
def test_ten_thousand_swaps_leave_descriptors_maps_and_memory_flat(path):
    check_swaps(path, 10_000)


@LINUX
def test_processes_share_the_pages_and_none_has_its_own(path):
    """What a second process adds to the memory of the first is small beside the file."""
    items = [{"id": f"k{i}", "v": vector(i, 512)} for i in range(4000)]
    mmcache.build(path, items, Schema("items", embedding="v"))
    size = path.stat().st_size
    child = """
import sys
from mmcache import Snapshot
snapshot = Snapshot.open(sys.argv[1])
total = float(snapshot.embeddings.sum())
private = shared = 0
inside = False
for line in open("/proc/self/smaps"):
    fields = line.split()
    if "-" in fields[0]:
        inside = line.rstrip().endswith(sys.argv[1])
    elif inside and fields[0] in ("Anonymous:", "Rss:"):
        if fields[0] == "Rss:": shared += int(fields[1]) * 1024
        else: private += int(fields[1]) * 1024
print(private, shared)
"""
    done = subprocess.run([sys.executable, "-c", child, str(path)], capture_output=True, text=True, check=True)
    private, mapped = map(int, done.stdout.split())
    assert private == 0
    assert mapped > 0.9 * size
