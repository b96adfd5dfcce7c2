/* Causal attention over packed documents in fp32 on a CPU, forward and backward.
 *
 * Letters: M queries of a block, in two vectors of L lanes; R keys of a tile; K head width, KP its multiple of L; a
 * piece is what a row leaves of a document. Scores lie transposed, [keys, M]: a lane is a query, so largest scores,
 * sums and masks need no step across lanes, and of the operands only queries and upstream gradients of one block are
 * ever transposed. A block's scores against all keys that it sees are kept (in the second cache, for documents of a
 * thousand), so the softmax is exact at once and the backward sums p dp before it needs it, with five products.
 * A task is a piece and a head. A piece's numbers depend on nothing but the piece: packed or alone, whatever the number
 * of threads, results are bitwise the same.
 */
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "activations.h"

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))

#if defined(__AVX512F__)
#include <immintrin.h>
enum { L = 16, R = 8 };
#elif defined(__AVX__)
enum { L = 8, R = 4 };
#else
enum { L = 4, R = 4 };
#endif
enum { M = 2 * L, LINE = 64 };
enum { BLOCKS = 2 }; /* of queries that the backward takes to the keys at a time */
enum { AHEAD = 16 }; /* rows that are fetched before they are packed */
enum { DEPTH = 64 }; /* products that a score adds up at a time: a longer chain would round more than a library's */

typedef float lanes __attribute__((vector_size(4 * L)));
typedef float loose __attribute__((vector_size(4 * L), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(4 * L)));

typedef struct {
    int64_t q, queries, k, keys; /* positions where they start, and how many */
} piece;

typedef struct {
    int64_t positions, H, Hkv, K; /* positions of queries */
    const float *q, *k, *v, *dout;
    int64_t q_row, q_head, k_row, k_head, v_row, v_head, dout_row, dout_head;
    float *out, *lse;     /* [positions, H, K], [H, positions]: written forward; lse is read backward */
    const float *dlse;    /* [H, positions] or NULL */
    float *dq, *dk, *dv;  /* [positions, H, K], [., Hkv, K] */
    float scale, softcap; /* softcap 0: none */
    int64_t window;       /* 0: none */
    piece *pieces;        /* as many as documents and rows together */
    int64_t count, longest; /* of pieces, most keys of one: attention_plan fills them in */
    char *memory;         /* as many bytes as attention_plan says, from a multiple of LINE on */
    int threads;
} attention;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
INLINE lanes all(float x) { return x - (lanes){0}; }
INLINE lanes pick(places mask, lanes yes, lanes no) { return (lanes)(((places)yes & mask) | ((places)no & ~mask)); }

