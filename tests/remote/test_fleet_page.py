"""docs/fleet.md: its manifests and its drill run as they stand there, against a directory in the place of a bucket."""

from __future__ import annotations

import copy
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmcache
from mmcache import Schema, SQLiteSource
from mmcache.cli import main
from tests.support.bank import NUMBERS
from tests.support.waits import until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fleet.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_rollback_drill_runs(tmp_path, bank, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mmcache.build("items.mmc", SQLiteSource(bank, NUMBERS))
    (drill,) = [block for block in blocks("sh") if "withdraw file:" in block]
    for line in drill.replace("/tmp/", f"{tmp_path}/").splitlines():
        for command in line.partition("#")[0].split("&&"):
            words = re.findall(r"'[^']*'|\S+", command)
            assert words[0] == "mmcache"
            assert main([word.strip("'") for word in words[1:]]) == 0, command
    assert re.search(r"^ *release +1 of", capsys.readouterr().out, re.MULTILINE)


MANIFESTS = {manifest["kind"]: manifest for manifest in map(yaml.safe_load, blocks("yaml"))}


@pytest.mark.integration
@pytest.mark.parametrize("kind", MANIFESTS)
@pytest.mark.filterwarnings("ignore")  # of what it imports
def test_the_manifests_fit_the_schemas_of_kubernetes(kind):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="the group integration is not installed")
    for version in ("1.28", "1.31"):
        kubernetes.validate(MANIFESTS[kind], version, strict=True)
        wrong = copy.deepcopy(MANIFESTS[kind])
        wrong["spec"]["replica"] = 3
        with pytest.raises(kubernetes.ValidationError):
            kubernetes.validate(wrong, version, strict=True)


@pytest.fixture
def pod() -> Any:
    manifest = MANIFESTS["Deployment"]
    assert manifest["spec"]["selector"]["matchLabels"] == manifest["spec"]["template"]["metadata"]["labels"]
    return manifest["spec"]["template"]["spec"]


def test_the_containers_of_the_manifest_share_the_files(pod):
    (volume,) = pod["volumes"]
    everything = [*pod["initContainers"], *pod["containers"]]
    mounts = [mount for container in everything for mount in container["volumeMounts"]]
    assert {mount["name"] for mount in mounts} == {volume["name"]}
    assert len(mounts) == len(everything)
    paths = {word for c in everything for word in c["command"] if word.endswith(".mmc")}
    assert len(paths) == 1, "all name one file"
    assert Path(paths.pop()).parent.parent == Path(mounts[0]["mountPath"]), "in a directory of its own below the volume"


def test_the_commands_of_the_publisher_make_the_releases_that_pods_follow(tmp_path, pod):
    """The job's containers, one after the other, twice: the second release has a delta."""
    job = MANIFESTS["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    url, work = f"file://{tmp_path}/store", tmp_path / "work"
    work.mkdir()
    followed = {word for one in pod["initContainers"] for word in one["command"] if word.startswith("s3://")}
    (build,), (publish,) = job["initContainers"], job["containers"]
    assert followed == {publish["command"][-1]}
    for number in (1, 2):
        with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as db:
            db.execute("BEGIN")
            db.execute("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, kind TEXT, text TEXT)")
            db.executemany("INSERT INTO items (kind, text) VALUES (?, ?)", [("a", "x" * 500)] * (2000 // number**4))
            db.execute("COMMIT")
        for one in (build, publish):
            places = {"s3://bucket/items": url, "/srv/": f"{tmp_path}/", "/work/": f"{work}/"}
            words = one["command"][1:]
            for old, new in places.items():
                words = [word.replace(old, new) for word in words]
            assert main(words) == 0
    assert [release.number for release in mmcache.releases(url)] == [2, 1]
    assert len(list((tmp_path / "store" / "deltas").iterdir())) == 1


def test_the_commands_of_the_manifest_bring_and_follow_releases(tmp_path, pod):
    """The init container's, the side-car's and the probe's, as processes; the volume is open to all, as emptyDir is."""
    url, volume, made = f"file://{tmp_path}/store", tmp_path / "cache", tmp_path / "made.mmc"
    volume.mkdir()
    volume.chmod(0o777)

    def command(words: list[str]) -> list[str]:
        assert words[0] == "mmcache"
        placed = [word.replace("s3://bucket/items", url).replace("/cache/", f"{volume}/") for word in words[1:]]
        return [sys.executable, "-W", "error", "-m", "mmcache", *placed]

    (init,) = pod["initContainers"]
    (side_car,) = (one for one in pod["containers"] if one["command"][0] == "mmcache")
    probe = command(side_car["readinessProbe"]["exec"]["command"])
    for words in (command(init["command"]), probe):
        assert subprocess.run(words, cwd=ROOT, capture_output=True, check=False).returncode == 3
    mmcache.build(made, [{"id": "a", "n": 1}], Schema("items"))
    mmcache.publish(made, url)
    assert subprocess.run(command(init["command"]), cwd=ROOT, check=False).returncode == 0
    file = next(volume.glob("*/items.mmc"))
    with mmcache.open(file) as cache, subprocess.Popen(command(side_car["command"]), cwd=ROOT) as process:
        try:
            assert cache["a"]["n"] == 1
            mmcache.build(made, [{"id": "a", "n": 2}], Schema("items"))
            mmcache.publish(made, url)
            until("the worker has the release", lambda: cache["a"]["n"] == 2)
            assert subprocess.run(probe, cwd=ROOT, capture_output=True, check=False).returncode == 0
        finally:
            process.terminate()
