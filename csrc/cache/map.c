/* Caches over somebody else's arrays, which may hold anything. */
#include <stdio.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "cache/file.h"

typedef struct {
    ice_reader reader;
    const icecore_cache_options *options;
    int own; /* everything in memory of its own */
    icecore_cache **cache;
    int64_t caches, segments;
    icecore_segment **segment;
    icecore_dtype means;
    ice_offset offset;
} mapping;

static void no_memory(mapping *m) { ice_lack_memory(&m->reader); }

static void check_header(mapping *m) {
    const icecore_array *header = ice_find(&m->reader, "header", 'l', ICE_CACHE_HEADER);
    if (!header) return;
    const int64_t *h = header->data;
    const icecore_cache_options *o = m->options;
    if (h[ICE_HEADER_LARGEST_SEGMENT] != ICE_LARGEST_SEGMENT || h[ICE_HEADER_BLOCK] != o->block ||
        h[ICE_HEADER_CELL_SIZE] != o->cell_size)
        ice_refuse(&m->reader, "header", "is of segments or cells of another size");
    if (h[ICE_HEADER_OFFSET] < ICE_OFFSET_UNKNOWN || h[ICE_HEADER_OFFSET] > ICE_OFFSET_LARGE ||
        (o->dtype == ICECORE_FLOAT32 && h[ICE_HEADER_OFFSET] != ICE_OFFSET_SMALL)) {
        ice_refuse(&m->reader, "header", "has an offset that is out of range");
        return;
    }
    m->offset = (ice_offset)h[ICE_HEADER_OFFSET];
    if (h[ICE_HEADER_MEANS] != ICECORE_FLOAT32 &&
        (h[ICE_HEADER_MEANS] != ICECORE_BFLOAT16 ||
         (!ice_is_in_halves(o) && ice_open_dtype(o, m->offset) != ICECORE_BFLOAT16)))
        ice_refuse(&m->reader, "header", "has means of a type that does not fit");
    m->means = (icecore_dtype)h[ICE_HEADER_MEANS];
}

/* ---- Segments ---- */

/* Their number and sizes, as far as `order` has room for so many keys: then they are not more than the file has bytes.
 */
static const icecore_array *check_shapes(mapping *m, int64_t *max_keys) {
    const icecore_array *shapes = ice_find(&m->reader, "segment", 'l', -1);
    const icecore_array *order = ice_find(&m->reader, "order", 'i', -1);
    m->reader.used--; /* asked for again, with its length */
    if (!shapes || !order) return NULL;
    if (shapes->count % ICE_SEGMENT_NUMBERS || shapes->count / ICE_SEGMENT_NUMBERS > INT32_MAX)
        ice_refuse(&m->reader, "segment", "has the wrong length");
    m->segments = shapes->count / ICE_SEGMENT_NUMBERS;
    const int64_t *shape = shapes->data;
    int64_t left = order->count;
    *max_keys = 0;
    for (int64_t n = 0; n < m->segments && !m->reader.failed; n++, shape += ICE_SEGMENT_NUMBERS) {
        if (shape[0] < 1 || shape[0] > left || shape[0] > INT32_MAX ||
            !ice_stack_nodes_fit(shape[0], shape[1], shape[2], m->options->cell_size) || shape[3] < 0 ||
            shape[3] > (m->offset == ICE_OFFSET_LARGE) || (shape[4] != ICE_WHOLE) != ice_is_in_halves(m->options) ||
            shape[4] < 0 || shape[4] > ICE_WHOLE_IN_HALVES) {
            ice_refuse(&m->reader, "segment", "is not a list of sizes of segments");
            break;
        }
        left -= shape[0];
        if (shape[0] > *max_keys) *max_keys = shape[0];
    }
    return m->reader.failed ? NULL : shapes;
}

