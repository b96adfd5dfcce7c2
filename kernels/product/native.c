/* C = A B, C += A B or C = A B + bias in fp32 on a CPU, for operands of any strides.
 *
 * Letters: M, N, K: C is [M, N], A [M, K], B [K, N]; L lanes of a vector; R rows and S columns of C in registers.
 * The classic form (Goto & van de Geijn 2008; van Zee & van de Geijn 2015): blocks of A and B are copied into panels, R
 * rows or S columns wide and K-major, so that the innermost loop reads both from start to end and keeps R x S sums in
 * registers: per step S / L loads, R broadcasts and R S / L fused products. An element's sum runs over K in chains of
 * CHAIN products, each in order, whatever the strides and the number of threads: results are bitwise the same. A block is
 * DEPTH deep, so that C is read and written again half as often as chains would ask for.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))

#if defined(__AVX512F__)
enum { L = 16, R = 8 };
#elif defined(__AVX__)
enum { L = 8, R = 6 };
#else
enum { L = 4, R = 8 };
#endif
enum { S = 2 * L, CHAIN = 512, DEPTH = 2 * CHAIN, ROWS = 16 * R, COLUMNS = 32 * S, LINE = 64 };

typedef float lanes __attribute__((vector_size(sizeof(float) * L)));
typedef float loose __attribute__((vector_size(sizeof(float) * L), aligned(4), may_alias));

typedef struct {
    int64_t M, N, K;
    const float *A;
    int64_t A_row, A_column;
    const float *B;
    int64_t B_row, B_column;
    float *C;
    int64_t C_row;
    const float *bias; /* [N] or NULL */
    int add;           /* C += */
} product;

/* 1 where it was measured to be faster than torch's library (kernels/linear/README.md). */
int product_pays(void) {
#if defined(__AVX512F__) && defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}

#if defined(__AVX512F__)
/* The rows of x, `row` apart, become columns: 8 x 8 at a time. */
typedef float eight __attribute__((vector_size(32)));
typedef float loose_eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t eight_places __attribute__((vector_size(32)));
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (eight_places){__VA_ARGS__})
#endif

