/* Caches as named arrays.  They are forked first: the originals go on meanwhile. */
#include <string.h>

#include "base/memory.h"
#include "cache/file.h"

#define MAX_ARRAYS (9 + ICE_ROW_PARTS + ICE_MAX_ATTENTION_FIELDS)

/* Of the catalogue's sources, behind rows and fields. */
enum { SUMS = ICE_ROW_PARTS + ICE_MAX_ATTENTION_FIELDS, POSITIONS, QUERIES };

typedef struct {
    icecore_cache **cache; /* forks */
    int64_t caches;
    int64_t *sequence, *head, *shape;
    int32_t *level;
    float *rule;
    int64_t levels, segments, rules, sums, positions, queries; /* rules and what follows: numbers in all */
    icecore_segment **segment;                                 /* each once */
    float *nothing;                                            /* a block's sums of no queries */
    int64_t header[ICE_CACHE_HEADER];
    ice_catalogue arrays;
    icecore_array table[MAX_ARRAYS];
    int source[MAX_ARRAYS];
} contents;

/* Blocks from the sealed ones on of which queries are known. */
static int64_t open_sums(const icecore_cache *c) {
    const int64_t end = c->queries.first + c->queries.sums;
    return c->queries.sums && end > c->sealed ? end - c->sealed : 0;
}

/* Of all kept queries. */
static int64_t kept_numbers(const icecore_cache *c) {
    return c->queries.kept * c->options.heads * c->queries.group * c->options.dim;
}

/* Caches that differ in it get the one that none loses by. */
static icecore_status share_offset(const contents *c) {
    ice_offset shared = c->cache[0]->offset;
    icecore_status status = ICECORE_OK;
    for (int64_t i = 1; i < c->caches; i++)
        if (c->cache[i]->offset != shared) shared = ICE_OFFSET_LARGE;
    for (int64_t i = 0; i < c->caches && status == ICECORE_OK; i++) status = ice_cache_set_offset(c->cache[i], shared);
    return status;
}

static icecore_status fork_all(contents *c, icecore_cache *const *caches) {
    icecore_status status = ICECORE_OK;
    for (int64_t i = 0; i < c->caches && status == ICECORE_OK; i++)
        status = icecore_cache_fork(caches[i], &c->cache[i]);
    if (status == ICECORE_OK) status = share_offset(c);
    for (int64_t i = 0; i < c->caches && status == ICECORE_OK; i++) {
        const int64_t heads = caches[i]->options.heads;
        for (int64_t h = 0; h < heads && status == ICECORE_OK; h++) status = ice_cache_fit_means(c->cache[i], h);
        for (int64_t h = 0; h < heads; h++) c->levels += c->cache[i]->head[h].stack->levels;
        c->rules += heads * c->cache[i]->queries.group * ICE_RULE_NUMBERS;
        c->sums += open_sums(c->cache[i]) * heads * ice_query_numbers(caches[i]->options.dim);
        c->positions += c->cache[i]->queries.kept;
        c->queries += kept_numbers(c->cache[i]);
    }
    return status;
}

/* The number of a segment that an earlier cache has as well, or -1: forks have it at the same level of the same head.
 */
static int32_t known(const contents *c, int64_t cache, int64_t head, int64_t level) {
    const icecore_segment *segment = c->cache[cache]->head[head].stack->level[level].segment;
    const int32_t *number = c->level;
    for (int64_t i = 0; i < cache; i++)
        for (int64_t h = 0; h < c->cache[i]->options.heads; h++) {
            const ice_stack *stack = c->cache[i]->head[h].stack;
            if (h == head && level < stack->levels && stack->level[level].segment == segment) return number[level];
            number += stack->levels;
        }
    return -1;
}

static void number_segments(contents *c) {
    int32_t *number = c->level;
    int64_t *sequence = c->sequence, *head = c->head, *shape = c->shape;
    float *rule = c->rule;
    for (int64_t i = 0; i < c->caches; i++) {
        const icecore_cache *cache = c->cache[i];
        const ice_cache_queries *q = &cache->queries;
        const int64_t own[ICE_SEQUENCE_NUMBERS] = {
            [ICE_SEQUENCE_LENGTH] = cache->length,  [ICE_SEQUENCE_EVICTED] = cache->evicted,
            [ICE_SEQUENCE_SEALED] = cache->sealed,  [ICE_SEQUENCE_GROUP] = q->group,
            [ICE_SEQUENCE_KNOWN] = q->known,        [ICE_SEQUENCE_LAST] = q->last,
            [ICE_SEQUENCE_RENEWED] = q->renewed,    [ICE_SEQUENCE_KEPT] = q->kept,
            [ICE_SEQUENCE_SUMS] = open_sums(cache), [ICE_SEQUENCE_UNMEASURED] = q->unmeasured,
        };
        for (int64_t i = 0; i < cache->options.heads * q->group; i++, rule += ICE_RULE_NUMBERS) {
            const ice_rule *r = &q->rule[i];
            const float numbers[ICE_RULE_NUMBERS] = {r->threshold,    r->log2_mass,   (float)r->all_cells,
                                                     (float)r->exact, r->max_squared, (float)r->halves};
            memcpy(rule, numbers, sizeof numbers);
        }
        memcpy(sequence, own, sizeof own);
        sequence += ICE_SEQUENCE_NUMBERS;
        for (int64_t h = 0; h < cache->options.heads; h++) {
            const ice_stack *stack = cache->head[h].stack;
            *head++ = cache->head[h].sealed;
            for (int64_t level = 0; level < stack->levels; level++, number++) {
                icecore_segment *s = stack->level[level].segment;
                *number = s ? known(c, i, h, level) : -1;
                if (!s || *number >= 0) continue;
                const int64_t counts[ICE_SEGMENT_NUMBERS] = {s->count, s->cell.count, s->parent.count, s->relative,
                                                             s->halves};
                memcpy(shape, counts, sizeof counts);
                shape += ICE_SEGMENT_NUMBERS;
                *number = (int32_t)c->segments;
                c->segment[c->segments++] = s;
            }
        }
    }
}

