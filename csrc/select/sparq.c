/* Keys by approximate scores, and one mean for the rest: SparQ (arXiv 2312.04985).
 *
 * Approximate scores come from the largest components of a query, divided by a temperature.  A row attends to its last
 * `local` keys and to the others with the largest approximate scores, near_keys in all.  Of the approximate softmax
 * these have the mass alpha; the mean of all values that the row sees has the weight that leaves them just that share.
 *
 * Keys are turned a panel at a time, so that a component of many keys is one row of numbers, which rows add up by their
 * own components. */
#include <string.h>

#include "attend/rows.h"
#include "base/parallel.h"
#include "select/kept.h"
#include "select/selector.h"

/* Values of a block, at whose ends the means of all values so far are kept. */
#define BLOCK 64
/* Room of a list besides the keys that it keeps: the threshold rises when this is used up. */
#define SPARE (8 * ICE_PANEL)

/* ---- Digests: mean values ---- */

static void lay_out_means(const ice_selector_call *call, void *own, ice_arena *a) {
    float **means = own; /* of all values up to the end of each block */
    *means = ice_arena_take(a, call->problem->keys / BLOCK * call->problem->value_dim, sizeof(float));
}

/* mean = mean * correction + factor * (values first .. first + count - 1), count <= BLOCK. */
static void add_values(const ice_selector_call *call, int64_t head, int64_t first, int64_t count, double factor,
                       double correction, float *mean) {
    const icecore_attention *p = call->problem;
    float weights[BLOCK];
    for (int64_t j = 0; j < count; j++) weights[j] = (float)factor;
    call->kernels->row_weighted_sum(weights, count, p->key_dtype, ice_value_at(p, head, first), p->value.row_stride,
                                    p->value_dim, (float)correction, mean);
}

static icecore_status digest(const ice_selector_call *call, int64_t head, void *digests) {
    const int64_t value_dim = call->problem->value_dim;
    double total[ICECORE_MAX_DIM] = {0}; /* of means of blocks */
    float *mean = *(float **)digests;
    for (int64_t block = 0; block < call->problem->keys / BLOCK; block++, mean += value_dim) {
        add_values(call, head, block * BLOCK, BLOCK, 1.0 / BLOCK, 0.0, mean); /* which is 0 before */
        for (int64_t t = 0; t < value_dim; t++) {
            total[t] += (double)mean[t];
            mean[t] = (float)(total[t] / (double)(block + 1));
        }
    }
    return ICECORE_OK;
}

/* The mean of the first `count` values. */
static void find_mean_value(const ice_selector_call *call, const ice_tile *tile, const float *means, int64_t count,
                            float *mean) {
    const int64_t value_dim = call->problem->value_dim, blocks = count / BLOCK;
    for (int64_t t = 0; t < value_dim; t++) mean[t] = blocks ? means[(blocks - 1) * value_dim + t] : 0.0f;
    add_values(call, tile->batch * call->problem->key_heads + tile->key_head, blocks * BLOCK, count % BLOCK,
               1.0 / (double)count, (double)(blocks * BLOCK) / (double)count, mean);
}

/* ---- Approximate scores ---- */

typedef struct {
    int64_t components, local; /* of a query, the largest ones; last keys, which are always chosen */
} sparq_settings;

typedef struct {
    int64_t near_keys, local, components;
    float *columns;      /* dim x ICE_PANEL */
    float *weight;       /* ICE_PANEL x components: those of the queries by the temperature */
    const void **column; /* ICE_PANEL x components: in `columns` */
    float *size;         /* dim */
    int32_t *number;     /* dim */
    float *spare;        /* near_keys */
    ice_kept kept[ICE_PANEL];
    float threshold[ICE_PANEL], maximum[ICE_PANEL], sum[ICE_PANEL]; /* the latter two of the approximate softmax */
} space;

static int64_t ranked_keys(const space *s) { return s->near_keys - s->local; }

