/* C = A B, C += A B or C = A B + bias on a CPU, for operands of any strides. All are fp32; or A and B are bf16, where the
 * processor multiplies pairs of them (AVX512_BF16), and C is fp32 or, of sums in fp32, rounded to bf16.
 *
 * Letters: M, N, K: C is [M, N], A [M, K], B [K, N]; L lanes of a vector; R rows and S columns of C in registers.
 * The classic form (Goto & van de Geijn 2008; van Zee & van de Geijn 2015): blocks of A and B are copied into panels, R
 * rows or S columns wide and K-major, so that the innermost loop reads both from start to end and keeps R x S sums in
 * registers: per step S / L loads, R broadcasts and R S / L fused products. An element's sum runs over K in chains of
 * CHAIN products, each in order, whatever the strides and the number of threads: results are bitwise the same. A block is
 * DEPTH deep: two chains, so that C is read and written again half as often, where the second cache holds ROWS of them.
 * Panels lie a line further apart than they are long: at a power of two, the panels of a block would share few sets of a
 * cache while they are filled.
 * Two bf16 that follow each other along K are a word of a panel, as an fp32 is; K counts words then, an odd last value
 * stands beside a 0, and a fused product adds the two products of a pair.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

typedef uint16_t bf16;
typedef uint32_t word __attribute__((may_alias)); /* of a panel */

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))

/* FETCHED: steps of K after which the words of a panel of columns are needed that a step fetches; 0: the processor's own
 * fetching is as good. UNROLLED: steps of K before the loop's end is looked for: where 256 bits are multiplied at a time,
 * a step has so few products that every other instruction counts. */
#if defined(__AVX512F__)
enum { L = 16, R = 8, CHAINS = 2, FETCHED = 8 };
#define UNROLLED
#elif defined(__AVX__)
enum { L = 8, R = 6, CHAINS = 1, FETCHED = 0 };
#define UNROLLED _Pragma("GCC unroll 4")
#else
enum { L = 4, R = 8, CHAINS = 1, FETCHED = 8 };
#define UNROLLED
#endif
enum { S = 2 * L, CHAIN = 512, DEPTH = CHAINS * CHAIN, ROWS = 16 * R, COLUMNS = 32 * S, LINE = 64 };
enum { GAP = LINE / sizeof(word), AHEAD = 8 }; /* k whose memory is fetched while one is packed: each is another page */
#define PANEL(wide, depth) ((wide) * (depth) + GAP) /* words of a panel */

typedef float lanes __attribute__((vector_size(sizeof(float) * L)));
typedef float loose __attribute__((vector_size(sizeof(float) * L), aligned(4), may_alias));

typedef word loose_word __attribute__((aligned(2)));

typedef struct {
    int64_t M, N, K;
    const void *A; /* strides count elements */
    int64_t A_row, A_column;
    const void *B;
    int64_t B_row, B_column;
    void *C;
    int64_t C_row;
    const float *bias; /* [N] or NULL */
    int add;           /* C += */
    int half;          /* A and B are bf16 */
    int rounded;       /* so is C: nothing is added to it, and K is at most product_rounded_depth() */
} product;

