"""Releases: a generation in an object store, published once and followed by every node.

Needs the extra `remote` (obstore), which is imported by `store` alone, when a store is opened.
"""
