"""Benchmarks: each module answers one question, in one run, beside the peers that a reader would think of.

    python -m benchmarks.lookup         how long do look-ups take, beside SQLite, LMDB and a dict?
    python -m benchmarks.open           does opening depend on the size?
    python -m benchmarks.build          what does a build cost beyond reading the rows and writing the bytes?
    python -m benchmarks.memory         what do eight workers cost, together and each?
    python -m benchmarks.requirements   are the targets for 1,000 patterns of 768 dimensions met?

    --quick              1,000 and 100,000 records; without it also 1,000,000
    --sizes 500,20000    these instead
    --json FILE          everything that was measured, for a machine
    --check              exit 1 when a goal is missed

Method. All contenders of a table take turns in one process (or in child processes of one run), in an order drawn anew
for every repetition, on the same records and the same random ids. A ratio is the median of the ratios within each
repetition, so that a slow minute slows both sides of it. Figures are medians; the range is over repetitions. The
machine's other work is measured too, and warned about. Absolute figures are of this machine; compare ratios.

Everything is warm: in the page cache and, where that matters, touched once before. Data sets are the made-up banks of
`mmcache.presets.patterns`, made once and kept in `benchmarks/.data/` (a few GB with 1,000,000 records), which may be
deleted at any time.
"""
