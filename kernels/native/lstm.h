/* The multi-head LSTM recurrence and its backward in fp32; rooms lstm and lstm_dense (one head) compile it.
 *
 * Letters: B rows, T steps, H heads, K head width, R recurrent matrices (H, or 1 shared), P panels of LANES columns.
 * A program keeps h and c of a block of rows of one head in cache and walks all steps. The products of a step are made
 * in tiles of rows x vectors registers, and a panel's gates are finished while its sums are in the first cache.
 * Every row is summed in one order, whatever rows share its block: packing and batching cannot change a result.
 */
#ifndef HOTPLATE_LSTM_H
#define HOTPLATE_LSTM_H

#include <omp.h>

#include "activations.h"
#include "fetch.h"
#include "tiles.h"

/* Element strides of a tensor [B, T, ..., H, K] whose K is contiguous. */
typedef struct {
    int64_t b, t, gate, head;
} strides;

typedef struct {
    int64_t B, T, H, R, K, blocks; /* the rows of a head are split into so many blocks of at most MAX_ROWS */
} sizes;

typedef struct {
    int64_t head, start, rows;
} program;

static program nth_program(const sizes *s, int64_t n) {
    const int64_t block = n % s->blocks, start = block * s->B / s->blocks;
    return (program){n / s->blocks, start, (block + 1) * s->B / s->blocks - start};
}

/* Every block of a call has tiles of the same width, because they share a packed matrix. */
static int forward_vectors(const sizes *s) { return widest((s->B + s->blocks - 1) / s->blocks); }

static int backward_vectors(const sizes *s) {
    int vectors = forward_vectors(s);
    while (padded(s->K) / LANES % vectors) vectors /= 2;
    return vectors;
}

/* recurrent [4, R, K (in), K (out)] -> [R, P, 4 / V, K (in), V gates, LANES (out)], zeros beyond K. */
static void pack_forward(const float *recurrent, float *packed, const sizes *s, int threads) {
    const int64_t K = s->K, P = padded(K) / LANES, V = forward_vectors(s);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < s->R * P * 4; n++) {
        const int64_t gate = n % 4, p = n / 4 % P, head = n / 4 / P;
        const float *from = recurrent + (gate * s->R + head) * K * K + p * LANES;
        float *to = packed + (((head * P + p) * (4 / V) + gate / V) * K * V + gate % V) * LANES;
        for (int64_t k = 0; k < K; k++) load(to + k * V * LANES, from + k * K, K - p * LANES);
    }
}

/* recurrent [4, R, K (in), K (out)] -> [R, P / V, 4, K (out), V, LANES (in)], zeros beyond K. */
static void pack_backward(const float *recurrent, float *packed, const sizes *s, int threads) {
    const int64_t K = s->K, P = padded(K) / LANES, V = backward_vectors(s);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < s->R * P * 4; n++) {
        const int64_t gate = n % 4, p = n / 4 % P, head = n / 4 / P, in = p * LANES;
        const float *from = recurrent + ((gate * s->R + head) * K + in) * K;
        float *to = packed + (((head * (P / V) + p / V) * 4 + gate) * K * V + p % V) * LANES;
        for (int64_t k = 0; k < K; k++)
            for (int64_t lane = 0; lane < LANES; lane++)
                to[k * V * LANES + lane] = in + lane < K ? from[lane * K + k] : 0;
    }
}

/* A panel of a block, row after row: a loop over it has rows * LANES columns. */
typedef float panel[MAX_ROWS * LANES] __attribute__((aligned(4 * LANES)));

/* Gates [4] become activated, c and h the next state. A loop per activation: its constants stay in registers and the
 * chains of several columns overlap; one loop that made all five took half as long again. */
