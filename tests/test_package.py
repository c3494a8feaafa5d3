"""The package as an index shows it and as a user installs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import mmcache
from tools import release

ROOT = Path(__file__).parent.parent
ADDRESS = "https://example.org/owner/mmcache"


def example() -> str:
    """What the README lets a reader paste."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return block


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree to release from."""
    directory = tmp_path_factory.mktemp("release") / "tree"
    release.main([ADDRESS, str(directory)])
    return directory


def test_a_release_has_absolute_links_to_files_of_its_version(tree):
    targets = re.findall(r"\]\(([^)]+)\)", (tree / "README.md").read_text("utf-8"))
    assert targets
    for target in targets:
        found = re.fullmatch(rf"{ADDRESS}/(blob|raw)/v{re.escape(mmcache.__version__)}/([^#]+)(#.*)?", target)
        assert found, target
        assert (tree / found[2]).exists(), target
        assert (found[1] == "raw") == target.endswith(".svg")


def test_a_release_has_the_urls_that_an_index_shows(tree):
    project = tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"Source", "Documentation", "Changelog", "Issues"} == set(project["urls"])
    assert all(url.startswith(ADDRESS) for url in project["urls"].values())
    checkout = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {key: value for key, value in project.items() if key != "urls"} == checkout


def test_urls_that_are_there_are_not_written_twice():
    with pytest.raises(ValueError, match="already"):
        release.with_urls("[project.urls]\n", ADDRESS, "1")


def test_a_link_to_elsewhere_and_an_anchor_stay():
    text = "[a](https://b/c) ![p](docs/p.svg) [d](pages/d.md#e) [f](#g)"
    assert release.absolute(text, ADDRESS, "1") == (
        f"[a](https://b/c) ![p]({ADDRESS}/raw/v1/docs/p.svg) [d]({ADDRESS}/blob/v1/pages/d.md#e) [f](#g)"
    )


def test_the_classifiers_name_what_the_package_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"Framework :: Pytest", "Typing :: Typed"} <= set(project["classifiers"])
    assert (ROOT / "mmcache" / "py.typed").exists()


@pytest.mark.integration
def test_the_example_of_the_readme_runs_from_the_wheel(tree, tmp_path):
    """Builds a wheel of the release, which downloads what builds it, and uses nothing else of the checkout."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, tree], check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True, timeout=600)
    (tmp_path / "run").mkdir()
    program = f"import mmcache; assert mmcache.__file__.startswith({str(tmp_path)!r})\n{example()}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path / "run",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "99.0"


@pytest.mark.integration
def test_an_editable_install_without_a_core_keeps_none_from_before(tree, tmp_path):
    """Downloads what builds it. What an earlier install compiled into the tree would be imported."""
    sources = tmp_path / "tree"
    shutil.copytree(tree, sources)
    stale = sources / "mmcache" / "_core.abi3.so"
    stale.write_bytes(b"of other sources")
    venv.create(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", tmp_path / "venv"]
    environment = os.environ | {"MMCACHE_COMPILED": "never"}
    subprocess.run([*pip, "install", "--no-deps", "--editable", sources], check=True, timeout=600, env=environment)
    assert not stale.exists()
