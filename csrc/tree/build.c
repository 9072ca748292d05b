#include "tree/build.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/parallel.h"
#include "cluster/cells.h"
#include "tree/codes.h"
#include "tree/frame.h"
#include "tree/lists.h"

enum { CELLS, SHAPE, CODES, LISTS, DONE };

/* Rows encoded by one task. */
#define CODE_BLOCK 256

struct ice_tree_builder {
    ice_tree_plan plan;
    int stage;
    int64_t next;                    /* block of rows at which CODES goes on */
    int inner;                       /* levels between the root and the rows */
    ice_cells level[ICE_MAX_LAYERS]; /* [0]: cells of rows; [t]: cells of the parents of level t - 1 */
    ice_tree *tree;
    float *centre, scale; /* the frame in which cells are found (frame.h) */
    double *work;         /* 2 dim */
    float *squared;       /* of each row, in the tree's order: its squared distance from its parent's mean */
    ice_lists_builder lists;
};

int64_t ice_tree_work(const ice_tree_plan *plan) {
    int64_t n = plan->rows.count;
    return (plan->levels > 1 ? 4 * n : 0) + n * (plan->composites ? 1 + plan->composites * plan->simples : 1);
}

void ice_tree_end(ice_tree_builder *b) {
    if (!b) return;
    for (int t = 0; t < b->inner; t++) ice_cells_end(&b->level[t]);
    ice_tree_free(b->tree);
    ice_free(b->centre);
    ice_free(b->work);
    ice_free(b->squared);
    ice_free(b);
}

/* Parents of level t, counted from the rows: count * promotion^(t + 1), rounded. */
static int64_t wanted_cells(const ice_tree_plan *plan, int t, int64_t below) {
    double count = (double)plan->rows.count;
    double promotion = plan->promotion > 0 ? plan->promotion : pow(count, -1.0 / plan->levels);
    double wanted = floor(count * pow(promotion, t + 1) + 0.5);
    if (wanted < 1) return 1;
    return wanted < (double)below ? (int64_t)wanted : below;
}

static const float *read_framed(const void *builder, int64_t row, float *buffer) {
    const ice_tree_builder *b = builder;
    const float *x = b->plan.rows.read(b->plan.rows.context, row, buffer);
    for (int64_t t = 0; t < b->plan.rows.dim; t++) buffer[t] = (x[t] - b->centre[t]) * b->scale;
    return buffer;
}

icecore_status ice_tree_begin(const ice_tree_plan *plan, ice_tree_builder **result) {
    ice_tree_builder *b = ice_alloc(1, sizeof *b);
    if (!b) return ICECORE_ERROR_MEMORY;
    memset(b, 0, sizeof *b);
    b->plan = *plan;
    b->work = ice_alloc(plan->rows.dim * 2, sizeof *b->work);
    b->centre = ice_alloc(plan->rows.dim, sizeof *b->centre);
    icecore_status status = b->work && b->centre ? ICECORE_OK : ICECORE_ERROR_MEMORY;
    if (status == ICECORE_OK) {
        ice_frame_centre(&plan->rows, b->work, b->centre);
        b->scale = ice_frame_scale(&plan->rows, b->centre, (float *)b->work);
    }
    if (plan->levels == 1) {
        b->stage = SHAPE;
    } else if (status == ICECORE_OK) {
        const ice_rows framed = {.read = read_framed, .context = b, .count = plan->rows.count, .dim = plan->rows.dim};
        status = ice_cells_begin(&b->level[0], plan->kernels, framed, (ice_projection){0},
                                 wanted_cells(plan, 0, plan->rows.count), 1, ICE_CELLS_WITH_MEANS, plan->seed);
        if (status == ICECORE_OK) b->inner = 1;
    }
    if (status == ICECORE_OK) *result = b;
    else ice_tree_end(b);
    return status;
}

/* ---- Shape: the levels above the cells, and everything in its final order ---- */

static const float *read_parent(const void *context, int64_t row, float *buffer) {
    (void)buffer;
    const ice_cells *below = context;
    return below->parents + row * below->width;
}

/* Levels 1 and up; few rows each, so in one go. */
static icecore_status group_cells(ice_tree_builder *b, int threads) {
    for (; b->inner < b->plan.levels - 1; b->inner++) {
        const ice_cells *below = &b->level[b->inner - 1];
        ice_cells *level = &b->level[b->inner];
        ice_rows rows = {.read = read_parent, .context = below, .count = below->cells, .dim = below->width};
        int64_t work = INT64_MAX;
        icecore_status status = ice_cells_begin(level, b->plan.kernels, rows, (ice_projection){0},
                                                wanted_cells(&b->plan, b->inner, below->cells), 1, ICE_CELLS_WITH_MEANS,
                                                b->plan.seed + (uint64_t)b->inner);
        if (status == ICECORE_OK) status = ice_cells_step(level, &work, threads);
        if (status != ICECORE_OK) {
            ice_cells_end(level);
            return status;
        }
    }
    return ICECORE_OK;
}

