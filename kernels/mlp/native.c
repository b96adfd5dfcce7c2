/* The activation between an MLP's two products, on a CPU, and its gradient from the pre-activations.
 *
 * Letters: M rows, F features; x is [M, F], or [M, 2 F] (gate, value) for SWIGLU; y and dy [M, F]. fp32 or bf16 (half),
 * contiguous. 0.5 (1 + tanh z) is sigmoid(2 z), which has no cancellation.
 */
#include "elements.h"

enum { SWIGLU, GELU, RELU2 };
#define GELU_SLOPE 1.5957691216057308f /* 2 sqrt(2 / pi) */
#define GELU_CUBIC 0.07135481282636243f /* 0.044715 times that */

INLINE void forward_columns(const void *x, int64_t F, void *y, int kind, int half) {
#pragma omp simd
    for (int j = 0; j < W; j++) {
        const float a = value(x, j, half);
        float out;
        if (kind == SWIGLU) {
            out = a * sigmoid(a) * value(x, F + j, half);
        } else if (kind == GELU) {
            out = a * sigmoid(a * (GELU_SLOPE + GELU_CUBIC * a * a));
        } else {
            const float positive = a < 0.0f ? 0.0f : a;
            out = positive * positive;
        }
        put(y, j, out, half);
    }
}

INLINE void backward_columns(const void *dy, const void *x, int64_t F, void *dx, int kind, int half) {
#pragma omp simd
    for (int j = 0; j < W; j++) {
        const float a = value(x, j, half), d = value(dy, j, half);
        if (kind == SWIGLU) {
            const float s = sigmoid(a);
            put(dx, j, d * value(x, F + j, half) * (s * (1.0f + a * (1.0f - s))), half);
            put(dx, F + j, d * (a * s), half);
        } else if (kind == GELU) {
            const float square = a * a, e = exp_minus(a * (GELU_SLOPE + GELU_CUBIC * square)), s = 1.0f / (1.0f + e);
            const float rest = e * s; /* 1 - s without cancellation, which a^3 would magnify */
            put(dx, j, d * (s + s * rest * a * (GELU_SLOPE + 3.0f * GELU_CUBIC * square)), half);
        } else {
            put(dx, j, d * (2.0f * (a < 0.0f ? 0.0f : a)), half);
        }
    }
}

/* One copy of the code per kind and dtype, whatever the block. */
#define COPIES(name, kind, half)                                                                                       \
    APART void forward_##name(const void *x, int64_t F, void *y) { forward_columns(x, F, y, kind, half); }             \
    APART void backward_##name(const void *dy, const void *x, int64_t F, void *dx) {                                   \
        backward_columns(dy, x, F, dx, kind, half);                                                                    \
    }
COPIES(swiglu, SWIGLU, 0)
COPIES(swiglu_half, SWIGLU, 1)
COPIES(gelu, GELU, 0)
COPIES(gelu_half, GELU, 1)
COPIES(relu2, RELU2, 0)
COPIES(relu2_half, RELU2, 1)

typedef struct {
    void (*forward)(const void *, int64_t, void *);
    void (*backward)(const void *, const void *, int64_t, void *);
} Form;

static const Form forms[3][2] = {{{forward_swiglu, backward_swiglu}, {forward_swiglu_half, backward_swiglu_half}},
                                 {{forward_gelu, backward_gelu}, {forward_gelu_half, backward_gelu_half}},
                                 {{forward_relu2, backward_relu2}, {forward_relu2_half, backward_relu2_half}}};

/* The last block of a row, where it is narrower than W, is computed in these. */
typedef struct {
    float x[2 * W], dx[2 * W], y[W];
} Padded;

void forward(const void *x, void *y, int64_t M, int64_t F, int kind, int half, int threads) {
    const int64_t stacked = kind == SWIGLU ? 2 : 1, blocks = (F + W - 1) / W, size = half ? 2 : 4;
    const Form form = forms[kind][half];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t f = block * W, n = F - f < W ? F - f : W;
            const void *x_m = from(x, m * stacked * F + f, half);
            void *y_m = into(y, m * F + f, half);
            if (n == W) {
                form.forward(x_m, F, y_m);
            } else {
                Padded pad = {{0}};
                for (int64_t k = 0; k < stacked; k++) memcpy(into(pad.x, k * W, half), from(x_m, k * F, half), n * size);
                form.forward(pad.x, W, pad.y);
                memcpy(y_m, pad.y, n * size);
            }
        }
    }
}

void backward(const void *dy, const void *x, void *dx, int64_t M, int64_t F, int kind, int half, int threads) {
    const int64_t stacked = kind == SWIGLU ? 2 : 1, blocks = (F + W - 1) / W, size = half ? 2 : 4;
    const Form form = forms[kind][half];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t f = block * W, n = F - f < W ? F - f : W, at = m * stacked * F + f;
            const void *dy_m = from(dy, m * F + f, half), *x_m = from(x, at, half);
            void *dx_m = into(dx, at, half);
            if (n == W) {
                form.backward(dy_m, x_m, F, dx_m);
            } else {
                Padded pad = {{0}};
                memcpy(pad.y, dy_m, n * size);
                for (int64_t k = 0; k < stacked; k++) memcpy(into(pad.x, k * W, half), from(x_m, k * F, half), n * size);
                form.backward(pad.y, pad.x, W, pad.dx);
                for (int64_t k = 0; k < stacked; k++) memcpy(into(dx_m, k * F, half), from(pad.dx, k * W, half), n * size);
            }
        }
    }
}
