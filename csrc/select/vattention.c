/* The largest scores and a sample of the rest whose size keeps a promise: vAttention (arXiv 2510.05688).
 *
 * A row attends to the first keys, the last ones that it sees, and of those between to the near_keys with the largest
 * scores.  Of the n that are left it attends to a uniform sample, without replacement, in which each of b keys stands
 * for n / b: the sum of its weights is then unbiased.  A first sample gives the mean and the deviation s of these
 * weights, and with them D, an estimate of the sum of all weights.  By the central limit theorem
 *   b = (z n s / (epsilon D))^2,  z the normal deviate that is exceeded, to both sides, with probability delta
 * keys keep the sum within epsilon D but for a share delta of samples.  The sample is the first one, gone on with until
 * it has b keys. */
#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "base/random.h"
#include "select/largest.h"

/* The first sample: one key in so many of the rest, and at least so many keys. */
#define BASE_STEP 40
#define MIN_BASE 32

typedef struct {
    int64_t sinks, window;
    double epsilon;
    double deviate; /* that a normal number exceeds, to both sides, with probability delta */
} sample_settings;

typedef struct {
    ice_largest largest;
    uint8_t *is_taken; /* of each key */
    int32_t *number;   /* of keys: those that are always attended to, then the rest, the sample first */
    float *score;      /* of the first of them */
    float *weighed;    /* scores with the soft cap */
} space;

static void lay_out(const ice_selector_call *call, void *own, ice_arena *a) {
    const int64_t keys = call->problem->keys;
    space *s = own;
    ice_largest_lay_out(call, &s->largest, a);
    s->is_taken = ice_arena_take(a, keys, 1);
    s->number = ice_arena_take(a, keys, sizeof(int32_t));
    s->score = ice_arena_take(a, keys, sizeof(float));
    s->weighed = ice_arena_take(a, keys, sizeof(float));
}

/* Lays out the row's keys in `number` and returns how many are always attended to: those before sink_end, from
 * window_begin on, and the ones in `largest`. */
static int64_t order_keys(space *s, const ice_kept *largest, int64_t sink_end, int64_t window_begin, int64_t end) {
    int64_t count = 0, rest;
    for (int64_t key = 0; key < sink_end; key++) s->number[count++] = (int32_t)key;
    for (int64_t key = window_begin; key < end; key++) s->number[count++] = (int32_t)key;
    for (int64_t i = 0; i < largest->count; i++) {
        s->is_taken[largest->number[i]] = 1;
        s->number[count++] = largest->number[i];
    }
    rest = count;
    for (int64_t key = sink_end; key < window_begin; key++)
        if (!s->is_taken[key]) s->number[rest++] = (int32_t)key;
    for (int64_t i = 0; i < largest->count; i++) s->is_taken[largest->number[i]] = 0;
    return count;
}

/* Goes on with a shuffle of `count` numbers, so that the first `end` of them are as sampled. */
static void sample(int32_t *number, int64_t count, int64_t first, int64_t end, uint64_t *state) {
    for (int64_t i = first; i < end; i++) {
        const int64_t j = i + (int64_t)ice_random_below(state, (uint64_t)(count - i));
        const int32_t other = number[j];
        number[j] = number[i];
        number[i] = other;
    }
}

/* How many of the `rest` keys are sampled, by the scores of `fixed` keys and of the `base` first samples behind them.
 * Where the largest score is not finite no size keeps a promise, and the first sample is all. */
static int64_t sample_size(const sample_settings *settings, const float *score, int64_t fixed, int64_t base,
                           int64_t rest) {
    double maximum = -INFINITY, sum = 0.0, mean = 0.0, squares = 0.0;
    for (int64_t i = 0; i < fixed + base; i++) maximum = score[i] > maximum ? (double)score[i] : maximum;
    if (!(fabs(maximum) < INFINITY) || base < 2) return base;
    for (int64_t i = 0; i < fixed; i++) sum += exp2((double)score[i] - maximum);
    for (int64_t i = fixed; i < fixed + base; i++) mean += exp2((double)score[i] - maximum) / (double)base;
    for (int64_t i = fixed; i < fixed + base; i++) {
        const double off = exp2((double)score[i] - maximum) - mean;
        squares += off * off / (double)(base - 1);
    }
    const double total = sum + (double)rest * mean,
                 root = settings->deviate * (double)rest * sqrt(squares) / (settings->epsilon * total);
    const double size = ceil(root * root);
    if (size >= (double)rest) return rest;
    return (int64_t)size > base ? (int64_t)size : base;
}

static int64_t attend_row(const ice_selector_call *call, ice_tile *tile, int lane, space *s) {
    const sample_settings *settings = call->settings;
    const icecore_attention *p = call->problem;
    const int64_t end = tile->visible[lane].end, sink_end = ice_min(settings->sinks, end),
                  window_begin = end - ice_min(settings->window, end - sink_end);
    const ice_row row = ice_tile_row(tile, lane);
    const int64_t fixed = order_keys(s, &s->largest.kept[lane], sink_end, window_begin, end), rest = end - fixed;
    const int64_t share = (rest + BASE_STEP - 1) / BASE_STEP, base = ice_min(ice_max(share, MIN_BASE), rest);
    uint64_t state = ice_range_seed(call->seed, p->keys - p->queries + row.query, row.head);
    ice_kept always = {s->score, s->number, fixed + base}, sampled = {s->score + fixed, s->number + fixed, base};
    sample(sampled.number, rest, 0, base, &state);
    ice_kept_score(tile, lane, &always);
    memcpy(s->weighed, s->score, (size_t)always.count * sizeof *s->score);
    ice_tile_cap_row(tile, s->weighed, always.count);
    const int64_t size = sample_size(settings, s->weighed, fixed, base, rest);
    sample(sampled.number, rest, base, size, &state);
    ice_kept added = {sampled.score + base, sampled.number + base, size - base};
    ice_kept_score(tile, lane, &added);
    always.count = fixed;
    sampled.count = size;
    ice_kept_attend(tile, lane, &always, NULL);
    for (int64_t i = 0; i < size; i++) s->weighed[i] = (float)log2((double)rest / (double)size);
    ice_kept_attend(tile, lane, &sampled, s->weighed);
    return fixed + size;
}

static void select_and_sample(const ice_selector_call *call, ice_tile *tile, const void *digests, void *own,
                              int64_t near_count[ICE_PANEL]) {
    const sample_settings *settings = call->settings;
    space *s = own;
    (void)digests;
    memset(s->is_taken, 0, (size_t)call->problem->keys);
    ice_find_largest(call, tile, settings->sinks, settings->window, &s->largest);
    for (int lane = 0; lane < tile->lanes && !ice_interrupted(); lane++)
        near_count[lane] = attend_row(call, tile, lane, s);
}

static const ice_selector vattention = {.space = {sizeof(space), lay_out}, .select = select_and_sample};

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
    if (o->sinks < 0 || o->window < 0) return ICECORE_ERROR_VALUE;
    if (!(o->epsilon > 0.0 && o->epsilon < 1.0 && o->delta > 0.0 && o->delta < 1.0)) return ICECORE_ERROR_VALUE;
    const sample_settings settings = {o->sinks, o->window, o->epsilon, normal_deviate(o->delta)};
    const ice_selector_call call = {
        .problem = problem, .near_keys = o->near_keys, .seed = o->seed, .settings = &settings};
    return ice_attend_selected(&call, &vattention, near_count);
}