static __attribute__((noinline)) void cell(panel *restrict gates, float *restrict c, float *restrict h, int64_t count,
                                           float forget_offset, int to_16) {
    float *i = gates[0], *f = gates[1], *z = gates[2], *o = gates[3];
    for (int64_t n = 0; n < count; n++) i[n] = sigmoid(i[n]);
    for (int64_t n = 0; n < count; n++) f[n] = sigmoid(f[n] + forget_offset);
    for (int64_t n = 0; n < count; n++) z[n] = tanh_of(z[n]);
    for (int64_t n = 0; n < count; n++) o[n] = sigmoid(o[n]);
    for (int64_t n = 0; n < count; n++) c[n] = f[n] * c[n] + i[n] * z[n];
    for (int64_t n = 0; n < count; n++) h[n] = o[n] * tanh_of(c[n]);
    for (int64_t n = 0; to_16 && n < count; n++) h[n] = from_bf16(to_bf16(h[n]));
}

static void forward_program(const float *gates, const strides *at, const float *packed, const float *h0,
                            const float *c0, const uint8_t *resets, float *h, float *h_last, float *c_last, float *act,
                            float *cells, float *work, const sizes *s, program p, float forget_offset, int to_16) {
    const int64_t K = s->K, width = padded(K);
    const int vectors = forward_vectors(s);
    float *h_now = work, *h_next = work + MAX_ROWS * width;
    panel *c = (panel *)(work + 2 * MAX_ROWS * width), pre[4], h_panel;
    vec sums[2][MAX_ROWS][4];
    memset(work, 0, 4 * 3 * MAX_ROWS * width);
    for (int64_t r = 0; r < p.rows; r++) {
        const int64_t from = ((p.start + r) * s->H + p.head) * K;
        if (h0) memcpy(h_now + r * width, h0 + from, 4 * K);
        for (int64_t k = 0; c0 && k < K; k += LANES) load(c[k / LANES] + r * LANES, c0 + from + k, K - k);
    }
    for (int64_t t = 0; t < s->T; t++) {
        for (int64_t r = 0; resets && r < p.rows; r++)
            if (resets[(p.start + r) * s->T + t]) {
                memset(h_now + r * width, 0, 4 * width);
                for (int64_t k = 0; k < K; k += LANES) memset(c[k / LANES] + r * LANES, 0, 4 * LANES);
            }
        for (int64_t k = 0; k < K; k += LANES) {
            const vec *right = (const vec *)packed + ((p.head % s->R) * width + k) / LANES * 4 * K;
            /* What the next panel reads and writes, while the product keeps the processor busy: its rows are far apart,
             * so the hardware does not see them coming, and in the first cache they would evict each other. */
            const int64_t then = k + LANES < K ? t : t + 1, column = then == t ? k + LANES : 0;
            for (int64_t r = 0; r < p.rows; r++) {
                const int64_t b = p.start + r;
                fetch(gates + b * at->b + then * at->t + p.head * at->head + column, 4 * at->gate, 4, 4 * LANES);
                claim(h + ((b * s->T + then) * s->H + p.head) * K + column, 0, 1, 4 * LANES);
            }
            for (int g = 0; g < 4; g += vectors)
                product(p.rows, vectors, K, h_now, width, right + g * K, sums[g / vectors]);
            for (int64_t r = 0; r < p.rows; r++) {
                const float *x = gates + (p.start + r) * at->b + t * at->t + p.head * at->head + k;
                for (int g = 0; g < 4; g++) {
                    vec *to = (vec *)pre[g] + r;
                    load((float *)to, x + g * at->gate, K - k);
                    *to += sums[g / vectors][r][g % vectors];
                }
            }
            cell(pre, c[k / LANES], h_panel, p.rows * LANES, forget_offset, to_16);
            for (int64_t r = 0; r < p.rows; r++) {
                const int64_t b = p.start + r, saved = (t * s->H + p.head) * s->B + b;
                store(h_next + r * width + k, h_panel + r * LANES, LANES);
                store(h + ((b * s->T + t) * s->H + p.head) * K + k, h_panel + r * LANES, K - k);
                for (int g = 0; act && g < 4; g++) store(act + (saved * 4 + g) * K + k, pre[g] + r * LANES, K - k);
                if (act) store(cells + saved * K + k, c[k / LANES] + r * LANES, K - k);
            }
        }
        float *swap = h_now;
        h_now = h_next, h_next = swap;
    }
    for (int64_t r = 0; r < p.rows; r++) {
        const int64_t to = ((p.start + r) * s->H + p.head) * K;
        memcpy(h_last + to, h_now + r * width, 4 * K);
        for (int64_t k = 0; k < K; k += LANES) store(c_last + to + k, c[k / LANES] + r * LANES, K - k);
    }
}

