"""Prometheus sees the whole fleet, each operation once, whichever worker it asks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Schema
from mmcache.integrations import monitoring
from mmcache.sharing import metrics
from mmcache.sharing.counters import WorkerCounters, remove
from mmcache.sharing.fleet import STATES
from mmcache.sharing.following import Following, tell
from tests.support.console import ok, run

prometheus_client = pytest.importorskip("prometheus_client", reason="the prometheus extra is not installed")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from prometheus_client.openmetrics import exposition, parser as openmetrics  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from mmcache.integrations.prometheus import MmcacheCollector, text_of  # noqa: E402

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.mmc")


def samples(text: str) -> Samples:
    """Every sample, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found: Samples, name: str, **labels: str) -> float:
    """The sum over all samples of a name that carry these labels."""
    chosen = [value for (n, have), value in found.items() if n == name and labels.items() <= dict(have).items()]
    assert chosen, name
    return sum(chosen)


# Over HTTP, from a fleet ---------------------------------------------------------------------------------------------

WORKER = """
import sys
import mmcache
from prometheus_client import CollectorRegistry, Counter, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector
from mmcache.integrations.prometheus import MmcacheCollector

lookups, misses = (Counter(f"app_{name}", "Counted by the application.") for name in ("lookups", "misses"))
cache = mmcache.open(sys.argv[1], check_interval=1e-6)  # tells its gauges at every get
registry = CollectorRegistry()
MultiProcessCollector(registry)
registry.register(MmcacheCollector(cache))
server, _ = start_http_server(0, addr="127.0.0.1", registry=registry)
print(server.server_port, flush=True)
for line in sys.stdin:
    for i in range(int(line)):
        assert cache[f"k{i % 10}"]["n"] == i % 10
        lookups.inc()
        if i % 5 == 0:
            assert cache.get("nobody") is None
            misses.inc()
    cache.refresh()  # as any look: hits are told at every sixteenth, and then
    print("done", flush=True)
cache.close()
"""


