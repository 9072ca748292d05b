#include "segment/stack.h"

#include <stddef.h>
#include <string.h>

#include "base/memory.h"
#include "segment/groups.h"

static int64_t largest_size(int64_t block) {
    int64_t size = 1;
    while (2 * size * block <= ICE_LARGEST_SEGMENT) size *= 2;
    return size;
}

/* Blocks of the first segment of a stack of `blocks`, then of what is left. */
static int64_t next_size(int64_t blocks, int64_t block) {
    int64_t size = largest_size(block);
    while (size > blocks) size /= 2;
    return size;
}

static int64_t count_levels(int64_t blocks, int64_t block) {
    int64_t levels = 0;
    for (; blocks; levels++) blocks -= next_size(blocks, block);
    return levels;
}

int64_t ice_stack_most_nodes(int64_t keys, int64_t block, int64_t cell_size) {
    /* each segment rounds to the nearest number of parents, each parent to that of cells, and each has at least one; one full segment
     * after the other, and one of every smaller size */
    int64_t levels = keys / (largest_size(block) * block) + 64;
    int64_t cells = keys / cell_size + levels, parents = cells / ICE_CELLS_PER_PARENT + 2 * levels;
    return cells + 2 * parents;
}

static icecore_status build(const ice_source *source, int64_t first, int64_t end, icecore_segment **segment) {
    int64_t start = first < source->skip ? source->skip : first;
    *segment = NULL;
    if (start >= end) return ICECORE_OK;
    int64_t element = (int64_t)ice_element_size(source->dtype);
    return icecore_segment_build(source->dtype, (const char *)source->keys + start * source->key_stride * element,
                                 source->key_stride, (const char *)source->values + start * source->value_stride * element,
                                 source->value_stride, end - start, source->dim, source->value_dim, source->storage, source->cell_size,
                                 ice_segment_seed(source->seed, start, end - start), segment);
}

void ice_stack_free(ice_stack *stack) {
    if (!stack) return;
    for (int64_t i = 0; i < stack->levels; i++) icecore_segment_free(stack->level[i].segment);
    ice_free(stack);
}

static ice_stack *empty_stack(int64_t levels) {
    size_t bytes = sizeof(ice_stack) + (size_t)levels * sizeof(ice_stacked);
    ice_stack *stack = ice_alloc(1, bytes);
    if (stack) memset(stack, 0, bytes);
    return stack;
}

/* Adds up the segments; gives the stack to *result, or frees it when `status` is not OK. */
static icecore_status finish(ice_stack *stack, icecore_status status, ice_stack **result) {
    for (int64_t i = 0; i < stack->levels; i++) {
        const icecore_segment *s = stack->level[i].segment;
        if (!s) continue;
        stack->nodes += s->cell.count + s->parent.count;
        stack->keys += s->count;
    }
    if (status == ICECORE_OK) *result = stack;
    else ice_stack_free(stack);
    return status;
}

icecore_status ice_stack_seal(const ice_source *source, int64_t blocks, const ice_stack *previous, ice_stack **result) {
    ice_stack *stack = empty_stack(count_levels(blocks, source->block));
    if (!stack) return ICECORE_ERROR_MEMORY;
    icecore_status status = ICECORE_OK;
    int64_t first = 0;
    while (blocks && status == ICECORE_OK) {
        int64_t size = next_size(blocks, source->block), level = stack->levels, end = first + size * source->block;
        const ice_stacked *old = previous && level < previous->levels ? &previous->level[level] : NULL;
        ice_stacked *added = &stack->level[level];
        *added = (ice_stacked){first, end, NULL};
        if (old && old->first == first && old->end == end)
            added->segment = ice_segment_share(old->segment);
        else
            status = build(source, first, end, &added->segment);
        stack->levels++;
        first = end;
        blocks -= size;
    }
    return finish(stack, status, result);
}

icecore_status ice_stack_seal_all(const ice_source *source, int64_t end, ice_stack **result) {
    ice_stack *stack = empty_stack(1);
    if (!stack) return ICECORE_ERROR_MEMORY;
    stack->levels = 1;
    stack->level[0] = (ice_stacked){0, end, NULL};
    return finish(stack, build(source, 0, end, &stack->level[0].segment), result);
}
