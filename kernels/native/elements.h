/* Elements of a row as fp32, whether memory holds fp32 or bf16 (half), and loops over columns in blocks of W. */
#ifndef HOTPLATE_ELEMENTS_H
#define HOTPLATE_ELEMENTS_H

#include "activations.h"
#include "fetch.h"

#define W 64
#define COLUMNS _Pragma("omp simd") for (int j = 0; j < W; j++)
#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))

INLINE float value(const void *row, int64_t at, int half) {
    return half ? from_bf16(((const bf16 *)row)[at]) : ((const float *)row)[at];
}

INLINE void put(void *row, int64_t at, float x, int half) {
    if (half) ((bf16 *)row)[at] = to_bf16(x);
    else ((float *)row)[at] = x;
}

/* Element `at` of memory whose elements are fp32 or bf16. */
INLINE const void *from(const void *base, int64_t at, int half) { return (const char *)base + at * (half ? 2 : 4); }
INLINE void *into(void *base, int64_t at, int half) { return (char *)base + at * (half ? 2 : 4); }

#endif
