#include "cache/pending.h"

#include <string.h>

#include "base/memory.h"

icecore_status ice_pending_begin(const ice_source *source, const ice_stack *stack, ice_open_rows *open, int64_t first,
                                 int64_t end, ice_pending **result) {
    ice_pending *p = ice_alloc(1, sizeof *p);
    if (!p) return ICECORE_ERROR_MEMORY;
    memset(p, 0, sizeof *p);
    p->owners = 1;
    p->first = first;
    p->end = end;
    p->skip = source->skip;
    ice_lock_begin(&p->lock);
    icecore_status status = ice_stack_share(stack, &p->stack);
    ice_source own = *source;
    if (status == ICECORE_OK) {
        own.sealed = p->stack->level;
        status = ice_sealing_begin(&p->sealing, &own, first, end);
    }
    if (status != ICECORE_OK) {
        ice_stack_free(p->stack);
        ice_lock_end(&p->lock);
        ice_free(p);
        return status;
    }
    p->total = p->sealing.left;
    p->open = open;
    ice_open_rows_share_reading(open, end);
    *result = p;
    return ICECORE_OK;
}

ice_pending *ice_pending_share(ice_pending *p) {
    if (p) atomic_fetch_add(&p->owners, 1);
    return p;
}

/* Lets go of what was only read. */
static void end_reading(ice_pending *p) {
    if (!p->stack) return;
    ice_sealing_end(&p->sealing);
    ice_stack_free(p->stack);
    ice_open_rows_release(p->open, 0);
    p->stack = NULL;
    p->open = NULL;
}

void ice_pending_release(ice_pending *p) {
    if (!p || atomic_fetch_sub(&p->owners, 1) > 1 || p->lock.is_lost) return;
    end_reading(p);
    icecore_segment_free(p->segment);
    ice_lock_end(&p->lock);
    ice_free(p);
}

static icecore_status step(ice_pending *p, int64_t left) {
    if (p->segment || p->sealing.left <= left) return ICECORE_OK;
    icecore_status status = ice_sealing_step(&p->sealing, p->sealing.left - left);
    if (status != ICECORE_OK || !ice_builder_done(&p->sealing.builder)) return status;
    p->segment = ice_builder_take(&p->sealing.builder);
    end_reading(p);
    return ICECORE_OK;
}

icecore_status ice_pending_step(ice_pending *p, int64_t left) {
    if (ice_lock_try(&p->lock) != ICECORE_OK) return ICECORE_OK;
    icecore_status status = step(p, left);
    ice_unlock(&p->lock);
    return status;
}

icecore_status ice_pending_finish(ice_pending *p, icecore_segment **segment) {
    icecore_status status = ice_lock_write(&p->lock);
    if (status != ICECORE_OK) return status == ICECORE_ERROR_FORKED ? ICECORE_OK : status;
    while (status == ICECORE_OK && !p->segment) status = step(p, p->sealing.left - (INT64_MAX >> 1));
    if (status == ICECORE_OK) *segment = ice_segment_share(p->segment);
    ice_unlock(&p->lock);
    return status;
}

icecore_status ice_pending_bytes(ice_pending *p, int64_t *bytes) {
    icecore_status status = ice_lock_read(&p->lock);
    if (status != ICECORE_OK) return status == ICECORE_ERROR_FORKED ? ICECORE_OK : status;
    if (p->segment) *bytes += p->segment->owned.bytes;
    if (p->stack) {
        const ice_builder *b = &p->sealing.builder;
        *bytes += b->segment ? b->segment->owned.bytes : b->keys.count * 4 * (int64_t)sizeof(int32_t);
        *bytes += p->sealing.rows.sealed * (p->sealing.rows.base ? 3 : 2) * (int64_t)sizeof(void *);
    }
    ice_unlock(&p->lock);
    return ICECORE_OK;
}