static void list_contents(contents *c) {
    const icecore_cache_options *o = &c->cache[0]->options;
    const int64_t header[ICE_CACHE_HEADER] = {
        [ICE_HEADER_LARGEST_SEGMENT] = ICE_LARGEST_SEGMENT,
        [ICE_HEADER_BLOCK] = o->block,
        [ICE_HEADER_CELL_SIZE] = o->cell_size,
        [ICE_HEADER_MEANS] = ice_cache_means(c->cache[0]),
        [ICE_HEADER_OFFSET] = c->cache[0]->offset,
    };
    memcpy(c->header, header, sizeof header);
    c->arrays = (ice_catalogue){c->table, c->source, 0};
    ice_enter(&c->arrays, ICE_IN_PLACE, "header", 'l', ICE_CACHE_HEADER, c->header);
    ice_enter(&c->arrays, ICE_IN_PLACE, "sequence", 'l', c->caches * ICE_SEQUENCE_NUMBERS, c->sequence);
    ice_enter(&c->arrays, ICE_IN_PLACE, "head", 'l', c->caches * o->heads, c->head);
    ice_enter(&c->arrays, ICE_IN_PLACE, "level", 'i', c->levels, c->level);
    ice_enter(&c->arrays, ICE_IN_PLACE, "segment", 'l', c->segments * ICE_SEGMENT_NUMBERS, c->shape);
    ice_enter(&c->arrays, ICE_IN_PLACE, "rule", 'f', c->rules, c->rule);
    ice_enter(&c->arrays, SUMS, "open.query_sum", 'f', c->sums, NULL);
    ice_enter(&c->arrays, POSITIONS, "query.position", 'l', c->positions, NULL);
    ice_enter(&c->arrays, QUERIES, "query", 'f', c->queries, NULL);
    for (int part = 0; part < ICE_ROW_PARTS; part++) {
        int64_t rows = 0, first;
        for (int64_t i = 0; i < c->caches; i++) rows += ice_rows_of(c->cache[i], part, &first);
        const char type = ice_type_of(ice_open_dtype(o, c->cache[0]->offset));
        ice_enter(&c->arrays, part, ice_row_part_names[part], type, rows * o->heads * ice_part_width(o, part), NULL);
    }
    icecore_segment none = {.dim = o->dim,
                            .value_dim = o->value_dim,
                            .dtype = o->dtype,
                            .mean_dtype = ice_cache_means(c->cache[0]),
                            .halves = ice_is_in_halves(o) ? ICE_HALVES : ICE_WHOLE,
                            .query_numbers = 1};
    ice_field fields[ICE_MAX_ATTENTION_FIELDS], own[ICE_MAX_ATTENTION_FIELDS];
    int64_t count = ice_attention_fields(&none, fields);
    for (int64_t f = 0; f < count; f++) fields[f].count = 0;
    for (int64_t n = 0; n < c->segments; n++) {
        ice_attention_fields(c->segment[n], own);
        for (int64_t f = 0; f < count; f++) fields[f].count += own[f].count;
    }
    for (int64_t f = 0; f < count; f++)
        ice_enter(&c->arrays, ICE_ROW_PARTS + (int)f, fields[f].part, fields[f].type, fields[f].count, NULL);
    ice_align_catalogue(&c->arrays);
}

static int give_rows(const contents *c, int part, const ice_sink *sink) {
    for (int64_t i = 0; i < c->caches; i++) {
        const icecore_cache *cache = c->cache[i];
        const icecore_cache_options *o = &cache->options;
        const ice_open_rows *rows = part < ICE_OPEN_KEYS ? cache->sinks : cache->open;
        int64_t first, count = ice_rows_of(cache, part, &first);
        for (int64_t h = 0; h < o->heads && count; h++) {
            const void *own = part == ICE_SINK_KEYS || part == ICE_OPEN_KEYS ? ice_open_key(rows, h, first)
                                                                             : ice_open_value(rows, h, first);
            if (ice_give(sink, own, count * ice_part_width(o, part) * (int64_t)ice_element_size(rows->dtype))) return 1;
        }
    }
    return 0;
}

