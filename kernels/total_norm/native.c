/* The sum of the squares of many fp32 tensors, in fp64, in one pass.
 *
 * Letter: N tensors. A block of BLOCK elements has LANES sums, which meet in a fixed order; blocks meet in theirs. So
 * the result is bitwise the same whatever the number of threads.
 */
#include <stdint.h>

enum { LANES = 32, BLOCK = 1 << 14 };

static double block_sum(const float *x, int64_t size) {
    double sums[LANES] = {0}, sum = 0;
    int64_t n = 0;
    for (; n + LANES <= size; n += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            const double value = x[n + lane];
            sums[lane] += value * value;
        }
    for (int lane = 0; n + lane < size; lane++) sums[lane] += (double)x[n + lane] * x[n + lane];
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return sum;
}

/* Of how many blocks all tensors are: the length of `partial`. */
int64_t square_sum_blocks(const int64_t *sizes, int64_t N) {
    int64_t blocks = 0;
    for (int64_t i = 0; i < N; i++) blocks += (sizes[i] + BLOCK - 1) / BLOCK;
    return blocks;
}

double square_sum(const float *const *tensors, const int64_t *sizes, int64_t N, double *partial, int threads) {
    const int64_t blocks = square_sum_blocks(sizes, N);
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0, first = 0; i < N; first += (sizes[i] + BLOCK - 1) / BLOCK, i++) {
        const int64_t here = (sizes[i] + BLOCK - 1) / BLOCK;
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < here; block++) {
            const int64_t at = block * BLOCK;
            partial[first + block] = block_sum(tensors[i] + at, sizes[i] - at < BLOCK ? sizes[i] - at : BLOCK);
        }
    }
    double sum = 0;
    for (int64_t block = 0; block < blocks; block++) sum += partial[block];
    return sum;
}
