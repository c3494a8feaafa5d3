/* Distances between the signs of embeddings: the bits in which the rows of a tile differ from a query. */

#include "core.h"

/* Rows whose sums stay in registers and the nearest cache, while one word after the other is added. */
#define TOGETHER 512

/* Inlined into a function for each kind of processor, so that each counts bits in its own way. */
static inline __attribute__((always_inline)) void add(const uint64_t *words, uint64_t query, uint64_t *sums, size_t count)
{
    for (size_t i = 0; i < count; i++)
        sums[i] += (uint64_t)__builtin_popcountll(words[i] ^ query);
}

static inline __attribute__((always_inline)) void all(const uint64_t *tile, const uint64_t *query, size_t words, size_t rows,
                                                      uint16_t *out)
{
    uint64_t sums[TOGETHER];
    for (size_t begin = 0; begin < rows; begin += TOGETHER) {
        size_t count = rows - begin < TOGETHER ? rows - begin : TOGETHER;
        memset(sums, 0, sizeof sums);
        for (size_t word = 0; word < words; word++) {
            if (count == TOGETHER) /* a number that the compiler knows */
                add(tile + word * rows + begin, query[word], sums, TOGETHER);
            else
                add(tile + word * rows + begin, query[word], sums, count);
        }
        for (size_t i = 0; i < count; i++)
            out[begin + i] = sums[i] > UINT16_MAX ? UINT16_MAX : (uint16_t)sums[i];
    }
}

typedef void (*way)(const uint64_t *, const uint64_t *, size_t, size_t, uint16_t *);

static void anywhere(const uint64_t *tile, const uint64_t *query, size_t words, size_t rows, uint16_t *out)
{
    all(tile, query, words, rows, out);
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("popcnt"))) static void by_popcnt(const uint64_t *tile, const uint64_t *query, size_t words,
                                                        size_t rows, uint16_t *out)
{
    all(tile, query, words, rows, out);
}

__attribute__((target("avx512f,avx512vpopcntdq"))) static void by_vectors(const uint64_t *tile, const uint64_t *query,
                                                                          size_t words, size_t rows, uint16_t *out)
{
    all(tile, query, words, rows, out);
}

static way best_way(void)
{
    if (__builtin_cpu_supports("avx512vpopcntdq"))
        return by_vectors;
    return __builtin_cpu_supports("popcnt") ? by_popcnt : anywhere;
}
#else
static way best_way(void)
{
    return anywhere;
}
#endif

/* distances(tile, query, out): u64 of (words, rows), u64 of (words,), u16 of (rows,), at most 65,535 each. The interpreter
 * is free meanwhile. */
PyObject *core_distances(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer tile, query, out;
    if (!PyArg_ParseTuple(args, "y*y*w*", &tile, &query, &out))
        return NULL;
    size_t words = (size_t)query.len / 8, rows = (size_t)out.len / 2;
    int fits = query.len % 8 == 0 && out.len % 2 == 0 && tile.len % 8 == 0 &&
               (words == 0 ? tile.len == 0 : (size_t)tile.len / 8 / words == rows && (size_t)tile.len / 8 % words == 0);
    int aligned = (((uintptr_t)tile.buf | (uintptr_t)query.buf) % 8 | (uintptr_t)out.buf % 2) == 0;
    if (fits && aligned) {
        way count = best_way();
        Py_BEGIN_ALLOW_THREADS
        count(tile.buf, query.buf, words, rows, out.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "a tile, a query and distances that do not fit each other");
    }
    PyBuffer_Release(&tile);
    PyBuffer_Release(&query);
    PyBuffer_Release(&out);
    return fits && aligned ? Py_NewRef(Py_None) : NULL;
}
