/* Sums that scores are made of: of products, of squares and of squared differences, in float64.
 *
 * A twin of metrics.py: the terms are rounded one by one, and added in the order of np.add.reduce, which depends on their
 * number alone. So a row has the same score as in Python, to the last bit, and on all machines.
 */

#include "core.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#define LANES 8    /* numbers that numpy adds side by side */
#define LEAST 128  /* more of them it adds in two halves */
#define LINE 16    /* numbers that the processor fetches at once */
#define AHEAD 1024 /* numbers between what is added and what is fetched meanwhile, at least */

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(8 * LANES), aligned(8), may_alias));
typedef double (*leaf)(const float *, const double *, size_t);

/* For a kind of processor: the sums of up to LEAST terms. */
typedef struct {
    leaf dot, square, apart;
} kind;

#define NAME(function) any_##function
#define TARGET
#include "score.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define NAME(function) avx2_##function
#define TARGET __attribute__((target("avx2")))
#include "score.h"

#define NAME(function) avx512_##function
#define TARGET __attribute__((target("avx512f")))
#include "score.h"

static const kind *best_kind(void)
{
    static const kind *const kinds[] = {&any_kind, &avx2_kind, &avx512_kind};
    return kinds[loop_for(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx2"))];
}
#else
static const kind *best_kind(void)
{
    loop_for(0, 0);
    return &any_kind;
}
#endif

static double sum_of(leaf add, const float *numbers, const double *query, size_t count)
{
    if (count <= LEAST)
        return add(numbers, query, count);
    size_t half = count / 2;
    half -= half % LANES;
    return sum_of(add, numbers, query, half) + sum_of(add, numbers + half, query + half, count - half);
}

typedef struct {
    const float *matrix;
    const double *query;
    const uint32_t *rows; /* of the matrix; or NULL for all of it */
    size_t there, count, dim;
    double *out, *squares; /* squares: of the rows, beside products with the query; or NULL */
    int is_apart;          /* out: squared differences, not products */
} scores;

/* Rows may lie in the map, and change meanwhile: each is read once, and is one of those that there are. */
static const float *row_at(const scores *in, size_t i)
{
    size_t row = in->rows == NULL ? i : __atomic_load_n(in->rows + i, __ATOMIC_RELAXED);
    return in->matrix + in->dim * (row < in->there ? row : in->there - 1);
}

static void score(const scores *in, const kind *add)
{
    size_t ahead = in->dim < AHEAD ? AHEAD / in->dim : 1;
    for (size_t i = 0; i < in->count; i++) {
        if (i + ahead < in->count) {
            const float *next = row_at(in, i + ahead);
            for (size_t at = 0; at < in->dim; at += LINE)
                __builtin_prefetch(next + at);
        }
        const float *row = row_at(in, i);
        in->out[i] = sum_of(in->is_apart ? add->apart : add->dot, row, in->query, in->dim);
        if (in->squares != NULL)
            in->squares[i] = sum_of(add->square, row, in->query, in->dim);
    }
}

/* Whether these fit each other; and what they are, if so. */
static int is_sound(scores *in, const Py_buffer *matrix, const Py_buffer *rows, const Py_buffer *query,
                    const Py_buffer *out, const Py_buffer *squares)
{
    in->dim = (size_t)query->len / 8, in->count = (size_t)out->len / 8;
    size_t stride = 4 * in->dim;
    if (in->dim == 0 || query->len % 8 || out->len % 8 || (size_t)matrix->len % stride)
        return 0;
    if (((uintptr_t)query->buf | (uintptr_t)out->buf | (uintptr_t)squares->buf) % 8 ||
        ((uintptr_t)matrix->buf | (uintptr_t)rows->buf) % 4 || (squares->buf != NULL && squares->len != out->len))
        return 0;
    in->there = (size_t)matrix->len / stride;
    in->matrix = matrix->buf, in->query = query->buf, in->rows = rows->buf;
    in->out = out->buf, in->squares = squares->buf;
    if (rows->buf == NULL)
        return in->there == in->count;
    return rows->len % 4 == 0 && (size_t)rows->len / 4 == in->count && (in->there > 0 || in->count == 0);
}

PyObject *core_sums(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer matrix, rows = {0}, query, out, squares = {0};
    PyObject *beside;
    scores in = {0};
    if (!PyArg_ParseTuple(args, "y*z*y*w*Op", &matrix, &rows, &query, &out, &beside, &in.is_apart))
        return NULL;
    int fits = beside == Py_None || PyObject_GetBuffer(beside, &squares, PyBUF_WRITABLE) == 0;
    if (fits && !(fits = is_sound(&in, &matrix, &rows, &query, &out, &squares)))
        PyErr_SetString(PyExc_ValueError, "a matrix, rows, a query and sums that do not fit each other");
    if (fits) {
        const kind *add = best_kind();
        Py_BEGIN_ALLOW_THREADS
        score(&in, add);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&matrix);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&query);
    PyBuffer_Release(&out);
    PyBuffer_Release(&squares);
    return fits ? Py_NewRef(Py_None) : NULL;
}
