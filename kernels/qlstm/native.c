/* The quasi-LSTM recurrence on a CPU: one task per row and strip of W columns, sequential in time.
 *
 * Letters: B rows, T steps, D width, N gate blocks (4: i, f, z, o; 3, coupled: f, z, o), W columns of a strip,
 * K steps between checkpoints of c. gates and dgates are [B, T, N, D], h and dh [B, T, D], states [B, D],
 * checkpoints [B, ceil(T / K), D]; all contiguous. README.md derives the backward.
 */
#include "elements.h"

#define K 16
#define AHEAD 8  /* steps that reading, and */
#define WRITES 2 /* writing are announced before */

/* Gates of W columns: (i, f, z, o), or (f, z, o) with i = 1 - f; `stride` is the distance of two blocks. A loop per
 * activation: its constants stay in registers and the chains of several vectors overlap. */
INLINE void activate(const void *gates, int64_t stride, float offset, float *restrict i, float *restrict f,
                     float *restrict z, int N, int half) {
    COLUMNS f[j] = sigmoid(value(gates, (N - 3) * stride + j, half) + offset);
    COLUMNS i[j] = N == 4 ? sigmoid(value(gates, j, half)) : 1.0f - f[j];
    COLUMNS z[j] = tanh_of(value(gates, (N - 2) * stride + j, half));
}

INLINE void forward_columns(const void *gates, int64_t stride, float offset, float *restrict c, void *restrict h,
                            int N, int half) {
    float i[W], f[W], z[W], o[W];
    activate(gates, stride, offset, i, f, z, N, half);
    COLUMNS o[j] = sigmoid(value(gates, (N - 1) * stride + j, half));
    COLUMNS c[j] = FUSED(f[j], c[j], i[j] * z[j]);
    COLUMNS put(h, j, o[j] * tanh_of(c[j]), half);
}

/* What the backward needs of one step, in the first-level cache. */
typedef struct { float i[W], f[W], z[W], before[W], after[W]; } Step;

INLINE void replay_columns(const void *gates, int64_t stride, float offset, const float *restrict before,
                           Step *restrict step, int N, int half) {
    activate(gates, stride, offset, step->i, step->f, step->z, N, half);
    COLUMNS {
        step->before[j] = before[j];
        step->after[j] = FUSED(step->f[j], before[j], step->i[j] * step->z[j]);
    }
}

INLINE void backward_columns(const void *gates, int64_t stride, const void *dh, const Step *restrict step,
                             float *restrict carry, void *restrict dgates, int N, int half) {
    float outs[W], tanhs[W];
    COLUMNS outs[j] = sigmoid(value(gates, (N - 1) * stride + j, half));
    COLUMNS tanhs[j] = tanh_of(step->after[j]);
    COLUMNS {
        float i = step->i[j], f = step->f[j], z = step->z[j], o = outs[j], tanh_c = tanhs[j], d = value(dh, j, half);
        float dc = d * o * (1.0f - tanh_c * tanh_c) + carry[j];
        put(dgates, (N - 1) * stride + j, d * tanh_c * (o * (1.0f - o)), half);
        put(dgates, (N - 2) * stride + j, dc * i * (1.0f - z * z), half);
        if (N == 4) {
            put(dgates, j, dc * z * (i * (1.0f - i)), half);
            put(dgates, stride + j, dc * step->before[j] * (f * (1.0f - f)), half);
        } else {
            put(dgates, j, dc * (step->before[j] - z) * (f * i), half);
        }
        carry[j] = f * dc;
    }
}

/* One copy of the code per gate layout and dtype, whatever the strip: that is what makes results independent of it. */
#define COPIES(name, N, half)                                                                                          \
    APART void forward_##name(const void *g, int64_t s, float a, float *restrict c, void *restrict h) {                \
        forward_columns(g, s, a, c, h, N, half);                                                                       \
    }                                                                                                                  \
    APART void replay_##name(const void *g, int64_t s, float a, const float *restrict c, Step *restrict p) {           \
        replay_columns(g, s, a, c, p, N, half);                                                                        \
    }                                                                                                                  \
    APART void backward_##name(const void *g, int64_t s, const void *d, const Step *restrict p, float *restrict c,     \
                               void *restrict out) {                                                                   \
        backward_columns(g, s, d, p, c, out, N, half);                                                                 \
    }
COPIES(four, 4, 0)
COPIES(four_half, 4, 1)
COPIES(three, 3, 0)
COPIES(three_half, 3, 1)

typedef struct {
    void (*forward)(const void *, int64_t, float, float *, void *);
    void (*replay)(const void *, int64_t, float, const float *, Step *);
    void (*backward)(const void *, int64_t, const void *, const Step *, float *, void *);
} Form;

