"""The simulated fleet keeps its accounts: no byte is free, none is faster than a network, none waits without cause."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fleet_model import Figures, Parameters, Requests, adopt, bill, busiest_second, transfers

ROOT = Path(__file__).parent.parent
FIGURES = Figures(
    file=1_000_000,
    look=Requests(0.0, 1.0, 0.0),
    list=Requests(1.0, 0.0, 300.0),
    bring={"blob": Requests(1.0, 5.0, 1_000_000.0), "delta": Requests(1.0, 4.0, 20_000.0)},
    seconds={"blob": 0.5, "delta": 0.1},
)


def by_small_steps(begins: list[float], size: float, parameters: Parameters, step: float = 0.001) -> list[float]:
    """The same transfers, moment by moment."""
    left = dict(enumerate([size] * len(begins)))
    ends: dict[int, float] = {}
    now = 0.0
    while left:
        active = [i for i in left if begins[i] <= now]
        for i in active:
            left[i] -= step * min(parameters.node_bytes, parameters.store_bytes / len(active))
            if left[i] <= 0:
                del left[i]
                ends[i] = now + step
        now += step
    return [ends[i] for i in range(len(begins))]


@pytest.mark.parametrize("store_bytes", [1e6, 2.5e6, 1e9])
@pytest.mark.parametrize("begins", [[0.0], [0.0] * 6, [0.0, 0.2, 0.2, 0.9, 3.0, 3.5], [0.1 * i for i in range(12)]])
def test_transfers_share_what_the_store_gives(begins, store_bytes):
    parameters = Parameters(len(begins), node_bytes=1e6, store_bytes=store_bytes)
    ends, most = transfers(begins, 5e5, parameters)
    assert ends == pytest.approx(by_small_steps(begins, 5e5, parameters), abs=0.02)
    assert 1 <= most <= len(begins)
    assert max(ends) - min(begins) >= len(begins) * 5e5 / store_bytes - 1e-9


def test_a_lone_node_waits_for_its_poll_its_transfer_and_its_work():
    for seed in range(50):
        found = adopt(Parameters(1, every=5.0, node_bytes=1e6), FIGURES, "blob", seed)
        assert 0.0 <= found.waits[0] <= 6.0
        assert found.seconds[0] == pytest.approx(found.waits[0] + 1.0 + 0.5)


def test_polls_of_many_nodes_are_spread_over_the_time_between_two():
    """With a jitter of a fifth, half of the nodes have polled after 0.5 of it, and all after 1.2."""
    found = adopt(Parameters(10_000, every=10.0, store_bytes=1e12), FIGURES, "delta")
    assert found.waits[5_000] == pytest.approx(5.0, abs=0.3)
    assert max(found.waits) <= 12.0
    assert found.at(0.5) <= found.at(0.99) <= found.seconds[-1]


def test_polls_stay_spread_though_all_nodes_were_started_at_one_moment():
    """Ten minutes later: 0.2 of jitter has done that for polls every 5 s, and not yet for those every 300 s."""
    parameters = Parameters(2_000, every=5.0)
    apart, together = (busiest_second(parameters, FIGURES, together=at) for at in (False, True))
    assert 400 <= apart < 520
    assert together < 1.5 * apart
    assert busiest_second(Parameters(2_000, every=300.0), FIGURES, together=True) > 2 * 2_000 / 300


def test_a_bill_is_what_was_asked_times_what_it_costs():
    parameters = Parameters(100, every=5.0, releases_a_day=24.0, egress_price=0.09)
    found = bill(parameters, FIGURES, "blob")
    assert found.polls == pytest.approx(100 * 43_200 * (0.005 + 11 * 0.0004) / 1000)
    assert found.releases == pytest.approx(100 * 720 * (0.005 + 5 * 0.0004) / 1000)
    assert found.egress == pytest.approx(100 * (43_200 * 300 + 720 * 1e6) * 0.09 / 1e9)
    assert found.total == pytest.approx(found.polls + found.releases + found.egress)
    twice = bill(Parameters(200, every=300.0, releases_a_day=24.0, egress_price=0.09), FIGURES, "blob")
    assert twice.polls == pytest.approx(200 * 8_640 * 0.005 / 1000), "then each poll is a list"
    assert twice.releases == pytest.approx(2 * found.releases)


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_the_program_measures_and_simulates(tmp_path):
    pytest.importorskip("moto", reason="moto is not installed: pip install --group integration")

    def run(*words: object) -> tuple[str, dict[str, object]]:
        command = [sys.executable, "-W", "error", "-m", "benchmarks.fleet", "--json", str(tmp_path / "out.json")]
        done = subprocess.run([*command, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, json.loads((tmp_path / "out.json").read_text())

    shown, told = run("--records", 2000, "--dim", 16, "--nodes", 2, 50)
    figures = told["figures"]
    assert isinstance(figures, dict)
    assert "a poll that finds nothing new" in shown
    assert (figures["look"]["lists"], figures["look"]["gets"]) == (0.0, 1.0), "a poll is one look"
    assert figures["bring"]["delta"]["received"] < 0.2 * figures["file"]
    (tmp_path / "out.json").rename(tmp_path / "figures.json")
    again, other = run("--figures", tmp_path / "figures.json", "--nodes", 2, 50)
    assert other["results"] == told["results"]
    assert again.split("\n\n")[-1] == shown.split("\n\n")[-1]


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_the_program_measures_how_long_all_workers_take(tmp_path):
    pytest.importorskip("obstore", reason="the extra remote is not installed")
    words = ["--nodes", "2", "--workers", "2", "--releases", "2", "--records", "500", "--every", "0.5"]
    command = [sys.executable, "-W", "error", "-m", "benchmarks.adoption", "--json", str(tmp_path / "out.json")]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 2" in done.stdout
    told = json.loads((tmp_path / "out.json").read_text())
    assert [len(release) for release in told["releases"]] == [2, 2]
    for node in (node for release in told["releases"] for node in release):
        assert 0 < node["took"] < node["last"], "all workers answer after the download has begun"
