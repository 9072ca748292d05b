/* Keys sampled by collisions of hashes and weighted by their probabilities: MagicPIG (arXiv 2410.16179).
 *
 * A table's code of a vector is the signs of its projections on `bits` random directions; two vectors at an angle a
 * agree in one with the probability 1 - a / pi.  A row attends to the keys that have its code in two of the tables, and
 * each counts 1 / w times, w being the probability of that: -log w joins its score.  Sums are thus right on average
 * over directions.  The first keys, the last ones and those that are not finite are attended to in any case.
 *
 * Keys are hashed less a centre, which changes no softmax: the mean of all keys; causal, that of the blocks of keys
 * before their own. */
#include <string.h>

#include "base/parallel.h"
#include "select/kept.h"
#include "select/selector.h"
#include "tree/lists.h"

/* Keys that have a centre in common, when causal. */
#define BLOCK 64
/* Probabilities of equal signs that are smaller count as this. */
#define SMALLEST 0x1p-10
/* log2 w by sin(angle / 2), in linear pieces: off by 1e-6 and less where keys are likely. */
#define KNOTS 4096

#define MAX_BITS 16
#define MAX_TABLES 4096

typedef struct {
    int64_t bits, tables, sinks, local; /* sinks, local: first and last keys, which are always attended to */
} magicpig_settings;

typedef struct {
    float *direction; /* tables x bits x dim */
    float *log2_w;    /* KNOTS + 1 */
    float *centre;    /* centres x dim */
    float *length;    /* keys: of the key less its centre */
    int32_t *offset;  /* tables x (codes + 1) */
    int32_t *order;   /* tables x keys: by code, ascending within each */
    int32_t *odd;     /* keys that are not finite, ascending */
    int64_t *odd_count;
} hash_index;

static int64_t centre_of(const icecore_attention *p, int64_t key) { return p->causal ? key / BLOCK : 0; }

static const magicpig_settings *settings_of(const ice_selector_call *call) { return call->settings; }

static int64_t codes_of(const ice_selector_call *call) { return (int64_t)1 << settings_of(call)->bits; }

static void lay_out_index(const ice_selector_call *call, void *own, ice_arena *a) {
    const icecore_attention *p = call->problem;
    const int64_t bits = settings_of(call)->bits, tables = settings_of(call)->tables;
    hash_index *x = own;
    x->direction = ice_arena_take(a, tables * bits * p->dim, sizeof(float));
    x->log2_w = ice_arena_take(a, KNOTS + 1, sizeof(float));
    x->centre = ice_arena_take(a, (centre_of(p, p->keys) + 1) * p->dim, sizeof(float));
    x->length = ice_arena_take(a, p->keys, sizeof(float));
    x->offset = ice_arena_take(a, tables * (codes_of(call) + 1), sizeof(int32_t));
    x->order = ice_arena_take(a, tables * p->keys, sizeof(int32_t));
    x->odd = ice_arena_take(a, p->keys, sizeof(int32_t));
    x->odd_count = ice_arena_take(a, 1, sizeof(int64_t));
}

/* The probability of two collisions or more in so many tables; same: of one in one table. */
static double sampling_probability(double same, double tables) {
    if (tables * same < 1e-4) /* where the formula cancels */
        return 0.5 * tables * (tables - 1.0) * same * same * (1.0 - 2.0 / 3.0 * (tables - 2.0) * same);
    return 1.0 - pow(1.0 - same, tables) - tables * same * pow(1.0 - same, tables - 1.0);
}

static void find_log2_w(const ice_selector_call *call, float *log2_w) {
    for (int i = 0; i <= KNOTS; i++) {
        const double angle = 2.0 * asin((double)i / KNOTS), same = 1.0 - angle / 3.14159265358979323846;
        log2_w[i] =
            (float)log2(sampling_probability(pow(same > SMALLEST ? same : SMALLEST, (double)settings_of(call)->bits),
                                             (double)settings_of(call)->tables));
    }
}