static const Form forms[2][2] = {
    {{forward_three, replay_three, backward_three}, {forward_three_half, replay_three_half, backward_three_half}},
    {{forward_four, replay_four, backward_four}, {forward_four_half, replay_four_half, backward_four_half}},
};

/* Strips narrower than W are computed in these, whose other columns stay zero. */
typedef struct { float in[4 * W], row[W], out[4 * W]; } Padded;

static void copy_blocks(char *to, int64_t to_stride, const char *from, int64_t from_stride, int N, int64_t bytes) {
    for (int n = 0; n < N; n++) memcpy(to + n * to_stride, from + n * from_stride, bytes);
}

int64_t checkpoint_steps(void) { return K; }

void forward(const void *gates, const float *c0, const uint8_t *resets, void *h, float *c_last, float *checkpoints,
             int64_t B, int64_t T, int64_t D, int N, int half, float offset, int threads) {
    const int64_t strips = (D + W - 1) / W, spans = (T + K - 1) / K, size = half ? 2 : 4;
    const Form form = forms[N - 3][half];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < B * strips; task++) {
        const int64_t b = task / strips, d = task % strips * W, n = D - d < W ? D - d : W;
        Padded pad = {{0}};
        float c[W] = {0};
        if (c0) memcpy(c, c0 + b * D + d, n * 4);
        for (int64_t t = 0; t < T; t++) {
            if (checkpoints && t % K == 0) memcpy(checkpoints + (b * spans + t / K) * D + d, c, n * 4);
            if (resets && resets[b * T + t]) memset(c, 0, sizeof c);
            const char *g = (const char *)gates + ((b * T + t) * N * D + d) * size;
            char *h_t = (char *)h + ((b * T + t) * D + d) * size;
            fetch(g + AHEAD * N * D * size, D * size, N, n * size);
            claim(h_t + WRITES * D * size, 0, 1, n * size);
            if (n == W) {
                form.forward(g, D, offset, c, h_t);
            } else {
                copy_blocks((char *)pad.in, W * size, g, D * size, N, n * size);
                form.forward(pad.in, W, offset, c, pad.row);
                memcpy(h_t, pad.row, n * size);
            }
        }
        memcpy(c_last + b * D + d, c, n * 4);
    }
}

void backward(const void *gates, const float *checkpoints, const uint8_t *resets, const void *dh, const float *dc_last,
              void *dgates, float *dc0, int64_t B, int64_t T, int64_t D, int N, int half, float offset, int threads) {
    const int64_t strips = (D + W - 1) / W, spans = (T + K - 1) / K, size = half ? 2 : 4;
    const Form form = forms[N - 3][half];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < B * strips; task++) {
        const int64_t b = task / strips, d = task % strips * W, n = D - d < W ? D - d : W;
        Padded pad = {{0}};
        Step steps[K];
        float c[W] = {0}, carry[W] = {0};
        if (dc_last) memcpy(carry, dc_last + b * D + d, n * 4);
        for (int64_t span = spans - 1; span >= 0; span--) {
            const int64_t first = span * K, last = first + K < T ? first + K : T;
            memcpy(c, checkpoints + (b * spans + span) * D + d, n * 4);
            const float *before = c;
            for (int64_t t = first; t < last; t++) {
                const char *g = (const char *)gates + ((b * T + t) * N * D + d) * size;
                fetch(g - K * N * D * size, D * size, N, n * size); /* of the span that comes next */
                fetch((const char *)dh + ((b * T + t - K) * D + d) * size, 0, 1, n * size);
                if (resets && resets[b * T + t]) before = memset(c, 0, sizeof c);
                if (n != W) copy_blocks((char *)pad.in, W * size, g, D * size, N, n * size);
                form.replay(n == W ? (const void *)g : pad.in, n == W ? D : W, offset, before, &steps[t - first]);
                before = steps[t - first].after;
            }
            for (int64_t t = last - 1; t >= first; t--) {
                const int64_t at = (b * T + t) * N * D + d;
                const char *g = (const char *)gates + at * size, *dh_t = (const char *)dh + ((b * T + t) * D + d) * size;
                char *out = (char *)dgates + at * size;
                claim(out - WRITES * N * D * size, D * size, N, n * size);
                if (n == W) {
                    form.backward(g, D, dh_t, &steps[t - first], carry, out);
                } else {
                    copy_blocks((char *)pad.in, W * size, g, D * size, N, n * size);
                    memcpy(pad.row, dh_t, n * size);
                    form.backward(pad.in, W, pad.row, &steps[t - first], carry, pad.out);
                    copy_blocks(out, D * size, (const char *)pad.out, W * size, N, n * size);
                }
                if (resets && resets[b * T + t]) memset(carry, 0, sizeof carry);
            }
        }
        memcpy(dc0 + b * D + d, carry, n * 4);
    }
}
