"""Databases of libraries that keep things in SQLite for their callers: caches, queues, studies."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.programs.catalog import program


@program("diskcache", "diskcache")
def diskcache() -> None:
    """Keys and values of every type, tags, expiry; a cache in shards, an index and a deque."""
    from diskcache import Cache, Deque, FanoutCache, Index

    with Cache("cache", statistics=1, tag_index=True) as cache:
        keys = [*range(-5, 100), *(f"key {n}" for n in range(50)), b"\x00\xff", b"", "", 2.5, 7.0, ("a", 1), None]
        for n, key in enumerate(keys):
            value = [n, n / 3, "text", b"bytes", {"n": n}, None][n % 6]
            cache.set(key, value, expire=1e9 if n % 4 else None, tag=["a", "b", None][n % 3])
        cache.set("large", b"x" * 100_000)
    with FanoutCache("shards", shards=2) as shards:
        for n in range(60):
            shards[f"n{n}"] = n
    with Index("index", {f"k{n}": [n] for n in range(20)}).cache:
        pass
    Deque(range(30), "deque").cache.close()


@program("requests-cache", "requests-cache")
def requests_cache() -> None:
    """Answers of a server on this machine, and a redirect."""
    from requests_cache import CachedSession

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            moved = self.path == "/moved"
            self.send_response(302 if moved else 200)
            if moved:
                self.send_header("Location", "/1")
            self.send_header("Content-Length", "0" if moved else str(len(self.path)))
            self.end_headers()
            self.wfile.write(b"" if moved else self.path.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with CachedSession("http_cache.sqlite", expire_after=3600) as session:
            session.trust_env = False
            for page in [*range(25), "moved"]:
                session.get(f"http://127.0.0.1:{server.server_port}/{page}", params={"q": "ä"} if page == 3 else None)
        server.shutdown()


@program("optuna", "optuna")
def optuna() -> None:
    """A study that prunes, and one of two objectives, with attributes."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = "sqlite:///optuna.db"

    def objective(trial: Any) -> float:
        x = trial.suggest_float("x", -10, 10)
        kind = trial.suggest_categorical("kind", ["a", "b", None])
        depth = trial.suggest_int("depth", 1, 9)
        trial.set_user_attr("note", {"n": trial.number, "kind": kind})
        for step in range(4):
            trial.report(x * x + depth / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float("inf") if trial.number == 3 else x * x

    sampler = optuna.samplers.RandomSampler(seed=1)
    study = optuna.create_study(study_name="one", storage=storage, sampler=sampler)
    study.set_user_attr("by", "test")
    study.optimize(objective, n_trials=25, catch=(ValueError,))
    both = optuna.create_study(study_name="twö", storage=storage, sampler=sampler, directions=["minimize", "maximize"])
    both.optimize(lambda trial: (trial.suggest_float("a", 0, 1, log=False), 1.0), n_trials=10)


@program("huey", "huey")
def huey() -> None:
    """Tasks that wait, tasks with a time, and results."""
    from huey import SqliteHuey

    queue = SqliteHuey("worker", filename="huey.db", results=True)

    @queue.task(retries=2)
    def add(a: int, b: int) -> int:
        return a + b

    for n in range(15):
        add(n, n)
        add.schedule((n, 2), delay=3600 * n)
        queue.put(f"key {n}", n)
    for _ in range(6):
        queue.execute(queue.dequeue())
    queue.storage.close()


@program("persist-queue", "persist-queue")
def persist_queue() -> None:
    """A queue, one of unique items, one with acknowledgements and a dictionary."""
    import persistqueue

    queues: list[Any] = [
        persistqueue.FIFOSQLiteQueue("fifo", auto_commit=True),
        persistqueue.UniqueQ("unique", auto_commit=True),
        persistqueue.SQLiteAckQueue("acknowledged", auto_commit=True),
    ]
    for queue in queues:
        for n in range(20):
            queue.put({"n": n})
        queue.get()
        queue.close()
    settings = persistqueue.PDict("dictionary", "settings", multithreading=False)
    for n in range(10):
        settings[f"key {n}"] = n
    settings.close()


@program("apscheduler", "APScheduler", "SQLAlchemy")
def apscheduler() -> None:
    """Jobs with times as REAL numbers, one of them paused."""
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(url="sqlite:///jobs.db")}, timezone="UTC")
    scheduler.start(paused=True)
    for n in range(10):
        when = datetime.now(UTC) + timedelta(days=n + 1)
        scheduler.add_job(print, "date", run_date=when, args=[n], id=f"job {n}")
    scheduler.pause_job("job 3")
    scheduler.shutdown()


