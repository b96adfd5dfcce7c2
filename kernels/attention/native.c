/* Causal attention over packed documents in fp32 or bf16 on a CPU, forward and backward.
 *
 * Letters: M queries of a block, in two vectors of L lanes; R keys of a tile; K head width, KP its multiple of L; a
 * piece is what a row leaves of a document. Scores lie transposed, [keys, M]: a lane is a query, so largest scores,
 * sums and masks need no step across lanes, and of the operands only queries and upstream gradients of one block are
 * ever transposed. A block's scores against all keys that it sees are kept (in the second cache, for documents of a
 * thousand), so the softmax is exact at once and the backward sums p dp before it needs it, with five products.
 * A task is a piece and a head. A piece's numbers depend on nothing but the piece: packed or alone, whatever the number
 * of threads, results are bitwise the same.
 *
 * bf16 becomes fp32 as rows are packed; or, where the processor multiplies pairs in bf16 (`pairs`), operands stay as
 * they are, and weights and dz are rounded to bf16 for the second products. Everything else is fp32 in both.
 */
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lanes.h"

enum { BLOCKS = 2 }; /* of queries that the backward takes to the keys at a time */
enum { DEPTH = 64 }; /* words that a score adds up at a time: a longer chain would round more than a library's */
#define LOG2_E 1.44269504088896341

typedef struct {
    int64_t q, queries, k, keys; /* positions where they start, and how many */
} piece;

typedef struct {
    int64_t positions, others, H, Hkv, K; /* positions of queries and of keys */
    const void *q, *k, *v, *dout;
    int64_t q_row, q_head, k_row, k_head, v_row, v_head, dout_row, dout_head;
    void *out;            /* [positions, H, K]: written forward, as lse; that is read backward */
    float *lse;           /* [H, positions] */
    const float *dlse;    /* [H, positions] or NULL */
    void *dq, *dk, *dv;   /* [positions, H, K], [others, Hkv, K] */
    float scale, softcap; /* softcap 0: none */
    int64_t window;       /* 0: none */
    piece *pieces;        /* as many as documents and rows together */
    int64_t count, longest; /* of pieces, most keys of one: attention_plan fills them in */
    char *memory;         /* as many bytes as attention_plan says, from a multiple of LINE on */
    int threads, half;    /* half: q, k, v, dout, out, dq, dk and dv are bf16, not fp32 */
} attention;

INLINE int pairs_of(const attention *c) { return PAIRS && c->half; }
/* Elements of operands that start at one. */
INLINE const void *element(const attention *c, const void *base, int64_t at) {
    return (const char *)base + at * (c->half ? 2 : 4);
}
/* Words of a row that is to be multiplied along its features, and what they are packed to. */
INLINE int64_t depth_of(const attention *c, const int pairs) { return pairs ? (c->K + 1) / 2 : c->K; }
INLINE int64_t width_of(const attention *c, const int pairs) { return up(depth_of(c, pairs), L); }
/* The weight of a score is 2^(unit x), and the score `natural` x: x is the product, or with a soft cap its tanh. */
INLINE float natural_of(const attention *c) { return c->softcap ? c->softcap : c->scale; }
INLINE float unit_of(const attention *c) { return (float)(LOG2_E * natural_of(c)); }

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

/* Sums of the tile of keys at `rows` and the vectors [w.from, w.to) of a transposed block, by way of memory. */
INLINE void scores(const int pairs, int64_t depth, const float *rows, int64_t W, const float *columns, view w,
                   lanes tile[R][2]) {
    lanes sum[R][2];
    clear(sum);
    if (w.to - w.from == 2) {
        multiply(pairs, 2, depth, rows, W, 1, columns, M, sum);
        memcpy(tile, sum, sizeof(sum));
    } else {
        multiply(pairs, 1, depth, rows, W, 1, columns + w.from * L, M, sum);
        for (int i = 0; i < R; i++) tile[i][w.from] = sum[i][0];
    }
}

