"""Redis on a unix socket: records as msgpack, embeddings as bytes, ids of a domain, type or framework as sets.

One client connection a worker (`single_connection_client`, which spares a check-out of the pool at every command),
MGET for batches, SINTER for facets. A scan asks for 1,000 records at a time: several MGETs in a pipeline are no faster,
as the client sends all before it reads any. Where hiredis is installed the client parses with it, as its documentation
recommends; `how` says which. `serving` runs the server: no TCP port, no saving.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.utils import HIREDIS_AVAILABLE

from ..data import FACETS, read_bank, record_of
from .base import AbsentError, Facets, Peer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.data import DataSet

CHUNK = 1_000
PATIENCE = 120
"""Seconds that a server has to load its records, or to stop."""


class Redis(Peer):
    name = "Redis"
    how = f"unix socket, MGET, {'hiredis' if HIREDIS_AVAILABLE else 'parser in Python'}"
    operations = frozenset(
        (
            *("get", "miss", "get_many", "embedding", "gather", "domain", "facets"),
            *("scan_ids", "scan_records", "scan_embeddings"),
        )
    )

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        os.mkdir(path)
        with cls.serving(path) as address, redis.Redis(unix_socket_path=address) as client:
            pipeline = client.pipeline(transaction=False)
            for row in read_bank(data.bank):
                record = record_of(row)
                id_ = record["id"]
                pipeline.mset({id_: msgpack.packb(record), f"embedding:{id_}": row[-1]})
                pipeline.sadd("ids", id_)
                for field in FACETS:
                    pipeline.sadd(f"{field}:{record[field]}", id_)
                if len(pipeline) >= 5 * CHUNK:
                    pipeline.execute()
            pipeline.execute()
            client.save()

    @classmethod
    @contextlib.contextmanager
    def serving(cls, path: str) -> Iterator[str]:
        """The socket is in a directory of its own: the path of a socket has 107 bytes at most."""
        binary = shutil.which("redis-server")
        if binary is None:
            raise AbsentError("redis-server is not installed")
        with tempfile.TemporaryDirectory() as home:
            address = os.path.join(home, "redis.sock")
            command = [binary, "--port", "0", "--unixsocket", address, "--unixsocketperm", "700", "--dir", path]
            command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                _wait(server, address)
                yield address
            finally:
                server.terminate()
                try:
                    server.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()

    def __init__(self, address: str) -> None:
        self.client: Any = redis.Redis(unix_socket_path=address, single_connection_client=True)

    def warm(self) -> None:
        """Memory of the server is warm once loaded; this makes its first replies."""
        assert self.scan_records()

    def close(self) -> None:
        self.client.close()

    def get(self, ids: Sequence[str]) -> Any:
        value, get, unpackb = None, self.client.get, msgpack.unpackb
        for id_ in ids:
            value = unpackb(get(id_))["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, get = None, self.client.get
        for id_ in ids:
            found = get(id_)
        return found

    def get_many(self, batches: Sequence[list[str]]) -> list[str]:
        records: list[Any] = []
        mget, unpackb = self.client.mget, msgpack.unpackb
        for ids in batches:
            records = [unpackb(value) for value in mget(ids)]
        return [record["domain"] for record in records]

    def embedding(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vector, get, frombuffer = np.empty(0, "<f4"), self.client.get, np.frombuffer
        for id_ in ids:
            vector = frombuffer(get(f"embedding:{id_}"), "<f4")
        return vector

    def gather(self, batches: Sequence[list[str]]) -> NDArray[np.float32]:
        matrix, mget = np.empty((0, 0), "<f4"), self.client.mget
        for ids in batches:
            vectors = mget([f"embedding:{id_}" for id_ in ids])
            matrix = np.frombuffer(b"".join(vectors), "<f4").reshape(len(ids), -1)
        return matrix

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = [id_.decode() for id_ in self.client.smembers(f"domain:{domain}")]
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        sinter = self.client.sinter
        for domain, type_, framework in facets:
            ids = sinter(f"domain:{domain}", f"type:{type_}", f"framework:{framework}")
            found = [id_.decode() for id_ in ids]
        return found

    def scan_ids(self) -> list[str]:
        return [id_.decode() for id_ in self.client.smembers("ids")]

    def scan_records(self) -> int:
        n, unpackb = 0, msgpack.unpackb
        for values in self._chunks(""):
            for value in values:
                n += bool(unpackb(value)["domain"])
        return n

    def scan_embeddings(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate(
            [
                np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1) @ query
                for vectors in self._chunks("embedding:")
            ]
        )

    def _chunks(self, prefix: str) -> Iterator[list[bytes]]:
        ids = self.scan_ids()
        for start in range(0, len(ids), CHUNK):
            yield self.client.mget([prefix + id_ for id_ in ids[start : start + CHUNK]])


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    """Until the server has loaded everything. Raises AbsentError."""
    deadline = time.monotonic() + PATIENCE
    with redis.Redis(unix_socket_path=address, retry=Retry(NoBackoff(), 0)) as client:
        while server.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
            except redis.ConnectionError:  # no socket yet, or still loading
                time.sleep(0.01)
            else:
                return
    raise AbsentError(f"redis-server did not start (exit code {server.poll()})")
