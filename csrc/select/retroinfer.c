/* Clusters of keys in three zones: RetroInfer (arXiv 2505.02922), its wave index.
 *
 * The keys behind the sinks are cut in segments, and each segment is put in clusters of about 16 by spherical k-means
 * of its keys less their mean.  A row sees the clusters of the segments that end before its local window.  It ranks
 * them by the score of their centroid, the mean key: those with the largest scores are attended to key by key (the
 * retrieval zone), the next ones stand as their keys at their centroid with their mean value (the estimation zone), and
 * the rest is dropped.  Sinks, and what is behind these segments, are exact (the steady zone).
 *
 * A segment in which a key or a value is not finite has no clusters and is exact, too. */
#include <string.h>

#include "attend/finite.h"
#include "base/parallel.h"
#include "base/random.h"
#include "cluster/cells.h"
#include "select/selector.h"
#include "select/threshold.h"

#define CLUSTER 16
/* The published number, the last of which only assigns keys. */
#define ITERATIONS 10

static const icecore_retroinfer *settings_of(const ice_selector_call *call) { return call->settings; }

/* Segments of which a row that sees keys 0 .. end - 1 sees the clusters. */
static int64_t segments_before(const ice_selector_call *call, int64_t end) {
    const icecore_retroinfer *s = settings_of(call);
    return end - s->local > s->sinks ? (end - s->local - s->sinks) / s->segment : 0;
}

static int64_t segment_start(const ice_selector_call *call, int64_t segment) {
    return settings_of(call)->sinks + segment * settings_of(call)->segment;
}

/* ---- Digests: clusters ---- */

/* Room: empty ones vanish. */
static int64_t max_clusters(const ice_selector_call *call) {
    return segments_before(call, call->problem->keys) * ((settings_of(call)->segment + CLUSTER - 1) / CLUSTER);
}

typedef struct {
    int64_t *first;      /* segments + 1: each one's first cluster */
    int64_t *begin;      /* clusters + 1: each one's first place in `member` */
    int32_t *member;     /* keys, cluster by cluster */
    float *log2_count;   /* clusters: of keys */
    float *centroid;     /* clusters x dim */
    char *mean_value;    /* clusters x value_dim, of ice_panel_dtype */
    size_t value_bytes;  /* of a row of these */
    icecore_dtype dtype; /* of these */
} wave_index;

static void lay_out_index(const ice_selector_call *call, void *own, ice_arena *a) {
    const icecore_attention *p = call->problem;
    const int64_t segments = segments_before(call, p->keys), clusters = max_clusters(call);
    wave_index *x = own;
    x->dtype = ice_panel_dtype(p, call->kernels);
    x->value_bytes = ice_row_bytes(x->dtype, p->value_dim);
    x->first = ice_arena_take(a, segments + 1, sizeof(int64_t));
    x->begin = ice_arena_take(a, clusters + 1, sizeof(int64_t));
    x->member = ice_arena_take(a, segments * settings_of(call)->segment, sizeof(int32_t));
    x->log2_count = ice_arena_take(a, clusters, sizeof(float));
    x->centroid = ice_arena_take(a, clusters * p->dim, sizeof(float));
    x->mean_value = ice_arena_take(a, clusters, x->value_bytes);
}

/* The mean of rows `member`, of all `count` where it is NULL. */
static void find_mean(const ice_array_rows *rows, const int32_t *member, int64_t count, float *mean) {
    double total[ICECORE_MAX_DIM] = {0};
    float buffer[ICECORE_MAX_DIM];
    for (int64_t i = 0; i < count; i++) {
        const float *row = ice_read_array_row(rows, member ? member[i] : i, buffer);
        for (int64_t t = 0; t < rows->dim; t++) total[t] += (double)row[t];
    }
    for (int64_t t = 0; t < rows->dim; t++) mean[t] = (float)(total[t] / (double)count);
}

typedef struct {
    ice_array_rows keys, values;
    float mean_key[ICECORE_MAX_DIM];
    int64_t first, count;
} segment_rows;

