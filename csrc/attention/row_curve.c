#include "attention/row_curve.h"

/* The keys that a row of the mask leaves of a cell. */
static int64_t keys_of(const ice_traced_tile *own, int lane, const ice_node_run *cells, int64_t c) {
    const icecore_segment *s = cells->from->segment;
    const int64_t first = s->cell.offset[c], end = s->cell.offset[c + 1];
    if (!own->t->is_masked) return end - first;
    int64_t count = 0;
    for (int m = 0; m < own->t->mask.rows; m++)
        for (int64_t j = first; j < end && ((own->t->mask.row[m].lanes >> lane) & 1); j++)
            count += ice_mask_at(&own->problem, &own->t->mask.row[m], cells->from->end - s->count + s->order[j]) !=
                     -INFINITY;
    return count;
}

static void count_work(const ice_traced_tile *own, int lane, ice_curve *found) {
    const ice_selection *t = own->t;
    double near[ICE_GRID + 2] = {0}, nodes[ICE_GRID + 2] = {0};
    nodes[0] = (double)t->view.stack->parents;
    for (int64_t r = 0; r < t->parent_runs; r++) {
        const ice_node_run *parents = &t->run[r], *cells = &t->run[t->parent_runs + r];
        const icecore_segment *s = parents->from->segment;
        for (int64_t p = 0; p < parents->count; p++)
            nodes[own->end[(parents->row + p) * ICE_PANEL + lane]] +=
                (double)(s->parent.offset[p + 1] - s->parent.offset[p]);
        for (int64_t c = 0; c < cells->count; c++)
            near[own->end[(cells->row + c) * ICE_PANEL + lane]] += (double)keys_of(own, lane, cells, c);
    }
    for (int g = 0; g < ICE_GRID; g++) {
        if (g) near[g] += near[g - 1], nodes[g] += nodes[g - 1];
        found->near[g] = (float)near[g];
        found->nodes[g] = (float)nodes[g];
    }
}

/* Sorts the nodes' beginnings (n) and ends (~n) by level; first[g] .. first[g + 1] - 1 are those of level g. */
static void sort_events(const ice_traced_tile *own, int lane, int64_t first[ICE_GRID + 1]) {
    const int64_t rows = own->t->rows;
    int64_t next[ICE_GRID + 1] = {0};
    for (int64_t i = 0; i < rows; i++) {
        const int begin = own->begin[i * ICE_PANEL + lane], end = own->end[i * ICE_PANEL + lane];
        if (begin >= end) continue;
        next[begin]++;
        if (end < ICE_GRID) next[end]++;
    }
    int64_t total = 0;
    for (int g = 0; g < ICE_GRID; g++) {
        const int64_t count = next[g];
        first[g] = next[g] = total;
        total += count;
    }
    first[ICE_GRID] = total;
    for (int64_t i = 0; i < rows; i++) {
        const int begin = own->begin[i * ICE_PANEL + lane], end = own->end[i * ICE_PANEL + lane];
        if (begin >= end) continue;
        own->event[next[begin]++] = (int32_t)i;
        if (end < ICE_GRID) own->event[next[end]++] = (int32_t)~i;
    }
}

static void add_scaled(const ice_traced_tile *own, const ice_state *state, float share, float *sum) {
    const int64_t value_dim = own->problem.value_dim;
    if (share > 0.0f)
        own->t->view.kernels->row_weighted_sum(&share, 1, ICECORE_FLOAT32, state->accumulator, value_dim, value_dim,
                                               1.0f, sum);
}

/* What a state's sums count relative to `top`. */
static float share_of(const ice_state *state, float top) {
    return state->sum > 0.0f ? exp2f(state->maximum - top) : 0.0f;
}

void ice_row_curve(ice_traced_tile *own, int lane, ice_curve *found) {
    ice_selection *t = own->t;
    const ice_kernels *kernels = t->view.kernels;
    const int64_t value_dim = own->problem.value_dim;
    const ice_state *opened = own->opened + lane * ICE_GRID, *base = &own->base[lane], *all = &own->all[lane];
    float top = all->sum > 0.0f ? all->maximum : -INFINITY, *exact_output = own->output + ICE_GRID * value_dim,
          squared[ICE_GRID], running[ICECORE_MAX_DIM] = {0};
    const void *rows[ICE_GRID];
    int64_t first[ICE_GRID + 1];
    for (int g = 0; g < own->levels; g++)
        if (opened[g].sum > 0.0f) top = fmaxf(top, opened[g].maximum);
    for (int64_t i = 0; i < t->rows; i++)
        if (own->begin[i * ICE_PANEL + lane] < own->end[i * ICE_PANEL + lane])
            top = fmaxf(top, t->scores[i * ICE_PANEL + lane] + own->log2_count[i]);
    found->norm = NAN;
    if (!(top > -INFINITY && top < INFINITY)) return;
    /* the exact output, into the place behind the last level's */
    const float whole = share_of(all, top), share = share_of(base, top);
    const double mass = (double)(whole * all->sum);
    double exact = (double)(share * base->sum), means = 0.0, norm = 0.0;
    if (!(mass > 0.0)) return;
    for (int64_t i = 0; i < value_dim; i++) {
        exact_output[i] = all->accumulator[i] / all->sum;
        norm += (double)exact_output[i] * (double)exact_output[i];
    }
    add_scaled(own, base, share, running);
    sort_events(own, lane, first);
    int changes = 0, change_at[ICE_GRID]; /* the levels at which the output becomes another */
    for (int g = 0; g < ICE_GRID; g++) {
        const float opening = share_of(&opened[g], top);
        int64_t count = 0;
        double change = 0.0;
        for (int64_t e = first[g]; e < first[g + 1]; e++, count++) {
            const int64_t node = own->event[e] < 0 ? ~own->event[e] : own->event[e];
            const float weight = exp2f(t->scores[node * ICE_PANEL + lane] + own->log2_count[node] - top);
            own->weight[count] = own->event[e] < 0 ? -weight : weight;
            own->rows[count] = own->mean_value[node];
            change += (double)own->weight[count];
        }
        if (count)
            kernels->gathered_weighted_sum(own->weight, count, t->run[0].from->segment->mean_dtype, own->rows,
                                           value_dim, 1.0f, running);
        add_scaled(own, &opened[g], opening, running);
        means += change;
        exact += (double)(opening * opened[g].sum);
        if (count || opening > 0.0f || !g) {
            const float inverse = means + exact > 0.0 ? (float)(1.0 / (means + exact)) : 0.0f;
            float *row = own->output + g * value_dim;
            for (int64_t i = 0; i < value_dim; i++) row[i] = running[i] * inverse;
            rows[changes] = row;
            change_at[changes++] = g;
        }
        found->means[g] = (float)fmax(means / mass, 0.0);
        found->far[g] = (float)fmax(1.0 - exact / mass, 0.0);
    }
    kernels->gathered_scores(exact_output, value_dim, 1.0f, ICECORE_FLOAT32, rows, changes, squared);
    for (int g = 0, i = 0; g < ICE_GRID; g++) {
        if (i + 1 < changes && change_at[i + 1] == g) i++;
        found->distance[g] = -2.0f * squared[i];
    }
    count_work(own, lane, found);
    found->norm = (float)sqrt(norm);
}
