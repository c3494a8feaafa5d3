/* msgpack -> Python, as msgpack.unpackb without options gives it, for what records hold.
 *
 * Works on private memory only. What msgpack refuses, and what it gives only with options (keys of a map that are neither
 * text nor bytes), is NULL without an exception: the caller asks msgpack, which gives the value or the error. Extension
 * types are msgpack's own objects, and are made by it. So a value from here is the one that msgpack gives, on every input.
 */

#include "core.h"

static inline size_t left(const cursor *in)
{
    return (size_t)(in->end - in->at);
}

/* An unsigned big-endian number of 1, 2, 4 or 8 bytes, whose presence was checked. */
static inline uint64_t number(cursor *in, unsigned size)
{
    uint64_t value = 0;
    while (size-- > 0)
        value = value << 8 | *in->at++;
    return value;
}

static inline int64_t extended(uint64_t value, unsigned size)
{
    unsigned unused = 64 - 8 * size;
    return (int64_t)(value << unused) >> unused;
}

/* Short texts that come again, as those of a kind, a status or a language do: each is one object, which is a sixth of the
 * work of making it. They are told by their bytes alone. */
#define KEPT 512
#define SHORT 16

static struct {
    uint64_t low, high; /* the bytes, and zeros */
    PyObject *text;
    uint32_t length, seen; /* seen: of the hash of the last one that was not kept here */
} kept[KEPT];

static PyObject *short_text(const uint8_t *at, uint32_t length)
{
    uint64_t low, high;
    memcpy(&low, at, 8);
    memcpy(&high, at + 8, 8);
    if (length <= 8) {
        high = 0;
        low &= UINT64_MAX >> (64 - 8 * length);
    }
    else
        high &= UINT64_MAX >> (128 - 8 * length);
    uint64_t hash = (low * 0x9E3779B185EBCA87u ^ high * 0xC2B2AE3D27D4EB4Fu ^ length) * 0x165667B19E3779F9u;
    uint32_t place = (uint32_t)(hash >> 32) % KEPT, tag = (uint32_t)(hash >> 41);
    if (kept[place].low == low && kept[place].high == high && kept[place].length == length)
        return Py_NewRef(kept[place].text);
    PyObject *found = PyUnicode_DecodeUTF8((const char *)at, (Py_ssize_t)length, NULL);
    if (found == NULL)
        return NULL;
    if (kept[place].seen != tag) /* kept at the second time: most texts, such as keys, come but once */
        kept[place].seen = tag;
    else {
        PyObject *before = kept[place].text;
        kept[place].low = low, kept[place].high = high, kept[place].length = length;
        kept[place].text = Py_NewRef(found);
        Py_XDECREF(before);
    }
    return found;
}

