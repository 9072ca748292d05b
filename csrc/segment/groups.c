#include "segment/groups.h"

#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"

/* Some of the rows, by their numbers. */
typedef struct {
    const ice_rows *all;
    const int32_t *number;
} some_rows;

static const float *read_some(const void *context, int64_t row, float *buffer) {
    const some_rows *some = context;
    return some->all->read(some->all->context, some->number[row], buffer);
}

static int64_t rounded(int64_t count, int64_t size) {
    int64_t wanted = (count + size / 2) / size;
    return wanted < 1 ? 1 : wanted;
}

static int64_t wanted_parents(int64_t rows, int64_t cell_size) {
    return rounded(rounded(rows, cell_size), ICE_CELLS_PER_PARENT);
}

/* Lloyd steps of cells; parents have one.  The second is worth a tenth of the error on pictures and on keys in
 * recurring clusters. */
#define CELL_STEPS 2
/* Units of work of a visit of a row, of which clustering takes so many a row. */
#define PARENT_VISITS 3
#define CELL_VISITS (1 + 2 * CELL_STEPS)
static int64_t visit_cost(int64_t cells) { return 1 + cells / ICE_CELLS_PER_PARENT; }

int64_t ice_groups_work(int64_t rows, int64_t cell_size) {
    int64_t parents = wanted_parents(rows, cell_size);
    return rows *
           (CELL_VISITS * visit_cost(ICE_CELLS_PER_PARENT) + (parents > 1 ? PARENT_VISITS * visit_cost(parents) : 0));
}

/* Puts the rows of a parent in cells and these behind those found so far. */
static icecore_status split(ice_groups *g, int64_t first, int64_t count, uint64_t seed) {
    const some_rows some = {&g->rows, g->order + first};
    const ice_rows rows = {read_some, &some, count, g->rows.dim, NULL};
    int64_t work = INT64_MAX;
    ice_cells cells;
    icecore_status status = ice_cells_begin(&cells, g->kernels, rows, g->projection, rounded(count, g->cell_size),
                                            CELL_STEPS, ICE_CELLS_ALONE, seed);
    if (status != ICECORE_OK) return status;
    status = ice_cells_step(&cells, &work, ICE_WITHIN_TASK);
    if (status == ICECORE_OK) {
        for (int64_t i = 0; i < count; i++) g->spare[i] = g->order[first + cells.order[i]];
        memcpy(g->order + first, g->spare, (size_t)count * sizeof *g->spare);
        for (int64_t c = 0; c < cells.cells; c++) g->cell[g->cells++] = first + cells.offset[c];
    }
    ice_cells_end(&cells);
    return status;
}

void ice_groups_forget_rows(ice_groups *g) {
    ice_free(g->order);
    ice_free(g->spare);
    g->order = g->spare = NULL;
}

void ice_groups_end(ice_groups *g) {
    ice_cells_end(&g->clustering);
    ice_free(g->parent);
    ice_free(g->cell);
    ice_groups_forget_rows(g);
    *g = (ice_groups){0};
}

icecore_status ice_groups_begin(ice_groups *g, const ice_kernels *kernels, ice_rows rows, ice_projection projection,
                                int64_t cell_size, uint64_t seed) {
    const int64_t count = rows.count, wanted = wanted_parents(count, cell_size);
    *g = (ice_groups){.kernels = kernels,
                      .rows = rows,
                      .projection = projection,
                      .cell_size = cell_size,
                      .seed = seed,
                      .parents = wanted};
    g->parent = ice_alloc(wanted + 1, sizeof(int64_t));
    /* every parent rounds its number of cells, and has at least one */
    g->cell = ice_alloc(count / cell_size + 2 * wanted + 1, sizeof(int64_t));
    g->order = ice_alloc(count, sizeof(int32_t));
    g->spare = ice_alloc(count, sizeof(int32_t));
    icecore_status status = g->parent && g->cell && g->order && g->spare ? ICECORE_OK : ICECORE_ERROR_MEMORY;
    if (status == ICECORE_OK && wanted == 1) {
        g->parent[0] = 0;
        g->parent[1] = count;
        for (int64_t i = 0; i < count; i++) g->order[i] = (int32_t)i;
        g->clustered = 1;
    } else if (status == ICECORE_OK) {
        status = ice_cells_begin(&g->clustering, kernels, rows, projection, wanted, 1, ICE_CELLS_ALONE, ~seed);
    }
    if (status != ICECORE_OK) ice_groups_end(g);
    return status;
}

static icecore_status cluster_parents(ice_groups *g, int64_t *work) {
    const int64_t cost = visit_cost(g->parents);
    int64_t visits = (*work - 1) / cost + 1, asked = visits;
    icecore_status status = ice_cells_step(&g->clustering, &visits, ICE_WITHIN_TASK);
    if (status != ICECORE_OK) return status;
    *work -= (asked - visits) * cost;
    if (!ice_cells_done(&g->clustering)) return ICECORE_OK;
    g->parents = g->clustering.cells;
    memcpy(g->parent, g->clustering.offset, (size_t)(g->parents + 1) * sizeof *g->parent);
    memcpy(g->order, g->clustering.order, (size_t)g->rows.count * sizeof *g->order);
    ice_cells_end(&g->clustering);
    g->clustered = 1;
    return ICECORE_OK;
}

icecore_status ice_groups_step(ice_groups *g, int64_t *work) {
    icecore_status status = ICECORE_OK;
    while (*work > 0 && !ice_groups_done(g) && status == ICECORE_OK) {
        if (!g->clustered) {
            status = cluster_parents(g, work);
            continue;
        }
        int64_t first = g->parent[g->next], end = g->parent[g->next + 1],
                cells = g->cells; /* rows now, cells when it is done */
        status = split(g, first, end - first, g->seed + (uint64_t)g->next);
        if (status != ICECORE_OK) break;
        *work -= CELL_VISITS * (end - first) * visit_cost(ICE_CELLS_PER_PARENT);
        g->parent[g->next++] = cells;
        if (!ice_groups_done(g)) continue;
        g->parent[g->parents] = g->cells;
        g->cell[g->cells] = g->rows.count;
    }
    return status;
}

int ice_groups_done(const ice_groups *g) { return g->clustered && g->next == g->parents; }
