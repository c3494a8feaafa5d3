/* Index: from terms of one field to the rows that carry them, and the rows that carry a term of each of several fields.
 *
 * The twin of what format/postings.py and format/select.py do for plain terms, one a field. A section is verified as a whole
 * before it is given to an Index; its bytes may be hostile all the same. */

#include "core.h"

#include <stdlib.h>

#define MAX_FIELDS 16
#define REMEMBERED (1u << 22)   /* terms of which is remembered that their list ascends, a byte each */
enum { LIST, BITMAP, RANGE };   /* format/postings.py */

typedef struct {
    PyObject_HEAD
    Py_buffer section;
    uint64_t n, slots, terms, terms_size, rows_size;
    uint64_t hash_at, term_at, entries_at, terms_at, rows_at; /* from the begin of the section */
    unsigned shift;
    uint8_t *ascending; /* by ordinal of a term: its list does, and stays below n; NULL for too many terms */
} Index;

/* As it stands in the section. */
typedef struct {
    uint64_t term_at, rows_at;
    uint32_t count, term_length, kind, zero;
} entry_of;

/* data: in the section, until the next call into Python; of a RANGE NULL. */
typedef struct {
    uint32_t kind, count;
    uint64_t first;
    const uint8_t *data;
} posting;

static inline uint64_t bitmap_size(uint64_t n)
{
    return (n + 63) / 64 * 8;
}

static inline uint64_t word_at(const uint8_t *bitmap, uint64_t i)
{
    uint64_t word;
    memcpy(&word, bitmap + 8 * i, 8);
    return word;
}

static inline uint32_t row_at(const uint8_t *list, uint64_t i)
{
    uint32_t row;
    memcpy(&row, list + 4 * i, 4);
    return row;
}

/* --- a term */

/* One msgpack object in its shortest form: a text, a number or null in canonical form, as query.py has it. */
static outcome term_encode(key_bytes *key, PyObject *term)
{
    if (term == Py_None || PyFloat_CheckExact(term)) {
        double number = term == Py_None ? 0 : PyFloat_AsDouble(term);
        uint64_t bits;
        memcpy(&bits, &number, 8);
        key->bytes = key->room;
        key->length = 0;
        key->room[key->length++] = term == Py_None ? 0xC0 : 0xCB;
        for (int i = term == Py_None ? 0 : 8; i-- > 0;)
            key->room[key->length++] = (uint8_t)(bits >> 8 * i);
    }
    else if (!PyUnicode_CheckExact(term) && !PyLong_CheckExact(term)) {
        key->bytes = key->room;
        return UNUSUAL;
    }
    else if (key_encode(key, term) != FOUND)
        return UNUSUAL;
    key->hash = hash_of(key->bytes, key->length);
    return FOUND;
}

static outcome entry_find(const Index *self, const key_bytes *term, uint32_t *ordinal, entry_of *entry)
{
    uint64_t slot;
    outcome found = slot_find(&self->section, self->hash_at, self->slots, self->shift, term->hash, &slot);
    if (found != FOUND)
        return found;
    if (!map_read(&self->section, ordinal, self->term_at + 4 * slot, 4) || *ordinal >= self->terms ||
        !map_read(&self->section, entry, self->entries_at + sizeof *entry * *ordinal, sizeof *entry))
        return UNUSUAL;
    if (entry->term_length != term->length || entry->term_at > self->terms_size ||
        entry->term_length > self->terms_size - entry->term_at)
        return UNUSUAL; /* another term with this hash, or damage */
    const uint8_t *there = reach(&self->section, self->terms_at + entry->term_at, entry->term_length);
    return there != NULL && memcmp(there, term->bytes, term->length) == 0 ? FOUND : UNUSUAL;
}

/* --- its rows */

static int ascends(const uint8_t *list, uint32_t count, uint64_t n)
{
    uint32_t wrong = 0, before = row_at(list, 0);
    for (uint32_t i = 1; i < count; i++) {
        uint32_t row = row_at(list, i);
        wrong |= row <= before;
        before = row;
    }
    return !wrong && before < n;
}

static uint64_t bits_in(const uint8_t *bitmap, uint64_t words)
{
    uint64_t bits = 0;
    for (uint64_t i = 0; i < words; i++)
        bits += (uint64_t)__builtin_popcountll(word_at(bitmap, i));
    return bits;
}

/* The posting list of an entry, each number checked against what it is used for. */
static outcome posting_of(Index *self, uint32_t ordinal, const entry_of *entry, posting *found)
{
    *found = (posting){entry->kind, entry->count, 0, NULL};
    if (entry->count < 1 || entry->count > self->n)
        return UNUSUAL;
    if (entry->kind == RANGE) {
        found->first = entry->rows_at;
        return entry->rows_at <= self->n - entry->count ? FOUND : UNUSUAL;
    }
    uint64_t size = entry->kind == LIST ? 4 * (uint64_t)entry->count : bitmap_size(self->n);
    if (entry->kind > RANGE || size > self->rows_size || entry->rows_at > self->rows_size - size || entry->rows_at % 4)
        return UNUSUAL;
    found->data = reach(&self->section, self->rows_at + entry->rows_at, size);
    if (found->data == NULL)
        return UNUSUAL;
    if (self->ascending != NULL && self->ascending[ordinal])
        return FOUND;
    if (entry->kind == LIST ? !ascends(found->data, entry->count, self->n) : bits_in(found->data, size / 8) != entry->count)
        return UNUSUAL;
    if (self->ascending != NULL)
        self->ascending[ordinal] = 1;
    return FOUND;
}

