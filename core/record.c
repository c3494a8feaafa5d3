/* Fields: the base of Record, whose slots a look-up fills in one go; and First, the base of Snapshot. */

#include "core.h"

/* --- Fields */

/* The place of a field, and in `nested` whether its value is a part of a key, or a map without its names. */
static PyObject *fields_subscript(PyObject *object, PyObject *name)
{
    Fields *self = (Fields *)object;
    PyObject *answer = NULL, *place = NULL, *values = Py_XNewRef(self->values), *shape = Py_XNewRef(self->shape);
    PyObject *index = shape == NULL ? NULL : PyObject_GetAttr(shape, core.index), *nested = NULL;
    if (shape == NULL)
        PyErr_SetString(PyExc_AttributeError, "_shape");
    if (index != NULL)
        place = PyObject_GetItem(index, name);
    if (place != NULL)
        nested = PyObject_GetAttr(shape, core.nested);
    if (nested != NULL) {
        int is_nested = PyDict_CheckExact(nested) ? PyDict_Contains(nested, place) : PySequence_Contains(nested, place);
        if (is_nested > 0)
            answer = PyObject_CallMethodObjArgs(shape, core.inner, place, values == NULL ? Py_None : values, NULL);
        else if (is_nested == 0) {
            Py_ssize_t at = PyLong_AsSsize_t(place);
            if (values != NULL && PyList_CheckExact(values) && at >= 0)
                answer = Py_XNewRef(PyList_GetItem(values, at));
            else if (!PyErr_Occurred() && values != NULL)
                answer = PyObject_GetItem(values, place);
            else if (!PyErr_Occurred())
                PyErr_SetString(PyExc_AttributeError, "_values");
        }
    }
    Py_XDECREF(nested);
    Py_XDECREF(place);
    Py_XDECREF(index);
    Py_XDECREF(shape);
    Py_XDECREF(values);
    return answer;
}

/* A row of the matrix, where that is the answer, else what the owner says: see `Vectors.of`. */
static PyObject *fields_vector(Fields *self)
{
    if (self->vector != NULL)
        return Py_NewRef(self->vector);
    if (self->owner == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_owner");
        return NULL;
    }
    PyObject *owner = Py_NewRef(self->owner), *found = NULL;
    const Table *table = is_plain(owner) ? ((ByKey *)owner)->table : NULL;
    uint64_t row = self->row;
    if (table != NULL && table->matrix != NULL && row < table->n &&
        (table->ids_verified || is_verified(table, table->rows_at + ROW_SIZE * row, ROW_SIZE)) &&
        is_verified(table, table->matrix_at + table->matrix_stride * row, table->matrix_stride)) {
        PyObject *matrix = Py_NewRef(table->matrix);
        found = PySequence_GetItem(matrix, (Py_ssize_t)row);
        Py_DECREF(matrix);
    }
    else {
        PyObject *number = PyLong_FromUnsignedLongLong(row);
        if (number != NULL)
            found = PyObject_CallMethodObjArgs(owner, core.vector, number, NULL);
        Py_XDECREF(number);
    }
    Py_DECREF(owner);
    return found;
}

int fields_attach(Fields *self)
{
    PyObject *vector = fields_vector(self), *before = self->vector;
    if (vector == NULL)
        return -1;
    self->vector = vector;
    Py_XDECREF(before);
    return 0;
}

static PyObject *fields_embedding(PyObject *self, void *Py_UNUSED(closure))
{
    return fields_vector((Fields *)self);
}

static int fields_traverse(PyObject *object, visitproc visit, void *arg)
{
    Fields *self = (Fields *)object;
    Py_VISIT(self->vector);
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->shape);
    Py_VISIT(self->values);
    Py_VISIT(self->owner);
    return 0;
}

static int fields_clear(PyObject *object)
{
    Fields *self = (Fields *)object;
    Py_CLEAR(self->shape);
    Py_CLEAR(self->values);
    Py_CLEAR(self->owner);
    Py_CLEAR(self->vector);
    return 0;
}