/* gates [B, T, 4, H, K]; recurrent [4, R, K, K] contiguous; packed: 4 R K P LANES floats, aligned. h0, c0 [B, H, K] or
 * null; resets [B, T] or null. h [B, T, H, K]; h_last, c_last [B, H, K]; act [T, H, B, 4, K] activated gates and cells
 * [T, H, B, K], or null where no backward follows. work: 3 MAX_ROWS P LANES floats per thread, aligned. to_16: h is
 * rounded to bf16. */
void lstm_forward(const float *gates, const strides *at, const float *recurrent, float *packed, const float *h0,
                  const float *c0, const uint8_t *resets, float *h, float *h_last, float *c_last, float *act,
                  float *cells, float *work, const sizes *s, float forget_offset, int to_16, int threads) {
    const int64_t share = 3 * MAX_ROWS * padded(s->K);
    pack_forward(recurrent, packed, s, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t n = 0; n < s->H * s->blocks; n++)
        forward_program(gates, at, packed, h0, c0, resets, h, h_last, c_last, act, cells,
                        work + omp_get_thread_num() * share, s, nth_program(s, n), forget_offset, to_16);
}

/* act [4][LANES] and what arrives become da [4][LANES]; dc becomes what the step before receives, but for its reset. */
static inline void cell_backward(const float act[restrict 4][LANES], const float *restrict c,
                                 const float *restrict c_before, const float *restrict dh,
                                 const float *restrict dh_out, float *restrict dc, float da[restrict 4][LANES]) {
    for (int n = 0; n < LANES; n++) {
        const float i = act[0][n], f = act[1][n], z = act[2][n], o = act[3][n], tanh_c = tanh_of(c[n]);
        const float dh_t = dh[n] + dh_out[n], dc_t = dc[n] + dh_t * o * (1 - tanh_c * tanh_c);
        da[0][n] = dc_t * z * i * (1 - i);
        da[1][n] = dc_t * c_before[n] * f * (1 - f);
        da[2][n] = dc_t * i * (1 - z * z);
        da[3][n] = dh_t * tanh_c * o * (1 - o);
        dc[n] = dc_t * f;
    }
}

enum { ROWS_AHEAD = 2 }; /* of the walk over rows and columns in the backward */