static icecore_segment *new_segment(const mapping *m, const int64_t *shape) {
    icecore_segment *s = ice_segment_new();
    if (!s) return NULL;
    s->count = shape[0];
    s->cells = s->cell.count = shape[1];
    s->parent.count = shape[2];
    s->relative = (int)shape[3];
    s->halves = (ice_halves)shape[4];
    s->dim = m->options->dim;
    s->value_dim = m->options->value_dim;
    s->dtype = m->options->dtype;
    s->mean_dtype = m->means;
    s->query_numbers = m->options->moments ? 0 : ice_query_numbers(s->dim);
    if (!m->own || ice_attention_alloc(s)) return s;
    icecore_segment_free(s);
    return NULL;
}

/* The arrays of all segments, by the sums of their sizes. */
static int64_t find_fields(mapping *m, const icecore_array **array) {
    ice_field fields[ICE_MAX_ATTENTION_FIELDS];
    int64_t total[ICE_MAX_ATTENTION_FIELDS] = {0};
    icecore_segment none = {.dim = m->options->dim,
                            .value_dim = m->options->value_dim,
                            .dtype = m->options->dtype,
                            .mean_dtype = m->means,
                            .halves = ice_is_in_halves(m->options) ? ICE_HALVES : ICE_WHOLE,
                            .query_numbers = 1};
    int64_t count = ice_attention_fields(&none, fields);
    for (int64_t n = 0; n < m->segments; n++) {
        ice_attention_fields(m->segment[n], fields);
        for (int64_t f = 0; f < count; f++) total[f] += fields[f].count;
    }
    for (int64_t f = 0; f < count; f++) array[f] = ice_find(&m->reader, fields[f].part, fields[f].type, total[f]);
    return count;
}

static void take_fields(mapping *m) {
    const icecore_array *array[ICE_MAX_ATTENTION_FIELDS];
    int64_t place[ICE_MAX_ATTENTION_FIELDS] = {0};
    const int64_t count = find_fields(m, array);
    for (int64_t n = 0; n < m->segments && !m->reader.failed; n++) {
        ice_field fields[ICE_MAX_ATTENTION_FIELDS];
        ice_attention_fields(m->segment[n], fields);
        for (int64_t f = 0; f < count; f++) {
            const size_t size = ice_size_of(fields[f].type);
            const char *data = (const char *)array[f]->data + (size_t)place[f] * size;
            if (m->own) memcpy(*fields[f].data, data, (size_t)fields[f].count * size);
            else *fields[f].data = (void *)data;
            place[f] += fields[f].count;
        }
    }
}

static void map_segments(mapping *m) {
    int64_t max_keys;
    const icecore_array *shapes = check_shapes(m, &max_keys);
    if (!shapes) return;
    m->segment = ice_alloc(m->segments, sizeof *m->segment);
    uint8_t *seen = ice_alloc(max_keys, 1);
    if (m->segment) memset(m->segment, 0, (size_t)m->segments * sizeof *m->segment);
    if (!m->segment || !seen) no_memory(m);
    for (int64_t n = 0; n < m->segments && !m->reader.failed; n++) {
        m->segment[n] = new_segment(m, (const int64_t *)shapes->data + n * ICE_SEGMENT_NUMBERS);
        if (!m->segment[n]) no_memory(m);
    }
    if (!m->reader.failed) take_fields(m);
    for (int64_t n = 0; n < m->segments && !m->reader.failed; n++) {
        const char *fault = ice_cache_segment_fault(m->segment[n], seen);
        if (fault) ice_refuse(&m->reader, "the cache has", fault);
    }
    ice_free(seen);
}

/* ---- Caches ---- */

/* The stack of one head; gives *level the place behind its numbers. */
static void map_stack(mapping *m, icecore_cache *c, int64_t head, int64_t sealed, const int32_t **level,
                      const int32_t *end) {
    if (sealed < c->sealed || sealed > c->length / c->options.block) {
        ice_refuse(&m->reader, "head", "has a number that is out of range");
        return;
    }
    if (ice_stack_levels(sealed, c->options.block) > end - *level) {
        ice_refuse(&m->reader, "level", "has the wrong length");
        return;
    }
    ice_stack *stack = ice_stack_empty(sealed, c->options.block);
    if (!stack) {
        no_memory(m);
        return;
    }
    ice_stack_free(c->head[head].stack);
    c->head[head] = (ice_cache_head){.stack = stack, .sealed = sealed};
    for (int64_t i = 0; i < stack->levels; i++) {
        int64_t number = *(*level)++;
        if (number < -1 || number >= m->segments)
            ice_refuse(&m->reader, "level", "names a segment that does not exist");
        else if (number >= 0) stack->level[i].segment = ice_segment_share(m->segment[number]);
    }
    ice_stack_add_up(stack);
}

