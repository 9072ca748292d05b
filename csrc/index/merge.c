/* Merging segments beside the work: a log-structured merge whose steps ride on insertions and removals.
 *
 * Segments of one size class (powers of two of the open block) merge as soon as there are two.  A merge of n vectors
 * gets two vectors' share of its work with every insertion, so it ends within n / 2 of them, before the next two of its
 * class can have come. */
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "index/index.h"

/* A segment with more than this share of removed vectors is built anew. */
#define MAX_REMOVED 0.33

static int size_class(const ice_sealed *sealed) {
    int class = 0;
    for (int64_t size = ice_used_in(sealed) / ICE_OPEN_BLOCK; size > 1; size /= 2) class++;
    return class;
}

ice_tree_plan ice_index_plan(const icecore_index *index, const ice_kernels *kernels, const ice_slot_rows *rows,
                             int64_t count) {
    const icecore_index_options *o = &index->options;
    return (ice_tree_plan){
        .kernels = kernels,
        .rows = {ice_read_slot_row, rows, count, o->dim, NULL},
        .metric = o->metric,
        .levels = o->levels,
        .promotion = o->promotion,
        .composites = o->composites,
        .simples = o->simples,
        .directions = index->directions,
        .seed = ice_range_seed(o->seed, (int64_t)index->seals, count),
    };
}

int ice_index_has_room(const icecore_index *index) {
    int unused = 0;
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) unused += !index->sealed[n].segment;
    return unused > 1;
}

void ice_index_adopt(icecore_index *index, ice_tree *segment) {
    int number = 0;
    while (index->sealed[number].segment) number++;
    for (int64_t i = 0; i < segment->count; i++) *ice_slot_home(&index->slots, segment->order[i]) = (uint8_t)number;
    index->sealed[number] = (ice_sealed){segment, ice_index_count_used(index, segment), 0};
    ice_index_enter_cells(index, number);
    index->seals++;
}

void ice_index_enter_cells(icecore_index *index, int number) {
    const ice_tree *segment = index->sealed[number].segment;
    for (int64_t c = 0; c < segment->cells; c++)
        for (int64_t i = segment->offset[c]; i < segment->offset[c + 1]; i++)
            *ice_slot_cell(&index->slots, segment->order[i]) = (int32_t)c;
}

int64_t ice_index_count_used(const icecore_index *index, ice_tree *segment) {
    int64_t removed = segment->count;
    for (int64_t c = 0; c < segment->cells; c++) {
        segment->used[c] = 0;
        for (int64_t i = segment->offset[c]; i < segment->offset[c + 1]; i++)
            segment->used[c] += *ice_slot_state(&index->slots, segment->order[i]) == ICE_SLOT_USED;
        removed -= segment->used[c];
    }
    return removed;
}

void ice_index_drop(icecore_index *index, int number) {
    ice_tree *segment = index->sealed[number].segment;
    for (int64_t i = 0; i < segment->count; i++) {
        int32_t slot = segment->order[i];
        if (*ice_slot_home(&index->slots, slot) != number || *ice_slot_state(&index->slots, slot) != ICE_SLOT_REMOVED)
            continue;
        ice_slots_give(&index->slots, slot);
        index->removed--;
    }
    ice_tree_free(segment);
    index->sealed[number] = (ice_sealed){0};
}

static void end_merge(icecore_index *index, ice_merge *merge) {
    for (int i = 0; i < merge->from_count; i++) index->sealed[merge->from[i]].merging = 0;
    ice_tree_end(merge->builder);
    ice_free(merge->slot);
    *merge = (ice_merge){0};
}

void ice_merge_drop_all(icecore_index *index) {
    for (int m = 0; m < ICE_MAX_MERGES; m++)
        if (index->merge[m].builder) end_merge(index, &index->merge[m]);
}

