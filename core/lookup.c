/* One look-up: key -> key bytes -> hash -> slot -> row entry -> record, each step bounded and the result proved. */

#include "core.h"

#include <stdlib.h>

/* --- keys: format/keys.py */

static uint8_t *key_room(key_bytes *key, size_t more)
{
    if (key->length + more > sizeof key->room && key->bytes == key->room) {
        uint8_t *larger = malloc(MAX_KEY_BYTES);
        if (larger == NULL)
            return NULL;
        memcpy(larger, key->room, key->length);
        key->bytes = larger;
    }
    return key->length + more > MAX_KEY_BYTES ? NULL : key->bytes + key->length;
}

static int put(key_bytes *key, uint8_t first, uint64_t value, unsigned size)
{
    uint8_t *at = key_room(key, 1 + size);
    if (at == NULL)
        return 0;
    *at++ = first;
    for (unsigned i = size; i-- > 0;)
        *at++ = (uint8_t)(value >> 8 * i);
    key->length += 1 + size;
    return 1;
}

static int put_bytes(key_bytes *key, const char *data, size_t size)
{
    uint8_t *at = key_room(key, size);
    if (at == NULL)
        return 0;
    memcpy(at, data, size);
    key->length += size;
    return 1;
}

static int put_int(key_bytes *key, PyObject *object)
{
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    uint64_t bits = (uint64_t)value;
    if (overflow < 0)
        return 0;
    if (overflow > 0) {
        bits = PyLong_AsUnsignedLongLong(object);
        if (PyErr_Occurred()) {
            PyErr_Clear();
            return 0;
        }
    }
    else if (value < 0) {
        if (value >= -32)
            return put(key, (uint8_t)bits, 0, 0);
        return value >= INT8_MIN    ? put(key, 0xD0, bits, 1)
               : value >= INT16_MIN ? put(key, 0xD1, bits, 2)
               : value >= INT32_MIN ? put(key, 0xD2, bits, 4)
                                    : put(key, 0xD3, bits, 8);
    }
    if (bits < 0x80)
        return put(key, (uint8_t)bits, 0, 0);
    return bits <= UINT8_MAX    ? put(key, 0xCC, bits, 1)
           : bits <= UINT16_MAX ? put(key, 0xCD, bits, 2)
           : bits <= UINT32_MAX ? put(key, 0xCE, bits, 4)
                                : put(key, 0xCF, bits, 8);
}

static int put_part(key_bytes *key, PyObject *part)
{
    if (PyUnicode_CheckExact(part)) {
        Py_ssize_t size;
        const char *data = PyUnicode_AsUTF8AndSize(part, &size);
        if (data == NULL) {
            PyErr_Clear(); /* surrogates, or memory: the careful way says which */
            return 0;
        }
        int is_put = size < 32          ? put(key, (uint8_t)(0xA0 | size), 0, 0)
                     : size <= UINT8_MAX ? put(key, 0xD9, (uint64_t)size, 1)
                                         : put(key, 0xDA, (uint64_t)size, 2);
        key->header = key->length;
        return is_put && put_bytes(key, data, (size_t)size);
    }
    if (PyLong_CheckExact(part))
        return put_int(key, part);
    if (!PyBytes_CheckExact(part))
        return 0;
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(part, &data, &size) < 0) {
        PyErr_Clear();
        return 0;
    }
    int is_put = size <= UINT8_MAX ? put(key, 0xC4, (uint64_t)size, 1) : put(key, 0xC5, (uint64_t)size, 2);
    return is_put && put_bytes(key, data, (size_t)size);
}

/* The key's bytes and hash, to be freed in any case. UNUSUAL for what is not plainly a key of at most 65,535 bytes. */
outcome key_encode(key_bytes *key, PyObject *object)
{
    key->bytes = key->room;
    key->length = key->header = 0;
    key->hash = 0;
    if (PyTuple_CheckExact(object)) {
        Py_ssize_t parts = PyTuple_Size(object);
        if (parts < 2 || parts > MAX_PARTS || !put(key, (uint8_t)(0x90 | parts), 0, 0))
            return UNUSUAL;
        for (Py_ssize_t i = 0; i < parts; i++)
            if (!put_part(key, PyTuple_GetItem(object, i)))
                return UNUSUAL;
        key->header = 0;
    }
    else if (!put_part(key, object))
        return UNUSUAL;
    key->hash = hash_of(key->bytes + key->header, key->length - key->header);
    return FOUND;
}