/* The same for rows of any width, DEPTH words at a time. */
INLINE void scores_of_any(const attention *c, const float *rows, const float *columns, view w, lanes tile[R][2],
                          const int pairs) {
    const int64_t depth = depth_of(c, pairs), W = width_of(c, pairs);
    scores(pairs, least(DEPTH, depth), rows, W, columns, w, tile);
    for (int64_t k = DEPTH; k < depth; k += DEPTH) {
        lanes part[R][2];
        scores(pairs, least(DEPTH, depth - k), rows + k, W, columns + k * M, w, part);
        for (int i = 0; i < R; i++)
            for (int j = w.from; j < w.to; j++) tile[i][j] += part[i][j];
    }
}

APART void scores_fp32(const attention *c, const float *rows, const float *columns, view w, lanes tile[R][2]) {
    scores_of_any(c, rows, columns, w, tile, 0);
}
APART void scores_pairs(const attention *c, const float *rows, const float *columns, view w, lanes tile[R][2]) {
    scores_of_any(c, rows, columns, w, tile, 1);
}

/* tanh(squeeze x) of a tile. */
APART void bend(lanes tile[R][2], float squeeze) {
    float *x = (float *)tile;
#pragma omp simd
    for (int i = 0; i < 2 * L * R; i++) x[i] = tanh_of(x[i] * squeeze);
}

/* Memory of a thread's next task, operands and results, which it fetches while it computes this one: where the next
 * rows are, and how many are left. */
typedef struct {
    const char *row[7];
    int64_t step[7], left;
    int count;
} prospect;

INLINE void look_at(const attention *c, prospect *next, const void *x, int64_t position, int64_t row, int64_t at) {
    next->row[next->count] = element(c, x, position * row + at);
    next->step[next->count++] = row * (c->half ? 2 : 4);
}

static prospect prospect_of(const attention *c, int64_t task, int backward) {
    prospect next = {.left = 0};
    if (task >= c->count * c->H) return next;
    const piece *p = c->pieces + task / c->H;
    const int64_t head = task % c->H, group = head / (c->H / c->Hkv), row = c->H * c->K, key_row = c->Hkv * c->K;
    next.left = p->queries;
    look_at(c, &next, c->q, p->q, c->q_row, head * c->q_head);
    look_at(c, &next, c->k, p->k, c->k_row, group * c->k_head);
    look_at(c, &next, c->v, p->k, c->v_row, group * c->v_head);
    look_at(c, &next, backward ? c->dq : c->out, p->q, row, head * c->K);
    if (!backward) return next;
    look_at(c, &next, c->dout, p->q, c->dout_row, head * c->dout_head);
    look_at(c, &next, c->dk, p->k, key_row, group * c->K);
    look_at(c, &next, c->dv, p->k, key_row, group * c->K);
    return next;
}

/* A row more of each; called once per tile, as more at a time would be waited for. */
INLINE void fetch_ahead(const attention *c, prospect *next) {
    if (next->left <= 0) return;
    next->left--;
    for (int n = 0; n < next->count; n++) {
        for (int64_t at = 0; at < c->K * (c->half ? 2 : 4); at += LINE) __builtin_prefetch(next->row[n] + at, 0, 2);
        next->row[n] += next->step[n];
    }
}

/* Memory of a task, in words. Strips are [keys, M] of a block. */
typedef struct {
    float *k, *v, *other; /* rows along features; `other`: of keys, pairs along positions */
    float *dk, *dv;
    float *raw; /* a block of rows */
    float *rows, *columns, *d_rows, *d_columns; /* BLOCKS blocks of queries and upstream gradients */
    float *strips;                              /* p, dp or dz, tanh or pairs of dz; BLOCKS of each */
    int64_t strip;
    prospect *next;
    int64_t pair; /* piece and key head of which k and v are here: the next head of a group finds them */
} room;

enum { STRIPS = 3 };

