"""Benchmarks: each module answers one question, in one run, beside everything that a user would take instead.

    python -m benchmarks                all of them, one after the other, and one table of ratios
    python -m benchmarks.requirements   are the targets for 1,000 patterns of 768 dimensions met?
    python -m benchmarks.lookup         how long do look-ups take?
    python -m benchmarks.scan           how long do scans take?
    python -m benchmarks.open           does opening depend on the size?
    python -m benchmarks.build          what does a build cost beyond reading the rows and writing the bytes?
    python -m benchmarks.load           how much do readers notice while everything is written anew?
    python -m benchmarks.memory         what do workers cost, together and each?
    python -m benchmarks.cold           what does the first worker after a restart wait for?
    python -m benchmarks.growth         what grows with the number of records?
    python -m benchmarks.freshness      what does it cost to stay true, and how soon is news heard?
    python -m benchmarks.dirty          what do invalidated ids cost until the next build?
    python -m benchmarks.tracking       what does change tracking cost the writers of a database?
    python -m benchmarks.keys           do keys of every type, ranges and orders keep pace?
    python -m benchmarks.nearest        how long does a search for neighbours take?
    python -m benchmarks.anatomy        where does the time of a look-up go?
    python -m benchmarks.guard          has anything become slower?

    --quick              10,000 records, unless the question is about sizes; without it 1,000 and 100,000, and up to
                         10,000,000 where the question is growth. All together are quick unless asked for with --full
    --sizes 500,20000    these instead
    --json FILE          everything that was measured, for a machine
    --check              exit 1 when a goal is missed

The peers are in `benchmarks/peers`, one module each. Method, and how to read the results: docs/benchmarks/README.md.
Data sets are the made-up banks of `examples.demo.bank`, made once and kept in `benchmarks/.data/`, many GB in a
full run, which may be deleted at any time.
"""
