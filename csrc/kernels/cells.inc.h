/* Cell kernels: assignment of keys to parents, and which cells to open. */

static void nearest(const float *block, int64_t count, int lanes, const float *bias, int64_t first, float *best,
                    float *best_index) {
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        vf top = vf_load(best + lane), index = vf_load(best_index + lane);
        for (int64_t j = 0; j < count; j++) {
            vf score = vf_add(vf_load(block + j * ICE_PANEL + lane), vf_set1(bias[j]));
            vm nearer = vf_gt(score, top);
            top = vf_select(nearer, score, top);
            index = vf_select(nearer, vf_set1((float)(first + j)), index);
        }
        vf_store(best + lane, top);
        vf_store(best_index + lane, index);
    }
}

/* F(x, n) of cell_risk in kernels.h; half_log2: of x. */
static ALWAYS_INLINE vf log2_spread(vf x, vf half_log2, vf log2_count, vf largest) {
    const vf share = vf_div(x, vf_add(x, vf_set1(12.0f)));
    const vf few = vf_add(half_log2, vf_mul(vf_mul(x, vf_set1(0.25f * 1.44269504f)), vf_add(vf_set1(1.0f), share)));
    const vf frozen = vf_sub(vf_sqrt(vf_mul(vf_mul(x, log2_count), vf_set1(2.88539008f))), log2_count);
    return vf_min(vf_select(vf_gt(x, vf_mul(log2_count, vf_set1(1.38629436f))), frozen, few), largest);
}

static void cell_risk(float *block, int64_t cells, int lanes, const ice_node_facts *of, const ice_spreads *rows,
                      const float *hidden, float *risk) {
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        const vf spread = vf_load(rows->variance + lane), level = vf_load(rows->half_log2 + lane),
                 norm = vf_load(rows->norm + lane);
        const vf aside = hidden ? vf_load(hidden + lane) : vf_zero();
        for (int64_t c = 0; c < cells; c++) {
            float *score = block + c * ICE_PANEL + lane;
            const vf x = vf_mul(spread, vf_set1(of->variance[c])), z = vf_add(vf_load(score), aside);
            const vf wide = log2_spread(x, vf_add(level, vf_set1(of->half_log2_variance[c])),
                                        vf_set1(of->log2_count[c]), vf_mul(norm, vf_set1(of->radius[c])));
            if (hidden) vf_store(score, z);
            vf_store(risk + c * ICE_PANEL + lane, vf_add(vf_add(z, vf_set1(of->log2_weight[c])), wide));
        }
    }
}

static void count_at_least(const float *risk, int64_t cells, int lanes, const float *count, const float *threshold,
                           float *keys, float *opened) {
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        vf bound = vf_load(threshold + lane), total = vf_zero(), number = vf_zero();
        const vf one = vf_set1(1.0f), zero = vf_zero();
        for (int64_t c = 0; c < cells; c++) {
            vm closed = vf_gt(bound, vf_load(risk + c * ICE_PANEL + lane));
            total = vf_add(total, vf_select(closed, zero, vf_set1(count[c])));
            number = vf_add(number, vf_select(closed, zero, one));
        }
        vf_store(keys + lane, total);
        vf_store(opened + lane, number);
    }
}

static void open_cells(float *block, const float *risk, int64_t cells, int lanes, const float *threshold,
                       const float *log2_count, uint64_t *open) {
    const uint64_t all = ((uint64_t)1 << VF_WIDTH) - 1;
    const vf nothing = vf_set1(-INFINITY);
    for (int64_t c = 0; c < cells; c++) open[c] = 0;
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        vf bound = vf_load(threshold + lane);
        for (int64_t c = 0; c < cells; c++) {
            float *score = block + c * ICE_PANEL + lane;
            vm closed = vf_gt(bound, vf_load(risk + c * ICE_PANEL + lane));
            open[c] |= (all & ~(uint64_t)vm_bits(closed)) << lane;
            vf_store(score, vf_select(closed, vf_add(vf_load(score), vf_set1(log2_count[c])), nothing));
        }
    }
}

static uint64_t row_open_cells(float *scores, int64_t cells, const ice_node_facts *of, const ice_spreads *row,
                               float threshold) {
    const vf spread = vf_set1(*row->variance), level = vf_set1(*row->half_log2), norm = vf_set1(*row->norm);
    const vf bound = vf_set1(threshold), nothing = vf_set1(-INFINITY);
    uint64_t open = 0;
    for (int64_t c = 0; c < cells; c += VF_WIDTH) {
        const int n = cells - c < VF_WIDTH ? (int)(cells - c) : VF_WIDTH;
        const vf score = vf_load_n(scores + c, n), count = vf_load_n(of->log2_count + c, n);
        const vf wide = log2_spread(vf_mul(spread, vf_load_n(of->variance + c, n)),
                                    vf_add(level, vf_load_n(of->half_log2_variance + c, n)), count,
                                    vf_mul(norm, vf_load_n(of->radius + c, n)));
        const vm closed = vf_gt(bound, vf_add(vf_add(score, vf_load_n(of->log2_weight + c, n)), wide));
        vf_store_n(scores + c, vf_select(closed, vf_add(score, count), nothing), n);
        open |= ((((uint64_t)1 << n) - 1) & ~(uint64_t)vm_bits(closed)) << c;
    }
    return open;
}
