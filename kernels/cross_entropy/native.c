/* Loss and gradient of the logits of a chunk, on a CPU: every row is finished while it is in cache.
 *
 * Letters: C rows of V logits, `stride` apart, fp32. See eager.py for the formulas. A block of W columns has a maximum
 * and a sum per column; columns meet at the row's end, in order: results do not depend on the number of threads.
 */
#include <math.h>
#include <omp.h>

#include "elements.h"

typedef struct {
    float scale, cap, smoothing, z;
} Loss;

/* The last columns of a row stand among logits that change no maximum and whose exponential is not summed. */
INLINE float *block_of(float *row, int64_t from, int64_t V, float *edge) {
    if (from + W <= V) return row + from;
    for (int j = 0; j < W; j++) edge[j] = from + j < V ? row[from + j] : -INFINITY;
    return edge;
}
INLINE void put_back(float *row, int64_t from, int64_t V, const float *edge) {
    if (from + W > V) memcpy(row + from, edge, sizeof(float) * (V - from));
}

/* Logits become scaled and capped; `slope` [V, rounded up to W] gets the cap's derivative. */
APART void shape(float *row, int64_t V, Loss loss, float *slope) {
    float edge[W];
    for (int64_t n = 0; n < V; n += W) {
        float *x = block_of(row, n, V, edge);
        if (loss.cap) {
#pragma omp simd
            for (int j = 0; j < W; j++) {
                const float bent = tanh_of(x[j] * loss.scale / loss.cap);
                slope[n + j] = 1.0f - bent * bent;
                x[j] = loss.cap * bent;
            }
        } else {
            for (int j = 0; j < W; j++) x[j] *= loss.scale;
        }
        put_back(row, n, V, edge);
    }
}

APART float highest(float *row, int64_t V) {
    float edge[W], tops[W], top = -INFINITY;
    for (int j = 0; j < W; j++) tops[j] = -INFINITY;
    for (int64_t n = 0; n < V; n += W) {
        const float *x = block_of(row, n, V, edge);
        for (int j = 0; j < W; j++) tops[j] = x[j] > tops[j] || x[j] != x[j] ? x[j] : tops[j];
    }
    for (int j = 0; j < W; j++) top = tops[j] > top || tops[j] != tops[j] ? tops[j] : top;
    return top;
}

APART float sum_of(float *row, int64_t V) {
    float sums[W] = {0}, sum = 0;
    int64_t n = 0;
    for (; n + W <= V; n += W)
        for (int j = 0; j < W; j++) sums[j] += row[n + j];
    for (; n < V; n++) sums[n % W] += row[n];
    for (int j = 0; j < W; j++) sum += sums[j];
    return sum;
}

/* Logits become exp(logit - base); their sum. */
APART float exponentials(float *row, int64_t V, float base) {
    float edge[W], sums[W] = {0}, sum = 0;
    for (int64_t n = 0; n < V; n += W) {
        float *x = block_of(row, n, V, edge);
        const int whole = n + W <= V;
#pragma omp simd
        for (int j = 0; j < W; j++) {
            x[j] = exp_minus(base - x[j]);
            sums[j] += whole || n + j < V ? x[j] : 0.0f;
        }
        put_back(row, n, V, edge);
    }
    for (int j = 0; j < W; j++) sum += sums[j];
    return sum;
}

/* (x factor - rest) slope, the last unless NULL. `half`: as bf16 from the start of the row on, behind what was read. */
INLINE void finish(float *row, int64_t V, float factor, float rest, const float *slope, int half) {
    for (int64_t n = 0; n < V; n += W) {
        const int64_t here = n + W <= V ? W : V - n;
        float x[W] = {0};
        memcpy(x, row + n, sizeof(float) * here);
        COLUMNS x[j] = x[j] * factor - rest;
        if (slope) COLUMNS x[j] *= slope[n + j];
        if (half) {
            bf16 rounded[W];
            COLUMNS rounded[j] = to_bf16(x[j]);
            memcpy((char *)row + sizeof(bf16) * n, rounded, sizeof(bf16) * here);
        } else {
            memcpy(row + n, x, sizeof(float) * here);
        }
    }
}
APART void finish_fp32(float *row, int64_t V, float factor, float rest, const float *slope) {
    finish(row, V, factor, rest, slope, 0);
}
APART void finish_bf16(float *row, int64_t V, float factor, float rest, const float *slope) {
    finish(row, V, factor, rest, slope, 1);
}

/* Fills losses and lse [C], unless lse is known; where there are factors [C], logits become the gradient, with `half` in
 * bf16 at the start of their rows. `slopes`: a row of floats per thread, V rounded up to W, where there is a cap. */
void loss_rows(float *logits, int64_t C, int64_t V, int64_t stride, const int64_t *targets, const float *factors,
               float *losses, float *lse, int known, const Loss *of, float *slopes, int half, int threads) {
    const Loss loss = *of;
    const int64_t wide = (V + W - 1) / W * W;
#pragma omp parallel num_threads(threads)
    {
        float *slope = loss.cap ? slopes + omp_get_thread_num() * wide : NULL;
#pragma omp for schedule(static)
        for (int64_t c = 0; c < C; c++) {
            float *row = logits + c * stride, share;
            const int64_t target = targets[c];
            if (loss.cap || loss.scale != 1.0f) shape(row, V, loss, slope);
            if (known) {
                exponentials(row, V, lse[c]);
                share = 1.0f + 2.0f * loss.z * lse[c];
            } else {
                const float top = highest(row, V), of_target = row[target];
                const float mean = loss.smoothing ? sum_of(row, V) / V : of_target;
                const float total = exponentials(row, V, top), rest = logf(total), normaliser = top + rest;
                lse[c] = normaliser;
                losses[c] = top - of_target + rest + loss.smoothing * (of_target - mean) +
                            loss.z * normaliser * normaliser;
                share = (1.0f + 2.0f * loss.z * normaliser) / total;
            }
            if (!factors) continue;
            const float factor = factors[c] * loss.scale, rest = factor * (loss.smoothing / V);
            float of_target = row[target] * (factor * share) - rest - factor * (1.0f - loss.smoothing);
            if (loss.cap) of_target *= slope[target];
            (half ? finish_bf16 : finish_fp32)(row, V, factor * share, rest, slope);
            put(row, target, of_target, half);
        }
    }
}