static PyObject *text(cursor *in, uint64_t size)
{
    if (size > left(in))
        return NULL;
    PyObject *found = 0 < size && size <= SHORT && left(in) >= SHORT
                          ? short_text(in->at, (uint32_t)size)
                          : PyUnicode_DecodeUTF8((const char *)in->at, (Py_ssize_t)size, NULL);
    if (found == NULL) {
        if (PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
            PyErr_Clear();
        return NULL;
    }
    in->at += size;
    return found;
}

static PyObject *bytes(cursor *in, uint64_t size)
{
    if (size > left(in))
        return NULL;
    PyObject *found = PyBytes_FromStringAndSize((const char *)in->at, (Py_ssize_t)size);
    in->at += size;
    return found;
}

static PyObject *array(cursor *in, uint64_t size, int depth)
{
    if (size > left(in) || depth >= MAX_DEPTH) /* each item has a byte at least: bounds the memory of a hostile count */
        return NULL;
    PyObject *found = PyList_New((Py_ssize_t)size);
    if (found == NULL)
        return NULL;
    for (uint64_t i = 0; i < size; i++) {
        PyObject *item = unpack_next(in, depth + 1);
        if (item == NULL || PyList_SetItem(found, (Py_ssize_t)i, item) < 0) {
            Py_DECREF(found);
            return NULL;
        }
    }
    return found;
}

static PyObject *map(cursor *in, uint64_t size, int depth)
{
    if (size > left(in) / 2 || depth >= MAX_DEPTH)
        return NULL;
    PyObject *found = PyDict_New();
    if (found == NULL)
        return NULL;
    for (uint64_t i = 0; i < size; i++) {
        PyObject *key = unpack_next(in, depth + 1);
        if (key != NULL && PyUnicode_CheckExact(key))
            PyUnicode_InternInPlace(&key);
        PyObject *value = NULL;
        if (key != NULL && (PyUnicode_CheckExact(key) || PyBytes_CheckExact(key)))
            value = unpack_next(in, depth + 1);
        int is_set = value != NULL && PyDict_SetItem(found, key, value) == 0;
        Py_XDECREF(key);
        Py_XDECREF(value);
        if (!is_set) {
            Py_DECREF(found);
            return NULL;
        }
    }
    return found;
}

/* An extension of so many bytes of data, from its first byte on. */
static PyObject *extension(cursor *in, const uint8_t *begin, uint64_t size)
{
    if (size >= left(in)) /* and its type */
        return NULL;
    in->at += size + 1;
    PyObject *raw = PyBytes_FromStringAndSize((const char *)begin, in->at - begin);
    if (raw == NULL)
        return NULL;
    PyObject *found = PyObject_CallFunctionObjArgs(core.unpackb, raw, NULL);
    Py_DECREF(raw);
    if (found == NULL && PyErr_ExceptionMatches(PyExc_Exception) && !PyErr_ExceptionMatches(PyExc_MemoryError))
        PyErr_Clear(); /* it is raised again by the careful way */
    return found;
}

static PyObject *sized(cursor *in, const uint8_t *begin, uint8_t first, int depth)
{
    /* Bytes of the number that follows the first byte, from 0xC4 on. */
    static const uint8_t sizes[] = {
        1, 2, 4, 1, 2, 4, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 0, 0, 0, 0, 0, 1, 2, 4, 2, 4, 2, 4,
    };
    unsigned size = sizes[first - 0xC4];
    if (size > left(in))
        return NULL;
    uint64_t value = number(in, size);
    switch (first) {
    case 0xC4: case 0xC5: case 0xC6:
        return bytes(in, value);
    case 0xC7: case 0xC8: case 0xC9:
        return extension(in, begin, value);
    case 0xCA: {
        uint32_t bits = (uint32_t)value;
        float found;
        memcpy(&found, &bits, 4);
        return PyFloat_FromDouble(found);
    }
    case 0xCB: {
        double found;
        memcpy(&found, &value, 8);
        return PyFloat_FromDouble(found);
    }
    case 0xCC: case 0xCD: case 0xCE: case 0xCF:
        return PyLong_FromUnsignedLongLong(value);
    case 0xD0: case 0xD1: case 0xD2: case 0xD3:
        return PyLong_FromLongLong(extended(value, size));
    case 0xD4: case 0xD5: case 0xD6: case 0xD7: case 0xD8:
        return extension(in, begin, (uint64_t)1 << (first - 0xD4));
    case 0xD9: case 0xDA: case 0xDB:
        return text(in, value);
    case 0xDC: case 0xDD:
        return array(in, value, depth);
    default:
        return map(in, value, depth);
    }
}

PyObject *unpack_next(cursor *in, int depth)
{
    if (in->at == in->end)
        return NULL;
    const uint8_t *begin = in->at;
    uint8_t first = *in->at++;
    if (first < 0x80)
        return PyLong_FromLong(first);
    if (first < 0x90)
        return map(in, first & 15, depth);
    if (first < 0xA0)
        return array(in, first & 15, depth);
    if (first < 0xC0)
        return text(in, first & 31);
    if (first >= 0xE0)
        return PyLong_FromLong((int8_t)first);
    if (first >= 0xC4)
        return sized(in, begin, first, depth);
    if (first == 0xC1)
        return NULL;
    PyObject *constant = first == 0xC0 ? Py_None : first == 0xC2 ? Py_False : Py_True;
    Py_INCREF(constant);
    return constant;
}

PyObject *unpack_all(const uint8_t *data, size_t length)
{
    cursor in = {data, data + length};
    PyObject *found = unpack_next(&in, 0);
    if (found != NULL && in.at != in.end) {
        Py_DECREF(found);
        return NULL;
    }
    return found;
}
