#include "attention/query_moments.h"

#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"

/* Of a long input not every eighth position, but about so many. */
#define MAX_POSITIONS 2048

typedef struct {
    float *rows, *weights, *accumulator; /* rows x dim, rows x ICE_PANEL, dim x ICE_PANEL */
} workspace;

static int is_finite(const float *row, int64_t dim) {
    float product = 0.0f; /* NaN where one of them is not finite */
    for (int64_t t = 0; t < dim; t++) product += row[t] * 0.0f;
    return product == 0.0f;
}

/* Rows are "values", and their components, ICE_PANEL at a time, the weights of lanes. */
static void add_products(const ice_kernels *kernels, const workspace *w, int64_t count, int64_t dim, float *sum) {
    float correction[ICE_PANEL];
    for (int lane = 0; lane < ICE_PANEL; lane++) correction[lane] = 1.0f;
    for (int64_t first = 0; first < dim; first += ICE_PANEL) {
        const int64_t lanes = ice_min(dim - first, ICE_PANEL);
        memset(w->accumulator, 0, (size_t)(dim * ICE_PANEL) * sizeof(float));
        for (int64_t j = 0; j < count; j++) {
            memcpy(w->weights + j * ICE_PANEL, w->rows + j * dim + first, (size_t)lanes * sizeof(float));
            memset(w->weights + j * ICE_PANEL + lanes, 0, (size_t)(ICE_PANEL - lanes) * sizeof(float));
        }
        kernels->weighted_sum(w->weights, count, (int)lanes, w->rows, dim, dim, correction, w->accumulator);
        for (int64_t t = 0; t < dim; t++)
            for (int64_t lane = 0; lane < lanes; lane++)
                sum[t * dim + first + lane] += w->accumulator[t * ICE_PANEL + lane];
    }
}

icecore_status ice_add_query_moments(const ice_query_range *range, int64_t step, float *sum, int64_t *rows) {
    const icecore_attention *p = range->problem;
    const int64_t offset = p->keys - p->queries, group = ice_group(p), position = offset + range->first;
    int64_t query = range->first + (step - 1 - (position % step + step) % step), filled = 0;
    if (query >= range->end) return ICECORE_OK;
    const int64_t all = ((range->end - query + step - 1) / step) * group, room = ice_min(all, ICE_KEY_BLOCK);
    float *memory = ice_alloc(room * p->dim + room * ICE_PANEL + p->dim * ICE_PANEL, sizeof *memory);
    if (!memory) return ICECORE_ERROR_MEMORY;
    workspace w = {memory, memory + room * p->dim, memory + room * p->dim + room * ICE_PANEL};
    for (; query < range->end; query += step)
        for (int64_t member = 0; member < group; member++) {
            float *row = w.rows + filled * p->dim;
            const ice_row own = {range->batch, range->key_head * group + member, query};
            ice_load_query(p, range->kernels, own, 1.0f, row);
            if (!is_finite(row, p->dim)) continue;
            ++*rows;
            if (++filled < room) continue;
            add_products(range->kernels, &w, filled, p->dim, sum);
            filled = 0;
            if (!ice_interrupted()) continue;
            ice_free(memory);
            return ICECORE_INTERRUPTED;
        }
    if (filled) add_products(range->kernels, &w, filled, p->dim, sum);
    ice_free(memory);
    return ICECORE_OK;
}

int ice_find_query_moments(const ice_query_range *range, float *moments) {
    const icecore_attention *p = range->problem;
    const int64_t steps[] = {ice_max((range->end - range->first) / MAX_POSITIONS, ICE_MOMENT_STEP), 1};
    int known = 0;
    for (int i = 0; i < 2 && !known; i++) {
        int64_t rows = 0;
        memset(moments, 0, (size_t)(p->dim * p->dim) * sizeof *moments);
        if (ice_add_query_moments(range, steps[i], moments, &rows) != ICECORE_OK) return -1;
        if (rows < ICE_MIN_MOMENT_ROWS) continue;
        known = 1;
        for (int64_t t = 0; t < p->dim * p->dim; t++) {
            moments[t] /= (float)rows;
            known &= isfinite(moments[t]) != 0;
        }
    }
    return known;
}
