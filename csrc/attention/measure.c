#include "attention/measure.h"

#include <math.h>
#include <string.h>

#include "attend/panel.h"
#include "attention/near_far_tile.h"
#include "base/parallel.h"

/* So many rows, with what is left of older ones, are the least that a threshold is chosen by. */
#define MIN_ROWS 8.0
/* Rows whose error is so many times the tolerance by the rule in force are of another kind than those before. */
#define SURPRISE 4.0
/* Queries that are so many times as long as the longest measured are unlike them: their softmax is as much sharper. */
#define LONGER 1.5f
/* Curves are traced down to so small a part of the tolerance, and whole where no threshold up to there passes.  (Of
 * the thresholds chosen for SmolLM2 at 8k none lies beyond, at 32k one in fifty; of the pairs of rows and cells a sixth
 * does not.) */
#define TRACED 64.0f
/* What a row's keys and nodes may cost more than by the loosest threshold that passes, for rows unlike those that were
 * measured.  (Of 300 made-up heads, 5 % were above 1.3 x the tolerance without it, 2 % with it.) */
#define SPARE 0.05

/* Before more rows are known, one more may miss as much as any of these did by a threshold so many levels looser, twice
 * as loose.  (Where single rows miss a key of half their mass, the standard error of those few that were met says too
 * little: without it made-up pictures at 0.005 were at 2 to 3.8 x the tolerance.) */
#define LOOSER 4

/* A head is exact on rounded numbers where it may be off by so many times what rounding was found to do: other rows may
 * be off by more than these few. */
#define ROUNDING_MARGIN 2.0

static double threshold_at(int level) { return exp2(ICE_LOG2_FIRST - ICE_LOG2_STEP * level); }

/* The level of a threshold that need not be on the grid. */
static int nearest_level(float threshold) {
    const double level = (ICE_LOG2_FIRST - log2((double)threshold)) / ICE_LOG2_STEP + 0.5;
    if (level < 0.0) return 0;
    return level < ICE_GRID ? (int)level : ICE_GRID - 1;
}

/* So many levels that the thresholds in force, and those that are likely to follow them, are among them. */
static int levels_for(const ice_sample *s, const ice_rule *rules, int64_t group) {
    int levels = 1;
    for (int64_t i = 0; i < group; i++) {
        const int last = nearest_level(ice_tolerance_of(s->options, s->key_head * group + i) / TRACED);
        const int own = rules[i].exact == ICE_UNKNOWN ? 0 : nearest_level(rules[i].threshold);
        levels = own + 1 > levels ? own + 1 : levels;
        levels = last + 1 > levels ? last + 1 : levels;
    }
    return levels;
}

/* By least squares: the one row whose means miss a large key must not spoil the mass of all others, as it would by the
 * ratio of both sums. */
static double mass_scale(const ice_measured *m, int g) {
    return m->means[g] > 0.0 && m->far[g] > 0.0 ? m->far[g] / m->means[g] : 1.0;
}

/* The mean of (error of rounding / |o|)^2. */
static double squared_rounding(const ice_measured *m) {
    return m->rounding_weight > 0.0 ? m->rounding / m->rounding_weight : 0.0;
}

/* The error of a row at a level, rounding and the mass included. */
static double error_at(const ice_curve *row, int g, double scale, const ice_measured *m) {
    const double mass = (double)row->means[g] * scale - (double)row->far[g],
                 norm = (double)row->norm * (double)row->norm;
    return sqrt((double)row->distance[g] + norm * (ICE_MASS_SHARE * mass * mass + squared_rounding(m)));
}

static int is_usable(const ice_curve *row) {
    if (!isfinite(row->norm)) return 0;
    for (int g = 0; g < ICE_GRID; g++)
        if (!isfinite(row->distance[g]) || !isfinite(row->means[g]) || !isfinite(row->far[g])) return 0;
    return 1;
}

