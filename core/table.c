/* Table: the bytes of one collection, borrowed from a buffer until `close`. */

#include "core.h"

#include <stdlib.h>

static void table_release(Table *self)
{
    if (self->map.buf != NULL) {
        self->map.buf = NULL;
        PyBuffer_Release(&self->map);
    }
    if (self->verified.obj != NULL)
        PyBuffer_Release(&self->verified);
    self->verified.buf = NULL;
    Py_CLEAR(self->matrix);
}

static int table_traverse(PyObject *object, visitproc visit, void *arg)
{
    Table *self = (Table *)object;
    Py_VISIT(Py_TYPE(object));
    /* Not the owners of the buffers: they lead to no cycle, and a memoryview that the collector has cleared while it is
     * exported crashes when it is released (CPython 3.11). */
    Py_VISIT(self->matrix);
    for (size_t i = 0; i < self->shape_count; i++)
        Py_VISIT(self->shapes[i].object);
    return 0;
}

static int table_clear(PyObject *object)
{
    table_release((Table *)object); /* the shapes stay until the end: a look-up may be under way */
    return 0;
}

static void table_dealloc(PyObject *object)
{
    Table *self = (Table *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    table_release(self);
    for (size_t i = 0; i < self->shape_count; i++)
        Py_XDECREF(self->shapes[i].object);
    PyMem_Free(self->shapes);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* shapes: (shape, count, prefix) of each. */
static int take_shapes(Table *self, PyObject *shapes)
{
    Py_ssize_t count = PyTuple_Size(shapes);
    if (count < 0)
        return -1;
    self->shapes = PyMem_Calloc((size_t)count + 1, sizeof *self->shapes);
    if (self->shapes == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        shape_entry *shape = &self->shapes[i];
        PyObject *given = PyTuple_GetItem(shapes, i), *object;
        if (given == NULL || !PyArg_ParseTuple(given, "OII", &object, &shape->count, &shape->prefix))
            return -1;
        shape->object = Py_NewRef(object);
        self->shape_count = (size_t)i + 1;
    }
    return 0;
}

static PyObject *table_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"buffer", "verified", "shapes",       "n",         "slots", "hash_at",
                            "row_at", "rows_at",  "shift", "ids_verified", "key_width", NULL};
    PyObject *buffer, *verified, *shapes;
    unsigned long long n, slots, hash_at, row_at, rows_at;
    unsigned int shift;
    int ids_verified;
    Py_ssize_t key_width;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO!KKKKKIpn", names, &buffer, &verified, &PyTuple_Type, &shapes, &n,
                                     &slots, &hash_at, &row_at, &rows_at, &shift, &ids_verified, &key_width))
        return NULL;
    /* Sums of these with places in the sections stay far below 2^64. */
    if (n > UINT32_MAX || slots > UINT32_MAX * 2ull || shift < 1 || shift > 63 || hash_at >> 62 || row_at >> 62 || rows_at >> 62) {
        PyErr_SetString(PyExc_ValueError, "not the numbers of a collection");
        return NULL;
    }
    Table *self = (Table *)PyType_GenericAlloc(type, 0); /* all zero */
    if (self == NULL)
        return NULL;
    self->n = n, self->slots = slots, self->hash_at = hash_at, self->row_at = row_at, self->rows_at = rows_at;
    self->shift = shift, self->ids_verified = ids_verified, self->key_width = key_width;
    if (take_shapes(self, shapes) < 0 || PyObject_GetBuffer(buffer, &self->map, PyBUF_SIMPLE) < 0 ||
        (verified != Py_None && PyObject_GetBuffer(verified, &self->verified, PyBUF_SIMPLE) < 0)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *table_close(PyObject *self, PyObject *Py_UNUSED(none))
{
    table_release((Table *)self);
    Py_RETURN_NONE;
}

static PyObject *table_show(PyObject *object, PyObject *args)
{
    Table *self = (Table *)object;
    PyObject *matrix;
    unsigned long long at, stride;
    if (!PyArg_ParseTuple(args, "OKK", &matrix, &at, &stride))
        return NULL;
    if (at >> 62 || stride >> 31) {
        PyErr_SetString(PyExc_ValueError, "not the numbers of a matrix");
        return NULL;
    }
    PyObject *before = self->matrix;
    self->matrix_at = at, self->matrix_stride = stride;
    self->matrix = self->map.buf == NULL ? NULL : Py_NewRef(matrix);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyMethodDef table_methods[] = {
    {"close", table_close, METH_NOARGS, "Let go of the bytes: every look-up goes the careful way from here on."},
    {"show", table_show, METH_VARARGS,
     "show($self, matrix, at, stride)\n--\n\nThe embeddings, of which `embedding` gives the rows, and where they lie."},
    {"keys", table_keys, METH_O, "keys($self, rows)\n--\n\nThe keys of uint32 rows, or None: go the careful way."},
    {"records", (PyCFunction)(void (*)(void))table_records, METH_FASTCALL,
     "records($self, rows, owner)\n--\n\nThe records of uint32 rows, or None: go the careful way."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot table_slots[] = {
    {Py_tp_doc, "The bytes of one collection, as look-ups read them."},
    {Py_tp_new, table_new},
    {Py_tp_traverse, table_traverse},
    {Py_tp_clear, table_clear},
    {Py_tp_dealloc, table_dealloc},
    {Py_tp_methods, table_methods},
    {0, NULL},
};

PyType_Spec table_spec = {
    "mmcache._core.Table", sizeof(Table), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, table_slots,
};