/* Sinks or open rows of a cache, and the places in their arrays. */
static ice_open_rows *map_rows(mapping *m, const icecore_cache *c, int part, const icecore_array *const *array,
                               int64_t *place) {
    const icecore_cache_options *o = m->options;
    const void *data[2] = {NULL, NULL};
    int64_t first, count = ice_rows_of(c, part, &first);
    for (int values = 0; values < 2; values++) {
        const int64_t width = o->heads * ice_part_width(o, part + values);
        const icecore_array *a = array[part + values];
        if (count > (a->count - place[part + values]) / width) {
            ice_refuse(&m->reader, a->name, "has the wrong length");
            return NULL;
        }
        if (count) data[values] = (const char *)a->data + (size_t)place[part + values] * ice_size_of(a->type);
        place[part + values] += count * width;
    }
    const icecore_dtype dtype = ice_open_dtype(o, m->offset);
    ice_open_rows *rows = ice_open_rows_map(o->heads, o->dim, o->value_dim, dtype, first, count, data[0], data[1]);
    if (rows && m->own) {
        ice_open_rows *mapped = rows;
        rows = ice_open_rows_new(o->heads, o->dim, o->value_dim, dtype, first, count);
        if (rows) {
            ice_open_rows_copy(mapped, rows, first, first + count);
            rows->filled = first + count;
        }
        ice_open_rows_release(mapped, 1);
    }
    if (!rows) no_memory(m);
    return rows;
}

/* ---- What is known of queries, into memory of its own ---- */

/* The arrays that hold it, of all caches one after the other. */
enum { RULES, SUMS, POSITIONS, QUERIES, QUERY_PARTS };

static void map_rules(mapping *m, ice_cache_queries *q, int64_t heads, const float *number) {
    for (int64_t i = 0; i < heads; i++, number += ICE_RULE_NUMBERS) {
        if (!(number[0] > 0.0f && number[0] < INFINITY) || !isfinite(number[1]) ||
            !(number[2] == 0.0f || number[2] == 1.0f) ||
            !(number[3] == 0.0f || number[3] == 1.0f || number[3] == (float)ICE_UNKNOWN) || !(number[4] >= 0.0f) ||
            !(number[5] == 0.0f || number[5] == 1.0f)) {
            ice_refuse(&m->reader, "rule", "has a number that is out of range");
            return;
        }
        q->rule[i] = (ice_rule){.threshold = number[0],
                                .log2_mass = number[1],
                                .all_cells = (uint8_t)number[2],
                                .exact = (uint8_t)number[3],
                                .max_squared = number[4],
                                .halves = (uint8_t)number[5]};
    }
}

static void map_kept(mapping *m, icecore_cache *c, int64_t kept, const int64_t *position, const float *query) {
    ice_cache_queries *q = &c->queries;
    for (int64_t i = 0; i < kept; i++)
        if (position[i] < (i ? position[i - 1] + 1 : 0) || position[i] >= c->length) {
            ice_refuse(&m->reader, "query.position", "has a number that is out of range");
            return;
        }
    memcpy(q->position, position, (size_t)kept * sizeof *position);
    memcpy(q->query, query, (size_t)(kept * c->options.heads * q->group * c->options.dim) * sizeof *query);
    q->kept = kept;
}

static void map_sums(mapping *m, icecore_cache *c, int64_t sums, const float *number) {
    ice_cache_queries *q = &c->queries;
    q->sum = ice_alloc(sums, sizeof *q->sum);
    if (!q->sum) {
        no_memory(m);
        return;
    }
    for (; q->sums < sums; q->sums++, number += c->options.heads * ice_query_numbers(c->options.dim)) {
        q->sum[q->sums] = ice_query_sum_of(c, number);
        if (!q->sum[q->sums]) {
            no_memory(m);
            return;
        }
    }
}

