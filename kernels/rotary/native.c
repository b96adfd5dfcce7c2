/* Cuts a projection into queries, keys and values, with the norm of each head and its rotation, on a CPU.
 *
 * Letters: M tokens, H query heads, G key heads (and as many value heads), K head width, S stripes of tokens that each
 * own one partial sum of the weights' gradients. qkv [M, H + 2 G, K], q [M, H, K], k and v [M, G, K], fp32 or bf16
 * (half); cosine and sine [M, K / 2], weights [2, K] (queries, keys) and partial sums [S, 2, K] fp32; all contiguous.
 */
#include <math.h>
#include <omp.h>

#include "elements.h"

#define MAX_K 1024

INLINE float inverse_rms(const float *x, int64_t K, float eps) {
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t n = 0; n < K; n++) total += x[n] * x[n];
    return 1.0f / sqrtf(total / K + eps);
}

/* y = R (x r weight); sign -1 turns back. */
INLINE void turn(const float *restrict x, const float *cosine, const float *sine, float sign, void *y, int64_t K,
                 int half) {
    const int64_t P = K / 2;
    if (!cosine) {
#pragma omp simd
        for (int64_t n = 0; n < K; n++) put(y, n, x[n], half);
        return;
    }
#pragma omp simd
    for (int64_t n = 0; n < P; n++) {
        const float c = cosine[n], s = sign * sine[n];
        put(y, n, x[n] * c - x[n + P] * s, half);
        put(y, n + P, x[n + P] * c + x[n] * s, half);
    }
}

INLINE void forward_head(const void *x, const float *cosine, const float *sine, const float *weight, float eps, void *y,
                         int64_t K, int half) {
    float row[MAX_K];
#pragma omp simd
    for (int64_t n = 0; n < K; n++) row[n] = value(x, n, half);
    if (weight) {
        const float r = inverse_rms(row, K, eps);
#pragma omp simd
        for (int64_t n = 0; n < K; n++) row[n] = row[n] * r * weight[n];
    }
    turn(row, cosine, sine, 1.0f, y, K, half);
}

INLINE void backward_head(const void *dy, const void *x, const float *cosine, const float *sine, const float *weight,
                          float eps, void *dx, float *restrict dweight, int64_t K, int half) {
    float arriving[MAX_K], turned[MAX_K], row[MAX_K];
#pragma omp simd
    for (int64_t n = 0; n < K; n++) arriving[n] = value(dy, n, half);
    if (!weight) {
        turn(arriving, cosine, sine, -1.0f, dx, K, half);
        return;
    }
    turn(arriving, cosine, sine, -1.0f, turned, K, 0);
#pragma omp simd
    for (int64_t n = 0; n < K; n++) row[n] = value(x, n, half);
    const float r = inverse_rms(row, K, eps);
    float along = 0.0f;
#pragma omp simd reduction(+ : along)
    for (int64_t n = 0; n < K; n++) {
        row[n] *= r;
        dweight[n] += turned[n] * row[n];
        turned[n] *= weight[n];
        along += turned[n] * row[n];
    }
    along /= K;
#pragma omp simd
    for (int64_t n = 0; n < K; n++) put(dx, n, r * (turned[n] - row[n] * along), half);
}

#define COPIES(name, half)                                                                                             \
    APART void forward_##name(const void *x, const float *cosine, const float *sine, const float *weight, float eps,   \
                              void *y, int64_t K) {                                                                    \
        forward_head(x, cosine, sine, weight, eps, y, K, half);                                                        \
    }                                                                                                                  \
    APART void backward_##name(const void *dy, const void *x, const float *cosine, const float *sine,                  \
                               const float *weight, float eps, void *dx, float *dweight, int64_t K) {                  \
        backward_head(dy, x, cosine, sine, weight, eps, dx, dweight, K, half);                                         \
    }
COPIES(fp32, 0)
COPIES(bf16, 1)

int64_t most_width(void) { return MAX_K; }

/* cosine and sine may be NULL together, weights alone. */
void forward(const void *qkv, const float *cosine, const float *sine, const float *weights, float eps, void *q, void *k,
             void *v, int64_t M, int64_t H, int64_t G, int64_t K, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        const float *c = cosine ? cosine + m * (K / 2) : NULL, *s = sine ? sine + m * (K / 2) : NULL;
        for (int64_t h = 0; h < H + G; h++) {
            const int key = h >= H;
            void *y = key ? into(k, (m * G + h - H) * K, half) : into(q, (m * H + h) * K, half);
            (half ? forward_bf16 : forward_fp32)(from(qkv, (m * (H + 2 * G) + h) * K, half), c, s,
                                                 weights ? weights + key * K : NULL, eps, y, K);
        }
        memcpy(into(v, m * G * K, half), from(qkv, (m * (H + 2 * G) + H + G) * K, half), G * K * (half ? 2 : 4));
    }
}

/* qkv is read only where there are weights; dweights [S, 2, K] come zeroed. */
void backward(const void *dq, const void *dk, const void *dv, const void *qkv, const float *cosine, const float *sine,
              const float *weights, float eps, void *dqkv, float *dweights, int64_t M, int64_t H, int64_t G, int64_t K,
              int64_t S, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t stripe = 0; stripe < S; stripe++) {
        for (int64_t m = stripe * M / S; m < (stripe + 1) * M / S; m++) {
            const float *c = cosine ? cosine + m * (K / 2) : NULL, *s = sine ? sine + m * (K / 2) : NULL;
            for (int64_t h = 0; h < H + G; h++) {
                const int key = h >= H;
                const int64_t at = (m * (H + 2 * G) + h) * K;
                const void *dy = key ? from(dk, (m * G + h - H) * K, half) : from(dq, (m * H + h) * K, half);
                (half ? backward_bf16 : backward_fp32)(dy, weights ? from(qkv, at, half) : NULL, c, s,
                                                       weights ? weights + key * K : NULL, eps, into(dqkv, at, half),
                                                       weights ? dweights + (2 * stripe + key) * K : NULL, K);
            }
            memcpy(into(dqkv, (m * (H + 2 * G) + H + G) * K, half), from(dv, m * G * K, half), G * K * (half ? 2 : 4));
        }
    }
}
