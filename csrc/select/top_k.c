/* Exact top-k attention: of all keys those with the largest scores, the ceiling of every method that keeps some keys
 * and drops the rest.
 *
 * All scores are computed, a block of keys at a time, the last first: in language these have the larger scores.  A row
 * takes down the keys that reach its threshold; when its list is full it keeps the near_keys largest of them, of which
 * the smallest is the new threshold. */
#include "base/parallel.h"
#include "select/kept.h"
#include "select/selector.h"

/* Room of a list besides the keys that it keeps: the threshold rises when this is used up. */
#define SPARE (4 * ICE_KEY_BLOCK)

typedef struct {
    ice_kept kept[ICE_PANEL];
    float *keys;     /* a block of other types, as float32 */
    float *scores;   /* ICE_KEY_BLOCK x ICE_PANEL */
    int32_t *places; /* of the scores that reach the thresholds */
} space;

static int64_t room(const ice_selector_call *call) {
    return (call->near_keys < call->problem->keys ? call->near_keys : call->problem->keys) + SPARE;
}

static size_t lay_out(const ice_selector_call *call, void *scratch, space *s) {
    ice_arena a = {scratch, 0};
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        s->kept[lane].score = ice_arena_take(&a, room(call), sizeof(float));
        s->kept[lane].number = ice_arena_take(&a, room(call), sizeof(int32_t));
        s->kept[lane].count = 0;
    }
    s->keys = ice_arena_take(&a, ICE_KEY_BLOCK * call->problem->dim, sizeof(float));
    s->scores = ice_arena_take(&a, ICE_KEY_BLOCK * ICE_PANEL, sizeof(float));
    s->places = ice_arena_take(&a, ICE_KEY_BLOCK * ICE_PANEL, sizeof(int32_t));
    return a.used;
}

static size_t scratch_bytes(const ice_selector_call *call) {
    space none;
    return lay_out(call, NULL, &none);
}

/* A NaN counts as infinite. */
static void score_block(const ice_selector_call *call, const ice_tile *tile, int64_t first, int64_t count, space *s) {
    const icecore_attention *p = call->problem;
    const float *keys = ice_address(&p->key, p->key_dtype, tile->batch, tile->key_head, first);
    int64_t stride = p->key.row_stride;
    if (p->key_dtype != ICECORE_FLOAT32) {
        for (int64_t j = 0; j < count; j++)
            call->kernels->to_float32(p->key_dtype,
                                      ice_address(&p->key, p->key_dtype, tile->batch, tile->key_head, first + j),
                                      s->keys + j * p->dim, p->dim);
        keys = s->keys;
        stride = p->dim;
    }
    call->kernels->scores(tile->queries, p->dim, tile->lanes, keys, stride, count, s->scores);
    for (int64_t i = 0; i < count * ICE_PANEL; i++)
        s->scores[i] = s->scores[i] == s->scores[i] ? s->scores[i] : INFINITY;
}

/* Takes down the keys that reach the thresholds; raises these where lists are full. */
static void take_down(const ice_selector_call *call, const ice_tile *tile, int64_t first, int64_t count,
                      float threshold[ICE_PANEL], space *s) {
    const int64_t found = call->kernels->find_at_least(s->scores, count, tile->lanes, threshold, s->places);
    for (int64_t i = 0; i < found; i++) {
        const int64_t key = first + s->places[i] / ICE_PANEL, lane = s->places[i] % ICE_PANEL;
        ice_kept *kept = &s->kept[lane];
        kept->score[kept->count] = s->scores[s->places[i]];
        kept->number[kept->count] = (int32_t)key;
        kept->count += key < tile->visible[lane].end;
    }
    for (int lane = 0; lane < tile->lanes; lane++)
        if (s->kept[lane].count > room(call) - ICE_KEY_BLOCK)
            threshold[lane] = ice_kept_reduce(call->kernels, &s->kept[lane], call->near_keys);
}

static void select_largest(const ice_selector_call *call, ice_tile *tile, const void *digests, void *scratch,
                           int64_t near_count[ICE_PANEL]) {
    const int64_t end = ice_tile_visible(tile).end;
    float threshold[ICE_PANEL];
    space s;
    (void)digests;
    lay_out(call, scratch, &s);
    ice_tile_begin_panel(tile);
    for (int lane = 0; lane < ICE_PANEL; lane++) threshold[lane] = -INFINITY;
    for (int64_t last = end, first; last > 0 && !ice_interrupted(); last = first) {
        first = (last - 1) / ICE_KEY_BLOCK * ICE_KEY_BLOCK;
        score_block(call, tile, first, last - first, &s);
        take_down(call, tile, first, last - first, threshold, &s);
    }
    for (int lane = 0; lane < tile->lanes; lane++) {
        ice_kept_reduce(call->kernels, &s.kept[lane], call->near_keys);
        near_count[lane] = s.kept[lane].count;
        ice_kept_attend(tile, lane, &s.kept[lane], NULL);
    }
}

const ice_selector ice_top_k = {NULL, scratch_bytes, NULL, NULL, select_largest};
