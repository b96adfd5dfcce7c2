/* RMSNorm (CENTRED 0) and LayerNorm (CENTRED 1) over rows of D features, with the residual sum before it.
 *
 * Letters: M rows, D features, S stripes of rows that each own one partial sum of the weight's gradient. x, residual,
 * y, sum and their gradients are [M, D] fp32 or bf16 (half), weights, partial sums and statistics fp32; all
 * contiguous. A row is widened into the first-level cache once and read from there.
 */
#ifndef HOTPLATE_NORM_H
#define HOTPLATE_NORM_H

#include <stdlib.h>

#include "elements.h"

INLINE void forward_row(const void *x, const void *residual, const float *weight, const float *bias, void *sum, void *y,
                        float *mean, float *rstd, float *restrict row, int64_t D, float eps, int half) {
    float total = 0.0f;
#pragma omp simd
    for (int64_t d = 0; d < D; d++) row[d] = value(x, d, half);
    if (residual) {
#pragma omp simd
        for (int64_t d = 0; d < D; d++) {
            const float s = row[d] + value(residual, d, half);
            put(sum, d, s, half);
            row[d] = half ? from_bf16(to_bf16(s)) : s;
        }
    }
    if (CENTRED) {
#pragma omp simd reduction(+ : total)
        for (int64_t d = 0; d < D; d++) total += row[d];
        *mean = total / D;
#pragma omp simd
        for (int64_t d = 0; d < D; d++) row[d] -= *mean;
        total = 0.0f;
    }
#pragma omp simd reduction(+ : total)
    for (int64_t d = 0; d < D; d++) total += row[d] * row[d];
    const float r = 1.0f / sqrtf(total / D + eps);
    *rstd = r;
    if (bias) {
#pragma omp simd
        for (int64_t d = 0; d < D; d++) put(y, d, row[d] * r * weight[d] + bias[d], half);
    } else {
#pragma omp simd
        for (int64_t d = 0; d < D; d++) put(y, d, row[d] * r * weight[d], half);
    }
}

/* dx = r (g - xhat mean(xhat g) [- mean(g)]) + dsum, with g = dy weight; adds to dweight and dbias. */
INLINE void backward_row(const void *dy, const void *dsum, const void *x, const float *weight, float mean, float r,
                         void *dx, float *restrict dweight, float *restrict dbias, float *restrict row,
                         float *restrict g, int64_t D, int half) {
    float along = 0.0f, total = 0.0f;
#pragma omp simd reduction(+ : along, total)
    for (int64_t d = 0; d < D; d++) {
        const float arriving = value(dy, d, half);
        const float xhat = (value(x, d, half) - (CENTRED ? mean : 0.0f)) * r;
        row[d] = xhat;
        g[d] = arriving * weight[d];
        along += xhat * g[d];
        dweight[d] += arriving * xhat;
        if (CENTRED) {
            total += g[d];
            dbias[d] += arriving;
        }
    }
    along /= D;
    total /= D;
    if (dsum) {
#pragma omp simd
        for (int64_t d = 0; d < D; d++) put(dx, d, r * (g[d] - total - row[d] * along) + value(dsum, d, half), half);
    } else {
#pragma omp simd
        for (int64_t d = 0; d < D; d++) put(dx, d, r * (g[d] - total - row[d] * along), half);
    }
}

/* One copy of the code per dtype. */
#define COPIES(name, half)                                                                                             \
    APART void forward_##name(const void *x, const void *residual, const float *weight, const float *bias, void *sum,  \
                              void *y, float *mean, float *rstd, float *row, int64_t D, float eps) {                   \
        forward_row(x, residual, weight, bias, sum, y, mean, rstd, row, D, eps, half);                                 \
    }                                                                                                                  \
    APART void backward_##name(const void *dy, const void *dsum, const void *x, const float *weight, float mean,       \
                               float r, void *dx, float *dweight, float *dbias, float *row, float *g, int64_t D) {     \
        backward_row(dy, dsum, x, weight, mean, r, dx, dweight, dbias, row, g, D, half);                               \
    }
COPIES(fp32, 0)
COPIES(bf16, 1)

/* residual and sum may be NULL together, bias alone. work: threads * D floats; mean: [M], unused where not CENTRED. */
void norm_forward(const void *x, const void *residual, const float *weight, const float *bias, void *sum, void *y,
                  float *mean, float *rstd, float *work, int64_t M, int64_t D, float eps, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        const int64_t at = m * D;
        (half ? forward_bf16 : forward_fp32)(from(x, at, half), residual ? from(residual, at, half) : NULL, weight,
                                             bias, sum ? into(sum, at, half) : NULL, into(y, at, half), mean + m,
                                             rstd + m, work + omp_get_thread_num() * D, D, eps);
    }
}

/* dsum may be NULL. dweight and dbias [S, D] come zeroed (dbias untouched where not CENTRED). work: threads * 2 D. */
void norm_backward(const void *dy, const void *dsum, const void *x, const float *weight, const float *mean,
                   const float *rstd, void *dx, float *dweight, float *dbias, float *work, int64_t M, int64_t D,
                   int64_t S, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t s = 0; s < S; s++) {
        float *row = work + 2 * D * omp_get_thread_num();
        for (int64_t m = s * M / S; m < (s + 1) * M / S; m++) {
            const int64_t at = m * D;
            (half ? backward_bf16 : backward_fp32)(from(dy, at, half), dsum ? from(dsum, at, half) : NULL,
                                                   from(x, at, half), weight, CENTRED ? mean[m] : 0.0f, rstd[m],
                                                   into(dx, at, half), dweight + s * D, dbias + s * D, row, row + D, D);
        }
    }
}

#endif