static int allocate_layer(ice_tree *s, ice_layer *layer, int with_codes, int is_last, icecore_metric metric) {
    layer->stride = (s->dim + 3) & ~(int64_t)3;
    layer->offset = ice_owned_alloc(&s->owned, layer->parents + 1, sizeof(int64_t));
    layer->mean = ice_owned_alloc(&s->owned, layer->parents * s->dim, sizeof(float));
    if (!layer->offset || !layer->mean) return 0;
    if (!with_codes) return 1;
    if (is_last) {
        layer->radius = ice_owned_alloc(&s->owned, layer->parents, sizeof(float));
        layer->spread = ice_owned_alloc(&s->owned, layer->parents, sizeof(float));
        if (!layer->radius || !layer->spread) return 0;
    }
    layer->code = ice_owned_alloc(&s->owned, layer->children * layer->stride, 1);
    layer->scale = ice_owned_alloc(&s->owned, layer->children, sizeof(float));
    layer->bias =
        metric == ICECORE_SQUARED_DISTANCE ? ice_owned_alloc(&s->owned, layer->children, sizeof(float)) : NULL;
    return layer->code && layer->scale && (layer->bias || metric != ICECORE_SQUARED_DISTANCE);
}

/* The layers' arrays; level t, from the rows, are the parents of layer inner - t. */
static ice_tree *allocate_tree(const ice_tree_builder *b) {
    ice_tree *s = ice_tree_new();
    if (!s) return NULL;
    s->count = b->plan.rows.count;
    s->dim = b->plan.rows.dim;
    s->scale = b->scale;
    s->layers = b->inner + 1;
    s->order = ice_owned_alloc(&s->owned, s->count, sizeof(int32_t));
    int whole = s->order != NULL;
    for (int i = 0; i < s->layers && whole; i++) {
        ice_layer *layer = &s->layer[i];
        layer->parents = i == 0 ? 1 : b->level[b->inner - i].cells;
        layer->children = i == b->inner ? s->count : b->level[b->inner - i - 1].cells;
        whole = allocate_layer(s, layer, i < b->inner || b->plan.composites == 0, i == b->inner, b->plan.metric);
    }
    if (whole) {
        s->cells = s->layer[b->inner].parents;
        s->offset = s->layer[b->inner].offset;
        s->mean_key = s->layer[b->inner].mean;
        s->used = ice_owned_alloc(&s->owned, s->cells, sizeof(int32_t));
        if (s->used) return s;
    }
    ice_tree_free(s);
    return NULL;
}

/* Numbers the nodes of each level so that children of one parent lie together, from the top down; `place`: where each
 * node goes. */
static void put_in_order(ice_tree_builder *b) {
    ice_tree *s = b->tree;
    s->layer[0].offset[0] = 0;
    s->layer[0].offset[1] = s->layer[0].children;
    for (int t = b->inner - 1; t >= 0; t--) {
        ice_cells *level = &b->level[t], *above = t + 1 < b->inner ? &b->level[t + 1] : NULL;
        ice_layer *layer = &s->layer[b->inner - t];
        /* the order of this level's nodes: as sampled at the top, else what the level above left in its `order` */
        int32_t *place = (int32_t *)level->bias; /* has served, and is as large */
        for (int64_t i = 0; i < level->cells; i++) {
            int64_t node = above ? above->order[i] : i;
            place[node] = (int32_t)i;
            for (int64_t d = 0; d < s->dim; d++)
                layer->mean[i * s->dim + d] = level->parents[node * level->width + d] / b->scale + b->centre[d];
        }
        for (int64_t i = 0; i < level->rows.count; i++) level->label[i] = place[level->label[i]];
        ice_group_by_label(level->label, level->rows.count, level->cells, level->order, layer->offset);
    }
    if (b->inner) memcpy(s->order, b->level[0].order, (size_t)s->count * sizeof *s->order);
    else
        for (int64_t i = 0; i < s->count; i++) s->order[i] = (int32_t)i;
}