class Worker:
    """A process with the cache open, which looks up what it is told to, and answers scrapes."""

    def __init__(self, path: str, directory: Path) -> None:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.port = int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def look_up(self, n: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        assert self._line() == "done\n"

    def scrape(self) -> Samples:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            return samples(answer.read().decode())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def leave(self) -> None:
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0


@contextlib.contextmanager
def workers(path: str, directory: Path, n: int) -> Iterator[list[Worker]]:
    mmcache.build(path, [{"id": f"k{i}", "n": i} for i in range(10)], Schema("items"))
    directory.mkdir()
    started = [Worker(path, directory) for _ in range(n)]
    try:
        yield started
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.communicate()


def check_same(found: Samples, lookups: int, misses: int) -> None:
    """mmcache's totals are those that the application has counted, in prometheus_client's own multiprocess mode."""
    assert total(found, "mmcache_hits_total") == total(found, "app_lookups_total") == lookups
    assert total(found, "mmcache_misses_total") == total(found, "app_misses_total") == misses


def test_any_worker_reports_the_whole_fleet_once_and_the_killed_keep_their_counts(path, tmp_path):
    with workers(path, tmp_path / "multiprocess", 4) as fleet:
        for i, worker in enumerate(fleet):
            worker.look_up(100 * (i + 1))
        found: Samples = {}
        for worker in fleet[:2]:
            found = worker.scrape()
            check_same(found, 1000, 200)
            assert total(found, "mmcache_workers") == 4
            assert total(found, "mmcache_workers", state="fresh") == 4
            assert total(found, "mmcache_generation") == total(found, "mmcache_generation_oldest") == 1
            assert total(found, "mmcache_load_seconds_count") == total(found, "mmcache_opens_total") == 4
            assert total(found, "mmcache_mapped_bytes") == 4 * os.path.getsize(path)
        ended = total(found, "mmcache_workers_ended_total")  # the builder of the file
        fleet[3].kill()
        for worker in fleet[:2]:
            found = worker.scrape()
            check_same(found, 1000, 200)
            assert total(found, "mmcache_workers") == 3
        fleet[2].leave()
        fleet.append(Worker(path, tmp_path / "multiprocess"))  # and folds the one that was killed
        fleet[-1].look_up(50)
        for worker in (fleet[0], fleet[-1]):
            found = worker.scrape()
            check_same(found, 1050, 210)
            assert total(found, "mmcache_workers") == 3
            assert total(found, "mmcache_workers_ended_total") == ended + 2


# What is reported ----------------------------------------------------------------------------------------------------


def test_every_counter_of_the_table_is_reported_in_its_place(path):
    counters = WorkerCounters.open(path)
    number = {}
    for i, name in enumerate(metrics.COUNTERS):
        number[name] = 0 if name == "looks" else 10**9 * (i + 1)
        counters.set(metrics.FIRST_COUNTER + i, number[name])
    found = samples(text_of(path))
    document = ok("metrics", path, "--json").json
    counters.close()
    assert total(found, "mmcache_hits_total", kind="single") == number["hits"]
    assert total(found, "mmcache_hits_total", kind="batch") == number["batch_hits"]
    assert total(found, "mmcache_source_seconds_total") == number["fallback_ns"] / 1e9
    shown = 0
    for family, members in metrics.FAMILIES.values():
        for metric in members if family.kind == "counter" else []:
            label = {family.label: metric.value} if family.label else {}
            scale = 1e9 if family.unit == "ns" else 1
            assert total(found, f"mmcache_{family.name}_total", **label) == number[metric.name] / scale
            in_json = document[family.name]
            if isinstance(in_json, dict):
                assert in_json[metric.value] == number[metric.name]
            shown += 1
    assert shown == len(metrics.COUNTERS) - 1, "all but looks"
    assert document["hits"] == number["hits"] + number["batch_hits"]


def test_gauges_are_those_of_the_living(path):
    living = [WorkerCounters.open(path) for _ in range(2)]
    for i, counters in enumerate(living):
        counters.set(metrics.GENERATION, 7 + i)
        counters.set(metrics.PINNED, 2)
        counters.set(metrics.MAPPED_BYTES, 1000)
        counters.set(metrics.PRIVATE_BYTES, 10)
        counters.set(metrics.LOAD_NS, (i + 1) * 10**6)
        counters.set(metrics.STATE, STATES.index("expired") + 100 * i)
    found = samples(text_of(path))
    assert total(found, "mmcache_generation") == 8
    assert total(found, "mmcache_generation_oldest") == 7
    assert total(found, "mmcache_pinned_generations") == 4
    assert total(found, "mmcache_mapped_bytes") == 2000
    assert total(found, "mmcache_private_bytes") == 20
    assert total(found, "mmcache_last_load_seconds") == 0.002
    assert total(found, "mmcache_workers", state="expired") == total(found, "mmcache_workers", state="unknown") == 1
    for counters in living:
        counters.close()
    found = samples(text_of(path))
    for name in ("generation", "generation_oldest", "pinned_generations", "mapped_bytes", "last_load_seconds"):
        assert total(found, f"mmcache_{name}") == 0
    assert total(found, "mmcache_workers") == 0


def test_who_is_not_asked_anything_is_idle_and_raises_no_alarm(path):
    """As the master of a server that opened the file before it forked: what it said of itself is of that time."""
    asked, master = WorkerCounters.open(path), WorkerCounters.open(path)
    for counters, generation, state in ((asked, 8, "fresh"), (master, 7, "expired")):
        counters.set(metrics.GENERATION, generation)
        counters.set(metrics.STATE, STATES.index(state))
    master.set(metrics.SEEN_NS, time.time_ns() - 61 * 10**9)
    found = samples(text_of(path))
    assert total(found, "mmcache_generation") == total(found, "mmcache_generation_oldest") == 8
    assert total(found, "mmcache_workers", state="fresh") == total(found, "mmcache_workers", state="idle") == 1
    assert total(found, "mmcache_workers") == 2
    asked.set(metrics.SEEN_NS, 0)
    found = samples(text_of(path))
    assert total(found, "mmcache_generation") == total(found, "mmcache_generation_oldest") == 8
    asked.close()
    master.close()


@pytest.mark.parametrize("name", metrics.HISTOGRAMS)
def test_a_histogram_is_cumulative_and_counts_what_its_buckets_do_not_reach(path, name):
    counters = WorkerCounters.open(path)
    durations = [1e-9, 3e-6, 2e-3, 2e-3, 50_000.0]
    for seconds in durations:
        counters.observe(getattr(metrics, name.upper()), seconds)
    found = samples(text_of(path))
    counters.close()
    buckets = {
        float(dict(labels)["le"]): value
        for (sample, labels), value in found.items()
        if sample == f"mmcache_{name}_seconds_bucket"
    }
    assert 15 <= len(buckets) <= 25
    for bound, value in buckets.items():
        assert value == sum(seconds < bound for seconds in durations)
    assert total(found, f"mmcache_{name}_seconds_count") == 5
    assert total(found, f"mmcache_{name}_seconds_sum") == pytest.approx(sum(durations))


def test_both_text_formats_are_right(path):
    counters = WorkerCounters.open(path)
    counters.observe(metrics.LOOKUP, 1e-6)
    registry = CollectorRegistry()
    registry.register(MmcacheCollector(path, **{'a "strange"\nname\\': path}))
    plain = list(text_string_to_metric_families(generate_latest(registry).decode()))
    strict = list(openmetrics.text_string_to_metric_families(exposition.generate_latest(registry).decode()))
    counters.close()
    assert [family.type for family in plain] == [family.type for family in strict]
    assert {sample.labels["cache"] for family in strict for sample in family.samples} == {
        "items.mmc",
        'a "strange"\nname\\',
    }
    for family in strict:
        assert family.name.startswith("mmcache_")
        assert family.documentation.endswith(".")


def test_describing_names_everything_and_reads_nothing(path):
    collector = MmcacheCollector(path)
    described = {(family.name, family.type) for family in collector.describe()}
    assert described == {(family.name, family.type) for family in collector.collect()}
    registry = CollectorRegistry()
    registry.register(MmcacheCollector("/no/such/directory/items.mmc"))
    assert total(samples(generate_latest(registry).decode()), "mmcache_workers") == 0


def test_one_collector_reports_several_caches_by_name(tmp_path):
    (tmp_path / "other").mkdir()
    places = [tmp_path / "a.mmc", tmp_path / "b.mmc", tmp_path / "other" / "a.mmc"]
    several = [WorkerCounters.open(str(place)) for place in places]
    for i, counters in enumerate(several, 1):
        counters.set(metrics.HITS, i)
    with pytest.raises(ValueError, match=r"two cache files named 'a\.mmc': give one another label"):
        MmcacheCollector(*places)
    registry = CollectorRegistry()
    registry.register(MmcacheCollector(places[0], str(places[1]), str(places[1]), other=places[2]))
    found = samples(generate_latest(registry).decode())
    for counters in several:
        counters.close()
    assert [total(found, "mmcache_hits_total", cache=name) for name in ("a.mmc", "b.mmc", "other")] == [1, 2, 3]
    assert total(found, "mmcache_hits_total") == 6


def test_an_open_cache_stands_for_its_file(path):
    mmcache.build(path, [{"id": "a"}], Schema("items"))
    with mmcache.open(path) as cache:
        assert cache["a"].id == "a"
        cache.refresh()
        (family,) = (family for family in MmcacheCollector(cache).collect() if family.name == "mmcache_hits")
        assert sum(sample.value for sample in family.samples) == 1


def test_a_counter_never_goes_back_until_the_metrics_were_removed(path):
    collector = MmcacheCollector(path)

    def hits() -> float:
        (family,) = (family for family in collector.collect() if family.name == "mmcache_hits")
        return sum(sample.value for sample in family.samples)

    counters = WorkerCounters.open(path)
    counters.words[metrics.HITS] = 100
    assert hits() == 100
    counters.words[metrics.HITS] = 97  # a thread that had counted to 97 got round to storing it
    assert hits() == 100
    counters.words[metrics.HITS] = 101
    assert hits() == 101
    counters.close()
    assert hits() == 101
    remove(path)
    WorkerCounters.open(path).close()
    assert hits() == 0


# Rules and dashboard -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, dict[str, set[str]]]:
    """Sample name -> label -> values, of everything that is reported, also of a node that follows releases."""
    found: dict[str, dict[str, set[str]]] = {}
    path = str(tmp_path_factory.mktemp("node") / "items.mmc")
    assert tell(path, Following("s3://bucket/items", release=1))
    for name, labels in samples(text_of(path)):
        for label, value in labels:
            found.setdefault(name, {}).setdefault(label, set()).add(value)
    return found


def check_expression(expression: str, exported: dict[str, dict[str, set[str]]], recorded: set[str]) -> None:
    """Only names, labels and values that exist; brackets in pairs."""
    names = set(re.findall(r"\bmmcache[\w:]*", expression))
    assert names
    assert names - recorded <= set(exported), expression
    for name, matchers in re.findall(r"(\bmmcache_\w+)\{([^}]*)\}", expression):
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            if label not in ("cache", "instance"):
                assert set(value.split("|")) <= exported[name][label], expression
    for one, other in ("()", "[]", "{}"):
        assert expression.count(one) == expression.count(other), expression


def test_the_rules_are_groups_of_alerts_over_what_is_exported(exported):
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    document = yaml.safe_load(monitoring.rules())
    assert list(document) == ["groups"]
    alerts: list[str] = []
    recorded: set[str] = set()
    for group in document["groups"]:
        assert set(group) == {"name", "rules"}
        for rule in group["rules"]:
            check_expression(rule["expr"], exported, recorded)
            if "record" in rule:
                recorded.add(rule["record"])
                continue
            alerts.append(rule["alert"])
            assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}
            assert re.fullmatch(r"[1-9]\d*m", rule.get("for", "1m"))
    assert len(set(alerts)) == len(alerts)
    text = " ".join(rule["expr"] for group in document["groups"] for rule in group["rules"])
    for limit in ("rate10m < 0.90", "> 0.010", "mmcache_damaged_places > 1", "[1h]) > 10"):
        assert limit in text
    assert "@" not in monitoring.rules()


