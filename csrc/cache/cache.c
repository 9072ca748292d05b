#include "cache/cache.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "attention/near_far_tile.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "base/parallel.h"

/* ---- Life ---- */

icecore_status ice_cache_check_options(const icecore_cache_options *o) {
    if (o->heads < 1 || o->dim < 1 || o->dim > ICECORE_MAX_DIM || o->value_dim < 1 || o->value_dim > ICECORE_MAX_DIM ||
        o->dtype > ICECORE_INT4 || !(o->tolerance >= 0.0f) || (o->tolerance == 0.0f && o->near_keys < 1) ||
        o->block < 1 || o->block > ICE_LARGEST_BLOCK || o->sinks < 0 || o->sinks > ICE_LARGEST_BLOCK ||
        o->cell_size < 1 || !ice_are_moments(o->moments, o->heads, o->dim))
        return ICECORE_ERROR_VALUE;
    return ICECORE_OK;
}

/* An empty cache without moments. */
static icecore_status create(const icecore_cache_options *o, icecore_cache **result) {
    icecore_cache *c = ice_alloc(1, sizeof *c);
    if (!c) return ICECORE_ERROR_MEMORY;
    memset(c, 0, sizeof *c);
    c->options = *o;
    c->options.moments = NULL;
    c->offset = o->dtype == ICECORE_FLOAT32 ? ICE_OFFSET_SMALL : ICE_OFFSET_UNKNOWN;
    ice_lock_begin(&c->lock);
    c->head = ice_alloc(o->heads, sizeof *c->head);
    icecore_status status = c->head ? ICECORE_OK : ICECORE_ERROR_MEMORY;
    if (c->head) memset(c->head, 0, (size_t)o->heads * sizeof *c->head);
    const ice_source nothing = {.block = o->block};
    for (int64_t h = 0; h < o->heads && status == ICECORE_OK; h++)
        status = ice_stack_seal(&nothing, 0, NULL, NULL, 0, &c->head[h].stack);
    if (status == ICECORE_OK) *result = c;
    else icecore_cache_free(c);
    return status;
}

icecore_status icecore_cache_create(const icecore_cache_options *o, icecore_cache **result) {
    if (icecore_isa_status() != ICECORE_OK) return ICECORE_ERROR_ISA;
    if (ice_cache_check_options(o) != ICECORE_OK) return ICECORE_ERROR_VALUE;
    icecore_cache *c;
    icecore_status status = create(o, &c);
    if (status == ICECORE_OK && o->moments) {
        const size_t bytes = (size_t)(o->heads * o->dim * o->dim) * sizeof(float);
        c->moments = ice_alloc(1, sizeof *c->moments + bytes);
        if (!c->moments) {
            icecore_cache_free(c);
            return ICECORE_ERROR_MEMORY;
        }
        atomic_init(&c->moments->owners, 1);
        memcpy(c->moments->number, o->moments, bytes);
    }
    if (status == ICECORE_OK) *result = c;
    return status;
}

void icecore_cache_free(icecore_cache *c) {
    if (!c || c->lock.is_lost) return; /* what is in no known state is left alone */
    if (c->moments && atomic_fetch_sub(&c->moments->owners, 1) == 1) ice_free(c->moments);
    ice_queries_free(c);
    for (int64_t h = 0; c->head && h < c->options.heads; h++) {
        ice_stack_free(c->head[h].stack);
        ice_cache_drop_pending(&c->head[h], INT64_MAX, 0);
    }
    ice_free(c->head);
    ice_open_rows_release(c->sinks, 1);
    ice_open_rows_release(c->open, 1);
    ice_lock_end(&c->lock);
    ice_free(c);
}

static icecore_status copy_of(const icecore_cache *c, icecore_cache **result) {
    icecore_cache *copy;
    icecore_status status = create(&c->options, &copy);
    if (status != ICECORE_OK) return status;
    for (int64_t h = 0; h < c->options.heads && status == ICECORE_OK; h++) {
        ice_stack *stack;
        status = ice_stack_share(c->head[h].stack, &stack);
        if (status != ICECORE_OK) break;
        ice_stack_free(copy->head[h].stack);
        copy->head[h] = (ice_cache_head){.stack = stack, .sealed = c->head[h].sealed};
        for (int i = 0; i < ICE_NEXT_RANGES; i++) copy->head[h].pending[i] = ice_pending_share(c->head[h].pending[i]);
    }
    copy->moments = c->moments;
    if (c->moments) atomic_fetch_add(&c->moments->owners, 1);
    if (status == ICECORE_OK) status = ice_queries_copy(c, copy);
    if (status != ICECORE_OK) {
        icecore_cache_free(copy);
        return status;
    }
    copy->length = c->length;
    copy->evicted = c->evicted;
    copy->sealed = c->sealed;
    copy->offset = c->offset;
    copy->sinks = ice_open_rows_share(c->sinks);
    copy->open = ice_open_rows_share(c->open);
    *result = copy;
    return ICECORE_OK;
}

