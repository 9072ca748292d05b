/* Pages of keys by the largest score that a page could hold: Quest (arXiv 2406.10774).
 *
 * A page of 16 keys has as its digest the componentwise maximum and minimum.  No key of it scores above
 * sum_t max(q_t high_t, q_t low_t), which is q+ . high + q- . low: two products of panels.  Each row attends to the
 * pages with the largest bounds until they hold near_keys, equal bounds together, and to the page that it sees a part
 * of. */
#include <string.h>

#include "select/selector.h"
#include "select/threshold.h"

#define PAGE 16

static int64_t pages_of(const ice_selector_call *call) { return call->problem->keys / PAGE; }

static size_t digest_bytes(const ice_selector_call *call) {
    return (size_t)(2 * pages_of(call) * call->problem->dim) * sizeof(float);
}

/* A NaN among a page's keys stays: the bound is then NaN, and the page is chosen by every row. */
static void widen(float *high, float *low, const float *key, int64_t dim) {
    for (int64_t t = 0; t < dim; t++) {
        if (!(key[t] <= high[t])) high[t] = high[t] == high[t] ? key[t] : high[t];
        if (!(key[t] >= low[t])) low[t] = low[t] == low[t] ? key[t] : low[t];
    }
}

static icecore_status digest(const ice_selector_call *call, int64_t head, void *digests) {
    const icecore_attention *p = call->problem;
    const int64_t pages = pages_of(call), dim = p->dim;
    float *high = digests, *low = high + pages * dim, key[ICECORE_MAX_DIM];
    for (int64_t j = 0; j < pages * PAGE; j++, high += j % PAGE ? 0 : dim, low += j % PAGE ? 0 : dim) {
        call->kernels->to_float32(p->key_dtype, ice_key_at(p, head, j), key, dim);
        if (j % PAGE == 0) {
            memcpy(high, key, (size_t)dim * sizeof *key);
            memcpy(low, key, (size_t)dim * sizeof *key);
        } else {
            widen(high, low, key, dim);
        }
    }
    return ICECORE_OK;
}

typedef struct {
    float *positive, *negative; /* the queries' parts, dim x ICE_PANEL */
    float *bound, *other;       /* pages x ICE_PANEL */
    float *count, *log2_count;  /* pages: keys */
    uint64_t *open;
} space;

static size_t lay_out(const ice_selector_call *call, void *scratch, space *s) {
    const int64_t pages = pages_of(call), dim = call->problem->dim;
    ice_arena a = {scratch, 0};
    s->positive = ice_arena_take(&a, dim * ICE_PANEL, sizeof(float));
    s->negative = ice_arena_take(&a, dim * ICE_PANEL, sizeof(float));
    s->bound = ice_arena_take(&a, pages * ICE_PANEL, sizeof(float));
    s->other = ice_arena_take(&a, pages * ICE_PANEL, sizeof(float));
    s->count = ice_arena_take(&a, pages, sizeof(float));
    s->log2_count = ice_arena_take(&a, pages, sizeof(float));
    s->open = ice_arena_take(&a, pages, sizeof(uint64_t));
    return a.used;
}

static size_t scratch_bytes(const ice_selector_call *call) {
    space none;
    return lay_out(call, NULL, &none);
}

/* The lanes that see all of a page. */
static uint64_t lanes_seeing(const ice_tile *tile, int64_t page) {
    uint64_t lanes = 0;
    for (int lane = 0; lane < tile->lanes; lane++)
        lanes |= (uint64_t)(tile->visible[lane].end >= (page + 1) * PAGE) << lane;
    return lanes;
}

static void find_bounds(const ice_selector_call *call, const ice_tile *tile, const float *digests, space *s) {
    const int64_t pages = pages_of(call), dim = call->problem->dim;
    for (int64_t i = 0; i < dim * ICE_PANEL; i++) {
        s->positive[i] = tile->queries[i] >= 0.0f ? tile->queries[i] : 0.0f;
        s->negative[i] = tile->queries[i] - s->positive[i];
    }
    call->kernels->scores(s->positive, dim, tile->lanes, digests, dim, pages, s->bound);
    call->kernels->scores(s->negative, dim, tile->lanes, digests + pages * dim, dim, pages, s->other);
    for (int64_t i = 0; i < pages * ICE_PANEL; i++) s->bound[i] += s->other[i];
    for (int64_t page = 0; page < pages; page++) {
        const uint64_t seeing = lanes_seeing(tile, page);
        for (int lane = 0; lane < ICE_PANEL; lane++)
            if (!((seeing >> lane) & 1)) s->bound[page * ICE_PANEL + lane] = -INFINITY;
        s->count[page] = PAGE;
        s->log2_count[page] = 0.0f;
    }
}

static void attend_run(ice_tile *tile, int64_t first, int64_t end, uint64_t lanes, int64_t *near_count) {
    ice_run run = ice_run_of_keys(tile, tile->problem, first, end, lanes);
    run.unchecked = 1; /* rows that do not see it share panels with those that do */
    ice_tile_attend(tile, &run);
    for (; lanes; lanes &= lanes - 1) near_count[__builtin_ctzll(lanes)] += end - first;
}

static void select_pages(const ice_selector_call *call, ice_tile *tile, const void *digests, void *scratch,
                         int64_t near_count[ICE_PANEL]) {
    const int64_t pages = pages_of(call);
    float threshold[ICE_PANEL];
    space s;
    lay_out(call, scratch, &s);
    ice_tile_begin_panel(tile);
    find_bounds(call, tile, digests, &s);
    ice_risk_threshold(call->kernels, s.bound, pages, tile->lanes, s.count, call->near_keys, threshold);
    call->kernels->open_cells(s.other, s.bound, pages, tile->lanes, threshold, s.log2_count, s.open);
    for (int64_t page = 0; page < pages; page++) s.open[page] &= lanes_seeing(tile, page);
    for (int64_t page = 0, end; page < pages; page = end) {
        for (end = page + 1; end < pages && s.open[end] == s.open[page];) end++;
        if (s.open[page]) attend_run(tile, page * PAGE, end * PAGE, s.open[page], near_count);
    }
    for (int lane = 0; lane < tile->lanes; lane++) {
        const int64_t end = tile->visible[lane].end, begin = end - end % PAGE;
        if (begin < end) attend_run(tile, begin, end, (uint64_t)1 << lane, near_count);
    }
}

const ice_selector ice_pages = {digest_bytes, scratch_bytes, digest, NULL, select_pages};
