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

/* log2(e) h(x): cell_risk in kernels.h. */
static ALWAYS_INLINE vf risk_of_spread(vf x) {
    vf share = vf_div(x, vf_add(x, vf_set1(12.0f)));
    return vf_mul(vf_mul(x, vf_set1(0.25f * 1.44269504f)), vf_add(vf_set1(1.0f), share));
}

static void cell_risk(float *block, int64_t cells, int lanes, const float *log2_risk, const float *variance, const float *spread,
                      const float *half_log2_spread, const float *hidden, float *risk) {
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        vf width = vf_load(spread + lane), level = vf_load(half_log2_spread + lane), aside = hidden ? vf_load(hidden + lane) : vf_zero();
        for (int64_t c = 0; c < cells; c++) {
            float *score = block + c * ICE_PANEL + lane;
            vf x = vf_mul(width, vf_set1(variance[c])), z = vf_add(vf_load(score), aside);
            if (hidden) vf_store(score, z);
            vf_store(risk + c * ICE_PANEL + lane, vf_add(vf_add(z, vf_add(level, vf_set1(log2_risk[c]))), risk_of_spread(x)));
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

static void open_cells(float *block, const float *risk, int64_t cells, int lanes, const float *threshold, const float *log2_count,
                       uint64_t *open) {
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

static uint64_t row_open_cells(float *scores, int64_t cells, const float *log2_risk, const float *variance, const float *log2_count,
                               float spread, float half_log2_spread, float threshold) {
    const vf width = vf_set1(spread), level = vf_set1(half_log2_spread), bound = vf_set1(threshold), nothing = vf_set1(-INFINITY);
    uint64_t open = 0;
    for (int64_t c = 0; c < cells; c += VF_WIDTH) {
        const int n = cells - c < VF_WIDTH ? (int)(cells - c) : VF_WIDTH;
        vf score = vf_load_n(scores + c, n), growth = risk_of_spread(vf_mul(width, vf_load_n(variance + c, n)));
        vm closed = vf_gt(bound, vf_add(vf_add(score, vf_add(level, vf_load_n(log2_risk + c, n))), growth));
        vf_store_n(scores + c, vf_select(closed, vf_add(score, vf_load_n(log2_count + c, n)), nothing), n);
        open |= ((((uint64_t)1 << n) - 1) & ~(uint64_t)vm_bits(closed)) << c;
    }
    return open;
}
