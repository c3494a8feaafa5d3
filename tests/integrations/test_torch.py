"""Records in torch's DataLoader, with real workers, and tensors over the file that cannot be written to."""

from __future__ import annotations

import collections
import copy
import faulthandler
import gc
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import traceback
import warnings
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import (
    ClosedError,
    FileCollection,
    GenerationGoneError,
    Schema,
    Selection,
    Snapshot,
    SourceError,
    SourceRecord,
    UnusableFileError,
)
from mmcache.storage.overlay import Overlay
from tests.recipes import bank, recipe
from tests.support import inside
from tests.support.observe import mapped_files

torch = pytest.importorskip("torch", minversion="2.9", reason="torch 2.9 is not installed")

from torch.utils.data import (  # noqa: E402
    BatchSampler,
    DataLoader,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
    random_split,
)

from mmcache.integrations.torch import MmcacheDataset, ReadOnlyTensor, as_tensor  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("let_go")]

SCHEMA = Schema("items", index=("kind",), embedding="v", dim=64)
N = 300


def vectors(offset=0.0):
    return np.arange(N * 64, dtype="<f4").reshape(N, 64) + np.float32(offset)


def build(path, offset=0.0, missing=()):
    items = (
        {"id": f"k{i}", "kind": i % 3, "tags": [i], "v": None if i in missing else vector}
        | ({"extra": i / 2} if i % 2 else {})
        for i, vector in enumerate(vectors(offset))
    )
    return mmcache.build(path, items, SCHEMA)


@pytest.fixture
def snapshot(path):
    build(path)
    with Snapshot.open(path) as snapshot:
        yield snapshot


def arrived(dataset):
    """As in a worker that was not forked."""
    return pickle.loads(pickle.dumps(dataset))


def items_of(dataset):
    return dataset.__getitems__(range(len(dataset)))


def loaded(loader):
    """All batches as one: id -> embedding."""
    return {key: vector.numpy() for ids, batch in loader for key, vector in zip(ids, batch, strict=True)}


def assert_all(found, offset=0.0):
    assert sorted(found) == sorted(f"k{i}" for i in range(N))
    assert np.array_equal(np.stack([found[f"k{i}"] for i in range(N)]), vectors(offset))


def failure(loader):
    try:
        next(iter(loader))
    except GenerationGoneError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the workers, and torch lets go of them then
        return error


# --- what an item is --------------------------------------------------------------------------------------------------


def test_an_item_is_the_embedding_or_the_columns_or_what_the_transform_makes(snapshot):
    dataset = MmcacheDataset(snapshot)
    assert len(dataset) == N
    assert dataset[7].dtype == torch.float32
    assert dataset[7].tolist() == vectors()[7].tolist()
    dataset = MmcacheDataset(snapshot, columns=("kind", "v", "extra"))
    kind, vector, extra = dataset[7]
    assert (kind, vector.tolist(), extra) == (1, vectors()[7].tolist(), 3.5)
    assert dataset[8][2] is None
    assert MmcacheDataset(snapshot, columns="kind")[7] == 1
    assert MmcacheDataset(snapshot, columns=["kind"])[7] == (1,)
    dataset = MmcacheDataset(snapshot, transform=lambda record, vector: (record.id, vector[0].item()))
    assert dataset[7] == ("k7", vectors()[7][0])
    assert [first for first, _ in dataset.__getitems__([9, 3, 3, 5])] == ["k9", "k3", "k3", "k5"]


