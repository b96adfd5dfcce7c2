/* Vectors of the processor's width, and small products of rows that lie packed in memory.
 *
 * Operands of products are words of 32 bits: numbers in fp32, or (pairs) two in bf16 whose products a word's lane adds,
 * on processors with an instruction for that. Letters: L lanes; R rows of a tile of sums, which is two vectors wide; M
 * its width; K features of a row, KP their multiple of L.
 */
#ifndef HOTPLATE_LANES_H
#define HOTPLATE_LANES_H

#include <stdint.h>
#include <string.h>

#include "activations.h"

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))

#if defined(__AVX512F__)
#include <immintrin.h>
enum { L = 16, R = 8 };
#elif defined(__AVX__)
enum { L = 8, R = 6 };
#else
enum { L = 4, R = 4 };
#endif
/* Where 256 bits are multiplied at a time, a step has so few products that every other instruction counts. */
#if defined(__AVX__) && !defined(__AVX512F__)
#define UNROLLED _Pragma("GCC unroll 4")
#else
#define UNROLLED
#endif
enum { M = 2 * L, LINE = 64 };
enum { AHEAD = 16 }; /* rows that are fetched before they are packed */
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
enum { PAIRS = 1 }; /* whether products of pairs in bf16 are an instruction */
#else
enum { PAIRS = 0 };
#endif

typedef float lanes __attribute__((vector_size(4 * L)));
typedef float loose __attribute__((vector_size(4 * L), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(4 * L)));
typedef int32_t word __attribute__((may_alias));

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
INLINE lanes all(float x) { return x - (lanes){0}; }
INLINE lanes pick(places mask, lanes yes, lanes no) { return (lanes)(((places)yes & mask) | ((places)no & ~mask)); }

#if defined(__AVX512F__)
/* b where one is NaN. */
INLINE lanes larger(lanes a, lanes b) { return (lanes)_mm512_max_ps((__m512)a, (__m512)b); }

/* 2^y for y below 127; below -126 a line down to 0 at -127; NaN stays. y is a multiple of 1/16, whose power is a
 * table's entry and an exponent, plus r. */
INLINE lanes power_of(lanes y) {
    static const places powers = {/* bits of 2^(j / 16), less what j adds to the exponent */
        0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
        0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d,
    };
    const float shift = 786432.0f; /* 1.5 * 2^19: what is added to it is rounded to a multiple of 1/16 */
    y = larger(all(-127.0f), y);
    const lanes shifted = y + all(shift), r = y - (shifted - all(shift));
    const places entry = (places)_mm512_permutexvar_epi32((__m512i)shifted, (__m512i)powers);
    const lanes power = (lanes)(entry + ((places)shifted << 19));
    const lanes p = (all(5.550573766e-2f) * r + all(2.402343303e-1f)) * r + all(6.931471825e-1f); /* (2^r - 1) / r */
    return power * (p * r) + power;
}
#else
INLINE lanes larger(lanes a, lanes b) { return pick(a > b, a, b); }

/* As above, but right down to 2^-149. */
INLINE lanes power_of(lanes y) {
    y = larger(all(-151.0f), y);
    const lanes n = y + all(12582912.0f) - all(12582912.0f); /* 1.5 * 2^23 */
    const lanes r = (y - n) * all(0.693147181f);
    const places whole = __builtin_convertvector(n, places), half = whole >> 1;
    lanes p = all(1.984588598e-4f); /* as in activations.h */
    p = p * r + all(1.394071965e-3f);
    p = p * r + all(8.333389647e-3f);
    p = p * r + all(4.166635871e-2f);
    p = p * r + all(1.666666567e-1f);
    p = p * r + all(0.5f);
    p = p * (r * r) + r + all(1.0f); /* times 2^n in two factors, as it may be no normal number */
    return p * (lanes)((half + 127) << 23) * (lanes)((whole - half + 127) << 23);
}
#endif

#if defined(__AVX512BF16__)
INLINE lanes add_pairs(lanes sum, word a, lanes right) {
    return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)right);
}
#else
INLINE lanes add_pairs(lanes sum, word a, lanes right) { return sum; }
#endif

/* sum[i][j] += sum over d < depth of a[i a_row + d a_step] b[d b_row + j L] for R rows and one vector or two. */
INLINE void multiply(const int pairs, const int vectors, int64_t depth, const float *restrict a, int64_t a_row,
                     int64_t a_step, const float *restrict b, int64_t b_row, lanes sum[R][2]) {
    UNROLLED
    for (int64_t d = 0; d < depth; d++, a += a_step, b += b_row) {
        lanes right[2];
        for (int j = 0; j < vectors; j++) right[j] = *(const lanes *)(b + j * L);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
            for (int j = 0; j < vectors; j++)
                if (pairs) sum[i][j] = add_pairs(sum[i][j], *(const word *)(a + i * a_row), right[j]);
                else sum[i][j] += all(a[i * a_row]) * right[j];
    }
}

INLINE void clear(lanes sum[R][2]) {
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = (lanes){0};
}

/* `count` rows of x [., K] in fp32 (half: in bf16) as numbers, KP apart; what lacks of `rows` and of KP is 0. */
INLINE void pack_as(const void *from, const int half, int64_t x_row, int64_t count, int64_t rows, int64_t K, int64_t KP,
                    float *out) {
    const int64_t size = half ? 2 : 4;
    const char *x = from;
    for (int64_t i = 0; i < count; i++, x += x_row * size, out += KP) {
        for (int64_t at = 0; at < K * size && i + AHEAD < count; at += LINE)
            __builtin_prefetch(x + AHEAD * x_row * size + at);
        int64_t k = 0;
        if (half) {
#pragma omp simd
            for (k = 0; k < K; k++) out[k] = from_bf16(((const bf16 *)x)[k]);
        }
        for (; k + L <= K; k += L) *(lanes *)(out + k) = *(const loose *)((const float *)x + k);
        for (; k < KP; k++) out[k] = k < K ? ((const float *)x)[k] : 0.0f;
    }
    memset(out, 0, sizeof(float) * (rows - count) * KP);
}

