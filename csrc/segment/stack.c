#include "segment/stack.h"

#include <stddef.h>

static icecore_status push(ice_stack *stack, const ice_source *source, int64_t first, int64_t end) {
    ice_stacked stacked = {first, end, NULL};
    int64_t start = first < source->skip ? source->skip : first;
    if (start < end) {
        size_t element = source->dtype == ICECORE_FLOAT32 ? 4 : 2;
        const char *keys = (const char *)source->keys + start * source->key_stride * (int64_t)element;
        const char *values = (const char *)source->values + start * source->value_stride * (int64_t)element;
        icecore_status status = icecore_segment_build(
            source->dtype, keys, source->key_stride, values, source->value_stride, end - start, source->dim, source->value_dim,
            source->cell_size, ice_segment_seed(source->seed, start, end - start), &stacked.segment);
        if (status != ICECORE_OK) return status;
    }
    stack->level[stack->levels++] = stacked;
    return ICECORE_OK;
}

static void pop(ice_stack *stack) { icecore_segment_free(stack->level[--stack->levels].segment); }

void ice_stack_clear(ice_stack *stack) {
    while (stack->levels) pop(stack);
}

icecore_status ice_stack_seal(ice_stack *stack, const ice_source *source, int64_t blocks) {
    int64_t first = 0;
    int kept = 0, matching = 1;
    for (int bit = ICE_STACK_LEVELS - 1; bit >= 0; bit--) {
        if (!((blocks >> bit) & 1)) continue;
        int64_t end = first + ((int64_t)1 << bit) * source->block;
        if (matching && kept < stack->levels && stack->level[kept].first == first && stack->level[kept].end == end) {
            kept++;
        } else {
            if (matching)
                while (stack->levels > kept) pop(stack);
            matching = 0;
            icecore_status status = push(stack, source, first, end);
            if (status != ICECORE_OK) return status;
        }
        first = end;
    }
    if (matching)
        while (stack->levels > kept) pop(stack);
    return ICECORE_OK;
}

icecore_status ice_stack_seal_all(ice_stack *stack, const ice_source *source, int64_t end) {
    ice_stack_clear(stack);
    return push(stack, source, 0, end);
}
