"""multiprocessing: dicts in a manager's process, which every worker reaches through a `DictProxy`.

As in "Using a remote manager" of the documentation: a server of registered dicts, and workers that connect with
address and key. A proxy offers the methods of a dict and nothing for many keys: a batch is a loop and each key one
round trip; `values` is one for all. Values are msgpack bytes: a dict is pickled anew at every get, which takes a tenth
longer for one record and half as long again for all. The server decodes the file of `MsgpackBlob` when it starts.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from multiprocessing.managers import BaseManager, DictProxy
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from ..common import ROOT
from ..data import FACETS
from .base import AbsentError, Facets, Peer
from .msgpack_blob import MsgpackBlob

if TYPE_CHECKING:
    from numpy.typing import NDArray

PATIENCE = 60
NAMES = ("records", "embeddings", "lists")


class Remote(BaseManager):
    """A worker's side: dicts of these names that are elsewhere."""


for _name in NAMES:
    Remote.register(_name, proxytype=DictProxy)


class ManagerDict(Peer):
    name = "Manager dict"
    how = "DictProxy, msgpack values"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )
    store = MsgpackBlob
    slow = True

    @classmethod
    @contextlib.contextmanager
    def serving(cls, path: str) -> Iterator[str]:
        """The address is that of the socket and the key, with a colon between."""
        with tempfile.TemporaryDirectory() as home:
            socket, key = os.path.join(home, "manager.sock"), os.urandom(16).hex()
            command = [sys.executable, "-m", __name__, path, socket]
            with subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as server:
                try:
                    assert server.stdin is not None
                    assert server.stdout is not None
                    server.stdin.write(f"{key}\n")
                    server.stdin.flush()
                    if server.stdout.readline() != "ready\n":
                        raise AbsentError("the manager did not start")
                    yield f"{socket}:{key}"
                finally:
                    server.terminate()
                    try:
                        server.wait(PATIENCE)
                    except subprocess.TimeoutExpired:
                        server.kill()

    def __init__(self, address: str) -> None:
        socket, _, key = address.rpartition(":")
        manager: Any = Remote(address=socket, authkey=key.encode())
        manager.connect()
        self.records, self.embeddings, self.lists = manager.records(), manager.embeddings(), manager.lists()

    def warm(self) -> None:
        assert self.records.values()
        assert self.embeddings.values()

    def close(self) -> None:
        """The last proxy closes the connection as it goes."""
        del self.records, self.embeddings, self.lists

    def get(self, ids: Sequence[str]) -> Any:
        value, get, unpackb = None, self.records.get, msgpack.unpackb
        for id_ in ids:
            value = unpackb(get(id_))["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, get = None, self.records.get
        for id_ in ids:
            found = get(id_)
        return found

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        records: list[Any] = []
        get, unpackb = self.records.get, msgpack.unpackb
        for ids in batches:
            records = [unpackb(get(id_)) for id_ in ids]
        return [record["domain"] for record in records]

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, get, frombuffer = np.empty(0, "<f4"), self.embeddings.get, np.frombuffer
        for id_ in ids:
            vector = frombuffer(get(id_), "<f4")
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, get = np.empty((0, 0), "<f4"), self.embeddings.get
        for ids in batches:
            matrix = np.frombuffer(b"".join([get(id_) for id_ in ids]), "<f4").reshape(len(ids), -1)
        return matrix

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = self.lists.get(f"domain:{domain}")
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        get = self.lists.get
        for domain, type_, framework in facets:
            one, two, three = get(f"domain:{domain}"), get(f"type:{type_}"), get(f"framework:{framework}")
            found = list(set(one).intersection(two, three))
        return found

    def scan_ids(self) -> list[str]:
        return self.records.keys()  # type: ignore[no-any-return]

    def scan_records(self) -> int:
        n, unpackb = 0, msgpack.unpackb
        for value in self.records.values():
            n += bool(unpackb(value)["domain"])
        return n

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        matrix = np.frombuffer(b"".join(self.embeddings.values()), "<f4").reshape(-1, len(query))
        return matrix @ query


def _serve(path: str, socket: str) -> None:
    """For ever: the key comes in a line on stdin, and a line goes to stdout when workers can connect."""
    key = sys.stdin.readline().strip()
    blob = MsgpackBlob(path)
    embeddings = {id_: record.pop("embedding") for id_, record in blob.records.items()}
    records = {id_: msgpack.packb(record) for id_, record in blob.records.items()}
    lists = defaultdict(list)
    for id_, record in blob.records.items():
        for field in FACETS:
            lists[f"{field}:{record[field]}"].append(id_)
    blob.close()

    class Local(BaseManager):
        pass

    Local.register("records", callable=lambda: records, proxytype=DictProxy)
    Local.register("embeddings", callable=lambda: embeddings, proxytype=DictProxy)
    Local.register("lists", callable=lambda: lists, proxytype=DictProxy)
    server = Local(address=socket, authkey=key.encode()).get_server()
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
