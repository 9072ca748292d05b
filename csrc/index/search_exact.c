/* Exact scores: of all vectors in panels, of few one by one. */
#include <math.h>
#include <string.h>

#include "base/order.h"
#include "base/parallel.h"
#include "index/search_exact.h"

/* Up to this many are sorted by counting. */
#define MAX_RANKED 256
/* Rows compared at once. */
#define EXACT_BLOCK 64

void ice_compare_exactly(ice_search_space *w, int64_t q, const ice_tree *segment, const int32_t *rows, int64_t count) {
    const ice_search_call *call = w->call;
    const icecore_index *index = call->index;
    for (int64_t first = 0; first < count; first += EXACT_BLOCK) {
        const int block = (int)ice_min(count - first, EXACT_BLOCK);
        const void *address[EXACT_BLOCK];
        float scores[EXACT_BLOCK];
        for (int i = 0; i < block; i++) address[i] = ice_slot_row(&index->slots, segment->order[rows[first + i]]);
        call->kernels->gathered_scores(ice_scaled_query(w, q), index->options.dim, call->scale, index->options.dtype,
                                       address, block, scores);
        for (int i = 0; i < block; i++) ice_collector_add(&w->collector, q, scores[i], segment->order[rows[first + i]]);
    }
    w->visited[q] += count;
}

/* The queries first .. first + lanes - 1 of the chunk in w->panel. */
static void fill_panel(ice_search_space *w, int64_t first, int lanes) {
    const ice_search_call *call = w->call;
    const int64_t dim = call->index->options.dim;
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        const float *query = ice_scaled_query(w, first + (lane < lanes ? lane : 0));
        for (int64_t t = 0; t < dim; t++) w->panel[t * ICE_PANEL + lane] = query[t];
    }
}

void ice_scan_exactly(ice_search_space *w, const int32_t *slots, int64_t count) {
    const ice_search_call *call = w->call;
    const ice_kernels *kernels = call->kernels;
    const icecore_index_options *o = &call->index->options;
    const ice_slot_rows reader = {kernels, &call->index->slots, NULL};
    int32_t slot[ICE_KEY_BLOCK];
    float threshold[ICE_PANEL];
    for (int64_t next = 0; next < count;) {
        int block = 0;
        for (; next < count && block < ICE_KEY_BLOCK; next++) {
            if (!slots && call->allowed) { /* straight to the next, of what may be very few */
                const uint8_t *found = memchr(call->allowed + next, 1, (size_t)(count - next));
                next = found ? found - call->allowed : count;
                if (!found) break;
            }
            int32_t own = slots ? slots[next] : (int32_t)next;
            if (!ice_is_wanted(call, own)) continue;
            float *row = w->rows + block * o->dim;
            const float *x = ice_read_slot_row(&reader, own, row);
            if (x != row) memcpy(row, x, (size_t)o->dim * sizeof *row);
            slot[block++] = own;
        }
        for (int64_t first = 0; first < w->count && block; first += ICE_PANEL) {
            if (ice_interrupted()) return;
            int lanes = (int)ice_min(w->count - first, ICE_PANEL);
            fill_panel(w, first, lanes);
            for (int lane = 0; lane < ICE_PANEL; lane++)
                threshold[lane] = lane < lanes ? w->collector.threshold[first + lane] : INFINITY;
            if (o->metric == ICECORE_SQUARED_DISTANCE)
                kernels->squared_distances(w->panel, o->dim, lanes, call->scale, w->rows, o->dim, block, w->scores);
            else kernels->scores(w->panel, o->dim, lanes, w->rows, o->dim, block, w->scores);
            int64_t found = kernels->find_at_least(w->scores, block, lanes, threshold, w->places);
            for (int64_t i = 0; i < found; i++)
                ice_collector_add(&w->collector, first + w->places[i] % ICE_PANEL, w->scores[w->places[i]],
                                  slot[w->places[i] / ICE_PANEL]);
        }
        for (int64_t q = 0; q < w->count; q++) w->visited[q] += block;
    }
}

static int64_t id_of(const ice_search_call *call, int32_t slot) { return *ice_slot_id(&call->index->slots, slot); }

/* Sinks slots[top] in a heap of `count` whose top is the largest id. */
static void sink(const ice_search_call *call, int32_t *slots, int64_t top, int64_t count) {
    const int32_t slot = slots[top];
    const int64_t id = id_of(call, slot);
    for (int64_t child; (child = 2 * top + 1) < count; top = child) {
        if (child + 1 < count && id_of(call, slots[child + 1]) > id_of(call, slots[child])) child++;
        if (id_of(call, slots[child]) <= id) break;
        slots[top] = slots[child];
    }
    slots[top] = slot;
}

/* By heap: runs of equal scores are short, but where vectors are copies or of few values as long as what is asked for.
 */
static void order_by_id(const ice_search_call *call, int32_t *slots, int64_t count) {
    for (int64_t top = count / 2 - 1; top >= 0; top--) sink(call, slots, top, count);
    for (int64_t last = count - 1; last > 0; last--) {
        const int32_t largest = slots[0];
        slots[0] = slots[last];
        slots[last] = largest;
        sink(call, slots, 0, last);
    }
}

/* Ties by the smaller id. */
static void order_ties(const ice_search_call *call, const float *scores, int32_t *slots, int64_t count) {
    for (int64_t first = 0, end; first < count; first = end) {
        for (end = first + 1; end < count && scores[end] == scores[first];) end++;
        order_by_id(call, slots + first, end - first);
    }
}

/* Whether what was left out may be among the k best; scores: all `count` that were kept.  What codes are off by is
 * found from those that are not among the best, as the others are not: vectors of larger norms are off by more. */
static int is_unsure(const ice_search_space *w, int64_t q, const float *scores, int64_t count) {
    const int64_t k = w->call->search->k, others = count - k;
    double sum = 0.0, squares = 0.0;
    if (count < w->call->keep || count == w->call->wanted || others < 1) return 0; /* nothing was left out */
    for (int64_t i = 0; i < count; i++) {
        if (w->rank[i] < k) continue;
        const double difference = (double)scores[i] - (double)w->coded[i];
        sum += difference;
        squares += difference * difference;
    }
    const double mean = sum / (double)others, variance = squares / (double)others - mean * mean;
    const double above = (double)w->final_scores[k - 1] - ((double)w->collector.threshold[q] + mean);
    return above < ICE_UNSURE * sqrt(fmax(variance, 0.0));
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
        int block = (int)ice_min(count - first, EXACT_BLOCK);
        const void *address[EXACT_BLOCK];
        float exact[EXACT_BLOCK];
        for (int i = 0; i < block; i++) {
            address[i] = ice_slot_row(&index->slots, slots[first + i]);
            __builtin_prefetch(address[i]);
        }
        call->kernels->gathered_scores(ice_scaled_query(w, q), o->dim, call->scale, o->dtype, address, block, exact);
        memcpy(w->coded + first, scores + first, (size_t)block * sizeof *exact);
        memcpy(scores + first, exact, (size_t)block * sizeof *exact);
    }
    /* products of numbers near the end of the range: what is no number comes last */
    for (int64_t i = 0; i < count; i++) scores[i] = scores[i] == scores[i] ? scores[i] : -INFINITY;
    if (count <= MAX_RANKED) {
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
    if (call->unsure && !call->rows) call->unsure[ice_query_row(w, q)] = (uint8_t)is_unsure(w, q, scores, count);
    return count;
}
