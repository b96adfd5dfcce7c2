/* exp, sigmoid and tanh in plain C that compilers turn into vector code; bf16 as its bits.
 *
 * Errors over all of float32 are at most 2 units in the last place (tests/kernels/test_native.py). NaN stays NaN.
 * Every loop over columns has a fixed length: each column meets the same instructions wherever it lies, so results do
 * not depend on the width, the strip or the thread.
 */
#ifndef HOTPLATE_ACTIVATIONS_H
#define HOTPLATE_ACTIVATIONS_H

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float from_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t to_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

/* x = n ln 2 + r with |r| <= ln 2 / 2: *scale = 2^n, result exp(r) - 1. Wants |x| <= 87. */
static inline float reduced_expm1(float x, float *scale) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    float shifted = x * 1.44269504088896341f + magic;
    float n = shifted - magic;
    float r = x - n * 0.693145751953125f; /* ln 2 in two parts, the first exact in n */
    r = r - n * 1.42860682030941723212e-6f;
    *scale = from_bits((to_bits(shifted) + 127u) << 23);
    /* Minimax of (exp(r) - 1 - r) / r^2 for the relative error of exp(r) - 1, 2^-32; fitted in float64. */
    float p = 1.984588598e-4f;
    p = p * r + 1.394071965e-3f;
    p = p * r + 8.333389647e-3f;
    p = p * r + 4.166635871e-2f;
    p = p * r + 1.666666567e-1f;
    p = p * r + 0.5f;
    return p * (r * r) + r;
}

static inline float clamp(float x, float limit) {
    x = x > limit ? limit : x; /* comparisons are false for NaN, which therefore stays */
    return x < -limit ? -limit : x;
}

/* exp(-x), within [exp(-80), exp(80)]. */
static inline float exp_minus(float x) {
    float scale, m = reduced_expm1(clamp(-x, 80.0f), &scale);
    return m * scale + scale;
}

/* 1 / (1 + exp(-x)); below 2e-35 where x < -80. */
static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_minus(x)); }

/* (exp(2x) - 1) / (exp(2x) + 1): through expm1, so that tiny x keep their digits. */
static inline float tanh_of(float x) {
    float magnitude = x < 0 ? -x : x;
    magnitude = magnitude > 10.0f ? 10.0f : magnitude; /* tanh(10) rounds to 1 */
    float scale, m = reduced_expm1(2.0f * magnitude, &scale);
    m = m * scale + (scale - 1.0f);
    float y = m / (m + 2.0f);
    return x < 0 ? -y : y;
}

static inline float from_bf16(bf16 x) { return from_bits((uint32_t)x << 16); }

/* To the nearest, ties to even; NaN stays NaN. */
static inline bf16 to_bf16(float x) {
    uint32_t bits = to_bits(x);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return x == x ? (bf16)rounded : (bf16)0x7fc0;
}

#endif
