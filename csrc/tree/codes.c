#include "tree/codes.h"

int64_t ice_parent_of(const ice_layer *layer, int64_t child) {
    int64_t low = 0, high = layer->parents;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (layer->offset[middle] <= child) low = middle;
        else high = middle;
    }
    return low;
}

float ice_encode(const ice_kernels *kernels, const ice_tree *s, ice_layer *layer, int64_t parent, int64_t child,
                 const float *x, float *work) {
    const int64_t dim = s->dim;
    const float *mean = layer->mean + parent * dim;
    uint8_t *code = layer->code + child * layer->stride;
    layer->scale[child] = kernels->encode(x, mean, dim, layer->stride, (int8_t *)code);
    for (int64_t t = 0; t < layer->stride; t++) code[t] ^= 0x80; /* signed to unsigned: 128 more */
    float squared;
    for (int64_t t = 0; t < dim; t++) work[t] = (x[t] - mean[t]) * s->scale;
    kernels->row_scores(work, dim, ICECORE_FLOAT32, work, dim, 1, &squared);
    if (layer->bias) layer->bias[child] = -0.5f * squared;
    return squared;
}

void ice_encode_query(const ice_kernels *kernels, const float *query, int64_t dim, int64_t stride, int8_t *code,
                      float *scale, int32_t *offset) {
    *scale = kernels->encode(query, NULL, dim, stride, code);
    int32_t sum = 0;
    for (int64_t t = 0; t < dim; t++) sum += code[t];
    *offset = -128 * sum;
}
