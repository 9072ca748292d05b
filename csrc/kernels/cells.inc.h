/* Cell kernels: assignment of keys to parents, and the far field's weights and risks. */

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

static void cell_maximum(const float *block, int64_t cells, int lanes, const float *log2_count, float *maximum) {
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        vf top = vf_load(maximum + lane);
        for (int64_t c = 0; c < cells; c++)
            top = vf_max(top, vf_add(vf_load(block + c * ICE_PANEL + lane), vf_set1(log2_count[c])));
        vf_store(maximum + lane, top);
    }
}

/* exp(x) - 1 for 0 <= x <= 60: below 1/4 by its series, where the difference would cancel. */
static ALWAYS_INLINE vf exponential_minus_one(vf x) {
    const vf one = vf_set1(1.0f);
    vf series = vf_fma(x, vf_set1(1.0f / 120), vf_set1(1.0f / 24));
    series = vf_fma(x, series, vf_set1(1.0f / 6));
    series = vf_fma(x, series, vf_set1(0.5f));
    series = vf_mul(x, vf_fma(x, series, one));
    vf direct = vf_sub(vf_exp2(vf_mul(x, vf_set1(1.44269504f))), one);
    return vf_select(vf_gt(vf_set1(0.25f), x), series, direct);
}

static void cell_risk(float *block, int64_t cells, int lanes, const float *log2_count, const float *variance,
                      const float *spread, const float *maximum, float *risk) {
    const vf most = vf_set1(60.0f);
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        vf top = vf_load(maximum + lane), width = vf_load(spread + lane);
        for (int64_t c = 0; c < cells; c++) {
            float *score = block + c * ICE_PANEL + lane;
            vf mass = vf_exp2(vf_sub(vf_add(vf_load(score), vf_set1(log2_count[c])), top));
            vf x = vf_min(vf_mul(width, vf_set1(variance[c])), most);
            vf_store(risk + c * ICE_PANEL + lane, vf_mul(mass, vf_sqrt(exponential_minus_one(x))));
            vf_store(score, mass);
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

static void open_cells(float *mass, const float *risk, int64_t cells, int lanes, const float *threshold, uint64_t *open,
                       float *far) {
    const uint64_t all = ((uint64_t)1 << VF_WIDTH) - 1;
    for (int64_t c = 0; c < cells; c++) open[c] = 0;
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        vf bound = vf_load(threshold + lane), rest = vf_zero();
        for (int64_t c = 0; c < cells; c++) {
            float *weight = mass + c * ICE_PANEL + lane;
            vm closed = vf_gt(bound, vf_load(risk + c * ICE_PANEL + lane));
            vf kept = vf_select(closed, vf_load(weight), vf_zero());
            open[c] |= (all & ~(uint64_t)vm_bits(closed)) << lane;
            rest = vf_add(rest, kept);
            vf_store(weight, kept);
        }
        vf_store(far + lane, rest);
    }
}
