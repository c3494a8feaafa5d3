/* Products of one query and many rows of a matrix of float32, in the thread that calls.
 *
 * The order in which products of numbers are added is of this kind of processor: a search allows for any, and for numbers
 * that are rounded together (see search/metrics.py).
 */

#include "core.h"

#define LANES 16
/* Numbers that lie between what is multiplied and what is fetched meanwhile, at least: where rows are chosen, only the
 * caller knows what comes next. */
#define FETCHED 1024

/* So many floats are added at once, in as many steps as the processor needs. */
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    const float *matrix, *query;
    const uint32_t *rows; /* of the matrix; or NULL for all of it */
    size_t there, count, dim;
    float *out;
} products;

/* Rows may lie in the map, and change meanwhile: each is read once, and is one of those that there are. */
static inline size_t row_at(const products *in, size_t i)
{
    if (in->rows == NULL)
        return i;
    size_t row = __atomic_load_n(in->rows + i, __ATOMIC_RELAXED);
    return row < in->there ? row : in->there - 1;
}

typedef void (*way)(const products *);

#define NAME anywhere
#define TARGET
#include "product.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define NAME by_avx2
#define TARGET __attribute__((target("avx2,fma")))
#include "product.h"

#define NAME by_avx512
#define TARGET __attribute__((target("avx512f")))
#include "product.h"

static way best_way(void)
{
    if (__builtin_cpu_supports("avx512f"))
        return by_avx512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? by_avx2 : anywhere;
}
#else
static way best_way(void)
{
    return anywhere;
}
#endif

/* Whether these fit each other; and what they are, if so. */
static int is_sound(products *in, const Py_buffer *matrix, const Py_buffer *rows, const Py_buffer *query,
                    const Py_buffer *out)
{
    in->dim = (size_t)query->len / 4, in->count = (size_t)out->len / 4;
    if (in->dim == 0 || query->len % 4 || out->len % 4 || (size_t)matrix->len % (size_t)query->len)
        return 0;
    if (((uintptr_t)matrix->buf | (uintptr_t)query->buf | (uintptr_t)out->buf | (uintptr_t)rows->buf) % 4)
        return 0;
    in->there = (size_t)matrix->len / (size_t)query->len;
    in->matrix = matrix->buf, in->query = query->buf, in->rows = rows->buf, in->out = out->buf;
    if (rows->buf == NULL)
        return in->there == in->count;
    return rows->len % 4 == 0 && (size_t)rows->len / 4 == in->count && (in->there > 0 || in->count == 0);
}

PyObject *core_products(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer matrix, rows = {0}, query, out;
    products in;
    if (!PyArg_ParseTuple(args, "y*z*y*w*", &matrix, &rows, &query, &out))
        return NULL;
    int fits = is_sound(&in, &matrix, &rows, &query, &out);
    if (fits) {
        way multiply = best_way();
        Py_BEGIN_ALLOW_THREADS
        multiply(&in);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "a matrix, rows, a query and products that do not fit each other");
    }
    PyBuffer_Release(&matrix);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&query);
    PyBuffer_Release(&out);
    return fits ? Py_NewRef(Py_None) : NULL;
}
