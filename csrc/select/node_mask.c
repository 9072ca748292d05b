#include "select/node_mask.h"

#include <math.h>
#include <string.h>

/* A row opens all cells when those that the mask cuts leave it more than one in so many of the sealed keys: a panel
 * whose rows all do takes all keys at once, which costs less than runs of a few keys (measured with 2 % of an 8k text
 * hidden at random). */
#define DENSE_SHARE 6

float ice_mask_at(const icecore_attention *p, const ice_mask_row *row, int64_t key) {
    const int64_t at = row->offset + key * p->mask_key_stride;
    if (key < row->first || key >= row->end) return -INFINITY;
    if (p->mask_kind == ICECORE_MASK_NONE) return 0.0f;
    if (p->mask_kind == ICECORE_MASK_BOOL) return ((const uint8_t *)p->mask)[at] ? 0.0f : -INFINITY;
    return ice_mask_bias(((const float *)p->mask)[at]);
}

/* The keys of the stack lie in [first, end). */
static void find_sealed(const ice_stack *stack, int64_t *first, int64_t *end) {
    *first = INT64_MAX;
    *end = 0;
    for (int64_t level = 0; level < stack->levels; level++) {
        const ice_stacked *from = &stack->level[level];
        if (!from->segment) continue;
        *first = ice_min(*first, from->end - from->segment->count);
        *end = ice_max(*end, from->end);
    }
}

int ice_node_mask_is_needed(const ice_tile *tile, const ice_stack *stack) {
    int64_t first, end;
    if (tile->problem->mask_kind != ICECORE_MASK_NONE) return 1;
    if (!tile->problem->ranges) return 0;
    find_sealed(stack, &first, &end);
    for (int lane = 0; lane < tile->lanes; lane++)
        if (tile->visible[lane].begin > first || tile->visible[lane].end < end) return 1;
    return 0;
}

/* Ranges are cut to what is sealed, so that rows that differ elsewhere are alike. */
static void find_rows(ice_node_mask *mask, const ice_tile *tile, const ice_stack *stack) {
    int64_t sealed_first, sealed_end;
    find_sealed(stack, &sealed_first, &sealed_end);
    mask->rows = 0;
    for (int lane = 0; lane < tile->lanes; lane++) {
        const ice_visible *visible = &tile->visible[lane];
        ice_mask_row row = {.offset = ice_mask_offset(tile->problem, ice_tile_row(tile, lane)),
                            .first = ice_max(visible->begin, sealed_first),
                            .end = ice_min(visible->end, sealed_end)};
        if (row.first >= row.end) row.first = row.end = 0;
        int m = 0;
        while (m < mask->rows &&
               (mask->row[m].offset != row.offset || mask->row[m].first != row.first || mask->row[m].end != row.end))
            m++;
        if (m == mask->rows) mask->row[mask->rows++] = row;
        mask->row[m].lanes |= (uint64_t)1 << lane;
    }
}

/* Of the stored rows first .. end - 1 of a segment, in ascending order: how many the row leaves, and how many of these
 * as they are. */
static void count_seen(const icecore_attention *p, const ice_mask_row *row, const ice_stacked *from, int64_t first,
                       int64_t end, int64_t *seen, int64_t *plain) {
    const int32_t *order = from->segment->order;
    const int64_t stride = p->mask_key_stride, base = from->end - from->segment->count,
                  start = row->offset + base * stride;
    int64_t left = 0, unbiased = 0;
    if (base + order[end - 1] < row->first || base + order[first] >= row->end) end = first;
    while (first < end && base + order[first] < row->first) first++;
    while (first < end && base + order[end - 1] >= row->end) end--;
    if (p->mask_kind == ICECORE_MASK_NONE) {
        left = unbiased = end - first;
    } else if (p->mask_kind == ICECORE_MASK_BOOL) {
        const uint8_t *keep = (const uint8_t *)p->mask + start;
        for (int64_t j = first; j < end; j++) left += keep[order[j] * stride] != 0;
        unbiased = left;
    } else {
        const float *bias = (const float *)p->mask + start;
        for (int64_t j = first; j < end; j++) {
            left += bias[order[j] * stride] != -INFINITY;
            unbiased += bias[order[j] * stride] == 0.0f;
        }
    }
    *seen = left;
    *plain = unbiased;
}

/* Marks the nodes that one row hides or cuts. */
static void mark_nodes(ice_node_mask *mask, ice_mask_row *row, const icecore_attention *problem,
                       const ice_stack *stack) {
    int64_t number = 0, seen_in_cut = 0;
    for (int64_t level = 0; level < stack->levels; level++) {
        const ice_stacked *from = &stack->level[level];
        const icecore_segment *s = from->segment;
        if (!s) continue;
        for (int64_t p = 0; p < s->parent.count; p++) {
            int all_hidden = 1, any_marked = 0;
            for (int64_t c = s->parent.offset[p]; c < s->parent.offset[p + 1]; c++) {
                int64_t seen, plain, first = s->cell.offset[c], end = s->cell.offset[c + 1];
                count_seen(problem, row, from, first, end, &seen, &plain);
                uint64_t *mark = NULL;
                if (!seen) mark = mask->hidden;
                else if (plain < end - first) mark = mask->cut;
                if (mark) mark[number + s->parent.count + c] |= row->lanes;
                if (mark == mask->cut) seen_in_cut += seen;
                row->seen += seen;
                all_hidden &= !seen;
                any_marked |= mark != NULL;
            }
            if (any_marked) (all_hidden ? mask->hidden : mask->cut)[number + p] |= row->lanes;
        }
        number += s->parent.count + s->cell.count;
    }
    if (DENSE_SHARE * seen_in_cut > stack->keys) mask->dense |= row->lanes;
}

void ice_node_mask_read(ice_node_mask *mask, const ice_tile *tile, const ice_stack *stack) {
    memset(mask->hidden, 0, (size_t)stack->nodes * sizeof *mask->hidden);
    memset(mask->cut, 0, (size_t)stack->nodes * sizeof *mask->cut);
    find_rows(mask, tile, stack);
    for (int m = 0; m < mask->rows; m++) mark_nodes(mask, &mask->row[m], tile->problem, stack);
}
