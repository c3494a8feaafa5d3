"""Which packages are like this one? Searches real sentence embeddings of Debian packages.

    python packages.py debian-packages.db nethack-x11
    python packages.py debian-packages.db nethack-x11 --section games

The database has a table `packages` with the columns name, section, description and embedding (384 float32). The file
beside it is made by the first run, and is what all workers of a service would share.
"""

from __future__ import annotations

import argparse
import sys
import time

import mmcache

PACKAGES = mmcache.Schema("packages", key="name", index=("section",), embedding="embedding", dim=384)


def main() -> int:
    parser = argparse.ArgumentParser(description="Packages whose descriptions mean something alike.")
    parser.add_argument("database")
    parser.add_argument("package")
    parser.add_argument("--section", help="only of this section")
    parser.add_argument("-k", type=int, default=5)
    asked = parser.parse_args()

    with mmcache.open(f"{asked.database}.mmc", mmcache.SQLiteSource(asked.database, PACKAGES)) as packages:
        where = {"section": asked.section} if asked.section else {}
        begun = time.perf_counter()
        try:
            near = packages.nearest(id=asked.package, k=asked.k, where=where)
        except KeyError:
            print(f"there is no package {asked.package!r}", file=sys.stderr)
            return 1
        took = time.perf_counter() - begun
        print(f"{asked.package}: {packages[asked.package]['description']}\n")
        for package, score in near.pairs():
            print(f"{score:.3f}  {package['name']:28}  {package['description']}")
        print(f"\n{len(packages)} packages, {1000 * took:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
