#include "attention/rounding.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"
#include "segment/metric.h"
#include "cluster/rows.h"

typedef struct {
    const icecore_attention *problem;
    const ice_kernels *kernels;
    const float *centre; /* of each head, taken off keys; NULL: nothing */
    uint16_t *keys, *values;
} copying;

#define COPIED_ROWS 256

static void copy_rows(const copying *c, const icecore_tensor *tensor, int64_t width, const float *centre, int64_t head,
                      int64_t first, uint16_t *target) {
    const icecore_attention *p = c->problem;
    const void *data = ice_address(tensor, p->key_dtype, head / p->key_heads, head % p->key_heads, 0);
    const ice_array_rows rows = {c->kernels, p->key_dtype, data, tensor->row_stride, width};
    const int64_t end = ice_min(first + COPIED_ROWS, p->keys);
    float buffer[ICECORE_MAX_DIM];
    for (int64_t j = first; j < end; j++) {
        const float *row = ice_read_array_row(&rows, j, buffer);
        for (int64_t t = 0; centre && t < width; t++) buffer[t] = row[t] - centre[t];
        c->kernels->from_float32(ICECORE_BFLOAT16, centre ? buffer : row, target + (head * p->keys + j) * width, width);
    }
}

static void copy_task(void *context, int64_t index, void *scratch) {
    const copying *c = context;
    const icecore_attention *p = c->problem;
    const int64_t heads = p->batch * p->key_heads, head = index % heads, first = index / heads * COPIED_ROWS;
    if (!scratch) return;
    copy_rows(c, &p->key, p->dim, c->centre ? c->centre + head * p->dim : NULL, head, first, c->keys);
    copy_rows(c, &p->value, p->value_dim, NULL, head, first, c->values);
}

/* (On heads of SmolLM2, whose means rotary positions turn slowly, a centre in all components doubles the error of
 * rounding.) */
#define CENTRED_KEYS 256
#define CENTRED_FROM 8.0f
#define MAX_DRIFT 0.016f
int ice_find_centres(const icecore_attention *p, const ice_kernels *kernels, int64_t block, float *centre) {
    int any = 0;
    const int64_t keys = p->causal && block < p->keys ? block : p->keys, count = ice_min(keys, CENTRED_KEYS),
                  step = keys / count;
    for (int64_t head = 0; head < p->batch * p->key_heads; head++) {
        float half[2][ICECORE_MAX_DIM], *own = centre + head * p->dim;
        double spread[ICECORE_MAX_DIM];
        ice_array_rows array = {kernels, p->key_dtype, NULL, step * p->key.row_stride, p->dim};
        ice_rows rows = {ice_read_array_row, &array, count, p->dim, NULL};
        for (int i = 2; i >= 0; i--) { /* both halves, then all */
            const int64_t first = i == 1 ? (count - count / 2) * step : 0;
            array.data = ice_key_at(p, head, first);
            rows.count = i ? count / 2 : count;
            if (rows.count) ice_find_centre(&rows, i ? half[i - 1] : own);
        }
        ice_find_spread(&rows, spread);
        for (int64_t t = 0; t < p->dim; t++) {
            const float size = fabsf(own[t]);
            if (count < 2 ||
                !(size > CENTRED_FROM * (float)spread[t] && fabsf(half[0][t] - half[1][t]) <= MAX_DRIFT * size))
                own[t] = 0.0f;
            any |= own[t] != 0.0f;
        }
    }
    return any;
}

/* On copies of the keys, less the centre, and values. */
static icecore_status copy_problem(const icecore_attention *p, const ice_kernels *kernels, ice_rounded *rounded) {
    const int64_t heads = p->batch * p->key_heads;
    icecore_attention *own = &rounded->problem;
    uint16_t *copies = rounded->copies = ice_alloc(heads * p->keys * (p->dim + p->value_dim), sizeof *copies);
    if (!copies) return ICECORE_ERROR_MEMORY;
    copying c = {p, kernels, rounded->centre, copies, copies + heads * p->keys * p->dim};
    own->key = (icecore_tensor){c.keys, p->key_heads * p->keys * p->dim, p->keys * p->dim, p->dim};
    own->value =
        (icecore_tensor){c.values, p->key_heads * p->keys * p->value_dim, p->keys * p->value_dim, p->value_dim};
    return ice_parallel_for((p->keys + COPIED_ROWS - 1) / COPIED_ROWS * heads, p->threads, 1, copy_task, &c);
}

int ice_can_be_rounded(const icecore_attention *p, const ice_kernels *kernels) {
    icecore_attention rounded = *p;
    rounded.key_dtype = ICECORE_BFLOAT16;
    return p->key_dtype != ICECORE_BFLOAT16 && p->keys > 0 && ice_panel_dtype(&rounded, kernels) == ICECORE_BFLOAT16;
}

icecore_status ice_round(const icecore_attention *given, const ice_kernels *kernels, int64_t block, int copied,
                         ice_rounded *rounded) {
    *rounded = (ice_rounded){*given, NULL, NULL};
    rounded->problem.key_dtype = ICECORE_BFLOAT16;
    rounded->problem.key.data = rounded->problem.value.data = NULL;
    if (!given->softcap && !given->sink_logits) { /* these need whole scores */
        rounded->centre = ice_alloc(given->batch * given->key_heads * given->dim, sizeof *rounded->centre);
        if (!rounded->centre) return ICECORE_ERROR_MEMORY;
        if (!ice_find_centres(given, kernels, block, rounded->centre)) {
            ice_free(rounded->centre);
            rounded->centre = NULL;
        }
    }
    return copied ? copy_problem(given, kernels, rounded) : ICECORE_OK;
}

void ice_free_rounded(ice_rounded *rounded) {
    ice_free(rounded->copies);
    ice_free(rounded->centre);
}
