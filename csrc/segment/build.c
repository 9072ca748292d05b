/* Building a segment: sampled parents, nearest parent, one Lloyd step, nearest parent again, cells.
 *
 * Keys are the panel's lanes and parents its "keys": |x - p|^2 is smallest where x.p - |p|^2 / 2 is largest, so assignment is the
 * score kernel and a running maximum. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "segment/segment.h"

uint64_t ice_segment_seed(uint64_t seed, int64_t first, int64_t count) {
    uint64_t state = seed ^ ((uint64_t)first * 0x9E3779B97F4A7C15u) ^ ((uint64_t)count << 32);
    return ice_random(&state);
}

void icecore_segment_free(icecore_segment *s) {
    if (!s || atomic_fetch_sub(&s->owners, 1) > 1) return;
    ice_free(s->offset);
    ice_free(s->order);
    ice_free(s->keys);
    ice_free(s->values);
    ice_free(s->mean_key);
    ice_free(s->mean_value);
    ice_free(s->variance);
    ice_free(s->radius);
    ice_free(s->log2_count);
    ice_free(s);
}

icecore_segment *ice_segment_share(icecore_segment *s) {
    if (s) atomic_fetch_add(&s->owners, 1);
    return s;
}

icecore_segment_view icecore_segment_get(const icecore_segment *s) {
    return (icecore_segment_view){s->count,    s->cells,      s->dim,      s->value_dim, s->offset,     s->order,     s->keys,
                                  s->values,   s->mean_key,   s->mean_value, s->variance, s->radius, s->log2_count};
}

/* Working memory of a build: everything in input order. */
typedef struct {
    const ice_kernels *kernels;
    int64_t count, cells, dim, value_dim;
    float *keys, *values;        /* inputs as float32 */
    float *parents;              /* cells x dim */
    float *bias;                 /* cells: -|parent|^2 / 2 */
    int32_t *label;              /* count: the cell of each key */
    int32_t *pick;               /* count: a permutation whose first `cells` entries are the sampled parents */
    int64_t *size;               /* cells */
    float *panel, *scores;       /* dim x ICE_PANEL, ICE_KEY_BLOCK x ICE_PANEL */
} workspace;

static void free_workspace(workspace *w) {
    ice_free(w->keys);
    ice_free(w->values);
    ice_free(w->parents);
    ice_free(w->bias);
    ice_free(w->label);
    ice_free(w->pick);
    ice_free(w->size);
    ice_free(w->panel);
    ice_free(w->scores);
}

static int allocate_workspace(workspace *w) {
    w->keys = ice_alloc(w->count * w->dim, sizeof(float));
    w->values = ice_alloc(w->count * w->value_dim, sizeof(float));
    w->parents = ice_alloc(w->cells * w->dim, sizeof(float));
    w->bias = ice_alloc(w->cells, sizeof(float));
    w->label = ice_alloc(w->count, sizeof(int32_t));
    w->pick = ice_alloc(w->count, sizeof(int32_t));
    w->size = ice_alloc(w->cells, sizeof(int64_t));
    w->panel = ice_alloc(w->dim * ICE_PANEL, sizeof(float));
    w->scores = ice_alloc(ICE_KEY_BLOCK * ICE_PANEL, sizeof(float));
    return w->keys && w->values && w->parents && w->bias && w->label && w->pick && w->size && w->panel && w->scores;
}

/* A partial Fisher-Yates shuffle: `cells` keys without replacement. */
static void sample_parents(workspace *w, uint64_t seed) {
    for (int64_t i = 0; i < w->count; i++) w->pick[i] = (int32_t)i;
    for (int64_t i = 0; i < w->cells; i++) {
        int64_t j = i + (int64_t)ice_random_below(&seed, (uint64_t)(w->count - i));
        int32_t picked = w->pick[j];
        w->pick[j] = w->pick[i];
        w->pick[i] = picked;
        memcpy(w->parents + i * w->dim, w->keys + picked * w->dim, (size_t)w->dim * sizeof(float));
    }
}