/* cosine: NaN counts as 1, and so does what is that but for rounding, which the root would enlarge. */
static float log2_w_at(const float *log2_w, float cosine) {
    const float place = KNOTS * sqrtf(cosine < 0.999999f ? 0.5f - 0.5f * fmaxf(cosine, -1.0f) : 0.0f);
    const int knot = place < KNOTS - 1 ? (int)place : KNOTS - 1;
    return log2_w[knot] + (place - (float)knot) * (log2_w[knot + 1] - log2_w[knot]);
}

/* The codes of ICE_PANEL vectors in one table.  panel: dim x ICE_PANEL. */
static void find_codes(const ice_selector_call *call, const float *panel, int lanes, const float *direction,
                       uint16_t *code) {
    const int64_t dim = call->problem->dim, bits = settings_of(call)->bits;
    float projection[MAX_BITS * ICE_PANEL];
    call->kernels->scores(panel, dim, lanes, direction, dim, bits, projection);
    for (int lane = 0; lane < lanes; lane++) code[lane] = 0;
    for (int64_t bit = 0; bit < bits; bit++)
        for (int lane = 0; lane < lanes; lane++)
            code[lane] = (uint16_t)(2 * code[lane] + (projection[bit * ICE_PANEL + lane] >= 0.0f));
}

/* ---- Digests: tables of keys ---- */

typedef struct {
    float *rows, *panel; /* ICE_PANEL x dim */
    uint16_t *code;      /* tables x keys */
} workshop;

static size_t lay_out_workshop(const ice_selector_call *call, void *memory, workshop *w) {
    const int64_t dim = call->problem->dim;
    ice_arena a = {memory, 0};
    w->rows = ice_arena_take(&a, ICE_PANEL * dim, sizeof(float));
    w->panel = ice_arena_take(&a, ICE_PANEL * dim, sizeof(float));
    w->code = ice_arena_take(&a, settings_of(call)->tables * call->problem->keys, sizeof(uint16_t));
    return a.used;
}

/* Means of finite keys; the first is 0 when causal. */
static void find_centres(const ice_selector_call *call, int64_t head, hash_index *x) {
    const icecore_attention *p = call->problem;
    double total[ICECORE_MAX_DIM] = {0}, count = 0.0;
    float row[ICECORE_MAX_DIM];
    for (int64_t j = 0; j < p->keys; j++) {
        int is_finite = 1;
        ice_read_key(call, head, j, row);
        for (int64_t t = 0; t < p->dim; t++) is_finite &= fabsf(row[t]) < INFINITY;
        if (is_finite) count += 1.0;
        for (int64_t t = 0; is_finite && t < p->dim; t++) total[t] += (double)row[t];
        const int64_t next = p->causal ? centre_of(p, j + 1) : 0;
        for (int64_t t = 0; (p->causal ? next > centre_of(p, j) : j + 1 == p->keys) && t < p->dim; t++)
            x->centre[next * p->dim + t] = (float)(total[t] / (count > 0.0 ? count : 1.0));
    }
}

static void centre_key(const ice_selector_call *call, int64_t head, int64_t key, hash_index *x, float *row) {
    const int64_t dim = call->problem->dim;
    const float *centre = x->centre + centre_of(call->problem, key) * dim;
    double squared = 0.0;
    ice_read_key(call, head, key, row);
    for (int64_t t = 0; t < dim; t++) {
        row[t] -= centre[t];
        squared += (double)row[t] * (double)row[t];
    }
    x->length[key] = (float)sqrt(squared);
    if (!(x->length[key] < INFINITY)) x->odd[(*x->odd_count)++] = (int32_t)key;
}

