#include "segment/stack.h"

#include <stddef.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"

/* How many blocks there must be for the `size` blocks at `first` and as many behind them to be one segment; `first` is
 * a multiple of twice the size.  Pairs that wait become one segment after an odd number of blocks, when nothing else
 * does. */
static int64_t merged_from(int64_t first, int64_t size, int64_t block) {
    if (first >= 6 * size || 2 * size * block <= ICE_MERGED_AT_ONCE) return first + 2 * size;
    return ((7 * size) | 1) + first / size;
}

int64_t ice_stacked_blocks(int64_t first, int64_t blocks, int64_t block) {
    int64_t size = 1;
    while (first % (2 * size) == 0 && 2 * size * block <= ICE_LARGEST_SEGMENT &&
           blocks >= merged_from(first, size, block))
        size *= 2;
    return size;
}

int64_t ice_stack_levels(int64_t blocks, int64_t block) {
    int64_t levels = 0;
    for (int64_t first = 0; first < blocks; levels++) first += ice_stacked_blocks(first, blocks, block);
    return levels;
}

/* Of a size that is not the largest there are at most 7 segments: 6 that wait, and one without a second half. */
int64_t ice_stack_max_levels(int64_t keys, int64_t block) {
    int64_t maximum = keys / (ICE_LARGEST_SEGMENT / 2) + 7;
    for (int64_t size = block; size < ICE_LARGEST_SEGMENT; size *= 2) maximum += 7;
    return maximum < keys / block ? maximum : keys / block;
}

int64_t ice_stack_max_nodes(int64_t keys, int64_t cell_size) {
    /* each segment rounds to the nearest number of parents and may have one more, of what is apart, each parent rounds
     * to the nearest number of cells, and each has at least one; of a size that is not the largest there are at most 7
     * segments: 6 that wait, and one without a second half */
    int64_t levels = keys / (ICE_LARGEST_SEGMENT / 2) + 7 * 16;
    const int64_t wanted = keys / cell_size + levels, parents = wanted / ICE_CELLS_PER_PARENT + 3 * levels,
                  cells = wanted + parents;
    return cells + cells / ICE_CELLS_PER_APART + parents;
}

int ice_stack_nodes_fit(int64_t count, int64_t cells, int64_t parents, int64_t cell_size) {
    const int64_t wanted = count / cell_size;
    if (parents < 1 || parents > wanted / ICE_CELLS_PER_PARENT + 2) return 0; /* of a file they may be anything */
    return parents <= cells && cells <= count && cells <= wanted + parents + (wanted + parents) / ICE_CELLS_PER_APART;
}

icecore_status ice_sealing_begin(ice_sealing *sealing, const ice_source *source, int64_t first, int64_t end) {
    const int64_t start = first < source->skip ? source->skip : first;
    const ice_kernels *kernels = ice_active_kernels();
    *sealing = (ice_sealing){.first = first, .end = end, .left = ice_builder_work(end - start, source->cell_size)};
    icecore_status status = ice_source_begin(&sealing->rows, kernels, source, start, end);
    if (status != ICECORE_OK) return status;
    const ice_rows keys = {ice_read_source_key, &sealing->rows, end - start, source->dim, ice_stored_source_key};
    const ice_rows values = {ice_read_source_value, &sealing->rows, end - start, source->value_dim,
                             ice_stored_source_value};
    float *moments = source->moments ? ice_alloc(source->dim * source->dim, sizeof(float)) : NULL;
    float *sum = source->query_numbers ? ice_alloc(source->query_numbers, sizeof(float)) : NULL;
    if ((source->moments && !moments) || (source->query_numbers && !sum)) status = ICECORE_ERROR_MEMORY;
    if (status == ICECORE_OK) {
        const int known = moments ? source->moments(source->moments_context, first, end, moments) : 0;
        if (known < 0) status = ICECORE_ERROR_MEMORY;
        else
            status = ice_builder_begin(&sealing->builder,
                                       &(ice_builder_plan){.kernels = kernels,
                                                           .keys = keys,
                                                           .values = values,
                                                           .storage = source->storage,
                                                           .means = source->means,
                                                           .moments = known ? moments : NULL,
                                                           .cell_size = source->cell_size,
                                                           .seed = ice_range_seed(source->seed, start, end - start)});
    }
    ice_free(moments);
    if (status == ICECORE_OK) sealing->builder.relative = source->relative;
    if (status == ICECORE_OK) sealing->builder.halves = source->halves;
    if (status == ICECORE_OK && sum) {
        memset(sum, 0, (size_t)source->query_numbers * sizeof *sum);
        source->add_query_sums(source->moments_context, first, end, sum);
        sealing->builder.query_numbers = source->query_numbers;
        sealing->builder.query_sum = sum;
    } else {
        ice_free(sum);
    }
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
    stack->parents = stack->nodes = stack->keys = 0;
    for (int64_t i = 0; i < stack->levels; i++) {
        const icecore_segment *s = stack->level[i].segment;
        if (!s) continue;
        stack->parents += s->parent.count;
        stack->nodes += s->cell.count + s->parent.count;
        stack->keys += s->count;
    }
}