def test_the_dashboard_shows_what_is_exported(exported):
    board: dict[str, Any] = json.loads(ok("metrics", "--dashboard").out)
    assert board["title"]
    assert board["uid"] == "mmcache"
    assert board["schemaVersion"] >= 36
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert variables == {"datasource", "cache", "instance"}
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"]
        assert panel["type"] in ("stat", "timeseries")
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
        for target in panel["targets"]:
            check_expression(target["expr"], exported, set())
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}
    expressions = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    for family, _ in metrics.FAMILIES.values():
        if family.panel is not None:
            assert f"mmcache_{family.name}" in expressions
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_fleet(path):
    counters = WorkerCounters.open(path)
    counters.set(metrics.HITS, 5)
    counters.flush()
    found = samples(ok("metrics", path).out)
    assert total(found, "mmcache_hits_total", cache="items.mmc") == 5
    document = ok("metrics", path, "--json").json
    assert (document["path"], document["hits"], document["hit_rate"]) == (path, 5, 1.0)
    counters.close()
    assert total(samples(ok("metrics", path).out), "mmcache_hits_total") == 5


def test_the_command_prints_rules_and_dashboard():
    assert ok("metrics", "--rules").out == monitoring.rules()
    assert json.loads(ok("metrics", "--dashboard").out) == monitoring.dashboard()


def test_the_command_refuses_what_it_cannot_mean(path):
    missing = run("metrics", path)
    assert (missing.code, missing.out) == (3, "")
    assert "there is no such file" in missing.err
    assert run("metrics", path, "--json").code == 3
    for words in ((), (path, "--rules"), ("--rules", "--dashboard")):
        refused = run("metrics", *words)
        assert (refused.code, refused.out) == (2, ""), refused


def test_without_the_extra_the_command_says_what_to_install(path):
    WorkerCounters.open(path).close()
    code = "import sys; sys.modules['prometheus_client'] = None; from mmcache.cli import main; sys.exit(main())"
    for words, exit_code in (([path], 1), ([path, "--json"], 0), (["--rules"], 0), (["--dashboard"], 0)):
        command = [sys.executable, "-W", "error", "-c", code, "metrics", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == exit_code, done.stderr
        assert ("pip install 'mmcache[prometheus]'" in done.stderr) == (exit_code == 1)
        assert bool(done.stdout) == (exit_code == 0)
