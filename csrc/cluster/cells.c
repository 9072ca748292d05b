/* Rows are the panel's lanes and parents its "keys": |x - p|^2 is smallest where x.p - |p|^2 / 2 is largest, so
 * assignment is the score kernel and a running maximum; by angle without the bias. */
#include "cluster/cells.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"
#include "base/random.h"

/* Twice: assign all rows, sort them by cell, move the parents to the means (the second time only if that is wanted). */
enum { ASSIGN, MEANS, ASSIGN_AGAIN, MEANS_AGAIN, DONE };

static const float *read_row(const ice_cells *c, int64_t row, float *buffer) {
    return c->rows.read(c->rows.context, row, buffer);
}

static double squared_length(const float *parent, int64_t width) {
    double squared = 0.0;
    for (int64_t t = 0; t < width; t++) squared += (double)parent[t] * (double)parent[t];
    return squared;
}

static float bias_of(const float *parent, int64_t width) { return (float)(-0.5 * squared_length(parent, width)); }

/* At length 1; 0 stays. */
static void place_direction(const ice_cells *c, const float *x, int64_t cell) {
    const double length = sqrt(squared_length(x, c->width));
    for (int64_t t = 0; t < c->width; t++)
        c->parents[cell * c->width + t] = length > 0.0 ? (float)((double)x[t] / length) : 0.0f;
    c->bias[cell] = 0.0f;
}

/* Makes `x` the parent of a cell.  Few parents take the projection on themselves, Px.Py = x.P'Py; for many it pays to
 * project each row. */
static void place(const ice_cells *c, const float *x, int64_t cell) {
    float *parent = c->parents + cell * c->width, image[ICE_MAX_PROJECTED];
    const ice_projection *p = &c->projection;
    if (c->kind == ICE_CELLS_BY_ANGLE) {
        place_direction(c, x, cell);
        return;
    }
    if (!p->rows) {
        memcpy(parent, x, (size_t)c->width * sizeof *parent);
        c->bias[cell] = bias_of(parent, c->width);
        return;
    }
    c->kernels->row_scores(x, c->rows.dim, ICECORE_FLOAT32, p->rows, c->rows.dim, p->count, image);
    c->bias[cell] = bias_of(image, p->count);
    if (!c->pulled_back) {
        memcpy(parent, image, (size_t)p->count * sizeof *parent);
        return;
    }
    memset(parent, 0, (size_t)c->width * sizeof *parent);
    c->kernels->row_weighted_sum(image, p->count, ICECORE_FLOAT32, p->rows, c->rows.dim, c->rows.dim, 1.0f, parent);
}

/* Numbers that a row may take, also before its projection. */
static int64_t widest(const ice_cells *c) { return c->width > c->rows.dim ? c->width : c->rows.dim; }

void ice_cells_end(ice_cells *c) {
    ice_free(c->parents);
    ice_free(c->label);
    ice_free(c->order);
    ice_free(c->offset);
    ice_free(c->bias);
    memset(c, 0, sizeof *c);
}

icecore_status ice_cells_begin(ice_cells *c, const ice_kernels *kernels, ice_rows rows, ice_projection projection,
                               int64_t cells, int steps, ice_cells_kind kind, uint64_t seed) {
    const int64_t dim = rows.dim, count = projection.rows ? projection.count : 0;
    const int pulled_back = count && cells * dim <= count * (dim + cells); /* multiplications of a row */
    *c = (ice_cells){.kernels = kernels,
                     .rows = rows,
                     .projection = projection,
                     .cells = cells,
                     .steps = steps,
                     .kind = kind,
                     .pulled_back = pulled_back,
                     .width = count && !pulled_back ? count : dim};
    c->parents = ice_alloc(cells * c->width, sizeof(float));
    c->label = ice_alloc(rows.count, sizeof(int32_t));
    c->order = ice_alloc(rows.count, sizeof(int32_t));
    c->offset = ice_alloc(cells + 1, sizeof(int64_t));
    c->bias = ice_alloc(cells, sizeof(float));
    float *buffer = ice_alloc(widest(c), sizeof(float));
    if (!c->parents || !c->label || !c->order || !c->offset || !c->bias || !buffer) {
        ice_free(buffer);
        ice_cells_end(c);
        return ICECORE_ERROR_MEMORY;
    }
    /* a partial Fisher-Yates shuffle */
    int32_t *pick = c->order;
    for (int64_t i = 0; i < rows.count; i++) pick[i] = (int32_t)i;
    for (int64_t i = 0; i < cells; i++) {
        int64_t j = i + (int64_t)ice_random_below(&seed, (uint64_t)(rows.count - i));
        int32_t picked = pick[j];
        pick[j] = pick[i];
        pick[i] = picked;
        place(c, read_row(c, picked, buffer), i);
    }
    ice_free(buffer);
    return ICECORE_OK;
}

static size_t panel_bytes(const ice_cells *c) {
    return ((size_t)(widest(c) * ICE_PANEL) * 3 + ICE_KEY_BLOCK * ICE_PANEL) * sizeof(float);
}