void key_free(key_bytes *key)
{
    if (key->bytes != key->room)
        free(key->bytes);
}

/* --- the map */

int is_verified(const Table *table, uint64_t at, uint64_t length)
{
    const uint8_t *blocks = table->verified.buf;
    if (blocks == NULL)
        return 1;
    uint64_t last = (at + (length > 0 ? length - 1 : 0)) >> BLOCK_BITS;
    if (at + length < at || last >= (uint64_t)table->verified.len)
        return 0;
    for (uint64_t block = at >> BLOCK_BITS; block <= last; block++)
        if (!blocks[block])
            return 0;
    return 1;
}

int entry_read(const Table *table, uint64_t row, row_entry *entry)
{
    return row < table->n && map_read(&table->map, entry, table->rows_at + ROW_SIZE * row, ROW_SIZE) &&
           entry->shape < table->shape_count;
}

/* The first slot from the home on whose hash is not below. FOUND: it is this hash. ABSENT: it is a greater one. */
outcome slot_find(const Py_buffer *map, uint64_t at, uint64_t slots, unsigned shift, uint64_t hash, uint64_t *slot)
{
    uint64_t low = hash >> shift, high = slots, found = 0;
    for (uint64_t last = low + STEPS;; low++) {
        if (low >= slots || !map_read(map, &found, at + 8 * low, 8))
            return UNUSUAL;
        if (found >= hash || low == last)
            break;
    }
    if (found < hash) {
        for (low++; low < high;) {
            uint64_t middle = low + (high - low) / 2;
            if (!map_read(map, &found, at + 8 * middle, 8))
                return UNUSUAL;
            if (found < hash)
                low = middle + 1;
            else
                high = middle;
        }
        if (low >= slots || !map_read(map, &found, at + 8 * low, 8))
            return UNUSUAL;
    }
    *slot = low;
    return found == hash ? FOUND : found > hash ? ABSENT : UNUSUAL;
}

/* The key's hash and slot: what all look-ups begin with. */
static outcome begin(ByKey *self, Table *table, PyObject *object, key_bytes *key, uint64_t *slot)
{
    outcome found = key_encode(key, object);
    if (found != FOUND)
        return found;
    if ((found = is_dirty(self, key->hash)) != ABSENT)
        return found;
    found = slot_find(&table->map, table->hash_at, table->slots, table->shift, key->hash, slot);
    if (found != ABSENT)
        return found;
    if (!table->ids_verified)
        return UNUSUAL;
    int is_part = table->key_width > 1 && PyTuple_CheckExact(object) && PyTuple_Size(object) != table->key_width;
    return is_part ? UNUSUAL : ABSENT; /* the careful way says what is wrong with a part of a key */
}

/* The row of a slot, and how its key's bytes compare with those of a key: below 0, 0 or above. Returns 0 where they cannot
 * be read. */
static int row_compare(const Table *table, uint64_t slot, const key_bytes *key, uint32_t *row, int *order)
{
    row_entry entry;
    if (slot >= table->slots || !map_read(&table->map, row, table->row_at + 4 * slot, 4) || !entry_read(table, *row, &entry) ||
        entry.offset > UINT64_MAX - MAX_RECORD_BYTES)
        return 0;
    const uint8_t *there = reach(&table->map, entry.offset + table->shapes[entry.shape].prefix, entry.key_length);
    if (there == NULL)
        return 0;
    size_t both = entry.key_length < key->length ? entry.key_length : key->length;
    *order = memcmp(there, key->bytes, both);
    if (*order == 0)
        *order = (entry.key_length > key->length) - (entry.key_length < key->length);
    return 1;
}

/* The row of a key among several with its hash, the first of which is at `slot`: they lie in the order of their keys'
 * bytes. Some 2 * log2(slots) steps. FOUND, or UNUSUAL also where it is not there. */
