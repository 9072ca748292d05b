/* Means in the dtype that the instruction set in force multiplies: a file may come from another machine. */
#include <math.h>

#include "segment/segment.h"

/* Rows of one type as the segment's means; into `moved`, where it is not NULL, how far each moves in the metric. */
static void convert(const ice_kernels *kernels, const icecore_segment *s, icecore_dtype from, const void *source,
                    int64_t count, int64_t dim, void *target, float *moved) {
    const icecore_dtype to = s->mean_dtype;
    float row[ICECORE_MAX_DIM], stored[ICECORE_MAX_DIM];
    for (int64_t i = 0; i < count; i++) {
        void *place = (char *)target + (size_t)(i * dim) * ice_element_size(to);
        kernels->to_float32(from, (const char *)source + (size_t)(i * dim) * ice_element_size(from), row, dim);
        kernels->from_float32(to, row, place, dim);
        kernels->to_float32(to, place, stored, dim);
        double squared = 0.0;
        if (!moved) continue;
        for (int64_t t = 0; t < dim; t++) {
            const double difference = ((double)row[t] - (double)stored[t]) * (double)s->metric[t];
            squared += difference * difference;
        }
        moved[i] = (float)sqrt(squared);
    }
}

/* No key is further from the new mean than from the old one by more than that has moved.  Variances are estimates, and
 * stay. */
static int convert_nodes(icecore_segment *s, ice_nodes *nodes, icecore_dtype from, const ice_kernels *kernels) {
    const ice_nodes old = *nodes;
    const size_t element = ice_element_size(s->mean_dtype);
    nodes->mean_key = ice_owned_alloc(&s->owned, old.count * s->dim, element);
    nodes->mean_value = ice_owned_alloc(&s->owned, old.count * s->value_dim, element);
    nodes->radius = ice_owned_alloc(&s->owned, old.count, sizeof(float));
    if (!nodes->mean_key || !nodes->mean_value || !nodes->radius) return 0;
    convert(kernels, s, from, old.mean_key, old.count, s->dim, nodes->mean_key, nodes->radius);
    convert(kernels, s, from, old.mean_value, old.count, s->value_dim, nodes->mean_value, NULL);
    for (int64_t i = 0; i < old.count; i++) nodes->radius[i] += old.radius[i];
    return 1;
}

icecore_segment *ice_segment_with_means(icecore_segment *from, icecore_dtype means, const ice_kernels *kernels) {
    if (from->base) from = from->base;
    if (from->mean_dtype == means) return ice_segment_share(from);
    icecore_segment *s = ice_segment_over(from);
    if (!s) return NULL;
    s->mean_dtype = means;
    if (convert_nodes(s, &s->cell, from->mean_dtype, kernels) &&
        convert_nodes(s, &s->parent, from->mean_dtype, kernels))
        return s;
    icecore_segment_free(s);
    return NULL;
}
