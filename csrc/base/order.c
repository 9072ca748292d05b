#include "base/order.h"

#include <string.h>

/* Below this many, insertion is faster. */
#define FEW 24

static void insertion_sort(uint64_t *keys, int64_t count) {
    for (int64_t i = 1; i < count; i++) {
        uint64_t key = keys[i];
        int64_t j = i;
        for (; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
        keys[j] = key;
    }
}

static void merge_sort(uint64_t *keys, uint64_t *spare, int64_t count) {
    if (count <= FEW) {
        insertion_sort(keys, count);
        return;
    }
    int64_t half = count / 2, a = 0, b = half;
    merge_sort(keys, spare, half);
    merge_sort(keys + half, spare, count - half);
    memcpy(spare, keys, (size_t)half * sizeof *keys);
    for (int64_t i = 0; a < half; i++) keys[i] = b < count && keys[b] < spare[a] ? keys[b++] : spare[a++];
}

/* From the lowest byte up; a byte that is the same everywhere is skipped.  Pays from some hundreds on. */
static void radix_sort(uint64_t *keys, uint64_t *spare, int64_t count) {
    uint64_t *from = keys, *to = spare, differing = 0;
    for (int64_t i = 1; i < count; i++) differing |= keys[i] ^ keys[0];
    for (int shift = 0; shift < 64; shift += 8) {
        if (!((differing >> shift) & 0xFF)) continue;
        int64_t next[257] = {0};
        for (int64_t i = 0; i < count; i++) next[((from[i] >> shift) & 0xFF) + 1]++;
        for (int b = 0; b < 256; b++) next[b + 1] += next[b];
        for (int64_t i = 0; i < count; i++) to[next[(from[i] >> shift) & 0xFF]++] = from[i];
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != keys) memcpy(keys, from, (size_t)count * sizeof *keys);
}

void ice_sort(uint64_t *keys, uint64_t *spare, int64_t count) {
    if (count < 1024) merge_sort(keys, spare, count);
    else radix_sort(keys, spare, count);
}

static uint64_t median(uint64_t a, uint64_t b, uint64_t c) {
    const uint64_t low = a < b ? a : b, high = a < b ? b : a;
    if (c <= low) return low;
    return c < high ? c : high;
}

void ice_select_largest(uint64_t *keys, int64_t count, int64_t wanted) {
    int64_t low = 0, high = count; /* [0, low) belong to the answer, [high, count) do not */
    while (low < wanted && wanted < high) {
        const uint64_t pivot = median(keys[low], keys[low + (high - low) / 2], keys[high - 1]);
        /* [low, greater) > pivot, [greater, equal) == pivot, [end, high) < pivot */
        int64_t greater = low, equal = low, end = high;
        while (equal < end) {
            uint64_t key = keys[equal];
            if (key > pivot) {
                keys[equal++] = keys[greater];
                keys[greater++] = key;
            } else if (key < pivot) {
                keys[equal] = keys[--end];
                keys[end] = key;
            } else {
                equal++;
            }
        }
        if (wanted < greater) high = greater;
        else if (wanted <= equal) return;
        else low = equal;
    }
}
