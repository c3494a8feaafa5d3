"""What people give as a source and is none: how to know it, what it is, and the way to its records.

Pure: first bytes in, words out.
"""

from __future__ import annotations

__all__ = ["foreign_directory", "foreign_file", "foreign_text"]

_RECORDS = "read it by its own library, and give the records: mmcache.build(FILE, records, Schema(...))"
_CSV = "save it as CSV, and give that"
_FILES = "unpack it, and give the file that holds the records"
_LOAD = "load it into its database, and give that"

_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (
        0,
        b"\x89MMC\r\n\x1a\n",
        "a cache file of mmcache",
        "open it, or `mmcache rebuild` it; `mmcache export` gives its records",
    ),
    (
        0,
        b"PARE",
        "an encrypted Parquet file",
        "decrypt it by pyarrow, and give the table: mmcache.build(FILE, table, ...)",
    ),
    (0, b"FEA1", "a Feather file of version 1", "read it by pandas.read_feather of its time, and write it anew"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "read it by h5py or pandas.read_hdf, and give the records or the frame"),
    (0, b"CDF\x01", "a NetCDF file", _RECORDS),
    (0, b"CDF\x02", "a NetCDF file", _RECORDS),
    (0, b"ORC", "an ORC file", "read it by pyarrow.orc.read_table, and give the table"),
    (0, b"Obj\x01", "an Avro file", "read it by fastavro.reader, and give that as the records"),
    (0, b"%PDF", "a PDF", "extract its tables first"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (.xls)", _CSV),
    (4, b"Standard Jet DB", "a database of Access", "export its table as CSV (mdb-export), and give that"),
    (4, b"Standard ACE DB", "a database of Access", "export its table as CSV (mdb-export), and give that"),
    (16, b"\xde\xc0\xef\xbe", "an LMDB database", "read it by lmdb, and give the records"),
    (0, b"\x13\x57\x9a\xce", "a gdbm database", _RECORDS),
    (0, b"\xcf\x9a\x57\x13", "a gdbm database", _RECORDS),
    (12, b"\x61\x15\x06\x00", "a Berkeley DB database", _RECORDS),
    (12, b"\x00\x06\x15\x61", "a Berkeley DB database", _RECORDS),
    (0, b"GGUF", "a GGUF model", "its weights are no records"),
    (0, b"PGDMP", "a dump of PostgreSQL in its own format", f"{_LOAD} (pg_restore)"),
    (0, b"\x04\x22\x4d\x18", "compressed as lz4", "decompress it (lz4 -d)"),
    (0, b"\x1f\x9d", "compressed as .Z", "decompress it (uncompress)"),
    (0, b"\xff\x06\x00\x00sNaPpY", "compressed as snappy", "decompress it (snzip -d)"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _FILES),
    (0, b"Rar!", "a RAR archive", _FILES),
    (257, b"ustar", "a tar archive", _FILES),
    (0, b"PK\x05\x06", "an empty zip archive", _FILES),
    (0, b"\x7fELF", "a program", "give the file that holds the records"),
    (0, b"SQLite 2", "a database of SQLite 2", "dump it by sqlite2, and load that by sqlite3"),
)

_FAISS = (b"IxF", b"IxM", b"IHN", b"IwF", b"IxP", b"IwP", b"IxS", b"IxH")

_TEXTS: tuple[tuple[str, str, str], ...] = (
    ("version https://git-lfs.github.com/spec", "a pointer of Git LFS, and not the file itself", "git lfs pull"),
    ("<!doctype html", "an HTML page, perhaps of an error", "check what was downloaded"),
    ("<html", "an HTML page, perhaps of an error", "check what was downloaded"),
    ("<?xml", "XML", _RECORDS),
    ("pragma foreign_keys=off;", "a dump of SQLite", "load it: sqlite3 new.db < DUMP, and give new.db"),
    ("-- mysql dump", "a dump of MySQL", _LOAD),
    ("-- mariadb dump", "a dump of MariaDB", _LOAD),
    ("--\n-- postgresql database dump", "a dump of PostgreSQL", f"{_LOAD} (psql)"),
    ("#!", "a script", "run it, and pipe what it prints: ... | mmcache build - -o FILE"),
    ("%%matrixmarket", "a matrix in Matrix Market's format", "read it by scipy.io.mmread"),
)

