/* Exact attention on numbers rounded to bfloat16, in key heads whose sampled rows show that it keeps the tolerance.
 *
 * The rows are attended twice: as they were given, and rounded.  What they show decides for a key head with all its
 * query heads, which share keys.  Rows of the whole call decide, so that a row may depend on a later one, but by no
 * more than rounding does. */
#include <math.h>
#include <string.h>

#include "attention/measure.h"
#include "attention/near_far_tile.h"
#include "attention/rounding.h"
#include "base/parallel.h"

/* About so many rows of a key head are sampled, and so many queries at least. */
#define SAMPLED_ROWS ICE_PANEL
#define MIN_SAMPLED 8

typedef struct {
    const icecore_attention *given;
    const ice_rounded *rounded;
    const icecore_near_far *options;
    const ice_kernels *kernels;
    ice_error_sums *tested; /* batch x query heads */
    double *largest;        /* of the same: the error of the row where that is largest */
    uint8_t *keeps;         /* batch x key heads */
} rounded_call;

/* ---- Measuring ---- */

/* Of a key head. */
static ice_sample sample_of(const rounded_call *call, int64_t head, int64_t *position) {
    const icecore_attention *p = call->given;
    const int64_t wanted = ice_max(SAMPLED_ROWS / ice_group(p), MIN_SAMPLED), count = ice_min(wanted, p->queries),
                  stride = p->queries / count, first = p->queries - 1 - (count - 1) * stride;
    for (int64_t i = 0; i < count; i++) position[i] = p->keys - p->queries + first + i * stride;
    ice_sample sample = {.problem = &call->rounded->problem,
                         .given = p,
                         .query = p->query,
                         .position = position,
                         .count = count,
                         .batch = head / p->key_heads,
                         .key_head = head % p->key_heads};
    sample.query.data = ice_address(&p->query, p->dtype, 0, 0, first);
    sample.query.row_stride *= stride;
    return sample;
}

static void attend_rows(ice_tile *tile, const icecore_attention *p, const rounded_call *call, const ice_sample *s,
                        int64_t first_row, void *scratch) {
    const int64_t rows = s->count * ice_group(p) - first_row;
    ice_tile_begin(tile, p, call->kernels, s->batch, s->key_head, first_row, rows, scratch);
    ice_tile_place(tile, s->position);
    const ice_visible visible = ice_tile_visible(tile);
    ice_tile_attend_keys(tile, p, 0, visible.sink_end);
    ice_tile_attend_keys(tile, p, visible.begin, visible.end);
    ice_tile_finish(tile);
}

/* The error of a rounded row, its mass included as near/far attention's is, and the length of the true output. */
static double row_error(const ice_tile *given, const ice_tile *rounded, int lane, float centre, double *norm) {
    const ice_state *truth = &given->state[lane], *own = &rounded->state[lane];
    const double mass = exp2((double)(own->maximum + centre - truth->maximum)) * (double)own->sum / (double)truth->sum;
    double distance = 0.0, squared = 0.0;
    for (int64_t i = 0; i < given->problem->value_dim; i++) {
        const double wanted = (double)truth->accumulator[i] / (double)truth->sum,
                     found = (double)own->accumulator[i] / (double)own->sum;
        distance += (found - wanted) * (found - wanted);
        squared += wanted * wanted;
    }
    *norm = sqrt(squared);
    return sqrt(distance + ICE_MASS_SHARE * (mass - 1.0) * (mass - 1.0) * squared);
}

static void compare_rows(const rounded_call *call, int64_t head, const ice_tile *given, const ice_tile *rounded) {
    const icecore_attention *p = call->given;
    const float *centre = call->rounded->centre ? call->rounded->centre + head * p->dim : NULL;
    for (int lane = 0; lane < given->lanes; lane++) {
        const int64_t query_head = head * ice_group(p) + (given->first_row + lane) % ice_group(p);
        float score = 0.0f;
        double norm;
        if (!(given->state[lane].sum > 0.0f)) continue; /* it sees no key */
        if (centre)
            call->kernels->row_scores(given->query_rows + lane * p->dim, p->dim, ICECORE_FLOAT32, centre, p->dim, 1,
                                      &score);
        const double error = row_error(given, rounded, lane, score, &norm);
        if (!isfinite(norm)) continue;
        ice_add_error(&call->tested[query_head], 1.0, error, norm);
        call->largest[query_head] = fmax(call->largest[query_head], error);
    }
}

static double tolerance_of(const rounded_call *call, int64_t query_head) {
    return (double)ice_tolerance_of(call->options, query_head % call->given->query_heads);
}

/* With a doubt as of measure.c: a standard error, or one row more that is as bad as the worst.  An error that is no
 * number keeps nothing. */
static int keeps_tolerance(const rounded_call *call, int64_t query_head) {
    const ice_error_sums *tested = &call->tested[query_head];
    const double doubt = fmax(ice_standard_error(tested), call->largest[query_head] / tested->norm);
    return tested->error / tested->norm + doubt <= tolerance_of(call, query_head);
}

