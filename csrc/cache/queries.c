#include "cache/queries.h"

#include <string.h>

#include "attention/query_moments.h"
#include "base/memory.h"

/* ---- Sums ---- */

static int64_t numbers_of(const icecore_cache *c) { return c->options.heads * ice_query_numbers(c->options.dim); }

ice_query_sum *ice_query_sum_of(const icecore_cache *c, const float *numbers) {
    const size_t bytes = (size_t)numbers_of(c) * sizeof(float);
    ice_query_sum *sum = ice_alloc(1, sizeof *sum + bytes);
    if (!sum) return NULL;
    atomic_init(&sum->owners, 1);
    if (numbers) memcpy(sum->number, numbers, bytes);
    else memset(sum->number, 0, bytes);
    return sum;
}

static void release(ice_query_sum *sum) {
    if (sum && atomic_fetch_sub(&sum->owners, 1) == 1) ice_free(sum);
}

/* The sum of a block that nobody else has, to be added to; NULL when out of memory. */
static ice_query_sum *own_sum(icecore_cache *c, int64_t block) {
    ice_cache_queries *q = &c->queries;
    if (block >= q->first + q->sums) {
        const int64_t sums = block - q->first + 1;
        ice_query_sum **grown = ice_alloc(sums, sizeof *grown);
        if (!grown) return NULL;
        memset(grown, 0, (size_t)sums * sizeof *grown);
        if (q->sums) memcpy(grown, q->sum, (size_t)q->sums * sizeof *grown);
        ice_free(q->sum);
        q->sum = grown;
        q->sums = sums;
    }
    ice_query_sum **place = &q->sum[block - q->first];
    if (*place && atomic_load(&(*place)->owners) == 1) return *place;
    ice_query_sum *own = ice_query_sum_of(c, *place ? (*place)->number : NULL);
    if (!own) return NULL;
    release(*place);
    return *place = own;
}

void ice_queries_forget(icecore_cache *c, int64_t first, int64_t end) {
    ice_cache_queries *q = &c->queries;
    int64_t kept = 0;
    for (int64_t i = 0; i < q->sums; i++) {
        if (q->first + i >= first && q->first + i < end) q->sum[kept++] = q->sum[i];
        else release(q->sum[i]);
    }
    q->sums = kept;
    if (q->first < first) q->first = first;
    if (!kept) q->first = first;
}

void ice_queries_truncate(icecore_cache *c, int64_t length) {
    ice_cache_queries *q = &c->queries;
    ice_queries_forget(c, q->first, (length + c->options.block - 1) / c->options.block);
    for (; q->kept && q->position[q->kept - 1] >= length; q->kept--) q->unmeasured -= q->unmeasured > 0;
    q->unmeasured = ice_min(q->unmeasured, length);
    if (q->noted > length) q->noted = length;
    if (q->last > c->sealed) q->last = c->sealed; /* what is sealed from here on is measured anew */
    if (q->renewed > c->sealed) q->renewed = c->sealed;
}

static void store_triangle(const float *square, int64_t dim, float rows, float *sum) {
    for (int64_t i = 0; i < dim; i++)
        for (int64_t j = 0; j <= i; j++) *sum++ = square[i * dim + j];
    *sum = rows;
}

/* Adds the queries of the tokens first .. end - 1, of one block, that are sampled: of all heads or, where that fails,
 * of none. */
static icecore_status add_sums(icecore_cache *c, const icecore_attention *seen, int64_t block, int64_t first,
                               int64_t end) {
    const int64_t dim = c->options.dim, offset = seen->keys - seen->queries;
    if (end / ICE_MOMENT_STEP == first / ICE_MOMENT_STEP) return ICECORE_OK; /* no position that is sampled */
    ice_query_sum *sum = own_sum(c, block);
    float *square = ice_alloc(dim * dim, sizeof *square), *added = ice_alloc(numbers_of(c), sizeof *added);
    icecore_status status = sum && square && added ? ICECORE_OK : ICECORE_ERROR_MEMORY;
    for (int64_t h = 0; h < c->options.heads && status == ICECORE_OK; h++) {
        int64_t rows = 0;
        memset(square, 0, (size_t)(dim * dim) * sizeof *square);
        const ice_query_range range = {seen, ice_active_kernels(), 0, h, first - offset, end - offset};
        status = ice_add_query_moments(&range, ICE_MOMENT_STEP, square, &rows);
        if (status == ICECORE_OK) store_triangle(square, dim, (float)rows, added + h * ice_query_numbers(dim));
    }
    for (int64_t i = 0; i < numbers_of(c) && status == ICECORE_OK; i++) sum->number[i] += added[i];
    ice_free(square);
    ice_free(added);
    return status;
}

