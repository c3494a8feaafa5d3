/* The signs of embeddings: the bits of each row, and the rows that differ from a query in the fewest.
 *
 * Both are twins of what numpy does: signs_of in format/sketch.py, and nearby in search/distances.py.
 */

#include "core.h"

#include <stdlib.h>

/* Rows whose sums stay in the nearest cache, while one word after the other is added. */
#define TOGETHER 512
/* Sums that are compared at once: few groups have a row that is near enough. */
#define GROUP 16

/* The rows of the least distance that were met so far. An entry is the distance, and below it 32 bits of the row, so that
 * the order of entries is that of rows: by distance, then by place. */
typedef struct {
    uint64_t *entries; /* twice as many as are wanted */
    size_t size, few;
    uint64_t limit;   /* rows of this distance, or of a greater one, are not among the few any more */
    uint32_t *counts; /* of entries by distance */
    size_t bins;
} nearest;

/* Signs in tiles, as format/sketch.py has them: of these rows, the first of which has the number `begin`. */
typedef struct {
    const uint64_t *signs, *query;
    const uint8_t *wanted; /* a byte for each row, 0 where it is none; or NULL */
    size_t words, rows, tile;
    uint64_t begin;
} search;

static inline size_t bin_of(const nearest *found, uint64_t entry)
{
    uint64_t distance = entry >> 32; /* of an entry that came with the call it may be anything */
    return distance < found->bins ? (size_t)distance : found->bins - 1;
}

/* Keep the few of the least distance, of equal distance the first ones; in the order in which they were met. */
static void choose(nearest *found)
{
    memset(found->counts, 0, found->bins * sizeof *found->counts);
    for (size_t i = 0; i < found->size; i++)
        found->counts[bin_of(found, found->entries[i])]++;
    size_t last = 0, less = 0, kept = 0;
    while (less + found->counts[last] < found->few)
        less += found->counts[last++];
    for (size_t i = 0, equal = found->few - less; i < found->size; i++) {
        size_t bin = bin_of(found, found->entries[i]);
        if (bin < last || (bin == last && equal > 0)) {
            equal -= bin == last;
            found->entries[kept++] = found->entries[i];
        }
    }
    found->size = kept;
    found->limit = last;
}

/* Rows are offered by ascending number, so one of the same distance as the last of the few comes after it. */
static void offer(nearest *found, uint64_t distance, uint64_t row)
{
    if (found->size == 2 * found->few)
        choose(found);
    if (distance < found->limit)
        found->entries[found->size++] = distance << 32 | row;
}

/* Inlined into a function for each kind of processor, so that each counts bits in its own way. */
static inline __attribute__((always_inline)) void add(const uint64_t *words, uint64_t query, uint64_t *sums, size_t count)
{
    for (size_t i = 0; i < count; i++)
        sums[i] += (uint64_t)__builtin_popcountll(words[i] ^ query);
}

static inline __attribute__((always_inline)) int is_any_below(const uint64_t *sums, uint64_t limit)
{
    uint64_t found = 0;
    for (size_t i = 0; i < GROUP; i++)
        found |= sums[i] < limit;
    return found != 0;
}

static inline __attribute__((always_inline)) void all(const search *in, nearest *found)
{
    uint64_t sums[TOGETHER];
    for (size_t tile = 0; tile < in->rows; tile += in->tile) {
        size_t rows = in->rows - tile < in->tile ? in->rows - tile : in->tile;
        const uint64_t *signs = in->signs + in->words * tile;
        for (size_t begin = 0; begin < rows; begin += TOGETHER) {
            size_t count = rows - begin < TOGETHER ? rows - begin : TOGETHER;
            memset(sums, 0, sizeof sums);
            for (size_t word = 0; word < in->words; word++) {
                if (count == TOGETHER) /* a number that the compiler knows */
                    add(signs + word * rows + begin, in->query[word], sums, TOGETHER);
                else
                    add(signs + word * rows + begin, in->query[word], sums, count);
            }
            for (size_t group = 0; group < count; group += GROUP) {
                if (!is_any_below(sums + group, found->limit))
                    continue;
                for (size_t i = group; i < count && i < group + GROUP; i++)
                    if (in->wanted == NULL || in->wanted[tile + begin + i])
                        offer(found, sums[i], in->begin + tile + begin + i);
            }
        }
    }
    if (found->size > found->few)
        choose(found);
}

typedef void (*way)(const search *, nearest *);

static void anywhere(const search *in, nearest *found)
{
    all(in, found);
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("popcnt"))) static void by_popcnt(const search *in, nearest *found)
{
    all(in, found);
}

__attribute__((target("avx512f,avx512vpopcntdq"))) static void by_vectors(const search *in, nearest *found)
{
    all(in, found);
}

