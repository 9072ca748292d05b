#include "segment/groups.h"

#include <float.h>
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
#define CELL_VISITS (2 + 2 * CELL_STEPS) /* one looks for what is apart */
static int64_t visit_cost(int64_t cells) { return 1 + cells / ICE_CELLS_PER_PARENT; }

int64_t ice_groups_work(int64_t rows, int64_t cell_size) {
    int64_t parents = wanted_parents(rows, cell_size);
    return rows *
           (CELL_VISITS * visit_cost(ICE_CELLS_PER_PARENT) + (parents > 1 ? PARENT_VISITS * visit_cost(parents) : 0));
}

/* ---- What is apart ---- */

/* A row is apart where its squared distance from its cell's mean is above so many times the mean of those of its
 * parent's rows, and a cell where that of its mean from its parent's is.  One key that all queries look for, among
 * others that none does, hides behind their mean.  (Such keys are a tenth of the mean error at equal near keys on
 * SmolLM2, and nine tenths of that of some heads.)  Of an image so many numbers are looked at, in which rows differ
 * most. */
#define APART 8.0
#define APART_WIDTH 8

typedef enum { IN_ITS_CELL, WITH_ITS_CELL, ALONE } place;

/* The rows of one parent, in the order of its cells. */
typedef struct {
    const ice_cells *cells;
    int64_t width;
    float *image;         /* rows x width */
    double *squared;      /* rows: distances from the means of their cells */
    double *mean, *apart; /* cells x width; cells: the means, and their squared distances from that of all rows */
    uint8_t *place;       /* rows: of a `place` each */
} parent_rows;

static void lay_out(parent_rows *p, ice_arena *arena) {
    const int64_t rows = p->cells->rows.count, cells = p->cells->cells;
    p->image = ice_arena_take(arena, rows * p->width, sizeof *p->image);
    p->squared = ice_arena_take(arena, rows, sizeof *p->squared);
    p->mean = ice_arena_take(arena, cells * p->width, sizeof *p->mean);
    p->apart = ice_arena_take(arena, cells, sizeof *p->apart);
    p->place = ice_arena_take(arena, rows, sizeof *p->place);
}

static void find_images(const ice_groups *g, const parent_rows *p) {
    const ice_rows *rows = &p->cells->rows;
    float buffer[ICECORE_MAX_DIM];
    for (int64_t i = 0; i < rows->count; i++) {
        const float *row = rows->read(rows->context, p->cells->order[i], buffer);
        float *image = p->image + i * p->width;
        if (!g->projection.rows) memcpy(image, row, (size_t)p->width * sizeof *image);
        else g->kernels->row_scores(row, rows->dim, ICECORE_FLOAT32, g->projection.rows, rows->dim, p->width, image);
    }
}

/* The mean of a cell, and its rows' distances from it; returns the sum of those that are finite. */
static double find_mean(const parent_rows *p, int64_t cell) {
    const int64_t first = p->cells->offset[cell], end = p->cells->offset[cell + 1], width = p->width;
    double *mean = p->mean + cell * width, total = 0.0;
    for (int64_t t = 0; t < width; t++) mean[t] = 0.0;
    for (int64_t i = first; i < end; i++)
        for (int64_t t = 0; t < width; t++) mean[t] += (double)p->image[i * width + t];
    for (int64_t t = 0; t < width; t++) mean[t] /= (double)(end - first);
    for (int64_t i = first; i < end; i++) {
        double squared = 0.0;
        for (int64_t t = 0; t < width; t++) {
            const double difference = (double)p->image[i * width + t] - mean[t];
            squared += difference * difference;
        }
        p->squared[i] = squared;
        if (squared <= FLT_MAX) total += squared;
    }
    return total;
}

