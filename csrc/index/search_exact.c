/* Exact scores: of all vectors in panels, of few one by one. */
#include <math.h>

#include "base/order.h"
#include "index/search.h"

/* Up to this many are sorted by counting. */
#define MOST_RANKED 256
/* Rows compared at once. */
#define EXACT_BLOCK 64

void ice_compare_exactly(ice_search_space *w, int64_t q, const icecore_segment *segment, const int32_t *rows, int64_t count) {
    const ice_search_call *call = w->call;
    const icecore_index *index = call->index;
    const void *address[EXACT_BLOCK];
    int32_t slots[EXACT_BLOCK];
    float scores[EXACT_BLOCK];
    for (int64_t i = 0; i < count;) {
        int filled = 0;
        for (; i < count && filled < EXACT_BLOCK; i++) {
            int32_t slot = segment->order[rows[i]];
            if (!ice_is_wanted(call, slot)) continue;
            slots[filled] = slot;
            address[filled++] = ice_slot_row(&index->slots, slot);
        }
        call->kernels->gathered_scores(call->queries + (w->first + q) * index->options.dim, index->options.dim,
                                       index->options.metric == ICECORE_SQUARED_DISTANCE, index->options.dtype, address, filled, scores);
        w->visited[q] += filled;
        for (int j = 0; j < filled; j++) ice_collector_add(&w->collector, q, scores[j], slots[j]);
    }
}

void ice_scan_exactly(ice_search_space *w, const int32_t *slots, int64_t count) {
    const ice_search_call *call = w->call;
    const icecore_index_options *o = &call->index->options;
    const ice_slot_rows reader = {call->kernels, &call->index->slots, NULL};
    const int squared = o->metric == ICECORE_SQUARED_DISTANCE;
    int32_t slot[ICE_KEY_BLOCK];
    float bias[ICE_KEY_BLOCK], base[ICE_PANEL], threshold[ICE_PANEL];
    for (int64_t next = 0; next < count;) {
        int block = 0;
        for (; next < count && block < ICE_KEY_BLOCK; next++) {
            int32_t own = slots ? slots[next] : (int32_t)next;
            if (!ice_is_wanted(call, own)) continue;
            float *row = w->rows + block * o->dim;
            const float *x = ice_read_slot_row(&reader, own, row);
            double size = 0.0;
            for (int64_t t = 0; t < o->dim; t++) {
                row[t] = squared ? x[t] - call->center[t] : x[t];
                size += (double)row[t] * row[t];
            }
            bias[block] = squared ? (float)(-0.5 * size) : 0.0f;
            slot[block++] = own;
        }
        for (int64_t first = 0; first < w->count; first += ICE_PANEL) {
            int lanes = (int)ice_least(w->count - first, ICE_PANEL);
            for (int lane = 0; lane < ICE_PANEL; lane++) {
                const float *query = call->queries + (w->first + first + (lane < lanes ? lane : 0)) * o->dim;
                double size = 0.0;
                for (int64_t t = 0; t < o->dim; t++) {
                    float x = squared ? query[t] - call->center[t] : query[t];
                    w->panel[t * ICE_PANEL + lane] = x;
                    size += (double)x * x;
                }
                base[lane] = squared ? (float)(-0.5 * size) : 0.0f;
                threshold[lane] = lane < lanes ? w->collector.threshold[first + lane] : INFINITY;
            }
            call->kernels->scores(w->panel, o->dim, lanes, w->rows, o->dim, block, w->scores);
            for (int j = 0; j < block; j++)
                for (int lane = 0; lane < lanes; lane++) w->scores[j * ICE_PANEL + lane] += base[lane] + bias[j];
            int64_t found = call->kernels->find_at_least(w->scores, block, lanes, threshold, w->places);
            for (int64_t i = 0; i < found; i++)
                ice_collector_add(&w->collector, first + w->places[i] % ICE_PANEL, w->scores[w->places[i]],
                                  slot[w->places[i] / ICE_PANEL]);
        }
        for (int64_t q = 0; q < w->count; q++) w->visited[q] += block;
    }
}

/* Ties by the smaller id: runs of equal scores, which are short, are put in order by insertion. */
static void order_ties(const ice_search_call *call, const float *scores, int32_t *slots, int64_t count) {
    for (int64_t i = 1; i < count; i++) {
        if (scores[i] != scores[i - 1]) continue;
        int32_t slot = slots[i];
        int64_t id = *ice_slot_id(&call->index->slots, slot), j = i;
        for (; j > 0 && scores[j - 1] == scores[i] && *ice_slot_id(&call->index->slots, slots[j - 1]) > id; j--) slots[j] = slots[j - 1];
        slots[j] = slot;
    }
}

int64_t ice_compare_kept(ice_search_space *w, int64_t q) {
    const ice_search_call *call = w->call;
    const icecore_index *index = call->index;
    const icecore_index_options *o = &index->options;
    ice_collector_cut(&w->collector, q);
    int32_t *slots = w->collector.numbers + q * w->collector.capacity;
    float *scores = w->collector.scores + q * w->collector.capacity;
    int64_t count = w->collector.count[q];
    for (int64_t first = 0; first < count; first += EXACT_BLOCK) {
        int block = (int)ice_least(count - first, EXACT_BLOCK);
        const void *address[EXACT_BLOCK];
        for (int i = 0; i < block; i++) {
            address[i] = ice_slot_row(&index->slots, slots[first + i]);
            __builtin_prefetch(address[i]);
        }
        call->kernels->gathered_scores(call->queries + (w->first + q) * o->dim, o->dim, o->metric == ICECORE_SQUARED_DISTANCE, o->dtype,
                                       address, block, scores + first);
    }
    /* products of numbers near the end of the range: what is no number comes last */
    for (int64_t i = 0; i < count; i++) scores[i] = scores[i] == scores[i] ? scores[i] : -INFINITY;
    if (count <= MOST_RANKED) {
        call->kernels->rank(scores, count, w->rank);
    } else {
        for (int64_t i = 0; i < count; i++) w->spare[i] = (uint64_t)~ice_ordered(scores[i]) << 32 | (uint32_t)i;
        ice_sort(w->spare, w->spare + count, count);
        for (int64_t i = 0; i < count; i++) w->rank[(uint32_t)w->spare[i]] = (int32_t)i;
    }
    for (int64_t i = 0; i < count; i++) {
        w->final_scores[w->rank[i]] = scores[i];
        w->final_slots[w->rank[i]] = slots[i];
    }
    order_ties(call, w->final_scores, w->final_slots, count);
    return count;
}