static void hash_keys(const ice_selector_call *call, int64_t head, hash_index *x, workshop *w) {
    const int64_t keys = call->problem->keys, dim = call->problem->dim, bits = settings_of(call)->bits;
    for (int64_t first = 0; first < keys; first += ICE_PANEL) {
        const int count = (int)ice_min(keys - first, ICE_PANEL);
        const float *row[ICE_PANEL];
        for (int j = 0; j < ICE_PANEL; j++) row[j] = w->rows + (j < count ? j : count - 1) * dim;
        for (int j = 0; j < count; j++) centre_key(call, head, first + j, x, w->rows + j * dim);
        call->kernels->to_panel(row, dim, w->panel);
        for (int64_t table = 0; table < settings_of(call)->tables; table++)
            find_codes(call, w->panel, count, x->direction + table * bits * dim, w->code + table * keys + first);
    }
}

/* A table's keys by code. */
static void sort_keys(const uint16_t *code, int64_t keys, int64_t codes, int32_t *offset, int32_t *order) {
    for (int64_t i = 0; i <= codes; i++) offset[i] = 0;
    for (int64_t j = 0; j < keys; j++) offset[code[j] + 1]++;
    for (int64_t i = 0; i < codes; i++) offset[i + 1] += offset[i];
    for (int64_t j = 0; j < keys; j++) order[offset[code[j]]++] = (int32_t)j;
    for (int64_t i = codes; i > 0; i--) offset[i] = offset[i - 1];
    offset[0] = 0;
}

static icecore_status digest(const ice_selector_call *call, int64_t head, void *digests) {
    const int64_t keys = call->problem->keys, dim = call->problem->dim, tables = settings_of(call)->tables;
    hash_index *x = digests;
    workshop w;
    void *memory = ice_alloc(1, lay_out_workshop(call, NULL, &w));
    if (!memory) return ICECORE_ERROR_MEMORY;
    lay_out_workshop(call, memory, &w);
    ice_lists_directions(call->seed, tables * settings_of(call)->bits, dim, x->direction);
    find_log2_w(call, x->log2_w);
    find_centres(call, head, x);
    hash_keys(call, head, x, &w);
    for (int64_t table = 0; table < tables; table++)
        sort_keys(w.code + table * keys, keys, codes_of(call), x->offset + table * (codes_of(call) + 1),
                  x->order + table * keys);
    ice_free(memory);
    return ICECORE_OK;
}

/* ---- What a row attends to ---- */

typedef struct {
    const hash_index *index;
    float *panel;        /* dim x ICE_PANEL: the rows */
    uint16_t *code;      /* tables x ICE_PANEL */
    float *centre_score; /* centres */
    uint8_t *hits;       /* keys: collisions, at most 2 */
    float *bias;         /* keys */
    ice_kept kept;
} space;

static void lay_out(const ice_selector_call *call, void *own, ice_arena *a) {
    const icecore_attention *p = call->problem;
    space *s = own;
    s->panel = ice_arena_take(a, ICE_PANEL * p->dim, sizeof(float));
    s->code = ice_arena_take(a, settings_of(call)->tables * ICE_PANEL, sizeof(uint16_t));
    s->centre_score = ice_arena_take(a, centre_of(p, p->keys) + 1, sizeof(float));
    s->hits = ice_arena_take(a, p->keys, 1);
    s->bias = ice_arena_take(a, p->keys, sizeof(float));
    s->kept.score = ice_arena_take(a, p->keys, sizeof(float));
    s->kept.number = ice_arena_take(a, p->keys, sizeof(int32_t));
}

static void hash_rows(const ice_selector_call *call, const ice_tile *tile, space *s) {
    const int64_t dim = call->problem->dim, bits = settings_of(call)->bits;
    const float *row[ICE_PANEL];
    for (int lane = 0; lane < ICE_PANEL; lane++)
        row[lane] = tile->query_rows + (lane < tile->lanes ? lane : tile->lanes - 1) * dim;
    call->kernels->to_panel(row, dim, s->panel);
    for (int64_t table = 0; table < settings_of(call)->tables; table++)
        find_codes(call, s->panel, tile->lanes, s->index->direction + table * bits * dim, s->code + table * ICE_PANEL);
}

static void keep(space *s, int64_t key) {
    if (s->hits[key] >= 2) return;
    s->hits[key] = 2;
    s->kept.number[s->kept.count++] = (int32_t)key;
}

