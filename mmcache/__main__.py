"""`python -m mmcache` is the `mmcache` command."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