_DIRECTORIES: tuple[tuple[str, str, str], ...] = (
    (
        "_delta_log",
        "a Delta table",
        "its files hold removed rows, too: give deltalake.DeltaTable(PATH).to_pyarrow_dataset()",
    ),
    (".hoodie", "a Hudi table", "its files hold old rows, too: read it by hudi"),
    ("data.mdb", "an LMDB database", "read it by lmdb, and give the records"),
    (".zgroup", "a Zarr group", "read it by zarr, and give the arrays"),
    (".zarray", "a Zarr array", "read it by zarr, and give the array as embeddings="),
    ("zarr.json", "a Zarr group", "read it by zarr, and give the arrays"),
    (
        "chroma.sqlite3",
        "a directory of Chroma",
        "give its collections: collection.get(include=['embeddings', 'metadatas'])",
    ),
    ("_latest.manifest", "a Lance data set", "give lance.dataset(PATH).scanner()"),
    ("_versions", "a Lance data set", "give lance.dataset(PATH).scanner()"),
    ("CURRENT", "a LevelDB or RocksDB database", _RECORDS),
)


def foreign_file(head: bytes, names: tuple[str, ...] = ()) -> tuple[str, str] | None:
    """What a file with these first bytes is, and the way out; None if it is not known here.

    names: those in it, if it is a zip archive."""
    if head.startswith(b"PK\x03\x04"):
        return _archive(names)
    for offset, magic, what, way in _MAGIC:
        if head.startswith(magic, offset):
            return what, way
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 2:
        way = "it is never loaded here, as that runs code: load it yourself, and give the records"
        return "a pickle", way
    if head.startswith(_FAISS) and b"\0" in head[:64]:
        return "an index of FAISS", "give its vectors as a .npy: numpy.save(..., index.reconstruct_n(0, index.ntotal))"
    if len(head) > 9 and head[8:10] in (b'{"', b"{ ") and int.from_bytes(head[:8], "little") < 1 << 27:
        return "a file of safetensors", "load it by safetensors.numpy.load_file, and give the array as embeddings="
    return None


def _archive(names: tuple[str, ...]) -> tuple[str, str]:
    if any(name.startswith("xl/") for name in names):
        return "a workbook of Excel (.xlsx)", _CSV
    if any(name.endswith("content.xml") for name in names):
        return "a table of OpenDocument (.ods)", _CSV
    if names and all(name.endswith(".npy") for name in names):
        way = (
            "take the array out: numpy.save('v.npy', numpy.load(FILE)[NAME]), and give a table with embeddings='v.npy'"
        )
        return f"a .npz of numpy ({', '.join(names)[:200]})", way
    if any(name.endswith("data.pkl") for name in names):
        return "a file of torch", "load it yourself, and give the records or, as embeddings=, the array"
    return f"a zip archive ({', '.join(names)[:200] or 'no names'})", _FILES


def foreign_text(text: str) -> tuple[str, str] | None:
    """What a text that begins so is, and the way out; None if it is not known here."""
    start = text.lstrip().lower()
    for prefix, what, way in _TEXTS:
        if start.startswith(prefix):
            return what, way
    lines = text.split("\n", 3)
    first, second = lines[0].split(), lines[1].rstrip().split(" ") if len(lines) > 1 else []
    if (
        len(first) == 2
        and all(word.isdecimal() for word in first)
        and len(second) == int(first[1]) + 1
        and len(second) > 2
    ):
        return "vectors of word2vec as text (.vec)", _vec("KeyedVectors.load_word2vec_format(FILE)")
    if len(second) > 10 and len(lines[0].rstrip().split(" ")) == len(second) and all(map(_is_number, second[1:])):
        return "vectors of GloVe as text", _vec("KeyedVectors.load_word2vec_format(FILE, no_header=True)")
    return None


def foreign_directory(names: frozenset[str]) -> tuple[str, str] | None:
    """What a directory with these names is, and the way out; None if it is not known here."""
    for name, what, way in _DIRECTORIES:
        if name in names:
            return what, way
    if "metadata" in names and "data" in names:
        return "an Iceberg table", "its files hold removed rows, too: give pyiceberg's table.scan().to_arrow()"
    return None


def _vec(call: str) -> str:
    records = "[{'id': k} for k in w.index_to_key]"
    return f"read it by gensim: w = {call}; give {records} as the records, and w.vectors as embeddings="


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