void ice_add_query_sums(const void *context, int64_t first, int64_t end, float *sum) {
    const ice_cache_metric *own = context;
    const icecore_cache *c = own->cache;
    const ice_cache_queries *q = &c->queries;
    const ice_cache_head *head = &c->head[own->head];
    const int64_t numbers = ice_query_numbers(c->options.dim), block = c->options.block;
    for (int64_t i = 0; i < head->stack->levels; i++) {
        const ice_stacked *level = &head->stack->level[i];
        if (!level->segment || !level->segment->query_numbers || level->end <= first || level->first >= end) continue;
        for (int64_t t = 0; t < numbers; t++) sum[t] += level->segment->query_sum[t];
    }
    for (int64_t b = q->first; b < q->first + q->sums; b++) {
        const ice_query_sum *of_block = q->sum[b - q->first];
        if (!of_block || b < head->sealed || b * block < first || b * block >= end) continue;
        for (int64_t t = 0; t < numbers; t++) sum[t] += of_block->number[own->head * numbers + t];
    }
}

int ice_cache_moments(const void *context, int64_t first, int64_t end, float *moments) {
    const ice_cache_metric *own = context;
    const icecore_cache *c = own->cache;
    const int64_t dim = c->options.dim, numbers = ice_query_numbers(dim);
    if (c->moments) {
        memcpy(moments, c->moments->number + own->head * dim * dim, (size_t)(dim * dim) * sizeof *moments);
        return 1;
    }
    float *sum = ice_alloc(numbers, sizeof *sum);
    if (!sum) return -1;
    memset(sum, 0, (size_t)numbers * sizeof *sum);
    ice_add_query_sums(context, first, end, sum);
    const float rows = sum[numbers - 1];
    const int known = rows >= (float)ICE_MIN_MOMENT_ROWS;
    const float *next = sum;
    for (int64_t i = 0; i < dim && known; i++)
        for (int64_t j = 0; j <= i; j++) moments[i * dim + j] = moments[j * dim + i] = *next++ / rows;
    ice_free(sum);
    return known;
}

/* ---- The newest queries ---- */

int64_t ice_queries_spacing(const icecore_cache *c) {
    const int64_t step = c->options.block / c->queries.capacity;
    return step < 1 ? 1 : step;
}

/* Forgets the oldest query that is kept or, where they are closer than over a block, the one that is closest to the one
 * before it: the first queries that come may be few and all about one thing. */
static void drop_one(ice_cache_queries *q, int64_t step, int64_t row) {
    int64_t dropped = 0;
    if (q->position[q->kept - 1] - q->position[0] < step * (q->capacity - 1)) {
        for (int64_t i = dropped = 1; i < q->kept; i++)
            if (q->position[i] - q->position[i - 1] < q->position[dropped] - q->position[dropped - 1]) dropped = i;
    }
    const int64_t behind = --q->kept - dropped;
    memmove(q->position + dropped, q->position + dropped + 1, (size_t)behind * sizeof *q->position);
    memmove(q->query + dropped * row, q->query + (dropped + 1) * row, (size_t)(behind * row) * sizeof *q->query);
}

/* Every one of the first, so that rules are known soon. */
static void keep(icecore_cache *c, const icecore_attention *seen, int64_t first, int64_t end) {
    ice_cache_queries *q = &c->queries;
    const int64_t heads = seen->query_heads, dim = c->options.dim, row = heads * dim, spread = ice_queries_spacing(c),
                  step = q->known || end - first >= q->capacity * spread ? spread : 1,
                  offset = seen->keys - seen->queries;
    if (first < end - q->capacity * spread) first = end - q->capacity * spread;
    for (int64_t position = first + (step - 1 - first % step); position < end; position += step) {
        if (q->kept == q->capacity) drop_one(q, spread, row);
        q->position[q->kept] = position;
        for (int64_t h = 0; h < heads; h++)
            ice_load_query(seen, ice_active_kernels(), (ice_row){0, h, position - offset}, 1.0f,
                           q->query + q->kept * row + h * dim);
        q->kept++;
        q->unmeasured++;
    }
}

icecore_status ice_queries_note(icecore_cache *c, icecore_dtype dtype, icecore_tensor queries, int64_t first,
                                int64_t count) {
    ice_cache_queries *q = &c->queries;
    const int64_t block = c->options.block, end = first + count, start = first > q->noted ? first : q->noted;
    const icecore_attention seen = {.dtype = dtype,
                                    .batch = 1,
                                    .query_heads = c->options.heads * q->group,
                                    .key_heads = c->options.heads,
                                    .queries = count,
                                    .keys = end,
                                    .dim = c->options.dim,
                                    .query = queries};
    if (start >= end) return ICECORE_OK;
    /* the block that was begun before comes last: where this fails, others are forgotten whole */
    for (int64_t number = (end - 1) / block; !c->moments && number >= start / block && number >= q->first; number--) {
        const int64_t from = number * block > start ? number * block : start,
                      to = (number + 1) * block < end ? (number + 1) * block : end;
        icecore_status status = add_sums(c, &seen, number, from, to);
        if (status != ICECORE_OK) return status;
    }
    keep(c, &seen, start, end);
    q->noted = end;
    return ICECORE_OK;
}

