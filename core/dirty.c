/* Whether a key's record was invalidated after its file was built.
 *
 * Most keys are not, so a set of bits says so first: one bit for each dirty hash, one of 16 or more set. What it cannot
 * exclude, the mapping tells. It is made at the first look, and used while the mapping has as many hashes as it had then:
 * a mapping of dirty hashes only grows (see `Said` in mmcache/sharing/events.py), so the same number means the same hashes.
 */

#include "core.h"

#define MOST_HASHES 16384 /* for more, the bits would take longer to make than they save */
#define BITS_PER_HASH 16

static void filter_make(dirty_filter *filter, PyObject *dirty)
{
    Py_ssize_t count = PyDict_Size(dirty), at = 0;
    PyObject *hash, *keys;
    filter->count = count;
    filter->made = 1;
    if (count > MOST_HASHES)
        return;
    uint64_t bits = 64;
    while (bits < (uint64_t)count * BITS_PER_HASH)
        bits *= 2;
    uint64_t *words = PyMem_Calloc(bits / 64, sizeof *words);
    if (words == NULL)
        return; /* the mapping tells, more slowly */
    while (PyDict_Next(dirty, &at, &hash, &keys)) {
        uint64_t bit = PyLong_AsUnsignedLongLongMask(hash) & (bits - 1);
        words[bit / 64] |= UINT64_C(1) << (bit % 64);
    }
    if (PyErr_Occurred()) { /* a hash that is no int: not ours to tell */
        PyErr_Clear();
        PyMem_Free(words);
        return;
    }
    filter->words = words;
    filter->mask = bits - 1;
}

outcome is_dirty(ByKey *self, uint64_t hash)
{
    PyObject *dirty = self->dirty;
    dirty_filter *filter = &self->filter;
    if (dirty == NULL)
        return ABSENT;
    if (!filter->made)
        filter_make(filter, dirty);
    uint64_t bit = hash & filter->mask;
    if (filter->words != NULL && filter->count == PyDict_Size(dirty) && !(filter->words[bit / 64] >> (bit % 64) & 1))
        return ABSENT;
    PyObject *number = PyLong_FromUnsignedLongLong(hash);
    if (number == NULL)
        return FAILED;
    int found = PyDict_Contains(dirty, number);
    Py_DECREF(number);
    return found < 0 ? FAILED : found ? DIRTY : ABSENT;
}

PyObject *by_key_dirty_get(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *dirty = ((ByKey *)self)->dirty;
    return Py_NewRef(dirty == NULL ? Py_None : dirty);
}

int by_key_dirty_set(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value != NULL && value != Py_None && !PyDict_CheckExact(value)) { /* any other one could run Python in a look-up */
        PyErr_SetString(PyExc_TypeError, "expected a dict");
        return -1;
    }
    PyObject *before = ((ByKey *)self)->dirty;
    filter_drop(&((ByKey *)self)->filter);
    ((ByKey *)self)->dirty = value == Py_None ? NULL : Py_XNewRef(value);
    Py_XDECREF(before);
    return 0;
}

void filter_drop(dirty_filter *filter)
{
    PyMem_Free(filter->words);
    memset(filter, 0, sizeof *filter);
}
