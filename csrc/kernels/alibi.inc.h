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

/* Some vectors of lanes; `factor`: of these, the slopes with the sign that takes distances off. */
static ALWAYS_INLINE void lower_lanes(float *scores, int64_t first, int64_t count, const vf *factor, const vf *offset,
                                      const int vectors, const int both_sides) {
    for (int64_t j = 0; j < count; j++) {
        const vf key = vf_set1((float)(first + j));
        UNROLL for (int v = 0; v < vectors; v++) {
            float *score = scores + j * ICE_PANEL + v * VF_WIDTH;
            vf_store(score, vf_fma(factor[v], distance(offset[v], key, both_sides), vf_load(score)));
        }
    }
}

static ALWAYS_INLINE void lower_panel(float *scores, int64_t first, int64_t count, const float *slopes,
                                      const float *offsets, const int vectors) {
    vf factor[QUERY_VECTORS], offset[QUERY_VECTORS];
    const vf last = vf_set1((float)(first + count - 1));
    int behind = 0; /* whether some key is behind some query */
    for (int v = 0; v < vectors; v++) {
        factor[v] = vf_load(slopes + v * VF_WIDTH);
        offset[v] = vf_load(offsets + v * VF_WIDTH);
        behind |= vm_bits(vf_gt(vf_add(offset[v], last), vf_zero())) != 0;
    }
    if (!behind) {
        lower_lanes(scores, first, count, factor, offset, vectors, 0);
        return;
    }
    for (int v = 0; v < vectors; v++) factor[v] = vf_sub(vf_zero(), factor[v]);
    lower_lanes(scores, first, count, factor, offset, vectors, 1);
}

static void alibi(float *scores, int64_t first, int64_t count, int lanes, const ice_alibi *a) {
    int lane = 0;
    for (; lanes - lane > (QUERY_VECTORS - 1) * VF_WIDTH; lane += QUERY_VECTORS * VF_WIDTH)
        lower_panel(scores + lane, first, count, a->slope + lane, a->offset + lane, QUERY_VECTORS);
    for (; lane < lanes; lane += VF_WIDTH)
        lower_panel(scores + lane, first, count, a->slope + lane, a->offset + lane, 1);
}

/* offset, offset + 1, ... in lanes. */
static ALWAYS_INLINE vf counted_from(float offset) {
    static const float steps[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return vf_add(vf_set1(offset), vf_load(steps));
}

static void row_alibi(float *scores, int64_t count, float slope, float offset) {
    const vf factor = vf_set1(-slope), start = counted_from(offset);
    for (int64_t j = 0; j < count; j += VF_WIDTH) {
        const int n = count - j < VF_WIDTH ? (int)(count - j) : VF_WIDTH;
        const vf away = distance(start, vf_set1((float)j), 1);
        vf_store_n(scores + j, vf_fma(factor, away, vf_load_n(scores + j, n)), n);
    }
}