static way best_way(void)
{
    static const way ways[] = {anywhere, by_popcnt, by_vectors};
    return ways[loop_for(__builtin_cpu_supports("avx512vpopcntdq"), __builtin_cpu_supports("popcnt"))];
}
#else
static way best_way(void)
{
    loop_for(0, 0);
    return anywhere;
}
#endif

/* Whether these fit each other; and what they are, if so. */
static int is_sound(search *in, nearest *found, const Py_buffer *signs, const Py_buffer *query, const Py_buffer *wanted,
                    const Py_buffer *entries)
{
    in->words = (size_t)query->len / 8;
    size_t stride = 8 * in->words, room = (size_t)entries->len / 8;
    if (in->words == 0 || in->words > UINT32_MAX / 64 || query->len % 8 || entries->len % 16 || (size_t)signs->len % stride)
        return 0;
    in->rows = (size_t)signs->len / stride;
    if (in->tile == 0 || in->rows > UINT32_MAX || in->begin > UINT32_MAX - in->rows)
        return 0;
    if (wanted->buf != NULL && (size_t)wanted->len != in->rows)
        return 0;
    if (((uintptr_t)signs->buf | (uintptr_t)query->buf | (uintptr_t)entries->buf) % 8)
        return 0;
    in->signs = signs->buf, in->query = query->buf, in->wanted = wanted->buf;
    found->entries = entries->buf, found->few = room / 2, found->bins = 64 * in->words + 1;
    return found->few > 0 && found->size <= room;
}

PyObject *core_nearby(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer signs, query, wanted = {0}, entries;
    search in = {0};
    nearest found = {0};
    Py_ssize_t tile, size;
    unsigned long long begin, limit;
    if (!PyArg_ParseTuple(args, "y*y*z*w*(nKnK)", &signs, &query, &wanted, &entries, &tile, &begin, &size, &limit))
        return NULL;
    in.tile = tile < 0 ? 0 : (size_t)tile, in.begin = begin;
    found.size = size < 0 ? SIZE_MAX : (size_t)size, found.limit = limit;
    PyObject *given = NULL;
    if (!is_sound(&in, &found, &signs, &query, &wanted, &entries))
        PyErr_SetString(PyExc_ValueError, "signs, a query and entries that do not fit each other");
    else if ((found.counts = malloc(found.bins * sizeof *found.counts)) == NULL)
        PyErr_NoMemory();
    else {
        way find = best_way();
        Py_BEGIN_ALLOW_THREADS
        find(&in, &found);
        Py_END_ALLOW_THREADS
        free(found.counts);
        given = Py_BuildValue("nK", (Py_ssize_t)found.size, (unsigned long long)found.limit);
    }
    PyBuffer_Release(&signs);
    PyBuffer_Release(&query);
    PyBuffer_Release(&wanted);
    PyBuffer_Release(&entries);
    return given;
}

/* --- the bits of rows */

#if defined(__SSE2__)
#include <emmintrin.h>

static inline uint64_t bits_of(const float *numbers) /* of 64 */
{
    uint64_t bits = 0;
    for (int i = 0; i < 64; i += 4) {
        __m128 above = _mm_cmpgt_ps(_mm_loadu_ps(numbers + i), _mm_setzero_ps());
        bits |= (uint64_t)_mm_movemask_ps(above) << i;
    }
    return bits;
}
#else
static inline uint64_t bits_of(const float *numbers)
{
    uint64_t bits = 0;
    for (int i = 0; i < 64; i++)
        bits |= (uint64_t)(numbers[i] > 0) << i;
    return bits;
}
#endif

static void signs_of(const float *numbers, size_t rows, size_t dim, uint64_t *out)
{
    for (size_t row = 0; row < rows; row++, numbers += dim) {
        size_t at = 0;
        for (; at + 64 <= dim; at += 64)
            *out++ = bits_of(numbers + at);
        if (at < dim) {
            uint64_t bits = 0;
            for (size_t i = 0; at + i < dim; i++)
                bits |= (uint64_t)(numbers[at + i] > 0) << i;
            *out++ = bits;
        }
    }
}

PyObject *core_signs(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer matrix, out;
    Py_ssize_t dim;
    if (!PyArg_ParseTuple(args, "y*nw*", &matrix, &dim, &out))
        return NULL;
    size_t width = dim > 0 ? (size_t)dim : 1, words = (width - 1) / 64 + 1, stride = 4 * width;
    int fits = dim > 0 && dim <= UINT32_MAX && (size_t)matrix.len % stride == 0 &&
               (size_t)out.len == (size_t)matrix.len / stride * words * 8 &&
               ((uintptr_t)matrix.buf % 4 | (uintptr_t)out.buf % 8) == 0;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        signs_of(matrix.buf, (size_t)matrix.len / stride, width, out.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "numbers and signs that do not fit each other");
    }
    PyBuffer_Release(&matrix);
    PyBuffer_Release(&out);
    return fits ? Py_NewRef(Py_None) : NULL;
}