#if defined(__AVX512F__)
/* b where one is NaN. */
INLINE lanes larger(lanes a, lanes b) { return (lanes)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE lanes nearest(lanes x) { return (lanes)_mm512_roundscale_ps((__m512)x, 0); }
INLINE lanes times_power(lanes x, lanes n) { return (lanes)_mm512_scalef_ps((__m512)x, (__m512)n); }
#else
INLINE lanes larger(lanes a, lanes b) { return pick(a > b, a, b); }
INLINE lanes nearest(lanes x) { return x + all(12582912.0f) - all(12582912.0f); } /* 1.5 * 2^23 */
/* In two factors, as 2^n may be no normal number. */
INLINE lanes times_power(lanes x, lanes n) {
    const places whole = __builtin_convertvector(n, places), half = whole >> 1;
    return x * (lanes)((half + 127) << 23) * (lanes)((whole - half + 127) << 23);
}
#endif

/* exp(x) for x that is not above 88; 0 for -inf; NaN stays. As in activations.h, for vectors in registers. */
INLINE lanes exp_of(lanes x) {
    x = larger(all(-105.0f), x);
    const lanes n = nearest(x * all(1.44269504088896341f));
    lanes r = x - n * all(0.693145751953125f), p = all(1.984588598e-4f);
    r = r - n * all(1.42860682030941723212e-6f);
    p = p * r + all(1.394071965e-3f);
    p = p * r + all(8.333389647e-3f);
    p = p * r + all(4.166635871e-2f);
    p = p * r + all(1.666666567e-1f);
    p = p * r + all(0.5f);
    return times_power(p * (r * r) + r + all(1.0f), n);
}

/* sum[i][j] += sum over d < depth of a[i a_row + d a_step] b[d b_row + j L] for R rows and one vector or two. */
INLINE void multiply(const int vectors, int64_t depth, const float *restrict a, int64_t a_row, int64_t a_step,
                     const float *restrict b, int64_t b_row, lanes sum[R][2]) {
    for (int64_t d = 0; d < depth; d++, a += a_step, b += b_row) {
        lanes right[2];
        for (int j = 0; j < vectors; j++) right[j] = *(const lanes *)(b + j * L);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
            for (int j = 0; j < vectors; j++) sum[i][j] += all(a[i * a_row]) * right[j];
    }
}

INLINE void clear(lanes sum[R][2]) {
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = (lanes){0};
}

/* `count` rows of x [., K], KP apart; what lacks of `rows` and of KP is 0. */
APART void pack(const float *x, int64_t x_row, int64_t count, int64_t rows, int64_t K, int64_t KP, float *out) {
    for (int64_t i = 0; i < count; i++, x += x_row, out += KP) {
        for (int64_t k = 0; k < K && i + AHEAD < count; k += LINE / 4) __builtin_prefetch(x + AHEAD * x_row + k);
        int64_t k = 0;
        for (; k + L <= K; k += L) *(lanes *)(out + k) = *(const loose *)(x + k);
        for (; k < KP; k++) out[k] = k < K ? x[k] : 0.0f;
    }
    memset(out, 0, sizeof(float) * (rows - count) * KP);
}

/* M rows, KP apart, as columns: [KP, M]. */
#if defined(__GNUC__) && !defined(__clang__)
APART void transpose(const float *x, int64_t KP, float *out) {
    places lane;
    for (int i = 0; i < L; i++) lane[i] = i;
    for (int64_t m = 0; m < M; m += L)
        for (int64_t k = 0; k < KP; k += L) {
            lanes row[L];
            for (int i = 0; i < L; i++) row[i] = *(const lanes *)(x + (m + i) * KP + k);
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
APART void transpose(const float *x, int64_t KP, float *out) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t k = 0; k < KP; k++) out[k * M + m] = x[m * KP + k];
}
#endif

/* What a block of queries sees: keys [begin, end) in tiles of R, of which it stands at `low`, the first query. */
typedef struct {
    int64_t first, count, low, begin, end;
    places position[2];
} sight;

static sight sight_of(const attention *c, const piece *p, int64_t first) {
    sight s = {.first = first, .count = least(M, p->queries - first), .low = first + p->keys - p->queries};
    s.begin = c->window ? most(0, s.low - c->window + 1) / R * R : 0;
    s.end = up(s.low + s.count, R);
    for (int j = 0; j < 2; j++)
        for (int i = 0; i < L; i++) s.position[j][i] = (int32_t)(s.low + j * L + i);
    return s;
}

/* A tile of keys from n on: the vectors [from, to) of queries of which any sees any; whether some do not. */
typedef struct {
    int from, to, masked;
} view;

INLINE view view_of(const attention *c, const sight *s, int64_t n) {
    const int hides = c->window && n <= s->low + s->count - 1 - c->window;
    return (view){n >= s->low + L, s->count > L ? 2 : 1, hides || n + R - 1 > s->low};
}

INLINE places seen(const attention *c, const sight *s, int64_t key, int j) {
    const places k = (int32_t)key - (places){0}, later = s->position[j] >= k;
    return c->window ? later & (s->position[j] - (int32_t)least(c->window, INT32_MAX) < k) : later;
}

/* The products of the tile of keys at `rows` with a transposed block: sums of the vectors [from, to). */
INLINE void scores_of(int64_t depth, const float *rows, int64_t KP, const float *columns, view w, lanes sum[R][2]) {
    clear(sum);
    if (w.to - w.from == 2) {
        multiply(2, depth, rows, KP, 1, columns, M, sum);
    } else if (w.from == 0) {
        multiply(1, depth, rows, KP, 1, columns, M, sum);
    } else {
        multiply(1, depth, rows, KP, 1, columns + L, M, sum);
        for (int i = 0; i < R; i++) sum[i][1] = sum[i][0];
    }
}

APART void scores_of_wide(const float *rows, int64_t KP, const float *columns, view w, lanes sum[R][2]) {
    for (int64_t k = 0; k < KP; k += DEPTH) {
        lanes part[R][2];
        scores_of(least(DEPTH, KP - k), rows + k, KP, columns + k * M, w, part);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < 2; j++) sum[i][j] = k ? sum[i][j] + part[i][j] : part[i][j];
    }
}