/* Keys that a row attends to in any case. */
static void keep_always(const ice_selector_call *call, int64_t end, space *s) {
    const int64_t sinks = ice_min(settings_of(call)->sinks, end), local = ice_min(settings_of(call)->local, end);
    for (int64_t key = 0; key < sinks; key++) keep(s, key);
    for (int64_t key = end - local; key < end; key++) keep(s, key);
    for (int64_t i = 0; i < *s->index->odd_count && s->index->odd[i] < end; i++) keep(s, s->index->odd[i]);
}

static void keep_collisions(const ice_selector_call *call, int lane, int64_t end, space *s) {
    const int64_t keys = call->problem->keys, codes = codes_of(call);
    for (int64_t table = 0; table < settings_of(call)->tables; table++) {
        const int32_t *offset = s->index->offset + table * (codes + 1) + s->code[table * ICE_PANEL + lane];
        const int32_t *order = s->index->order + table * keys;
        for (int32_t i = offset[0]; i < offset[1] && order[i] < end; i++) {
            const int32_t key = order[i];
            if (s->hits[key] == 1) keep(s, key);
            else s->hits[key] |= 1; /* 2 becomes 3 */
        }
    }
}

/* -log2 w of the keys from number `first` on; those before have none. */
static void find_bias(const ice_selector_call *call, const ice_tile *tile, int lane, int64_t first, space *s) {
    const icecore_attention *p = call->problem;
    const float *query = tile->query_rows + lane * p->dim;
    double squared = 0.0;
    for (int64_t t = 0; t < p->dim; t++) squared += (double)query[t] * (double)query[t];
    const float length = (float)sqrt(squared);
    call->kernels->row_scores(query, p->dim, ICECORE_FLOAT32, s->index->centre, p->dim,
                              centre_of(p, tile->visible[lane].end - 1) + 1, s->centre_score);
    for (int64_t i = 0; i < first; i++) s->bias[i] = 0.0f;
    for (int64_t i = first; i < s->kept.count; i++) {
        const int64_t key = s->kept.number[i];
        const float lengths = length * s->index->length[key],
                    score = s->kept.score[i] - s->centre_score[centre_of(p, key)];
        s->bias[i] = -log2_w_at(s->index->log2_w, lengths > 0.0f ? score / lengths : 0.0f);
    }
}

static void select_collisions(const ice_selector_call *call, ice_tile *tile, const void *digests, void *own,
                              int64_t near_count[ICE_PANEL]) {
    space *s = own;
    s->index = digests;
    hash_rows(call, tile, s);
    for (int lane = 0; lane < tile->lanes && !ice_interrupted(); lane++) {
        const int64_t end = tile->visible[lane].end;
        if (end == 0) continue;
        memset(s->hits, 0, (size_t)end);
        s->kept.count = 0;
        keep_always(call, end, s);
        const int64_t always = s->kept.count;
        keep_collisions(call, lane, end, s);
        ice_kept_score(tile, lane, &s->kept);
        find_bias(call, tile, lane, always, s);
        near_count[lane] = s->kept.count;
        ice_kept_attend(tile, lane, &s->kept, s->bias);
    }
}

static const ice_selector magicpig = {.digests = {sizeof(hash_index), lay_out_index},
                                      .space = {sizeof(space), lay_out},
                                      .digest = digest,
                                      .select = select_collisions};

icecore_status icecore_attend_magicpig(const icecore_attention *problem, int64_t bits, int64_t tables, int64_t sinks,
                                       int64_t local, uint64_t seed, int32_t *near_count) {
    const magicpig_settings settings = {bits, tables, sinks, local};
    const ice_selector_call call = {.problem = problem, .near_keys = 1, .seed = seed, .settings = &settings};
    const int fits = bits >= 1 && bits <= MAX_BITS && tables >= 2 && tables <= MAX_TABLES;
    if (!fits || sinks < 0 || local < 1) return ICECORE_ERROR_VALUE;
    return ice_attend_selected(&call, &magicpig, near_count);
}
