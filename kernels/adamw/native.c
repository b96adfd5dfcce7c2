/* AdamW over many tensors in one call, on a CPU: weights, moments and the bf16 copy in one pass.
 *
 * Letter: N tensors. Weights and moments fp32, gradients fp32 or bf16 (half), copies bf16 or NULL.
 */
#include <math.h>

#include "elements.h"

typedef struct {
    float decay, step_size, root; /* 1 - lr weight_decay; lr / (1 - beta1^t); 1 / sqrt(1 - beta2^t) */
} Factors;

INLINE void update(float *restrict w, const void *restrict g, float *restrict m, float *restrict v, bf16 *restrict copy,
                   int64_t size, float scale, float rest1, float beta2, float rest2, float eps, Factors by, int half) {
#pragma omp simd
    for (int64_t n = 0; n < size; n++) {
        const float d = value(g, n, half) * scale;
        const float first = m[n] + rest1 * (d - m[n]), second = beta2 * v[n] + rest2 * d * d;
        m[n] = first;
        v[n] = second;
        w[n] = w[n] * by.decay - by.step_size * first / (sqrtf(second) * by.root + eps);
    }
    if (copy) {
#pragma omp simd
        for (int64_t n = 0; n < size; n++) copy[n] = to_bf16(w[n]);
    }
}

APART void update_wide(float *w, const void *g, float *m, float *v, bf16 *copy, int64_t size, float scale, float rest1,
                       float beta2, float rest2, float eps, Factors by) {
    update(w, g, m, v, copy, size, scale, rest1, beta2, rest2, eps, by, 0);
}
APART void update_half(float *w, const void *g, float *m, float *v, bf16 *copy, int64_t size, float scale, float rest1,
                       float beta2, float rest2, float eps, Factors by) {
    update(w, g, m, v, copy, size, scale, rest1, beta2, rest2, eps, by, 1);
}

#define BLOCK 4096 /* elements that a thread takes at a time */

/* rest1 = 1 - beta1 and rest2 = 1 - beta2, rounded once. copies[i] may be NULL. */
void adamw(float *const *weights, const void *const *gradients, float *const *first, float *const *second,
           bf16 *const *copies, const int64_t *sizes, const Factors *factors, int64_t N, int half, float scale,
           float rest1, float beta2, float rest2, float eps, int threads) {
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0; i < N; i++) {
        const int64_t blocks = (sizes[i] + BLOCK - 1) / BLOCK;
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t at = block * BLOCK, size = sizes[i] - at < BLOCK ? sizes[i] - at : BLOCK;
            (half ? update_half : update_wide)(weights[i] + at, from(gradients[i], at, half), first[i] + at, second[i] + at,
                                               copies[i] ? copies[i] + at : NULL, size, scale, rest1, beta2, rest2, eps,
                                               factors[i]);
        }
    }
}
