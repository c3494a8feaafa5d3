/* The compiled core of mmcache's reads: what its parts share.
 *
 * It answers only what it can prove, and is a twin of the quick paths in Python, not of the careful ones. Whatever is
 * unusual (damage, a key of a strange type, the absence of a key whose hash another one has, a part that is not verified
 * yet) is UNUSUAL here, and the caller goes the careful way, which is Python in both implementations. So errors, log lines and counts are the same.
 *
 * Memory safety. The map is hostile: its bytes may be anything, and may change while they are read. `reach` is the only
 * way to it; it checks every extent against the length of the map, and gives NULL after a close. Bytes are copied, once,
 * before they are trusted. No pointer into the map outlives a call into Python, which may run a finalizer that closes it.
 *
 * One interpreter, under its lock: sub-interpreters and free-threaded builds run pure Python.
 */

#ifndef MMCACHE_CORE_H
#define MMCACHE_CORE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>

/* native.py has the same number, and loads no other. It is raised with every change of what C and Python share: what is
 * bound, attributes and methods that are asked for by name, arguments, and the meaning of any of these. */
#define REVISION 6

#define STEPS 8                      /* format/slots.py: slots that are tried from the home on, before a bisection */
#define MAX_RECORD_BYTES (16u << 20) /* format/records.py */
#define MAX_KEY_BYTES 65535u         /* format/records.py */
#define MAX_PARTS 8                  /* format/keys.py: values in a key that is a tuple */
#define MAX_DEPTH 100                /* values.py: levels that are decoded here; deeper ones are msgpack's */
#define ROW_SIZE 24                  /* format/layout.py: bytes of a row entry */
#define BLOCK_BITS 16                /* format/header.py: a block has 64 KiB */

/* What a step of a look-up comes to. FAILED: a Python exception is set; in all other cases none is. */
typedef enum { FAILED = -1, FOUND, ABSENT, DIRTY, UNUSUAL } outcome;

/* --- xxh3.c */

uint64_t xxh3_64(const uint8_t *data, size_t length, uint64_t seed);
/* Of keys and records: xxh3_64 with seed 0, or in tests, whose keys must collide, the function that is bound as "hash". */
uint64_t hash_of(const uint8_t *data, size_t length);

/* --- processor.c */

/* Which of three loops runs: 2, 1, or 0, which is for any processor. has_most, has_some: whether this one has what the
 * others need. Tests, which try each, bind a number as "processor": no loop above it runs. Needs the interpreter's lock. */
int loop_for(int has_most, int has_some);
/* For tests: the loop that was chosen last. */
PyObject *core_loop(PyObject *module, PyObject *none);

/* --- signs.c */

PyObject *core_nearby(PyObject *module, PyObject *args);
PyObject *core_signs(PyObject *module, PyObject *args);

/* --- products.c */

PyObject *core_products(PyObject *module, PyObject *args);

/* --- scores.c */

PyObject *core_sums(PyObject *module, PyObject *args);

/* --- unpack.c */

typedef struct {
    const uint8_t *at, *end; /* private memory */
} cursor;

/* The next object, as msgpack.unpackb gives it. NULL without an exception for what is not one, or is left to msgpack. */
PyObject *unpack_next(cursor *in, int depth);
/* The one object that these bytes are, under the same rule. */
PyObject *unpack_all(const uint8_t *data, size_t length);

/* --- lookup.c */

typedef struct {
    uint8_t *bytes; /* msgpack object in its shortest form: `room`, or memory of its own */
    size_t length;
    size_t header; /* bytes before what is hashed: those of the header of a str, else 0 */
    uint64_t hash;
    uint8_t room[480];
} key_bytes;

outcome key_encode(key_bytes *key, PyObject *object);
void key_free(key_bytes *key);

typedef struct {
    uint64_t offset;
    uint32_t length;
    uint16_t key_length, shape;
    uint64_t checksum;
} row_entry;

typedef struct {
    PyObject *object;
    uint32_t count, prefix; /* values; bytes of the array's header */
} shape_entry;

/* The bytes of one collection: see mmcache/storage/mapped.py for what the numbers are. */
typedef struct {
    PyObject_HEAD
    Py_buffer map;      /* map.buf is NULL after close */
    Py_buffer verified; /* a byte for each block; verified.buf is NULL where all of the file is */
    uint64_t n, slots, hash_at, row_at, rows_at;
    unsigned shift;
    int ids_verified;
    Py_ssize_t key_width;
    shape_entry *shapes;
    size_t shape_count;
    PyObject *matrix; /* the embeddings that may be handed out row by row, or NULL */
    uint64_t matrix_at, matrix_stride;
} Table;

