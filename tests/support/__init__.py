"""What the tests of all layers share, so that each thing is written once.

bank        the SQLite bank that caches are built from, and the truth about it
console     the `mmcache` command in a process of its own
processes   forked children that run a function, give its result, or talk
crew        forked workers that each have a cache, and do what a test tells them
waits       waits on conditions; no test sleeps
clock       the clocks of a process, which a test sets
faults      a file system that fails, or kills, at a call
stores      object stores: a directory over HTTP with faults, servers with the interface of S3
hosts       network namespaces in the place of other machines
observe     what an outsider sees: counters, children, locks, open and mapped files
inside      what only the parts see; the only module here that knows private names
"""