static outcome posting_find(Index *self, PyObject *object, posting *found)
{
    key_bytes term;
    entry_of entry;
    uint32_t ordinal;
    outcome result = term_encode(&term, object);
    if (result == FOUND)
        result = entry_find(self, &term, &ordinal, &entry);
    key_free(&term);
    return result == FOUND ? posting_of(self, ordinal, &entry, found) : result;
}

/* The rows of a bitmap in private memory, those below n; as many as it has bits at most. */
static uint32_t unpacked(const uint8_t *bitmap, uint64_t n, uint32_t *rows)
{
    uint32_t count = 0;
    for (uint64_t i = 0; i < bitmap_size(n) / 8; i++)
        for (uint64_t word = word_at(bitmap, i); word != 0; word &= word - 1) {
            uint64_t row = 64 * i + (uint64_t)__builtin_ctzll(word);
            if (row < n)
                rows[count++] = (uint32_t)row;
        }
    return count;
}

/* Of ascending rows those that a list has too: the place is searched for from the one before, with growing steps. */
static uint32_t kept_by_list(uint32_t *rows, uint32_t count, const posting *list)
{
    uint32_t kept = 0, at = 0;
    for (uint32_t i = 0; i < count && at < list->count; i++) {
        uint32_t step = 1, end;
        while (at + (uint64_t)step < list->count && row_at(list->data, at + step) < rows[i]) {
            at += step;
            step *= 2;
        }
        end = at + (uint64_t)step < list->count ? at + step : list->count - 1;
        while (at < end && row_at(list->data, at) < rows[i]) {
            uint32_t middle = at + (end - at) / 2;
            if (row_at(list->data, middle) < rows[i])
                at = middle + 1;
            else
                end = middle;
        }
        if (row_at(list->data, at) == rows[i])
            rows[kept++] = rows[i];
    }
    return kept;
}

/* Of ascending rows below n those that carry a term too. */
static uint32_t kept_by(uint32_t *rows, uint32_t count, const posting *other)
{
    uint32_t kept = 0;
    if (other->kind == LIST)
        return kept_by_list(rows, count, other);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t row = rows[i];
        rows[kept] = row;
        kept += other->kind == RANGE ? row >= other->first && row - other->first < other->count
                                     : other->data[row >> 3] >> (row & 7) & 1;
    }
    return kept;
}

/* The rows of the rarest, ANDed with the other bitmaps where it is one; in memory to be freed. NULL: no memory. */
static uint32_t *begun(const posting *found, Py_ssize_t fields, uint64_t n, uint32_t *count)
{
    const posting *rarest = found;
    uint32_t *rows = malloc(4 * (size_t)rarest->count);
    if (rows == NULL)
        return NULL;
    *count = rarest->count;
    if (rarest->kind == RANGE)
        for (uint32_t i = 0; i < *count; i++)
            rows[i] = (uint32_t)rarest->first + i;
    else if (rarest->kind == LIST)
        memcpy(rows, rarest->data, 4 * (size_t)*count);
    else {
        uint64_t words = bitmap_size(n) / 8;
        uint64_t *both = malloc(8 * words);
        if (both != NULL) {
            memcpy(both, rarest->data, 8 * words);
            for (Py_ssize_t i = 1; i < fields; i++)
                for (uint64_t word = 0; found[i].kind == BITMAP && word < words; word++)
                    both[word] &= word_at(found[i].data, word);
            *count = bits_in((const uint8_t *)both, words) <= rarest->count ? unpacked((const uint8_t *)both, n, rows) : 0;
            free(both);
            return rows;
        }
        free(rows);
        return NULL;
    }
    for (uint32_t i = 0; i < *count; i++) /* they were checked where they lie, and may be others now */
        if (rows[i] >= n)
            *count = i;
    return rows;
}

/* (kind, size, first row, bytes of the rows), or None: go the careful way. */
static PyObject *told(uint32_t kind, uint32_t size, uint64_t first, const void *data, uint64_t length)
{
    PyObject *bytes = data == NULL ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(data, (Py_ssize_t)length);
    return bytes == NULL ? NULL : Py_BuildValue("IIKN", kind, size, (unsigned long long)first, bytes);
}

static PyObject *intersected(posting *found, Py_ssize_t fields, uint64_t n)
{
    for (Py_ssize_t i = 1; i < fields; i++) /* the rarest first */
        for (Py_ssize_t j = i; j > 0 && found[j].count < found[j - 1].count; j--) {
            posting other = found[j];
            found[j] = found[j - 1];
            found[j - 1] = other;
        }
    uint32_t count;
    uint32_t *rows = begun(found, fields, n, &count);
    if (rows == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 1; i < fields && count > 0; i++)
        if (found[i].kind != BITMAP || found[0].kind != BITMAP) /* the others were ANDed */
            count = kept_by(rows, count, &found[i]);
    PyObject *answer = told(LIST, count, 0, rows, 4 * (uint64_t)count);
    free(rows);
    return answer;
}

