"""The programs of examples/ run as they stand: a service under a real server, a suite under pytest-xdist, a fleet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.waits import until

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
WORKERS = 2


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))), **more}


def asked(port: int, path: str, method: str = "GET") -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.fixture
def service(tmp_path):
    """The port of `uvicorn shop:app` with two workers, over a catalogue in a directory of its own."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    where = environment(SHOP_DB=str(tmp_path / "shop.db"), SHOP_CACHE=str(tmp_path / "cache" / "shop.mmc"))
    subprocess.run([sys.executable, "shop.py", "fill"], cwd=EXAMPLES / "service", env=where, check=True, timeout=60)
    command = [sys.executable, "-m", "uvicorn", "shop:app", "--port", "0", "--workers", str(WORKERS)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=EXAMPLES / "service", env=where, stdout=log, stderr=log)
    try:

        def listening() -> Any:
            assert server.poll() is None, (tmp_path / "log").read_text()
            text = (tmp_path / "log").read_text()
            started = text.count("Application startup complete") == WORKERS
            return started and re.search(r"http://127\.0\.0\.1:(\d+)", text)

        yield int(until("all workers have begun", listening, timeout=120)[1])
    finally:
        server.terminate()
        server.wait(60)


def test_the_service_answers_searches_and_shows_every_worker_a_new_price(service):
    assert asked(service, "/items/item-7") == {"sku": "item-7", "kind": "lamp", "price": 0.7}
    found = asked(service, "/items?kind=toy&low=10&high=11&limit=3")
    assert [item["price"] for item in found] == sorted(item["price"] for item in found)
    assert {item["kind"] for item in found} == {"toy"}
    assert asked(service, "/items/item-7/price?price=3.5", "PUT")["price"] == 3.5
    assert {asked(service, "/items/item-7")["price"] for _ in range(50)} == {3.5}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        asked(service, "/items/nope")
    status = asked(service, "/status")
    assert status["state"] in ("fresh", "stale")
    assert status["generation"] >= 1


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_the_suite_passes_and_builds_once(workers):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", workers, "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=.", "."],
        cwd=EXAMPLES / "suite",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unicode: 1 build in" in done.stdout


def test_the_fleet_follows_and_leaves_a_bad_release():
    pytest.importorskip("obstore", reason="the extra remote is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "error", "fleet.py"],
        cwd=EXAMPLES / "fleet",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    steps = re.findall(r"node (\d): item-100 costs (\d+), by release (\d)", done.stdout)
    expected = [("100", "1"), ("150", "2"), ("0", "3"), ("150", "2"), ("100", "5")]
    assert steps == [(node, *step) for step in expected for node in "123"]
    assert "5000 items cost nothing" in done.stdout
    assert re.search(r"^  3  publish   withdrawn  without the check$", done.stdout, re.MULTILINE)
    assert re.search(r"^  5  rollback  adopted    the prices of yesterday, too$", done.stdout, re.MULTILINE)


def test_the_search_finds_what_a_question_is_about(tmp_path):
    def asked(*words: str) -> list[str]:
        """The topics that are found, the nearest first."""
        command = [sys.executable, "-W", "error", str(EXAMPLES / "search" / "topics.py"), *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return re.findall(r"^\d\.\d{3}  (\S+)", done.stdout, re.MULTILINE)

    assert {"try", "exceptions", "raise", "compound"} & set(asked("when is an exception handler executed")[:3])
    assert set(asked("--topic", "with,while", "-k", "3", "the else clause of a loop")) <= {"with", "while"}


def test_every_example_has_a_row_and_a_test():
    rows = set(re.findall(r"^\| \[(\w+)\]", (EXAMPLES / "README.md").read_text("utf-8"), re.MULTILINE))
    assert rows == {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"}
    tests = "".join(path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("test_example_*.py")))
    assert all(f'EXAMPLES / "{name}"' in tests or f"examples.{name}" in tests for name in rows)