INLINE void scores(const float *rows, int64_t KP, const float *columns, view w, lanes sum[R][2]) {
    if (KP <= DEPTH) {
        scores_of(KP, rows, KP, columns, w, sum);
    } else {
        lanes tile[R][2];
        scores_of_wide(rows, KP, columns, w, tile);
        memcpy(sum, tile, sizeof(tile));
    }
}

/* tanh(x / softcap) of a tile, through memory. */
APART void bend(lanes tile[R][2], float softcap) {
    float *x = (float *)tile;
#pragma omp simd
    for (int i = 0; i < 2 * L * R; i++) x[i] = tanh_of(x[i] / softcap);
}

/* Scores as the definition rounds them; with a soft cap their tanh in `curve`, which is NULL without. */
INLINE void finish_scores(const attention *c, lanes sum[R][2], lanes *curve) {
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
        for (int j = 0; j < 2; j++) sum[i][j] *= all(c->scale);
    if (!curve) return;
    lanes tile[R][2];
    memcpy(tile, sum, sizeof(tile));
    bend(tile, c->softcap);
    memcpy(curve, tile, sizeof(tile));
    for (int i = 0; i < R; i++)
        for (int j = 0; j < 2; j++) sum[i][j] = tile[i][j] * all(c->softcap);
}

/* Memory of a task. Strips are [keys, M] of a block. */
typedef struct {
    float *k, *v, *dk, *dv;
    float *rows, *columns, *d_rows, *d_columns; /* BLOCKS blocks of queries and upstream gradients */
    float *strips;                              /* p, dp or dz, tanh; BLOCKS of each */
    int64_t strip;
    int64_t pair; /* piece and key head of which k and v are here: the next head of a group finds them */
} room;

enum { STRIPS = 3 };

static int64_t room_of(const attention *c, char *memory, room *r) {
    const int64_t KP = up(c->K, L), keys = up(c->longest, R);
    int64_t at = 0;
    float **parts[] = {&r->k, &r->v, &r->dk, &r->dv, &r->rows, &r->columns, &r->d_rows, &r->d_columns, &r->strips};
    const int64_t seen = c->window ? least(keys, up(c->window + (BLOCKS * M) + R, R)) : keys;
    r->strip = seen * M;
    for (int n = 0; n < 9; n++) {
        const int64_t size = n < 4 ? keys * KP : n < 8 ? BLOCKS * M * KP : STRIPS * BLOCKS * r->strip;
        *parts[n] = (float *)memory + at;
        at += up(size, LINE / 4);
    }
    return 4 * at;
}

