/* A get of a cache: is anything new, what does the file have, and which hit was it.
 *
 * Watched, Hits and Front are the bases of Watch, Counting and CachedCollection: what those share with a hit.
 */

#include "core.h"

#include <math.h>
#include <time.h>

typedef struct {
    PyObject_HEAD
    PyObject *view, *readers, *reader; /* the view's readers, and that of the default collection, or NULL */
    PyObject *word;
    Py_buffer mapped; /* the word's eight bytes */
    PyObject *seen;   /* an int, or None */
    uint64_t seen_word;
    int has_seen;
    double due;
} Watched;

typedef struct {
    PyObject_HEAD
    uint64_t count, mask;
} Hits;

typedef struct {
    PyObject_HEAD
    PyObject *watch, *hits, *name, *model;
} Front;

/* --- time */

/* In tests, which move the clock, what is bound as "monotonic" gives it. */
static double seconds(clockid_t clock)
{
    struct timespec now;
    if (core.monotonic != NULL && core.monotonic != Py_None) {
        PyObject *given = PyObject_CallFunctionObjArgs(core.monotonic, NULL);
        double found = given == NULL ? INFINITY : PyFloat_AsDouble(given);
        PyErr_Clear();
        Py_XDECREF(given);
        return found;
    }
    return clock_gettime(clock, &now) == 0 ? (double)now.tv_sec + 1e-9 * (double)now.tv_nsec : INFINITY;
}

#if defined(__APPLE__)
#define MONOTONIC CLOCK_UPTIME_RAW /* as time.monotonic() */
#else
#define MONOTONIC CLOCK_MONOTONIC
#endif
#if defined(CLOCK_MONOTONIC_COARSE)
#define ROUGHLY CLOCK_MONOTONIC_COARSE /* behind by a tick at most, at a fifth of the time */
#else
#define ROUGHLY MONOTONIC
#endif

#define TICK 0.02 /* seconds; more than any kernel's */

static int is_due(double due)
{
    double roughly = seconds(ROUGHLY);
    return roughly >= due || (roughly + TICK >= due && seconds(MONOTONIC) >= due);
}

/* --- Watched */

/* Of a word that is not mapped, whose code is Python's. -1 with an exception, such as one of a handler of signals. */
static int is_other_word(const Watched *self)
{
    PyObject *word = Py_NewRef(self->word), *seen = Py_NewRef(self->seen), *zero = PyLong_FromLong(0), *now = NULL;
    if (zero != NULL)
        now = PyObject_GetItem(word, zero);
    int is_other = now == NULL ? -1 : PyObject_RichCompareBool(now, seen, Py_NE);
    Py_XDECREF(now);
    Py_XDECREF(zero);
    Py_DECREF(seen);
    Py_DECREF(word);
    return is_other;
}

/* -1 with an exception. */
static int is_news(const Watched *self)
{
    uint64_t now;
    if (!self->has_seen)
        return 1;
    if (self->mapped.buf == NULL)
        return self->word == NULL ? 1 : is_other_word(self);
    memcpy(&now, self->mapped.buf, 8); /* one aligned load */
    return now != self->seen_word;
}

static PyObject *watched_get_word(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *word = ((Watched *)self)->word;
    return Py_NewRef(word == NULL ? Py_None : word);
}

static int watched_set_word(PyObject *object, PyObject *word, void *Py_UNUSED(closure))
{
    Watched *self = (Watched *)object;
    Py_buffer mapped = {0}, before = self->mapped;
    if (word == NULL) {
        PyErr_SetString(PyExc_AttributeError, "word");
        return -1;
    }
    /* Case: a page that cannot be mapped, whose word is computed when it is asked for. */
    int is_mapped = PyObject_CheckBuffer(word);
    if (is_mapped && PyObject_GetBuffer(word, &mapped, PyBUF_SIMPLE) < 0)
        return -1;
    if (is_mapped && mapped.len < 8) {
        PyErr_SetString(PyExc_ValueError, "a word has eight bytes");
        PyBuffer_Release(&mapped);
        return -1;
    }
    PyObject *old = self->word;
    self->mapped = mapped;
    self->word = Py_NewRef(word);
    Py_XDECREF(old);
    if (before.obj != NULL)
        PyBuffer_Release(&before);
    return 0;
}

static PyObject *watched_get_seen(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *seen = ((Watched *)self)->seen;
    return Py_NewRef(seen == NULL ? Py_None : seen);
}

