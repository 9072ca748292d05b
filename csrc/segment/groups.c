#include "segment/groups.h"

#include <string.h>

#include "base/memory.h"
#include "segment/cells.h"

/* Some of the rows, by their numbers. */
typedef struct {
    const ice_rows *all;
    const int32_t *number;
} some_rows;

static const float *read_some(const void *context, int64_t row, float *buffer) {
    const some_rows *some = context;
    return some->all->read(some->all->context, some->number[row], buffer);
}

static icecore_status cluster(ice_cells *cells, const ice_kernels *kernels, ice_rows rows, int64_t wanted, uint64_t seed) {
    int64_t work = INT64_MAX;
    icecore_status status = ice_cells_begin(cells, kernels, rows, 0.0f, wanted, seed);
    if (status != ICECORE_OK) return status;
    status = ice_cells_step(cells, &work, ICE_WITHIN_TASK);
    if (status != ICECORE_OK) ice_cells_end(cells);
    return status;
}

static int64_t rounded(int64_t count, int64_t size) {
    int64_t wanted = (count + size / 2) / size;
    return wanted < 1 ? 1 : wanted;
}

/* Puts the `count` rows at order[first] in cells and these behind those found so far. */
static icecore_status split(ice_groups *g, const ice_kernels *kernels, const ice_rows *rows, int64_t first, int64_t count,
                            int64_t cell_size, uint64_t seed, int32_t *spare) {
    const some_rows some = {rows, g->order + first};
    ice_cells cells;
    icecore_status status =
        cluster(&cells, kernels, (ice_rows){read_some, &some, count, rows->dim}, rounded(count, cell_size), seed);
    if (status != ICECORE_OK) return status;
    for (int64_t i = 0; i < count; i++) spare[i] = g->order[first + cells.order[i]];
    memcpy(g->order + first, spare, (size_t)count * sizeof *spare);
    for (int64_t c = 0; c < cells.cells; c++) g->cell[g->cells++] = first + cells.offset[c];
    ice_cells_end(&cells);
    return ICECORE_OK;
}

void ice_groups_end(ice_groups *g) {
    ice_free(g->parent);
    ice_free(g->cell);
    ice_free(g->order);
    *g = (ice_groups){0};
}

icecore_status ice_group_rows(ice_groups *g, const ice_kernels *kernels, ice_rows rows, int64_t cell_size, uint64_t seed) {
    const int64_t count = rows.count, wanted = rounded(rounded(count, cell_size), ICE_CELLS_PER_PARENT);
    /* every parent rounds its number of cells, and has at least one */
    *g = (ice_groups){.parents = wanted, .parent = ice_alloc(wanted + 1, sizeof(int64_t)),
                      .cell = ice_alloc(count / cell_size + 2 * wanted + 1, sizeof(int64_t)), .order = ice_alloc(count, sizeof(int32_t))};
    int32_t *spare = ice_alloc(count, sizeof *spare);
    icecore_status status = g->parent && g->cell && g->order && spare ? ICECORE_OK : ICECORE_ERROR_MEMORY;
    if (status == ICECORE_OK && wanted == 1) {
        g->parent[0] = 0;
        g->parent[1] = count;
        for (int64_t i = 0; i < count; i++) g->order[i] = (int32_t)i;
    } else if (status == ICECORE_OK) {
        ice_cells parents;
        status = cluster(&parents, kernels, rows, wanted, ~seed);
        if (status == ICECORE_OK) {
            g->parents = parents.cells;
            memcpy(g->parent, parents.offset, (size_t)(parents.cells + 1) * sizeof *g->parent);
            memcpy(g->order, parents.order, (size_t)count * sizeof *g->order);
            ice_cells_end(&parents);
        }
    }
    for (int64_t p = 0; p < g->parents && status == ICECORE_OK; p++) {
        int64_t first = g->parent[p], end = g->parent[p + 1];   /* rows now, cells when it is done */
        g->parent[p] = g->cells;
        status = split(g, kernels, &rows, first, end - first, cell_size, seed + (uint64_t)p, spare);
    }
    if (status == ICECORE_OK) g->parent[g->parents] = g->cells;
    ice_free(spare);
    if (status == ICECORE_OK) g->cell[g->cells] = count;
    else ice_groups_end(g);
    return status;
}