static double error_by(const ice_measured *m, const ice_rule *rule, const ice_curve *row) {
    if (rule->exact == ICE_ROUNDED) return sqrt(squared_rounding(m)) * (double)row->norm;
    return rule->exact ? 0.0 : error_at(row, nearest_level(rule->threshold), exp2((double)rule->log2_mass), m);
}

void ice_add_error(ice_error_sums *sums, double weight, double error, double norm) {
    sums->error += weight * error;
    sums->norm += weight * norm;
    sums->squared += weight * weight * error * error;
    sums->cross += weight * weight * error * norm;
    sums->squared_norm += weight * weight * norm * norm;
    sums->rows++;
}

static void test_row(ice_measured *m, const ice_rule *rule, const ice_curve *row, double weight) {
    if (rule->exact == ICE_UNKNOWN) return; /* nothing was in force */
    const double error = ice_is_unlike(rule, row->squared_query) ? 0.0 : error_by(m, rule, row),
                 norm = (double)row->norm;
    ice_add_error(&m->tested, weight, error, norm);
}

/* What earlier rows weigh beside these, `group` apart: no more than the fewest when these are of another kind. */
static double fading_of(const ice_sample *s, const ice_curve *found, int64_t group, float tolerance,
                        const ice_measured *m, const ice_rule *rule) {
    double error = 0.0, norm = 0.0;
    for (int64_t row = 0; row < s->count * group; row += group) {
        if (!is_usable(&found[row])) continue;
        error += error_by(m, rule, &found[row]);
        norm += (double)found[row].norm;
    }
    const int surprised = error > SURPRISE * (double)tolerance * norm;
    return surprised && m->rows * s->fading > MIN_ROWS ? MIN_ROWS / m->rows : s->fading;
}

static void add_masses(ice_measured *m, const ice_curve *row) {
    for (int g = 0; g < ICE_GRID; g++) {
        m->means[g] += (double)row->means[g] * (double)row->means[g];
        m->far[g] += (double)row->means[g] * (double)row->far[g];
    }
    if (row->rounding >= 0.0f && row->norm > 0.0f && isfinite(row->rounding)) {
        m->rounding += (double)row->rounding / ((double)row->norm * (double)row->norm);
        m->rounding_weight += 1.0;
    }
}

static void add_errors(ice_measured *m, const ice_curve *row, double keys, double exact) {
    const double norm = (double)row->norm;
    m->exact += exact;
    m->rows += 1.0;
    m->norm += norm;
    m->squared_norm += norm * norm;
    m->keys += keys;
    for (int g = 0; g < ICE_GRID; g++) {
        const double error = error_at(row, g, mass_scale(m, g), m);
        m->error[g] += error;
        m->largest[g] = fmax(m->largest[g], error);
        m->squared[g] += error * error;
        m->cross[g] += error * norm;
        m->near[g] += (double)row->near[g];
        m->nodes[g] += (double)row->nodes[g];
    }
}

/* Rows that had no part in the choice of a level, at that level and at finer ones. */
static void add_later_errors(ice_measured *m, const ice_curve *row) {
    for (int i = 0; i < ICE_FINER; i++) {
        const int g = m->level + i < ICE_GRID ? m->level + i : ICE_GRID - 1;
        m->later_error[i] += error_at(row, g, mass_scale(m, g), m);
    }
    m->later_rows += 1.0;
    m->later_norm += (double)row->norm;
}

/* A few long queries say nothing yet of what others like them need. */
static void add_length(ice_measured *m, const ice_rule *rule, const ice_curve *row) {
    float *maximum = &m->max_squared;
    if (ice_is_unlike(rule, row->squared_query)) {
        maximum = &m->max_longer;
        m->longer_rows += 1.0;
    }
    *maximum = fmaxf(*maximum, row->squared_query);
    if (m->longer_rows < MIN_ROWS) return;
    m->max_squared = m->max_longer;
    m->longer_rows = 0.0;
    m->max_longer = 0.0f;
}

