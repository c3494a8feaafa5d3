/* Many keys or rows at once. The cache lines that the next ones need are asked for while one is read. */

#include "core.h"

#define AHEAD 128 /* keys that are prepared together */
#define FAR 24    /* rows ahead of which the entry is asked for */
#define NEAR 12   /* and the record */

static inline void prefetch(const Table *table, uint64_t at, uint64_t length)
{
    const uint8_t *line = reach(&table->map, at, length);
    for (uint64_t i = 0; line != NULL && i < length && i < 1024; i += 64)
        __builtin_prefetch(line + i);
}

typedef struct {
    uint64_t hash;
    uint32_t row;
    int8_t found; /* an outcome */
} prepared;

/* Of so many keys: the hash, and the row that its slot has. A row is a guess until its record is compared. */
static int prepare(ByKey *self, Table *table, PyObject *keys, Py_ssize_t begin, Py_ssize_t count, prepared *each)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        key_bytes key;
        PyObject *object = PyList_GetItem(keys, begin + i);
        if (object == NULL)
            return -1;
        each[i].found = (int8_t)key_encode(&key, object);
        each[i].hash = key.hash;
        key_free(&key);
        if (each[i].found == FOUND)
            prefetch(table, table->hash_at + 8 * (each[i].hash >> table->shift), 8);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        uint64_t slot;
        if (each[i].found != FOUND)
            continue;
        outcome state = is_dirty(self, each[i].hash);
        if (state == DIRTY)
            PyErr_SetNone(core.dirty_error);
        if (state != ABSENT)
            return -1;
        each[i].found = (int8_t)slot_find(&table->map, table->hash_at, table->slots, table->shift, each[i].hash, &slot);
        if (each[i].found == FOUND && !map_read(&table->map, &each[i].row, table->row_at + 4 * slot, 4))
            each[i].found = UNUSUAL;
        if (each[i].found == FOUND)
            prefetch(table, table->rows_at + ROW_SIZE * (uint64_t)each[i].row, ROW_SIZE);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        row_entry entry;
        if (each[i].found == FOUND && entry_read(table, each[i].row, &entry))
            prefetch(table, entry.offset, entry.length);
    }
    return 0;
}

/* Between the keys of a long batch: a function of Python that does nothing, at whose begin the interpreter runs handlers of
 * signals, and other threads where one has waited for its interval. (A lock that is released and taken again in less than
 * that interval is never given to the one that waits.) -1 with an exception. Anything may have been closed meanwhile. */
static int let_others_run(void)
{
    PyObject *nothing = PyObject_CallNoArgs(core.between);
    Py_XDECREF(nothing);
    return nothing == NULL ? -1 : 0;
}

static PyObject *one_of_many(ByKey *self, Table *table, PyObject *key, const prepared *one)
{
    PyObject *record = NULL;
    outcome result = one->found;
    if (result == FOUND)
        result = record_at(table, one->row, key, NULL, (PyObject *)self, &record);
    if (result == ABSENT && table->ids_verified && !PyTuple_CheckExact(key))
        return Py_NewRef(Py_None);
    if (result == FOUND || result == FAILED)
        return record;
    record = careful_record((PyObject *)self, key);
    if (record == NULL && PyErr_ExceptionMatches(PyExc_KeyError)) {
        PyErr_Clear();
        return Py_NewRef(Py_None);
    }
    return record;
}

static int get_some(ByKey *self, Table *table, PyObject *keys, Py_ssize_t begin, Py_ssize_t count, PyObject *found,
                    int embeddings)
{
    prepared each[AHEAD];
    if (prepare(self, table, keys, begin, count, each) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *key = PyList_GetItem(keys, begin + i);
        if (key == NULL)
            return -1;
        Py_INCREF(key);
        PyObject *record = one_of_many(self, table, key, &each[i]);
        Py_DECREF(key);
        if (record == NULL || PyList_SetItem(found, begin + i, record) < 0)
            return -1;
        if (embeddings && (PyObject *)Py_TYPE(record) == core.record && fields_attach((Fields *)record) < 0)
            return -1;
    }
    return 0;
}

