#include "attend/request.h"

/* So that these numbers in log2 units, and their inverses, are normal ones. */
#define MIN_SCORE 1e-30f
#define MAX_SCORE 1e30f

static int is_softcap(float cap) { return cap == 0.0f || (cap >= MIN_SCORE && cap <= MAX_SCORE); }

static int are_sink_logits(const float *logits, int64_t heads) {
    for (int64_t h = 0; logits && h < heads; h++)
        if (logits[h] != -INFINITY && !(fabsf(logits[h]) <= MAX_SCORE)) return 0;
    return 1;
}

/* So that what they take off is a finite number at any distance. */
#define MAX_SLOPE 1e6f

static int are_alibi_slopes(const float *slopes, int64_t heads) {
    for (int64_t h = 0; slopes && h < heads; h++)
        if (!(slopes[h] >= 0.0f && slopes[h] <= MAX_SLOPE)) return 0;
    return 1;
}

icecore_status ice_check_problem(const icecore_attention *p) {
    if (icecore_isa_status() != ICECORE_OK) return ICECORE_ERROR_ISA;
    int sizes = p->batch >= 0 && p->query_heads >= 0 && p->key_heads >= 0 && p->queries >= 0 && p->keys >= 0;
    int dims = p->dim >= 1 && p->dim <= ICECORE_MAX_DIM && p->value_dim >= 1 && p->value_dim <= ICECORE_MAX_DIM;
    int heads = p->query_heads == 0 || (p->key_heads > 0 && p->query_heads % p->key_heads == 0);
    int kinds =
        p->dtype <= ICECORE_BFLOAT16 && p->key_dtype <= ICECORE_BFLOAT16 && p->mask_kind <= ICECORE_MASK_FLOAT32;
    int options = p->window_left >= -1 && p->window_right >= -1 && p->sinks >= 0 &&
                  (p->mask_kind == ICECORE_MASK_NONE || p->mask != NULL);
    if (!kinds || !sizes || !dims || !heads || !options || !(fabsf(p->scale) <= MAX_SCORE) || !is_softcap(p->softcap) ||
        !are_sink_logits(p->sink_logits, p->query_heads) || !are_alibi_slopes(p->alibi_slopes, p->query_heads))
        return ICECORE_ERROR_VALUE;
    if (!ice_is_empty(p) && (!p->query.data || !p->out.data || (p->keys > 0 && (!p->key.data || !p->value.data))))
        return ICECORE_ERROR_VALUE;
    return ICECORE_OK;
}

icecore_attention ice_heads_of(const icecore_attention *p, int64_t batch, int64_t first_head, int64_t heads) {
    icecore_attention own = *p;
    const int64_t key_head = first_head / ice_group(p);
    const int64_t mask = batch * p->mask_batch_stride + first_head * p->mask_head_stride;
    own.batch = 1;
    own.query_heads = own.key_heads = heads;
    own.query.data = ice_address(&p->query, p->dtype, batch, first_head, 0);
    own.out.data = ice_address(&p->out, p->dtype, batch, first_head, 0);
    own.key.data = ice_address(&p->key, p->key_dtype, batch, key_head, 0);
    own.value.data = ice_address(&p->value, p->key_dtype, batch, key_head, 0);
    own.key.head_stride = own.value.head_stride = 0;
    if (p->lse) own.lse = p->lse + ice_place_of(p, (ice_row){batch, first_head, 0});
    if (p->sink_logits) own.sink_logits = p->sink_logits + first_head;
    if (p->alibi_slopes) own.alibi_slopes = p->alibi_slopes + first_head;
    if (p->ranges) own.ranges = p->ranges + batch * p->range_batch_stride;
    if (p->mask_kind == ICECORE_MASK_BOOL) own.mask = (const uint8_t *)p->mask + mask;
    if (p->mask_kind == ICECORE_MASK_FLOAT32) own.mask = (const float *)p->mask + mask;
    return own;
}

ice_visible ice_visible_at(const icecore_attention *p, int64_t batch, int64_t query, int64_t position) {
    int64_t first = 0, end = p->causal ? ice_max(0, position + 1) : p->keys;
    if (p->ranges) {
        const int64_t *range = p->ranges + batch * p->range_batch_stride + query * p->range_row_stride;
        first = ice_max(0, range[0]);
        end = ice_min(end, range[1]);
        if (end <= first) return (ice_visible){0};
    }
    if (!ice_has_window(p)) return (ice_visible){.begin = first, .end = end};
    /* clipped first, so that a huge window cannot overflow */
    const int64_t most = p->keys + p->queries, sink_end = ice_min(p->sinks, end);
    int64_t begin = ice_max(sink_end, first);
    if (p->window_left >= 0) begin = ice_max(begin, position - ice_min(p->window_left, most) + 1);
    if (p->window_right >= 0) end = ice_min(end, ice_max(0, position + ice_min(p->window_right, most)));
    ice_visible seen = {.begin = begin, .end = ice_max(begin, end)};
    if (first < sink_end) seen.sink_begin = first, seen.sink_end = sink_end;
    return seen;
}

void ice_load_query(const icecore_attention *p, const ice_kernels *kernels, ice_row row, float factor, float *target) {
    kernels->to_float32(p->dtype, ice_address(&p->query, p->dtype, row.batch, row.head, row.query), target, p->dim);
    for (int64_t t = 0; t < p->dim && factor != 1.0f; t++) target[t] *= factor;
}

int ice_add_mask(const icecore_attention *p, ice_row row, int64_t first, int64_t count, float *scores, int64_t step) {
    const int64_t offset = ice_mask_offset(p, row) + first * p->mask_key_stride;
    int hid = 0;
    if (p->mask_kind == ICECORE_MASK_BOOL) {
        const uint8_t *mask = (const uint8_t *)p->mask + offset;
        for (int64_t j = 0; j < count; j++)
            if (!mask[j * p->mask_key_stride]) {
                scores[j * step] = -INFINITY;
                hid = 1;
            }
    } else if (p->mask_kind == ICECORE_MASK_FLOAT32) {
        const float *mask = (const float *)p->mask + offset;
        for (int64_t j = 0; j < count; j++) {
            float bias = mask[j * p->mask_key_stride];
            if (bias == -INFINITY) {
                scores[j * step] = -INFINITY; /* even where the score is NaN or inf */
                hid = 1;
            } else if (scores[j * step] != -INFINITY) {
                scores[j * step] += ice_mask_bias(bias);
            }
        }
    }
    return hid;
}

icecore_dtype ice_panel_dtype(const icecore_attention *p, const ice_kernels *kernels) {
    const ice_bf16_kernels *bf16 = kernels->bf16;
    const int serves = bf16 && p->key_dtype == ICECORE_BFLOAT16 && p->dim % bf16->dim_multiple == 0 &&
                       p->value_dim % bf16->value_dim_multiple == 0;
    return serves ? ICECORE_BFLOAT16 : ICECORE_FLOAT32;
}