icecore_status icecore_cache_fork(icecore_cache *c, icecore_cache **result) {
    icecore_status status = ice_lock_write(&c->lock);
    if (status != ICECORE_OK) return status;
    status = copy_of(c, result);
    ice_unlock(&c->lock);
    return status;
}

/* ---- Appending ---- */

/* More rows than there are, in a new array: the fewer, the oftener all open ones, of two blocks at most, are copied
 * into the next.  Few tokens of a long block take little memory all the same. */
static int64_t spare_rows(int64_t rows, int64_t maximum) { return rows + 16 < maximum ? rows + 16 : maximum; }
static int64_t max_spare(const icecore_cache *c) { return c->options.block / 8 + 16; }

static ice_open_rows *new_rows(const icecore_cache *c, int64_t first, int64_t rows, int64_t maximum) {
    const icecore_cache_options *o = &c->options;
    return ice_open_rows_new(o->heads, o->dim, o->value_dim, ice_open_dtype(o, c->offset), first,
                             rows + spare_rows(rows, maximum));
}

ice_open_rows *ice_cache_new_rows(const icecore_cache *c, int64_t first, int64_t rows) {
    return new_rows(c, first, rows, max_spare(c));
}

/* Room for tokens length .. length + count - 1 behind those from `first` on, which are kept, in rows that nobody else
 * will write to. */
static icecore_status claim(const icecore_cache *c, ice_open_rows **rows, int64_t first, int64_t count,
                            int64_t maximum) {
    ice_open_rows *r = *rows;
    const int64_t end = c->length + count;
    if (r && !r->mapped && end <= r->first + r->capacity) {
        int64_t filled = c->length;
        if (atomic_load(&r->writers) == 1 && filled >= atomic_load(&r->read_end))
            atomic_store(&r->filled, filled); /* more, if tokens were forgotten */
        if (atomic_compare_exchange_strong(&r->filled, &filled, end)) return ICECORE_OK;
    }
    ice_open_rows *own = new_rows(c, first, end - first, maximum);
    if (!own) return ICECORE_ERROR_MEMORY;
    if (r) ice_open_rows_copy(r, own, first, c->length);
    own->filled = end;
    ice_open_rows_release(r, 1);
    *rows = own;
    return ICECORE_OK;
}

static void *row_at(icecore_tensor t, icecore_dtype dtype, int64_t head, int64_t row) {
    return (char *)t.data + (head * t.head_stride + row * t.row_stride) * (int64_t)ice_element_size(dtype);
}

/* Numbers from here on become infinite when they are rounded to `dtype`. */
static float overflow_of(icecore_dtype dtype) {
    if (dtype == ICECORE_FLOAT32) return INFINITY;
    /* a sum of 16 codes is at most 2.2 times as large, and a key less a mean twice */
    if (dtype == ICECORE_INT4) return 0x1p125f;
    return dtype == ICECORE_FLOAT16 ? 65520.0f : 0x1.FFp127f;
}

/* Returns whether `storage`, which rounds them now or when they are sealed, holds all finite numbers of the source. */
static int store(const ice_kernels *kernels, icecore_dtype storage, icecore_dtype dtype, const void *source,
                 icecore_dtype target_dtype, void *target, int64_t width) {
    float buffer[ICECORE_MAX_DIM];
    if (dtype == target_dtype && dtype == storage) {
        memcpy(target, source, (size_t)width * ice_element_size(dtype));
        return 1;
    }
    if (dtype != ICECORE_FLOAT32) {
        kernels->to_float32(dtype, source, buffer, width);
        source = buffer;
    }
    const float *numbers = source, overflow = overflow_of(storage);
    int over = 0;
    for (int64_t t = 0; t < width; t++) over |= (fabsf(numbers[t]) >= overflow) & (fabsf(numbers[t]) <= FLT_MAX);
    kernels->from_float32(target_dtype, numbers, target, width);
    return !over;
}

