#include "segment/fields.h"

#include <stdio.h>

#include "base/memory.h"

typedef struct {
    const char *name;
    char type;
    int64_t count;
    void **data;
} array;

static int64_t add(ice_field *fields, int64_t n, const char *prefix, const array *own, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        fields[n] = (ice_field){"", own[i].type, own[i].count, own[i].data};
        snprintf(fields[n++].part, sizeof fields->part, "%s%s", prefix, own[i].name);
    }
    return n;
}

static int64_t add_nodes(ice_field *fields, int64_t n, const char *prefix, const icecore_segment *s, ice_nodes *nodes) {
    const char means = ice_type_of(s->mean_dtype);
    const array own[] = {
        {"offset", 'l', nodes->count + 1, (void **)&nodes->offset},
        {"mean_key", means, nodes->count * s->dim, &nodes->mean_key},
        {"mean_value", means, nodes->count * s->value_dim, &nodes->mean_value},
        {"variance", 'f', nodes->count, (void **)&nodes->variance},
        {"radius", 'f', nodes->count, (void **)&nodes->radius},
        {"log2_count", 'f', nodes->count, (void **)&nodes->log2_count},
        {"log2_weight", 'f', nodes->count, (void **)&nodes->log2_weight},
        {"half_log2_variance", 'f', nodes->count, (void **)&nodes->half_log2_variance},
    };
    return add(fields, n, prefix, own, sizeof own / sizeof *own);
}

int64_t ice_attention_fields(icecore_segment *s, ice_field *fields) {
    const char rows = s->halves ? 'b' : ice_type_of(s->dtype); /* halves are no numbers to anybody else */
    const int64_t units = s->halves ? (int64_t)sizeof(float) : 1;
    const array own[] = {
        {"order", 'i', s->count, (void **)&s->order},
        {"keys", rows, s->count * ice_row_stride(s->dtype, s->dim) * units, &s->keys},
        {"values", rows, s->count * ice_row_stride(s->dtype, s->value_dim) * units, &s->values},
        {"metric", 'f', s->dim, (void **)&s->metric},
        {"component_variance", 'f', s->dim, (void **)&s->component_variance},
        {"centre", 'f', s->dim, (void **)&s->centre},
        {"query_sum", 'f', s->query_numbers, (void **)&s->query_sum},
    };
    int64_t n = add(fields, 0, "", own, sizeof own / sizeof *own);
    n = add_nodes(fields, n, "cell.", s, &s->cell);
    return add_nodes(fields, n, "parent.", s, &s->parent);
}

/* One block, so that a segment of 4096 keys and more lies in huge pages (memory.c). */
int ice_attention_alloc(icecore_segment *s) {
    ice_field fields[ICE_MAX_ATTENTION_FIELDS];
    const int64_t count = ice_attention_fields(s, fields);
    size_t bytes = 0;
    for (int64_t i = 0; i < count; i++) bytes += ice_round_up((size_t)fields[i].count * ice_size_of(fields[i].type));
    char *memory = ice_owned_alloc(&s->owned, (int64_t)bytes, 1);
    for (int64_t i = 0; memory && i < count; i++) {
        *fields[i].data = memory;
        memory += ice_round_up((size_t)fields[i].count * ice_size_of(fields[i].type));
    }
    return memory != NULL;
}
