#include "attention/exact_heads.h"

/* Keys first .. end - 1 that a row's range and mask leave. */
static int64_t count_seen(const icecore_attention *p, ice_row row, int64_t first, int64_t end) {
    const ice_visible visible = ice_visible_keys(p, row.batch, row.query);
    const ice_mask_row mask = {.offset = ice_mask_offset(p, row), .first = visible.begin, .end = visible.end};
    int64_t seen = 0;
    if (!p->ranges && p->mask_kind == ICECORE_MASK_NONE) return end - first;
    for (int64_t key = first; key < end; key++) seen += ice_mask_at(p, &mask, key) != -INFINITY;
    return seen;
}

static void report_exact(const ice_head_view *view, ice_row row, int visible) {
    const icecore_attention *p = view->problem;
    const icecore_report *report = view->report;
    const int64_t at = ice_place_of(p, row), first = view->exact.sink_end, end = view->exact.open_begin;
    if (report->near_count) report->near_count[at] = (int32_t)(end > first ? count_seen(p, row, first, end) : 0);
    if (report->captured_mass) report->captured_mass[at] = visible ? 1.0f : 0.0f;
    if (report->missed_bound) report->missed_bound[at] = 0.0f;
    if (report->summaries) report->summaries[at] = 0;
}

/* The panel of queries of a query head that begins with `first`.  p: the view's problem, whose keys may be rounded, or
 * the caller's. */
static void attend_exactly(const ice_head_view *view, const icecore_attention *p, int64_t head, int64_t first,
                           int64_t end, void *scratch) {
    const int64_t batch = view->head / p->key_heads;
    const icecore_attention own = ice_heads_of(p, batch, head, 1);
    const float *centre = p == view->problem ? view->exact.centre : NULL;
    ice_tile tile;
    ice_tile_begin(&tile, &own, view->kernels, 0, 0, first, end - first, scratch);
    if (p == view->problem) tile.packed = view->exact.packed;
    const ice_visible visible = ice_tile_visible(&tile);
    ice_tile_attend_keys(&tile, &own, visible.begin, visible.end);
    ice_tile_finish(&tile);
    for (int lane = 0; lane < tile.lanes; lane++) {
        report_exact(view, (ice_row){batch, head, first + lane}, tile.state[lane].sum != 0.0f);
        ice_state_write(&tile.state[lane], &own, view->kernels, (ice_row){0, 0, first + lane});
        if (own.lse && centre) ice_add_centre(&tile, lane, centre, &own.lse[first + lane]);
    }
}

void ice_attend_exact_heads(const ice_head_view *view, const icecore_attention *given, const ice_step *s, int64_t tile,
                            void *scratch) {
    const icecore_attention *p = view->problem;
    const int64_t group = ice_group(p), queries = s->end_query - s->first_query,
                  panels = (queries + ICE_PANEL - 1) / ICE_PANEL;
    for (int64_t i = tile; i < panels * group; i += s->tiles) {
        const int64_t member = i % group, first = s->first_query + i / group * ICE_PANEL;
        const ice_rule *rule = view->rules ? &view->rules[member] : NULL;
        if (rule && !rule->exact) continue;
        const int rounded =
            given->key_dtype == p->key_dtype || (rule && rule->exact != ICE_EXACT && !s->is_first && p->key.data);
        attend_exactly(view, rounded ? p : given, view->head % p->key_heads * group + member, first, s->end_query,
                       scratch);
    }
}
