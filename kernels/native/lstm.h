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

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define MAX_ROWS 12
#define UNROLLED _Pragma("GCC unroll 12")

typedef float vec __attribute__((vector_size(4 * LANES)));

/* Of the K - k columns that are left, at most LANES; columns beyond K hold zeros. */
static inline void load(float *to, const float *from, int64_t count) {
    if (count >= LANES) {
        memcpy(to, from, 4 * LANES);
    } else {
        memset(to, 0, 4 * LANES);
        memcpy(to, from, 4 * count);
    }
}

static inline void store(float *to, const float *from, int64_t count) {
    if (count >= LANES)
        memcpy(to, from, 4 * LANES);
    else
        memcpy(to, from, 4 * count);
}

/* sums[row][vector] = sum over k < depth of a[row][k] b[k][vector] */
static inline __attribute__((always_inline)) void tile(const int rows, const int vectors, int64_t depth,
                                                       const float *a, int64_t a_row, const vec *b, vec sums[][4]) {
    vec sum[MAX_ROWS][4];
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int v = 0; v < vectors; v++) sum[r][v] = (vec){0};
    for (int64_t k = 0; k < depth; k++) {
        vec right[4];
        UNROLLED for (int v = 0; v < vectors; v++) right[v] = b[k * vectors + v];
        UNROLLED for (int r = 0; r < rows; r++)
            UNROLLED for (int v = 0; v < vectors; v++) sum[r][v] += a[r * a_row + k] * right[v];
    }
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int v = 0; v < vectors; v++) sums[r][v] = sum[r][v];
}

/* The rows of a tile are rounded up to one of six counts; spare rows are zeros that nobody reads. Tiles of many rows
 * are two vectors wide: rows * vectors sums have to fit the registers. */
static inline int tall(int64_t rows) { return rows <= 1 ? 1 : rows <= 8 ? (int)((rows + 1) / 2 * 2) : MAX_ROWS; }
static inline int widest(int64_t rows) { return rows <= 6 ? 4 : 2; }

#define TILE(rows, vectors)                            \
    case 8 * rows + vectors:                           \
        tile(rows, vectors, depth, a, a_row, b, sums); \
        break;

static void product(int64_t rows, int vectors, int64_t depth, const float *a, int64_t a_row, const vec *b,
                    vec sums[][4]) {
    switch (8 * tall(rows) + vectors) {
        TILE(1, 4) TILE(2, 4) TILE(4, 4) TILE(6, 4)
        TILE(1, 2) TILE(2, 2) TILE(4, 2) TILE(6, 2) TILE(8, 2) TILE(12, 2)
        TILE(1, 1) TILE(2, 1) TILE(4, 1) TILE(6, 1) TILE(8, 1) TILE(12, 1)
    }
}

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

static inline int64_t padded(int64_t K) { return (K + LANES - 1) / LANES * LANES; }

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

/* Finishes LANES columns of a row: gates [4][LANES] become activated, c and h the next state. */
static inline void cell(float gates[restrict 4][LANES], const vec *restrict sums, float *restrict c, float *restrict h,
                        float forget_offset, int to_16) {
    const float *product = (const float *)sums;
    for (int n = 0; n < LANES; n++) {
        const float i = sigmoid(gates[0][n] + product[n]);
        const float f = sigmoid(gates[1][n] + product[LANES + n] + forget_offset);
        const float z = tanh_of(gates[2][n] + product[2 * LANES + n]);
        const float o = sigmoid(gates[3][n] + product[3 * LANES + n]);
        const float next = f * c[n] + i * z;
        gates[0][n] = i, gates[1][n] = f, gates[2][n] = z, gates[3][n] = o;
        c[n] = next;
        h[n] = o * tanh_of(next);
    }
    if (to_16)
        for (int n = 0; n < LANES; n++) h[n] = from_bf16(to_bf16(h[n]));
}