static outcome row_among(const Table *table, const key_bytes *key, uint64_t slot, uint32_t *row)
{
    uint64_t low = slot, high = table->slots, found;
    int order = -1;
    while (low < high) { /* the end of the run; most have one slot, or some */
        uint64_t middle = low - slot < STEPS ? low : low + (high - low) / 2;
        if (!map_read(&table->map, &found, table->hash_at + 8 * middle, 8))
            return UNUSUAL;
        if (found <= key->hash)
            low = middle + 1;
        else
            high = middle;
    }
    for (low = slot; low < high;) {
        uint64_t middle = low + (high - low) / 2;
        if (!row_compare(table, middle, key, row, &order))
            return UNUSUAL;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return row_compare(table, low, key, row, &order) && order == 0 ? FOUND : UNUSUAL;
}

static outcome row_of(ByKey *self, Table *table, PyObject *object, key_bytes *key, uint32_t *row)
{
    uint64_t slot;
    int order;
    outcome found = begin(self, table, object, key, &slot);
    if (found != FOUND)
        return found;
    if (!row_compare(table, slot, key, row, &order) || (order != 0 && row_among(table, key, slot, row) != FOUND))
        return UNUSUAL;
    if (!table->ids_verified && !is_verified(table, table->rows_at + ROW_SIZE * (uint64_t)*row, ROW_SIZE))
        return UNUSUAL;
    return FOUND;
}

/* The row of a key, proved by the key's bytes. */
outcome row_find(ByKey *self, Table *table, PyObject *object, uint32_t *row)
{
    key_bytes key;
    if (table == NULL)
        return UNUSUAL;
    Py_INCREF((PyObject *)table);
    outcome found = row_of(self, table, object, &key, row);
    Py_DECREF((PyObject *)table);
    key_free(&key);
    return found;
}

/* --- records */

static PyObject *record_new(const shape_entry *shape, PyObject *values, PyObject *owner, uint32_t row)
{
    Fields *record = (Fields *)PyType_GenericAlloc((PyTypeObject *)core.record, 0);
    if (record == NULL)
        return NULL;
    record->shape = Py_NewRef(shape->object);
    record->values = Py_NewRef(values);
    record->owner = Py_NewRef(owner);
    record->row = row;
    return (PyObject *)record;
}

/* Whether the record that decodes to these values is that of a key. */
static int is_of(PyObject *values, PyObject *key)
{
    PyObject *first = PyList_GetItem(values, 0);
    if (first == NULL)
        return -1;
    Py_INCREF(first);
    PyObject *plain = PyList_CheckExact(first) ? PyList_AsTuple(first) : Py_NewRef(first);
    int is_equal = plain == NULL ? -1 : PyObject_RichCompareBool(first, key, Py_EQ);
    if (is_equal == 0)
        is_equal = PyObject_RichCompareBool(plain, key, Py_EQ);
    Py_XDECREF(plain);
    Py_DECREF(first);
    return is_equal;
}

static outcome decoded(const shape_entry *shape, const uint8_t *raw, size_t length, PyObject *key,
                       const key_bytes *packed, uint32_t row, PyObject *owner, PyObject **found)
{
    PyObject *values = unpack_all(raw, length);
    if (values == NULL)
        return PyErr_Occurred() ? FAILED : UNUSUAL;
    outcome result = UNUSUAL;
    if (PyList_CheckExact(values) && PyList_Size(values) == (Py_ssize_t)shape->count && shape->count > 0) {
        int is_proved = key == NULL || (packed != NULL && shape->prefix + packed->length <= length &&
                                        memcmp(raw + shape->prefix, packed->bytes, packed->length) == 0);
        if (!is_proved)
            is_proved = is_of(values, key);
        if (is_proved < 0)
            result = FAILED;
        else if (is_proved) {
            *found = record_new(shape, values, owner, row);
            result = *found == NULL ? FAILED : FOUND;
        }
    }
    Py_DECREF(values);
    return result;
}

/* The record of a row, from a copy of its bytes whose checksum is right. key: that it must have; NULL where any will do.
 * packed: the bytes of that key, or NULL. */
outcome record_at(Table *table, uint32_t row, PyObject *key, const key_bytes *packed, PyObject *owner, PyObject **found)
{
    row_entry entry;
    uint8_t room[4096], *raw = room;
    if (!entry_read(table, row, &entry) || entry.length > MAX_RECORD_BYTES)
        return UNUSUAL;
    if (entry.length > sizeof room && (raw = malloc(entry.length)) == NULL)
        return UNUSUAL;
    outcome result = UNUSUAL;
    if (map_read(&table->map, raw, entry.offset, entry.length) &&
        (hash_of(raw, entry.length) ^ entry.shape) == entry.checksum)
        result = decoded(&table->shapes[entry.shape], raw, entry.length, key, packed, row, owner, found);
    if (raw != room)
        free(raw);
    return result;
}

static outcome record_of(ByKey *self, Table *table, PyObject *object, key_bytes *key, PyObject **found)
{
    uint64_t slot;
    uint32_t row;
    outcome result = begin(self, table, object, key, &slot);
    if (result != FOUND)
        return result;
    if (!map_read(&table->map, &row, table->row_at + 4 * slot, 4))
        return UNUSUAL;
    result = record_at(table, row, object, key, (PyObject *)self, found);
    if (result == UNUSUAL) { /* damage, or the record of another key with this hash */
        uint32_t first = row;
        if (row_among(table, key, slot, &row) == FOUND && row != first)
            result = record_at(table, row, object, key, (PyObject *)self, found);
    }
    return result;
}

outcome record_find(ByKey *self, PyObject *object, PyObject **found)
{
    Table *table = self->table;
    if (table == NULL)
        return UNUSUAL;
    key_bytes key;
    Py_INCREF((PyObject *)table); /* making objects may run a finalizer, which may do anything */
    outcome result = record_of(self, table, object, &key, found);
    Py_DECREF((PyObject *)table);
    key_free(&key);
    return result;
}

PyObject *raise_absent(PyObject *key)
{
    PyObject *error = PyObject_CallFunctionObjArgs(PyExc_KeyError, key, NULL); /* a tuple would become its arguments */
    if (error != NULL) {
        PyErr_SetObject(PyExc_KeyError, error);
        Py_DECREF(error);
    }
    return NULL;
}

PyObject *careful_record(PyObject *self, PyObject *key)
{
    return PyObject_CallMethodObjArgs(self, core.carefully, key, NULL);
}

/* --- ByKey */

PyObject *by_key_subscript(PyObject *self, PyObject *key)
{
    PyObject *found = NULL;
    switch (record_find((ByKey *)self, key, &found)) {
    case FOUND:
        return found;
    case ABSENT:
        return raise_absent(key);
    case DIRTY:
        PyErr_SetNone(core.dirty_error);
        return NULL;
    case UNUSUAL:
        return careful_record(self, key);
    default:
        return NULL;
    }
}

static PyObject *by_key_get(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    static const char *const names[] = {"key", "default"};
    PyObject *key, *otherwise, *found = NULL;
    if (two_arguments("get", names, args, count, keywords, &key, &otherwise) < 0)
        return NULL;
    outcome result = is_plain(self) ? record_find((ByKey *)self, key, &found) : UNUSUAL;
    if (result == FOUND)
        return found;
    if (result == ABSENT)
        return Py_NewRef(otherwise);
    if (result == DIRTY)
        PyErr_SetNone(core.dirty_error);
    if (result != UNUSUAL)
        return NULL;
    found = is_plain(self) ? careful_record(self, key) : PyObject_GetItem(self, key);
    if (found != NULL || !PyErr_ExceptionMatches(PyExc_KeyError))
        return found;
    PyErr_Clear();
    return Py_NewRef(otherwise);
}

static int by_key_contains(PyObject *self, PyObject *key)
{
    Table *table = ((ByKey *)self)->table;
    uint32_t row;
    outcome found = row_find((ByKey *)self, table, key, &row);
    if (found == FOUND || found == ABSENT)
        return found == FOUND;
    if (found == DIRTY)
        PyErr_SetNone(core.dirty_error);
    if (found != UNUSUAL)
        return -1;
    PyObject *answer = PyObject_CallMethodObjArgs(self, core.contains, key, NULL);
    int is_there = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return is_there;
}

static PyObject *by_key_row(PyObject *self, PyObject *key)
{
    Table *table = ((ByKey *)self)->table;
    uint32_t row;
    outcome found = row_find((ByKey *)self, table, key, &row);
    if (found == FOUND)
        return PyLong_FromUnsignedLong(row);
    if (found == ABSENT)
        return raise_absent(key);
    if (found == DIRTY)
        PyErr_SetNone(core.dirty_error);
    return found == UNUSUAL ? PyObject_CallMethodObjArgs(self, core.row, key, NULL) : NULL;
}

/* A row of the matrix, where that is the answer: see Vectors in mmcache/storage/vectors.py. */
PyObject *by_key_embedding(PyObject *self, PyObject *key, PyObject *field)
{
    Table *table = ((ByKey *)self)->table;
    uint32_t row;
    if (field != Py_None || table == NULL || table->matrix == NULL)
        return PyObject_CallMethodObjArgs(self, core.embedding, key, field, NULL);
    switch (row_find((ByKey *)self, table, key, &row)) {
    case FOUND:
        if (table->matrix != NULL && is_verified(table, table->matrix_at + table->matrix_stride * row, table->matrix_stride)) {
            PyObject *matrix = Py_NewRef(table->matrix), *found = PySequence_GetItem(matrix, (Py_ssize_t)row);
            Py_DECREF(matrix);
            return found;
        }
        break;
    case ABSENT:
        return raise_absent(key);
    case DIRTY:
        PyErr_SetNone(core.dirty_error);
        return NULL;
    case FAILED:
        return NULL;
    default:
        break;
    }
    return PyObject_CallMethodObjArgs(self, core.embedding, key, field, NULL);
}

static PyObject *by_key_embedding_method(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    static const char *const names[] = {"key", "field"};
    PyObject *key, *field;
    if (two_arguments("embedding", names, args, count, keywords, &key, &field) < 0)
        return NULL;
    return by_key_embedding(self, key, field);
}

static int by_key_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)((ByKey *)self)->table);
    Py_VISIT(((ByKey *)self)->dirty);
    return 0;
}

