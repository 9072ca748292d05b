#include "index/slots.h"

#include <string.h>

#include "base/memory.h"

/* Bytes of one chunk, all of its arrays in one piece. */
static size_t chunk_bytes(const ice_slots *s) {
    return ICE_SLOT_CHUNK * (s->row_bytes + sizeof(int64_t) + sizeof(int32_t) + 2);
}

icecore_status ice_slots_reserve(ice_slots *s, int64_t count) {
    int64_t wanted = (count + ICE_SLOT_CHUNK - 1) / ICE_SLOT_CHUNK;
    if (count > INT32_MAX - ICE_SLOT_CHUNK) return ICECORE_ERROR_MEMORY;
    if (wanted > s->capacity) {
        int64_t capacity = 2 * s->capacity > wanted ? 2 * s->capacity : wanted;
        ice_slot_chunk *grown = ice_alloc(capacity, sizeof *grown);
        if (!grown) return ICECORE_ERROR_MEMORY;
        if (s->chunks) memcpy(grown, s->chunk, (size_t)s->chunks * sizeof *grown);
        ice_free(s->chunk);
        s->chunk = grown;
        s->capacity = capacity;
    }
    while (s->chunks < wanted) {
        char *memory = ice_alloc(1, chunk_bytes(s));
        if (!memory) return ICECORE_ERROR_MEMORY;
        ice_slot_chunk *chunk = &s->chunk[s->chunks++];
        chunk->rows = memory;
        chunk->id = (int64_t *)(memory + ICE_SLOT_CHUNK * s->row_bytes);
        chunk->cell = (int32_t *)(chunk->id + ICE_SLOT_CHUNK);
        chunk->state = (uint8_t *)(chunk->cell + ICE_SLOT_CHUNK);
        chunk->home = chunk->state + ICE_SLOT_CHUNK;
        memset(chunk->state, ICE_SLOT_FREE, ICE_SLOT_CHUNK);
    }
    return ICECORE_OK;
}

void ice_slots_end(ice_slots *s) {
    for (int64_t i = 0; s->owned && i < s->chunks; i++) ice_free(s->chunk[i].rows);
    if (!s->owned && s->chunks) ice_free(s->chunk[0].cell);
    ice_free(s->chunk);
    s->chunk = NULL;
    s->chunks = s->capacity = s->count = s->free = 0;
}

int64_t ice_slots_bytes(const ice_slots *s) {
    int64_t bytes = s->capacity * (int64_t)sizeof *s->chunk;
    if (s->owned) return bytes + s->chunks * (int64_t)chunk_bytes(s);
    return s->chunks && s->chunk[0].cell ? bytes + s->chunks * ICE_SLOT_CHUNK * (int64_t)sizeof(int32_t) : bytes;
}

icecore_status ice_slots_reserve_cells(ice_slots *s) {
    int32_t *cell = ice_alloc(s->chunks * ICE_SLOT_CHUNK, sizeof *cell);
    if (!cell) return ICECORE_ERROR_MEMORY;
    for (int64_t i = 0; i < s->chunks; i++) s->chunk[i].cell = cell + i * ICE_SLOT_CHUNK;
    return ICECORE_OK;
}

int32_t ice_slots_take(ice_slots *s) {
    if (!s->free) return (int32_t)s->count++;
    int32_t slot = s->free - 1;
    s->free = (int32_t)*ice_slot_id(s, slot);
    return slot;
}

void ice_slots_give(ice_slots *s, int32_t slot) {
    *ice_slot_state(s, slot) = ICE_SLOT_FREE;
    memset(ice_slot_row(s, slot), 0, s->row_bytes);
    *ice_slot_id(s, slot) = s->free;
    s->free = slot + 1;
}

void ice_slots_cut(ice_slots *s, int64_t count) {
    const int64_t wanted = (count + ICE_SLOT_CHUNK - 1) / ICE_SLOT_CHUNK;
    while (s->chunks > wanted) ice_free(s->chunk[--s->chunks].rows);
    for (int64_t slot = count; slot < s->chunks * ICE_SLOT_CHUNK; slot++) {
        memset(ice_slot_row(s, slot), 0, s->row_bytes);
        *ice_slot_state(s, slot) = ICE_SLOT_FREE;
    }
    s->count = count;
    s->free = 0;
}

const float *ice_read_slot_row(const void *slot_rows, int64_t row, float *buffer) {
    const ice_slot_rows *r = slot_rows;
    const void *stored = ice_slot_row(r->slots, r->slot ? r->slot[row] : row);
    if (r->slots->dtype == ICECORE_FLOAT32) return stored;
    r->kernels->to_float32(r->slots->dtype, stored, buffer, r->slots->dim);
    return buffer;
}