/* See dirty.c. All zeros: not made. count: of the hashes that it was made of. */
typedef struct {
    uint64_t *words; /* NULL: none */
    uint64_t mask;
    Py_ssize_t count;
    int made;
} dirty_filter;

/* The base of FileCollection. */
typedef struct {
    PyObject_HEAD
    Table *table;
    PyObject *dirty; /* a dict: hash -> keys; or NULL */
    dirty_filter filter;
} ByKey;

/* The base of Record. */
typedef struct {
    PyObject_HEAD
    PyObject *shape, *values, *owner;
    PyObject *vector; /* the embedding that was read with it, or None for none; NULL: it is looked up */
    uint64_t row;
} Fields;

/* The only way to the map: where these bytes lie, or NULL where they do not lie in it. */
static inline const uint8_t *reach(const Py_buffer *map, uint64_t at, uint64_t length)
{
    const uint8_t *begin = map->buf;
    uint64_t size = (uint64_t)map->len;
    return begin == NULL || length > size || at > size - length ? NULL : begin + at;
}

static inline int map_read(const Py_buffer *map, void *into, uint64_t at, size_t length)
{
    const uint8_t *found = reach(map, at, length);
    if (found != NULL)
        memcpy(into, found, length);
    return found != NULL;
}

int is_verified(const Table *table, uint64_t at, uint64_t length);
int entry_read(const Table *table, uint64_t row, row_entry *entry);
/* In a table of `slots` hashes that begins there: see format/slots.py. */
outcome slot_find(const Py_buffer *map, uint64_t at, uint64_t slots, unsigned shift, uint64_t hash, uint64_t *slot);
outcome row_find(ByKey *self, Table *table, PyObject *key, uint32_t *row);
outcome record_at(Table *table, uint32_t row, PyObject *key, const key_bytes *raw, PyObject *owner, PyObject **found);
outcome record_find(ByKey *self, PyObject *key, PyObject **found);
PyObject *raise_absent(PyObject *key);
PyObject *careful_record(PyObject *self, PyObject *key);
PyObject *by_key_subscript(PyObject *self, PyObject *key);
PyObject *by_key_embedding(PyObject *self, PyObject *key, PyObject *field);

/* --- dirty.c */

outcome is_dirty(ByKey *self, uint64_t hash);
void filter_drop(dirty_filter *filter);
PyObject *by_key_dirty_get(PyObject *self, void *closure);
int by_key_dirty_set(PyObject *self, PyObject *value, void *closure);

/* --- record.c */

int fields_attach(Fields *self);

/* --- batches.c */

PyObject *by_key_get_many(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *keywords);
PyObject *by_key_rows(PyObject *self, PyObject *keys);
PyObject *table_keys(PyObject *self, PyObject *rows);
PyObject *table_records(PyObject *self, PyObject *const *args, Py_ssize_t count);

/* --- postings.c */

PyObject *core_select(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *core_rows(PyObject *module, PyObject *args);

/* --- module.c */

/* Made once in a process, and never unmade. */
extern struct core_state {
    PyTypeObject *table, *by_key, *fields, *first, *watched, *hits, *front, *index_type;
    /* What `bind` was given, see there. */
    PyObject *record, *collection, *dirty_error, *not_here, *unpackb, *check_keys, *between, *hash, *monotonic,
        *processor;
    /* Names of attributes and methods. */
    PyObject *carefully, *contains, *row, *embedding, *index, *nested, *inner, *readers, *catch_up, *sample, *instead,
        *embedding_instead, *vector;
} core;

extern PyType_Spec table_spec, by_key_spec, fields_spec, first_spec, watched_spec, hits_spec, front_spec, index_spec;

static inline int is_plain(PyObject *object) /* its look-ups are those of ByKey, which no subclass has changed */
{
    return (PyObject *)Py_TYPE(object) == core.collection;
}

/* The arguments of `method(first, second=None)`, by place or by name. Borrowed. */
int two_arguments(const char *method, const char *const names[2], PyObject *const *args, Py_ssize_t count,
                  PyObject *keywords, PyObject **first, PyObject **second);

#endif