/* The distances of the cells' means from that of all rows; returns the sum of those that are finite over the rows. */
static double find_cell_distances(const parent_rows *p) {
    const int64_t *offset = p->cells->offset;
    double total = 0.0;
    for (int64_t c = 0; c < p->cells->cells; c++) p->apart[c] = 0.0;
    for (int64_t t = 0; t < p->width; t++) {
        double centre = 0.0;
        for (int64_t c = 0; c < p->cells->cells; c++)
            centre += p->mean[c * p->width + t] * (double)(offset[c + 1] - offset[c]);
        centre /= (double)p->cells->rows.count;
        for (int64_t c = 0; c < p->cells->cells; c++) {
            const double difference = p->mean[c * p->width + t] - centre;
            p->apart[c] += difference * difference;
        }
    }
    for (int64_t c = 0; c < p->cells->cells; c++)
        if (p->apart[c] <= FLT_MAX) total += p->apart[c] * (double)(offset[c + 1] - offset[c]);
    return total;
}

/* Of the rows the farthest, where there are too many. */
static void find_places(const parent_rows *p) {
    const int64_t rows = p->cells->rows.count;
    double within = 0.0;
    for (int64_t c = 0; c < p->cells->cells; c++) within += find_mean(p, c);
    const double limit = APART * (within + find_cell_distances(p)) / (double)rows;
    for (int64_t c = 0; c < p->cells->cells; c++) {
        const int64_t first = p->cells->offset[c], end = p->cells->offset[c + 1];
        const int apart = p->apart[c] > limit && p->apart[c] <= FLT_MAX;
        memset(p->place + first, apart ? WITH_ITS_CELL : IN_ITS_CELL, (size_t)(end - first));
    }
    for (int64_t left = p->cells->cells / ICE_CELLS_PER_APART; left > 0; left--) {
        int64_t farthest = -1;
        double largest = APART * within / (double)rows;
        for (int64_t i = 0; i < rows; i++) {
            if (p->place[i] == ALONE || !(p->squared[i] > largest && p->squared[i] <= FLT_MAX)) continue;
            farthest = i;
            largest = p->squared[i];
        }
        if (farthest < 0) return;
        p->place[farthest] = ALONE;
    }
}

/* ---- Cells ---- */

/* The rows of a cell that have this place, behind those found so far. */
static void put(const parent_rows *p, int64_t cell, place where, const int32_t *row, ice_grouped *found) {
    int begun = 0;
    for (int64_t i = p->cells->offset[cell]; i < p->cells->offset[cell + 1]; i++) {
        if (p->place[i] != where) continue;
        if (!begun || where == ALONE) found->cell[found->cells++] = found->rows;
        found->order[found->rows++] = row[p->cells->order[i]];
        begun = 1;
    }
}

static icecore_status place_rows(ice_groups *g, const ice_cells *cells, const int32_t *row) {
    const int64_t known = g->projection.rows ? g->projection.count : cells->rows.dim;
    parent_rows p = {.cells = cells, .width = g->projection.rows && known > APART_WIDTH ? APART_WIDTH : known};
    ice_arena arena = {0};
    lay_out(&p, &arena);
    void *memory = ice_alloc((int64_t)arena.used, 1);
    if (!memory) return ICECORE_ERROR_MEMORY;
    arena = (ice_arena){.memory = memory};
    lay_out(&p, &arena);
    find_images(g, &p);
    find_places(&p);
    for (int64_t c = 0; c < cells->cells; c++) {
        put(&p, c, IN_ITS_CELL, row, &g->found);
        put(&p, c, WITH_ITS_CELL, row, &g->apart);
        put(&p, c, ALONE, row, &g->apart);
    }
    ice_free(memory);
    return ICECORE_OK;
}

