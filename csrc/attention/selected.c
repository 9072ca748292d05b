/* Attention by a selector (select/selector.h): digests of all heads, then tiles of all heads. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/parallel.h"
#include "select/selector.h"

typedef struct {
    ice_selector_call call;
    const ice_selector *selector;
    char *digests; /* of each head */
    size_t digest_bytes, scratch_bytes;
    int64_t heads;
    atomic_int status; /* of digests: the last failure */
    int32_t *near_count;
} selected_call;

static void *digests_of(const selected_call *own, int64_t head) {
    return own->digests + (size_t)head * own->digest_bytes;
}

static void digest_task(void *context, int64_t head, void *scratch) {
    if (!scratch) return;
    selected_call *own = context;
    const icecore_status status = own->selector->digest(&own->call, head, digests_of(own, head));
    if (status != ICECORE_OK) atomic_store(&own->status, (int)status);
}

static void attend_task(void *context, int64_t index, void *scratch) {
    if (!scratch) return;
    const selected_call *own = context;
    const icecore_attention *p = own->call.problem;
    const int64_t head = index % own->heads, first = index / own->heads * ICE_PANEL;
    int64_t near_count[ICE_PANEL] = {0};
    ice_tile tile;
    ice_tile_begin(&tile, p, own->call.kernels, head / p->key_heads, head % p->key_heads, first,
                   ice_query_rows(p) - first, (char *)scratch + own->scratch_bytes);
    own->selector->select(&own->call, &tile, digests_of(own, head), scratch, near_count);
    ice_tile_write(&tile);
    for (int lane = 0; own->near_count && lane < tile.lanes; lane++)
        own->near_count[ice_place_of(p, ice_tile_row(&tile, lane))] = (int32_t)near_count[lane];
}

static icecore_status digest_and_attend(selected_call *own) {
    const icecore_attention *p = own->call.problem;
    const int64_t tiles = (ice_query_rows(p) + ICE_PANEL - 1) / ICE_PANEL;
    icecore_status status =
        own->selector->digest ? ice_parallel_for(own->heads, p->threads, 1, digest_task, own) : ICECORE_OK;
    if (status == ICECORE_OK) status = (icecore_status)atomic_load(&own->status);
    if (status != ICECORE_OK) return status;
    return ice_parallel_for(own->heads * tiles, p->threads, own->scratch_bytes + ice_tile_bytes(p), attend_task, own);
}

icecore_status ice_attend_selected(const ice_selector_call *call, const ice_selector *selector, int32_t *near_count) {
    const icecore_attention *p = call->problem;
    icecore_status status = ice_check_problem(p);
    if (status != ICECORE_OK) return status;
    if (ice_hides_keys(p) || p->alibi_slopes || call->near_keys < 1) return ICECORE_ERROR_VALUE;
    if (ice_is_empty(p)) return ICECORE_OK;
    selected_call own = {
        .call = *call, .selector = selector, .heads = p->batch * p->key_heads, .near_count = near_count};
    own.call.kernels = ice_active_kernels();
    own.digest_bytes = selector->digest_bytes ? ice_round_up(selector->digest_bytes(&own.call)) : 0;
    own.scratch_bytes = ice_round_up(selector->scratch_bytes(&own.call));
    own.digests = ice_alloc(own.heads, own.digest_bytes ? own.digest_bytes : 1);
    if (!own.digests) return ICECORE_ERROR_MEMORY;
    memset(own.digests, 0, (size_t)own.heads * own.digest_bytes);
    status = digest_and_attend(&own);
    for (int64_t head = 0; selector->release && head < own.heads; head++)
        selector->release(&own.call, digests_of(&own, head));
    ice_free(own.digests);
    return status;
}

icecore_status icecore_attend_pages(const icecore_attention *problem, int64_t near_keys, int32_t *near_count) {
    const ice_pages_settings settings = {.page = 16};
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys, .settings = &settings};
    return ice_attend_selected(&call, &ice_pages, near_count);
}

icecore_status icecore_attend_arkvale(const icecore_attention *problem, int64_t near_keys, int64_t page,
                                      int32_t *near_count) {
    const ice_pages_settings settings = {.page = page, .mean_reach = 1, .oldest = 2, .newest = 1};
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys, .settings = &settings};
    return page < 1 ? ICECORE_ERROR_VALUE : ice_attend_selected(&call, &ice_pages, near_count);
}

icecore_status icecore_attend_top_k(const icecore_attention *problem, int64_t near_keys, int32_t *near_count) {
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys};
    if (problem->keys > INT32_MAX) return ICECORE_ERROR_VALUE; /* keys have numbers of 32 bits */
    return ice_attend_selected(&call, &ice_top_k, near_count);
}

/* Key head by key head, which its query heads read as if each had one of its own: tiles of each head's rows. */
static icecore_status attend_by_heads(const ice_selector_call *call, const ice_selector *selector,
                                      int32_t *near_count) {
    const icecore_attention *p = call->problem;
    icecore_status status = ice_check_problem(p);
    if (status == ICECORE_OK && p->keys > INT32_MAX) status = ICECORE_ERROR_VALUE;
    for (int64_t i = 0; status == ICECORE_OK && !ice_is_empty(p) && i < p->batch * p->key_heads; i++) {
        const ice_row first = ice_row_at(p, i / p->key_heads, i % p->key_heads, 0);
        const icecore_attention heads = ice_heads_of(p, first.batch, first.head, ice_group(p));
        ice_selector_call own = *call;
        own.problem = &heads;
        status = ice_attend_selected(&own, selector, near_count ? near_count + ice_place_of(p, first) : NULL);
    }
    return status;
}