static int watched_set_seen(PyObject *object, PyObject *seen, void *Py_UNUSED(closure))
{
    Watched *self = (Watched *)object;
    uint64_t word = 0;
    if (seen != NULL && seen != Py_None) {
        word = PyLong_AsUnsignedLongLongMask(seen); /* one that is not mapped may be negative */
        if (PyErr_Occurred())
            return -1;
    }
    PyObject *before = self->seen;
    self->seen = Py_XNewRef(seen);
    self->seen_word = word;
    self->has_seen = seen != NULL && seen != Py_None;
    Py_XDECREF(before);
    return 0;
}

static PyObject *watched_get_view(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *view = ((Watched *)self)->view;
    return Py_NewRef(view == NULL ? Py_None : view);
}

static int watched_set_view(PyObject *object, PyObject *view, void *Py_UNUSED(closure))
{
    Watched *self = (Watched *)object;
    PyObject *readers = view == NULL ? NULL : PyObject_GetAttr(view, core.readers);
    if (view == NULL)
        PyErr_SetString(PyExc_AttributeError, "view");
    if (readers == NULL)
        return -1;
    if (!PyDict_CheckExact(readers)) {
        Py_DECREF(readers);
        PyErr_SetString(PyExc_TypeError, "the readers of a view are a dict");
        return -1;
    }
    PyObject *reader = Py_XNewRef(PyDict_GetItemWithError(readers, Py_None));
    if (reader == NULL && PyErr_Occurred()) {
        Py_DECREF(readers);
        return -1;
    }
    PyObject *old_view = self->view, *old_readers = self->readers, *old_reader = self->reader;
    self->view = Py_NewRef(view);
    self->readers = readers;
    self->reader = reader;
    Py_XDECREF(old_view);
    Py_XDECREF(old_readers);
    Py_XDECREF(old_reader);
    return 0;
}

static int watched_traverse(PyObject *object, visitproc visit, void *arg)
{
    Watched *self = (Watched *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->view);
    Py_VISIT(self->readers);
    Py_VISIT(self->reader);
    Py_VISIT(self->word);
    /* Not the owner of the buffer: see table_traverse. */
    Py_VISIT(self->seen);
    return 0;
}

static int watched_clear(PyObject *object)
{
    Watched *self = (Watched *)object;
    Py_buffer mapped = self->mapped;
    memset(&self->mapped, 0, sizeof self->mapped);
    if (mapped.obj != NULL)
        PyBuffer_Release(&mapped);
    Py_CLEAR(self->view);
    Py_CLEAR(self->readers);
    Py_CLEAR(self->reader);
    Py_CLEAR(self->word);
    self->has_seen = 0;
    Py_CLEAR(self->seen);
    return 0;
}