static icecore_status shape(ice_tree_builder *b, int threads) {
    icecore_status status = group_cells(b, threads);
    if (status != ICECORE_OK) return status;
    if (!b->plan.composites && !b->squared) b->squared = ice_alloc(b->plan.rows.count, sizeof *b->squared);
    if (!b->plan.composites && !b->squared) return ICECORE_ERROR_MEMORY;
    b->tree = allocate_tree(b);
    if (!b->tree) return ICECORE_ERROR_MEMORY;
    put_in_order(b);
    memcpy(b->tree->layer[0].mean, b->centre, (size_t)b->tree->dim * sizeof *b->centre);
    for (int i = 0; i < b->inner; i++) {
        ice_layer *layer = &b->tree->layer[i];
        for (int64_t child = 0, parent = 0; child < layer->children; child++) {
            while (child >= layer->offset[parent + 1]) parent++;
            ice_encode(b->plan.kernels, b->tree, layer, parent, child,
                       b->tree->layer[i + 1].mean + child * b->tree->dim, (float *)b->work);
        }
    }
    for (int t = 0; t < b->inner; t++) ice_cells_end(&b->level[t]);
    b->inner = 0;
    return ICECORE_OK;
}

/* ---- Codes of the rows ---- */

/* A parent's children may lie in the blocks of several threads, so their distances are summed up afterwards. */
static void find_spreads(const ice_tree_builder *b) {
    const ice_layer *layer = &b->tree->layer[b->tree->layers - 1];
    const double scale = b->tree->scale;
    for (int64_t p = 0; p < layer->parents; p++) {
        double sum = 0.0, largest = 0.0;
        for (int64_t i = layer->offset[p]; i < layer->offset[p + 1]; i++) {
            sum += (double)b->squared[i];
            largest = fmax(largest, (double)b->squared[i]);
        }
        const int64_t children = layer->offset[p + 1] - layer->offset[p];
        layer->radius[p] = (float)(sqrt(largest) / scale);
        layer->spread[p] = children ? (float)(sqrt(sum / (double)children) / scale) : 0.0f;
    }
}

static void encode_rows(void *context, int64_t index, void *scratch) {
    ice_tree_builder *b = context;
    if (!scratch) return;
    ice_tree *s = b->tree;
    ice_layer *layer = &s->layer[s->layers - 1];
    int64_t first = (b->next + index) * CODE_BLOCK, end = first + CODE_BLOCK < s->count ? first + CODE_BLOCK : s->count;
    int64_t parent = ice_parent_of(layer, first);
    for (int64_t i = first; i < end; i++) {
        while (i >= layer->offset[parent + 1]) parent++;
        const float *x = b->plan.rows.read(b->plan.rows.context, s->order[i], scratch);
        b->squared[i] = ice_encode(b->plan.kernels, s, layer, parent, i, x, (float *)scratch + s->dim);
    }
}

static icecore_status code(ice_tree_builder *b, int64_t *work, int threads) {
    int64_t items = (b->tree->count + CODE_BLOCK - 1) / CODE_BLOCK, wanted = (*work - 1) / CODE_BLOCK + 1;
    if (wanted > items - b->next) wanted = items - b->next;
    icecore_status status = ice_parallel_for(wanted, threads, 2 * (size_t)b->tree->dim * sizeof(float), encode_rows, b);
    if (status != ICECORE_OK) return status;
    *work -= wanted * CODE_BLOCK;
    b->next += wanted;
    if (b->next == items) {
        find_spreads(b);
        b->stage = DONE;
    }
    return ICECORE_OK;
}

icecore_status ice_tree_step(ice_tree_builder *b, int64_t *work, int threads) {
    icecore_status status = ICECORE_OK;
    while (status == ICECORE_OK && *work > 0 && b->stage != DONE) {
        switch (b->stage) {
        case CELLS:
            status = ice_cells_step(&b->level[0], work, threads);
            if (status == ICECORE_OK && ice_cells_done(&b->level[0])) b->stage = SHAPE;
            break;
        case SHAPE:
            status = shape(b, threads);
            if (status == ICECORE_OK) b->stage = b->plan.composites ? LISTS : CODES;
            break;
        case CODES: status = code(b, work, threads); break;
        default:
            status = ice_lists_step(&b->lists, &b->plan, b->tree, work, threads);
            if (status == ICECORE_OK && ice_lists_done(&b->lists)) b->stage = DONE;
        }
    }
    return status;
}

int64_t ice_tree_bytes(const ice_tree_builder *b) {
    int64_t bytes = (b->tree ? b->tree->owned.bytes : 0) + (b->squared ? b->plan.rows.count * 4 : 0);
    for (int t = 0; t < b->inner; t++) {
        const ice_cells *c = &b->level[t];
        bytes += c->cells * (c->width * (int64_t)sizeof(float) + 12) + c->rows.count * 8;
    }
    return bytes;
}

int ice_tree_rename(ice_tree_builder *b, const int32_t *name) {
    if (!b->tree) return 0;
    for (int64_t i = 0; i < b->tree->count; i++) b->tree->order[i] = name[b->tree->order[i]];
    return 1;
}

int ice_tree_done(const ice_tree_builder *b) { return b->stage == DONE; }

ice_tree *ice_tree_take(ice_tree_builder *b) {
    ice_tree *s = b->tree;
    b->tree = NULL;
    return s;
}
