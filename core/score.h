/* The loops of scores.c, which includes them once for each kind of processor: vectors of a
 * compiler become instructions of the function in which they stand. NAME(x) is x of that kind. */

#define LEAF(function, term)                                                                                             \
    TARGET static double NAME(function)(const float *numbers, const double *query, size_t count)                         \
    {                                                                                                                    \
        double sum = 0;                                                                                                  \
        size_t i = 0;                                                                                                    \
        if (count >= LANES) {                                                                                            \
            doubles sums = {0};                                                                                          \
            for (; i + LANES <= count; i += LANES) {                                                                     \
                doubles a = __builtin_convertvector(*(const floats *)(numbers + i), doubles);                            \
                doubles b = *(const doubles *)(query + i);                                                               \
                (void)b;                                                                                                 \
                sums += term;                                                                                            \
            }                                                                                                            \
            sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));             \
        }                                                                                                                \
        for (; i < count; i++) {                                                                                         \
            double a = numbers[i], b = query[i];                                                                         \
            (void)b;                                                                                                     \
            sum += term;                                                                                                 \
        }                                                                                                                \
        return sum;                                                                                                      \
    }

LEAF(dot, a * b)
LEAF(square, a * a)
LEAF(apart, (a - b) * (a - b))

static const kind NAME(kind) = {NAME(dot), NAME(square), NAME(apart)};

#undef LEAF
#undef NAME
#undef TARGET