/* Rows of a tile of sums times `factor` to memory that need not be aligned, `row` apart: so many rows and columns. */
INLINE void put(lanes sum[R][2], const float *factor, float *to, int64_t row, int64_t rows, int64_t columns) {
    if (rows >= R && columns >= 2 * L) {
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
            for (int j = 0; j < 2; j++) *(loose *)(to + i * row + j * L) = sum[i][j] * all(factor[i]);
        return;
    }
    lanes tile[R][2];
    for (int i = 0; i < R; i++)
        for (int j = 0; j < 2; j++) tile[i][j] = sum[i][j] * all(factor[i]);
    for (int i = 0; i < least(R, rows); i++) memcpy(to + i * row, tile[i], sizeof(float) * least(2 * L, columns));
}

/* to[m] = factor[m] sum over keys of strip[key][m] rows[key], for the queries of a block; `to` [., K], `row` apart. */
APART void gather(const attention *c, const piece *p, const sight *s, const float *strip, const float *rows,
                  const float *factor, float *to, int64_t row) {
    const int64_t KP = up(c->K, L);
    for (int64_t m = 0; m < s->count; m += R) {
        const int64_t begin = c->window ? most(s->begin, s->low + m - c->window + 1) : 0;
        const int64_t end = least(s->low + m + R, p->keys);
        const float *a = strip + (begin - s->begin) * M + m;
        for (int64_t k = 0; k < KP; k += 2 * L) {
            lanes sum[R][2];
            clear(sum);
            if (KP - k >= 2 * L) multiply(2, end - begin, a, 1, M, rows + begin * KP + k, KP, sum);
            else multiply(1, end - begin, a, 1, M, rows + begin * KP + k, KP, sum);
            put(sum, factor + m, to + m * row + k, row, s->count - m, c->K - k);
        }
    }
}

/* Scores of a block of queries, and the largest of each query. */
INLINE void score(const attention *c, const sight *s, const room *r, float *strip, lanes top[2], const int capped) {
    const int64_t KP = up(c->K, L);
    for (int64_t n = s->begin; n < s->end; n += R, strip += R * M) {
        const view w = view_of(c, s, n);
        lanes sum[R][2], curve[R][2];
        scores(r->k + n * KP, KP, r->columns, w, sum);
        finish_scores(c, sum, capped ? curve[0] : NULL);
        if (w.masked)
            for (int i = 0; i < R; i++)
                for (int j = w.from; j < 2; j++) sum[i][j] = pick(seen(c, s, n + i, j), sum[i][j], all(-INFINITY));
        if (w.from == 0)
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                top[0] = larger(sum[i][0], top[0]);
                *(lanes *)(strip + i * M) = sum[i][0];
            }
        if (w.to == 2)
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                top[1] = larger(sum[i][1], top[1]);
                *(lanes *)(strip + i * M + L) = sum[i][1];
            }
    }
}

APART void score_plain(const attention *c, const sight *s, const room *r, float *strip, lanes top[2]) {
    score(c, s, r, strip, top, 0);
}
APART void score_capped(const attention *c, const sight *s, const room *r, float *strip, lanes top[2]) {
    score(c, s, r, strip, top, 1);
}

/* exp(z - top) in place of z for a tile's vector of queries; their sums, which are added tile by tile. */
INLINE lanes weights_of(float *z, lanes top) {
    lanes sum = {0};
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) sum += *(lanes *)(z + i * M) = exp_of(*(lanes *)(z + i * M) - top);
    return sum;
}

APART void weights(const attention *c, const sight *s, float *strip, lanes first, lanes second, lanes total[2]) {
    total[0] = total[1] = (lanes){0};
    for (int64_t n = s->begin; n < s->end; n += R, strip += R * M) {
        const view w = view_of(c, s, n);
        if (w.from == 0) total[0] += weights_of(strip, first);
        if (w.to == 2) total[1] += weights_of(strip + L, second);
    }
}

