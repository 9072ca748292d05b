#include "segment/codes.h"

#include <math.h>

#define LARGEST 127.0f

int64_t ice_parent_of(const ice_layer *layer, int64_t child) {
    int64_t low = 0, high = layer->parents;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (layer->offset[middle] <= child) low = middle;
        else high = middle;
    }
    return low;
}

/* x / scale to the nearest integer within [-127, 127]; overflow and NaN, from numbers near the end of the range, stay within too. */
static inline int quantize(float x, float inverse) {
    float scaled = x * inverse;
    scaled = scaled > -LARGEST ? scaled : -LARGEST;
    scaled = scaled < LARGEST ? scaled : LARGEST;
    return (int)(scaled + (scaled < 0 ? -0.5f : 0.5f));
}

void ice_encode(ice_layer *layer, int64_t dim, const float *center, int64_t parent, int64_t child, const float *x) {
    const float *mean = layer->mean + parent * dim;
    uint8_t *code = layer->code + child * layer->stride;
    float largest = 0.0f;
    for (int64_t t = 0; t < dim; t++) {
        float size = fabsf(x[t] - mean[t]);
        largest = size > largest ? size : largest;
    }
    float inverse = largest > 0 ? LARGEST / largest : 0.0f;
    for (int64_t t = 0; t < dim; t++) code[t] = (uint8_t)(128 + quantize(x[t] - mean[t], inverse));
    for (int64_t t = dim; t < layer->stride; t++) code[t] = 128;
    layer->scale[child] = largest / LARGEST;
    if (!layer->bias) return;
    double bias = 0.0;
    for (int64_t t = 0; t < dim; t++) {
        double r = (double)x[t] - mean[t];
        bias += r * ((double)mean[t] - center[t] + 0.5 * r);
    }
    layer->bias[child] = (float)-bias;
}

void ice_encode_query(const float *query, const float *center, int64_t dim, int64_t stride, int8_t *code, float *scale,
                      int32_t *offset) {
    float largest = 0.0f;
    for (int64_t t = 0; t < dim; t++) {
        float size = fabsf(center ? query[t] - center[t] : query[t]);
        largest = size > largest ? size : largest;
    }
    float inverse = largest > 0 ? LARGEST / largest : 0.0f;
    int32_t sum = 0;
    for (int64_t t = 0; t < dim; t++) {
        code[t] = (int8_t)quantize(center ? query[t] - center[t] : query[t], inverse);
        sum += code[t];
    }
    for (int64_t t = dim; t < stride; t++) code[t] = 0;
    *scale = largest / LARGEST;
    *offset = -128 * sum;
}
