"""Run by the tests in a process of its own: read hostile files and say which of them did what they must not.

    python -m tests.storage.hostile_child MEGABYTES < frames

A frame is a little-endian u32 length and a file. For each, one line of JSON: {"refused": bool, "seconds": ...,
"heap": bytes}, or {"wrong": reason}. The address space is limited to what the process has plus MEGABYTES.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import time
import traceback

from mmcache import MmcacheError, at_least, between, excluding, startswith
from tests.storage.helpers import damaged
from tests.support import inside

RANGES = [between(-1, 5), at_least("a"), startswith("k"), range(9), excluding(1)]
PROBES = ["", "a", "k0", "k1", "k7", "nobody", "\0", "x" * 65_536, "\ud800"]


def exercise(data: bytes, *, iterate: bool = True) -> bool:
    """Everything that a reader can do with a file. True if any of it was refused; other exceptions pass.

    It is all asked of the file verified as it is touched, and verified at open: of that one as a copy, since how the
    others are opened makes a difference to the opening alone.
    """
    refused = False

    def attempt(action) -> None:
        nonlocal refused
        try:
            action()
        except MmcacheError:
            refused = True
        except KeyError:
            pass

    for verify, access in (("lazy", "mmap"), ("full", "mmap"), ("lazy", "copy"), ("auto", "mmap")):
        try:
            snapshot = damaged(data, verify, access)
        except MmcacheError:
            refused = True
            continue
        with snapshot:
            attempt(snapshot.verify)
            if (verify, access) in (("full", "mmap"), ("auto", "mmap")):
                continue
            for collection in list(snapshot.collections.values())[:8]:
                for key in PROBES:
                    attempt(lambda c=collection, k=key: c[k].asdict())
                    attempt(lambda c=collection, k=key: c[k].embedding)
                    attempt(lambda c=collection, k=key: k in c)
                    attempt(lambda c=collection, k=key: c.row(k))
                    attempt(lambda c=collection, k=key: c.embedding(k))
                attempt(lambda c=collection: c.get_many(PROBES * 6))
                attempt(lambda c=collection: c.get_many(PROBES))
                attempt(lambda c=collection: c.get_embeddings(PROBES * 6))
                attempt(lambda c=collection: c.get_embeddings(PROBES[:1] * 30))
                for name in collection.schema.index[:8]:
                    attempt(lambda c=collection, n=name: c.terms(n))
                    for term in ("a", "b", "x", 1, None, "nobody"):
                        attempt(lambda c=collection, n=name, t=term: c.where({n: t}).ids)
                        attempt(lambda c=collection, n=name, t=term: [r.asdict() for r in c.where({n: t})][:0])
                        attempt(lambda c=collection, n=name, t=term: c.where({n: t}).embeddings)
                    for some in RANGES:
                        attempt(lambda c=collection, n=name, r=some: c.where({n: r}).ids)
                        attempt(lambda c=collection, n=name, r=some: c.where({n: r}).order_by(n).limit(3).ids)
                    attempt(lambda c=collection, n=name: c.where().order_by(n).limit(3).ids)
                    attempt(lambda c=collection, n=name: c.where().order_by(n, descending=True).ids)
                for part in ("embeddings", "norms", "has_embedding"):
                    attempt(lambda c=collection, p=part: getattr(c, p).tobytes())
                attempt(lambda c=collection: c.schema.to_dict())
                if collection.dim:
                    query = [1.0] * collection.dim
                    attempt(lambda c=collection, q=query: c.nearest(q, 3).ids)
                    with inside.searched_by(3):
                        for name in collection.schema.index[:2]:
                            attempt(lambda c=collection, q=query, n=name: c.nearest(q, 3, {n: ["a", 1]}).ids)
                        attempt(lambda c=collection, q=query: c.nearest(q, 3, metric="euclidean").ids)
                if iterate:
                    attempt(lambda c=collection: sum(1 for _ in c))
                    attempt(lambda c=collection: sum(len(r.asdict()) for r in c.values()))
                    attempt(lambda c=collection: sum(r.embedding is None for r in c.values()))
            if iterate:
                attempt(lambda s=snapshot: s.verify(deep=True))
    return refused


def main() -> None:
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
    limit = pages * resource.getpagesize() + int(sys.argv[1]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while head := sys.stdin.buffer.read(4):
        data = sys.stdin.buffer.read(*struct.unpack("<I", head))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.process_time()
        found: dict[str, object] = {}
        try:
            found["refused"] = exercise(data)
        except BaseException as error:  # noqa: BLE001 (to be reported, whatever it is)
            found["wrong"] = f"{type(error).__name__}: {error}"[:300] + traceback.format_exc()[-1500:]
        found["seconds"] = time.process_time() - begun
        found["heap"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