/* 1 where bf16 operands are served. */
int product_of_halves(void) {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

/* 1 where it was measured to be faster than torch's library (kernels/linear/README.md). */
int product_pays(void) {
#if defined(__AVX2__) && defined(__FMA__) && defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}

#if defined(__AVX__)
/* The rows of x, `row` bytes apart, become columns: 8 x 8 words at a time, written in order, so that the next column may
 * lie over the end of one. */
typedef word eight __attribute__((vector_size(32)));
typedef word loose_eight __attribute__((vector_size(32), aligned(2), may_alias));
typedef int32_t eight_places __attribute__((vector_size(32)));
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (eight_places){__VA_ARGS__})
#endif

INLINE void transpose_8x8(const char *x, int64_t row, word *out, int64_t out_row) {
    eight r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = *(const loose_eight *)(x + i * row);
    for (int i = 0; i < 8; i += 2) {
        t[i] = SHUFFLE(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        t[i + 1] = SHUFFLE(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = SHUFFLE(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[i + 2 * j + 1] = SHUFFLE(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++)
        *(loose_eight *)(out + i * out_row) = SHUFFLE(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    for (int i = 0; i < 4; i++)
        *(loose_eight *)(out + (i + 4) * out_row) = SHUFFLE(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
}
#endif

/* Word k of a row: an fp32, or a pair of bf16, of which the second may be beyond the end. */
INLINE word word_of(const char *x, int64_t column, int64_t k, int64_t K, int half) {
    if (!half) return *(const loose_word *)(x + 4 * k * column);
    const bf16 *at = (const bf16 *)x + 2 * k * column;
    return at[0] | (2 * k + 1 < K ? (word)at[column] << 16 : 0);
}

/* Panels of `wide` rows of x [rows, K], of which `depth` words from `from` on, depth-major: out[panel][k][row]; what lacks
 * in the last panel is 0. */
INLINE void pack(const char *x, int64_t row, int64_t column, int64_t rows, int64_t K, int64_t from, int64_t depth, int wide,
                 word *out, int half) {
    const int64_t pitch = PANEL(wide, depth), size = half ? 2 : 4, end = from + depth;
    int64_t first = 0;
    if (row == 1) { /* all panels of a k before the next: what lies side by side is read at once, pages are few */
        first = rows / wide * wide;
        for (int64_t k = from; k < end; k++) {
            word *to = out + (k - from) * wide;
            if (!half) {
                const char *at = x + 4 * k * column;
                for (int64_t n = 0; n < 4 * first; n += LINE) __builtin_prefetch(at + 4 * AHEAD * column + n);
                for (int64_t i = 0; i < first; i += wide, to += pitch) memcpy(to, at + 4 * i, 4 * wide);
            } else if (2 * k + 1 < K) {
                const bf16 *low = (const bf16 *)x + 2 * k * column, *high = low + column;
                for (int64_t i = 0; i < first; i += wide, to += pitch)
#pragma GCC unroll 32
                    for (int n = 0; n < wide; n++) to[n] = low[i + n] | (word)high[i + n] << 16;
            } else {
                const bf16 *low = (const bf16 *)x + 2 * k * column;
                for (int64_t i = 0; i < first; i += wide, to += pitch)
                    for (int n = 0; n < wide; n++) to[n] = low[i + n];
            }
        }
    }
    for (x += first * row * size, out += first / wide * pitch; first < rows;
         first += wide, x += wide * row * size, out += pitch) {
        const int64_t here = rows - first < wide ? rows - first : wide;
        int64_t k = from;
        if (here < wide) memset(out, 0, sizeof(word) * wide * depth);
#if defined(__AVX__)
        if (rows - first >= (wide + 7) / 8 * 8 && column == 1) /* of 6 rows, two more are read, and written over */
            for (; k + 8 <= end && (!half || 2 * (k + 8) <= K); k += 8)
                for (int i = 0; i < wide; i += 8)
                    transpose_8x8(x + i * row * size + 4 * k, row * size, out + (k - from) * wide + i, wide);
#endif
        for (; k < end; k++)
            for (int64_t i = 0; i < here; i++)
                out[(k - from) * wide + i] = word_of(x + i * row * size, column, k, K, half);
    }
}
APART void pack_rows(const product *p, int64_t i, int64_t k, int64_t rows, int64_t depth, word *out) {
    const char *x = (const char *)p->A + i * p->A_row * (p->half ? 2 : 4);
    if (p->half) pack(x, p->A_row, p->A_column, rows, p->K, k, depth, R, out, 1);
    else pack(x, p->A_row, p->A_column, rows, p->K, k, depth, R, out, 0);
}
APART void pack_columns(const product *p, int64_t k, int64_t j, int64_t columns, int64_t depth, word *out) {
    const char *x = (const char *)p->B + j * p->B_column * (p->half ? 2 : 4);
    if (p->half) pack(x, p->B_column, p->B_row, columns, p->K, k, depth, S, out, 1);
    else pack(x, p->B_column, p->B_row, columns, p->K, k, depth, S, out, 0);
}

/* sum + a b, a word of A by L words of B. */
INLINE lanes fused(lanes sum, const word *a, lanes b, int half) {
#if defined(__AVX512BF16__)
    if (half) return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)*a), (__m512bh)b);
#endif
    return sum + (*(const float *)a - (lanes){0}) * b;
}

/* Sums of R x S elements of C from a panel of each operand; `add`: on top of what is there, else on top of `bias`. */
INLINE void tile_of(int64_t depth, const word *restrict a, const word *restrict b, void *restrict c, int64_t row, int add,
                    const float *restrict bias, int half, int rounded) {
    lanes total[R][2];
    for (int i = 0; i < R; i++) {
        char *const to = (char *)c + i * row * (rounded ? sizeof(bf16) : sizeof(float));
        __builtin_prefetch(to, 1);
        __builtin_prefetch(to + (rounded ? sizeof(bf16) : sizeof(float)) * (S - 1), 1);
    }
    int64_t done = 0;
    do { /* once, where a block is one chain deep */
        const int64_t steps = CHAINS == 1 || depth - done < CHAIN ? depth - done : CHAIN;
        lanes sum[R][2];
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = (lanes){0};
        UNROLLED
        for (int64_t k = 0; k < steps; k++, a += R, b += S) {
            const lanes left = *(const lanes *)b, right = *(const lanes *)(b + L);
            if (FETCHED) __builtin_prefetch(b + FETCHED * S);
            if (FETCHED && S * sizeof(word) > LINE) __builtin_prefetch(b + FETCHED * S + L); /* a row's second line */
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                sum[i][0] = fused(sum[i][0], a + i, left, half);
                sum[i][1] = fused(sum[i][1], a + i, right, half);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            total[i][0] = done ? total[i][0] + sum[i][0] : sum[i][0];
            total[i][1] = done ? total[i][1] + sum[i][1] : sum[i][1];
        }
        done += steps;
    } while (CHAINS > 1 && done < depth);
    lanes start[2] = {{0}, {0}};
    if (bias) start[0] = *(const loose *)bias, start[1] = *(const loose *)(bias + L);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
#if defined(__AVX512BF16__)
        if (rounded) {
            const __m512bh both = _mm512_cvtne2ps_pbh((__m512)(total[i][1] + start[1]), (__m512)(total[i][0] + start[0]));
            memcpy((bf16 *)c + i * row, &both, sizeof both);
            continue;
        }
#endif
        loose *to = (loose *)((float *)c + i * row);
        to[0] = total[i][0] + (add ? (lanes)to[0] : start[0]);
        to[1] = total[i][1] + (add ? (lanes)to[1] : start[1]);
    }
}

typedef void tiler(int64_t, const word *, const word *, void *, int64_t, int, const float *);
APART void tile(int64_t depth, const word *a, const word *b, void *c, int64_t row, int add, const float *bias) {
    tile_of(depth, a, b, c, row, add, bias, 0, 0);
}
APART void tile_of_halves(int64_t depth, const word *a, const word *b, void *c, int64_t row, int add, const float *bias) {
    tile_of(depth, a, b, c, row, add, bias, 1, 0);
}
APART void tile_rounded(int64_t depth, const word *a, const word *b, void *c, int64_t row, int add, const float *bias) {
    tile_of(depth, a, b, c, row, add, bias, 1, 1);
}

/* The same for fewer rows or columns than a tile has. */
APART void edge(tiler *tile, int rounded, int64_t depth, const word *a, const word *b, void *c, int64_t row, int add,
                const float *bias, int64_t rows, int64_t columns) {
    const int size = rounded ? sizeof(bf16) : sizeof(float);
    float whole[R * S] __attribute__((aligned(LINE)));
    float bias_there[S] = {0};
    if (bias && !add) memcpy(bias_there, bias, sizeof(float) * columns);
    tile(depth, a, b, whole, S, 0, bias_there);
    for (int64_t i = 0; i < rows; i++) {
        char *to = (char *)c + i * row * size;
        const char *found = (const char *)whole + i * S * size;
        if (add)
            for (int64_t j = 0; j < columns; j++) ((float *)to)[j] += ((const float *)found)[j];
        else memcpy(to, found, columns * size);
    }
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows [top, bottom) and columns [left, right) of C, by one thread. */
static void block(const product *p, int64_t top, int64_t bottom, int64_t left, int64_t right, word *panels) {
    tiler *const whole = p->rounded ? tile_rounded : p->half ? tile_of_halves : tile;
    const int size = p->rounded ? sizeof(bf16) : sizeof(float);
    const int64_t words = p->half ? (p->K + 1) / 2 : p->K;
    word *rows = panels, *columns = panels + ROWS / R * PANEL(R, DEPTH);
    for (int64_t j = left; j < right; j += COLUMNS) {
        const int64_t n = least(COLUMNS, right - j);
        for (int64_t k = 0; k < words; k += DEPTH) {
            const int64_t depth = least(DEPTH, words - k);
            const int add = k > 0 || p->add;
            pack_columns(p, k, j, n, depth, columns);
            for (int64_t i = top; i < bottom; i += ROWS) {
                const int64_t m = least(ROWS, bottom - i);
                pack_rows(p, i, k, m, depth, rows);
                for (int64_t x = 0; x < n; x += S) /* a panel of columns stays in the second cache, with all of rows */
                    for (int64_t y = 0; y < m; y += R) {
                        void *c = (char *)p->C + ((i + y) * p->C_row + j + x) * size;
                        const word *a = rows + y / R * PANEL(R, depth), *b = columns + x / S * PANEL(S, depth);
                        const float *bias = p->bias ? p->bias + j + x : NULL;
                        if (m - y >= R && n - x >= S) whole(depth, a, b, c, p->C_row, add, bias);
                        else edge(whole, p->rounded, depth, a, b, c, p->C_row, add, bias, least(R, m - y), least(S, n - x));
                    }
            }
        }
    }
}

/* Bytes of the panels of one thread, which start at a multiple of LINE. */
int64_t product_panel_bytes(void) { return sizeof(word) * (ROWS / R * PANEL(R, DEPTH) + COLUMNS / S * PANEL(S, DEPTH)); }

/* The longest sum that one block holds. */
int64_t product_rounded_depth(void) { return 2 * DEPTH; }

/* C's rows or columns, whichever are more, are divided among threads. `panels`: product_panel_bytes() per thread. */
void product_of(const product *p, char *panels, int threads) {
    const int by_columns = p->N >= p->M;
    const int64_t size = by_columns ? p->N : p->M, unit = by_columns ? S : R, units = (size + unit - 1) / unit;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {
        const int64_t from = least(size, units * t / threads * unit), to = least(size, units * (t + 1) / threads * unit);
        word *mine = (word *)(panels + product_panel_bytes() * t);
        if (from == to) continue;
        if (by_columns) block(p, 0, p->M, from, to, mine);
        else block(p, from, to, 0, p->N, mine);
    }
}