static int is_within(int64_t number, int64_t maximum) { return number >= 0 && number <= maximum; }

static void map_queries(mapping *m, icecore_cache *c, const int64_t *sequence,
                        const icecore_array *const array[QUERY_PARTS], int64_t place[QUERY_PARTS]) {
    ice_cache_queries *q = &c->queries;
    const int64_t heads = c->options.heads, dim = c->options.dim, group = sequence[ICE_SEQUENCE_GROUP],
                  sums = sequence[ICE_SEQUENCE_SUMS], kept = sequence[ICE_SEQUENCE_KEPT];
    const int64_t blocks = (c->length + c->options.block - 1) / c->options.block,
                  size[QUERY_PARTS] = {heads * ICE_RULE_NUMBERS, heads * ice_query_numbers(dim), 1, heads * dim};
    int64_t left[QUERY_PARTS]; /* of each array, in units of that size */
    for (int part = 0; part < QUERY_PARTS; part++) left[part] = (array[part]->count - place[part]) / size[part];
    if (!is_within(group, left[RULES]) || !is_within(sums, left[SUMS]) || !is_within(sums, blocks - c->sealed) ||
        !is_within(kept, left[POSITIONS]) || !is_within(kept, group ? left[QUERIES] / group : 0) ||
        !is_within(sequence[ICE_SEQUENCE_UNMEASURED], c->length) || !is_within(sequence[ICE_SEQUENCE_LAST], blocks) ||
        !is_within(sequence[ICE_SEQUENCE_RENEWED], blocks) || (c->moments && sums)) {
        ice_refuse(&m->reader, "sequence", "has a number that is out of range");
        return;
    }
    if (group && ice_queries_begin(c, group) != ICECORE_OK) {
        no_memory(m);
        return;
    }
    if (kept > q->capacity) {
        ice_refuse(&m->reader, "sequence", "has a number that is out of range");
        return;
    }
    q->known = group && sequence[ICE_SEQUENCE_KNOWN] != 0;
    q->last = sequence[ICE_SEQUENCE_LAST];
    q->renewed = sequence[ICE_SEQUENCE_RENEWED];
    q->unmeasured = sequence[ICE_SEQUENCE_UNMEASURED];
    q->noted = c->length;
    q->first = c->sealed;
    if (group) map_rules(m, q, heads * group, (const float *)array[RULES]->data + place[RULES]);
    if (kept)
        map_kept(m, c, kept, (const int64_t *)array[POSITIONS]->data + place[POSITIONS],
                 (const float *)array[QUERIES]->data + place[QUERIES]);
    if (sums && !m->reader.failed) map_sums(m, c, sums, (const float *)array[SUMS]->data + place[SUMS]);
    place[RULES] += group * size[RULES];
    place[SUMS] += sums * size[SUMS];
    place[POSITIONS] += kept;
    place[QUERIES] += kept * group * size[QUERIES];
}

/* ---- All ---- */

static void map_cache(mapping *m, icecore_cache *c, const int64_t *sequence, const icecore_array *const *rows,
                      int64_t *place) {
    c->length = sequence[ICE_SEQUENCE_LENGTH];
    c->evicted = sequence[ICE_SEQUENCE_EVICTED];
    c->sealed = sequence[ICE_SEQUENCE_SEALED];
    c->offset = m->offset;
    if (c->length < 0 || c->length > INT32_MAX || c->evicted < 0 || c->evicted > c->length || c->sealed < 0 ||
        c->sealed > c->length / c->options.block) {
        ice_refuse(&m->reader, "sequence", "has a number that is out of range");
        return;
    }
    if (!c->length) return;
    if (c->options.sinks) c->sinks = map_rows(m, c, ICE_SINK_KEYS, rows, place);
    c->open = m->reader.failed ? NULL : map_rows(m, c, ICE_OPEN_KEYS, rows, place);
}

