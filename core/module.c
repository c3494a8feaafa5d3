/* The module: its types, the classes of Python that they work with, and the two functions that tests compare. */

#include "core.h"

#include <stddef.h>

struct core_state core;

int two_arguments(const char *method, const char *const names[2], PyObject *const *args, Py_ssize_t count,
                  PyObject *keywords, PyObject **first, PyObject **second)
{
    PyObject *found[2] = {count > 0 ? args[0] : NULL, count > 1 ? args[1] : NULL};
    Py_ssize_t named = keywords == NULL ? 0 : PyTuple_Size(keywords);
    if (count > 2) {
        PyErr_Format(PyExc_TypeError, "%s() takes from 1 to 2 arguments, not %zd", method, count);
        return -1;
    }
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GetItem(keywords, i);
        int at = PyUnicode_CompareWithASCIIString(name, names[0]) == 0   ? 0
                 : PyUnicode_CompareWithASCIIString(name, names[1]) == 0 ? 1
                                                                         : -1;
        if (at < 0 || found[at] != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got %s argument '%U'", method,
                         at < 0 ? "an unexpected keyword" : "multiple values for", name);
            return -1;
        }
        found[at] = args[count + i];
    }
    if (found[0] == NULL) {
        PyErr_Format(PyExc_TypeError, "%s() misses the argument '%s'", method, names[0]);
        return -1;
    }
    *first = found[0];
    *second = found[1] == NULL ? Py_None : found[1];
    return 0;
}

/* --- what Python gives */

static const struct {
    const char *name;
    size_t place;
    PyTypeObject **base; /* of the class that it must be */
} bindings[] = {
    {"Record", offsetof(struct core_state, record), &core.fields},
    {"FileCollection", offsetof(struct core_state, collection), &core.by_key},
    {"DirtyError", offsetof(struct core_state, dirty_error), NULL},
    {"NOT_HERE", offsetof(struct core_state, not_here), NULL},
    {"check_keys", offsetof(struct core_state, check_keys), NULL},
    {"between", offsetof(struct core_state, between), NULL},
    {"hash", offsetof(struct core_state, hash), NULL},
    {"monotonic", offsetof(struct core_state, monotonic), NULL},
    {"processor", offsetof(struct core_state, processor), NULL},
};

static PyObject *core_bind(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    PyObject *object;
    if (!PyArg_ParseTuple(args, "sO", &name, &object))
        return NULL;
    for (size_t i = 0; i < sizeof bindings / sizeof *bindings; i++) {
        if (strcmp(name, bindings[i].name) != 0)
            continue;
        if (bindings[i].base != NULL &&
            (!PyType_Check(object) || !PyType_IsSubtype((PyTypeObject *)object, *bindings[i].base))) {
            PyErr_Format(PyExc_TypeError, "%s has another base", name);
            return NULL;
        }
        PyObject **place = (PyObject **)((char *)&core + bindings[i].place), *before = *place;
        *place = Py_NewRef(object);
        Py_XDECREF(before);
        return Py_NewRef(object);
    }
    PyErr_Format(PyExc_ValueError, "nothing is called %s here", name);
    return NULL;
}

/* --- what tests compare with msgpack and xxhash */

static PyObject *core_unpack(PyObject *Py_UNUSED(module), PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *copy = PyBytes_FromStringAndSize(view.buf, view.len), *found = NULL;
    PyBuffer_Release(&view);
    if (copy != NULL) {
        found = unpack_all((const uint8_t *)PyBytes_AsString(copy), (size_t)PyBytes_Size(copy));
        if (found == NULL && !PyErr_Occurred())
            found = PyObject_CallFunctionObjArgs(core.unpackb, copy, NULL);
        Py_DECREF(copy);
    }
    return found;
}

static PyObject *core_is_plain(PyObject *Py_UNUSED(module), PyObject *data)
{
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(data, &bytes, &size) < 0)
        return NULL;
    PyObject *found = unpack_all((const uint8_t *)bytes, (size_t)size);
    if (found == NULL && PyErr_Occurred())
        return NULL;
    Py_XDECREF(found);
    return PyBool_FromLong(found != NULL);
}

static PyObject *core_xxh3_64(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer view;
    unsigned long long seed = 0;
    if (!PyArg_ParseTuple(args, "y*|K", &view, &seed))
        return NULL;
    uint64_t hash = xxh3_64(view.buf, (size_t)view.len, seed);
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLongLong(hash);
}