/* Puts the rows of a parent in cells and these behind those found so far. */
static icecore_status split(ice_groups *g, int64_t first, int64_t count, uint64_t seed) {
    const some_rows some = {&g->rows, g->spare};
    const ice_rows rows = {read_some, &some, count, g->rows.dim, NULL};
    int64_t work = INT64_MAX;
    ice_cells cells;
    memcpy(g->spare, g->found.order + first, (size_t)count * sizeof *g->spare);
    icecore_status status = ice_cells_begin(&cells, g->kernels, rows, g->projection, rounded(count, g->cell_size),
                                            CELL_STEPS, ICE_CELLS_ALONE, seed);
    if (status != ICECORE_OK) return status;
    status = ice_cells_step(&cells, &work, ICE_WITHIN_TASK);
    if (status == ICECORE_OK) status = place_rows(g, &cells, g->spare);
    ice_cells_end(&cells);
    return status;
}

/* What is apart is under a parent of its own, the last one. */
static void end_parents(ice_groups *g) {
    ice_grouped *found = &g->found;
    g->has_apart = g->apart.rows > 0;
    if (g->has_apart) g->parent[g->parents++] = found->cells;
    for (int64_t c = 0; c < g->apart.cells; c++) found->cell[found->cells++] = found->rows + g->apart.cell[c];
    memcpy(found->order + found->rows, g->apart.order, (size_t)g->apart.rows * sizeof *found->order);
    found->cell[found->cells] = g->rows.count;
    g->parent[g->parents] = found->cells;
    g->next = g->parents;
}

void ice_groups_forget_rows(ice_groups *g) {
    ice_free(g->found.order);
    ice_free(g->apart.order);
    ice_free(g->spare);
    g->found.order = g->apart.order = g->spare = NULL;
}

void ice_groups_end(ice_groups *g) {
    ice_cells_end(&g->clustering);
    ice_free(g->parent);
    ice_free(g->found.cell);
    ice_free(g->apart.cell);
    ice_groups_forget_rows(g);
    *g = (ice_groups){0};
}

/* Room for so many cells and rows. */
static int begin_found(ice_grouped *found, int64_t cells, int64_t rows) {
    found->cell = ice_alloc(cells + 1, sizeof *found->cell);
    found->order = ice_alloc(rows, sizeof *found->order);
    return found->cell && found->order;
}

icecore_status ice_groups_begin(ice_groups *g, const ice_kernels *kernels, ice_rows rows, ice_projection projection,
                                int64_t cell_size, uint64_t seed) {
    const int64_t count = rows.count, wanted = wanted_parents(count, cell_size);
    /* every parent rounds its number of cells, and has at least one; of its rows at most an eighth, one in APART, is in
     * cells apart, which are no more of its cells */
    const int64_t cells = count / cell_size + 2 * wanted, alone = cells / ICE_CELLS_PER_APART;
    *g = (ice_groups){.kernels = kernels,
                      .rows = rows,
                      .projection = projection,
                      .cell_size = cell_size,
                      .seed = seed,
                      .parents = wanted};
    g->parent = ice_alloc(wanted + 2, sizeof(int64_t));
    g->spare = ice_alloc(count, sizeof(int32_t));
    int enough = begin_found(&g->found, cells + alone, count);
    enough &= begin_found(&g->apart, cells + alone, count / (int64_t)APART + alone + 1);
    icecore_status status = g->parent && g->spare && enough ? ICECORE_OK : ICECORE_ERROR_MEMORY;
    if (status == ICECORE_OK && wanted == 1) {
        g->parent[0] = 0;
        g->parent[1] = count;
        for (int64_t i = 0; i < count; i++) g->found.order[i] = (int32_t)i;
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
    memcpy(g->found.order, g->clustering.order, (size_t)g->rows.count * sizeof *g->found.order);
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
                cells = g->found.cells; /* rows now, cells when it is done */
        status = split(g, first, end - first, g->seed + (uint64_t)g->next);
        if (status != ICECORE_OK) break;
        *work -= CELL_VISITS * (end - first) * visit_cost(ICE_CELLS_PER_PARENT);
        g->parent[g->next++] = cells;
        if (ice_groups_done(g)) end_parents(g);
    }
    return status;
}

int ice_groups_done(const ice_groups *g) { return g->clustered && g->next == g->parents; }