static void forward_block(const attention *c, const piece *p, int64_t head, const room *r, int64_t first) {
    const int64_t KP = up(c->K, L), at = p->q + first;
    const sight s = sight_of(c, p, first);
    pack(c->q + at * c->q_row + head * c->q_head, c->q_row, s.count, M, c->K, KP, r->rows);
    transpose(r->rows, KP, r->columns);
    lanes top[2] = {all(-INFINITY), all(-INFINITY)}, total[2];
    (c->softcap ? score_capped : score_plain)(c, &s, r, r->strips, top);
    weights(c, &s, r->strips, top[0], top[1], total);
    float factor[M];
    for (int m = 0; m < s.count; m++) {
        const float sum = total[m / L][m % L];
        factor[m] = 1.0f / sum;
        c->lse[head * c->positions + at + m] = top[m / L][m % L] + logf(sum);
    }
    for (int64_t m = s.count; m < M; m++) factor[m] = 0.0f;
    gather(c, p, &s, r->strips, r->v, factor, c->out + (at * c->H + head) * c->K, c->H * c->K);
}

static void keys_of(const attention *c, const piece *p, int64_t head, room *r) {
    const int64_t KP = up(c->K, L), group = head / (c->H / c->Hkv), rows = up(p->keys, R);
    const int64_t pair = (p - c->pieces) * c->Hkv + group;
    if (r->pair == pair) return;
    pack(c->k + p->k * c->k_row + group * c->k_head, c->k_row, p->keys, rows, c->K, KP, r->k);
    pack(c->v + p->k * c->v_row + group * c->v_head, c->v_row, p->keys, rows, c->K, KP, r->v);
    r->pair = pair;
}

static void forward_task(const attention *c, const piece *p, int64_t head, room *r) {
    keys_of(c, p, head, r);
    for (int64_t first = 0; first < p->queries; first += M) forward_block(c, p, head, r, first);
}

/* Of a block against all its keys: e = exp(z - lse), its sums, dp and the sums of e dp. */
INLINE void weigh(const attention *c, const sight *s, const room *r, int block, const lanes lse[2], lanes total[2],
                  lanes delta[2], const int capped) {
    const int64_t KP = up(c->K, L), at = block * M * KP;
    float *p = r->strips + block * r->strip, *dp = p + BLOCKS * r->strip, *curve = dp + BLOCKS * r->strip;
    for (int64_t n = s->begin; n < s->end; n += R, p += R * M, dp += R * M, curve += R * M) {
        const view w = view_of(c, s, n);
        lanes sum[R][2];
        scores(r->k + n * KP, KP, r->columns + at, w, sum);
        finish_scores(c, sum, capped ? (lanes *)curve : NULL);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
            for (int j = 0; j < 2; j++) sum[i][j] = exp_of(sum[i][j] - lse[j]);
        if (w.masked)
            for (int i = 0; i < R; i++)
                for (int j = w.from; j < 2; j++) sum[i][j] = pick(seen(c, s, n + i, j), sum[i][j], (lanes){0});
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
            for (int j = 0; j < 2; j++) *(lanes *)(p + i * M + j * L) = sum[i][j];
        scores(r->v + n * KP, KP, r->d_columns + at, w, sum);
        for (int j = w.from; j < w.to; j++) {
            lanes e_sum = {0}, product_sum = {0};
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                const lanes e = *(lanes *)(p + i * M + j * L), x = j ? sum[i][1] : sum[i][0];
                e_sum += e;
                product_sum += e * x;
                *(lanes *)(dp + i * M + j * L) = x;
            }
            total[j] += e_sum;
            delta[j] += product_sum;
        }
    }
}

APART void weigh_plain(const attention *c, const sight *s, const room *r, int block, const lanes lse[2],
                       lanes total[2], lanes delta[2]) {
    weigh(c, s, r, block, lse, total, delta, 0);
}
APART void weigh_capped(const attention *c, const sight *s, const room *r, int block, const lanes lse[2],
                        lanes total[2], lanes delta[2]) {
    weigh(c, s, r, block, lse, total, delta, 1);
}