/* The first `count` of the new tokens into rows that have room for them. */
static icecore_status fill(const icecore_cache *c, ice_open_rows *rows, icecore_dtype dtype, icecore_tensor keys,
                           icecore_tensor values, int64_t count) {
    const ice_kernels *kernels = ice_active_kernels();
    const icecore_cache_options *o = &c->options;
    const icecore_dtype own = rows->dtype, storage = o->dtype == ICECORE_INT8 ? ICECORE_BFLOAT16 : o->dtype;
    for (int64_t h = 0; h < o->heads; h++)
        for (int64_t j = 0; j < count; j++) {
            if (j % ICE_UNASKED == ICE_UNASKED - 1 && ice_interrupted()) return ICECORE_INTERRUPTED;
            const void *key = row_at(keys, dtype, h, j), *value = row_at(values, dtype, h, j);
            if (!store(kernels, storage, dtype, key, own, ice_open_key(rows, h, c->length + j), o->dim) ||
                !store(kernels, storage, dtype, value, own, ice_open_value(rows, h, c->length + j), o->value_dim))
                return ICECORE_ERROR_RANGE;
        }
    return ICECORE_OK;
}

/* Puts tokens behind the last one, where nobody looks for them until the cache is longer. */
static icecore_status store_tokens(icecore_cache *c, icecore_dtype dtype, icecore_tensor keys, icecore_tensor values,
                                   int64_t count) {
    const int64_t first = c->sealed * c->options.block, sinks = c->options.sinks;
    const int64_t new_sinks = c->length + count < sinks ? count : sinks - c->length;
    icecore_status status = ICECORE_OK;
    if (new_sinks > 0) status = claim(c, &c->sinks, 0, new_sinks, sinks - c->length - new_sinks);
    if (status == ICECORE_OK) status = claim(c, &c->open, first, count, max_spare(c));
    if (status == ICECORE_OK && new_sinks > 0) status = fill(c, c->sinks, dtype, keys, values, new_sinks);
    return status == ICECORE_OK ? fill(c, c->open, dtype, keys, values, count) : status;
}

/* Where there is room for far more tokens than are open, the rest goes; if there is no memory for that it stays. */
static void shrink_open_rows(icecore_cache *c) {
    ice_open_rows *r = c->open;
    const int64_t first = c->sealed * c->options.block, kept = c->length - first;
    if (!r || r->capacity <= kept + 2 * c->options.block) return;
    ice_open_rows *own = ice_cache_new_rows(c, first, kept);
    if (!own) return;
    ice_open_rows_copy(r, own, first, c->length);
    own->filled = c->length;
    ice_open_rows_release(r, 1);
    c->open = own;
}

static icecore_status append(icecore_cache *c, icecore_dtype dtype, icecore_tensor keys, icecore_tensor values,
                             icecore_tensor queries, int64_t query_heads, int64_t count) {
    icecore_status status = store_tokens(c, dtype, keys, values, count);
    if (status == ICECORE_OK && queries.data) status = ice_queries_begin(c, query_heads / c->options.heads);
    if (status == ICECORE_OK && queries.data) status = ice_queries_note(c, dtype, queries, c->length, count);
    if (status == ICECORE_OK) {
        c->length += count;
    } else {
        ice_queries_truncate(c, c->length);
        shrink_open_rows(c);
    }
    return status;
}

/* Appends with another offset, which the new tokens tell.  The rows stay until that has succeeded: what is rounded does
 * not come back. */
static icecore_status append_with(icecore_cache *c, ice_offset offset, icecore_dtype dtype, icecore_tensor keys,
                                  icecore_tensor values, icecore_tensor queries, int64_t query_heads, int64_t count) {
    const ice_offset before = c->offset;
    ice_open_rows *sinks = ice_open_rows_share(c->sinks), *open = ice_open_rows_share(c->open);
    icecore_status status = ice_cache_set_offset(c, offset);
    if (status == ICECORE_OK) status = append(c, dtype, keys, values, queries, query_heads, count);
    if (status != ICECORE_OK) {
        ice_open_rows *other_sinks = c->sinks, *other_open = c->open;
        c->offset = before;
        c->sinks = sinks;
        c->open = open;
        sinks = other_sinks;
        open = other_open;
    }
    ice_open_rows_release(sinks, 1);
    ice_open_rows_release(open, 1);
    return status;
}

