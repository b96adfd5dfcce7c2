/* The LSTM with diagonal recurrent weights on a CPU: one task per row and strip of W columns, sequential in time.
 *
 * Letters: B rows, T steps, D width, W columns of a strip, K steps between checkpoints of (h, c). gates and dgates are
 * [B, T, 4, D] (i, f, z, o), weights [4, D], h and dh [B, T, D], states [B, D], checkpoints [B, ceil(T / K), 2, D],
 * dweights [B, 4, D]: one part per row, which the caller adds up; all contiguous. README.md derives the backward.
 */
#include "elements.h"

#define K 16
#define AHEAD 8  /* steps that reading, and */
#define WRITES 2 /* writing are announced before */

typedef struct { float h[W], c[W]; } State;

/* What the backward needs of one step, in the first-level cache. */
typedef struct { float i[W], f[W], z[W], o[W], tanh_c[W], h_before[W], c_before[W]; } Step;

/* One step from `state` into `state`, recorded in `step`; h is put where it is given. `stride` is the distance of two
 * blocks. A loop per activation: its constants stay in registers and the chains of several vectors overlap. */
INLINE void forward_columns(const void *gates, int64_t stride, const float (*restrict r)[W], float offset,
                            State *restrict state, void *restrict h, Step *restrict step, int half) {
    float *restrict before = state->h, *restrict c = state->c;
    COLUMNS step->h_before[j] = before[j], step->c_before[j] = c[j];
    COLUMNS step->i[j] = sigmoid(value(gates, j, half) + r[0][j] * before[j]);
    COLUMNS step->f[j] = sigmoid(value(gates, stride + j, half) + r[1][j] * before[j] + offset);
    COLUMNS step->z[j] = tanh_of(value(gates, 2 * stride + j, half) + r[2][j] * before[j]);
    COLUMNS step->o[j] = sigmoid(value(gates, 3 * stride + j, half) + r[3][j] * before[j]);
    COLUMNS c[j] = FUSED(step->f[j], c[j], step->i[j] * step->z[j]);
    COLUMNS step->tanh_c[j] = tanh_of(c[j]);
    COLUMNS before[j] = step->o[j] * step->tanh_c[j];
    if (h) COLUMNS put(h, j, before[j], half);
}

/* `carry` is what arrives at (h, c) from the later steps; dr adds up. */
INLINE void backward_columns(const void *dh, const Step *restrict step, const float (*restrict r)[W],
                             State *restrict carry, float (*restrict dr)[W], void *restrict dgates, int64_t stride,
                             int half) {
    COLUMNS {
        float i = step->i[j], f = step->f[j], z = step->z[j], o = step->o[j], tanh_c = step->tanh_c[j];
        float d = value(dh, j, half) + carry->h[j], before = step->h_before[j];
        float dc = d * o * (1.0f - tanh_c * tanh_c) + carry->c[j];
        float di = dc * z * (i * (1.0f - i)), df = dc * step->c_before[j] * (f * (1.0f - f));
        float dz = dc * i * (1.0f - z * z), d_o = d * tanh_c * (o * (1.0f - o));
        put(dgates, j, di, half);
        put(dgates, stride + j, df, half);
        put(dgates, 2 * stride + j, dz, half);
        put(dgates, 3 * stride + j, d_o, half);
        dr[0][j] += di * before;
        dr[1][j] += df * before;
        dr[2][j] += dz * before;
        dr[3][j] += d_o * before;
        carry->h[j] = r[0][j] * di + r[1][j] * df + r[2][j] * dz + r[3][j] * d_o;
        carry->c[j] = f * dc;
    }
}

/* One copy of the code per dtype, whatever the strip: that is what makes results independent of it. */
#define COPIES(name, half)                                                                                             \
    APART void forward_##name(const void *g, int64_t s, const float (*r)[W], float a, State *state, void *h) {         \
        Step step;                                                                                                     \
        forward_columns(g, s, r, a, state, h, &step, half);                                                            \
    }                                                                                                                  \
    APART void replay_##name(const void *g, int64_t s, const float (*r)[W], float a, State *state, Step *step) {       \
        forward_columns(g, s, r, a, state, 0, step, half);                                                             \
    }                                                                                                                  \
    APART void backward_##name(const void *d, const Step *step, const float (*r)[W], State *carry, float (*dr)[W],     \
                               void *out, int64_t s) {                                                                 \
        backward_columns(d, step, r, carry, dr, out, s, half);                                                         \
    }
COPIES(wide, 0)
COPIES(half, 1)

typedef struct {
    void (*forward)(const void *, int64_t, const float (*)[W], float, State *, void *);
    void (*replay)(const void *, int64_t, const float (*)[W], float, State *, Step *);
    void (*backward)(const void *, const Step *, const float (*)[W], State *, float (*)[W], void *, int64_t);
} Form;

static const Form forms[2] = {{forward_wide, replay_wide, backward_wide}, {forward_half, replay_half, backward_half}};

/* Strips narrower than W are computed in these, whose other columns stay zero. */
typedef struct { float in[4 * W], row[W], out[4 * W]; } Padded;

