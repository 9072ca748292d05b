/* Changes of an input that keep its format, so that most of them pass the checks of names and lengths. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "input.h"

static uint64_t state;

static uint64_t random_below(uint64_t bound) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % bound;
}

/* An integer that is often wrong in a place for `old`; `other` is one of the same array. */
static int64_t integer(int64_t old, int64_t other) {
    const uint64_t o = (uint64_t)old; /* which may overflow */
    const uint64_t values[] = {0,
                               1,
                               2,
                               (uint64_t)-1,
                               o - 1,
                               o + 1,
                               2 * o,
                               -o,
                               (uint64_t)other,
                               INT32_MAX,
                               (uint64_t)INT32_MIN,
                               INT64_MAX,
                               (uint64_t)INT64_MIN,
                               UINT32_MAX,
                               127,
                               255,
                               random_below(64)};
    return (int64_t)values[random_below(sizeof values / sizeof *values)];
}

static float number(float old, float other) {
    const float values[] = {0.0f,       -0.0f,       1.0f,         NAN,    INFINITY,
                            -INFINITY,  3e38f,       -3e38f,       1e-40f, -old,
                            2.0f * old, 1e20f * old, 1e-20f * old, other,  nextafterf(old, 9e9f),
                            0.5f};
    return values[random_below(sizeof values / sizeof *values)];
}

/* Exchanges one element for another that its type makes likely to do harm. */
static void change_element(icecore_array *a) {
    static const uint16_t halves[] = {0, 0x8000, 0x7f80, 0xff80, 0x7fc0, 0x7c00, 0x7bff, 0x7f7f, 1};
    const uint64_t at = random_below((uint64_t)a->count), from = random_below((uint64_t)a->count);
    void *data = (void *)a->data;
    switch (a->type) {
    case 'l': ((int64_t *)data)[at] = integer(((int64_t *)data)[at], ((int64_t *)data)[from]); break;
    case 'i': ((int32_t *)data)[at] = (int32_t)integer(((int32_t *)data)[at], ((int32_t *)data)[from]); break;
    case 'f': ((float *)data)[at] = number(((float *)data)[at], ((float *)data)[from]); break;
    case 'h': ((uint16_t *)data)[at] = halves[random_below(sizeof halves / sizeof *halves)]; break;
    default: ((uint8_t *)data)[at] = (uint8_t)(random_below(2) ? random_below(4) : random_below(256));
    }
}

/* Takes out elements, or repeats some. */
static void change_length(icecore_array *a) {
    const size_t size = size_of(a->type), at = random_below((uint64_t)a->count), left = (size_t)a->count - at;
    const size_t some = 1 + random_below(left < 8 ? left : 8);
    char *data = (char *)a->data;
    if (random_below(2)) {
        memmove(data + at * size, data + (at + some) * size, (left - some) * size);
        a->count -= (int64_t)some;
        return;
    }
    a->data = data = realloc(data, ((size_t)a->count + some) * size);
    memmove(data + (at + some) * size, data + at * size, left * size);
    a->count += (int64_t)some;
}

static void change_array(icecore_array *a) {
    switch (a->count ? random_below(16) : 15) {
    case 0: change_length(a); break;
    case 1:
    case 2:
        LLVMFuzzerMutate((uint8_t *)a->data, (size_t)a->count * size_of(a->type), (size_t)a->count * size_of(a->type));
        break;
    case 15: a->name[random_below(NAME - 1)] ^= (char)(1u << random_below(7)); break;
    default: change_element(a);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t size, size_t capacity, unsigned seed) {
    state = seed * 0x9e3779b97f4a7c15u + 1;
    if (random_below(16) == 0) return LLVMFuzzerMutate(bytes, size, capacity);
    input in;
    read_input(&in, bytes, size);
    const int changes = 1 + (random_below(4) == 0) * (int)random_below(4);
    for (int i = 0; i < changes; i++) {
        if (in.count == 0 || random_below(8) == 0) in.option[random_below(OPTIONS)] = (uint8_t)random_below(256);
        else change_array(&in.array[random_below((uint64_t)in.count)]);
    }
    const size_t changed = write_input(&in, bytes, capacity);
    free_input(&in);
    return changed ? changed : LLVMFuzzerMutate(bytes, size, capacity);
}