/* p, dz / scale and dq of a block. */
static void backward_block(const attention *c, const piece *p, int64_t head, const room *r, int block, const sight *s) {
    const int64_t KP = up(c->K, L), at = p->q + s->first, here = block * M * KP, stat = head * c->positions + at;
    pack(c->q + at * c->q_row + head * c->q_head, c->q_row, s->count, M, c->K, KP, r->rows + here);
    pack(c->dout + at * c->dout_row + head * c->dout_head, c->dout_row, s->count, M, c->K, KP, r->d_rows + here);
    transpose(r->rows + here, KP, r->columns + here);
    transpose(r->d_rows + here, KP, r->d_columns + here);
    lanes lse[2] = {{0}, {0}}, total[2] = {{0}, {0}}, delta[2] = {{0}, {0}};
    for (int m = 0; m < s->count; m++) lse[m / L][m % L] = c->lse[stat + m];
    (c->softcap ? weigh_capped : weigh_plain)(c, s, r, block, lse, total, delta);
    float factor[M] = {0};
    for (int m = 0; m < s->count; m++) {
        const float whole = 1.0f / total[m / L][m % L];
        delta[m / L][m % L] *= whole;
        if (c->dlse) delta[m / L][m % L] -= c->dlse[stat + m];
        factor[m] = c->scale * whole;
        for (int64_t k = 0; k < KP; k += L) {
            *(lanes *)(r->rows + here + m * KP + k) *= all(factor[m]);
            *(lanes *)(r->d_rows + here + m * KP + k) *= all(whole);
        }
    }
    float *strip = r->strips + block * r->strip, *dz = strip + BLOCKS * r->strip, *curve = dz + BLOCKS * r->strip;
    for (int64_t n = 0; n < (s->end - s->begin) * M; n += M)
        for (int j = 0; j < (s->count > L ? 2 : 1); j++) {
            lanes *x = (lanes *)(dz + n + j * L);
            *x = *(lanes *)(strip + n + j * L) * (*x - delta[j]);
            if (c->softcap) *x *= 1.0f - *(lanes *)(curve + n + j * L) * *(lanes *)(curve + n + j * L);
        }
    gather(c, p, s, dz, r->k, factor, c->dq + (at * c->H + head) * c->K, c->H * c->K);
}

/* to[key] += sum over queries of strip[key][m] rows[m], for R keys from n on and the queries of all blocks. */
INLINE void spread(const attention *c, const sight *s, int blocks, int64_t n, const float *strips, int64_t strip,
                   const float *rows, float *to) {
    const int64_t KP = up(c->K, L);
    for (int64_t k = 0; k < KP; k += 2 * L) {
        const int vectors = KP - k >= 2 * L ? 2 : 1;
        lanes sum[R][2];
        clear(sum);
        for (int b = 0; b < blocks; b++) {
            if (n < s[b].begin || n >= s[b].end) continue;
            const int64_t from = most(0, n - s[b].low);
            const float *a = strips + b * strip + (n - s[b].begin) * M + from, *right = rows + (b * M + from) * KP + k;
            if (vectors == 2) multiply(2, s[b].count - from, a, M, 1, right, KP, sum);
            else multiply(1, s[b].count - from, a, M, 1, right, KP, sum);
        }
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
            for (int j = 0; j < vectors; j++) *(lanes *)(to + i * KP + k + j * L) += sum[i][j];
    }
}

APART void spread_all(const attention *c, const sight *s, int blocks, const room *r) {
    const int64_t KP = up(c->K, L);
    for (int64_t n = s[0].begin; n < s[blocks - 1].end; n += R) {
        spread(c, s, blocks, n, r->strips, r->strip, r->d_rows, r->dv + n * KP);
        spread(c, s, blocks, n, r->strips + BLOCKS * r->strip, r->strip, r->rows, r->dk + n * KP);
    }
}