static const float *read_centred(const void *context, int64_t row, float *buffer) {
    const segment_rows *s = context;
    const float *key = ice_read_array_row(&s->keys, row, buffer);
    for (int64_t t = 0; t < s->keys.dim; t++) buffer[t] = key[t] - s->mean_key[t];
    return buffer;
}

static segment_rows rows_of_segment(const ice_selector_call *call, int64_t head, int64_t segment) {
    const icecore_attention *p = call->problem;
    const int64_t first = segment_start(call, segment);
    return (segment_rows){
        .keys = {call->kernels, p->key_dtype, ice_key_at(p, head, first), p->key.row_stride, p->dim},
        .values = {call->kernels, p->key_dtype, ice_value_at(p, head, first), p->value.row_stride, p->value_dim},
        .first = first,
        .count = settings_of(call)->segment};
}

static int is_finite(const ice_array_rows *rows, int64_t count) {
    const ice_numbers numbers = {rows->dtype, rows->data, rows->stride, count, rows->dim};
    return ice_all_finite(&numbers);
}

/* Appends the cells of a segment to the clusters. */
static void keep_clusters(const ice_selector_call *call, const segment_rows *s, const ice_cells *cells,
                          int64_t *clusters, wave_index *x) {
    const int64_t dim = s->keys.dim;
    float mean_value[ICECORE_MAX_DIM];
    for (int64_t i = 0; i < cells->cells; i++) {
        const int64_t n = (*clusters)++, count = cells->offset[i + 1] - cells->offset[i];
        const int32_t *member = cells->order + cells->offset[i];
        find_mean(&s->keys, member, count, x->centroid + n * dim);
        find_mean(&s->values, member, count, mean_value);
        call->kernels->from_float32(x->dtype, mean_value, x->mean_value + (size_t)n * x->value_bytes, s->values.dim);
        for (int64_t j = 0; j < count; j++) x->member[x->begin[n] + j] = (int32_t)s->first + member[j];
        x->log2_count[n] = (float)log2((double)count);
        x->begin[n + 1] = x->begin[n] + count;
    }
}

static icecore_status cluster_segment(const ice_selector_call *call, segment_rows *s, int64_t *clusters,
                                      wave_index *x) {
    const uint64_t seed = ice_range_seed(settings_of(call)->seed, s->first, s->count);
    const ice_rows rows = {.read = read_centred, .context = s, .count = s->count, .dim = s->keys.dim};
    int64_t work = INT64_MAX;
    ice_cells cells;
    find_mean(&s->keys, NULL, s->count, s->mean_key);
    icecore_status status =
        ice_cells_begin(&cells, call->kernels, rows, (ice_projection){0}, (s->count + CLUSTER - 1) / CLUSTER,
                        ITERATIONS - 1, ICE_CELLS_BY_ANGLE, seed);
    if (status != ICECORE_OK) return status;
    status = ice_cells_step(&cells, &work, ICE_WITHIN_TASK);
    if (status == ICECORE_OK) keep_clusters(call, s, &cells, clusters, x);
    ice_cells_end(&cells);
    return status;
}

static icecore_status digest(const ice_selector_call *call, int64_t head, void *digests) {
    const int64_t segments = segments_before(call, call->problem->keys);
    icecore_status status = ICECORE_OK;
    wave_index *x = digests; /* first[0] and begin[0] are 0 */
    for (int64_t i = 0; status == ICECORE_OK && i < segments; i++) {
        segment_rows s = rows_of_segment(call, head, i);
        int64_t clusters = x->first[i];
        if (is_finite(&s.keys, s.count) && is_finite(&s.values, s.count))
            status = cluster_segment(call, &s, &clusters, x);
        x->first[i + 1] = clusters;
    }
    return status;
}

/* ---- The zones of a row ---- */

typedef struct {
    const wave_index *index;
    int64_t segments[ICE_PANEL], clusters[ICE_PANEL]; /* that each lane sees; lanes see more and more */
    int64_t all_clusters;                             /* that some lane sees */
    float *rank;                                      /* all_clusters x ICE_PANEL: the centroids' scores */
    float *mass;                                      /* the same: log masses of what is estimated, -inf elsewhere */
    float *one;                                       /* clusters: 1 */
    uint64_t *open;                                   /* clusters: the lanes that retrieve each */
} space;

