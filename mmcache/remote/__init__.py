"""Releases: a generation in an object store, published once and followed by every node.

Needs the extra `remote` (obstore), which is imported by `mmcache.store` alone, when a store is opened.
"""
