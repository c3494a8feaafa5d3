"""Makes a tree to release from: a copy of what is committed, with the addresses that only a release knows.

    python -m tools.release https://host/owner/mmcache tree

In a checkout links of README.md are relative, so that they work wherever the repository lies. On a package index they
would be dead. In the copy they lead to this version at the given address, and `[project.urls]` of pyproject.toml is
filled in. Build and check there: `python -m build`, `twine check --strict dist/*`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mmcache

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^]]*)\]\((?P<path>[^)\s#]+)(?P<anchor>#[^)]*)?\)")
_PICTURES = (".svg", ".png")


def absolute(readme: str, address: str, version: str) -> str:
    """`readme` with each relative link leading to the tag of `version` at `address`, a picture to its bytes."""

    def to(match: re.Match[str]) -> str:
        path = match["path"]
        if "://" in path or path.startswith("mailto:"):
            return match[0]
        kind = "raw" if path.endswith(_PICTURES) else "blob"
        return f"{match['mark']}[{match['text']}]({address}/{kind}/v{version}/{path}{match['anchor'] or ''})"

    return _LINK.sub(to, readme)


def with_urls(pyproject: str, address: str, version: str) -> str:
    """`pyproject` with a table of project URLs. Raises ValueError where there is one already."""
    if "[project.urls]" in pyproject:
        raise ValueError("pyproject.toml has [project.urls] already")
    urls = {
        "Source": address,
        "Documentation": f"{address}/blob/v{version}/docs/index.md",
        "Changelog": f"{address}/blob/v{version}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
    table = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    return pyproject.replace(
        "[project.optional-dependencies]", f"[project.urls]\n{table}\n[project.optional-dependencies]"
    )


def make(address: str, directory: Path) -> None:
    """Copy the tracked files to `directory`, which must not exist, and fill in the addresses."""
    directory.mkdir(parents=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    version = mmcache.__version__
    for name, change in (("README.md", absolute), ("pyproject.toml", with_urls)):
        file = directory / name
        file.write_text(change(file.read_text("utf-8"), address.rstrip("/"), version), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make a tree to release from.")
    parser.add_argument("address", help="where the repository is, https://host/owner/name")
    parser.add_argument("directory", type=Path, help="the tree to make; must not exist")
    chosen = parser.parse_args(arguments)
    make(chosen.address, chosen.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
