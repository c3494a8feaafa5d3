/* Which of the loops that are compiled for several kinds of processors runs. */

#include "core.h"

static int last = -1;

int loop_for(int has_most, int has_some)
{
    long most = 2;
    if (core.processor != NULL && core.processor != Py_None) {
        most = PyLong_AsLong(core.processor);
        PyErr_Clear();
    }
    last = has_most && most > 1 ? 2 : has_some && most > 0 ? 1 : 0;
    return last;
}

PyObject *core_loop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(last);
}