@program("celery", "celery", "SQLAlchemy")
def celery() -> None:
    """A broker and a store of results, of tasks and of groups."""
    from celery import Celery, group
    from celery.contrib.testing.worker import start_worker

    app = Celery("tasks", broker="sqla+sqlite:///broker.db", backend="db+sqlite:///results.db")
    app.conf.update(result_extended=True, broker_connection_retry_on_startup=True)

    @app.task(name="celery.ping")
    def ping() -> str:
        return "pong"

    @app.task
    def half(n: int) -> float:
        if n == 4:
            raise ValueError("four")
        return n / 2

    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        pending = [half.delay(n) for n in range(8)]
        together = group(half.s(n) for n in range(3)).apply_async()
        together.save()
        for result in [*pending, together]:
            result.get(timeout=60, propagate=False)
    for n in range(5):
        half.apply_async((n,), queue="later")


@program("llm", "llm")
def llm() -> None:
    """Prompts that were logged, by a model of our own, and collections of embeddings."""
    import llm
    import sqlite_utils
    from llm.migrations import migrate

    class Lengths(llm.EmbeddingModel):
        model_id = "lengths"

        def embed_batch(self, items: Any) -> Any:
            return ([float(len(item)), 1.0] for item in items)

    class Echo(llm.Model):
        model_id = "echo"

        def execute(self, prompt: Any, **_: Any) -> Any:
            yield prompt.prompt[::-1]

    logs = sqlite_utils.Database("logs.db")
    migrate(logs)
    conversation = llm.Conversation(model=Echo())
    for n in range(12):
        response = conversation.prompt(f"prompt {n}", system="be short")
        response.text()
        response.log_to_db(logs)
    logs.close()
    vectors = sqlite_utils.Database("embeddings.db")
    for name in ("notes", "bytes"):
        collection = llm.Collection(name, vectors, model=Lengths())
        collection.embed_multi([(f"n{n}", "x" * n) for n in range(20)], store=name == "notes")
        collection.embed("more", "text", metadata={"a": [1]}, store=True)
    vectors.close()


@program("pyproj", "pyproj")
def pyproj() -> None:
    """The registry of coordinate systems that comes with it: composite keys of text, views, and many rows."""
    from pyproj.datadir import get_data_dir

    shutil.copyfile(Path(get_data_dir()) / "proj.db", "proj.db")


@program("pyogrio", "pyogrio")
def pyogrio() -> None:
    """A GeoPackage of two layers, with spatial indexes that are virtual tables; and a table without a geometry."""
    import numpy as np
    from pyogrio.raw import write

    def point(x: float, y: float) -> bytes:
        return b"\x01\x01\x00\x00\x00" + np.array([x, y], "<f8").tobytes()

    points = np.array([point(n / 7, -n) for n in range(80)] + [None], dtype=object)
    names = np.array([f"place {n}" for n in range(80)] + ["nowhere"], dtype=object)
    heights = np.arange(81) * 1.5
    layer = partial(write, "places.gpkg", driver="GPKG", geometry_type="Point", crs="EPSG:4326", fields=["näme", "h"])
    layer(geometry=points, field_data=[names, heights], layer="places")
    layer(geometry=points[:5], field_data=[names[:5], heights[:5]], layer='odd "layer"', append=True)
