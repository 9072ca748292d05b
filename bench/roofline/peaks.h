/* What one core can do at most, by the operations of one instruction set. */
#ifndef PEAKS_H
#define PEAKS_H

#include <stdint.h>
#include <time.h>

/* A second each: of float32 products and sums, of bfloat16's (vectors or tiles; 0 without), and numbers whose 2^x is
 * found. */
typedef struct {
    double float32, bfloat16, exponentials;
    int apart;       /* bfloat16's are multiplied by units of their own, while vectors do something else */
    double bytes[3]; /* read from IN_CACHE and IN_MEMORY */
} peaks;
enum { NOTHING, IN_CACHE, IN_MEMORY };

static inline double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
