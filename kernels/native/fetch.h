/* Memory that is needed soon, announced to the caches. */
#ifndef HOTPLATE_FETCH_H
#define HOTPLATE_FETCH_H

#include <stdint.h>

/* `blocks` pieces of memory, `stride` bytes apart, into the second cache: what a walk over steps reads next is too far
 * from what it reads now for the hardware to see it coming. Harmless beyond the ends. */
static inline void fetch(const void *base, int64_t stride, int blocks, int64_t bytes) {
    for (int n = 0; n < blocks; n++)
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)base + n * stride + at, 0, 2);
}

/* The same of what is written next. */
static inline void claim(void *base, int64_t stride, int blocks, int64_t bytes) {
    for (int n = 0; n < blocks; n++)
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((char *)base + n * stride + at, 1, 3);
}

#endif
