/* The sum of the squares of many tensors, all fp32 or all bf16 (half), in fp64, in one pass.
 *
 * Letter: N tensors. A block of BLOCK elements has LANES sums, which meet in a fixed order; blocks meet in theirs. So
 * the result is bitwise the same whatever the number of threads.
 */
#include "elements.h"

enum { LANES = 32, BLOCK = 1 << 14 };

INLINE double block_sum(const void *x, int64_t size, int half) {
    double sums[LANES] = {0}, sum = 0;
    int64_t n = 0;
    for (; n + LANES <= size; n += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            const double found = value(x, n + lane, half);
            sums[lane] += found * found;
        }
    for (int lane = 0; n + lane < size; lane++) {
        const double found = value(x, n + lane, half);
        sums[lane] += found * found;
    }
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return sum;
}

APART double block_sum_wide(const void *x, int64_t size) { return block_sum(x, size, 0); }
APART double block_sum_half(const void *x, int64_t size) { return block_sum(x, size, 1); }

/* Of how many blocks all tensors are: the length of `partial`. */
int64_t square_sum_blocks(const int64_t *sizes, int64_t N) {
    int64_t blocks = 0;
    for (int64_t i = 0; i < N; i++) blocks += (sizes[i] + BLOCK - 1) / BLOCK;
    return blocks;
}

double square_sum(const void *const *tensors, const int64_t *sizes, int64_t N, int half, double *partial, int threads) {
    const int64_t blocks = square_sum_blocks(sizes, N);
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0, first = 0; i < N; first += (sizes[i] + BLOCK - 1) / BLOCK, i++) {
        const int64_t here = (sizes[i] + BLOCK - 1) / BLOCK;
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < here; block++) {
            const int64_t at = block * BLOCK;
            const int64_t size = sizes[i] - at < BLOCK ? sizes[i] - at : BLOCK;
            partial[first + block] = (half ? block_sum_half : block_sum_wide)(from(tensors[i], at, half), size);
        }
    }
    double sum = 0;
    for (int64_t block = 0; block < blocks; block++) sum += partial[block];
    return sum;
}