APART void pack(const void *x, int half, int64_t x_row, int64_t count, int64_t rows, int64_t K, int64_t KP,
                float *out) {
    if (half) pack_as(x, 1, x_row, count, rows, K, KP, out);
    else pack_as(x, 0, x_row, count, rows, K, KP, out);
}

/* The same of bf16 as pairs of features, W words apart. */
APART void pack_pairs(const bf16 *x, int64_t x_row, int64_t count, int64_t rows, int64_t K, int64_t W, float *out) {
    for (int64_t i = 0; i < count; i++, x += x_row, out += W) {
        for (int64_t k = 0; k < K && i + AHEAD < count; k += LINE / 2) __builtin_prefetch(x + AHEAD * x_row + k);
        int64_t k = 0;
        for (; k + 2 * L <= K; k += 2 * L) *(lanes *)(out + k / 2) = *(const loose *)(x + k);
        if (k < K) {
            lanes last = {0};
            memcpy(&last, x + k, 2 * (K - k));
            *(lanes *)(out + k / 2) = last;
        }
    }
    memset(out, 0, sizeof(float) * (rows - count) * W);
}

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
typedef int16_t shorts __attribute__((vector_size(4 * L)));
static const shorts ZIPPED = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                              8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};

/* Two vectors in bf16, the second in the upper half; and as pairs, a lane of the first beside the second's. */
INLINE lanes rounded(lanes a, lanes b) { return (lanes)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a); }
INLINE lanes paired(lanes a, lanes b) {
    const shorts at = ZIPPED - ((ZIPPED >> 5) << 4); /* lanes 16 to 31 are the second's */
    return (lanes)_mm512_permutexvar_epi16((__m512i)at, (__m512i)rounded(a, b));
}

/* Rows of pairs of features [rows, W] as features of pairs of rows: [rows / 2, KP]. */
APART void pair_rows(const float *x, int64_t rows, int64_t W, int64_t KP, float *out) {
    for (int64_t i = 0; i < rows; i += 2, x += 2 * W, out += KP)
        for (int64_t k = 0; k < KP; k += L) {
            const shorts at = ZIPPED + (int16_t)(k & L);
            const float *from = x + k / (2 * L) * L;
            const __m512i one = *(const __m512i *)from, other = *(const __m512i *)(from + W);
            *(__m512i *)(out + k) = _mm512_permutex2var_epi16(one, (__m512i)at, other);
        }
}
#else
INLINE lanes rounded(lanes a, lanes b) { return a; }
INLINE lanes paired(lanes a, lanes b) { return a; }
INLINE void pair_rows(const float *x, int64_t rows, int64_t W, int64_t KP, float *out) {}
#endif

/* M rows of W words as columns: [W, M]. */
#if defined(__GNUC__) && !defined(__clang__)
APART void transpose(const float *x, int64_t W, float *out) {
    places lane;
    for (int i = 0; i < L; i++) lane[i] = i;
    for (int64_t m = 0; m < M; m += L)
        for (int64_t k = 0; k < W; k += L) {
            lanes row[L];
            for (int i = 0; i < L; i++) row[i] = *(const lanes *)(x + (m + i) * W + k);
#pragma GCC unroll 4
            for (int half = L / 2; half; half /= 2) { /* squares of `half` beside the diagonal change places */
                const places second = (lane & half) != 0;
                const places upper = lane + (second & (L - half)), lower = lane + (second & L) + (~second & half);
#pragma GCC unroll 16
                for (int i = 0; i < L; i++) {
                    if (i & half) continue;
                    const lanes one = row[i], other = row[i + half];
                    row[i] = __builtin_shuffle(one, other, upper);
                    row[i + half] = __builtin_shuffle(one, other, lower);
                }
            }
            for (int i = 0; i < L; i++) *(lanes *)(out + (k + i) * M + m) = row[i];
        }
}
#else
APART void transpose(const float *x, int64_t W, float *out) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t k = 0; k < W; k++) ((word *)out)[k * M + m] = ((const word *)x)[m * W + k];
}
#endif

/* Rows of a tile of sums times `factor` to fp32 (half: bf16) from element `at` on, `row` apart: so many rows and
 * columns. */
INLINE void put_tile(lanes sum[R][2], const float *factor, void *to, int half, int64_t at, int64_t row, int64_t rows,
                     int64_t columns) {
    if (!half && columns >= 2 * L) {
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
            for (int j = 0; j < 2 && i < rows; j++)
                *(loose *)((float *)to + at + i * row + j * L) = sum[i][j] * all(factor[i]);
        return;
    }
    lanes tile[R][2];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
        for (int j = 0; j < 2; j++) tile[i][j] = sum[i][j] * all(factor[i]);
    for (int i = 0; i < least(R, rows); i++) {
        bf16 short_row[2 * L];
        if (half) {
#pragma omp simd
            for (int k = 0; k < 2 * L; k++) short_row[k] = to_bf16(((const float *)tile[i])[k]);
            memcpy((bf16 *)to + at + i * row, short_row, 2 * least(2 * L, columns));
        } else {
            memcpy((float *)to + at + i * row, tile[i], 4 * least(2 * L, columns));
        }
    }
}

#endif
