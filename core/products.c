/* Products of one query and consecutive rows of float32, in the thread that calls.
 *
 * The order in which products of numbers are added is of this kind of processor: a search allows for any (see
 * search/metrics.py). Rows of both halves are multiplied in turns: from two places the processor reads ahead faster than
 * from one.
 */

#include "core.h"

#define LANES 16

/* So many floats are added at once, in as many steps as the processor needs. */
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float quarter __attribute__((vector_size(LANES)));
typedef void (*way)(const float *, const float *, size_t, size_t, float *);

static inline float total(const lanes *sums)
{
    quarter parts[4];
    memcpy(parts, sums, sizeof parts);
    quarter sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

#define NAME anywhere
#define TARGET
#include "product.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define NAME by_avx2
#define TARGET __attribute__((target("avx2")))
#include "product.h"

#define NAME by_avx512
#define TARGET __attribute__((target("avx512f")))
#include "product.h"

static way best_way(void)
{
    static const way ways[] = {anywhere, by_avx2, by_avx512};
    return ways[loop_for(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx2"))];
}
#else
static way best_way(void)
{
    loop_for(0, 0);
    return anywhere;
}
#endif

PyObject *core_products(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer matrix, query, out;
    if (!PyArg_ParseTuple(args, "y*y*w*", &matrix, &query, &out))
        return NULL;
    size_t dim = (size_t)query.len / 4, rows = (size_t)out.len / 4;
    int fits = dim > 0 && query.len % 4 == 0 && out.len % 4 == 0 && (size_t)matrix.len / 4 / dim == rows &&
               (size_t)matrix.len % (4 * dim) == 0 &&
               ((uintptr_t)matrix.buf | (uintptr_t)query.buf | (uintptr_t)out.buf) % 4 == 0;
    if (fits) {
        way multiply = best_way();
        Py_BEGIN_ALLOW_THREADS
        multiply(matrix.buf, query.buf, dim, rows, out.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "a matrix, a query and products that do not fit each other");
    }
    PyBuffer_Release(&matrix);
    PyBuffer_Release(&query);
    PyBuffer_Release(&out);
    return fits ? Py_NewRef(Py_None) : NULL;
}