int64_t ice_stack_droppable(const ice_stack *stack, int64_t end) {
    int64_t last = 0;
    for (int64_t i = 0; i < stack->levels && stack->level[i].end <= end; i++) last = stack->level[i].end;
    return last;
}

void ice_stack_drop(ice_stack *stack, int64_t end) {
    for (int64_t i = 0; i < stack->levels && stack->level[i].end <= end; i++) {
        icecore_segment_free(stack->level[i].segment);
        stack->level[i].segment = NULL;
    }
    ice_stack_add_up(stack);
}

ice_stack *ice_stack_empty(int64_t blocks, int64_t block) {
    ice_stack *stack = empty_stack(ice_stack_levels(blocks, block));
    for (int64_t first = 0, size; stack && first < blocks; first += size) {
        size = ice_stacked_blocks(first, blocks, block);
        stack->level[stack->levels++] = (ice_stacked){first * block, (first + size) * block, NULL};
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

int ice_stack_next_ranges(int64_t blocks, int64_t block, ice_stacked range[ICE_NEXT_RANGES]) {
    int count = 0;
    for (int64_t first = 0, size; first <= blocks; first += size) {
        size = ice_stacked_blocks(first, blocks + 1, block);
        if (first + size <= blocks && ice_stacked_blocks(first, blocks, block) == size) continue;
        range[count++] = (ice_stacked){first * block, (first + size) * block, NULL};
    }
    return count;
}

icecore_status ice_stack_share(const ice_stack *stack, ice_stack **result) {
    ice_stack *copy = empty_stack(stack->levels);
    if (!copy) return ICECORE_ERROR_MEMORY;
    memcpy(copy, stack, sizeof *stack + (size_t)stack->levels * sizeof *stack->level);
    for (int64_t i = 0; i < copy->levels; i++) ice_segment_share(copy->level[i].segment);
    *result = copy;
    return ICECORE_OK;
}

/* The segment of `count` that covers first .. end - 1, one more owner of it; or NULL. */
static icecore_segment *find(const ice_stacked *among, int64_t count, const ice_stacked *range) {
    for (int64_t i = 0; i < count; i++)
        if (among[i].first == range->first && among[i].end == range->end) return ice_segment_share(among[i].segment);
    return NULL;
}

icecore_status ice_stack_seal(const ice_source *source, int64_t blocks, const ice_stack *previous,
                              const ice_stacked *ready, int ready_count, ice_stack **result) {
    ice_stack *stack = ice_stack_empty(blocks, source->block);
    if (!stack) return ICECORE_ERROR_MEMORY;
    icecore_status status = ICECORE_OK;
    for (int64_t i = 0; i < stack->levels && status == ICECORE_OK; i++) {
        ice_stacked *level = &stack->level[i];
        level->segment = find(ready, ready_count, level);
        if (!level->segment && previous) level->segment = find(previous->level, previous->levels, level);
        if (!level->segment) status = build(source, level->first, level->end, &level->segment);
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