/* Rows so far weigh less. */
static void fade(ice_measured *m, double fading) {
    double *once[] = {&m->rows,       &m->norm,        &m->keys,     &m->exact,          &m->later_rows,
                      &m->later_norm, &m->longer_rows, &m->rounding, &m->rounding_weight};
    double *each[] = {m->error, m->largest, m->means, m->far, m->near, m->nodes}, *squares[] = {m->squared, m->cross};
    for (size_t i = 0; i < sizeof once / sizeof *once; i++) *once[i] *= fading;
    m->max_squared *= (float)fading;
    m->squared_norm *= fading * fading;
    for (int g = 0; g < ICE_GRID; g++) {
        for (size_t i = 0; i < sizeof each / sizeof *each; i++) each[i][g] *= fading;
        for (size_t i = 0; i < sizeof squares / sizeof *squares; i++) squares[i][g] *= fading * fading;
    }
    for (int i = 0; i < ICE_FINER; i++) m->later_error[i] *= fading;
}

/* All but what was tested. */
static void forget(ice_measured *m) {
    *m = (ice_measured){.rounding = m->rounding, .rounding_weight = m->rounding_weight, .tested = m->tested};
}

double ice_standard_error(const ice_error_sums *x) {
    const double ratio = x->error / x->norm,
                 variance = x->squared - 2.0 * ratio * x->cross + ratio * ratio * x->squared_norm;
    return sqrt(fmax(variance, 0.0)) / x->norm;
}

/* What the error at a level may be above that of the rows: a standard error, or one row more that misses. */
static double doubt_at(const ice_measured *m, int g) {
    const ice_error_sums rows = {m->error[g], m->norm, m->squared[g], m->cross[g], m->squared_norm, 0};
    return fmax(ice_standard_error(&rows), m->largest[g > LOOSER ? g - LOOSER : 0] / m->norm);
}

/* The loosest level such that it and all finer ones keep the tolerance with its doubt added; -1 where the finest does
 * not. */
static int passing_level(const ice_measured *m, double tolerance) {
    int passing = -1;
    for (int g = ICE_GRID - 1; g >= 0; g--) {
        if (!(m->error[g] / m->norm + doubt_at(m, g) <= tolerance)) break;
        passing = g;
    }
    return passing;
}

/* So many levels below those that were chosen, and at all finer ones, later rows have kept the tolerance; ICE_FINER
 * where they have at none that was tried. */
static int caution_of(const ice_measured *m, double tolerance) {
    int finer = ICE_FINER;
    while (finer > 0 && m->later_error[finer - 1] <= tolerance * m->later_norm) finer--;
    return m->later_rows >= MIN_ROWS ? finer : 0;
}

static double price(float given) { return given > 0.0f ? (double)given : 1.0; }

/* What near keys and nodes cost the rows at a level, by keys of exact attention. */
static double cost_at(const ice_measured *m, int g, const icecore_near_far *options) {
    return price(options->near_price) * m->near[g] + price(options->node_price) * m->nodes[g];
}

/* The finest level that costs little more than the given one, of those that were traced. */
static int finest_for_little(const ice_measured *m, int level, int levels, const icecore_near_far *options) {
    const double cost = cost_at(m, level, options), most = cost + SPARE * (cost + m->exact);
    while (level + 1 < levels && cost_at(m, level + 1, options) <= most) level++;
    return level;
}

/* How a head is exact. */
static uint8_t exactly(const ice_measured *m, const ice_sample *s, double tolerance) {
    const int is_rounded = m->rounding_weight > 0.0 && s->problem->key.data;
    return is_rounded && ROUNDING_MARGIN * sqrt(squared_rounding(m)) <= tolerance ? ICE_ROUNDED : ICE_EXACT;
}

/* The rule that the rows speak for, whose curves have so many levels.  Returns whether they should be traced again with
 * all cells scored. */