static void lay_out(const ice_selector_call *call, void *own, ice_arena *a) {
    const icecore_attention *p = call->problem;
    const sparq_settings *settings = call->settings;
    space *s = own;
    s->near_keys = ice_min(call->near_keys, p->keys);
    s->local = ice_min(settings->local, s->near_keys);
    s->components = ice_min(settings->components, p->dim);
    s->columns = ice_arena_take(a, ICE_PANEL * p->dim, sizeof(float));
    s->weight = ice_arena_take(a, ICE_PANEL * s->components, sizeof(float));
    s->column = ice_arena_take(a, ICE_PANEL * s->components, sizeof(void *));
    s->size = ice_arena_take(a, p->dim, sizeof(float));
    s->number = ice_arena_take(a, p->dim, sizeof(int32_t));
    s->spare = ice_arena_take(a, s->near_keys, sizeof(float));
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        s->kept[lane].score = ice_arena_take(a, s->near_keys + SPARE, sizeof(float));
        s->kept[lane].number = ice_arena_take(a, s->near_keys + SPARE, sizeof(int32_t));
    }
}

/* The largest components of a lane's query, the first among equals; a NaN counts as infinite. */
static void choose_components(const ice_selector_call *call, const ice_tile *tile, int lane, space *s) {
    const int64_t dim = call->problem->dim;
    const float *query = tile->query_rows + lane * dim;
    double whole = 0.0, part = 0.0;
    for (int64_t t = 0; t < dim; t++) {
        s->size[t] = query[t] == query[t] ? fabsf(query[t]) : INFINITY;
        s->number[t] = (int32_t)t;
        whole += (double)s->size[t];
    }
    if (s->components < dim) call->kernels->keep_largest(s->size, s->number, dim, s->components);
    for (int64_t i = 0; i < s->components; i++) part += fabs((double)query[s->number[i]]);
    const double temperature = whole > 0.0 ? sqrt(part / whole) : 1.0;
    for (int64_t i = 0; i < s->components; i++) {
        s->weight[lane * s->components + i] = (float)((double)query[s->number[i]] / temperature);
        s->column[lane * s->components + i] = s->columns + s->number[i] * ICE_PANEL;
    }
}

static void begin(const ice_selector_call *call, const ice_tile *tile, space *s) {
    for (int lane = 0; lane < tile->lanes; lane++) {
        choose_components(call, tile, lane, s);
        s->kept[lane].count = 0;
        s->threshold[lane] = s->maximum[lane] = -INFINITY;
        s->sum[lane] = 0.0f;
    }
}

/* Keys first .. first + count - 1 side by side; count <= ICE_PANEL. */
static void turn_keys(const ice_tile *tile, int64_t first, int64_t count, space *s) {
    const icecore_attention *p = tile->problem;
    const float *row[ICE_PANEL];
    int64_t stride;
    const float *keys = ice_float_rows(tile, p, &p->key, p->dim, first, count, tile->keys, &stride);
    for (int64_t j = 0; j < ICE_PANEL; j++) row[j] = keys + ice_min(j, count - 1) * stride;
    tile->kernels->to_panel(row, p->dim, s->columns);
}

/* Takes down those of `count` keys whose scores reach the lane's threshold. */
static void take_down(const ice_selector_call *call, int lane, const float *scores, int64_t first, int64_t count,
                      space *s) {
    ice_kept *kept = &s->kept[lane];
    float threshold[ICE_PANEL];
    int32_t place[ICE_PANEL];
    for (int i = 0; i < ICE_PANEL; i++) threshold[i] = s->threshold[lane];
    const int64_t found = call->kernels->find_at_least(scores, 1, (int)count, threshold, place);
    for (int64_t i = 0; i < found; i++, kept->count++) {
        kept->score[kept->count] = scores[place[i]];
        kept->number[kept->count] = (int32_t)(first + place[i]);
    }
    if (kept->count > ranked_keys(s) + SPARE - ICE_PANEL)
        s->threshold[lane] = ice_kept_reduce(call->kernels, kept, ranked_keys(s));
}

/* A NaN counts as infinite. */
static void score_panel(const ice_selector_call *call, const ice_tile *tile, int lane, int64_t first, space *s) {
    const int64_t end = tile->visible[lane].end, count = ice_min(end - first, ICE_PANEL),
                  ranked = ice_min(end - s->local - first, ICE_PANEL);
    float scores[ICE_PANEL] = {0}, correction;
    if (count <= 0) return;
    call->kernels->gathered_weighted_sum(s->weight + lane * s->components, s->components, ICECORE_FLOAT32,
                                         s->column + lane * s->components, ICE_PANEL, 0.0f, scores);
    for (int i = 0; i < ICE_PANEL; i++) scores[i] = scores[i] == scores[i] ? scores[i] : INFINITY;
    if (ranked > 0 && ranked_keys(s) > 0) take_down(call, lane, scores, first, ranked, s);
    for (int64_t key = first + (ice_max(ranked, 0)); key < first + count; key++) {
        if (key < end - s->local) continue;
        s->kept[lane].score[s->near_keys + SPARE - (end - key)] = scores[key - first];
    }
    ice_tile_cap_row(tile, scores, count);
    call->kernels->row_softmax(scores, count, &s->maximum[lane], &s->sum[lane], &correction);
}