/* get_many(keys, *, embeddings=False) */
static int many_arguments(PyObject *const *args, Py_ssize_t count, PyObject *keywords, PyObject **keys, int *embeddings)
{
    Py_ssize_t named = keywords == NULL ? 0 : PyTuple_Size(keywords);
    *keys = count > 0 ? args[0] : NULL;
    *embeddings = 0;
    if (count > 1) {
        PyErr_Format(PyExc_TypeError, "get_many() takes 1 positional argument, not %zd", count);
        return -1;
    }
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GetItem(keywords, i);
        if (PyUnicode_CompareWithASCIIString(name, "embeddings") == 0)
            *embeddings = PyObject_IsTrue(args[count + i]);
        else if (*keys == NULL && PyUnicode_CompareWithASCIIString(name, "keys") == 0)
            *keys = args[count + i];
        else
            PyErr_Format(PyExc_TypeError, "get_many() got an unexpected keyword argument '%U'", name);
        if (*embeddings < 0 || PyErr_Occurred())
            return -1;
    }
    if (*keys == NULL)
        PyErr_SetString(PyExc_TypeError, "get_many() misses the argument 'keys'");
    return *keys == NULL ? -1 : 0;
}

PyObject *by_key_get_many(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    ByKey *self = (ByKey *)object;
    PyObject *keys;
    int embeddings;
    if (many_arguments(args, count, keywords, &keys, &embeddings) < 0)
        return NULL;
    if (PyUnicode_Check(keys) || PyBytes_Check(keys))
        return PyObject_CallFunctionObjArgs(core.check_keys, keys, NULL); /* raises TypeError */
    PyObject *wanted = PySequence_List(keys);
    Table *table = (Table *)Py_XNewRef((PyObject *)self->table);
    PyObject *found = wanted == NULL ? NULL : PyList_New(PyList_Size(wanted));
    if (found != NULL && table == NULL) {
        PyErr_SetString(PyExc_SystemError, "a collection without a table");
        Py_CLEAR(found);
    }
    if (found != NULL) {
        Py_ssize_t size = PyList_Size(wanted);
        for (Py_ssize_t begin = 0; begin < size; begin += AHEAD) {
            Py_ssize_t some = size - begin < AHEAD ? size - begin : AHEAD;
            if ((begin > 0 && let_others_run() < 0) || get_some(self, table, wanted, begin, some, found, embeddings) < 0) {
                Py_CLEAR(found);
                break;
            }
        }
    }
    Py_XDECREF((PyObject *)table);
    Py_XDECREF(wanted);
    return found;
}