static int by_key_clear(PyObject *self)
{
    Py_CLEAR(((ByKey *)self)->table);
    Py_CLEAR(((ByKey *)self)->dirty);
    filter_drop(&((ByKey *)self)->filter);
    return 0;
}

static void by_key_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    by_key_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *by_key_table_get(PyObject *self, void *Py_UNUSED(closure))
{
    Table *table = ((ByKey *)self)->table;
    return Py_NewRef(table == NULL ? Py_None : (PyObject *)table);
}

static int by_key_table_set(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value != NULL && value != Py_None && !Py_IS_TYPE(value, core.table)) {
        PyErr_SetString(PyExc_TypeError, "expected a Table");
        return -1;
    }
    Table *before = ((ByKey *)self)->table;
    ((ByKey *)self)->table = value == Py_None ? NULL : (Table *)Py_XNewRef(value);
    Py_XDECREF((PyObject *)before);
    return 0;
}

static PyGetSetDef by_key_getset[] = {
    {"_core", by_key_table_get, by_key_table_set, "The bytes that look-ups read.", NULL},
    {"_dirty", by_key_dirty_get, by_key_dirty_set, "Hash -> keys that only the source may answer; None for none.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef by_key_methods[] = {
    {"get", (PyCFunction)(void (*)(void))by_key_get, METH_FASTCALL | METH_KEYWORDS,
     "get($self, key, default=None)\n--\n\nThe record, or a default where there is none. Raises TypeError for what is no key."},
    {"get_many", (PyCFunction)(void (*)(void))by_key_get_many, METH_FASTCALL | METH_KEYWORDS,
     "get_many($self, keys, *, embeddings=False)\n--\n\nThe records of these keys, in their order, None where there is none. "
     "Cheaper than one by one.\n\nembeddings: read with the embedding of each, which `record.embedding` then has at hand."},
    {"row", by_key_row, METH_O,
     "row($self, key)\n--\n\nThe row of a key: its place in `embeddings` and every other array. Raises KeyError."},
    {"embedding", (PyCFunction)(void (*)(void))by_key_embedding_method, METH_FASTCALL | METH_KEYWORDS,
     "embedding($self, key, field=None)\n--\n\nfloat32, (dim,), a read-only view of the file; None for a record without one. "
     "Raises KeyError.\n\nfield: which, of several embeddings; by default the first. Raises ValueError for a field that is none."},
    {"_rows_quickly", by_key_rows, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot by_key_slots[] = {
    {Py_tp_doc, "The look-ups by key of a collection of a file."},
    {Py_mp_subscript, by_key_subscript},
    {Py_sq_contains, by_key_contains},
    {Py_tp_traverse, by_key_traverse},
    {Py_tp_clear, by_key_clear},
    {Py_tp_dealloc, by_key_dealloc},
    {Py_tp_getset, by_key_getset},
    {Py_tp_methods, by_key_methods},
    {0, NULL},
};

PyType_Spec by_key_spec = {
    "mmcache._core.ByKey", sizeof(ByKey), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, by_key_slots,
};