static void map_all(mapping *m) {
    ice_reader *r = &m->reader;
    const icecore_cache_options *o = m->options;
    check_header(m);
    const icecore_array *sequence = ice_find(r, "sequence", 'l', -1), *head = ice_find(r, "head", 'l', -1);
    if (r->failed) return;
    const icecore_array *level = ice_find(r, "level", 'i', -1), *rows[ICE_ROW_PARTS];
    const icecore_array *queries[QUERY_PARTS] = {
        [RULES] = ice_find(r, "rule", 'f', -1),
        [SUMS] = ice_find(r, "open.query_sum", 'f', -1),
        [POSITIONS] = ice_find(r, "query.position", 'l', -1),
        [QUERIES] = ice_find(r, "query", 'f', -1),
    };
    const char type = ice_type_of(ice_open_dtype(o, m->offset));
    for (int part = 0; part < ICE_ROW_PARTS; part++) rows[part] = ice_find(r, ice_row_part_names[part], type, -1);
    if (r->failed) return;
    /* before any memory is asked for: so many caches and heads are in the file */
    if (sequence->count % ICE_SEQUENCE_NUMBERS || sequence->count / ICE_SEQUENCE_NUMBERS != m->caches ||
        head->count / m->caches != o->heads || head->count % m->caches) {
        ice_refuse(r, "sequence", "is not of so many sequences and heads");
        return;
    }
    map_segments(m);
    const int64_t *sealed = head->data;
    const int32_t *number = level->data, *end = number + level->count;
    int64_t place[ICE_ROW_PARTS] = {0}, query_place[QUERY_PARTS] = {0};
    for (int64_t i = 0; i < m->caches && !r->failed; i++) {
        if (icecore_cache_create(o, &m->cache[i]) != ICECORE_OK) {
            no_memory(m);
            return;
        }
        const int64_t *numbers = (const int64_t *)sequence->data + i * ICE_SEQUENCE_NUMBERS;
        map_cache(m, m->cache[i], numbers, rows, place);
        if (!r->failed) map_queries(m, m->cache[i], numbers, queries, query_place);
        for (int64_t h = 0; h < o->heads && !r->failed; h++) map_stack(m, m->cache[i], h, *sealed++, &number, end);
        const char *fault = r->failed ? NULL : ice_cache_structure_fault(m->cache[i]);
        if (fault) ice_refuse(r, "the cache has", fault);
    }
    for (int part = 0; part < ICE_ROW_PARTS && !r->failed; part++)
        if (place[part] != rows[part]->count) ice_refuse(r, rows[part]->name, "has the wrong length");
    for (int part = 0; part < QUERY_PARTS && !r->failed; part++)
        if (query_place[part] != queries[part]->count) ice_refuse(r, queries[part]->name, "has the wrong length");
    if (number != end) ice_refuse(r, "level", "has the wrong length");
    if (r->used != r->count) ice_refuse(r, "the file", "holds arrays that do not belong to a cache");
}

icecore_status icecore_cache_map(const icecore_cache_options *options, const icecore_array *arrays, int64_t count,
                                 int own, icecore_cache **caches, int64_t cache_count, char *reason,
                                 int64_t reason_size) {
    if (!ice_active_kernels()) return ICECORE_ERROR_ISA;
    mapping m = {.reader = {.arrays = arrays, .count = count, .reason = reason, .reason_size = reason_size},
                 .options = options,
                 .own = own,
                 .cache = caches,
                 .caches = cache_count};
    if (cache_count < 1 || ice_cache_check_options(options) != ICECORE_OK) {
        snprintf(reason, (size_t)reason_size, "its parameters are out of range");
        return ICECORE_ERROR_VALUE;
    }
    memset(caches, 0, (size_t)cache_count * sizeof *caches);
    map_all(&m);
    for (int64_t n = 0; m.segment && n < m.segments; n++) icecore_segment_free(m.segment[n]);
    ice_free(m.segment);
    const icecore_status status = ice_reader_status(&m.reader);
    if (status == ICECORE_OK) return ICECORE_OK;
    for (int64_t i = 0; i < cache_count; i++) {
        icecore_cache_free(caches[i]);
        caches[i] = NULL;
    }
    return status;
}