static PyMethodDef core_methods[] = {
    {"bind", core_bind, METH_VARARGS, "bind(name, object, /)\n--\n\nGive the core a class or function of Python; returns it."},
    {"unpack", core_unpack, METH_O, "unpack(data, /)\n--\n\nmsgpack.unpackb(data), most of it without msgpack."},
    {"is_plain", core_is_plain, METH_O, "is_plain(data, /)\n--\n\nWhether `unpack` does without msgpack."},
    {"xxh3_64", core_xxh3_64, METH_VARARGS, "xxh3_64(data, seed=0, /)\n--\n\nxxhash.xxh3_64_intdigest."},
    {"loop", core_loop, METH_NOARGS, "loop()\n--\n\nOf which processors the loop is that ran last: 0 of any, 2 of the best."},
    {"nearby", core_nearby, METH_VARARGS,
     "nearby(signs, query, wanted, entries, (tile, begin, size, limit), /)\n--\n\n"
     "The rows that differ from a query in the fewest bits: see search/distances.py."},
    {"signs", core_signs, METH_VARARGS,
     "signs(matrix, dim, out, /)\n--\n\nThe bits of the rows of a matrix: see format/sketch.py."},
    {"products", core_products, METH_VARARGS,
     "products(matrix, query, out, /)\n--\n\nOf the rows of a matrix and a query, in float32."},
    {"sums", core_sums, METH_VARARGS,
     "sums(matrix, rows, query, out, squares, is_apart, /)\n--\n\nWhat scores are made of: see search/metrics.py."},
    {"select", (PyCFunction)(void (*)(void))core_select, METH_FASTCALL,
     "select(index, term, /, *more)\n--\n\nThe rows that carry all of these: (kind, size, first row, bytes); None: go the "
     "careful way."},
    {"rows", core_rows, METH_VARARGS, "rows(bitmap, n, /)\n--\n\nThe rows of a bitmap, uint32, as bytes."},
    {NULL, NULL, 0, NULL},
};

/* --- the module */

static const struct {
    PyTypeObject **type;
    PyType_Spec *spec;
} types[] = {
    {&core.table, &table_spec},     {&core.by_key, &by_key_spec}, {&core.fields, &fields_spec}, {&core.first, &first_spec},
    {&core.watched, &watched_spec}, {&core.hits, &hits_spec},     {&core.front, &front_spec},
    {&core.index_type, &index_spec},
};

static const struct {
    PyObject **name;
    const char *text;
} names[] = {
    {&core.carefully, "_carefully"},
    {&core.contains, "_contains_carefully"},
    {&core.row, "_row_carefully"},
    {&core.embedding, "_embedding_carefully"},
    {&core.index, "index"},
    {&core.nested, "nested"},
    {&core.inner, "inner"},
    {&core.readers, "readers"},
    {&core.catch_up, "catch_up"},
    {&core.sample, "sample"},
    {&core.instead, "_instead"},
    {&core.embedding_instead, "_embedding_instead"},
    {&core.vector, "vector"},
};

static int make_all(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "revision", REVISION) < 0)
        return -1;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (*names[i].name == NULL && (*names[i].name = PyUnicode_InternFromString(names[i].text)) == NULL)
            return -1;
    if (core.unpackb == NULL) {
        PyObject *msgpack = PyImport_ImportModule("msgpack");
        if (msgpack != NULL)
            core.unpackb = PyObject_GetAttrString(msgpack, "unpackb");
        Py_XDECREF(msgpack);
        if (core.unpackb == NULL)
            return -1;
    }
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (*types[i].type == NULL)
            *types[i].type = (PyTypeObject *)PyType_FromModuleAndSpec(module, types[i].spec, NULL);
        if (*types[i].type == NULL || PyModule_AddType(module, *types[i].type) < 0)
            return -1;
    }
    return 0;
}

static int core_exec(PyObject *module)
{
    const uint16_t one = 1;
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0)
        PyErr_SetString(PyExc_ImportError, "sub-interpreters run pure Python");
    else if (*(const uint8_t *)&one != 1)
        PyErr_SetString(PyExc_ImportError, "machines that are not little-endian run pure Python");
    return PyErr_Occurred() ? -1 : make_all(module);
}

static PyModuleDef_Slot core_slots[] = {{Py_mod_exec, core_exec}, {0, NULL}};

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT, .m_name = "mmcache._core", .m_doc = "The compiled core of mmcache's reads: see core/core.h.",
    .m_methods = core_methods, .m_slots = core_slots,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