static void watched_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    watched_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMemberDef watched_members[] = {
    {"due", T_DOUBLE, offsetof(Watched, due), 0, "`time.monotonic()` of the next poll."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef watched_getset[] = {
    {"word", watched_get_word, watched_set_word, "The page's mapped word.", NULL},
    {"seen", watched_get_seen, watched_set_seen, "The word as it was heard last, or None.", NULL},
    {"view", watched_get_view, watched_set_view, "What reads use.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot watched_slots[] = {
    {Py_tp_doc, "What a get looks at before it reads."},
    {Py_tp_traverse, watched_traverse},
    {Py_tp_clear, watched_clear},
    {Py_tp_dealloc, watched_dealloc},
    {Py_tp_members, watched_members},
    {Py_tp_getset, watched_getset},
    {0, NULL},
};

PyType_Spec watched_spec = {
    "mmcache._core.Watched", sizeof(Watched), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, watched_slots,
};

/* --- Hits */

static PyObject *hits_bump(PyObject *self, PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLongLong(++((Hits *)self)->count);
}

static PyObject *hits_restart(PyObject *self, PyObject *Py_UNUSED(none))
{
    ((Hits *)self)->count = 0;
    Py_RETURN_NONE;
}

static int hits_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static void hits_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMemberDef hits_members[] = {
    {"mask", T_ULONGLONG, offsetof(Hits, mask), 0, "A sample is due when the number of a hit has none of these bits."},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef hits_methods[] = {
    {"bump", hits_bump, METH_NOARGS, "bump($self)\n--\n\nThe number of a hit, from 1 on."},
    {"restart", hits_restart, METH_NOARGS, "restart($self)\n--\n\nBegin at 1 again."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot hits_slots[] = {
    {Py_tp_doc, "The count of hits."},
    {Py_tp_traverse, hits_traverse},
    {Py_tp_dealloc, hits_dealloc},
    {Py_tp_members, hits_members},
    {Py_tp_methods, hits_methods},
    {0, NULL},
};

PyType_Spec hits_spec = {
    "mmcache._core.Hits", sizeof(Hits), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, hits_slots,
};

/* --- Front */

typedef struct {
    Watched *watch; /* strong */
    Hits *hits;     /* strong */
    PyObject *reader; /* strong; NULL: the file may not answer at all */
    double begun;
} visit_of;

static void visit_end(visit_of *visit)
{
    Py_XDECREF((PyObject *)visit->watch);
    Py_XDECREF((PyObject *)visit->hits);
    Py_XDECREF(visit->reader);
}

/* Look what is new, and find who answers. -1 with an exception. `visit` is to be ended in any case. */
static int visit_begin(Front *self, visit_of *visit)
{
    memset(visit, 0, sizeof *visit);
    if (self->watch == NULL || self->hits == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a collection that nothing watches");
        return -1;
    }
    Watched *watch = visit->watch = (Watched *)Py_NewRef(self->watch);
    visit->hits = (Hits *)Py_NewRef(self->hits);
    int is_new = is_due(watch->due) ? 1 : is_news(watch);
    if (is_new < 0)
        return -1;
    if (is_new) {
        PyObject *now = PyFloat_FromDouble(seconds(MONOTONIC));
        PyObject *caught_up = now == NULL ? NULL : PyObject_CallMethodObjArgs((PyObject *)watch, core.catch_up, now, NULL);
        Py_XDECREF(now);
        if (caught_up == NULL)
            return -1;
        Py_DECREF(caught_up);
    }
    if (self->name == NULL || self->name == Py_None)
        visit->reader = Py_XNewRef(watch->reader);
    else if (watch->readers != NULL) {
        PyObject *readers = Py_NewRef(watch->readers); /* a name of another type than str compares in Python */
        visit->reader = Py_XNewRef(PyDict_GetItemWithError(readers, self->name));
        Py_DECREF(readers);
        if (visit->reader == NULL && PyErr_Occurred())
            return -1;
    }
    if (((visit->hits->count + 1) & visit->hits->mask) == 0)
        visit->begun = seconds(MONOTONIC);
    return 0;
}

/* Count a hit, and have it timed where it is its turn. */
static int visit_hit(visit_of *visit)
{
    uint64_t number = ++visit->hits->count;
    if ((number & visit->hits->mask) != 0)
        return 0;
    if (visit->begun == 0.0) /* Case: another thread took the numbers between */
        visit->begun = seconds(MONOTONIC);
    PyObject *begun = PyFloat_FromDouble(visit->begun), *hits = PyLong_FromUnsignedLongLong(number), *done = NULL;
    if (begun != NULL && hits != NULL)
        done = PyObject_CallMethodObjArgs((PyObject *)visit->watch, core.sample, begun, hits, NULL);
    Py_XDECREF(begun);
    Py_XDECREF(hits);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* The exception that is set, if it says that the source has to answer; it is no longer set. NULL: any other one. */
static PyObject *not_here(void)
{
    PyObject *kind, *error, *trace;
    if (!PyErr_ExceptionMatches(core.not_here))
        return NULL;
    PyErr_Fetch(&kind, &error, &trace);
    PyErr_NormalizeException(&kind, &error, &trace);
    if (trace != NULL)
        PyException_SetTraceback(error, trace);
    Py_XDECREF(kind);
    Py_XDECREF(trace);
    return error;
}

static PyObject *front_subscript(PyObject *object, PyObject *key)
{
    Front *self = (Front *)object;
    visit_of visit;
    PyObject *found = NULL, *error = NULL;
    int is_hit = 0;
    if (visit_begin(self, &visit) < 0) {
        visit_end(&visit);
        return NULL;
    }
    if (visit.reader == NULL)
        error = Py_NewRef(Py_None);
    else if ((found = is_plain(visit.reader) ? by_key_subscript(visit.reader, key) : PyObject_GetItem(visit.reader, key)) == NULL)
        error = not_here();
    else
        is_hit = 1;
    if (is_hit && visit_hit(&visit) < 0)
        Py_CLEAR(found);
    visit_end(&visit);
    if (error != NULL) {
        found = PyObject_CallMethodObjArgs(object, core.instead, key, error, NULL);
        Py_DECREF(error);
    }
    else if (found != NULL && self->model != NULL && self->model != Py_None) {
        PyObject *record = found;
        found = PyObject_CallFunctionObjArgs(self->model, record, NULL);
        Py_DECREF(record);
    }
    return found;
}

static PyObject *front_get(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    static const char *const names[] = {"key", "default"};
    PyObject *key, *otherwise;
    if (two_arguments("get", names, args, count, keywords, &key, &otherwise) < 0)
        return NULL;
    PyObject *found = PyObject_GetItem(self, key);
    if (found != NULL || !PyErr_ExceptionMatches(PyExc_KeyError))
        return found;
    PyErr_Clear();
    return Py_NewRef(otherwise);
}

static PyObject *front_embedding(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    static const char *const names[] = {"key", "field"};
    visit_of visit;
    PyObject *key, *field, *found = NULL, *error = NULL;
    if (two_arguments("embedding", names, args, count, keywords, &key, &field) < 0)
        return NULL;
    if (visit_begin((Front *)self, &visit) < 0) {
        visit_end(&visit);
        return NULL;
    }
    if (visit.reader == NULL)
        error = Py_NewRef(Py_None);
    else {
        if (is_plain(visit.reader))
            found = by_key_embedding(visit.reader, key, field);
        else {
            PyObject *method = PyObject_GetAttrString(visit.reader, "embedding");
            found = method == NULL ? NULL : PyObject_CallFunctionObjArgs(method, key, field, NULL);
            Py_XDECREF(method);
        }
        if (found == NULL)
            error = not_here();
        else if (visit_hit(&visit) < 0)
            Py_CLEAR(found);
    }
    visit_end(&visit);
    if (error != NULL) {
        found = PyObject_CallMethodObjArgs(self, core.embedding_instead, key, field, error, NULL);
        Py_DECREF(error);
    }
    return found;
}

static int front_traverse(PyObject *object, visitproc visit, void *arg)
{
    Front *self = (Front *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->watch);
    Py_VISIT(self->hits);
    Py_VISIT(self->name);
    Py_VISIT(self->model);
    return 0;
}

static int front_clear(PyObject *object)
{
    Front *self = (Front *)object;
    Py_CLEAR(self->watch);
    Py_CLEAR(self->hits);
    Py_CLEAR(self->name);
    Py_CLEAR(self->model);
    return 0;
}

static void front_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    front_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* closure: where it lies in a Front. */
static PyObject *front_part(PyObject *self, void *closure)
{
    PyObject *part = *(PyObject **)((char *)self + (size_t)closure);
    if (part == NULL)
        PyErr_SetString(PyExc_AttributeError, "a collection that nothing watches");
    return Py_XNewRef(part);
}

static int front_set_part(PyObject *self, PyObject *value, void *closure)
{
    PyObject **place = (PyObject **)((char *)self + (size_t)closure), *before = *place;
    PyTypeObject *kind = (size_t)closure == offsetof(Front, watch) ? core.watched : core.hits;
    if (value == NULL || !PyObject_TypeCheck(value, kind)) {
        PyErr_SetString(PyExc_TypeError, "expected what watches and counts");
        return -1;
    }
    *place = Py_NewRef(value);
    Py_XDECREF(before);
    return 0;
}

static PyGetSetDef front_getset[] = {
    {"_watch", front_part, front_set_part, NULL, (void *)offsetof(Front, watch)},
    {"_counting", front_part, front_set_part, NULL, (void *)offsetof(Front, hits)},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef front_members[] = {
    {"_name", T_OBJECT, offsetof(Front, name), 0, NULL},
    {"_model", T_OBJECT, offsetof(Front, model), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef front_methods[] = {
    {"get", (PyCFunction)(void (*)(void))front_get, METH_FASTCALL | METH_KEYWORDS,
     "get($self, key, default=None)\n--\n\nThe record, or a default where no tier has it."},
    {"embedding", (PyCFunction)(void (*)(void))front_embedding, METH_FASTCALL | METH_KEYWORDS,
     "embedding($self, key, field=None)\n--\n\nfloat32, (dim,), read-only: a view of the file, or the source's; None for a "
     "record without one.\n\nfield: which, of several embeddings; by default the first. Raises ValueError for a field that is none."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot front_slots[] = {
    {Py_tp_doc, "The look-ups by key of a collection of a cache."},
    {Py_mp_subscript, front_subscript},
    {Py_tp_traverse, front_traverse},
    {Py_tp_clear, front_clear},
    {Py_tp_dealloc, front_dealloc},
    {Py_tp_members, front_members},
    {Py_tp_getset, front_getset},
    {Py_tp_methods, front_methods},
    {0, NULL},
};

PyType_Spec front_spec = {
    "mmcache._core.Front", sizeof(Front), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, front_slots,
};