static int64_t room_of(const attention *c, char *memory, room *r) {
    const int64_t KP = up(c->K, L), keys = up(c->longest, R);
    const int64_t seen = c->window ? least(keys, up(c->window + (BLOCKS * M) + R, R)) : keys;
    const int64_t block = BLOCKS * M * KP;
    r->strip = seen * M;
    struct {
        float **part;
        int64_t size;
    } parts[] = {{&r->k, keys * KP}, {&r->v, keys * KP}, {&r->other, pairs_of(c) ? keys / 2 * KP : 0},
                 {&r->dk, keys * KP}, {&r->dv, keys * KP}, {&r->raw, M * KP}, {&r->rows, block}, {&r->columns, block},
                 {&r->d_rows, block}, {&r->d_columns, block}, {&r->strips, STRIPS * BLOCKS * r->strip + R}};
    int64_t at = 0;
    for (int n = 0; n < sizeof(parts) / sizeof(*parts); n++) {
        *parts[n].part = (float *)memory + at;
        at += up(parts[n].size, LINE / 4);
    }
    return 4 * at;
}

/* to[m] = factor[m] sum over keys of strip[key][m] rows[key], for the queries of a block; `to` [., K] from element `at`
 * on, `row` apart. Pairs: strip and rows are pairs of keys. */
INLINE void gather(const attention *c, const piece *p, const sight *s, const float *strip, const float *rows,
                   const float *factor, void *to, int64_t at, int64_t row, const int pairs) {
    const int64_t KP = up(c->K, L), unit = pairs ? 2 : 1;
    for (int64_t m = 0; m < s->count; m += R) {
        const int64_t begin = (c->window ? most(s->begin, s->low + m - c->window + 1) : 0) / unit;
        const int64_t last = s->low + least(m + R, M); /* a tile may reach beyond the block, where nobody looks */
        const int64_t depth = up(least(last, p->keys), unit) / unit - begin;
        const float *a = strip + (begin - s->begin / unit) * M + m;
        for (int64_t k = 0; k < KP; k += 2 * L) {
            const float *b = rows + begin * KP + k;
            lanes sum[R][2];
            clear(sum);
            if (KP - k >= 2 * L) multiply(pairs, 2, depth, a, 1, M, b, KP, sum);
            else multiply(pairs, 1, depth, a, 1, M, b, KP, sum);
            put_tile(sum, factor + m, to, c->half, at + m * row + k, row, s->count - m, c->K - k);
        }
    }
}

APART void gather_fp32(const attention *c, const piece *p, const sight *s, const float *strip, const float *rows,
                       const float *factor, void *to, int64_t at, int64_t row) {
    gather(c, p, s, strip, rows, factor, to, at, row, 0);
}
APART void gather_pairs(const attention *c, const piece *p, const sight *s, const float *strip, const float *rows,
                        const float *factor, void *to, int64_t at, int64_t row) {
    gather(c, p, s, strip, rows, factor, to, at, row, 1);
}

/* -inf in place of the products of a tile's vector of queries with keys that are not seen; the largest, and `top`. */
APART lanes mask_products(const attention *c, const sight *s, int64_t n, lanes *to, int j, int masked, lanes top) {
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        if (masked) to[2 * i + j] = pick(seen(c, s, n + i, j), to[2 * i + j], all(-INFINITY));
        top = larger(to[2 * i + j], top);
    }
    return top;
}

/* Products of a block of queries with all keys, with a soft cap their tanh; -inf where none is seen. The largest of
 * each query. */