static int renew(ice_measured *m, ice_rule *rule, int levels, double tolerance, const ice_sample *s) {
    const icecore_near_far *options = s->options;
    const uint8_t exact = exactly(m, s, tolerance);
    m->level = passing_level(m, tolerance);
    if (m->level < 0 && !rule->all_cells) return 1;
    rule->exact = m->level < 0 ? exact : ICE_NOT_EXACT;
    if (m->level < 0) return 0;
    const int cautious = m->level + caution_of(m, tolerance);
    const int level = finest_for_little(m, cautious < levels ? cautious : levels - 1, levels, options);
    const double key = exact == ICE_ROUNDED ? price(options->rounded_price) : 1.0;
    if (cost_at(m, level, options) >= key * m->keys) rule->exact = exact;
    rule->threshold = (float)threshold_at(level);
    rule->log2_mass = (float)log2(mass_scale(m, level));
    rule->max_squared = LONGER * LONGER * m->max_squared;
    return 0;
}

/* What measuring a key head's rows needs: of its query heads, but for the curves. */
typedef struct {
    ice_curve *found; /* count x query heads */
    ice_rule *traced;
    ice_measured *before;
    uint8_t *again;
    void *scratch; /* of tracing */
} measuring;

/* Measures and lays out by the same code. */
static void lay_out(measuring *own, const icecore_attention *problem, int64_t levels, int64_t nodes, int64_t count,
                    ice_arena *a) {
    const int64_t group = ice_group(problem);
    own->found = ice_arena_take(a, count * group, sizeof *own->found);
    own->traced = ice_arena_take(a, group, sizeof *own->traced);
    own->before = ice_arena_take(a, group, sizeof *own->before);
    own->again = ice_arena_take(a, group, sizeof *own->again);
    own->scratch = ice_arena_take(a, 1, ice_trace_bytes(problem, levels, nodes));
}

size_t ice_measure_bytes(const icecore_attention *problem, int64_t levels, int64_t nodes, int64_t count) {
    measuring none;
    ice_arena arena = {NULL, 0};
    lay_out(&none, problem, levels, nodes, count, &arena);
    return arena.used;
}

/* Of a sampled row. */
static double exact_keys(const ice_sample *s, int64_t position) {
    const int64_t end = s->problem->causal ? position + 1 : s->problem->keys;
    return (double)(s->exact.sink_end + end - s->exact.open_begin);
}

/* What a head's rows are traced for once more: all levels; by another rule (parents are trusted again, and first
 * halves; rows in halves are read whole; parents are not trusted). */
enum { SETTLED, WHOLE, ANEW };

/* The rows of one query head, `group` apart, whose curves of so many levels were traced by its rule, renew it.  Returns
 * what they should be traced for. */
static uint8_t learn(const ice_sample *s, const ice_curve *found, int levels, float tolerance, ice_measured *m,
                     ice_rule *rule) {
    const int64_t group = ice_group(s->problem), rows = s->count * group;
    for (int64_t row = 0; row < rows; row += group)
        if (is_usable(&found[row])) add_masses(m, &found[row]);
    for (int64_t row = 0; row < rows && m->rows > 0.0 && m->level >= 0; row += group)
        if (is_usable(&found[row]) && !ice_is_unlike(rule, found[row].squared_query)) add_later_errors(m, &found[row]);
    for (int64_t row = 0; row < rows; row += group) {
        if (!is_usable(&found[row])) continue;
        add_errors(m, &found[row], (double)s->stack->keys, exact_keys(s, s->position[row / group]));
        add_length(m, rule, &found[row]);
    }
    if (((double)s->count < MIN_ROWS && m->rows < MIN_ROWS) || !(m->norm > 0.0)) return SETTLED;
    const int level = passing_level(m, (double)tolerance);
    if (levels < ICE_GRID && (level < 0 || level + caution_of(m, (double)tolerance) >= levels)) return WHOLE;
    const int failed = renew(m, rule, levels, (double)tolerance, s);
    if (rule->halves && ice_has_halves(s->stack) && (failed || rule->exact)) {
        rule->halves = 0;
        rule->exact = ICE_EXACT;
        if ((double)s->count >= MIN_ROWS) return ANEW;
    } else if (!failed) {
        return SETTLED;
    }
    rule->all_cells = 1;
    rule->exact = exactly(m, s, (double)tolerance); /* until enough rows are known that score all cells */
    return ANEW;
}