INLINE void transpose_8x8(const float *x, int64_t row, float *out, int64_t out_row) {
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
    for (int i = 0; i < 4; i++) {
        *(loose_eight *)(out + i * out_row) = SHUFFLE(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(loose_eight *)(out + (i + 4) * out_row) = SHUFFLE(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}
#endif

/* Panels of `wide` rows of x [rows, depth], depth-major: out[panel][k][row]; what lacks in the last panel is 0. */
INLINE void pack(const float *x, int64_t row, int64_t column, int64_t rows, int64_t depth, int wide, float *out) {
    int64_t first = 0;
    if (row == 1) { /* all panels of a k before the next: what lies side by side is read at once, pages are few */
        first = rows / wide * wide;
        for (int64_t k = 0; k < depth; k++)
            for (int64_t i = 0; i < first; i += wide)
                memcpy(out + i * depth + k * wide, x + i + k * column, sizeof(float) * wide);
    }
    for (x += first * row, out += first * depth; first < rows; first += wide, x += wide * row, out += wide * depth) {
        const int64_t here = rows - first < wide ? rows - first : wide;
        int64_t k = 0;
        if (here < wide) memset(out, 0, sizeof(float) * wide * depth);
#if defined(__AVX512F__)
        if (here == wide && column == 1)
            for (; k + 8 <= depth; k += 8)
                for (int i = 0; i < wide; i += 8) transpose_8x8(x + i * row + k, row, out + k * wide + i, wide);
#endif
        for (; k < depth; k++)
            for (int64_t i = 0; i < here; i++) out[k * wide + i] = x[i * row + k * column];
    }
}
APART void pack_rows(const product *p, int64_t i, int64_t k, int64_t rows, int64_t depth, float *out) {
    pack(p->A + i * p->A_row + k * p->A_column, p->A_row, p->A_column, rows, depth, R, out);
}
APART void pack_columns(const product *p, int64_t k, int64_t j, int64_t columns, int64_t depth, float *out) {
    pack(p->B + k * p->B_row + j * p->B_column, p->B_column, p->B_row, columns, depth, S, out);
}

/* Sums of R x S elements of C from a panel of each operand; `add`: on top of what is there, else on top of `bias`. */
APART void tile(int64_t depth, const float *restrict a, const float *restrict b, float *restrict c, int64_t row, int add,
                const float *restrict bias) {
    lanes total[R][2];
    for (int i = 0; i < R; i++) __builtin_prefetch(c + i * row, 1), __builtin_prefetch(c + i * row + S - 1, 1);
    for (int64_t done = 0; done < depth; done += CHAIN) {
        const float *end = a + R * (depth - done < CHAIN ? depth - done : CHAIN);
        lanes sum[R][2];
        for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = (lanes){0};
        for (; a < end; a += R, b += S) {
            const lanes left = *(const lanes *)b, right = *(const lanes *)(b + L);
            __builtin_prefetch(b + 8 * S);
            __builtin_prefetch(b + 8 * S + L);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                const lanes factor = a[i] - (lanes){0};
                sum[i][0] += factor * left;
                sum[i][1] += factor * right;
            }
        }
        for (int i = 0; i < R; i++) {
            total[i][0] = done ? total[i][0] + sum[i][0] : sum[i][0];
            total[i][1] = done ? total[i][1] + sum[i][1] : sum[i][1];
        }
    }
    lanes start[2] = {{0}, {0}};
    if (bias) start[0] = *(const loose *)bias, start[1] = *(const loose *)(bias + L);
    for (int i = 0; i < R; i++) {
        loose *to = (loose *)(c + i * row);
        to[0] = total[i][0] + (add ? (lanes)to[0] : start[0]);
        to[1] = total[i][1] + (add ? (lanes)to[1] : start[1]);
    }
}

/* The same for fewer rows or columns than a tile has. */
APART void edge(int64_t depth, const float *a, const float *b, float *c, int64_t row, int add, const float *bias,
                int64_t rows, int64_t columns) {
    float whole[R * S] __attribute__((aligned(LINE)));
    tile(depth, a, b, whole, S, 0, NULL);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            float *to = c + i * row + j;
            *to = whole[i * S + j] + (add ? *to : bias ? bias[j] : 0.0f);
        }
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows [top, bottom) and columns [left, right) of C, by one thread. */
static void block(const product *p, int64_t top, int64_t bottom, int64_t left, int64_t right, float *panels) {
    float *rows = panels, *columns = panels + ROWS * DEPTH;
    for (int64_t j = left; j < right; j += COLUMNS) {
        const int64_t n = least(COLUMNS, right - j);
        for (int64_t k = 0; k < p->K; k += DEPTH) {
            const int64_t depth = least(DEPTH, p->K - k);
            const int add = k > 0 || p->add;
            pack_columns(p, k, j, n, depth, columns);
            for (int64_t i = top; i < bottom; i += ROWS) {
                const int64_t m = least(ROWS, bottom - i);
                pack_rows(p, i, k, m, depth, rows);
                for (int64_t y = 0; y < m; y += R)
                    for (int64_t x = 0; x < n; x += S) {
                        float *c = p->C + (i + y) * p->C_row + j + x;
                        const float *a = rows + y * depth, *b = columns + x * depth;
                        const float *bias = p->bias ? p->bias + j + x : NULL;
                        if (m - y >= R && n - x >= S) tile(depth, a, b, c, p->C_row, add, bias);
                        else edge(depth, a, b, c, p->C_row, add, bias, least(R, m - y), least(S, n - x));
                    }
            }
        }
    }
}

/* Bytes of the panels of one thread, which start at a multiple of LINE. */
int64_t product_panel_bytes(void) { return sizeof(float) * (ROWS + COLUMNS) * DEPTH; }

/* C's rows or columns, whichever are more, are divided among threads. `panels`: product_panel_bytes() per thread. */
void product_of(const product *p, char *panels, int threads) {
    if (p->K == 0) {
        for (int64_t i = 0; i < p->M && !p->add; i++)
            for (int64_t j = 0; j < p->N; j++) p->C[i * p->C_row + j] = p->bias ? p->bias[j] : 0.0f;
        return;
    }
    const int by_columns = p->N >= p->M;
    const int64_t size = by_columns ? p->N : p->M, unit = by_columns ? S : R, units = (size + unit - 1) / unit;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {
        const int64_t from = least(size, units * t / threads * unit), to = least(size, units * (t + 1) / threads * unit);
        float *mine = (float *)(panels + product_panel_bytes() * t);
        if (from == to) continue;
        if (by_columns) block(p, 0, p->M, from, to, mine);
        else block(p, from, to, 0, p->N, mine);
    }
}