INLINE void score(const attention *c, const sight *s, const room *r, float *strip, lanes top[2], const int pairs) {
    const int64_t depth = depth_of(c, pairs), W = width_of(c, pairs);
    lanes first = all(-INFINITY), second = all(-INFINITY);
    for (int64_t n = s->begin; n < s->end; n += R, strip += R * M) {
        const view w = view_of(c, s, n);
        const float *rows = r->k + n * W;
        lanes *to = (lanes *)strip;
        fetch_ahead(c, r->next);
        if (w.from == 0 && w.to == 2 && !w.masked && depth <= DEPTH && !c->softcap) {
            lanes sum[R][2];
            clear(sum);
            multiply(pairs, 2, depth, rows, W, 1, r->columns, M, sum);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                first = larger(to[2 * i] = sum[i][0], first);
                second = larger(to[2 * i + 1] = sum[i][1], second);
            }
            continue;
        }
        (pairs ? scores_pairs : scores_fp32)(c, rows, r->columns, w, (lanes (*)[2])to);
        if (c->softcap) bend((lanes (*)[2])to, c->scale / c->softcap);
        if (w.from == 0) first = mask_products(c, s, n, to, 0, w.masked, first);
        if (w.to == 2) second = mask_products(c, s, n, to, 1, w.masked, second);
    }
    top[0] = first;
    top[1] = second;
}

APART void score_fp32(const attention *c, const sight *s, const room *r, float *strip, lanes top[2]) {
    score(c, s, r, strip, top, 0);
}
APART void score_pairs(const attention *c, const sight *s, const room *r, float *strip, lanes top[2]) {
    score(c, s, r, strip, top, 1);
}

/* 2^(unit x - top) in place of x for a tile's vector of queries, pairs of keys in the first half of its rows; their
 * sums, which are added tile by tile. */
INLINE lanes weights_of(const float *x, float *to, lanes unit, lanes top, const int pairs) {
    lanes e[R], sum = {0};
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) sum += e[i] = power_of(*(const lanes *)(x + i * M) * unit - top);
#pragma GCC unroll 8
    for (int i = 0; i < R; i += pairs ? 2 : 1)
        *(lanes *)(to + (pairs ? i / 2 : i) * M) = pairs ? paired(e[i], e[i + 1]) : e[i];
    return sum;
}

/* Zeros for a tile's first vector of queries, which see none of its keys: a tile of R queries may be of both vectors. */
INLINE void unseen(float *strip) {
    for (int i = 0; i < R && L % R; i++) *(lanes *)(strip + i * M) = (lanes){0};
}

INLINE void weights(const attention *c, const sight *s, float *strip, const lanes top[2], lanes total[2],
                    const int pairs) {
    const lanes unit = all(fabsf(unit_of(c))), first = top[0] * unit, second = top[1] * unit;
    lanes one = {0}, other = {0};
    float *to = strip;
    for (int64_t n = s->begin; n < s->end; n += R, strip += R * M, to += R * M / (pairs ? 2 : 1)) {
        const view w = view_of(c, s, n);
        if (w.from == 0) one += weights_of(strip, to, unit, first, pairs);
        else unseen(to);
        if (w.to == 2) other += weights_of(strip + L, to + L, unit, second, pairs);
    }
    total[0] = one;
    total[1] = other;
}

APART void weights_fp32(const attention *c, const sight *s, float *strip, const lanes top[2], lanes total[2]) {
    weights(c, s, strip, top, total, 0);
}
APART void weights_pairs(const attention *c, const sight *s, float *strip, const lanes top[2], lanes total[2]) {
    weights(c, s, strip, top, total, 1);
}

/* A block's rows of x as columns, and in `rows` as they are multiplied along positions. */
static void block_of(const attention *c, const void *x, int64_t at, int64_t x_row, int64_t count, const room *r,
                     float *rows, float *columns) {
    const int64_t KP = up(c->K, L), W = width_of(c, pairs_of(c));
    if (pairs_of(c)) {
        pack_pairs(element(c, x, at), x_row, count, M, c->K, W, r->raw);
        transpose(r->raw, W, columns);
        pair_rows(r->raw, M, W, KP, rows);
    } else {
        pack(element(c, x, at), c->half, x_row, count, M, c->K, KP, rows);
        transpose(rows, KP, columns);
    }
}

