#include "segment/stack.h"

#include <stddef.h>
#include <string.h>

#include "base/memory.h"

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

int64_t ice_stack_levels(int64_t blocks, int64_t block) {
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

int ice_stack_nodes_fit(int64_t count, int64_t cells, int64_t parents, int64_t cell_size) {
    return 1 <= parents && parents <= cells && cells <= count && parents <= count / cell_size / ICE_CELLS_PER_PARENT + 1 &&
           cells <= count / cell_size + parents;
}

icecore_status ice_sealing_begin(ice_sealing *sealing, const ice_source *source, int64_t first, int64_t end) {
    const int64_t start = first < source->skip ? source->skip : first;
    const ice_kernels *kernels = ice_active_kernels();
    *sealing = (ice_sealing){.first = first, .end = end, .left = ice_builder_work(end - start, source->cell_size)};
    icecore_status status = ice_source_begin(&sealing->rows, kernels, source, start, end);
    if (status != ICECORE_OK) return status;
    const ice_rows keys = {ice_read_source_key, &sealing->rows, end - start, source->dim};
    const ice_rows values = {ice_read_source_value, &sealing->rows, end - start, source->value_dim};
    status = ice_builder_begin(&sealing->builder, kernels, keys, values, source->storage, source->means, source->cell_size,
                               ice_segment_seed(source->seed, start, end - start));
    if (status != ICECORE_OK) ice_source_end(&sealing->rows);
    return status;
}

icecore_status ice_sealing_step(ice_sealing *sealing, int64_t work) {
    const int64_t asked = work;
    icecore_status status = ice_builder_step(&sealing->builder, &work);
    sealing->left -= asked - work;
    return status;
}

void ice_sealing_end(ice_sealing *sealing) {
    ice_builder_end(&sealing->builder);
    ice_source_end(&sealing->rows);
}

static icecore_status build(const ice_source *source, int64_t first, int64_t end, icecore_segment **segment) {
    ice_sealing sealing;
    *segment = NULL;
    if (source->skip >= end) return ICECORE_OK;
    icecore_status status = ice_sealing_begin(&sealing, source, first, end);
    if (status != ICECORE_OK) return status;
    status = ice_sealing_step(&sealing, INT64_MAX);
    if (status == ICECORE_OK) *segment = ice_builder_take(&sealing.builder);
    ice_sealing_end(&sealing);
    return status;
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

void ice_stack_add_up(ice_stack *stack) {
    stack->nodes = stack->keys = 0;
    for (int64_t i = 0; i < stack->levels; i++) {
        const icecore_segment *s = stack->level[i].segment;
        if (!s) continue;
        stack->nodes += s->cell.count + s->parent.count;
        stack->keys += s->count;
    }
}

int64_t ice_stack_drop(ice_stack *stack, int64_t end) {
    int64_t last = 0;
    for (int64_t i = 0; i < stack->levels && stack->level[i].end <= end; i++) {
        icecore_segment_free(stack->level[i].segment);
        stack->level[i].segment = NULL;
        last = stack->level[i].end;
    }
    ice_stack_add_up(stack);
    return last;
}

ice_stack *ice_stack_empty(int64_t blocks, int64_t block) {
    ice_stack *stack = empty_stack(ice_stack_levels(blocks, block));
    for (int64_t first = 0; stack && blocks; stack->levels++) {
        int64_t size = next_size(blocks, block);
        stack->level[stack->levels] = (ice_stacked){first, first + size * block, NULL};
        first += size * block;
        blocks -= size;
    }
    return stack;
}

/* Gives the stack to *result, or frees it when `status` is not OK. */
static icecore_status finish(ice_stack *stack, icecore_status status, ice_stack **result) {
    ice_stack_add_up(stack);
    if (status == ICECORE_OK) *result = stack;
    else ice_stack_free(stack);
    return status;
}

void ice_stack_next_range(int64_t blocks, int64_t block, int64_t *first, int64_t *end) {
    *first = 0;
    for (int64_t left = blocks + 1, size; left; left -= size) {
        size = next_size(left, block);
        if (left > size) *first += size * block;
    }
    *end = (blocks + 1) * block;
}

icecore_status ice_stack_share(const ice_stack *stack, ice_stack **result) {
    ice_stack *copy = empty_stack(stack->levels);
    if (!copy) return ICECORE_ERROR_MEMORY;
    memcpy(copy, stack, sizeof *stack + (size_t)stack->levels * sizeof *stack->level);
    for (int64_t i = 0; i < copy->levels; i++) ice_segment_share(copy->level[i].segment);
    *result = copy;
    return ICECORE_OK;
}

icecore_status ice_stack_seal(const ice_source *source, int64_t blocks, const ice_stack *previous, const ice_stacked *ready,
                              ice_stack **result) {
    ice_stack *stack = empty_stack(ice_stack_levels(blocks, source->block));
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
        else if (ready && ready->first == first && ready->end == end)
            added->segment = ice_segment_share(ready->segment);
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