static void copy_blocks(void *to, int64_t to_bytes, const void *from, int64_t from_bytes, int64_t bytes) {
    for (int n = 0; n < 4; n++) memcpy((char *)to + n * to_bytes, (const char *)from + n * from_bytes, bytes);
}

int64_t checkpoint_steps(void) { return K; }

void forward(const void *gates, const float *weights, const float *h0, const float *c0, const uint8_t *resets, void *h,
             float *h_last, float *c_last, float *checkpoints, int64_t B, int64_t T, int64_t D, int half, float offset,
             int threads) {
    const int64_t strips = (D + W - 1) / W, spans = (T + K - 1) / K, size = half ? 2 : 4;
    const Form form = forms[half];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < B * strips; task++) {
        const int64_t b = task / strips, d = task % strips * W, n = D - d < W ? D - d : W;
        Padded pad = {{0}};
        float r[4][W] = {{0}};
        State state = {{0}};
        copy_blocks(r, W * 4, weights + d, D * 4, n * 4);
        if (h0) memcpy(state.h, h0 + b * D + d, n * 4);
        if (c0) memcpy(state.c, c0 + b * D + d, n * 4);
        for (int64_t t = 0; t < T; t++) {
            if (checkpoints && t % K == 0) {
                float *at = checkpoints + (b * spans + t / K) * 2 * D + d;
                memcpy(at, state.h, n * 4);
                memcpy(at + D, state.c, n * 4);
            }
            if (resets && resets[b * T + t]) memset(&state, 0, sizeof state);
            const char *g = (const char *)gates + ((b * T + t) * 4 * D + d) * size;
            char *h_t = (char *)h + ((b * T + t) * D + d) * size;
            fetch(g + AHEAD * 4 * D * size, D * size, 4, n * size);
            claim(h_t + WRITES * D * size, 0, 1, n * size);
            if (n == W) {
                form.forward(g, D, r, offset, &state, h_t);
            } else {
                copy_blocks(pad.in, W * size, g, D * size, n * size);
                form.forward(pad.in, W, r, offset, &state, pad.row);
                memcpy(h_t, pad.row, n * size);
            }
        }
        memcpy(h_last + b * D + d, state.h, n * 4);
        memcpy(c_last + b * D + d, state.c, n * 4);
    }
}

void backward(const void *gates, const float *weights, const float *checkpoints, const uint8_t *resets, const void *dh,
              const float *dh_last, const float *dc_last, void *dgates, float *dweights, float *dh0, float *dc0,
              int64_t B, int64_t T, int64_t D, int half, float offset, int threads) {
    const int64_t strips = (D + W - 1) / W, spans = (T + K - 1) / K, size = half ? 2 : 4;
    const Form form = forms[half];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < B * strips; task++) {
        const int64_t b = task / strips, d = task % strips * W, n = D - d < W ? D - d : W;
        Padded pad = {{0}};
        float r[4][W] = {{0}}, dr[4][W] = {{0}};
        State state = {{0}}, carry = {{0}};
        Step steps[K];
        copy_blocks(r, W * 4, weights + d, D * 4, n * 4);
        if (dh_last) memcpy(carry.h, dh_last + b * D + d, n * 4);
        if (dc_last) memcpy(carry.c, dc_last + b * D + d, n * 4);
        for (int64_t span = spans - 1; span >= 0; span--) {
            const int64_t first = span * K, last = first + K < T ? first + K : T;
            const float *at = checkpoints + (b * spans + span) * 2 * D + d;
            memcpy(state.h, at, n * 4);
            memcpy(state.c, at + D, n * 4);
            for (int64_t t = first; t < last; t++) {
                const char *g = (const char *)gates + ((b * T + t) * 4 * D + d) * size;
                fetch(g - K * 4 * D * size, D * size, 4, n * size); /* of the span that comes next */
                fetch((const char *)dh + ((b * T + t - K) * D + d) * size, 0, 1, n * size);
                if (resets && resets[b * T + t]) memset(&state, 0, sizeof state);
                if (n != W) copy_blocks(pad.in, W * size, g, D * size, n * size);
                form.replay(n == W ? (const void *)g : pad.in, n == W ? D : W, r, offset, &state, &steps[t - first]);
            }
            for (int64_t t = last - 1; t >= first; t--) {
                const char *dh_t = (const char *)dh + ((b * T + t) * D + d) * size;
                char *out = (char *)dgates + ((b * T + t) * 4 * D + d) * size;
                claim(out - WRITES * 4 * D * size, D * size, 4, n * size);
                if (n == W) {
                    form.backward(dh_t, &steps[t - first], r, &carry, dr, out, D);
                } else {
                    memcpy(pad.row, dh_t, n * size);
                    form.backward(pad.row, &steps[t - first], r, &carry, dr, pad.out, W);
                    copy_blocks(out, D * size, pad.out, W * size, n * size);
                }
                if (resets && resets[b * T + t]) memset(&carry, 0, sizeof carry);
            }
        }
        copy_blocks(dweights + b * 4 * D + d, D * 4, dr, W * 4, n * 4);
        memcpy(dh0 + b * D + d, carry.h, n * 4);
        memcpy(dc0 + b * D + d, carry.c, n * 4);
    }
}