static void forward_block(const attention *c, const piece *p, int64_t head, const room *r, int64_t first) {
    const int64_t at = p->q + first;
    const sight s = sight_of(c, p, first);
    block_of(c, c->q, at * c->q_row + head * c->q_head, c->q_row, s.count, r, r->rows, r->columns);
    if (c->scale < 0 && !c->softcap) /* the largest product is to be that of the largest score */
        for (int64_t n = 0; n < width_of(c, pairs_of(c)) * M; n++)
            ((word *)r->columns)[n] ^= pairs_of(c) ? (word)0x80008000 : (word)0x80000000;
    lanes top[2], total[2];
    (pairs_of(c) ? score_pairs : score_fp32)(c, &s, r, r->strips, top);
    (pairs_of(c) ? weights_pairs : weights_fp32)(c, &s, r->strips, top, total);
    float factor[M + R] = {0}; /* a tile's rows from any of the block's on */
    for (int m = 0; m < s.count; m++) {
        const float sum = total[m / L][m % L];
        factor[m] = 1.0f / sum;
        c->lse[head * c->positions + at + m] = top[m / L][m % L] * fabsf(natural_of(c)) + logf(sum);
    }
    (pairs_of(c) ? gather_pairs : gather_fp32)(c, p, &s, r->strips, r->v, factor, c->out, (at * c->H + head) * c->K,
                                               c->H * c->K);
}

/* Keys and values of a piece, unless they are here. */
static void keys_of(const attention *c, const piece *p, int64_t head, room *r, int backward) {
    const int64_t KP = up(c->K, L), W = width_of(c, pairs_of(c)), group = head / (c->H / c->Hkv);
    const int64_t rows = up(p->keys, R), pair = (p - c->pieces) * c->Hkv + group;
    const void *k = element(c, c->k, p->k * c->k_row + group * c->k_head);
    const void *v = element(c, c->v, p->k * c->v_row + group * c->v_head);
    if (r->pair == pair) return;
    r->pair = pair;
    if (!pairs_of(c)) {
        pack(k, c->half, c->k_row, p->keys, rows, c->K, KP, r->k);
        pack(v, c->half, c->v_row, p->keys, rows, c->K, KP, r->v);
        return;
    }
    pack_pairs(k, c->k_row, p->keys, rows, c->K, W, r->k);
    pack_pairs(v, c->v_row, p->keys, rows, c->K, W, backward ? r->v : r->dv);
    if (backward) pair_rows(r->k, rows, W, KP, r->other);
    else pair_rows(r->dv, rows, W, KP, r->v);
}

static void forward_task(const attention *c, const piece *p, int64_t head, room *r) {
    keys_of(c, p, head, r, 0);
    for (int64_t first = 0; first < p->queries; first += M) forward_block(c, p, head, r, first);
}