/* The first pass over a head's rows: they test the rule in force, and renew it.  *before: what was measured of rows
 * before these. */
static uint8_t test_and_learn(const ice_sample *s, const ice_curve *found, int levels, float tolerance, ice_measured *m,
                              ice_rule *rule, ice_measured *before) {
    const int64_t group = ice_group(s->problem), rows = s->count * group;
    for (int64_t row = 0; row < rows; row += group)
        if (is_usable(&found[row])) test_row(m, rule, &found[row], s->stands_for);
    if (s->renew && (rule->all_cells || (!rule->halves && ice_has_halves(s->stack)))) {
        rule->all_cells = 0;
        rule->halves = 1;
        return ANEW;
    }
    fade(m, fading_of(s, found, group, tolerance, m, rule));
    *before = *m;
    return learn(s, found, levels, tolerance, m, rule);
}

void ice_measure(const ice_sample *s, ice_measured *measured, ice_rule *rules, void *scratch) {
    const int64_t group = ice_group(s->problem), rows = s->count * group, first_head = s->key_head * group;
    const int with_rounding = s->renew && s->given->key_dtype != s->problem->key_dtype;
    if (!s->stack->nodes || rows == 0) return;
    measuring own;
    ice_arena arena = {scratch, 0};
    lay_out(&own, s->problem, s->stack->levels, s->stack->nodes, s->count, &arena);
    const int levels = levels_for(s, rules, group);
    memcpy(own.traced, rules, (size_t)group * sizeof *own.traced);
    ice_trace(s, own.traced, levels, own.found, with_rounding, own.scratch);
    if (ice_interrupted()) return; /* what was found is not whole */
    int left = 0;
    for (int64_t i = 0; i < group; i++) {
        own.again[i] = test_and_learn(s, own.found + i, levels, ice_tolerance_of(s->options, first_head + i),
                                      &measured[i], &rules[i], &own.before[i]);
        left |= own.again[i];
    }
    while (left) {
        memcpy(own.traced, rules, (size_t)group * sizeof *own.traced);
        ice_trace(s, own.traced, ICE_GRID, own.found, 0, own.scratch);
        left = 0;
        const int interrupted = ice_interrupted();
        for (int64_t i = 0; i < group; i++) {
            if (own.again[i] == SETTLED) continue;
            if (interrupted) {
                rules[i].all_cells = 1;
                continue;
            }
            if (own.again[i] == WHOLE) measured[i] = own.before[i];
            else forget(&measured[i]);
            own.again[i] = learn(s, own.found + i, ICE_GRID, ice_tolerance_of(s->options, first_head + i), &measured[i],
                                 &rules[i]);
            left |= own.again[i];
        }
    }
    for (int64_t i = 0; i < group && !s->problem->causal; i++) /* there is nothing to test but what decided */
        for (int64_t row = i; row < rows; row += group)
            if (is_usable(&own.found[row])) test_row(&measured[i], &rules[i], &own.found[row], s->stands_for);
}

void ice_report_error(const icecore_report *report, int64_t head, const ice_error_sums *tested) {
    const int known = tested->norm > 0.0;
    if (report->error) report->error[head] = known ? (float)(tested->error / tested->norm) : NAN;
    if (report->standard_error) report->standard_error[head] = known ? (float)ice_standard_error(tested) : NAN;
    if (report->error_rows) report->error_rows[head] = (int32_t)tested->rows;
}
