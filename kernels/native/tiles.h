/* Products of a few rows with a packed matrix, in tiles of rows x vectors registers; fp32.
 *
 * Every row is summed in one order, whatever rows share its tile.
 */
#ifndef HOTPLATE_TILES_H
#define HOTPLATE_TILES_H

#include <stdint.h>
#include <string.h>

/* A tile's sums, rows * vectors, and a row's vectors fit the registers: 32 of 512 bits, or 16 of 256. WIDE_ROWS: how
 * many rows have tiles of four vectors; of two, where there are more. With 256 bits a step makes so few products that
 * the loop around it is unrolled, too. */
#ifdef __AVX512F__
#define LANES 16
#define MAX_ROWS 12
#define WIDE_ROWS 6
#define STEPS_UNROLLED
#else
#define LANES 8
#define MAX_ROWS 6
#define WIDE_ROWS 2
#define STEPS_UNROLLED _Pragma("GCC unroll 4")
#endif
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

/* sums[row][vector] = sum over k < depth of a[row][k] b[k][vector]; a's strides are those of its rows and of k. */
static inline __attribute__((always_inline)) void tile(const int rows, const int vectors, int64_t depth,
                                                       const float *a, int64_t a_row, int64_t a_k, const vec *b,
                                                       vec sums[][4]) {
    vec sum[MAX_ROWS][4];
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int v = 0; v < vectors; v++) sum[r][v] = (vec){0};
    STEPS_UNROLLED
    for (int64_t k = 0; k < depth; k++) {
        vec right[4];
        UNROLLED for (int v = 0; v < vectors; v++) right[v] = b[k * vectors + v];
        UNROLLED for (int r = 0; r < rows; r++)
            UNROLLED for (int v = 0; v < vectors; v++) sum[r][v] += a[r * a_row + k * a_k] * right[v];
    }
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int v = 0; v < vectors; v++) sums[r][v] = sum[r][v];
}

/* The rows of a tile are rounded up to one of a few counts; spare rows are zeros that nobody reads. */
static inline int tall(int64_t rows) { return rows <= 1 ? 1 : rows <= 8 ? (int)((rows + 1) / 2 * 2) : MAX_ROWS; }
static inline int widest(int64_t rows) { return rows <= WIDE_ROWS ? 4 : 2; }

#define TILE(rows, vectors)                            \
    case 8 * rows + vectors:                           \
        tile(rows, vectors, depth, a, a_row, 1, b, sums); \
        break;

static void product(int64_t rows, int vectors, int64_t depth, const float *a, int64_t a_row, const vec *b,
                    vec sums[][4]) {
    switch (8 * tall(rows) + vectors) {
        TILE(1, 4) TILE(2, 4) TILE(1, 2) TILE(2, 2) TILE(4, 2) TILE(6, 2) TILE(1, 1) TILE(2, 1) TILE(4, 1) TILE(6, 1)
#if MAX_ROWS > 6
        TILE(4, 4) TILE(6, 4) TILE(8, 2) TILE(12, 2) TILE(8, 1) TILE(12, 1)
#endif
    }
}

static inline int64_t padded(int64_t K) { return (K + LANES - 1) / LANES * LANES; }

#endif
