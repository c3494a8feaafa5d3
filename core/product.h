/* The loop of products.c, which includes it once for each kind of processor, with the NAME and the TARGET of that. Vectors
 * of a compiler become instructions of the function in which they stand, so they cannot come from a common one. */

TARGET static void NAME(const products *in)
{
    const float *query = in->query;
    size_t dim = in->dim, ahead = dim < FETCHED ? FETCHED / dim : 1;
    for (size_t i = 0; i < in->count; i++) {
        size_t after = i + ahead < in->count ? i + ahead : in->count - 1;
        const float *row = in->matrix + dim * row_at(in, i), *next = in->matrix + dim * row_at(in, after);
        lanes one = {0}, two = {0};
        size_t at = 0;
        for (; at + 2 * LANES <= dim; at += 2 * LANES) {
            __builtin_prefetch(next + at);
            __builtin_prefetch(next + at + LANES);
            one += *(const lanes *)(row + at) * *(const lanes *)(query + at);
            two += *(const lanes *)(row + at + LANES) * *(const lanes *)(query + at + LANES);
        }
        if (at + LANES <= dim) {
            __builtin_prefetch(next + at);
            one += *(const lanes *)(row + at) * *(const lanes *)(query + at);
            at += LANES;
        }
        float sum = 0;
        for (; at < dim; at++)
            sum += row[at] * query[at];
        one += two;
        for (int j = 0; j < LANES; j++)
            sum += one[j];
        in->out[i] = sum;
    }
}

#undef NAME
#undef TARGET
