/* All scores are computed, a block of keys at a time, the last first: in language these have the larger scores.  A row
 * takes down the keys that reach its threshold; when its list is full it keeps the near_keys largest of them, of which
 * the smallest is the new threshold. */
#include "select/largest.h"

#include "base/parallel.h"

/* Room of a list besides the keys that it keeps: the threshold rises when this is used up. */
#define SPARE (4 * ICE_KEY_BLOCK)

static int64_t room(const ice_selector_call *call) { return ice_min(call->near_keys, call->problem->keys) + SPARE; }

void ice_largest_lay_out(const ice_selector_call *call, void *own, ice_arena *arena) {
    ice_largest *l = own;
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        l->kept[lane].score = ice_arena_take(arena, room(call), sizeof(float));
        l->kept[lane].number = ice_arena_take(arena, room(call), sizeof(int32_t));
        l->kept[lane].count = 0;
    }
    l->places = ice_arena_take(arena, ICE_KEY_BLOCK * ICE_PANEL, sizeof(int32_t));
}

/* A NaN counts as infinite. */
static void score_block(ice_tile *tile, int64_t first, int64_t count) {
    const icecore_attention *p = tile->problem;
    int64_t stride;
    const float *keys = ice_float_rows(tile, p, &p->key, p->dim, first, count, tile->keys, &stride);
    tile->kernels->scores(tile->queries, p->dim, tile->lanes, keys, stride, count, tile->scores);
    for (int64_t i = 0; i < count * ICE_PANEL; i++)
        tile->scores[i] = tile->scores[i] == tile->scores[i] ? tile->scores[i] : INFINITY;
}

/* Takes down the keys that reach the thresholds, within [begin, end) of each row; raises these where lists are full. */
static void take_down(const ice_selector_call *call, const ice_tile *tile, int64_t first, int64_t count, int64_t begin,
                      const int64_t end[ICE_PANEL], float threshold[ICE_PANEL], ice_largest *l) {
    const int64_t found = call->kernels->find_at_least(tile->scores, count, tile->lanes, threshold, l->places);
    for (int64_t i = 0; i < found; i++) {
        const int64_t key = first + l->places[i] / ICE_PANEL, lane = l->places[i] % ICE_PANEL;
        ice_kept *kept = &l->kept[lane];
        kept->score[kept->count] = tile->scores[l->places[i]];
        kept->number[kept->count] = (int32_t)key;
        kept->count += key >= begin && key < end[lane];
    }
    for (int lane = 0; lane < tile->lanes; lane++)
        if (l->kept[lane].count > room(call) - ICE_KEY_BLOCK)
            threshold[lane] = ice_kept_reduce(call->kernels, &l->kept[lane], call->near_keys);
}

void ice_find_largest(const ice_selector_call *call, ice_tile *tile, int64_t sinks, int64_t window, ice_largest *l) {
    float threshold[ICE_PANEL];
    int64_t end[ICE_PANEL], last = 0;
    ice_tile_begin_panel(tile);
    for (int lane = 0; lane < ICE_PANEL; lane++) threshold[lane] = -INFINITY;
    for (int lane = 0; lane < tile->lanes; lane++) {
        end[lane] = window < tile->visible[lane].end ? tile->visible[lane].end - window : 0;
        last = ice_max(last, end[lane]);
    }
    for (int64_t first; last > sinks && !ice_interrupted(); last = first) {
        first = (last - 1) / ICE_KEY_BLOCK * ICE_KEY_BLOCK;
        score_block(tile, first, last - first);
        take_down(call, tile, first, last - first, sinks, end, threshold, l);
    }
    for (int lane = 0; lane < tile->lanes; lane++) ice_kept_reduce(call->kernels, &l->kept[lane], call->near_keys);
}
