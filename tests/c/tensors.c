#include "tensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CANARY 0xA5

uint64_t next_random(uint64_t *state) { /* xorshift64* */
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1Du;
}

float random_float(uint64_t *state) { return (float)(int32_t)(next_random(state) >> 32) * 0x1p-30f; }

icecore_segment_source segment_source(const problem *s) {
    const icecore_attention *p = &s->p;
    return (icecore_segment_source){.dtype = p->dtype,
                                    .keys = p->key.data,
                                    .values = p->value.data,
                                    .key_stride = p->key.row_stride,
                                    .value_stride = p->value.row_stride,
                                    .count = p->keys,
                                    .dim = p->dim,
                                    .value_dim = p->value_dim,
                                    .cell_size = 1};
}

size_t element_size(icecore_dtype dtype) { return dtype == ICECORE_FLOAT32 ? 4 : 2; }

int64_t element_index(const icecore_tensor *t, int64_t batch, int64_t head, int64_t row, int64_t column) {
    return batch * t->batch_stride + head * t->head_stride + row * t->row_stride + column;
}

static double half_value(uint16_t bits) {
    int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    if (exponent == 31) magnitude = mantissa ? NAN : INFINITY;
    return bits & 0x8000 ? -magnitude : magnitude;
}

double element_get(const icecore_tensor *t, icecore_dtype dtype, int64_t index) {
    if (dtype == ICECORE_FLOAT32) return ((const float *)t->data)[index];
    uint16_t bits = ((const uint16_t *)t->data)[index];
    if (dtype == ICECORE_FLOAT16) return half_value(bits);
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

void element_set(const icecore_tensor *t, icecore_dtype dtype, int64_t index, float value) {
    if (dtype == ICECORE_FLOAT32) {
        ((float *)t->data)[index] = value;
        return;
    }
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    int special = (wide & 0x7F800000u) == 0x7F800000u;
    uint32_t sign = (wide >> 16) & 0x8000u;
    uint32_t half = value == 0.0f ? 0u : ((wide & 0x7FFFFFFFu) - (112u << 23)) >> 13; /* normal numbers only */
    if (special) half = 0x7C00u | (isnan(value) ? 0x200u : 0u);
    ((uint16_t *)t->data)[index] = (uint16_t)(dtype == ICECORE_FLOAT16 ? sign | half : wide >> 16);
}

problem one_head(int64_t queries, int64_t keys, int64_t dim, int64_t value_dim) {
    return (problem){.p = {.batch = 1,
                           .query_heads = 1,
                           .key_heads = 1,
                           .queries = queries,
                           .keys = keys,
                           .dim = dim,
                           .value_dim = value_dim,
                           .window_left = -1,
                           .window_right = -1}};
}

/* A number that its dtype holds exactly: uniform in [-2, 2), or of magnitude from 1/4 to 2. */
static float random_element(icecore_dtype dtype, uint64_t *state) {
    if (dtype == ICECORE_FLOAT32) return random_float(state);
    uint64_t bits = next_random(state);
    int digits = dtype == ICECORE_FLOAT16 ? 10 : 7;
    float mantissa = 1.0f + ldexpf((float)((bits >> 8) & ((1u << digits) - 1u)), -digits);
    return ldexpf(bits & 1 ? -mantissa : mantissa, (int)((bits >> 4) % 3) - 2);
}

/* Exactly as many bytes as the tensor spans, so that a sanitizer sees the first one past it. */
static int64_t tensor_allocate(icecore_tensor *t, const problem *s, int64_t heads, int64_t rows, int64_t width,
                               int fill) {
    int64_t row = width + s->pad, count = s->p.batch * heads * rows;
    t->row_stride = s->layout == HEADS_FIRST ? row : row * heads;
    t->head_stride = s->layout == HEADS_FIRST ? row * rows : row;
    t->batch_stride = row * rows * heads;
    int64_t bytes = count ? (count * row - s->pad) * (int64_t)element_size(s->p.dtype) : 0;
    t->data = malloc(bytes ? (size_t)bytes : 1);
    if (!t->data) {
        puts("the driver is out of memory");
        exit(1);
    }
    memset(t->data, fill, (size_t)bytes);
    return bytes;
}

static void fill_random(const icecore_tensor *t, const problem *s, int64_t heads, int64_t rows, int64_t width,
                        uint64_t *state) {
    for (int64_t b = 0; b < s->p.batch; b++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < width; c++)
                    element_set(t, s->p.dtype, element_index(t, b, h, r, c), random_element(s->p.dtype, state));
}

void problem_allocate(problem *s) {
    icecore_attention *p = &s->p;
    uint64_t state = s->seed + 1;
    p->key_dtype = p->dtype;
    tensor_allocate(&p->query, s, p->query_heads, p->queries, p->dim, 0xFF);
    tensor_allocate(&p->key, s, p->key_heads, p->keys, p->dim, 0xFF);
    tensor_allocate(&p->value, s, p->key_heads, p->keys, p->value_dim, 0xFF);
    fill_random(&p->query, s, p->query_heads, p->queries, p->dim, &state);
    fill_random(&p->key, s, p->key_heads, p->keys, p->dim, &state);
    fill_random(&p->value, s, p->key_heads, p->keys, p->value_dim, &state);
    s->out_bytes = tensor_allocate(&p->out, s, p->query_heads, p->queries, p->value_dim, CANARY);
    s->lse_count = p->batch * p->query_heads * p->queries;
    p->lse = malloc(s->lse_count ? (size_t)s->lse_count * sizeof *p->lse : 1);
    if (p->scale == 0.0f) p->scale = (float)(1.0 / sqrt((double)p->dim));
    problem_clear(s);
}

void problem_free(problem *s) {
    free(s->p.query.data);
    free(s->p.key.data);
    free(s->p.value.data);
    free(s->p.out.data);
    free(s->p.lse);
}

void problem_clear(problem *s) {
    memset(s->p.out.data, CANARY, (size_t)s->out_bytes);
    memset(s->p.lse, CANARY, (size_t)s->lse_count * sizeof *s->p.lse);
}

static int all_canaries(const void *memory, int64_t bytes) {
    const unsigned char *byte = memory;
    for (int64_t i = 0; i < bytes; i++)
        if (byte[i] != CANARY) return 0;
    return 1;
}

int problem_is_clear(const problem *s) {
    return all_canaries(s->p.out.data, s->out_bytes) &&
           all_canaries(s->p.lse, s->lse_count * (int64_t)sizeof *s->p.lse);
}

int problem_gaps_are_clear(const problem *s) {
    int64_t element = (int64_t)element_size(s->p.dtype), row = (s->p.value_dim + s->pad) * element,
            gap = s->pad * element;
    for (int64_t end = s->p.value_dim * element; end < s->out_bytes; end += row)
        if (!all_canaries((const char *)s->p.out.data + end, gap)) return 0;
    return 1;
}