/* uint32 rows of a list of keys, as bytes; None where one by one tells what is wrong. */
PyObject *by_key_rows(PyObject *object, PyObject *keys)
{
    ByKey *self = (ByKey *)object;
    if (!PyList_CheckExact(keys) || self->table == NULL)
        Py_RETURN_NONE;
    Py_ssize_t size = PyList_Size(keys);
    Table *table = (Table *)Py_NewRef((PyObject *)self->table);
    uint32_t *rows = PyMem_Calloc((size_t)size + 1, sizeof *rows);
    PyObject *answer = NULL;
    if (rows == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    outcome found = FOUND;
    for (Py_ssize_t begin = 0; begin < size && found == FOUND; begin += AHEAD) {
        Py_ssize_t count = size - begin < AHEAD ? size - begin : AHEAD;
        prepared each[AHEAD];
        if ((begin > 0 && let_others_run() < 0) || prepare(self, table, keys, begin, count, each) < 0)
            goto end;
        for (Py_ssize_t i = 0; i < count && found == FOUND; i++) {
            PyObject *key = Py_XNewRef(PyList_GetItem(keys, begin + i));
            found = key == NULL ? FAILED : row_find(self, table, key, &rows[begin + i]);
            Py_XDECREF(key);
        }
    }
    if (found == DIRTY)
        PyErr_SetNone(core.dirty_error);
    if (found == FOUND)
        answer = PyBytes_FromStringAndSize((const char *)rows, size * (Py_ssize_t)sizeof *rows);
    else if (found == ABSENT || found == UNUSUAL)
        answer = Py_NewRef(Py_None);
end:
    PyMem_Free(rows);
    Py_DECREF((PyObject *)table);
    return answer;
}

/* --- rows */

/* A copy of the rows, to be freed with PyMem_Free: they may be in memory that another thread writes. */
static uint32_t *rows_of(PyObject *given, Py_ssize_t *count)
{
    Py_buffer view;
    if (PyObject_GetBuffer(given, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    uint32_t *rows = PyMem_Malloc((size_t)view.len + 1);
    if (rows == NULL)
        PyErr_NoMemory();
    else
        memcpy(rows, view.buf, (size_t)view.len);
    *count = view.len / (Py_ssize_t)sizeof *rows;
    PyBuffer_Release(&view);
    return rows;
}

/* The key that these bytes are. NULL without an exception for what is not plainly one. */
static PyObject *key_decode(const uint8_t *raw, size_t length)
{
    if (length > 0 && (raw[0] & 0xE0) == 0xA0 && (size_t)(raw[0] & 31) == length - 1) { /* a short text: most keys are */
        PyObject *text = PyUnicode_DecodeUTF8((const char *)raw + 1, (Py_ssize_t)length - 1, NULL);
        if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
            PyErr_Clear();
        return text;
    }
    PyObject *key = unpack_all(raw, length);
    if (key == NULL || PyUnicode_CheckExact(key) || PyLong_CheckExact(key) || PyBytes_CheckExact(key))
        return key;
    PyObject *parts = NULL;
    if (PyList_CheckExact(key) && PyList_Size(key) >= 2 && PyList_Size(key) <= MAX_PARTS)
        parts = PyList_AsTuple(key);
    Py_DECREF(key);
    for (Py_ssize_t i = 0; parts != NULL && i < PyTuple_Size(parts); i++) {
        PyObject *part = PyTuple_GetItem(parts, i);
        if (!PyUnicode_CheckExact(part) && !PyLong_CheckExact(part) && !PyBytes_CheckExact(part))
            Py_CLEAR(parts);
    }
    return parts;
}

static PyObject *key_at(const Table *table, uint32_t row)
{
    row_entry entry;
    uint8_t raw[1024];
    if (!is_verified(table, table->rows_at + ROW_SIZE * (uint64_t)row, ROW_SIZE) || !entry_read(table, row, &entry))
        return NULL;
    uint64_t at = entry.offset + table->shapes[entry.shape].prefix;
    if (at < entry.offset || entry.key_length > sizeof raw || !is_verified(table, at, entry.key_length) ||
        !map_read(&table->map, raw, at, entry.key_length))
        return NULL;
    return key_decode(raw, entry.key_length);
}

static PyObject *record_of_row(Table *table, uint32_t row, PyObject *owner)
{
    PyObject *record = NULL;
    if (is_verified(table, table->rows_at + ROW_SIZE * (uint64_t)row, ROW_SIZE))
        record_at(table, row, NULL, NULL, owner, &record);
    return record;
}

/* What each row has, or None where one of them is not plainly right. */
static PyObject *of_rows(PyObject *self, PyObject *given, PyObject *owner)
{
    Table *table = (Table *)self;
    Py_ssize_t count;
    uint32_t *rows = rows_of(given, &count);
    PyObject *found = rows == NULL ? NULL : PyList_New(count);
    for (Py_ssize_t i = 0; found != NULL && i < count; i++) {
        if (i + FAR < count)
            prefetch(table, table->rows_at + ROW_SIZE * (uint64_t)rows[i + FAR], ROW_SIZE);
        row_entry next;
        if (i + NEAR < count && entry_read(table, rows[i + NEAR], &next))
            prefetch(table, next.offset, owner == NULL ? 64 : next.length);
        PyObject *item = owner == NULL ? key_at(table, rows[i]) : record_of_row(table, rows[i], owner);
        if (item == NULL || PyList_SetItem(found, i, item) < 0)
            Py_CLEAR(found);
    }
    PyMem_Free(rows);
    return found == NULL && !PyErr_Occurred() ? Py_NewRef(Py_None) : found;
}

PyObject *table_keys(PyObject *self, PyObject *rows)
{
    return of_rows(self, rows, NULL);
}

PyObject *table_records(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "records() takes rows and their owner");
        return NULL;
    }
    return of_rows(self, args[0], args[1]);
}