/* ---- What a row attends to ---- */

/* The keys with the largest scores, and the last ones, whose scores wait in the end of the list. */
static void choose_keys(const ice_selector_call *call, const ice_tile *tile, int lane, space *s) {
    const int64_t end = tile->visible[lane].end, local = ice_min(s->local, end);
    ice_kept *kept = &s->kept[lane];
    if (ranked_keys(s) > 0) ice_kept_reduce(call->kernels, kept, ranked_keys(s));
    memmove(kept->score + kept->count, kept->score + s->near_keys + SPARE - local, (size_t)local * sizeof(float));
    for (int64_t i = 0; i < local; i++) kept->number[kept->count + i] = (int32_t)(end - local + i);
    kept->count += local;
}

/* The logarithm of the sum of 2^score, capped. */
static double log2_mass(const ice_tile *tile, const ice_kept *kept, float *spare) {
    float maximum = -INFINITY, sum = 0.0f, correction;
    memcpy(spare, kept->score, (size_t)kept->count * sizeof *spare);
    ice_tile_cap_row(tile, spare, kept->count);
    tile->kernels->row_softmax(spare, kept->count, &maximum, &sum, &correction);
    return (double)maximum + log2((double)sum);
}

/* Adds all values at their mean, with (1 - alpha) / alpha times the mass of the kept keys. */
static void add_rest(const ice_selector_call *call, ice_tile *tile, int lane, const float *means, double log2_alpha,
                     double log2_kept) {
    float mean[ICECORE_MAX_DIM],
        score = -INFINITY; /* where alpha is 1 but for rounding; a NaN spoils the row there too */
    if (!(log2_alpha >= 0.0)) score = (float)(log2_kept + log2(-expm1(ICE_LN_2 * log2_alpha)) - log2_alpha);
    find_mean_value(call, tile, means, tile->visible[lane].end, mean);
    ice_tile_add_means_to(tile, (uint64_t)1 << lane, ICECORE_FLOAT32, &score, 0, mean, 1);
}

static void attend(const ice_selector_call *call, ice_tile *tile, int lane, const float *means, space *s) {
    ice_kept *kept = &s->kept[lane];
    const double log2_alpha = log2_mass(tile, kept, s->spare) - ((double)s->maximum[lane] + log2((double)s->sum[lane]));
    ice_kept_score(tile, lane, kept);
    if (kept->count < tile->visible[lane].end)
        add_rest(call, tile, lane, means, log2_alpha, log2_mass(tile, kept, s->spare));
    ice_kept_attend(tile, lane, kept, NULL);
}

static void select_approximately(const ice_selector_call *call, ice_tile *tile, const void *digests, void *own,
                                 int64_t near_count[ICE_PANEL]) {
    const int64_t end = ice_tile_visible(tile).end;
    float *const *means = digests;
    space *s = own;
    begin(call, tile, s);
    for (int64_t last = end, first; last > 0 && !ice_interrupted(); last = first) { /* as in largest.c */
        first = (last - 1) / ICE_PANEL * ICE_PANEL;
        turn_keys(tile, first, last - first, s);
        for (int lane = 0; lane < tile->lanes; lane++) score_panel(call, tile, lane, first, s);
    }
    for (int lane = 0; lane < tile->lanes; lane++) {
        choose_keys(call, tile, lane, s);
        near_count[lane] = s->kept[lane].count;
        attend(call, tile, lane, *means, s);
    }
}

static const ice_selector sparq = {.digests = {sizeof(float *), lay_out_means},
                                   .space = {sizeof(space), lay_out},
                                   .digest = digest,
                                   .select = select_approximately};

icecore_status icecore_attend_sparq(const icecore_attention *problem, int64_t near_keys, int64_t components,
                                    int64_t local, int32_t *near_count) {
    const sparq_settings settings = {components, local};
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys, .settings = &settings};
    if (components < 1 || local < 0 || local > near_keys) return ICECORE_ERROR_VALUE;
    return ice_attend_selected(&call, &sparq, near_count);
}
