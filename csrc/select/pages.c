/* Pages of keys by the largest score in a box about them: Quest (arXiv 2406.10774) and ArkVale (NeurIPS 2024).
 *
 * A page's digest is a box, [low, high] in each component, whose largest score is sum_t max(q_t high_t, q_t low_t), or
 * q+ . high + q- . low: two products of panels.  Quest's box holds all keys, and its score is a bound.  ArkVale's has
 * the same centre, and reaches from there as far as keys do on average.  Each row attends to the pages with the largest
 * bounds until they hold near_keys, equal bounds together, and to the page that it sees a part of; some pages may be
 * chosen always, as if their bounds were infinite. */
#include <string.h>

#include "select/selector.h"
#include "select/threshold.h"

typedef struct {
    int64_t page;           /* keys */
    int mean_reach;         /* whether boxes reach from their centre as far as keys do on average, or hold all keys */
    int64_t oldest, newest; /* whole pages that a row always chooses; near_keys counts them */
} pages_settings;

static const pages_settings *settings_of(const ice_selector_call *call) { return call->settings; }

static int64_t pages_of(const ice_selector_call *call) { return call->problem->keys / settings_of(call)->page; }

/* The boxes of pages. */
typedef struct {
    float *high, *low; /* pages x dim each */
} boxes;

static void lay_out_boxes(const ice_selector_call *call, void *own, ice_arena *a) {
    boxes *b = own;
    b->high = ice_arena_take(a, pages_of(call) * call->problem->dim, sizeof(float));
    b->low = ice_arena_take(a, pages_of(call) * call->problem->dim, sizeof(float));
}

/* A NaN among a page's keys stays: the bound is then NaN, and the page is chosen by every row. */
static void widen(float *high, float *low, const float *key, int64_t dim) {
    for (int64_t t = 0; t < dim; t++) {
        if (!(key[t] <= high[t])) high[t] = high[t] == high[t] ? key[t] : high[t];
        if (!(key[t] >= low[t])) low[t] = low[t] == low[t] ? key[t] : low[t];
    }
}

static void find_box(const ice_selector_call *call, int64_t head, int64_t first, float *high, float *low) {
    const int64_t dim = call->problem->dim;
    float key[ICECORE_MAX_DIM];
    ice_read_key(call, head, first, high);
    memcpy(low, high, (size_t)dim * sizeof *low);
    for (int64_t j = 1; j < settings_of(call)->page; j++) {
        ice_read_key(call, head, first + j, key);
        widen(high, low, key, dim);
    }
}

/* The centre stays; the box reaches as far as keys do on average. */
static void shrink_to_mean(const ice_selector_call *call, int64_t head, int64_t first, float *high, float *low) {
    const int64_t dim = call->problem->dim, page = settings_of(call)->page;
    float key[ICECORE_MAX_DIM], centre[ICECORE_MAX_DIM], reach[ICECORE_MAX_DIM] = {0};
    for (int64_t t = 0; t < dim; t++) centre[t] = 0.5f * high[t] + 0.5f * low[t];
    for (int64_t j = 0; j < page; j++) {
        ice_read_key(call, head, first + j, key);
        for (int64_t t = 0; t < dim; t++) reach[t] += fabsf(key[t] - centre[t]) / (float)page;
    }
    for (int64_t t = 0; t < dim; t++) {
        high[t] = centre[t] + reach[t];
        low[t] = centre[t] - reach[t];
    }
}

static icecore_status digest(const ice_selector_call *call, int64_t head, void *digests) {
    const int64_t pages = pages_of(call), dim = call->problem->dim, page = settings_of(call)->page;
    const boxes *b = digests;
    float *high = b->high, *low = b->low;
    for (int64_t i = 0; i < pages; i++, high += dim, low += dim) {
        find_box(call, head, i * page, high, low);
        if (settings_of(call)->mean_reach) shrink_to_mean(call, head, i * page, high, low);
    }
    return ICECORE_OK;
}

typedef struct {
    float *positive, *negative; /* the queries' parts, dim x ICE_PANEL */
    float *bound, *other;       /* pages x ICE_PANEL */
    float *count, *log2_count;  /* pages: keys */
    uint64_t *open;
} space;

static void lay_out(const ice_selector_call *call, void *own, ice_arena *a) {
    const int64_t pages = pages_of(call), dim = call->problem->dim;
    space *s = own;
    s->positive = ice_arena_take(a, dim * ICE_PANEL, sizeof(float));
    s->negative = ice_arena_take(a, dim * ICE_PANEL, sizeof(float));
    s->bound = ice_arena_take(a, pages * ICE_PANEL, sizeof(float));
    s->other = ice_arena_take(a, pages * ICE_PANEL, sizeof(float));
    s->count = ice_arena_take(a, pages, sizeof(float));
    s->log2_count = ice_arena_take(a, pages, sizeof(float));
    s->open = ice_arena_take(a, pages, sizeof(uint64_t));
}