static void forward_program(const float *gates, const strides *at, const float *packed, const float *h0,
                            const float *c0, const uint8_t *resets, float *h, float *h_last, float *c_last, float *act,
                            float *cells, float *work, const sizes *s, program p, float forget_offset, int to_16) {
    const int64_t K = s->K, width = padded(K);
    const int vectors = forward_vectors(s);
    float *h_now = work, *h_next = work + MAX_ROWS * width, *c = work + 2 * MAX_ROWS * width;
    vec sums[MAX_ROWS][4], others[MAX_ROWS][4];
    memset(work, 0, 4 * 3 * MAX_ROWS * width);
    for (int64_t r = 0; r < p.rows; r++) {
        const int64_t from = ((p.start + r) * s->H + p.head) * K;
        if (h0) memcpy(h_now + r * width, h0 + from, 4 * K);
        if (c0) memcpy(c + r * width, c0 + from, 4 * K);
    }
    for (int64_t t = 0; t < s->T; t++) {
        for (int64_t r = 0; resets && r < p.rows; r++)
            if (resets[(p.start + r) * s->T + t]) {
                memset(h_now + r * width, 0, 4 * width);
                memset(c + r * width, 0, 4 * width);
            }
        for (int64_t k = 0; k < K; k += LANES) {
            const vec *right = (const vec *)packed + ((p.head % s->R) * width + k) / LANES * 4 * K;
            product(p.rows, vectors, K, h_now, width, right, sums);
            if (vectors == 2) {
                product(p.rows, 2, K, h_now, width, right + 2 * K, others);
                for (int64_t r = 0; r < p.rows; r++) sums[r][2] = others[r][0], sums[r][3] = others[r][1];
            }
            for (int64_t r = 0; r < p.rows; r++) {
                const int64_t b = p.start + r, saved = (t * s->H + p.head) * s->B + b;
                const float *x = gates + b * at->b + t * at->t + p.head * at->head + k;
                float activated[4][LANES];
                for (int g = 0; g < 4; g++) {
                    load(activated[g], x + g * at->gate, K - k);
                    __builtin_prefetch(x + g * at->gate + at->t); /* harmless beyond the last step */
                }
                cell(activated, sums[r], c + r * width + k, h_next + r * width + k, forget_offset, to_16);
                store(h + ((b * s->T + t) * s->H + p.head) * K + k, h_next + r * width + k, K - k);
                for (int g = 0; act && g < 4; g++) store(act + (saved * 4 + g) * K + k, activated[g], K - k);
                if (act) store(cells + saved * K + k, c + r * width + k, K - k);
            }
        }
        float *swap = h_now;
        h_now = h_next, h_next = swap;
    }
    for (int64_t r = 0; r < p.rows; r++) {
        const int64_t to = ((p.start + r) * s->H + p.head) * K;
        memcpy(h_last + to, h_now + r * width, 4 * K);
        memcpy(c_last + to, c + r * width, 4 * K);
    }
}

/* gates [B, T, 4, H, K]; recurrent [4, R, K, K] contiguous; packed: 4 R K P LANES floats, aligned. h0, c0 [B, H, K] or null; resets [B, T]
 * or null. h [B, T, H, K]; h_last, c_last [B, H, K]; act [T, H, B, 4, K] activated gates and cells [T, H, B, K], or
 * null where no backward follows. work: 3 MAX_ROWS P LANES floats per thread, aligned. to_16: h is rounded to bf16. */
void lstm_forward(const float *gates, const strides *at, const float *recurrent, float *packed, const float *h0,
                  const float *c0, const uint8_t *resets, float *h, float *h_last, float *c_last, float *act, float *cells, float *work,
                  const sizes *s, float forget_offset, int to_16, int threads) {
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
            for (int64_t k = 0; k < K; k += LANES) {
                float activated[4][LANES], da[4][LANES], c[LANES], c_before[LANES] = {0}, dh_out[LANES];
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
            for (int g = 0; g < 4; g++) product(p.rows, vectors, K, dpre + g * K, 4 * K, right + g * K * vectors, sums[g]);
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
