"""Bytes <-> values: the file format, without any I/O.

Nothing here opens, reads or writes a file. `docs/format.md` is the normative text; these modules are its
reading and writing halves side by side. Whatever a file may contain, reading raises `CorruptFileError` or
`IncompatibleFormatError` and nothing else; the caller adds the path.
"""
