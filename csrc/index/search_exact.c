/* Exact scores: of all vectors in panels, of few one by one. */
#include <float.h>
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

/* ---- Vectors of sizes that differ by more than float32 does ---- */

/* Of halves of squared distances, whose sums of squares would lose digits. */
#define SMALLEST_SCORE 0x1p-100f

static const float *query_of(const ice_search_space *w, int64_t q) {
    return w->call->queries + ice_query_row(w, q) * w->call->index->options.dim;
}

static int differ(const float *x, const float *y, int64_t dim) {
    int found = 0;
    for (int64_t t = 0; t < dim && !found; t++) found = x[t] != y[t];
    return found;
}

int ice_is_out_of_scale(const ice_search_space *w, int64_t q, int64_t found) {
    const ice_search_call *call = w->call;
    const ice_slot_rows reader = {call->kernels, &call->index->slots, NULL};
    if (found && w->final_scores[found - 1] == -INFINITY) return 1;
    for (int64_t i = 0; i < found && w->final_scores[i] > -SMALLEST_SCORE; i++) {
        const float *row = ice_read_slot_row(&reader, w->final_slots[i], w->rows);
        if (differ(row, query_of(w, q), call->index->options.dim)) return 1;
    }
    return 0;
}

/* The nearest so far, the farthest on top; of equal ones the largest id. */
typedef struct {
    const ice_search_call *call;
    double *distance;
    int32_t *slot;
    int64_t count;
} nearest;

static int is_nearer(const nearest *n, double distance, int32_t slot, int64_t than) {
    if (distance != n->distance[than]) return distance < n->distance[than];
    return id_of(n->call, slot) < id_of(n->call, n->slot[than]);
}

/* Sinks what is to stand on top of the first `count`. */
static void place(nearest *n, double distance, int32_t slot, int64_t count) {
    int64_t top = 0;
    for (int64_t child; (child = 2 * top + 1) < count; top = child) {
        if (child + 1 < count && is_nearer(n, n->distance[child], n->slot[child], child + 1)) child++;
        if (!is_nearer(n, distance, slot, child)) break;
        n->distance[top] = n->distance[child];
        n->slot[top] = n->slot[child];
    }
    n->distance[top] = distance;
    n->slot[top] = slot;
}

/* Before there are k: lets it rise from the end. */
static void enter(nearest *n, double distance, int32_t slot) {
    int64_t at = n->count++;
    for (int64_t above; at > 0; at = above) {
        above = (at - 1) / 2;
        if (is_nearer(n, distance, slot, above)) break;
        n->distance[at] = n->distance[above];
        n->slot[at] = n->slot[above];
    }
    n->distance[at] = distance;
    n->slot[at] = slot;
}

static void order(nearest *n) {
    for (int64_t last = n->count - 1; last > 0; last--) {
        const double distance = n->distance[last], farthest = n->distance[0];
        const int32_t slot = n->slot[last], farthest_slot = n->slot[0];
        place(n, distance, slot, last);
        n->distance[last] = farthest;
        n->slot[last] = farthest_slot;
    }
}

int64_t ice_find_in_double(ice_search_space *w, int64_t q) {
    const ice_search_call *call = w->call;
    const int64_t dim = call->index->options.dim, slots = call->index->slots.count;
    const ice_slot_rows reader = {call->kernels, &call->index->slots, NULL};
    const float *query = query_of(w, q);
    nearest n = {call, (double *)w->spare, w->final_slots, 0};
    for (int64_t slot = 0; slot < slots; slot++) {
        if (slot % ICE_KEY_BLOCK == 0 && ice_interrupted()) return 0;
        if (!ice_is_wanted(call, (int32_t)slot)) continue;
        const float *row = ice_read_slot_row(&reader, slot, w->rows);
        double distance = 0.0;
        for (int64_t t = 0; t < dim; t++) {
            const double difference = (double)query[t] - (double)row[t];
            distance += difference * difference;
        }
        w->visited[q]++;
        if (n.count < call->search->k) enter(&n, distance, (int32_t)slot);
        else if (is_nearer(&n, distance, (int32_t)slot, 0)) place(&n, distance, (int32_t)slot, n.count);
    }
    order(&n);
    for (int64_t i = 0; i < n.count; i++)
        w->final_scores[i] = n.distance[i] > (double)FLT_MAX ? INFINITY : (float)n.distance[i];
    return n.count;
}
