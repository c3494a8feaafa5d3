"""Every peer of the benchmarks gives the answers of mmcache, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import random
import sqlite3

import numpy as np
import psutil
import pytest

from benchmarks import peers
from benchmarks.data import DataSet
from benchmarks.peers.base import AbsentError, Peer
from benchmarks.peers.mmcache_file import Mmcache

pytestmark = pytest.mark.integration  # the peers are of the benchmarks

SIZE, DIM, BATCH = 200, 16, 20

OPERATIONS = {name for name in vars(Peer) if not name.startswith("_") and callable(getattr(Peer, name))} - {
    "write",
    "serving",
    "warm",
    "close",
}

LEFT_OUT: list[str] = []
PEERS = peers.load(LEFT_OUT.append)

SERVED = [peer for peer in PEERS if "serving" in vars(peer)]

each_peer = pytest.mark.parametrize("peer", PEERS, ids=[peer.name for peer in PEERS])
each_served_peer = pytest.mark.parametrize("peer", SERVED, ids=[peer.name for peer in SERVED])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return DataSet(SIZE, DIM, str(tmp_path_factory.mktemp("peers")))


@pytest.fixture(scope="module")
def facts(data):
    """id, domain, type and framework of every record, in no order."""
    with contextlib.closing(sqlite3.connect(data.bank)) as db:
        found = db.execute("SELECT id, domain, type, framework FROM patterns").fetchall()
    return random.Random("facts").sample(found, SIZE)


@pytest.fixture(scope="module")
def reference(data):
    with contextlib.closing(Mmcache(data.store(Mmcache))) as reader:
        yield reader


@pytest.fixture(scope="module")
def store(data):
    def of(peer):
        try:
            return data.store(peer)
        except AbsentError as error:
            pytest.skip(f"{peer.name} left out: {error}")

    return of


@pytest.fixture
def opened(store):
    """A reader of a peer, its server running meanwhile."""
    with contextlib.ExitStack() as stack:

        def reader_of(peer):
            path = store(peer)
            address = stack.enter_context(peer.serving(path))
            return stack.enter_context(contextlib.closing(peer(address)))

        yield reader_of


def asked(operation, facts):
    """Arguments of one call each, so that every answer is seen."""
    ids = [fact[0] for fact in facts]
    batches = [ids[start : start + BATCH] for start in range(0, SIZE, BATCH)]
    return {
        "get": [([id_],) for id_ in ids],
        "miss": [([f"{id_}-absent"],) for id_ in ids[:BATCH]],
        "get_many": [([batch],) for batch in batches],
        "everything": [([batch],) for batch in batches],
        "embedding": [([id_],) for id_ in ids],
        "gather": [([batch],) for batch in batches],
        "domain": [([domain],) for domain in sorted({fact[1] for fact in facts})],
        "facets": [([names],) for names in sorted({fact[1:] for fact in facts})],
        "scan_ids": [()],
        "scan_records": [()],
        "scan_embeddings": [(np.linspace(-1, 1, DIM, dtype=np.float32),)],
    }[operation]


def assert_same(operation, found, expected):
    match operation:
        case "domain" | "facets" | "scan_ids":
            assert isinstance(found, list)
            assert sorted(found) == sorted(expected)
        case "embedding" | "gather":
            assert (found.dtype, found.shape) == (np.float32, expected.shape)
            assert np.array_equal(found, expected)
        case "scan_embeddings":
            assert (found.dtype, found.shape) == (np.float32, (SIZE,))
            assert np.allclose(np.sort(found), np.sort(expected), atol=1e-6)
        case _:
            assert found == expected


def test_a_library_that_is_not_installed_is_told():
    if LEFT_OUT:
        pytest.skip("; ".join(LEFT_OUT))
    assert PEERS[0] is Mmcache


@each_peer
def test_operations_are_those_that_a_peer_has(peer):
    assert peer.operations <= OPERATIONS
    for name in OPERATIONS:
        if name in peer.operations:
            assert getattr(peer, name) is not getattr(Peer, name), f"{name} is named and not there"
        else:
            assert name not in vars(peer), f"{name} is there and not named"


@each_peer
def test_answers_are_those_of_mmcache(peer, opened, reference, facts):
    reader = opened(peer)
    reader.warm()
    for operation in sorted(peer.operations):
        for arguments in asked(operation, facts):
            if operation == "gather":
                expected = np.stack([reference.embedding([id_]) for id_ in arguments[0][0]])
            else:
                expected = getattr(reference, operation)(*arguments)
            assert_same(operation, getattr(reader, operation)(*arguments), expected)


@each_peer
def test_of_several_only_the_last_is_the_answer(peer, opened, facts):
    reader = opened(peer)
    for operation in peer.operations & {"get", "get_many", "embedding", "gather", "domain", "facets"}:
        several = [arguments[0][0] for arguments in asked(operation, facts)[:3]]
        method = getattr(reader, operation)
        assert_same(operation, method(several), method(several[-1:]))


@each_peer
def test_two_readers_and_then_a_third(peer, store, facts):
    operation = min(peer.operations)
    question = asked(operation, facts)[0]
    with peer.serving(store(peer)) as address:
        with contextlib.closing(peer(address)) as one, contextlib.closing(peer(address)) as two:
            expected = copy.copy(getattr(one, operation)(*question))
            assert_same(operation, getattr(two, operation)(*question), expected)
        with contextlib.closing(peer(address)) as three:
            assert_same(operation, getattr(three, operation)(*question), expected)


@each_peer
def test_nothing_is_left_behind(peer, store, facts):
    path = store(peer)
    with peer.serving(path) as address, contextlib.closing(peer(address)):
        """What is made once a process, as imports and thread pools are, is there from now on."""
    before, files = held(path), sorted(os.listdir(os.path.dirname(path)))
    with peer.serving(path) as address:
        reader = peer(address)
        reader.warm()
        for operation in peer.operations:
            getattr(reader, operation)(*asked(operation, facts)[0])
        reader.close()
        del reader
    assert held(path) == before
    assert sorted(os.listdir(os.path.dirname(path))) == files
    assert address == path or not os.path.exists(address.partition(":")[0])


@each_served_peer
def test_a_server_stops_after_an_exception(peer, store):
    path = store(peer)
    before = psutil.Process().children(recursive=True)

    def fail():
        with peer.serving(path):
            assert psutil.Process().children(recursive=True) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert psutil.Process().children(recursive=True) == before


def held(path):
    """Children, descriptors, and maps of the store, of this process."""
    gc.collect()
    process = psutil.Process()
    maps = [one.path for one in process.memory_maps() if one.path.startswith(path)] if psutil.LINUX else []
    return process.children(recursive=True), process.num_fds(), maps
