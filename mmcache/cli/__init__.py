"""The `mmcache` command.

Data goes to stdout, everything else to stderr. Exit codes: 0 ok, 1 error, 2 usage, 3 missing, 4 stale, 5 corrupt,
75 another process holds the lock, 130 interrupted, 141 the reader of our output is gone.
"""

from .main import main

__all__ = ["main"]
