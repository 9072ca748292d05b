/* Which of a cache's kept queries are measured, when, and the rules that queries attend by. */
#include <math.h>

#include "cache/attend.h"

/* How many kept queries stand behind all that is sealed and before those that attend; *end: the place behind the last
 * of them. */
static int64_t usable_queries(const ice_cache_call *call, int64_t *end) {
    const icecore_cache *c = call->cache;
    const ice_cache_queries *q = &c->queries;
    const int64_t sealed = ice_cache_max_sealed(c);
    int64_t first = 0;
    for (*end = q->kept;
         *end > 0 && q->position[*end - 1] >= call->problem.keys - call->problem.queries + call->first_query;)
        --*end;
    while (first < *end && q->position[first] < sealed * c->options.block) first++;
    return *end - first;
}

/* Queries of a call while decoding; a chunk of a prompt has more. */
static int is_decoding(const ice_cache_call *call) {
    return call->end_query - call->first_query < call->cache->options.block / 4;
}

/* Steps of decoding between measured queries, at first: what follows may be about something else.  (A twentieth of
 * their time; with half as many made-up inputs have no smaller errors.) */
#define STEPS_PER_MEASURED 96

/* Sealed blocks for which the steps between are as many once more. */
#define BLOCKS_PER_MEASURED 32

/* Of so many kept queries one is measured, as soon as the last of them has been attended. */
static int64_t decoding_step(const icecore_cache *c) {
    const int64_t spacing = ice_queries_spacing(c);
    return (STEPS_PER_MEASURED + spacing - 1) / spacing * (1 + c->sealed / BLOCKS_PER_MEASURED);
}

/* What of the newest kept queries is measured before this block's queries attend. */
void ice_cache_plan_measuring(ice_cache_call *call) {
    icecore_cache *c = call->cache;
    ice_cache_queries *q = &c->queries;
    const int64_t usable = call->usable = usable_queries(call, &call->measured_end);
    const int seals = call->blocks > c->sealed && c->sealed > 0;
    int64_t wanted = 0;
    call->measuring = NOT_MEASURED;
    call->renews = 0;
    call->fading = ICE_FADING;
    if (!call->by_tolerance) return;
    if (!q->known) {
        call->renews = 1;
        call->measured = usable < q->capacity ? usable : q->capacity;
        if (call->measured >= 8 && call->blocks >= ICE_MIN_BLOCKS) call->measuring = MEASURED_AFTER;
        return;
    }
    if (seals && ice_is_measured(c->sealed, q->last, q->renewed, &call->renews) &&
        (call->renews || !is_decoding(call))) {
        wanted = ice_measured_queries(q->group, call->renews);
    } else if (is_decoding(call) && c->sealed > 0) {
        call->usable = ice_min(usable, q->unmeasured);
        wanted = ice_min(q->unmeasured / decoding_step(c), call->usable);
        call->fading = pow(ICE_FADING, (double)wanted / (double)ice_measured_queries(q->group, 0));
    }
    call->measured = ice_min(call->usable, wanted);
    if (call->measured > 0) call->measuring = MEASURED_BEFORE;
}

void ice_cache_measure(ice_cache_call *call, int64_t head, void *scratch) {
    const icecore_cache *c = call->cache;
    const ice_cache_queries *q = &c->queries;
    const int64_t stride = call->usable / call->measured, row = call->problem.query_heads * c->options.dim;
    const int64_t first = call->measured_end - 1 - (call->measured - 1) * stride;
    int64_t position[ICE_MAX_QUERIES_MEASURED];
    for (int64_t i = 0; i < call->measured; i++) position[i] = q->position[first + i * stride];
    icecore_attention problem = call->problem;
    problem.dtype = ICECORE_FLOAT32; /* as queries are kept */
    ice_exact_keys exact = ice_cache_exact_keys(call, head);
    if (position[0] < exact.open_begin) return;
    const ice_sample sample = {
        .problem = &problem,
        .given = &problem,
        .query = {q->query + first * row, 0, c->options.dim, stride * row},
        .position = position,
        .count = call->measured,
        .options = &call->options,
        .kernels = ice_active_kernels(),
        .stack = c->head[head].stack,
        .exact = exact,
        .key_head = head,
        .stands_for = 1.0,
        .renew = call->renews,
        .fading = call->fading,
    };
    ice_measure(&sample, q->measured + head * q->group, q->rule + head * q->group, scratch);
}

/* Queries of a call that look for single keys: steps of decoding, and questions about a long prompt, whose answer may
 * be one key.  (Behind 4000 tokens of the same few sentences retrieving heads of SmolLM2 missed their key in half of a
 * longer question's rows.) */
#define FEW_QUERIES 256
/* Such a part of the tolerance, as a share of the mass, is what a key is expected to hold at least that is looked for:
 * with twice as much a step of SmolLM2 reads 8 % fewer keys of 4000 tokens, with 0.7 times as much 9 % more. */
#define KEY_SHARE (1.0f / 64)

/* As they are attended: what the rules call exact opens all. */
void ice_cache_apply_rules(const ice_cache_call *call, int64_t head) {
    const ice_cache_queries *q = &call->cache->queries;
    for (int64_t i = head * q->group; i < (head + 1) * q->group; i++) {
        q->applied[i] = q->rule[i];
        if (q->rule[i].exact) q->applied[i] = (ice_rule){.all_cells = 1};
        else if (call->problem.queries <= FEW_QUERIES)
            q->applied[i].key_share = KEY_SHARE * ice_tolerance_of(&call->options, i);
    }
}

void ice_cache_take_thresholds(const ice_cache_call *call) {
    ice_cache_queries *q = &call->cache->queries;
    for (int64_t i = 0; i < call->problem.query_heads; i++)
        q->rule[i] = (ice_rule){.threshold = call->options.head_threshold[i]};
    q->known = 1;
}

void ice_cache_note_measuring(const ice_cache_call *call) {
    ice_cache_queries *q = &call->cache->queries;
    q->known = 1;
    q->unmeasured = 0;
    q->last = call->measuring == MEASURED_BEFORE ? call->cache->sealed : call->blocks;
    if (call->renews) q->renewed = q->last;
}

void ice_cache_report_errors(const ice_cache_call *call) {
    const ice_cache_queries *q = &call->cache->queries;
    const int known = q->group == ice_group(&call->problem); /* without rows there may never have been a query */
    const ice_error_sums none = {0};
    for (int64_t i = 0; i < call->problem.query_heads; i++)
        ice_report_error(&call->report, i, known ? &q->measured[i].tested : &none);
}