/* select(index, term, index, term, ...): the rows that carry all of these. */
PyObject *core_select(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    posting found[MAX_FIELDS];
    Py_ssize_t fields = count / 2;
    if (count % 2 != 0 || fields < 1)
        return PyErr_Format(PyExc_TypeError, "select() takes an index and a term of it, or several such pairs");
    if (fields > MAX_FIELDS)
        Py_RETURN_NONE;
    uint64_t n = 0;
    for (Py_ssize_t i = 0; i < fields; i++) {
        if (!Py_IS_TYPE(args[2 * i], core.index_type))
            return PyErr_Format(PyExc_TypeError, "select() takes an index and a term of it, or several such pairs");
        Index *index = (Index *)args[2 * i];
        if (i > 0 && index->n != n)
            return PyErr_Format(PyExc_ValueError, "the indexes are of several collections");
        n = index->n;
        outcome result = posting_find(index, args[2 * i + 1], &found[i]);
        if (result == ABSENT)
            return told(LIST, 0, 0, "", 0);
        if (result != FOUND)
            Py_RETURN_NONE;
    }
    if (fields > 1)
        return intersected(found, fields, n);
    return told(found->kind, found->count, found->first, found->data,
                found->kind == LIST ? 4 * (uint64_t)found->count : bitmap_size(n));
}

/* rows(bitmap, n): u32 of those below n. */
PyObject *core_rows(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer view;
    unsigned long long n;
    if (!PyArg_ParseTuple(args, "y*K", &view, &n))
        return NULL;
    PyObject *answer = NULL;
    uint64_t size = bitmap_size(n);
    if (n > UINT32_MAX || (uint64_t)view.len != size)
        PyErr_SetString(PyExc_ValueError, "not the bitmap of so many rows");
    else {
        uint8_t *bitmap = malloc(size + 1);
        uint64_t bits = 0;
        if (bitmap != NULL) {
            memcpy(bitmap, view.buf, size);
            bits = bits_in(bitmap, size / 8);
        }
        uint32_t *rows = bitmap == NULL ? NULL : malloc(4 * bits + 1);
        if (rows == NULL)
            PyErr_NoMemory();
        else
            answer = PyBytes_FromStringAndSize((const char *)rows, 4 * (Py_ssize_t)unpacked(bitmap, n, rows));
        free(rows);
        free(bitmap);
    }
    PyBuffer_Release(&view);
    return answer;
}

/* --- Index */

static PyObject *index_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"section", "n", "slots", "bits", "terms", "terms_size", "rows_size", "places", NULL};
    PyObject *section;
    unsigned long long n, slots, terms, terms_size, rows_size, hash_at, term_at, entries_at, terms_at, rows_at;
    unsigned int bits;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OKKIKKK(KKKKK)", names, &section, &n, &slots, &bits, &terms,
                                     &terms_size, &rows_size, &hash_at, &term_at, &entries_at, &terms_at, &rows_at))
        return NULL;
    /* Sums of these with places in the arrays stay far below 2^64. */
    if (n > UINT32_MAX || slots > UINT32_MAX * 2ull || terms > UINT32_MAX || bits < 1 || bits > 63 ||
        (terms_size | rows_size | hash_at | term_at | entries_at | terms_at | rows_at) >> 62) {
        PyErr_SetString(PyExc_ValueError, "not the numbers of an index");
        return NULL;
    }
    Index *self = (Index *)PyType_GenericAlloc(type, 0); /* all zero */
    if (self == NULL)
        return NULL;
    self->n = n, self->slots = slots, self->shift = 64 - bits, self->terms = terms;
    self->terms_size = terms_size, self->rows_size = rows_size;
    self->hash_at = hash_at, self->term_at = term_at, self->entries_at = entries_at;
    self->terms_at = terms_at, self->rows_at = rows_at;
    if (terms <= REMEMBERED)
        self->ascending = PyMem_Calloc((size_t)terms + 1, 1);
    if (PyObject_GetBuffer(section, &self->section, PyBUF_SIMPLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int index_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self)); /* not the owner of the buffer: see table_traverse */
    return 0;
}

static void index_dealloc(PyObject *object)
{
    Index *self = (Index *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->section.obj != NULL)
        PyBuffer_Release(&self->section);
    PyMem_Free(self->ascending);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

static PyType_Slot index_slots[] = {
    {Py_tp_doc, "One index of a file, as look-ups of plain terms read it."},
    {Py_tp_new, index_new},
    {Py_tp_traverse, index_traverse},
    {Py_tp_dealloc, index_dealloc},
    {0, NULL},
};

PyType_Spec index_spec = {
    "mmcache._core.Index", sizeof(Index), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, index_slots,
};