/* Of a block against all its keys: e = 2^(unit x - lse), its sums, dp and the sums of e dp. */
INLINE void weigh(const attention *c, const sight *s, const room *r, int block, const lanes lse[2], lanes total[2],
                  lanes delta[2], const int pairs) {
    const int64_t depth = depth_of(c, pairs), W = width_of(c, pairs), at = block * M * up(c->K, L);
    const lanes unit = all(unit_of(c)), lse_first = lse[0], lse_second = lse[1];
    lanes e_first = {0}, e_second = {0}, delta_first = {0}, delta_second = {0};
    float *p = r->strips + block * r->strip, *q = p + BLOCKS * r->strip, *curve = q + BLOCKS * r->strip;
    for (int64_t n = s->begin; n < s->end; n += R, p += R * M, q += R * M, curve += R * M) {
        const view w = view_of(c, s, n);
        lanes *e = (lanes *)p, *dp = (lanes *)q, sums[4] = {{0}, {0}, {0}, {0}};
        fetch_ahead(c, r->next);
        if (w.from == 0 && w.to == 2 && !w.masked && depth <= DEPTH && !c->softcap) {
            lanes sum[R][2];
            clear(sum);
            multiply(pairs, 2, depth, r->k + n * W, W, 1, r->columns + at, M, sum);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                sums[0] += e[2 * i] = power_of(sum[i][0] * unit - lse_first);
                sums[1] += e[2 * i + 1] = power_of(sum[i][1] * unit - lse_second);
            }
            clear(sum);
            multiply(pairs, 2, depth, r->v + n * W, W, 1, r->d_columns + at, M, sum);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                sums[2] += e[2 * i] * (dp[2 * i] = sum[i][0]);
                sums[3] += e[2 * i + 1] * (dp[2 * i + 1] = sum[i][1]);
            }
        } else {
            (pairs ? scores_pairs : scores_fp32)(c, r->k + n * W, r->columns + at, w, (lanes (*)[2])e);
            if (c->softcap) {
                bend((lanes (*)[2])e, c->scale / c->softcap);
                memcpy(curve, e, sizeof(lanes[R][2]));
            }
            (pairs ? scores_pairs : scores_fp32)(c, r->v + n * W, r->d_columns + at, w, (lanes (*)[2])dp);
            if (w.from) unseen(p), unseen(q), unseen(curve);
            for (int j = w.from; j < w.to; j++) {
                const lanes shift = j ? lse_second : lse_first;
#pragma GCC unroll 8
                for (int i = 0; i < R; i++) {
                    lanes *x = e + 2 * i + j;
                    *x = power_of(*x * unit - shift);
                    if (w.masked) *x = pick(seen(c, s, n + i, j), *x, (lanes){0});
                    sums[j] += *x;
                    sums[2 + j] += *x * dp[2 * i + j];
                }
            }
        }
        e_first += sums[0];
        e_second += sums[1];
        delta_first += sums[2];
        delta_second += sums[3];
    }
    total[0] = e_first;
    total[1] = e_second;
    delta[0] = delta_first;
    delta[1] = delta_second;
}

APART void weigh_fp32(const attention *c, const sight *s, const room *r, int block, const lanes lse[2],
                      lanes total[2], lanes delta[2]) {
    weigh(c, s, r, block, lse, total, delta, 0);
}
APART void weigh_pairs(const attention *c, const sight *s, const room *r, int block, const lanes lse[2],
                       lanes total[2], lanes delta[2]) {
    weigh(c, s, r, block, lse, total, delta, 1);
}

/* e and dp of `rows` keys become dz / scale, in fp32 in place of dp. Pairs: p and dz as pairs of queries, in place of e
 * and dp, and dz as pairs of keys, in place of the tanh. */
INLINE void slopes(float *e, float *dp, float *curve, int64_t rows, const lanes delta[2], const int capped,
                   const int pairs) {
    const lanes first = delta[0], second = delta[1];
    float *p = e, *dz = dp, *other = curve;
    for (int64_t n = 0; n < rows; n += 2, e += 2 * M, dp += 2 * M, curve += 2 * M) {
        lanes x[4], z[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            x[i] = *(const lanes *)(e + i * L);
            z[i] = x[i] * (*(const lanes *)(dp + i * L) - (i & 1 ? second : first));
            if (capped) z[i] *= 1.0f - *(const lanes *)(curve + i * L) * *(const lanes *)(curve + i * L);
        }
        if (pairs) {
            *(lanes *)p = rounded(x[0], x[1]), *(lanes *)(p + L) = rounded(x[2], x[3]);
            *(lanes *)dz = rounded(z[0], z[1]), *(lanes *)(dz + L) = rounded(z[2], z[3]);
            *(lanes *)other = paired(z[0], z[2]), *(lanes *)(other + L) = paired(z[1], z[3]);
            p += M, dz += M, other += M;
        } else {
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) *(lanes *)(dp + i * L) = z[i];
        }
    }
}

APART void slopes_fp32(float *e, float *dp, float *curve, int64_t rows, const lanes delta[2], int capped) {
    if (capped) slopes(e, dp, curve, rows, delta, 1, 0);
    else slopes(e, dp, curve, rows, delta, 0, 0);
}
APART void slopes_pairs(float *e, float *dp, float *curve, int64_t rows, const lanes delta[2], int capped) {
    if (capped) slopes(e, dp, curve, rows, delta, 1, 1);
    else slopes(e, dp, curve, rows, delta, 0, 1);
}

