/* The published rule (IceFormer, arXiv 2405.02842): the keys with the largest scores, the rest dropped. */
#include <string.h>

#include "select/selection.h"
#include "select/top_k.h"

/* Keys whose scores are known, side by side: each as a mean that stands for itself. */
static void attend_kept(ice_selection *t, int lane, icecore_dtype dtype, int64_t kept) {
    const int64_t value_dim = t->problem->value_dim;
    const size_t bytes = ice_row_bytes(dtype, value_dim);
    char *values = (char *)t->tile.values;
    for (int64_t first = 0; first < kept; first += ICE_KEY_BLOCK) {
        const int64_t count = kept - first < ICE_KEY_BLOCK ? kept - first : ICE_KEY_BLOCK;
        for (int64_t j = 0; j < count; j++) memcpy(values + (size_t)j * bytes, t->visited_value[first + j], bytes);
        ice_tile_add_means_to(&t->tile, (uint64_t)1 << lane, dtype, t->visited + first, 0, values, count);
    }
}

/* With far_field = 0, for one row: the near_keys largest scores of the visited keys; the rest of them is counted as
 * dropped. */
static void add_largest(ice_selection *t, int lane) {
    icecore_dtype dtype = ICECORE_FLOAT32;
    int64_t visited = 0;
    const ice_mask_row *mask = NULL;
    for (int m = 0; ice_is_masked(t) && m < t->mask.rows; m++)
        if ((t->mask.row[m].lanes >> lane) & 1) mask = &t->mask.row[m];
    for (int64_t r = t->parent_runs; r < t->runs; r++) {
        const ice_node_run *now = &t->run[r];
        const icecore_segment *s = now->from->segment;
        dtype = s->dtype;
        for (int64_t i = 0; i < now->count; i++) {
            if (!((t->open[now->row + i] >> lane) & 1)) continue;
            int64_t first = s->cell.offset[now->node + i], count = s->cell.offset[now->node + i + 1] - first;
            ice_tile_score_row(&t->tile, lane, s->dtype, ice_key_of(s, first), count, t->visited + visited);
            const float *scores = t->visited + visited;
            for (int64_t j = 0; j < count; j++) {
                float bias =
                          mask ? ice_mask_at(t->problem, mask, now->from->end - s->count + s->order[first + j]) : 0.0f,
                      own = scores[j] + bias;
                if (bias == -INFINITY) continue;
                t->visited[visited] = own;
                t->visited_copy[visited] = own != own ? INFINITY : own; /* a NaN is kept and shows */
                t->visited_value[visited++] = ice_value_of(s, first + j);
            }
        }
    }
    if (!visited) return;
    int64_t kept = visited;
    if (visited > t->options->near_keys) {
        kept = t->options->near_keys;
        float minimum = ice_kth_largest(t->visited_copy, visited, kept);
        int64_t above = 0, n = 0;
        float correction;
        for (int64_t j = 0; j < visited; j++) above += !(t->visited[j] <= minimum);
        int64_t ties = kept - above; /* of the keys equal to the least, the first ones */
        for (int64_t j = 0; j < visited; j++) {
            float own = t->visited[j];
            if (!(own < minimum) && (own != minimum || ties-- > 0)) {
                t->visited_value[n] = t->visited_value[j];
                t->visited[n++] = own;
            } else {
                t->visited_copy[j - n] = own;
            }
        }
        t->kernels->row_softmax(t->visited_copy, visited - n, &t->dropped_maximum[lane], &t->dropped[lane],
                                &correction);
        kept = n;
    }
    attend_kept(t, lane, dtype, kept);
    t->near_count[lane] = kept;
}

/* What far_field = 0 drops unseen: the cells not opened. */
static void count_dropped(ice_selection *t, int lane) {
    float correction;
    for (int64_t r = 0; r < t->runs; r++) {
        const ice_node_run *now = &t->run[r];
        for (int64_t i = 0; i < now->count; i++) {
            float mass = t->scores[(now->row + i) * ICE_PANEL + lane];
            t->kernels->row_softmax(&mass, 1, &t->dropped_maximum[lane], &t->dropped[lane], &correction);
        }
    }
}

void ice_attend_largest(ice_selection *t) {
    for (int lane = 0; lane < t->tile.lanes; lane++) {
        add_largest(t, lane);
        count_dropped(t, lane);
    }
}
