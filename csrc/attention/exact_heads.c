#include "attention/exact_heads.h"

#include "attend/packed_heads.h"

/* Keys first .. end - 1 that a row's range and mask leave. */
static int64_t count_seen(const icecore_attention *p, ice_row row, int64_t first, int64_t end) {
    const ice_visible visible = ice_visible_keys(p, row.batch, row.query);
    const ice_mask_row mask = {.offset = ice_mask_offset(p, row), .first = visible.begin, .end = visible.end};
    int64_t seen = 0;
    if (!p->ranges && p->mask_kind == ICECORE_MASK_NONE) return end - first;
    for (int64_t key = first; key < end; key++) seen += ice_mask_at(p, &mask, key) != -INFINITY;
    return seen;
}

static void report_exact(const ice_exact_call *call, const ice_step *s, ice_row row, int visible) {
    const icecore_attention *p = call->given;
    const icecore_report *report = call->report;
    const int64_t at = ice_place_of(p, row);
    if (report->near_count)
        report->near_count[at] = (int32_t)(s->exact.open_begin > s->exact.sink_end
                                               ? count_seen(p, row, s->exact.sink_end, s->exact.open_begin)
                                               : 0);
    if (report->captured_mass) report->captured_mass[at] = visible ? 1.0f : 0.0f;
    if (report->missed_bound) report->missed_bound[at] = 0.0f;
    if (report->summaries) report->summaries[at] = 0;
}

/* The panel of queries of a query head that begins with `first`; rounded: on the keys that near/far attention
 * multiplies, else on the caller's. */
static void attend_exactly(const ice_exact_call *call, const ice_step *s, int64_t batch, int64_t head, int64_t first,
                           int rounded, void *scratch) {
    const icecore_attention *p = rounded ? call->problem : call->given, own = ice_heads_of(p, batch, head, 1);
    const float *centre =
        rounded && call->centre ? call->centre + (batch * p->key_heads + head / ice_group(p)) * p->dim : NULL;
    ice_tile tile;
    ice_tile_begin(&tile, &own, call->kernels, 0, 0, first, s->end_query - first, scratch);
    if (p == call->problem)
        tile.packed = ice_packed_head_of(p, call->packed, batch * p->key_heads + head / ice_group(p));
    const ice_visible visible = ice_tile_visible(&tile);
    ice_tile_attend_keys(&tile, &own, visible.begin, visible.end);
    ice_tile_finish(&tile);
    for (int lane = 0; lane < tile.lanes; lane++) {
        report_exact(call, s, (ice_row){batch, head, first + lane}, tile.state[lane].sum != 0.0f);
        ice_state_write(&tile.state[lane], &own, call->kernels, (ice_row){0, 0, first + lane});
        if (own.lse && centre) ice_add_centre(&tile, lane, centre, &own.lse[first + lane]);
    }
}

void ice_attend_exact_heads(const ice_exact_call *call, const ice_step *s, const ice_rule *rules, int64_t head,
                            int64_t tile, void *scratch) {
    const icecore_attention *p = call->problem;
    const int64_t group = ice_group(p), queries = s->end_query - s->first_query,
                  panels = (queries + ICE_PANEL - 1) / ICE_PANEL;
    for (int64_t i = tile; i < panels * group; i += s->tiles) {
        const int64_t member = i % group, first = s->first_query + i / group * ICE_PANEL;
        if (rules && !rules[member].exact) continue;
        attend_exactly(call, s, head / p->key_heads, head % p->key_heads * group + member, first,
                       rules && !s->is_first && rules[member].exact != ICE_EXACT && p->key.data, scratch);
    }
}
