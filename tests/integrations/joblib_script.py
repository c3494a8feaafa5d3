"""A use of joblib, as a script: `python joblib_script.py BACKEND` where there is a `patterns.db`.

Functions of a script go to loky's workers by value, with what they refer to; those of a module would go by name.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

import mmcache
from mmcache import Cache, EmbeddingRef, GenerationGoneError, Schema, Selection, SQLiteSource
from mmcache.format.keys import Key

PATTERNS = Schema("patterns", index=("domain",), json=("metadata",), embedding="embedding", dim=768)

SMALLEST = 64
"""Bytes from which on joblib puts an array into a temporary file. Unasked it does so from 1 MB on."""

Look = tuple[list[Key], list[str], float]


def content(cache: Cache, key: Key) -> str:
    return cache[key]["content"]


def look_at(found: Selection) -> Look:
    return found.ids, [pattern["content"] for pattern in found], float(found.embeddings.sum())


def send_back(cache: Cache, domain: str) -> tuple[Selection, EmbeddingRef]:
    found = cache.where(domain=domain)
    assert isinstance(found, Selection)
    return found, cache.embedding_ref(found.ids[0])


def first_of(reference: EmbeddingRef) -> float:
    assert reference.embedding is not None
    return float(reference.embedding[0])


def kind_of(array: Any) -> tuple[str, bool, float]:
    return type(array).__name__, array.flags.writeable, float(array.sum())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raised(function: Callable[..., Any], *args: Any) -> Exception | None:
    try:
        function(*args)
    except Exception as error:  # noqa: BLE001 (it is the caller's to look at)
        return error
    return None


def write_all(number: int) -> None:
    db = sqlite3.connect("patterns.db", isolation_level=None)
    db.execute("UPDATE patterns SET content = ?", [str(number)])
    db.close()


def main(backend: str) -> None:
    write_all(0)
    cache = mmcache.open("patterns.mmc", SQLiteSource("patterns.db", PATTERNS))
    keys = list(cache)
    api, ui = cache.where(domain="api"), cache.where(domain="ui")
    assert isinstance(api, Selection)
    assert isinstance(ui, Selection)

    def coverage(key: Key) -> float:
        return cache[key]["metadata"]["coverage"]

    with Parallel(n_jobs=2, backend=backend, max_nbytes=SMALLEST) as run:
        # a cache: as an argument, of a method, and in what a function refers to
        assert run(delayed(content)(cache, key) for key in keys[:20]) == ["0"] * 20
        assert run(delayed(cache.get)(key) for key in ("pattern-3", "nope")) == [cache["pattern-3"], None]
        if backend == "loky":  # the other takes functions of modules and scripts only
            assert run(delayed(coverage)(key) for key in keys[:20]) == [coverage(key) for key in keys[:20]]

        # rows, which joblib maps from a file of its own, there and back again
        assert run(delayed(look_at)(found) for found in (api, ui)) == [look_at(api), look_at(ui)]
        sent_back = run(delayed(send_back)(cache, domain) for domain in ("api", "ui"))
        references = [cache.embedding_ref(key) for key in keys[:3]]
        assert run(delayed(first_of)(reference) for reference in references) == cache.embeddings[:3, 0].tolist()

        # an array: right, and a copy
        assert run([delayed(kind_of)(cache.embeddings)]) == [("memmap", False, float(cache.embeddings.sum()))]

        # newer generations, between sending and use
        write_all(1)
        cache.rebuild()
        middle = cache.where(domain="api")
        assert run([delayed(look_at)(api)]) == [look_at(api)]
        assert look_at(api)[1] == ["0"] * len(api)
        assert run([delayed(content)(cache, keys[0])]) == ["1"]
        for number in (2, 3):
            write_all(number)
            cache.rebuild()
        error = raised(run, [delayed(look_at)(middle)])
        assert isinstance(error, GenerationGoneError), error
        assert error.path == cache.path
        assert "expected generation 2, found generation 4, as backup generation 3" in str(error)
        assert run(delayed(content)(cache, key) for key in keys[:20]) == ["3"] * 20

    # the temporary files are gone, once joblib's tracker has removed them, and the newest generation is another
    end = time.monotonic() + 60
    while os.listdir(os.environ["JOBLIB_TEMP_FOLDER"]):
        assert time.monotonic() < end, "temporary files stay"
        time.sleep(0.01)
    assert [len(found) for found, _ in sent_back] == [len(api), len(ui)]
    assert np.array_equal(sent_back[0][0].rows, api.rows)

    if backend == "loky":
        error = raised(Parallel(n_jobs=2), (delayed(die)() for _ in range(2)))
        assert isinstance(error, TerminatedWorkerError), error
        assert Parallel(n_jobs=2)(delayed(content)(cache, key) for key in keys[:20]) == ["3"] * 20
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