/* The lanes that see all of a page. */
static uint64_t lanes_seeing(const ice_selector_call *call, const ice_tile *tile, int64_t page) {
    uint64_t lanes = 0;
    for (int lane = 0; lane < tile->lanes; lane++)
        lanes |= (uint64_t)(tile->visible[lane].end >= (page + 1) * settings_of(call)->page) << lane;
    return lanes;
}

/* A lane's pages that are always chosen come first; those that it does not see whole are hidden. */
static void set_certain(const ice_selector_call *call, const ice_tile *tile, int lane, float *bound) {
    const pages_settings *settings = settings_of(call);
    const int64_t whole = tile->visible[lane].end / settings->page, oldest = ice_min(settings->oldest, whole);
    for (int64_t i = 0; i < oldest; i++) bound[i * ICE_PANEL + lane] = INFINITY;
    for (int64_t i = ice_min(settings->newest, whole); i > 0; i--) bound[(whole - i) * ICE_PANEL + lane] = INFINITY;
    for (int64_t i = whole; i < pages_of(call); i++) bound[i * ICE_PANEL + lane] = -INFINITY;
}

static void find_bounds(const ice_selector_call *call, const ice_tile *tile, const boxes *b, space *s) {
    const int64_t pages = pages_of(call), dim = call->problem->dim;
    for (int64_t i = 0; i < dim * ICE_PANEL; i++) {
        s->positive[i] = tile->queries[i] >= 0.0f ? tile->queries[i] : 0.0f;
        s->negative[i] = tile->queries[i] - s->positive[i];
    }
    call->kernels->scores(s->positive, dim, tile->lanes, b->high, dim, pages, s->bound);
    call->kernels->scores(s->negative, dim, tile->lanes, b->low, dim, pages, s->other);
    for (int64_t i = 0; i < pages * ICE_PANEL; i++) s->bound[i] += s->other[i];
    for (int lane = 0; lane < ICE_PANEL; lane++) set_certain(call, tile, lane, s->bound);
    for (int64_t page = 0; page < pages; page++) {
        s->count[page] = (float)settings_of(call)->page;
        s->log2_count[page] = 0.0f;
    }
}

static void attend_run(ice_tile *tile, int64_t first, int64_t end, uint64_t lanes, int64_t *near_count) {
    ice_run run = ice_run_of_keys(tile, tile->problem, first, end, lanes);
    run.unchecked = 1; /* rows that do not see it share panels with those that do */
    ice_tile_attend(tile, &run);
    for (; lanes; lanes &= lanes - 1) near_count[__builtin_ctzll(lanes)] += end - first;
}

static void select_pages(const ice_selector_call *call, ice_tile *tile, const void *digests, void *own,
                         int64_t near_count[ICE_PANEL]) {
    const int64_t pages = pages_of(call), size = settings_of(call)->page;
    float threshold[ICE_PANEL];
    space *s = own;
    ice_tile_begin_panel(tile);
    find_bounds(call, tile, digests, s);
    ice_risk_threshold(call->kernels, s->bound, pages, tile->lanes, s->count, call->near_keys, threshold);
    call->kernels->open_cells(s->other, s->bound, pages, tile->lanes, threshold, s->log2_count, s->open);
    for (int64_t page = 0; page < pages; page++) s->open[page] &= lanes_seeing(call, tile, page);
    for (int64_t page = 0, end; page < pages; page = end) {
        for (end = page + 1; end < pages && s->open[end] == s->open[page];) end++;
        if (s->open[page]) attend_run(tile, page * size, end * size, s->open[page], near_count);
    }
    for (int lane = 0; lane < tile->lanes; lane++) {
        const int64_t end = tile->visible[lane].end, begin = end - end % size;
        if (begin < end) attend_run(tile, begin, end, (uint64_t)1 << lane, near_count);
    }
}

static const ice_selector pages = {.digests = {sizeof(boxes), lay_out_boxes},
                                   .space = {sizeof(space), lay_out},
                                   .digest = digest,
                                   .select = select_pages};

static icecore_status attend(const icecore_attention *problem, int64_t near_keys, const pages_settings *settings,
                             int32_t *near_count) {
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys, .settings = settings};
    return ice_attend_selected(&call, &pages, near_count);
}

icecore_status icecore_attend_pages(const icecore_attention *problem, int64_t near_keys, int32_t *near_count) {
    return attend(problem, near_keys, &(pages_settings){.page = 16}, near_count);
}

icecore_status icecore_attend_arkvale(const icecore_attention *problem, int64_t near_keys, int64_t page,
                                      int32_t *near_count) {
    const pages_settings settings = {.page = page, .mean_reach = 1, .oldest = 2, .newest = 1};
    return page < 1 ? ICECORE_ERROR_VALUE : attend(problem, near_keys, &settings, near_count);
}