/* label[x] = the nearest parent; the smaller index among equals, 0 for a key with a NaN. */
static void assign(workspace *w) {
    for (int64_t c = 0; c < w->cells; c++) {
        const float *parent = w->parents + c * w->dim;
        double squared = 0.0;
        for (int64_t t = 0; t < w->dim; t++) squared += (double)parent[t] * parent[t];
        w->bias[c] = (float)(-0.5 * squared);
    }
    for (int64_t first = 0; first < w->count; first += ICE_PANEL) {
        int lanes = w->count - first < ICE_PANEL ? (int)(w->count - first) : ICE_PANEL;
        float best[ICE_PANEL], index[ICE_PANEL];
        for (int lane = 0; lane < ICE_PANEL; lane++) {
            const float *key = w->keys + (first + (lane < lanes ? lane : lanes - 1)) * w->dim;
            for (int64_t t = 0; t < w->dim; t++) w->panel[t * ICE_PANEL + lane] = key[t];
            best[lane] = -INFINITY;
            index[lane] = 0.0f;
        }
        for (int64_t c = 0; c < w->cells; c += ICE_KEY_BLOCK) {
            int64_t block = w->cells - c < ICE_KEY_BLOCK ? w->cells - c : ICE_KEY_BLOCK;
            w->kernels->scores(w->panel, w->dim, lanes, w->parents + c * w->dim, w->dim, block, w->scores);
            w->kernels->nearest(w->scores, block, lanes, w->bias + c, c, best, index);
        }
        for (int lane = 0; lane < lanes; lane++) w->label[first + lane] = (int32_t)index[lane];
    }
}

/* Parents become the means of their keys; empty cells vanish and labels are renumbered. */
static void move_to_means(workspace *w) {
    memset(w->size, 0, (size_t)w->cells * sizeof *w->size);
    for (int64_t i = 0; i < w->count; i++) w->size[w->label[i]]++;
    int64_t kept = 0;
    int32_t *renumber = w->pick;   /* the permutation has served */
    for (int64_t c = 0; c < w->cells; c++) {
        renumber[c] = (int32_t)kept;
        if (w->size[c]) w->size[kept++] = w->size[c];
    }
    w->cells = kept;
    memset(w->parents, 0, (size_t)(kept * w->dim) * sizeof(float));
    for (int64_t i = 0; i < w->count; i++) {
        w->label[i] = renumber[w->label[i]];
        float *parent = w->parents + w->label[i] * w->dim;
        for (int64_t t = 0; t < w->dim; t++) parent[t] += w->keys[i * w->dim + t];
    }
    for (int64_t c = 0; c < kept; c++) {
        float inverse = 1.0f / (float)w->size[c];
        for (int64_t t = 0; t < w->dim; t++) w->parents[c * w->dim + t] *= inverse;
    }
}

static int allocate_segment(icecore_segment *s) {
    s->offset = ice_alloc(s->cells + 1, sizeof(int64_t));
    s->order = ice_alloc(s->count, sizeof(int32_t));
    s->keys = ice_alloc(s->count * s->dim, sizeof(float));
    s->values = ice_alloc(s->count * s->value_dim, sizeof(float));
    s->mean_key = ice_alloc(s->cells * s->dim, sizeof(float));
    s->mean_value = ice_alloc(s->cells * s->value_dim, sizeof(float));
    s->variance = ice_alloc(s->cells, sizeof(float));
    s->radius = ice_alloc(s->cells, sizeof(float));
    s->log2_count = ice_alloc(s->cells, sizeof(float));
    return s->offset && s->order && s->keys && s->values && s->mean_key && s->mean_value && s->variance && s->radius &&
           s->log2_count;
}

/* Keys and values in cell order, by a counting sort: within a cell they keep their order. */
static void store_rows(icecore_segment *s, const workspace *w) {
    s->offset[0] = 0;
    for (int64_t c = 0; c < s->cells; c++) s->offset[c + 1] = s->offset[c] + w->size[c];
    int64_t *next = w->size;   /* sizes have served */
    memcpy(next, s->offset, (size_t)s->cells * sizeof *next);
    for (int64_t i = 0; i < s->count; i++) {
        int64_t stored = next[w->label[i]]++;
        s->order[stored] = (int32_t)i;
        memcpy(s->keys + stored * s->dim, w->keys + i * s->dim, (size_t)s->dim * sizeof(float));
        memcpy(s->values + stored * s->value_dim, w->values + i * s->value_dim, (size_t)s->value_dim * sizeof(float));
    }
}

