/* Ties at the bound of what a collector keeps. */
#include "index/collector.h"

#include "base/order.h"

/* Larger for smaller ids, of either sign. */
static uint64_t precedence(const ice_collector *c, int32_t slot) {
    return ~((uint64_t)*ice_slot_id(c->slots, slot) ^ (uint64_t)1 << 63);
}

void ice_collector_cut_ties(const ice_collector *c, float *scores, int32_t *numbers, int64_t count, float bound) {
    int64_t ties = 0, kept = 0;
    for (int64_t i = 0; i < count; i++)
        if (scores[i] == bound) c->spare[ties++] = precedence(c, numbers[i]);
    const int64_t wanted = c->keep - (count - ties);
    ice_select_largest(c->spare, ties, wanted);
    uint64_t last = UINT64_MAX;
    for (int64_t i = 0; i < wanted; i++) last = c->spare[i] < last ? c->spare[i] : last;
    for (int64_t i = 0; i < count; i++) {
        if (scores[i] == bound && precedence(c, numbers[i]) < last) continue;
        scores[kept] = scores[i];
        numbers[kept++] = numbers[i];
    }
}