/* ---- Life ---- */

static void free_heads(ice_cache_queries *q) {
    ice_free(q->position);
    ice_free(q->query);
    ice_free(q->rule);
    ice_free(q->applied);
    ice_free(q->measured);
    q->position = NULL;
    q->query = NULL;
    q->rule = q->applied = NULL;
    q->measured = NULL;
    q->kept = q->unmeasured = q->capacity = q->group = 0;
}

icecore_status ice_queries_begin(icecore_cache *c, int64_t group) {
    ice_cache_queries *q = &c->queries, new = {0};
    const int64_t heads = c->options.heads * group;
    if (q->group == group) return ICECORE_OK;
    new.group = group;
    new.capacity = ice_measured_queries(group, 1);
    new.position = ice_alloc(new.capacity, sizeof *new.position);
    new.query = ice_alloc(new.capacity * heads * c->options.dim, sizeof *new.query);
    new.rule = ice_alloc(heads, sizeof *new.rule);
    new.applied = ice_alloc(heads, sizeof *new.applied);
    new.measured = ice_alloc(heads, sizeof *new.measured);
    if (!new.position || !new.query || !new.rule || !new.applied || !new.measured) {
        free_heads(&new);
        return ICECORE_ERROR_MEMORY;
    }
    for (int64_t h = 0; h < heads; h++)
        new.rule[h] = new.applied[h] = (ice_rule){.threshold = 1.0f, .exact = ICE_UNKNOWN, .halves = 1};
    memset(new.measured, 0, (size_t)heads * sizeof *new.measured);
    new.noted = q->noted;
    new.first = q->first;
    new.sums = q->sums;
    new.sum = q->sum;
    free_heads(q);
    *q = new;
    return ICECORE_OK;
}

void ice_queries_free(icecore_cache *c) {
    for (int64_t i = 0; i < c->queries.sums; i++) release(c->queries.sum[i]);
    ice_free(c->queries.sum);
    free_heads(&c->queries);
}

icecore_status ice_queries_copy(const icecore_cache *from, icecore_cache *to) {
    const ice_cache_queries *q = &from->queries;
    ice_cache_queries *own = &to->queries;
    const int64_t heads = from->options.heads * q->group;
    if (q->group) {
        icecore_status status = ice_queries_begin(to, q->group);
        if (status != ICECORE_OK) return status;
        memcpy(own->position, q->position, (size_t)q->kept * sizeof *q->position);
        memcpy(own->query, q->query, (size_t)(q->kept * heads * from->options.dim) * sizeof *q->query);
        memcpy(own->rule, q->rule, (size_t)heads * sizeof *q->rule);
        memcpy(own->applied, q->applied, (size_t)heads * sizeof *q->applied);
        memcpy(own->measured, q->measured, (size_t)heads * sizeof *q->measured);
    }
    const ice_cache_queries arrays = *own;
    *own = *q;
    own->position = arrays.position;
    own->query = arrays.query;
    own->rule = arrays.rule;
    own->applied = arrays.applied;
    own->measured = arrays.measured;
    own->sum = NULL;
    own->sums = 0;
    if (!q->sums) return ICECORE_OK;
    own->sum = ice_alloc(q->sums, sizeof *own->sum);
    if (!own->sum) return ICECORE_ERROR_MEMORY;
    own->sums = q->sums;
    for (int64_t i = 0; i < q->sums; i++) {
        own->sum[i] = q->sum[i];
        if (q->sum[i]) atomic_fetch_add(&q->sum[i]->owners, 1);
    }
    return ICECORE_OK;
}

int64_t ice_queries_bytes(const icecore_cache *c) {
    const ice_cache_queries *q = &c->queries;
    const int64_t heads = c->options.heads * q->group, rules = (int64_t)(2 * sizeof *q->rule + sizeof *q->measured);
    int64_t bytes = heads * rules +
                    q->capacity * (heads * c->options.dim * (int64_t)sizeof *q->query + (int64_t)sizeof *q->position);
    for (int64_t i = 0; i < q->sums; i++)
        if (q->sum[i]) bytes += numbers_of(c) * (int64_t)sizeof(float);
    return bytes;
}