icecore_status icecore_attend_minference(const icecore_attention *problem, int64_t vertical, int64_t slash,
                                         int32_t *near_count) {
    const ice_selector_call call = {.problem = problem, .near_keys = 1, .vertical = vertical, .slash = slash};
    if (vertical < 1 || slash < 1 || !problem->causal) return ICECORE_ERROR_VALUE;
    return attend_by_heads(&call, &ice_minference, near_count);
}

icecore_status icecore_attend_block_sparse(const icecore_attention *problem, int64_t near_keys, int32_t *near_count) {
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys};
    return attend_by_heads(&call, &ice_block_sparse, near_count);
}

icecore_status icecore_attend_xattention(const icecore_attention *problem, int64_t stride, double threshold,
                                         int32_t *near_count) {
    const ice_xattention_settings settings = {stride, threshold};
    const ice_selector_call call = {.problem = problem, .near_keys = 1, .settings = &settings};
    if (stride != 4 && stride != 8 && stride != 16) return ICECORE_ERROR_VALUE;
    if (!(threshold > 0.0 && threshold < 1.0) || !problem->causal) return ICECORE_ERROR_VALUE;
    return attend_by_heads(&call, &ice_xattention, near_count);
}

icecore_status icecore_attend_zeta(const icecore_attention *problem, int64_t near_keys, uint64_t seed,
                                   int32_t *near_count) {
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys, .seed = seed};
    if (problem->keys > INT32_MAX) return ICECORE_ERROR_VALUE; /* keys have numbers of 32 bits */
    return ice_attend_selected(&call, &ice_zeta, near_count);
}

/* The number that a normal one exceeds, to both sides, with probability p: erfc(z / sqrt(2)) = p. */
static double normal_deviate(double p) {
    double low = 0.0, high = 64.0; /* by doubles' least p it is 38.5 */
    for (int i = 0; i < 64; i++) {
        const double middle = (low + high) / 2.0;
        if (erfc(middle * 0.70710678118654752440) > p) low = middle;
        else high = middle;
    }
    return high;
}

icecore_status icecore_attend_vattention(const icecore_attention *problem, const icecore_vattention *options,
                                         int32_t *near_count) {
    const icecore_vattention *o = options;
    if (problem->keys > INT32_MAX || o->sinks < 0 || o->window < 0) return ICECORE_ERROR_VALUE;
    if (!(o->epsilon > 0.0 && o->epsilon < 1.0 && o->delta > 0.0 && o->delta < 1.0)) return ICECORE_ERROR_VALUE;
    const ice_vattention_settings settings = {o->sinks, o->window, o->epsilon, normal_deviate(o->delta)};
    const ice_selector_call call = {
        .problem = problem, .near_keys = o->near_keys, .seed = o->seed, .settings = &settings};
    return ice_attend_selected(&call, &ice_vattention, near_count);
}

icecore_status icecore_attend_pdci(const icecore_attention *problem, int64_t near_keys, int64_t visit, uint64_t seed,
                                   int32_t *near_count) {
    const int64_t keys = problem->keys;
    const ice_selector_call call = {
        .problem = problem, .near_keys = near_keys, .visit = visit < keys ? visit : keys, .seed = seed};
    if (visit < near_keys || keys > INT32_MAX) return ICECORE_ERROR_VALUE;
    return ice_attend_selected(&call, &ice_pdci, near_count);
}

icecore_status icecore_attend_sparq(const icecore_attention *problem, int64_t near_keys, int64_t components,
                                    int64_t local, int32_t *near_count) {
    const ice_sparq_settings settings = {components, local};
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys, .settings = &settings};
    if (components < 1 || local < 0 || local > near_keys || problem->keys > INT32_MAX) return ICECORE_ERROR_VALUE;
    return ice_attend_selected(&call, &ice_sparq, near_count);
}

icecore_status icecore_attend_magicpig(const icecore_attention *problem, int64_t bits, int64_t tables, int64_t sinks,
                                       int64_t local, uint64_t seed, int32_t *near_count) {
    const ice_magicpig_settings settings = {bits, tables, sinks, local};
    const ice_selector_call call = {.problem = problem, .near_keys = 1, .seed = seed, .settings = &settings};
    const int fits = bits >= 1 && bits <= ICE_MAGICPIG_MAX_BITS && tables >= 2 && tables <= ICE_MAGICPIG_MAX_TABLES;
    if (!fits || sinks < 0 || local < 1 || problem->keys > INT32_MAX) return ICECORE_ERROR_VALUE;
    return ice_attend_selected(&call, &ice_magicpig, near_count);
}

icecore_status icecore_attend_retroinfer(const icecore_attention *problem, const icecore_retroinfer *options,
                                         int32_t *near_count) {
    const icecore_retroinfer *o = options;
    const ice_selector_call call = {.problem = problem, .near_keys = 1, .settings = options};
    if (problem->keys > INT32_MAX || o->segment < 1 || o->sinks < 0 || o->local < 0) return ICECORE_ERROR_VALUE;
    if (!(o->retrieval > 0.0 && o->estimation > 0.0 && o->retrieval + o->estimation <= 1.0)) return ICECORE_ERROR_VALUE;
    return ice_attend_selected(&call, &ice_retroinfer, near_count);
}
