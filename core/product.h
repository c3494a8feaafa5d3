/* The loop of products.c, which includes it once for each kind of processor: see score.h. */

TARGET static void NAME(const float *rows, const float *query, size_t dim, size_t count, float *out)
{
    size_t half = count / 2;
    for (size_t i = 0; i < half; i++) {
        const float *one = rows + dim * i, *other = rows + dim * (half + i);
        lanes sums[2] = {0};
        size_t at = 0;
        for (; at + LANES <= dim; at += LANES) {
            lanes by = *(const lanes *)(query + at);
            sums[0] += *(const lanes *)(one + at) * by;
            sums[1] += *(const lanes *)(other + at) * by;
        }
        float found[2] = {total(sums), total(sums + 1)};
        for (; at < dim; at++) {
            found[0] += one[at] * query[at];
            found[1] += other[at] * query[at];
        }
        out[i] = found[0];
        out[half + i] = found[1];
    }
    if (count % 2) {
        float sum = 0;
        for (size_t at = 0; at < dim; at++)
            sum += rows[dim * (count - 1) + at] * query[at];
        out[count - 1] = sum;
    }
}

#undef NAME
#undef TARGET