/* p, dz / scale and dq of a block. */
static void backward_block(const attention *c, const piece *p, int64_t head, const room *r, int block, const sight *s) {
    const int64_t KP = up(c->K, L), at = p->q + s->first, here = block * M * KP, stat = head * c->positions + at;
    float *rows = r->rows + here, *d_rows = r->d_rows + here;
    block_of(c, c->q, at * c->q_row + head * c->q_head, c->q_row, s->count, r, rows, r->columns + here);
    block_of(c, c->dout, at * c->dout_row + head * c->dout_head, c->dout_row, s->count, r, d_rows, r->d_columns + here);
    lanes lse[2] = {{0}, {0}}, total[2], delta[2];
    for (int m = 0; m < s->count; m++) lse[m / L][m % L] = c->lse[stat + m] * (float)LOG2_E;
    (pairs_of(c) ? weigh_pairs : weigh_fp32)(c, s, r, block, lse, total, delta);
    float factor[M + R] = {0};
    for (int m = 0; m < s->count; m++) {
        const float whole = 1.0f / total[m / L][m % L];
        delta[m / L][m % L] *= whole;
        if (c->dlse) delta[m / L][m % L] -= c->dlse[stat + m];
        factor[m] = c->scale * whole;
        for (int64_t k = 0; k < KP && !pairs_of(c); k += L) { /* `whole` is 1 to more digits than bf16 has */
            *(lanes *)(rows + m * KP + k) *= all(factor[m]);
            *(lanes *)(d_rows + m * KP + k) *= all(whole);
        }
    }
    float *e = r->strips + block * r->strip, *dz = e + BLOCKS * r->strip, *curve = dz + BLOCKS * r->strip;
    (pairs_of(c) ? slopes_pairs : slopes_fp32)(e, dz, curve, s->end - s->begin, delta, c->softcap != 0);
    (pairs_of(c) ? gather_pairs : gather_fp32)(c, p, s, pairs_of(c) ? curve : dz, pairs_of(c) ? r->other : r->k, factor,
                                               c->dq, (at * c->H + head) * c->K, c->H * c->K);
}

/* to[key] += sum over queries of strip[key][m] rows[m], for R keys from n on, two vectors of features or one, and the
 * queries of all blocks. Pairs: strip and rows are pairs of queries. */