static void summarize(icecore_segment *s, const workspace *w) {
    memcpy(s->mean_key, w->parents, (size_t)(s->cells * s->dim) * sizeof(float));
    memset(s->mean_value, 0, (size_t)(s->cells * s->value_dim) * sizeof(float));
    for (int64_t c = 0; c < s->cells; c++) {
        const float *mean = s->mean_key + c * s->dim;
        float *mean_value = s->mean_value + c * s->value_dim;
        double total = 0.0, largest = 0.0;
        for (int64_t j = s->offset[c]; j < s->offset[c + 1]; j++) {
            double distance = 0.0;
            for (int64_t t = 0; t < s->dim; t++) {
                double difference = (double)s->keys[j * s->dim + t] - mean[t];
                distance += difference * difference;
            }
            total += distance;
            if (distance > largest) largest = distance;
            for (int64_t t = 0; t < s->value_dim; t++) mean_value[t] += s->values[j * s->value_dim + t];
        }
        double size = (double)(s->offset[c + 1] - s->offset[c]);
        for (int64_t t = 0; t < s->value_dim; t++) mean_value[t] *= (float)(1.0 / size);
        s->variance[c] = (float)(total / (size * (double)s->dim));
        s->radius[c] = (float)sqrt(largest);
        s->log2_count[c] = (float)log2(size);
    }
}

static void widen(const ice_kernels *kernels, icecore_dtype dtype, const void *rows, int64_t stride, int64_t count,
                  int64_t width, float *target) {
    size_t element = dtype == ICECORE_FLOAT32 ? 4 : 2;
    for (int64_t i = 0; i < count; i++)
        kernels->to_float32(dtype, (const char *)rows + i * stride * (int64_t)element, target + i * width, width);
}

icecore_status icecore_segment_build(icecore_dtype dtype, const void *keys, int64_t key_stride, const void *values,
                                     int64_t value_stride, int64_t count, int64_t dim, int64_t value_dim,
                                     int64_t cell_size, uint64_t seed, icecore_segment **result) {
    const ice_kernels *kernels = ice_active_kernels();
    if (!kernels) return ICECORE_ERROR_ISA;
    if (dtype > ICECORE_BFLOAT16 || !keys || count < 1 || count > INT32_MAX || dim < 1 || dim > ICECORE_MAX_DIM || cell_size < 1) return ICECORE_ERROR_VALUE;
    if (!values) value_dim = 0;
    if (value_dim < 0 || value_dim > ICECORE_MAX_DIM) return ICECORE_ERROR_VALUE;
    int64_t cells = (count + cell_size / 2) / cell_size;
    workspace w = {.kernels = kernels, .count = count, .cells = cells < 1 ? 1 : cells, .dim = dim, .value_dim = value_dim};
    icecore_segment *s = ice_alloc(1, sizeof *s);
    if (s) memset(s, 0, sizeof *s);
    if (!s || !allocate_workspace(&w)) goto out_of_memory;
    widen(kernels, dtype, keys, key_stride, count, dim, w.keys);
    if (values) widen(kernels, dtype, values, value_stride, count, value_dim, w.values);
    sample_parents(&w, seed);
    assign(&w);
    move_to_means(&w);
    assign(&w);
    move_to_means(&w);
    *s = (icecore_segment){.owners = 1, .count = count, .cells = w.cells, .dim = dim, .value_dim = value_dim};
    if (!allocate_segment(s)) goto out_of_memory;
    store_rows(s, &w);
    summarize(s, &w);
    free_workspace(&w);
    *result = s;
    return ICECORE_OK;

out_of_memory:
    free_workspace(&w);
    icecore_segment_free(s);
    return ICECORE_ERROR_MEMORY;
}