def test_items_are_asked_for_as_of_a_list(snapshot):
    chosen = snapshot.where(kind=1)
    dataset = MmcacheDataset(chosen, columns="id")
    assert len(dataset) == len(chosen) == N // 3
    assert dataset.rows.tolist() == chosen.rows.tolist()
    assert not dataset.rows.flags.writeable
    assert items_of(dataset) == chosen.ids
    assert all(dataset[i] == key for i, key in enumerate(chosen.ids))
    assert dataset[-1] == dataset[torch.tensor(N // 3 - 1)] == dataset[np.int32(N // 3 - 1)] == chosen.ids[-1]
    assert dataset.__getitems__([]) == []
    for beyond in (N // 3, -N // 3 - 1):
        with pytest.raises(IndexError, match="out of bounds"):
            dataset[beyond]
    with pytest.raises(TypeError, match="integer"):
        dataset[1.0]  # type: ignore[index]
    assert repr(dataset) == f"<MmcacheDataset {snapshot.path!r}, generation 1, 100 of 'items'>"


def test_what_it_may_be_made_of(path, tmp_path):
    build(path)
    with mmcache.open(path) as cache, Snapshot.open(path) as snapshot:
        chosen = cache.where(kind=[0, 1, 2])
        right: list[Any] = [cache, cache.snapshot, snapshot.default, chosen, arrived(chosen)]
        for of in right:
            assert_all(dict(items_of(MmcacheDataset(of, columns=("id", "v")))))
        wrong: list[Any] = [cache.collection("items"), [1, 2], "items.mmc"]
        for of in wrong:
            with pytest.raises(TypeError, match=f"not of {type(of).__name__}"):
                MmcacheDataset(of)
    with pytest.raises(ClosedError):
        MmcacheDataset(snapshot)[0]
    source = mmcache.IterableSource([{"id": "a", "kind": 0, "v": [1.0] * 64}], SCHEMA)
    with (
        mmcache.open(tmp_path / "none.mmc", source, build=False) as cache,
        pytest.raises(UnusableFileError, match="no file to pin"),
    ):
        MmcacheDataset(cache)


def test_records_that_the_source_gave_are_refused(path):
    build(path)
    given = SourceRecord(("id", "kind"), ["k4", 1], None)
    with Snapshot.open(path) as snapshot:
        mixed = Overlay(snapshot.default, ["k4"], [given]).find({"kind": (1,)})
        with pytest.raises(SourceError, match=r"1 of 100 records .*only a file has rows: .*snapshot=True"):
            MmcacheDataset(mixed)
        assert len(MmcacheDataset(mixed[2:])) == 98
        assert len(MmcacheDataset(arrived(mixed[2:]))) == 98
    for found in ([], [given]):
        with pytest.raises(SourceError, match="only a file has rows"):
            MmcacheDataset(Selection.from_source(found, SCHEMA))


def test_what_is_wrong_is_told_when_it_is_made(snapshot):
    with pytest.raises(ValueError, match="no column 'nope'; there are: id, kind, tags, extra, v"):
        MmcacheDataset(snapshot, columns=("v", "nope"))
    with pytest.raises(ValueError, match="at least one column"):
        MmcacheDataset(snapshot, columns=())
    with pytest.raises(TypeError, match="not both"):
        MmcacheDataset(snapshot, columns="v", transform=print)


def test_records_without_an_embedding_are_an_error_or_left_out(path):
    build(path, missing=(0, 7, 298))
    with Snapshot.open(path) as snapshot:
        for options in ({}, {"columns": ("kind", "v")}, {"transform": print}):
            with pytest.raises(
                ValueError, match=r"3 of 300 records have no embedding, such as 'k0': .*drop_missing=True"
            ):
                MmcacheDataset(snapshot, **options)
        dataset = MmcacheDataset(snapshot, columns=("id", "v"), drop_missing=True)
        assert [key for key, _ in items_of(dataset)] == [f"k{i}" for i in range(N) if i not in (0, 7, 298)]
        assert dataset[6][1].tolist() == vectors()[8].tolist()
        assert len(MmcacheDataset(snapshot.where(kind=2))) == 100  # none of these
        assert len(MmcacheDataset(snapshot, columns="kind")) == N
        assert len(MmcacheDataset(snapshot, columns="kind", drop_missing=True)) == N - 3


def test_a_collection_without_embeddings_has_fields_only(path):
    mmcache.build(path, ({"id": f"k{i}", "text": f"t{i}"} for i in range(50)), Schema("texts"))
    with Snapshot.open(path) as snapshot:
        with pytest.raises(ValueError, match="collection 'texts' has no embeddings: give columns= or transform="):
            MmcacheDataset(snapshot)
        (ids, texts), *_ = DataLoader(MmcacheDataset(snapshot, columns=("id", "text")), batch_size=50)
        assert list(zip(ids, texts, strict=True)) == [(f"k{i}", f"t{i}") for i in range(50)]
        dataset = MmcacheDataset(snapshot, transform=lambda record, vector: (record["text"], vector))
        assert dataset[3] == ("t3", None)


def test_an_item_is_memory_of_its_own(snapshot):
    """Rows that follow each other are a view of the file where the core gives them."""
    dataset = MmcacheDataset(snapshot)
    for items in ([3, 4, 5], [5, 3, 3], [3]):
        for item in dataset.__getitems__(items):
            item.zero_()
        assert dataset[3].untyped_storage().nbytes() == 4 * 64
    assert dataset[3].tolist() == vectors()[3].tolist()


# --- in a DataLoader --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_every_record_once_with_its_own_embedding(snapshot, workers):
    dataset = MmcacheDataset(snapshot, columns=("id", "v"))
    loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    for _ in range(2):
        assert_all(loaded(loader))
    sampler = BatchSampler(RandomSampler(dataset), 32, drop_last=False)
    assert_all(loaded(DataLoader(dataset, batch_sampler=sampler, num_workers=workers)))


def test_columns_collate_as_torch_has_it(snapshot):
    dataset = MmcacheDataset(snapshot.where(kind=1), columns=("v", "kind", "id", "tags"))
    vector, kinds, ids, tags = next(iter(DataLoader(dataset, batch_size=8)))
    assert vector.shape == (8, 64)
    assert kinds.tolist() == [1] * 8
    assert list(ids) == [f"k{i}" for i in range(1, 25, 3)]
    assert tags[0].tolist() == list(range(1, 25, 3))


def test_subsets_and_repeated_rows(snapshot):
    dataset = MmcacheDataset(snapshot, columns=("id", "v"))
    parts = random_split(dataset, [0.5, 0.5], torch.Generator().manual_seed(1))
    assert_all(loaded(DataLoader(parts[0], batch_size=32)) | loaded(DataLoader(parts[1], batch_size=32)))
    assert sorted(loaded(DataLoader(Subset(dataset, [9, 2, 5]), batch_size=2))) == ["k2", "k5", "k9"]
    sampler = WeightedRandomSampler([1.0, 0.0, 2.0] + [0.0] * (N - 3), 200, replacement=True)
    ((ids, batch),) = DataLoader(dataset, batch_size=200, sampler=sampler)
    assert set(ids) == {"k0", "k2"}
    assert all(
        torch.equal(vector, torch.from_numpy(vectors()[int(key[1:])])) for key, vector in zip(ids, batch, strict=True)
    )


def test_a_batch_is_one_gather(snapshot, monkeypatch):
    asked = []

    def gather(self, rows, gather=FileCollection.embeddings_at):
        asked.append(len(rows))
        return gather(self, rows)

    monkeypatch.setattr(FileCollection, "embeddings_at", gather)
    list(DataLoader(MmcacheDataset(snapshot), batch_size=100))
    assert asked == [100] * 3


def test_spawned_workers_map_the_file_themselves_and_stay_with_it(path, snapshot):
    dataset = MmcacheDataset(snapshot, columns=("id", "v"))
    loader = DataLoader(
        dataset, batch_size=32, shuffle=True, num_workers=1, multiprocessing_context="spawn", persistent_workers=True
    )
    assert_all(loaded(loader))
    for offset in (1000.0, 2000.0):
        build(path, offset)  # twice: what the worker has mapped is not even the backup any more
    assert_all(loaded(loader))


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_every_kind_of_worker(path, snapshot, method):
    dataset = MmcacheDataset(snapshot.where(kind=[0, 1, 2]), columns=("id", "v"))
    assert_all(loaded(DataLoader(dataset, batch_size=32, num_workers=2, multiprocessing_context=method)))
    for offset in (1000.0, 2000.0):
        build(path, offset)
    loader = DataLoader(arrived(dataset), batch_size=32, num_workers=2, multiprocessing_context=method)
    assert "found generation 3" in str(failure(loader))


# --- one generation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_newer_file_in_the_middle_of_an_epoch_changes_nothing(path, workers):
    build(path)
    with mmcache.open(path) as cache:
        dataset = MmcacheDataset(cache, columns=("id", "v"))
        batches = iter(DataLoader(dataset, batch_size=8, num_workers=workers))
        first = loaded([next(batches)])
        for offset in (1000.0, 2000.0):
            build(path, offset)
        assert cache.refresh() or cache.generation == 3
        assert_all(first | loaded(batches))
        assert_all(loaded(DataLoader(MmcacheDataset(cache, columns=("id", "v")), batch_size=8)), offset=2000.0)


def test_a_generation_that_is_gone_is_told_by_the_worker(path, snapshot):
    dataset = arrived(MmcacheDataset(snapshot, columns=("id", "v")))
    build(path, 1000.0)
    assert_all(loaded(DataLoader(arrived(dataset), batch_size=64, num_workers=1)))  # from the backup
    build(path, 2000.0)
    error = failure(DataLoader(dataset, batch_size=64, num_workers=1))
    assert "expected generation 1, found generation 3, as backup generation 2" in str(error)
    assert len(dataset) == N


def test_it_travels_as_a_path_and_rows(snapshot):
    whole, part = MmcacheDataset(snapshot), MmcacheDataset(snapshot.where(kind=1))
    for dataset in (whole, part):
        assert len(pickle.dumps(dataset)) - len(snapshot.path) < 600 + 4 * len(dataset)
        assert arrived(arrived(dataset))[5].tolist() == dataset[5].tolist()


def test_the_file_is_unmapped_with_the_last_dataset(path):
    build(path)
    snapshot = Snapshot.open(path)
    dataset = arrived(MmcacheDataset(snapshot))
    list(DataLoader(dataset, batch_size=64, num_workers=1))
    snapshot.close()
    del snapshot
    gc.collect()
    assert not mapped_files(str(path))
    item = dataset[3]
    assert len(mapped_files(str(path))) <= 1  # 1, where maps are told
    del dataset
    inside.forget_arrived()
    gc.collect()
    assert not mapped_files(str(path))
    assert item.tolist() == vectors()[3].tolist()


def test_files_that_are_read_in_turns_are_opened_once(tmp_path, monkeypatch):
    build(tmp_path / "a.mmc")
    build(tmp_path / "b.mmc", 1000.0)
    with Snapshot.open(tmp_path / "a.mmc") as a, Snapshot.open(tmp_path / "b.mmc") as b:
        first, second = arrived(MmcacheDataset(a)), arrived(MmcacheDataset(b))
    opened = []

    def open_(path, *, verify, real=Snapshot.open):
        opened.append(path)
        return real(path, verify=verify)

    monkeypatch.setattr(Snapshot, "open", open_)
    for i in range(5):
        assert second[i][0] - first[i][0] == 1000.0
    assert opened == [str(tmp_path / "b.mmc"), str(tmp_path / "a.mmc")]


# --- without a copy ---------------------------------------------------------------------------------------------------


def test_a_tensor_is_the_memory_of_the_file_and_stays_valid(path):
    build(path)
    snapshot = Snapshot.open(path)
    expected = vectors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor(snapshot.embeddings)
    assert tensor.data_ptr() == snapshot.embeddings.ctypes.data
    assert tensor[7].data_ptr() == snapshot.embeddings[7].ctypes.data
    assert as_tensor(snapshot.where(kind=1).embeddings).tolist() == expected[1::3].tolist()
    assert as_tensor(snapshot.where(kind=1).rows).tolist() == list(range(1, N, 3))
    snapshot.close()
    part = tensor[3:5].T
    del snapshot, tensor
    build(path, 1000.0)
    gc.collect()
    assert part.T.tolist() == expected[3:5].tolist()


def test_what_is_computed_from_it_is_an_ordinary_tensor(snapshot):
    tensor, expected = as_tensor(snapshot.embeddings), torch.from_numpy(vectors())
    query = torch.linspace(-1, 1, 64)
    assert torch.equal(tensor @ query, expected @ query)
    assert torch.equal(torch.topk(tensor @ query, 5).indices, torch.topk(expected @ query, 5).indices)
    assert torch.equal(torch.nn.functional.normalize(tensor), torch.nn.functional.normalize(expected))
    assert torch.equal(torch.zeros(N, 64).add_(tensor), expected)
    assert torch.equal(torch.stack(list(tensor)), expected)
    made: Any
    for made in (
        tensor.clone(),
        tensor + 0,
        tensor[[1, 2]],
        tensor[tensor > 9],
        tensor.double(),
        tensor.sum(0),
        copy.copy(tensor),
    ):
        assert type(made) is torch.Tensor
        assert made.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
        made.zero_()
    assert torch.equal(tensor, expected)
    for view in (
        tensor[3],
        tensor[3:9].T,
        tensor.view(-1),
        tensor.unbind()[3],
        tensor.detach(),
        tensor.float(),
        tensor.data,
    ):
        assert type(view) is ReadOnlyTensor
    assert np.array_equal(np.asarray(tensor), vectors())
    assert np.array_equal(np.array(tensor[1:3], np.float64), vectors()[1:3])
    assert tensor.numpy().ctypes.data == snapshot.embeddings.ctypes.data
    assert not tensor.numpy().flags.writeable
    assert tensor[0, :2].tolist() == [0.0, 1.0]
    assert repr(tensor[0, :2]) == "ReadOnlyTensor([0., 1.])"
    with pytest.raises(BufferError, match="clone"):
        torch.from_dlpack(tensor)


def test_a_model_takes_it_as_frozen_weights_and_saves_numbers(snapshot):
    embedding = torch.nn.Embedding.from_pretrained(as_tensor(snapshot.embeddings))
    assert embedding.weight.data_ptr() == snapshot.embeddings.ctypes.data
    assert embedding(torch.tensor([5, 3])).tolist() == vectors()[[5, 3]].tolist()
    assert copy.deepcopy(embedding).weight.data_ptr() == snapshot.embeddings.ctypes.data
    file = io.BytesIO()
    torch.save(embedding.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)["weight"]
    assert type(saved) is torch.Tensor
    assert saved.tolist() == vectors().tolist()


def test_what_is_sent_of_a_view_is_what_it_shows(snapshot):
    """Where torch itself would send the whole block."""
    tensor = as_tensor(snapshot.embeddings)
    assert len(pickle.dumps(tensor[3])) < 4 * 64 + 1000
    assert len(pickle.dumps(torch.from_numpy(vectors())[3])) > 4 * 64 * N
    rows: Any = list(tensor[:4])
    (batch,) = DataLoader(rows, batch_size=4, num_workers=1, collate_fn=list)
    assert [type(one) for one in batch] == [torch.Tensor] * 4
    assert [one.untyped_storage().nbytes() for one in batch] == [4 * 64] * 4
    assert torch.stack(batch).tolist() == vectors()[:4].tolist()
    (batch,) = DataLoader(rows, batch_size=4, num_workers=1)
    assert batch.tolist() == vectors()[:4].tolist()


WRITES = """
x.add_(1)
x += 1
x[0] = 0
x[0, 0] = 1
x[3].mul_(2)
x[2:5].zero_()
x.view(-1)[3] = 1
x.T.add_(1)
x.data.add_(1)
x.detach().add_(1)
x.contiguous().add_(1)
x.to(torch.float32).add_(1)
x.view(torch.int32).add_(1)
x.unbind()[0].add_(1)
next(iter(x)).add_(1)
x.expand(2, N, 64)[0, 0].add_(1)
x.as_subclass(torch.Tensor).add_(1)
torch.as_tensor(x).add_(1)
torch.asarray(x, copy=False).add_(1)
torch.add(x, 1, out=x)
torch.add(x, 1, out=x[:])
torch.sort(x, out=(x, torch.zeros(N, 64, dtype=torch.int64)))
torch._foreach_add_([x], 1)
torch.nn.init.normal_(x)
torch.nn.functional.relu(x, inplace=True)
torch.nn.Embedding.from_pretrained(x, max_norm=0.1)(torch.tensor([1]))
torch.empty(0).set_(x)
torch.vmap(lambda row: row[1:])(x).add_(1)
x.scatter_(0, torch.zeros(1, 64, dtype=torch.int64), torch.ones(1, 64))
x.index_add_(0, torch.tensor([0]), torch.ones(1, 64))
x.masked_fill_(x > 3, 0)
x.copy_(torch.zeros(N, 64))
x.apply_(abs)
x.resize_(3, 3)
x.numpy()[0] = 1
np.asarray(x)[0] = 1
torch.from_dlpack(x).add_(1)
copy.deepcopy(x).add_(1)
with torch.inference_mode(): x[1:].add_(1)
x.grad = torch.ones(N, 64); torch.optim.SGD([x], lr=1.0).step()
e = torch.nn.Embedding.from_pretrained(x, freeze=False); e.weight.grad = x.clone(); torch.optim.AdamW([e.weight]).step()
"""


def try_writes(path, log):
    """In a process of its own. Ends by the one write that is not guarded."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Snapshot.open(path) as snapshot, open(log, "w", buffering=1) as told:
        before = snapshot.embeddings.copy()
        for write in WRITES.strip().splitlines():
            told.write(f"{write} -> ")
            names = {"x": as_tensor(snapshot.embeddings), "torch": torch, "np": np, "copy": copy, "N": N}
            try:
                exec(write, names)
            except (RuntimeError, ValueError, BufferError) as error:
                told.write(f"{type(error).__name__} {error}\n")
        assert np.array_equal(snapshot.embeddings, before)
        told.write("unguarded\n")
        torch.from_dlpack(snapshot.embeddings)[0, 0] = 1.0


def test_every_write_raises_where_it_would_be_the_end_of_the_process(snapshot, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=try_writes, args=(snapshot.path, tmp_path / "log"))
    process.start()
    process.join(90)
    process.kill()
    process.join()
    told = (tmp_path / "log").read_text().splitlines()
    assert [line.partition(" -> ")[0] for line in told] == [*WRITES.strip().splitlines(), "unguarded"]
    for line in told[:-1]:
        assert re.search(r" -> (RuntimeError .* mapped read-only .*clone|ValueError .*read-only|BufferError )", line), (
            line
        )
    assert process.exitcode in (-signal.SIGSEGV, -signal.SIGBUS)  # it is not the map that is harmless


# --- memory -----------------------------------------------------------------------------------------------------------

MEMORY = """
import gc, json, multiprocessing, sys, warnings
import torch
from torch.utils.data import DataLoader, Dataset
from mmcache import Snapshot
from mmcache.integrations.torch import MmcacheDataset

def private(pid):
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024

class Listed(Dataset):
    def __init__(self, records):
        self.records = records
    def __len__(self):
        return len(self.records)
    def __getitem__(self, i):
        record = self.records[i]
        return torch.tensor(record["v"]), record["kind"], record["text"]

def grown(dataset, epochs):
    # MB of memory that is each worker's own, the largest of four, after each epoch.
    gc.collect()
    gc.freeze()  # or a full collection in a worker, whenever it comes, dirties what all of torch has on the heap
    loader = DataLoader(dataset, batch_size=128, shuffle=True, num_workers=4, persistent_workers=True)
    found = []
    for _ in range(epochs):
        for _ in loader:
            pass
        found.append(round(max(private(worker.pid) for worker in multiprocessing.active_children()), 1))
    return found

epochs = int(sys.argv[2])
warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than this machine has cores
with Snapshot.open(sys.argv[1]) as snapshot:
    told = {"nothing": grown(range(len(snapshot)), 1)}
    told["mmcache"] = grown(MmcacheDataset(snapshot, columns=("v", "kind", "text")), epochs)
    records = [dict(record) | {"v": record.embedding.tolist()} for record in snapshot.values()]
    told["list"] = grown(Listed(records), epochs)
    print(json.dumps(told))
"""


def run(code, *arguments, cwd=None, seconds=60):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=seconds,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def measure(path, records, epochs, seconds):
    items = ({"id": f"k{i}", "kind": i % 3, "text": f"text {i}", "v": [float(i)] * 16} for i in range(records))
    mmcache.build(path, items, Schema("items", embedding="v", dim=16))
    done = run(MEMORY, path, epochs, seconds=seconds)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(f"MB of a worker's own after each epoch over {records:,} records: {told}")
    (bare,) = told["nothing"]
    assert max(told["mmcache"]) - bare < 5
    assert told["mmcache"][-1] - told["mmcache"][0] < 2
    assert told["list"][-1] - bare > records / 2000  # of about 0.8 KB each in the parent


of_linux = pytest.mark.skipif(
    not os.path.exists("/proc/self/smaps_rollup"), reason="what is a process's own is told by Linux"
)


@of_linux
def test_memory_of_workers_does_not_grow_as_that_of_a_list_does(path):
    measure(path, 16_000, 3, seconds=60)


@pytest.mark.nightly
@of_linux
def test_memory_of_workers_over_many_epochs(path):
    measure(path, 100_000, 8, seconds=600)


# --- docs/workers.md --------------------------------------------------------------------------------------------------


def test_the_recipe_of_the_readme(tmp_path):
    bank(tmp_path)
    (tmp_path / "train.py").write_text(recipe("torch"))
    done = run("import runpy; runpy.run_path('train.py', run_name='__main__')", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Snapshot.open(tmp_path / "patterns.mmc") as snapshot:
        kinds = collections.Counter(record["type"] for record in snapshot.where(domain="api"))
    assert collections.Counter(re.findall(r"'([^']+)'", done.stdout)) == kinds
    assert "torch.Size([16, 768])" in done.stdout