icecore_status icecore_cache_append(icecore_cache *c, icecore_dtype dtype, icecore_tensor keys, icecore_tensor values,
                                    icecore_tensor queries, int64_t query_heads, int64_t count) {
    if (dtype > ICECORE_BFLOAT16 || count < 0 || (count && (!keys.data || !values.data))) return ICECORE_ERROR_VALUE;
    if (queries.data && (query_heads < 1 || query_heads % c->options.heads)) return ICECORE_ERROR_VALUE;
    if (!ice_active_kernels()) return ICECORE_ERROR_ISA;
    icecore_status status = ice_lock_write(&c->lock);
    if (status != ICECORE_OK) return status;
    if (count > INT32_MAX - c->length) {
        status = ICECORE_ERROR_VALUE;
    } else if (count) {
        const ice_offset offset = ice_cache_find_offset(c, dtype, keys, count);
        status = offset == c->offset ? append(c, dtype, keys, values, queries, query_heads, count)
                                     : append_with(c, offset, dtype, keys, values, queries, query_heads, count);
    }
    ice_unlock(&c->lock);
    return status;
}

/* ---- Sealing ---- */

icecore_dtype ice_cache_means(const icecore_cache *c) {
    const icecore_cache_options *o = &c->options;
    if (ice_is_in_halves(o)) return ICECORE_BFLOAT16;
    const icecore_attention like = {
        .key_dtype = ice_open_dtype(o, c->offset), .dim = o->dim, .value_dim = o->value_dim};
    return ice_panel_dtype(&like, ice_active_kernels());
}

icecore_status ice_cache_fit_means(icecore_cache *c, int64_t head) {
    const icecore_dtype wanted = ice_cache_means(c);
    ice_stack *stack = c->head[head].stack;
    for (int64_t i = 0; i < stack->levels; i++) {
        icecore_segment *old = stack->level[i].segment;
        if (!old || old->mean_dtype == wanted) continue;
        icecore_segment *fitting = ice_segment_with_means(old, wanted, ice_active_kernels());
        if (!fitting) return ICECORE_ERROR_MEMORY;
        stack->level[i].segment = fitting;
        icecore_segment_free(old);
    }
    return ICECORE_OK;
}

ice_source ice_cache_source(const icecore_cache *c, const ice_cache_metric *metric) {
    const icecore_cache_options *o = &c->options;
    const int64_t head = metric->head, sealed = c->head[head].sealed * o->block;
    const int relative = c->offset == ICE_OFFSET_LARGE;
    /* keys that merges round anew: from segments as soon as they are in some, whether open rows still hold them or not
     */
    int64_t origin = c->open ? c->open->first : 0;
    if (c->open && relative && origin < sealed) origin = sealed;
    return (ice_source){
        .dtype = ice_open_dtype(o, c->offset),
        .storage = o->dtype,
        .means = ice_cache_means(c),
        .relative = relative,
        .halves = ice_is_in_halves(o),
        .keys = c->open ? ice_open_key(c->open, head, origin) : NULL,
        .values = c->open ? ice_open_value(c->open, head, origin) : NULL,
        .origin = origin,
        .key_stride = o->dim,
        .value_stride = o->value_dim,
        .dim = o->dim,
        .value_dim = o->value_dim,
        .sealed = c->head[head].stack->level,
        .sealed_count = c->head[head].stack->levels,
        .skip = ice_cache_first_in_cells(c),
        .block = o->block,
        .cell_size = o->cell_size,
        .seed = o->seed,
        .moments = ice_cache_moments,
        .moments_context = metric,
        .query_numbers = c->moments ? 0 : ice_query_numbers(o->dim),
        .add_query_sums = ice_add_query_sums,
    };
}