INLINE void spread(const int vectors, int64_t KP, const sight *s, int blocks, int64_t n, const float *strips,
                   int64_t strip, const float *rows, float *to, const int pairs) {
    const int64_t unit = pairs ? 2 : 1;
    lanes sum[R][2];
    clear(sum);
    for (int b = 0; b < blocks; b++) {
        if (n < s[b].begin || n >= s[b].end) continue;
        const int64_t from = most(0, n - s[b].low) / unit, row = M / unit;
        const float *a = strips + b * strip + (n - s[b].begin) * row + from, *right = rows + b * M * KP + from * KP;
        multiply(pairs, vectors, up(s[b].count, unit) / unit - from, a, row, 1, right, KP, sum);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
        for (int j = 0; j < vectors; j++) *(lanes *)(to + i * KP + j * L) += sum[i][j];
}

INLINE void spread_all(const attention *c, const sight *s, int blocks, const room *r, const int pairs) {
    const int64_t KP = up(c->K, L);
    const float *p = r->strips, *dz = p + BLOCKS * r->strip;
    for (int64_t n = s[0].begin; n < s[blocks - 1].end; n += R)
        for (int64_t k = 0; k < KP; k += 2 * L) {
            float *dk = r->dk + n * KP + k, *dv = r->dv + n * KP + k;
            if (KP - k >= 2 * L) {
                spread(2, KP, s, blocks, n, p, r->strip, r->d_rows + k, dv, pairs);
                spread(2, KP, s, blocks, n, dz, r->strip, r->rows + k, dk, pairs);
            } else {
                spread(1, KP, s, blocks, n, p, r->strip, r->d_rows + k, dv, pairs);
                spread(1, KP, s, blocks, n, dz, r->strip, r->rows + k, dk, pairs);
            }
        }
}

APART void spread_fp32(const attention *c, const sight *s, int blocks, const room *r) {
    spread_all(c, s, blocks, r, 0);
}
APART void spread_pairs(const attention *c, const sight *s, int blocks, const room *r) {
    spread_all(c, s, blocks, r, 1);
}

/* Of a group's heads each adds its dk and dv when its turn has come: a count for every piece and key head. */
static int32_t *turns_of(const attention *c) {
    room r;
    return (int32_t *)(c->memory + room_of(c, NULL, &r) * c->threads);
}
/* In bf16 they add up here, in fp32: dk and dv, [others, Hkv, K] each. */
static float *sums_of(const attention *c) {
    return (float *)((char *)turns_of(c) + up(sizeof(int32_t) * c->count * c->Hkv, LINE));
}

/* One head's gradient of a piece's keys or values [keys, KP], times `factor`, to what its group adds up to. */
static void add_up(const attention *c, const piece *p, int64_t head, const float *x, float factor, float *sums,
                   void *to) {
    const int64_t KP = up(c->K, L), members = c->H / c->Hkv, member = head % members;
    const int done = c->half && member == members - 1;
    for (int64_t n = 0; n < p->keys; n++, x += KP) {
        const int64_t at = ((p->k + n) * c->Hkv + head / members) * c->K;
        float *sum = sums + at;
        if (done && member) {
#pragma omp simd
            for (int64_t k = 0; k < c->K; k++) ((bf16 *)to)[at + k] = to_bf16(sum[k] + x[k] * factor);
        } else if (done) {
#pragma omp simd
            for (int64_t k = 0; k < c->K; k++) ((bf16 *)to)[at + k] = to_bf16(x[k] * factor);
        } else if (member) {
#pragma omp simd
            for (int64_t k = 0; k < c->K; k++) sum[k] += x[k] * factor;
        } else {
#pragma omp simd
            for (int64_t k = 0; k < c->K; k++) sum[k] = x[k] * factor;
        }
    }
}

static void backward_task(const attention *c, const piece *p, int64_t head, room *r, int32_t *turn) {
    const int64_t KP = up(c->K, L), members = c->H / c->Hkv;
    keys_of(c, p, head, r, 1);
    memset(r->dk, 0, sizeof(float) * up(p->keys, R) * KP);
    memset(r->dv, 0, sizeof(float) * up(p->keys, R) * KP);
    for (int64_t first = 0; first < p->queries; first += BLOCKS * M) {
        sight s[BLOCKS];
        int blocks = 0;
        for (; blocks < BLOCKS && first + blocks * M < p->queries; blocks++) {
            s[blocks] = sight_of(c, p, first + blocks * M);
            backward_block(c, p, head, r, blocks, &s[blocks]);
        }
        (pairs_of(c) ? spread_pairs : spread_fp32)(c, s, blocks, r);
    }
    float *sums = c->half ? sums_of(c) : NULL;
    while (__atomic_load_n(turn, __ATOMIC_ACQUIRE) != head % members) sched_yield();
    add_up(c, p, head, r->dk, pairs_of(c) ? c->scale : 1.0f, sums ? sums : c->dk, c->dk);
    add_up(c, p, head, r->dv, 1.0f, sums ? sums + c->others * c->Hkv * c->K : c->dv, c->dv);
    __atomic_store_n(turn, (int32_t)(head % members + 1), __ATOMIC_RELEASE);
}

static int longer(const void *a, const void *b) {
    const piece *x = a, *y = b;
    return x->keys != y->keys ? (x->keys < y->keys ? 1 : -1) : (x->q > y->q) - (x->q < y->q);
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
    const int64_t sums = c->half && c->H > c->Hkv ? 2 * sizeof(float) * c->others * c->Hkv * c->K : 0;
    c->memory = NULL;
    return (char *)sums_of(c) - c->memory + sums;
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
            prospect next = prospect_of(c, n + c->threads, backward);
            r.next = &next;
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
