/* exp, sigmoid and tanh in plain C that compilers turn into vector code; bf16 as its bits.
 *
 * Errors over all of float32 are at most 1.1 units in the last place (tests/kernels/test_native.py). NaN stays NaN.
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

/* A product and a sum, rounded once. */
#define FUSED __builtin_fmaf

/* The smaller of magnitude >= 0 and limit, but NaN stays. As integers, which no comparison into a mask delays: shifted
 * so that infinity is the largest of them, NaN is negative. */
static inline float at_most(float magnitude, float limit) {
    const int32_t shift = 0x7fffff, most = (int32_t)to_bits(limit) + shift;
    const int32_t shifted = (int32_t)(to_bits(magnitude) + (uint32_t)shift);
    return from_bits((uint32_t)(shifted < most ? shifted : most) - (uint32_t)shift);
}

static inline float clamp(float x, float limit) { return __builtin_copysignf(at_most(__builtin_fabsf(x), limit), x); }

/* exp(x) = scale (1 + high + low), scale a power of two, |high| < 0.42. Wants |x| <= 87. */
typedef struct { float scale, high, low; } Exponential;

static inline Exponential exponential(float x) {
    const float magic = 12583039.0f; /* 1.5 * 2^23 + 127: adding it leaves the exponent of 2^nearest in the low bits */
    float shifted = FUSED(x, 1.44269504088896341f, magic);
    float n = shifted - magic;
    float r = FUSED(n, -0.693145751953125f, x); /* ln 2 in two parts, the first exact in n */
    r = FUSED(n, -1.42860682030941723212e-6f, r);
    /* Minimax of (exp(r) - 1 - r) / r^2 for the relative error of exp(r) - 1, 2^-32; fitted in float64. */
    float p = 1.984588598e-4f;
    p = FUSED(p, r, 1.394071965e-3f);
    p = FUSED(p, r, 8.333389647e-3f);
    p = FUSED(p, r, 4.166635871e-2f);
    p = FUSED(p, r, 1.666666567e-1f);
    p = FUSED(p, r, 0.5f);
    float bent = p * (r * r), high = r + bent;
    return (Exponential){from_bits(to_bits(shifted) << 23), high, bent - (high - r)};
}

/* exp(-x), for x kept within -80 .. 80. */
static inline float exp_minus(float x) {
    Exponential e = exponential(-clamp(x, 80.0f));
    return FUSED(e.scale, e.high, e.scale);
}

/* 1 / (1 + exp(-x)); below 2e-35 where x < -80. The quotient is mended by what the denominator was rounded by. */
static inline float sigmoid(float x) {
    Exponential e = exponential(-clamp(x, 80.0f));
    float one = 1.0f + e.scale, sum = FUSED(e.scale, e.high, one);
    float rest = FUSED(e.scale, e.high, one - sum) + (1.0f - (one - e.scale));
    float y = 1.0f / sum;
    return FUSED(y, FUSED(-rest, y, FUSED(-sum, y, 1.0f)), y);
}

/* m / (m + 2) with m = exp(2x) - 1 in two parts, so that tiny x keep their digits; mended likewise. */
static inline float tanh_of(float x) {
    float magnitude = __builtin_fabsf(x);
    Exponential e = exponential(2.0f * at_most(magnitude, 10.0f)); /* tanh(10) rounds to 1 */
    float less = e.scale - 1.0f, m = FUSED(e.scale, e.high, less);
    float low = FUSED(e.scale, e.low, FUSED(e.scale, e.high, less - m));
    float inverse = 1.0f / (m + 2.0f), y = m * inverse;
    y = FUSED(FUSED(-2.0f, y, FUSED(-y, m, m)) + low * (1.0f - y), inverse, y);
    return __builtin_copysignf(y, x);
}

static inline float from_bf16(bf16 x) { return from_bits((uint32_t)x << 16); }

/* To the nearest, ties to even; NaN stays NaN. */
static inline bf16 to_bf16(float x) {
    uint32_t bits = to_bits(x);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return x == x ? (bf16)rounded : (bf16)0x7fc0;
}

#endif