static void begin(icecore_index *index, const uint8_t *from, int from_count) {
    const ice_kernels *kernels = ice_active_kernels();
    ice_merge *merge = index->merge;
    while (merge < index->merge + ICE_MAX_MERGES && merge->builder) merge++;
    if (merge == index->merge + ICE_MAX_MERGES || !kernels) return;
    int64_t count = 0;
    for (int i = 0; i < from_count; i++) count += ice_used_in(&index->sealed[from[i]]);
    merge->slot = ice_alloc(count, sizeof *merge->slot);
    if (!merge->slot) return;
    merge->count = 0;
    for (int i = 0; i < from_count; i++) {
        const ice_tree *segment = index->sealed[from[i]].segment;
        for (int64_t j = 0; j < segment->count; j++)
            if (*ice_slot_state(&index->slots, segment->order[j]) == ICE_SLOT_USED)
                merge->slot[merge->count++] = segment->order[j];
    }
    merge->rows = (ice_slot_rows){kernels, &index->slots, merge->slot};
    ice_tree_plan plan = ice_index_plan(index, kernels, &merge->rows, merge->count);
    merge->work = ice_tree_work(&plan);
    if (ice_tree_begin(&plan, &merge->builder) != ICECORE_OK) {
        ice_free(merge->slot);
        *merge = (ice_merge){0};
        return;
    }
    memcpy(merge->from, from, (size_t)from_count);
    merge->from_count = from_count;
    for (int i = 0; i < from_count; i++) index->sealed[from[i]].merging = 1;
}

static int is_worn(const ice_sealed *sealed) {
    return (double)sealed->removed > MAX_REMOVED * (double)sealed->segment->count;
}

/* Whether a segment with much removed fits into the open block, where few vectors belong. */
static int fits_open_block(const icecore_index *index, const ice_sealed *sealed) {
    return is_worn(sealed) && index->open_count + ice_used_in(sealed) < ICE_OPEN_BLOCK;
}

static void move_to_open_block(icecore_index *index, int number) {
    const ice_tree *segment = index->sealed[number].segment;
    for (int64_t i = 0; i < segment->count; i++) {
        const int32_t slot = segment->order[i];
        if (*ice_slot_state(&index->slots, slot) != ICE_SLOT_USED) continue;
        *ice_slot_home(&index->slots, slot) = ICE_HOME_OPEN;
        index->open[index->open_count++] = slot;
    }
    ice_index_drop(index, number);
}

void ice_merge_begin_due(icecore_index *index) {
    uint8_t members[ICE_MAX_SEGMENTS];
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) {
        ice_sealed *sealed = &index->sealed[n];
        if (!ice_used_in(sealed) || sealed->merging || fits_open_block(index, sealed)) continue;
        int count = 0, class = size_class(sealed);
        members[count++] = (uint8_t)n;
        for (int other = n + 1; other < ICE_MAX_SEGMENTS; other++) {
            const ice_sealed *o = &index->sealed[other];
            if (ice_used_in(o) && !o->merging && size_class(o) == class) members[count++] = (uint8_t)other;
        }
        if (count > 1 || is_worn(sealed)) begin(index, members, count);
    }
}

static void finish(icecore_index *index, ice_merge *merge) {
    ice_tree *segment = ice_tree_take(merge->builder);
    uint8_t from[ICE_MAX_SEGMENTS];
    int from_count = merge->from_count;
    memcpy(from, merge->from, (size_t)from_count);
    ice_index_adopt(index, segment);
    end_merge(index, merge);
    for (int i = 0; i < from_count; i++) ice_index_drop(index, from[i]);
}

icecore_status ice_merge_step(icecore_index *index, int64_t shares, int threads) {
    for (int m = 0; m < ICE_MAX_MERGES; m++) {
        ice_merge *merge = &index->merge[m];
        if (!merge->builder) continue;
        /* a share is a few visits, and those are made by whole panels, so `owed` may run negative */
        int64_t work = (merge->work / merge->count + 1) * shares + merge->owed;
        icecore_status status = ice_tree_step(merge->builder, &work, threads);
        if (status == ICECORE_INTERRUPTED) return status;
        merge->owed = work;
        if (merge->slot && ice_tree_rename(merge->builder, merge->slot)) { /* one array the less */
            ice_free(merge->slot);
            merge->rows.slot = merge->slot = NULL;
        }
    }
    return ICECORE_OK;
}

void ice_merge_settle(icecore_index *index) {
    for (int m = 0; m < ICE_MAX_MERGES; m++)
        if (index->merge[m].builder && ice_tree_done(index->merge[m].builder)) finish(index, &index->merge[m]);
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++) {
        const ice_sealed *sealed = &index->sealed[n];
        if (!sealed->segment || sealed->merging) continue;
        if (!ice_used_in(sealed)) ice_index_drop(index, n);
        else if (fits_open_block(index, sealed)) move_to_open_block(index, n);
    }
    ice_merge_begin_due(index);
}
