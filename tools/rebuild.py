#!/usr/bin/env python3
"""Make a cache file anew from the source that it names: for cron, CI and deploy hooks.

    tools/rebuild.py patterns.mmc [--source PATH] [--timeout SECONDS] [--json] [--quiet]

The same as `mmcache rebuild`, with its exit codes: 0 rebuilt or unchanged, 1 error, 2 usage, 3 missing, 5 corrupt,
75 another build holds the lock.
"""

import sys

from mmcache.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["rebuild", *sys.argv[1:]]))