static void backward_task(const attention *c, const piece *p, int64_t head, room *r, int32_t *turn) {
    const int64_t KP = up(c->K, L), members = c->H / c->Hkv, group = head / members, member = head % members;
    keys_of(c, p, head, r);
    memset(r->dk, 0, sizeof(float) * up(p->keys, R) * KP);
    memset(r->dv, 0, sizeof(float) * up(p->keys, R) * KP);
    for (int64_t first = 0; first < p->queries; first += BLOCKS * M) {
        sight s[BLOCKS];
        int blocks = 0;
        for (; blocks < BLOCKS && first + blocks * M < p->queries; blocks++) {
            s[blocks] = sight_of(c, p, first + blocks * M);
            backward_block(c, p, head, r, blocks, &s[blocks]);
        }
        spread_all(c, s, blocks, r);
    }
    while (__atomic_load_n(turn, __ATOMIC_ACQUIRE) != member) sched_yield();
    for (int64_t n = 0; n < p->keys; n++) {
        const int64_t to = ((p->k + n) * c->Hkv + group) * c->K;
#pragma omp simd
        for (int64_t k = 0; k < c->K; k++) {
            const float dk = r->dk[n * KP + k], dv = r->dv[n * KP + k];
            c->dk[to + k] = member ? c->dk[to + k] + dk : dk;
            c->dv[to + k] = member ? c->dv[to + k] + dv : dv;
        }
    }
    __atomic_store_n(turn, (int32_t)member + 1, __ATOMIC_RELEASE);
}

static int longer(const void *a, const void *b) {
    const piece *x = a, *y = b;
    return x->keys != y->keys ? (x->keys < y->keys ? 1 : -1) : (x->q > y->q) - (x->q < y->q);
}

/* Of a group's heads each adds its dk and dv when its turn has come: a count for every piece and key head. */
static int32_t *turns_of(const attention *c) {
    room r;
    return (int32_t *)(c->memory + room_of(c, NULL, &r) * c->threads);
}

/* The pieces of B rows of T queries and S keys, the longest first; edges [documents + 1] where documents cut them, else
 * NULL. Returns the bytes of `memory`; threads without a task are given up. */
int64_t attention_plan(attention *c, const int32_t *edges, int64_t documents, int64_t B, int64_t T, int64_t S) {
    c->count = 0;
    for (int64_t b = 0; b < B && !edges; b++) c->pieces[c->count++] = (piece){b * T, T, b * S, S};
    for (int64_t n = 0; n < documents && edges; n++)
        for (int64_t start = edges[n], stop; start < edges[n + 1]; start = stop) {
            stop = least(edges[n + 1], (start / T + 1) * T);
            c->pieces[c->count++] = (piece){start, stop - start, start, stop - start};
        }
    qsort(c->pieces, c->count, sizeof(piece), longer);
    c->longest = c->count ? c->pieces[0].keys : 0;
    c->threads = (int)most(1, least(c->threads, c->count * c->H));
    room r;
    return room_of(c, NULL, &r) * c->threads + sizeof(int32_t) * c->count * c->Hkv;
}

/* Tasks are handed out in order: who waits for a turn waits for one that runs. */
static void run(const attention *c, int backward) {
    const int64_t members = c->H / c->Hkv;
    int32_t *turns = turns_of(c);
    memset(turns, 0, sizeof(int32_t) * c->count * c->Hkv);
#pragma omp parallel num_threads(c->threads)
    {
        room r;
        room_of(c, c->memory + room_of(c, NULL, &r) * omp_get_thread_num(), &r);
        r.pair = -1;
#pragma omp for schedule(monotonic : dynamic, 1)
        for (int64_t n = 0; n < c->count * c->H; n++) {
            const piece *p = c->pieces + n / c->H;
            if (backward) backward_task(c, p, n % c->H, &r, turns + n / members);
            else forward_task(c, p, n % c->H, &r);
        }
    }
}

void attention_forward(const attention *c) { run(c, 0); }
void attention_backward(const attention *c) { run(c, 1); }

/* 1 where it was measured to be faster than torch's library (README.md). */
int attention_pays(void) {
#if defined(__AVX2__) && defined(__FMA__) && defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}