static void measure_task(void *context, int64_t head, void *scratch) {
    const rounded_call *call = context;
    const icecore_attention *p = call->given;
    const int64_t group = ice_group(p);
    int64_t position[SAMPLED_ROWS + MIN_SAMPLED];
    if (!scratch) return;
    const ice_sample sample = sample_of(call, head, position);
    const icecore_attention given = ice_sampled_problem(p, &sample),
                            rounded = ice_sampled_problem(&call->rounded->problem, &sample);
    ice_tile tile[2];
    for (int64_t row = 0; row < sample.count * group; row += ICE_PANEL) {
        attend_rows(&tile[0], &given, call, &sample, row, scratch);
        attend_rows(&tile[1], &rounded, call, &sample, row, (char *)scratch + ice_tile_bytes(p));
        compare_rows(call, head, &tile[0], &tile[1]);
    }
    call->keeps[head] = 1;
    for (int64_t i = head * group; i < (head + 1) * group; i++) call->keeps[head] &= keeps_tolerance(call, i);
}

/* ---- Attending ---- */

/* What the keys lacked comes back to lse, of a query head. */
static void add_centre_task(void *context, int64_t query_head, void *scratch) {
    const rounded_call *call = context;
    const icecore_attention *p = call->given;
    const int64_t batch = query_head / p->query_heads, head = query_head / ice_group(p);
    float query[ICECORE_MAX_DIM], score;
    if (!scratch || !call->keeps[head]) return;
    for (int64_t i = 0; i < p->queries; i++) {
        const ice_row row = {batch, query_head % p->query_heads, i};
        float *lse = &p->lse[ice_place_of(p, row)];
        if (*lse == -INFINITY) continue; /* it sees no key, whatever its query is */
        ice_load_query(p, call->kernels, row, (float)p->scale, query);
        call->kernels->row_scores(query, p->dim, ICECORE_FLOAT32, call->rounded->centre + head * p->dim, p->dim, 1,
                                  &score);
        *lse += score;
    }
}

/* Heads that are alike at once, where all are, else one key head after the other. */
static icecore_status attend(const rounded_call *call) {
    const icecore_attention *p = call->given;
    const int64_t heads = p->batch * p->key_heads, group = ice_group(p);
    icecore_status status = ICECORE_OK;
    int64_t kept = 0;
    for (int64_t head = 0; head < heads; head++) kept += call->keeps[head];
    if (kept == 0 || kept == heads) {
        status = icecore_attend_exact(kept ? &call->rounded->problem : p);
    } else {
        for (int64_t head = 0; head < heads && status == ICECORE_OK; head++) {
            icecore_attention own = ice_heads_of(call->keeps[head] ? &call->rounded->problem : p, head / p->key_heads,
                                                 head % p->key_heads * group, group);
            own.key_heads = 1;
            status = icecore_attend_exact(&own);
        }
    }
    if (status == ICECORE_OK && p->lse && call->rounded->centre)
        status = ice_parallel_for(p->batch * p->query_heads, p->threads, 1, add_centre_task, (void *)call);
    return status;
}

/* ---- The call ---- */

static void report_call(const rounded_call *call, const icecore_report *report) {
    const icecore_attention *p = call->given;
    for (int64_t i = 0; i < p->batch * p->query_heads; i++) {
        ice_error_sums tested = call->tested[i];
        if (!call->keeps[i / ice_group(p)]) tested.error = tested.squared = tested.cross = 0.0; /* it is exact */
        ice_report_error(report, i, &tested);
    }
}

static icecore_status attend_rounded(rounded_call *call, const icecore_report *report) {
    const icecore_attention *p = call->given;
    const int64_t heads = p->batch * p->query_heads;
    icecore_status status = ICECORE_ERROR_MEMORY;
    call->tested = ice_alloc(heads, sizeof *call->tested);
    call->largest = ice_alloc(heads, sizeof *call->largest);
    call->keeps = ice_alloc(heads, sizeof *call->keeps);
    if (call->tested && call->largest && call->keeps) {
        memset(call->tested, 0, (size_t)heads * sizeof *call->tested);
        memset(call->largest, 0, (size_t)heads * sizeof *call->largest);
        status = ice_parallel_for(p->batch * p->key_heads, p->threads, 2 * ice_tile_bytes(p), measure_task, call);
        if (status == ICECORE_OK) status = attend(call);
        if (status == ICECORE_OK) report_call(call, report);
    }
    ice_free(call->tested);
    ice_free(call->largest);
    ice_free(call->keeps);
    return status;
}

icecore_status icecore_attend_rounded(const icecore_attention *problem, const icecore_near_far *options,
                                      const icecore_report *report) {
    icecore_status status = ice_check_problem(problem);
    if (status != ICECORE_OK) return status;
    const ice_kernels *kernels = ice_active_kernels();
    if (!ice_is_measuring(options) || !ice_all_positive(options->head_tolerance, problem->query_heads) ||
        problem->alibi_slopes || !ice_can_be_rounded(problem, kernels))
        return ICECORE_ERROR_VALUE;
    if (ice_is_empty(problem)) return ICECORE_OK;
    ice_rounded rounded;
    rounded_call call = {.given = problem, .rounded = &rounded, .options = options, .kernels = kernels};
    status = ice_round(problem, kernels, problem->keys, 1, &rounded);
    if (status == ICECORE_OK) status = attend_rounded(&call, report ? report : &ice_no_report);
    ice_free_rounded(&rounded);
    return status;
}