static void backward_program(const float *dh, const strides *at, const float *dh_last, const float *dc_last,
                             const float *act, const float *cells, const float *c0, const uint8_t *resets,
                             const float *packed, float *dgates, float *dh0, float *dc0, float *work, const sizes *s,
                             program p) {
    const int64_t K = s->K, width = padded(K);
    const int vectors = backward_vectors(s);
    float *dh_now = work, *dc = work + MAX_ROWS * width, *dpre = work + 2 * MAX_ROWS * width;
    vec sums[4][MAX_ROWS][4];
    memset(work, 0, 4 * 6 * MAX_ROWS * width);
    for (int64_t r = 0; r < p.rows; r++) {
        const int64_t from = ((p.start + r) * s->H + p.head) * K;
        if (dh_last) memcpy(dh_now + r * width, dh_last + from, 4 * K);
        if (dc_last) memcpy(dc + r * width, dc_last + from, 4 * K);
    }
    for (int64_t t = s->T - 1; t >= 0; t--) {
        for (int64_t r = 0; r < p.rows; r++) {
            const int64_t b = p.start + r, saved = (t * s->H + p.head) * s->B + b;
            const int reset = resets && resets[b * s->T + t];
            const float *before = t ? cells + (saved - s->H * s->B) * K : c0 ? c0 + (b * s->H + p.head) * K : 0;
            float *to = dgates + ((b * s->T + t) * 4 * s->H + p.head) * K;
            /* From here to the row that is next but one, of this step or the one before. */
            const int64_t wraps = r + ROWS_AHEAD >= p.rows, rows = ROWS_AHEAD - wraps * p.rows;
            const int64_t kept = (rows - wraps * s->H * s->B) * K, step = rows * s->T - wraps;
            const int64_t arriving = rows * at->b - wraps * at->t;
            for (int64_t k = 0; k < K; k += LANES) {
                float activated[4][LANES], da[4][LANES], c[LANES], c_before[LANES] = {0}, dh_out[LANES];
                fetch(act + (saved * K + kept) * 4 + k, 4 * K, 4, 4 * LANES);
                fetch(cells + saved * K + kept - s->H * s->B * K + k, 0, 1, 4 * LANES);
                fetch(dh + b * at->b + t * at->t + p.head * at->head + arriving + k, 0, 1, 4 * LANES);
                claim(to + step * 4 * s->H * K + k, 4 * s->H * K, 4, 4 * LANES);
                for (int g = 0; g < 4; g++) load(activated[g], act + (saved * 4 + g) * K + k, K - k);
                load(c, cells + saved * K + k, K - k);
                load(dh_out, dh + b * at->b + t * at->t + p.head * at->head + k, K - k);
                if (before && !reset) load(c_before, before + k, K - k);
                cell_backward(activated, c, c_before, dh_now + r * width + k, dh_out, dc + r * width + k, da);
                for (int g = 0; g < 4; g++) {
                    store(to + g * s->H * K + k, da[g], K - k);
                    store(dpre + (r * 4 + g) * K + k, da[g], K - k);
                }
            }
            if (reset) memset(dc + r * width, 0, 4 * width);
        }
        for (int64_t k = 0; k < width; k += vectors * LANES) {
            const vec *right = (const vec *)packed + ((p.head % s->R) * width + k) / LANES * 4 * K;
            for (int g = 0; g < 4; g++)
                product(p.rows, vectors, K, dpre + g * K, 4 * K, right + g * K * vectors, sums[g]);
            for (int64_t r = 0; r < p.rows; r++)
                for (int v = 0; v < vectors; v++) /* one sum per gate: a chain of 4 K terms loses a third more digits */
                    ((vec *)(dh_now + r * width + k))[v] =
                        (sums[0][r][v] + sums[1][r][v]) + (sums[2][r][v] + sums[3][r][v]);
        }
        for (int64_t r = 0; resets && r < p.rows; r++)
            if (resets[(p.start + r) * s->T + t]) memset(dh_now + r * width, 0, 4 * width);
    }
    for (int64_t r = 0; r < p.rows; r++) {
        const int64_t to = ((p.start + r) * s->H + p.head) * K;
        memcpy(dh0 + to, dh_now + r * width, 4 * K);
        memcpy(dc0 + to, dc + r * width, 4 * K);
    }
}

/* dh [B, T, H, K]; dh_last, dc_last [B, H, K] or null; act, cells, c0, resets, recurrent and packed as in the
 * forward. dgates [B, T, 4, H, K]; dh0, dc0 [B, H, K]. work: 6 MAX_ROWS P LANES floats per thread, aligned. */
void lstm_backward(const float *dh, const strides *at, const float *dh_last, const float *dc_last, const float *act,
                   const float *cells, const float *c0, const uint8_t *resets, const float *recurrent, float *packed,
                   float *dgates, float *dh0, float *dc0, float *work, const sizes *s, int threads) {
    const int64_t share = 6 * MAX_ROWS * padded(s->K);
    pack_backward(recurrent, packed, s, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t n = 0; n < s->H * s->blocks; n++)
        backward_program(dh, at, dh_last, dc_last, act, cells, c0, resets, packed, dgates, dh0, dc0,
                         work + omp_get_thread_num() * share, s, nth_program(s, n));
}

int lstm_lanes(void) { return LANES; }
int lstm_max_rows(void) { return MAX_ROWS; }

#endif