icecore_status ice_cache_seal(icecore_cache *c, int64_t head, int64_t blocks) {
    ice_cache_head *h = &c->head[head];
    if (h->sealed >= blocks) return ICECORE_OK;
    const ice_cache_metric metric = {c, head};
    const ice_source source = ice_cache_source(c, &metric);
    ice_stacked ready[ICE_NEXT_RANGES] = {{0}};
    ice_stack *stack;
    icecore_status status = ICECORE_OK;
    for (int i = 0; i < ICE_NEXT_RANGES && blocks == h->sealed + 1 && status == ICECORE_OK; i++) {
        if (!h->pending[i]) continue;
        ready[i] = (ice_stacked){h->pending[i]->first, h->pending[i]->end, NULL};
        status = ice_pending_finish(h->pending[i], &ready[i].segment);
    }
    if (status == ICECORE_OK) status = ice_stack_seal(&source, blocks, h->stack, ready, ICE_NEXT_RANGES, &stack);
    for (int i = 0; i < ICE_NEXT_RANGES; i++) icecore_segment_free(ready[i].segment);
    if (status != ICECORE_OK) return status;
    ice_stack_free(h->stack);
    ice_cache_drop_pending(h, INT64_MAX, 0);
    *h = (ice_cache_head){.stack = stack, .sealed = blocks};
    return ICECORE_OK;
}

void ice_cache_sealed(icecore_cache *c, int64_t blocks) {
    c->sealed = blocks;
    ice_queries_forget(c, blocks, INT64_MAX);
    shrink_open_rows(c); /* after a long chunk */
}

icecore_status ice_cache_prepare(icecore_cache *c, int64_t head) {
    const int64_t block = c->options.block, offset = (c->length - 1) % block;
    /* heads one after another, so that their larger steps do not coincide; ready with a sixteenth of the block to spare
     */
    const int64_t begin = head * block / (16 * c->options.heads), ready = block - block / 16;
    ice_cache_head *h = &c->head[head];
    if ((h->sealed + 1) * block >= c->length || offset < begin)
        return ICECORE_OK; /* once its last query is known, too */
    ice_stacked next[ICE_NEXT_RANGES];
    const int count = ice_stack_next_ranges(h->sealed, block, next);
    for (int i = 0; i < count; i++) {
        if (next[i].end <= ice_cache_first_in_cells(c)) continue;
        ice_pending **pending = &h->pending[i];
        icecore_status status = ICECORE_OK;
        if (!*pending) {
            const ice_cache_metric metric = {c, head};
            const ice_source source = ice_cache_source(c, &metric);
            status = ice_pending_begin(&source, h->stack, c->open, next[i].first, next[i].end, pending);
            if (status == ICECORE_OK) (*pending)->begun = offset;
        }
        if (status == ICECORE_OK) {
            const int64_t begun = (*pending)->begun;
            const double left = ready > begun ? (double)(ready - offset) / (double)(ready - begun + 1) : 0.0;
            status = ice_pending_step(*pending, left > 0.0 ? (int64_t)(left * (double)(*pending)->total) : 0);
        }
        if (status != ICECORE_OK) return status;
    }
    return ICECORE_OK;
}

/* ---- Looking ---- */

static int64_t bytes_of(const ice_open_rows *r) {
    return r && !r->mapped ? r->heads * r->capacity * (r->dim + r->value_dim) * (int64_t)ice_element_size(r->dtype) : 0;
}

static icecore_status state_of(const icecore_cache *c, icecore_cache_state *s) {
    icecore_status status = ICECORE_OK;
    *s = (icecore_cache_state){.length = c->length, .evicted = c->evicted, .sealed = c->sealed * c->options.block};
    s->first_query = ice_cache_max_sealed(c) * c->options.block;
    if (s->first_query) s->first_query--;
    s->open = c->length - s->sealed;
    s->held = ice_cache_held(c);
    s->bytes = bytes_of(c->sinks) + bytes_of(c->open) + ice_queries_bytes(c);
    for (int64_t h = 0; h < c->options.heads; h++) {
        const ice_stack *stack = c->head[h].stack;
        for (int64_t i = 0; i < stack->levels; i++) {
            if (!stack->level[i].segment) continue;
            s->segments += h == 0;
            s->bytes += ice_segment_bytes(stack->level[i].segment);
        }
        for (int i = 0; i < ICE_NEXT_RANGES && status == ICECORE_OK; i++)
            if (c->head[h].pending[i]) status = ice_pending_bytes(c->head[h].pending[i], &s->bytes);
    }
    return status;
}

icecore_status icecore_cache_get_state(icecore_cache *c, icecore_cache_state *state) {
    icecore_status status = ice_lock_write(&c->lock);
    if (status != ICECORE_OK) return status;
    status = state_of(c, state);
    ice_unlock(&c->lock);
    return status;
}