static void lay_out(const ice_selector_call *call, void *own, ice_arena *a) {
    const int64_t clusters = max_clusters(call);
    space *s = own;
    s->rank = ice_arena_take(a, clusters * ICE_PANEL, sizeof(float));
    s->mass = ice_arena_take(a, clusters * ICE_PANEL, sizeof(float));
    s->one = ice_arena_take(a, clusters, sizeof(float));
    s->open = ice_arena_take(a, clusters, sizeof(uint64_t));
}

static void find_seen(const ice_selector_call *call, const ice_tile *tile, space *s) {
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        const int64_t end = tile->visible[lane < tile->lanes ? lane : tile->lanes - 1].end;
        s->segments[lane] = segments_before(call, end);
        s->clusters[lane] = s->index->first[s->segments[lane]];
    }
    s->all_clusters = s->clusters[ICE_PANEL - 1];
}

/* Sinks, and what is behind a row's segments; from here on the latter is all that the tile's rows see. */
static void attend_steady(const ice_selector_call *call, ice_tile *tile, const space *s,
                          int64_t near_count[ICE_PANEL]) {
    int64_t first = call->problem->keys;
    ice_attend_counted(tile, 0, ice_min(settings_of(call)->sinks, first), near_count);
    for (int lane = 0; lane < tile->lanes; lane++) {
        ice_visible *row = &tile->visible[lane];
        row->begin = ice_min(segment_start(call, s->segments[lane]), row->end);
        near_count[lane] += row->end - row->begin;
        first = ice_min(first, row->begin);
    }
    if (first < tile->visible[tile->lanes - 1].end)
        ice_tile_attend_keys(tile, call->problem, first, tile->visible[tile->lanes - 1].end);
}

/* Segments without clusters. */
static void attend_unclustered(const ice_selector_call *call, ice_tile *tile, const space *s,
                               int64_t near_count[ICE_PANEL]) {
    for (int64_t i = 0; i < s->segments[ICE_PANEL - 1]; i++) {
        if (s->index->first[i] < s->index->first[i + 1]) continue;
        const int64_t first = segment_start(call, i), end = segment_start(call, i + 1);
        ice_run run = ice_run_of_keys(tile, call->problem, first, end, 0);
        run.unchecked = 1;
        for (int lane = 0; lane < tile->lanes; lane++) {
            if (s->segments[lane] <= i) continue;
            run.lanes |= (uint64_t)1 << lane;
            near_count[lane] += end - first;
        }
        ice_tile_attend(tile, &run);
    }
}

/* threshold[lane]: what the scores of a lane's best share of clusters reach, rounded up; equal scores together. */
static void find_threshold(const ice_tile *tile, double share, const space *s, float threshold[ICE_PANEL]) {
    float found[ICE_PANEL];
    for (int lane = 0, next; lane < tile->lanes; lane = next) { /* of as many clusters together */
        for (next = lane + 1; next < tile->lanes && s->clusters[next] == s->clusters[lane];) next++;
        const int64_t wanted = (int64_t)ceil(share * (double)s->clusters[lane]);
        ice_risk_threshold(tile->kernels, s->rank, s->all_clusters, tile->lanes, s->one,
                           ice_min(wanted, s->clusters[lane]), found);
        memcpy(threshold + lane, found + lane, (size_t)(next - lane) * sizeof *found);
    }
}

/* Those that a lane does not see are hidden from it. */
static void score_clusters(const ice_tile *tile, space *s) {
    const int64_t dim = tile->problem->dim;
    tile->kernels->scores(tile->queries, dim, tile->lanes, s->index->centroid, dim, s->all_clusters, s->rank);
    memcpy(s->mass, s->rank, (size_t)(s->all_clusters * ICE_PANEL) * sizeof *s->mass);
    ice_tile_cap(tile, s->mass, s->all_clusters);
    for (int lane = 0; lane < ICE_PANEL; lane++)
        for (int64_t i = s->clusters[lane]; i < s->all_clusters; i++)
            s->rank[i * ICE_PANEL + lane] = s->mass[i * ICE_PANEL + lane] = -INFINITY;
    for (int64_t i = 0; i < s->all_clusters; i++) s->one[i] = 1.0f;
}