static void fields_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    fields_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMemberDef fields_members[] = {
    {"_shape", T_OBJECT_EX, offsetof(Fields, shape), 0, NULL},
    {"_values", T_OBJECT_EX, offsetof(Fields, values), 0, NULL},
    {"_owner", T_OBJECT_EX, offsetof(Fields, owner), 0, NULL},
    {"_row", T_ULONGLONG, offsetof(Fields, row), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef fields_getset[] = {
    {"embedding", fields_embedding, NULL,
     "float32, (dim,), read-only: a view of the file (which stays mapped while it is referenced); None without. Of\n        "
     "several embeddings the first.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot fields_slots[] = {
    {Py_tp_doc, "The fields of one record."},
    {Py_mp_subscript, fields_subscript},
    {Py_tp_traverse, fields_traverse},
    {Py_tp_clear, fields_clear},
    {Py_tp_dealloc, fields_dealloc},
    {Py_tp_members, fields_members},
    {Py_tp_getset, fields_getset},
    {0, NULL},
};

PyType_Spec fields_spec = {
    "mmcache._core.Fields", sizeof(Fields), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, fields_slots,
};

/* --- First */

typedef struct {
    PyObject_HEAD
    PyObject *collection;
} First;

static PyObject *first_of(PyObject *self)
{
    PyObject *collection = ((First *)self)->collection;
    if (collection == NULL)
        PyErr_SetString(PyExc_AttributeError, "default");
    return Py_XNewRef(collection);
}

static PyObject *first_subscript(PyObject *self, PyObject *key)
{
    PyObject *collection = first_of(self);
    PyObject *found = NULL;
    if (collection != NULL)
        found = is_plain(collection) ? by_key_subscript(collection, key) : PyObject_GetItem(collection, key);
    Py_XDECREF(collection);
    return found;
}

static int first_contains(PyObject *self, PyObject *key)
{
    PyObject *collection = first_of(self);
    int is_there = collection == NULL ? -1 : PySequence_Contains(collection, key);
    Py_XDECREF(collection);
    return is_there;
}

static PyObject *first_get(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    static const char *const names[] = {"key", "default"};
    PyObject *key, *otherwise, *found = NULL, *collection;
    if (two_arguments("get", names, args, count, keywords, &key, &otherwise) < 0 || (collection = first_of(self)) == NULL)
        return NULL;
    outcome result = is_plain(collection) ? record_find((ByKey *)collection, key, &found) : UNUSUAL;
    if (result == ABSENT)
        found = Py_NewRef(otherwise);
    else if (result == DIRTY)
        PyErr_SetNone(core.dirty_error);
    else if (result == UNUSUAL) {
        found = PyObject_GetItem(collection, key);
        if (found == NULL && PyErr_ExceptionMatches(PyExc_KeyError)) {
            PyErr_Clear();
            found = Py_NewRef(otherwise);
        }
    }
    Py_DECREF(collection);
    return found;
}

static PyObject *first_embedding(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    static const char *const names[] = {"key", "field"};
    PyObject *key, *field, *found, *collection;
    if (two_arguments("embedding", names, args, count, keywords, &key, &field) < 0 || (collection = first_of(self)) == NULL)
        return NULL;
    if (is_plain(collection))
        found = by_key_embedding(collection, key, field);
    else {
        PyObject *method = PyObject_GetAttrString(collection, "embedding");
        found = method == NULL ? NULL : PyObject_CallFunctionObjArgs(method, key, field, NULL);
        Py_XDECREF(method);
    }
    Py_DECREF(collection);
    return found;
}

static int first_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((First *)self)->collection);
    return 0;
}

static int first_clear(PyObject *self)
{
    Py_CLEAR(((First *)self)->collection);
    return 0;
}

static void first_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    first_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMemberDef first_members[] = {
    {"default", T_OBJECT_EX, offsetof(First, collection), 0, "The first collection, which the snapshot itself is a mapping of."},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef first_methods[] = {
    {"get", (PyCFunction)(void (*)(void))first_get, METH_FASTCALL | METH_KEYWORDS,
     "get($self, key, default=None)\n--\n\nThe record, or a default where there is none."},
    {"embedding", (PyCFunction)(void (*)(void))first_embedding, METH_FASTCALL | METH_KEYWORDS,
     "embedding($self, key, field=None)\n--\n\nSee `Collection.embedding`."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot first_slots[] = {
    {Py_tp_doc, "A mapping of its first collection."},
    {Py_mp_subscript, first_subscript},
    {Py_sq_contains, first_contains},
    {Py_tp_traverse, first_traverse},
    {Py_tp_clear, first_clear},
    {Py_tp_dealloc, first_dealloc},
    {Py_tp_members, first_members},
    {Py_tp_methods, first_methods},
    {0, NULL},
};

PyType_Spec first_spec = {
    "mmcache._core.First", sizeof(First), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, first_slots,
};