/* label[row] = the nearest parent, for a panel of rows; the smaller index among equals, 0 for a row with a NaN. */
static void assign_panel(void *context, int64_t index, void *scratch) {
    ice_cells *c = context;
    if (!scratch) return;
    const int64_t wide = widest(c);
    float *panel = scratch, *scores = panel + wide * ICE_PANEL, *buffers = scores + ICE_KEY_BLOCK * ICE_PANEL,
          *read = buffers + wide * ICE_PANEL;
    const float *x[ICE_PANEL];
    float best[ICE_PANEL], best_index[ICE_PANEL];
    int64_t first = (c->next + index) * ICE_PANEL;
    int lanes = c->rows.count - first < ICE_PANEL ? (int)(c->rows.count - first) : ICE_PANEL;
    for (int lane = 0; lane < lanes; lane++) x[lane] = read_row(c, first + lane, buffers + lane * wide);
    for (int lane = lanes; lane < ICE_PANEL; lane++) x[lane] = x[lanes - 1];
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        best[lane] = -INFINITY;
        best_index[lane] = 0.0f;
    }
    const int projects = c->projection.rows && !c->pulled_back;
    c->kernels->to_panel(x, projects ? c->rows.dim : c->width, projects ? read : panel);
    if (projects) c->kernels->scores(read, c->rows.dim, lanes, c->projection.rows, c->rows.dim, c->width, panel);
    for (int64_t i = 0; i < c->cells; i += ICE_KEY_BLOCK) {
        int64_t block = c->cells - i < ICE_KEY_BLOCK ? c->cells - i : ICE_KEY_BLOCK;
        c->kernels->scores(panel, c->width, lanes, c->parents + i * c->width, c->width, block, scores);
        c->kernels->nearest(scores, block, lanes, c->bias + i, i, best, best_index);
    }
    for (int lane = 0; lane < lanes; lane++) c->label[first + lane] = (int32_t)best_index[lane];
}

static void mean_of_cell(void *context, int64_t index, void *scratch) {
    ice_cells *c = context;
    if (!scratch) return;
    int64_t cell = c->next + index, first = c->offset[cell], end = c->offset[cell + 1];
    const int64_t wide = c->projection.rows ? c->rows.dim : c->width;
    float *mean = scratch, *buffer = mean + wide, inverse = 1.0f / (float)(end - first);
    memset(mean, 0, (size_t)wide * sizeof(float));
    for (int64_t i = first; i < end; i++) {
        const float *x = read_row(c, c->order[i], buffer);
        for (int64_t t = 0; t < wide; t++) mean[t] += x[t];
    }
    for (int64_t t = 0; t < wide; t++) mean[t] *= inverse;
    place(c, mean, cell);
}

void ice_group_by_label(const int32_t *label, int64_t count, int64_t groups, int32_t *order, int64_t *offset) {
    memset(offset, 0, (size_t)(groups + 1) * sizeof *offset);
    for (int64_t i = 0; i < count; i++) offset[label[i] + 1]++;
    for (int64_t g = 0; g < groups; g++) offset[g + 1] += offset[g];
    for (int64_t i = 0; i < count; i++)
        order[offset[label[i]]++] = (int32_t)i; /* offset[g] ends at the beginning of g + 1 */
    memmove(offset + 1, offset, (size_t)groups * sizeof *offset);
    offset[0] = 0;
}

/* Sorts the rows by cell; empty cells vanish and labels are renumbered. */
static void sort_by_cell(ice_cells *c) {
    ice_group_by_label(c->label, c->rows.count, c->cells, c->order, c->offset);
    int64_t kept = 0;
    for (int64_t i = 0; i < c->cells; i++) {
        if (c->offset[i + 1] == c->offset[i]) continue;
        if (kept != i)
            for (int64_t j = c->offset[i]; j < c->offset[i + 1]; j++) c->label[c->order[j]] = (int32_t)kept;
        c->offset[++kept] = c->offset[i + 1];
    }
    c->cells = kept;
    c->next = 0;
}

int ice_cells_done(const ice_cells *c) { return c->stage == DONE; }

icecore_status ice_cells_step(ice_cells *c, int64_t *work, int threads) {
    while (*work > 0 && c->stage != DONE) {
        int assigning = c->stage == ASSIGN || c->stage == ASSIGN_AGAIN;
        int64_t items = assigning ? (c->rows.count + ICE_PANEL - 1) / ICE_PANEL : c->cells;
        int64_t cost =
            assigning ? ICE_PANEL : (c->rows.count + c->cells - 1) / c->cells; /* row visits of an item, about */
        int64_t wanted = (*work - 1) / cost + 1, left = items - c->next;
        if (wanted > left) wanted = left;
        icecore_status status =
            ice_parallel_for(wanted, threads, assigning ? panel_bytes(c) : (size_t)(2 * widest(c)) * sizeof(float),
                             assigning ? assign_panel : mean_of_cell, c);
        if (status != ICECORE_OK) return status;
        *work -= wanted * cost;
        c->next += wanted;
        if (c->next < items) continue;
        c->stage++;
        if (assigning) sort_by_cell(c);
        if (c->stage == MEANS_AGAIN && c->steps > 1) {
            c->steps--;
            c->stage = MEANS;
        }
        if (c->stage == MEANS_AGAIN && c->kind != ICE_CELLS_WITH_MEANS) c->stage = DONE;
        if (c->stage == ASSIGN_AGAIN) c->next = 0;
    }
    return ICECORE_OK;
}