static void divide_in_zones(const ice_selector_call *call, const ice_tile *tile, space *s) {
    const icecore_retroinfer *settings = settings_of(call);
    float retrieved[ICE_PANEL] = {0}, kept[ICE_PANEL] = {0};
    score_clusters(tile, s);
    find_threshold(tile, settings->retrieval, s, retrieved);
    find_threshold(tile, settings->retrieval + settings->estimation, s, kept);
    tile->kernels->open_cells(s->mass, s->rank, s->all_clusters, tile->lanes, retrieved, s->index->log2_count, s->open);
    for (int64_t i = 0; i < s->all_clusters; i++)
        for (int lane = 0; lane < ICE_PANEL; lane++)
            if (s->rank[i * ICE_PANEL + lane] < kept[lane]) s->mass[i * ICE_PANEL + lane] = -INFINITY;
}

static void attend_retrieved(const ice_selector_call *call, ice_tile *tile, int lane, const space *s,
                             int64_t near_count[ICE_PANEL]) {
    const icecore_attention *p = call->problem;
    const wave_index *x = s->index;
    const void *key[ICE_KEY_BLOCK], *value[ICE_KEY_BLOCK];
    int64_t count = 0;
    for (int64_t i = 0; i < s->clusters[lane]; i++) {
        if (!(s->open[i] >> lane & 1)) continue;
        near_count[lane] += x->begin[i + 1] - x->begin[i];
        for (int64_t j = x->begin[i]; j < x->begin[i + 1]; j++) {
            key[count] = ice_address(&p->key, p->key_dtype, tile->batch, tile->key_head, x->member[j]);
            value[count++] = ice_address(&p->value, p->key_dtype, tile->batch, tile->key_head, x->member[j]);
            if (count < ICE_KEY_BLOCK) continue;
            ice_rows_attend_gathered(tile, (uint64_t)1 << lane, key, value, count);
            count = 0;
        }
    }
    if (count > 0) ice_rows_attend_gathered(tile, (uint64_t)1 << lane, key, value, count);
}

static void add_estimated(ice_tile *tile, const space *s) {
    for (int64_t i = 0; i < s->all_clusters; i += ICE_KEY_BLOCK)
        ice_tile_add_means(tile, s->mass + i * ICE_PANEL, ice_min(s->all_clusters - i, ICE_KEY_BLOCK), s->index->dtype,
                           s->index->mean_value + (size_t)i * s->index->value_bytes);
}

static void select_zones(const ice_selector_call *call, ice_tile *tile, const void *digests, void *own,
                         int64_t near_count[ICE_PANEL]) {
    space *s = own;
    s->index = digests;
    find_seen(call, tile, s);
    attend_steady(call, tile, s, near_count);
    attend_unclustered(call, tile, s, near_count);
    if (s->all_clusters == 0) return;
    ice_tile_begin_panel(tile);
    divide_in_zones(call, tile, s);
    for (int lane = 0; lane < tile->lanes && !ice_interrupted(); lane++)
        attend_retrieved(call, tile, lane, s, near_count);
    add_estimated(tile, s);
}

static const ice_selector retroinfer = {.digests = {sizeof(wave_index), lay_out_index},
                                        .space = {sizeof(space), lay_out},
                                        .digest = digest,
                                        .select = select_zones};

icecore_status icecore_attend_retroinfer(const icecore_attention *problem, const icecore_retroinfer *options,
                                         int32_t *near_count) {
    const icecore_retroinfer *o = options;
    const ice_selector_call call = {.problem = problem, .near_keys = 1, .settings = options};
    if (o->segment < 1 || o->sinks < 0 || o->local < 0) return ICECORE_ERROR_VALUE;
    if (!(o->retrieval > 0.0 && o->estimation > 0.0 && o->retrieval + o->estimation <= 1.0)) return ICECORE_ERROR_VALUE;
    return ice_attend_selected(&call, &retroinfer, near_count);
}
