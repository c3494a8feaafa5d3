"""The `mmcache` command.

Data goes to stdout, everything else to stderr. Exit codes: 0 ok, 1 error, 2 usage, 3 missing, 4 stale, 5 corrupt,
75 another process holds the lock, 130 interrupted, 141 nobody reads our output.
"""

from .main import main

__all__ = ["main"]