static int give_sums(const contents *c, const ice_sink *sink) {
    for (int64_t i = 0; i < c->caches; i++) {
        const icecore_cache *cache = c->cache[i];
        const int64_t numbers = cache->options.heads * ice_query_numbers(cache->options.dim);
        for (int64_t n = 0; n < open_sums(cache); n++) {
            const int64_t at = cache->sealed + n - cache->queries.first;
            const ice_query_sum *sum = at < 0 ? NULL : cache->queries.sum[at];
            if (ice_give(sink, sum ? sum->number : c->nothing, numbers * (int64_t)sizeof(float))) return 1;
        }
    }
    return 0;
}

static int give_kept(const contents *c, int part, const ice_sink *sink) {
    for (int64_t i = 0; i < c->caches; i++) {
        const ice_cache_queries *q = &c->cache[i]->queries;
        const int64_t numbers = part == POSITIONS ? q->kept : kept_numbers(c->cache[i]);
        const void *own = part == POSITIONS ? (const void *)q->position : (const void *)q->query;
        const size_t size = part == POSITIONS ? sizeof *q->position : sizeof *q->query;
        if (numbers && ice_give(sink, own, numbers * (int64_t)size)) return 1;
    }
    return 0;
}

static int give_part(const void *owner, int part, const ice_sink *sink) {
    const contents *c = owner;
    if (part == SUMS) return give_sums(c, sink);
    if (part > SUMS) return give_kept(c, part, sink);
    if (part < ICE_ROW_PARTS) return give_rows(c, part, sink);
    for (int64_t n = 0; n < c->segments; n++) {
        ice_field fields[ICE_MAX_ATTENTION_FIELDS];
        ice_attention_fields(c->segment[n], fields);
        const ice_field *own = &fields[part - ICE_ROW_PARTS];
        if (ice_give(sink, *own->data, own->count * (int64_t)ice_size_of(own->type))) return 1;
    }
    return 0;
}

static int same_layout(const icecore_cache_options *a, const icecore_cache_options *b) {
    return a->heads == b->heads && a->dim == b->dim && a->value_dim == b->value_dim && a->dtype == b->dtype &&
           a->block == b->block && a->sinks == b->sinks && a->cell_size == b->cell_size &&
           ice_is_in_halves(a) == ice_is_in_halves(b);
}

static icecore_status write_all(contents *c, icecore_cache *const *caches, icecore_write write, void *context) {
    c->cache = ice_alloc(c->caches, sizeof *c->cache);
    if (!c->cache) return ICECORE_ERROR_MEMORY;
    memset(c->cache, 0, (size_t)c->caches * sizeof *c->cache);
    icecore_status status = fork_all(c, caches);
    if (status != ICECORE_OK) return status;
    c->sequence = ice_alloc(c->caches * ICE_SEQUENCE_NUMBERS, sizeof *c->sequence);
    c->head = ice_alloc(c->caches * c->cache[0]->options.heads, sizeof *c->head);
    c->level = ice_alloc(c->levels, sizeof *c->level);
    c->segment = ice_alloc(c->levels, sizeof *c->segment);
    c->shape = ice_alloc(c->levels * ICE_SEGMENT_NUMBERS, sizeof *c->shape);
    c->rule = ice_alloc(c->rules, sizeof *c->rule);
    const int64_t numbers = c->cache[0]->options.heads * ice_query_numbers(c->cache[0]->options.dim);
    c->nothing = ice_alloc(numbers, sizeof *c->nothing);
    if (c->nothing) memset(c->nothing, 0, (size_t)numbers * sizeof *c->nothing);
    if (!c->rule || !c->nothing || !c->sequence || !c->head || !c->level || !c->segment || !c->shape)
        return ICECORE_ERROR_MEMORY;
    number_segments(c);
    list_contents(c);
    return ice_write_catalogue(&c->arrays, write, context, give_part, c);
}

icecore_status icecore_cache_write(icecore_cache *const *caches, int64_t count, icecore_write write, void *context) {
    if (count < 1) return ICECORE_ERROR_VALUE;
    for (int64_t i = 1; i < count; i++)
        if (!same_layout(&caches[0]->options, &caches[i]->options)) return ICECORE_ERROR_VALUE;
    if (!ice_active_kernels()) return ICECORE_ERROR_ISA;
    contents *c = ice_alloc(1, sizeof *c);
    if (!c) return ICECORE_ERROR_MEMORY;
    memset(c, 0, sizeof *c);
    c->caches = count;
    icecore_status status = write_all(c, caches, write, context);
    for (int64_t i = 0; c->cache && i < count; i++) icecore_cache_free(c->cache[i]);
    ice_free(c->cache);
    ice_free(c->sequence);
    ice_free(c->head);
    ice_free(c->level);
    ice_free(c->segment);
    ice_free(c->shape);
    ice_free(c->rule);
    ice_free(c->nothing);
    ice_free(c);
    return status;
}
