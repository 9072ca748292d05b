/* ALiBi: scores fall in proportion to the distance of key and query (Press, Smith & Lewis, ICLR 2022, arXiv
 * 2108.12409).
 *
 * Offsets are whole numbers, so that a distance below 2^24 is exact and what is taken off has the error of one product.
 * Blocks that lie to one side of all queries, as nearly all causal ones do, need no absolute value. */

/* |offset + j| of keys to both sides, or offset + j. */
static ALWAYS_INLINE vf distance(vf offset, vf key, const int both_sides) {
    const vf ahead = vf_add(offset, key);
    return both_sides ? vf_max(ahead, vf_sub(vf_zero(), ahead)) : ahead;
}

static ALWAYS_INLINE void lower_column(float *scores, int64_t step, int64_t first, int64_t count, vf factor, vf offset,
                                       const int both_sides) {
    for (int64_t j = 0; j < count; j++) {
        float *score = scores + j * step;
        vf_store(score, vf_fma(factor, distance(offset, vf_set1((float)(first + j)), both_sides), vf_load(score)));
    }
}

static void alibi(float *scores, int64_t first, int64_t count, int lanes, const ice_alibi *a) {
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        const vf slope = vf_load(a->slope + lane), offset = vf_load(a->offset + lane);
        const vf last = vf_add(offset, vf_set1((float)(first + count - 1)));
        if (vm_bits(vf_gt(last, vf_zero())) == 0)
            lower_column(scores + lane, ICE_PANEL, first, count, slope, offset, 0);
        else lower_column(scores + lane, ICE_PANEL, first, count, vf_sub(vf_zero(), slope), offset, 1);
    }
}

static void row_alibi(float *scores, int64_t count, float slope, float offset) {
    float key[VF_WIDTH];
    for (int i = 0; i < VF_WIDTH; i++) key[i] = offset + (float)i;
    const vf factor = vf_set1(-slope), start = vf_load(key);
    for (int64_t j = 0; j < count; j += VF_WIDTH) {
        const int n = count - j < VF_WIDTH ? (int)(count - j) : VF_WIDTH;
        const vf away = distance(start, vf_set1((float)j), 1);
        vf_store_n(scores + j, vf_fma(factor, away, vf_load_n(scores + j, n)), n);
    }
}
