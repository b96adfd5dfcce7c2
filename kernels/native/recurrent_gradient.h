/* The gradient of the recurrent matrices, dR_g = sum over rows and steps of (k_t h_{t-1})^T da_g of each head; fp32.
 *
 * A term is a row at a step. TERMS of them at a time, h is copied into panels of ROWS columns and da into panels of two
 * vectors, both term-major; tiles of ROWS x two vectors sum CHAIN terms in registers, and those sums are added up in
 * order: one chain of all terms would lose more digits than autograd, which adds up T sums of B terms.
 */
#ifndef HOTPLATE_RECURRENT_GRADIENT_H
#define HOTPLATE_RECURRENT_GRADIENT_H

#include <omp.h>

#include "tiles.h"

enum { ROWS = LANES / 2, CHAIN = 128, TERMS = 4 * CHAIN, GROUP = 4 * LANES }; /* GROUP: columns of da packed at once */

typedef struct {
    int64_t B, T, H, K;
} terms;

/* k_t h_{t-1} of one term and head, or null where it is zero. h [B, T, H, K], h0 [B, H, K] or null, resets [B, T] or
 * null. */
static const float *before(const terms *s, const float *h, const float *h0, const uint8_t *resets, int64_t n,
                           int64_t head) {
    if (resets && resets[n]) return 0;
    if (n % s->T) return h + ((n - 1) * s->H + head) * s->K;
    return h0 ? h0 + (n / s->T * s->H + head) * s->K : 0;
}

/* Columns k .. k + LANES of the terms first .. last, as panels [last - first, ROWS] that are TERMS * ROWS apart. */
static void pack_before(const terms *s, const float *h, const float *h0, const uint8_t *resets, int64_t head,
                        int64_t first, int64_t last, int64_t k, float *to) {
    for (int64_t n = first; n < last; n++) {
        const float *from = before(s, h, h0, resets, n, head);
        float row[LANES] = {0};
        if (from) load(row, from + k, s->K - k);
        for (int part = 0; part < LANES / ROWS; part++)
            memcpy(to + part * TERMS * ROWS + (n - first) * ROWS, row + part * ROWS, 4 * ROWS);
    }
}

/* Columns k .. k + GROUP of one gate and head, as panels [last - first, 2 LANES] that are TERMS * 2 LANES apart. */
static void pack_da(const terms *s, const float *da, int64_t first, int64_t last, int64_t k, float *to) {
    const int64_t row = 4 * s->H * s->K;
    for (int64_t n = first; n < last; n++)
        for (int64_t v = 0; v < GROUP && k + v < s->K; v += LANES) {
            __builtin_prefetch(da + (n + 8) * row + k + v); /* harmless beyond the end */
            load(to + v / (2 * LANES) * TERMS * 2 * LANES + (n - first) * 2 * LANES + v % (2 * LANES),
                 da + n * row + k + v, s->K - k - v);
        }
}

/* to [ROWS, columns], rows K apart: += the sum over `count` terms, or = where they are the first. */
static void add_terms(const float *left, const vec *right, int64_t count, float *to, int64_t K, int64_t rows,
                      int64_t columns, int is_first) {
    vec total[ROWS][2], sums[ROWS][4];
    for (int64_t r = 0; r < ROWS; r++)
        for (int v = 0; v < 2; v++) {
            total[r][v] = (vec){0};
            if (!is_first && r < rows && v * LANES < columns)
                load((float *)&total[r][v], to + r * K + v * LANES, columns - v * LANES);
        }
    for (int64_t n = 0; n < count; n += CHAIN) {
        tile(ROWS, 2, count - n < CHAIN ? count - n : CHAIN, left + n * ROWS, 1, ROWS, right + n * 2, sums);
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2; v++) total[r][v] += sums[r][v];
    }
    for (int64_t r = 0; r < rows; r++)
        for (int v = 0; v < 2 && v * LANES < columns; v++)
            store(to + r * K + v * LANES, (const float *)&total[r][v], columns - v * LANES);
}

/* Floats of work memory that the heads share, and that every thread has; both start at multiples of a vector. */
int64_t gradient_shared_floats(int64_t H, int64_t K) { return H * padded(K) * TERMS; }
int64_t gradient_thread_floats(void) { return TERMS * GROUP; }

/* h [B, T, H, K], h0 [B, H, K] or null, resets [B, T] or null, da [B, T, 4, H, K]; to [4, H, K (in), K (out)]. */
void recurrent_gradient(const float *h, const float *h0, const uint8_t *resets, const float *da, float *to,
                        float *shared, float *work, const terms *s, int threads) {
    const int64_t K = s->K, N = s->B * s->T, width = padded(K), groups = (K + GROUP - 1) / GROUP;
#pragma omp parallel num_threads(threads)
    for (int64_t first = 0; first < N; first += TERMS) {
        const int64_t last = first + TERMS < N ? first + TERMS : N;
        float *right = work + omp_get_thread_num() * TERMS * GROUP;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s->H * width / LANES; n++) {
            const int64_t head = n / (width / LANES), k = n % (width / LANES) * LANES;
            pack_before(s, h, h0, resets, head, first, last, k, shared + (head * width + k) * TERMS);
        }
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < s->H * 4 * groups; n++) {
            const int64_t head = n / (4 * groups), gate = n / groups % 4, start = n % groups * GROUP;
            pack_da(s, da + (gate * s->H + head) * K, first, last, start, right);
            for (int64_t k = start; k < K && k < start + GROUP; k += 2 * LANES)
                for (int64_t row = 0; row < K; row += ROWS)
                    add_terms(shared + (head * width + row) * TERMS,
                              (const vec *)right + (k - start) / (2 * LANES) * TERMS * 2, last - first,
                              to + ((gate * s->H + head) * K + row) * K + k, K, K - row < ROWS ? K - row : ROWS,
                              K - k, first == 0);
        }
    }
}

#endif
