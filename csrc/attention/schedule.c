#include "attention/schedule.h"

#include <math.h>

/* Not causal: at once, of each head.  (With 32 instead of 48, 2 % of made-up heads were above 1.3 x the tolerance
 * instead of half a per cent; and pictures need fewer near keys, since the standard error is smaller.) */
#define QUERIES_AT_ONCE ICE_PANEL

static float min_tolerance(const icecore_near_far *options, int64_t query_heads) {
    float minimum = ice_tolerance_of(options, 0);
    for (int64_t h = 1; h < query_heads; h++) minimum = fminf(minimum, ice_tolerance_of(options, h));
    return minimum;
}

static int64_t panels_measured(const icecore_attention *p, const icecore_near_far *options) {
    const float tolerance = min_tolerance(options, p->query_heads);
    if (!p->causal) return ice_panels_measured(tolerance, QUERIES_AT_ONCE);
    return ice_panels_measured(tolerance, (float)ice_measured_queries(ice_group(p), 1) / ICE_CAUSAL_SHARE);
}

ice_schedule ice_schedule_begin(const icecore_attention *problem, const icecore_near_far *options) {
    return (ice_schedule){.problem = problem,
                          .block = ice_clipped_block(problem, options->block),
                          .panels = ice_is_measuring(options) ? panels_measured(problem, options) : 0};
}

/* Which of a step's rows are measured. */
static void plan_measuring(ice_schedule *schedule, ice_step *step) {
    const icecore_attention *p = schedule->problem;
    const int64_t queries = step->end_query - step->first_query;
    int64_t wanted = schedule->panels * QUERIES_AT_ONCE;
    if (!schedule->panels || (p->causal && step->blocks < ICE_MIN_BLOCKS)) return;
    schedule->since += queries;
    step->renews = 1;
    if (p->causal) {
        if (!ice_is_measured(step->blocks, schedule->last, schedule->renewed, &step->renews)) return;
        wanted = schedule->panels * ice_measured_queries(ice_group(p), step->renews);
    }
    step->measured = ice_min(queries, wanted);
    step->stands_for = schedule->since;
    schedule->since = 0;
    schedule->last = step->blocks;
    if (step->renews) schedule->renewed = step->blocks;
}

int ice_schedule_next(ice_schedule *schedule, ice_step *step) {
    const icecore_attention *p = schedule->problem;
    const int64_t offset = p->keys - p->queries, position = offset + schedule->query;
    if (schedule->query >= p->queries) return 0;
    *step = (ice_step){.first_query = schedule->query, .end_query = p->queries, .blocks = -1, .exact.sinks = p};
    if (p->causal) {
        const int64_t number = position < 0 ? 0 : position / schedule->block;
        step->end_query = ice_min((number + 1) * schedule->block - offset, p->queries);
        step->blocks = ice_sealed_blocks(position, schedule->block);
        step->is_first = number == 0;
        step->exact.open_begin = step->blocks * schedule->block;
        if (step->exact.open_begin <= p->sinks) step->exact.open_begin = 0;
        step->exact.sink_end = step->exact.open_begin ? p->sinks : 0;
    } else {
        step->exact.sink_end = ice_min(p->sinks, p->keys);
        step->exact.open_begin = p->keys;
    }
    step->tiles = ((step->end_query - step->first_query) * ice_group(p) + ICE_PANEL - 1) / ICE_PANEL;
    schedule->query = step->end_query;
    plan_measuring(schedule, step);
    return 1;
}

int64_t ice_count_steps(const icecore_attention *p, const icecore_near_far *options) {
    ice_schedule schedule = ice_schedule_begin(p, options);
    int64_t count = 0;
    for (ice_step step; ice_schedule_next(&schedule, &step);) count++;
    return count;
}

/* ---- What it all comes to ---- */

/* (Query, key) pairs of a step, masks aside. */
static int64_t visible_pairs(const icecore_attention *p, const ice_step *s) {
    const int64_t queries = s->end_query - s->first_query, end = p->keys - p->queries + s->end_query;
    if (!p->causal) return queries * p->keys;
    const int64_t seeing = ice_min(end, queries); /* the others stand before the first key */
    return seeing > 0 ? seeing * (end - seeing) + seeing * (seeing + 1) / 2 : 0;
}

/* Adds the building of a segment over keys first .. end - 1. */
static void add_segment(icecore_near_far_step *work, int64_t first, int64_t end, int64_t sinks, int64_t cell_size) {
    const int64_t keys = end - (ice_max(first, sinks));
    if (keys <= 0) return;
    work->built_keys += keys;
    work->distances += 2 * keys * ICE_CELLS_PER_PARENT + keys * keys / cell_size / (ICE_CELLS_PER_PARENT / 2);
}

/* Adds the segments that a step has and the step before, of `before` blocks, has not. */
static void add_segments(icecore_near_far_step *work, const icecore_attention *p, const ice_step *s, int64_t before,
                         int64_t block, int64_t cell_size) {
    if (s->blocks < 0) add_segment(work, 0, p->keys, p->sinks, cell_size);
    for (int64_t first = 0, size; first < s->blocks; first += size) {
        size = ice_stacked_blocks(first, s->blocks, block);
        if (first + size > before || ice_stacked_blocks(first, before, block) != size)
            add_segment(work, first * block, (first + size) * block, p->sinks, cell_size);
    }
}

int64_t icecore_near_far_count(const icecore_attention *problem, const icecore_near_far *options,
                               icecore_near_far_step *steps, int64_t capacity) {
    ice_schedule schedule = ice_schedule_begin(problem, options);
    const int measuring = ice_is_measuring(options);
    int known = !measuring || !problem->causal || options->head_threshold;
    int64_t before = 0, count = 0;
    for (ice_step s; ice_schedule_next(&schedule, &s); count++) {
        if (count >= capacity) continue;
        icecore_near_far_step *work = &steps[count];
        const int64_t sealed = s.exact.open_begin - s.exact.sink_end;
        *work = (icecore_near_far_step){.queries = s.end_query - s.first_query,
                                        .pairs = visible_pairs(problem, &s),
                                        .sealed_keys = sealed,
                                        .is_exact = !known};
        add_segments(work, problem, &s, before, schedule.block, options->cell_size);
        if (!problem->causal || s.end_query < problem->queries) /* else there is no later row to measure for */
            work->measured_rows = s.measured * ice_group(problem);
        known |= s.measured > 0;
        before = s.blocks;
    }
    return count;
}
