/* Scans of a k-NN search: low-precision scores of contiguous rows, and exact ones of few.
 *
 * A code is a row's difference from the mean of its cell, in bytes with one scale a row: the cell's own share of the
 * score is exact, and rounding, at most half a step of 1/127 of the largest component, touches only the difference.
 * Bytes of four components are multiplied and summed a lane at a time; integer sums are the same on every instruction
 * set. */

static ALWAYS_INLINE void code_tile(const int8_t *quads, const uint8_t *codes, int64_t stride, const float *base,
                                    const float *query_scale, const int32_t *offset, const float *scale,
                                    const float *bias, float *out, const int rows, const int vectors) {
    vi sum[KEY_TILE][QUERY_VECTORS];
    UNROLL for (int r = 0; r < rows; r++) UNROLL
        for (int q = 0; q < vectors; q++) sum[r][q] = vi_load(offset + q * VF_WIDTH);
    for (int64_t t = 0; t < stride; t += 4) {
        vq column[QUERY_VECTORS];
        UNROLL for (int q = 0; q < vectors; q++)
            column[q] = vq_load(quads + t * ICE_PANEL + q * VF_WIDTH * 4);
        UNROLL for (int r = 0; r < rows; r++) {
            vk x = vk_set1(codes + r * stride + t);
            UNROLL for (int q = 0; q < vectors; q++)
                sum[r][q] = vi_dot4(sum[r][q], x, column[q]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        vf step = vf_set1(scale[r]), own = vf_set1(bias ? bias[r] : 0.0f);
        UNROLL for (int q = 0; q < vectors; q++) {
            vf factor = vf_mul(step, vf_load(query_scale + q * VF_WIDTH));
            vf score = vf_fma(vf_from_vi(sum[r][q]), factor, vf_add(own, vf_load(base + q * VF_WIDTH)));
            vf_store(out + r * ICE_PANEL + q * VF_WIDTH, score);
        }
    }
}

static ALWAYS_INLINE void code_column(const int8_t *quads, const uint8_t *codes, int64_t stride, const float *base,
                                      const float *query_scale, const int32_t *offset, const float *scale,
                                      const float *bias, int64_t count, float *out, const int vectors) {
    int64_t j = 0;
    for (; j + KEY_TILE <= count; j += KEY_TILE)
        code_tile(quads, codes + j * stride, stride, base, query_scale, offset, scale + j, bias ? bias + j : NULL,
                  out + j * ICE_PANEL, KEY_TILE, vectors);
    for (; j < count; j++)
        code_tile(quads, codes + j * stride, stride, base, query_scale, offset, scale + j, bias ? bias + j : NULL,
                  out + j * ICE_PANEL, 1, vectors);
}

static void code_scores(const ice_code_panel *panel, const uint8_t *codes, int64_t stride, const float *scale,
                        const float *bias, int64_t count, float *out) {
    const ice_code_panel p = *panel;
    int lane = 0;
    for (; p.lanes - lane > (QUERY_VECTORS - 1) * VF_WIDTH; lane += QUERY_VECTORS * VF_WIDTH)
        code_column(p.quads + lane * 4, codes, stride, p.base + lane, p.scale + lane, p.offset + lane, scale, bias,
                    count, out + lane, QUERY_VECTORS);
    for (; lane < p.lanes; lane += VF_WIDTH)
        code_column(p.quads + lane * 4, codes, stride, p.base + lane, p.scale + lane, p.offset + lane, scale, bias,
                    count, out + lane, 1);
}

static int64_t find_at_least(const float *block, int64_t count, int lanes, const float *threshold, int32_t *places) {
    int64_t found = 0;
    for (int64_t j = 0; j < count; j++)
        for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
            uint32_t bits = vm_bits(vf_ge(vf_load(block + j * ICE_PANEL + lane), vf_load(threshold + lane)));
            if (lanes - lane < VF_WIDTH) bits &= (1u << (lanes - lane)) - 1u;
            for (; bits; bits &= bits - 1) places[found++] = (int32_t)(j * ICE_PANEL + lane + __builtin_ctz(bits));
        }
    return found;
}

/* Bisection between two bounds; a lane that has found its number stays as it is.  Of `wanted` groups each has a largest
 * score, so `wanted` scores reach the least of these: scores far below the best do not widen the range. */
static void nth_largest(const float *block, int64_t count, int lanes, int64_t wanted, float *threshold) {
    const vf goal = vf_set1((float)wanted), half = vf_set1(0.5f), one = vf_set1(1.0f);
    for (int lane = 0; lane < lanes; lane += VF_WIDTH) {
        const float *column = block + lane;
        vf low = vf_set1(INFINITY), high = vf_set1(-INFINITY);
        for (int64_t group = 0, j = 0; group < wanted; group++) {
            vf top = vf_load(column + j * ICE_PANEL);
            for (j++; j < (group + 1) * count / wanted; j++) top = vf_max(top, vf_load(column + j * ICE_PANEL));
            low = vf_min(low, top);
            high = vf_max(high, top);
        }
        vf reach = vf_set1((float)count); /* how many reach `low`, at most */
        for (int halving = 0; halving < 32; halving++) {
            vf middle = vf_fma(half, vf_sub(high, low), low), found[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
            int64_t j = 0;
            for (; j + 4 <= count; j += 4) UNROLL
                for (int u = 0; u < 4; u++)
                    found[u] = vf_add(found[u],
                                      vf_select(vf_ge(vf_load(column + (j + u) * ICE_PANEL), middle), one, vf_zero()));
            for (; j < count; j++)
                found[0] = vf_add(found[0], vf_select(vf_ge(vf_load(column + j * ICE_PANEL), middle), one, vf_zero()));
            vf total = vf_add(vf_add(found[0], found[1]), vf_add(found[2], found[3]));
            vm enough = vf_ge(total, goal), open = vf_gt(reach, goal);
            low = vf_select(vm_and(open, enough), middle, low);
            high = vf_select(vm_and(open, vf_gt(goal, total)), middle, high);
            reach = vf_select(vm_and(open, enough), total, reach);
            if (!vm_bits(vf_gt(reach, goal))) break;
        }
        vf_store(threshold + lane, low);
    }
}

/* How many are at least `bound`; those beyond `count` up to a whole vector do not count. */
static ALWAYS_INLINE int64_t how_many(const float *scores, int64_t count, float bound) {
    vf minimum = vf_set1(bound);
    int64_t found = 0, i = 0;
    for (; i + VF_WIDTH <= count; i += VF_WIDTH)
        found += __builtin_popcount(vm_bits(vf_ge(vf_load(scores + i), minimum)));
    for (; i < count; i++) found += scores[i] >= bound;
    return found;
}

/* The bound is found by bisection on the scores' order as integers; it ends as soon as a bound keeps just the wanted
 * number. */
static int64_t keep_reaching(float *scores, int32_t *numbers, int64_t count, int64_t keep, float *bound) {
    vf top = vf_set1(scores[0]), bottom = top;
    int64_t whole = count - count % VF_WIDTH;
    for (int64_t i = 0; i < whole; i += VF_WIDTH) {
        top = vf_max(top, vf_load(scores + i));
        bottom = vf_min(bottom, vf_load(scores + i));
    }
    float largest = vf_reduce_max(top), smallest = -vf_reduce_max(vf_sub(vf_zero(), bottom));
    for (int64_t i = whole; i < count; i++) {
        smallest = scores[i] < smallest ? scores[i] : smallest;
        largest = scores[i] > largest ? scores[i] : largest;
    }
    /* at least `keep` reach low, fewer reach high */
    int64_t low = ice_ordered(smallest), high = (int64_t)ice_ordered(largest) + 1, reach = count;
    while (high - low > 1 && reach != keep) {
        int64_t middle = low + (high - low) / 2, found = how_many(scores, count, ice_unordered((uint32_t)middle));
        if (found >= keep) {
            low = middle;
            reach = found;
        } else {
            high = middle;
        }
    }
    const float least = ice_unordered((uint32_t)low);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) { /* without a branch: half of them stay */
        float score = scores[i];
        scores[kept] = score;
        numbers[kept] = numbers[i];
        kept += score >= least;
    }
    *bound = least;
    return kept;
}

/* Of scores that equal the bound those with a number up to `last` stay, found by bisection too. */
static float keep_largest(float *scores, int32_t *numbers, int64_t count, int64_t keep) {
    float bound;
    const int64_t reach = keep_reaching(scores, numbers, count, keep, &bound);
    if (reach == keep) return bound;
    int64_t above = 0, first = -1, last = INT32_MAX; /* too few have a number up to `first`, enough up to `last` */
    for (int64_t i = 0; i < reach; i++) above += scores[i] > bound;
    while (last - first > 1) {
        int64_t middle = first + (last - first) / 2, found = above;
        for (int64_t i = 0; i < reach; i++) found += (scores[i] == bound) & (numbers[i] <= middle);
        if (found >= keep) last = middle;
        else first = middle;
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < reach; i++) {
        if (scores[i] == bound && numbers[i] > last) continue;
        scores[kept] = scores[i];
        numbers[kept++] = numbers[i];
    }
    return bound;
}

static void rank(const float *scores, int64_t count, int32_t *place) {
    for (int64_t i = 0; i < count; i++) {
        vf own = vf_set1(scores[i]);
        int64_t before = 0, j = 0;
        /* earlier ones count when they are equal, later ones do not */
        for (; j + VF_WIDTH <= i; j += VF_WIDTH) before += __builtin_popcount(vm_bits(vf_ge(vf_load(scores + j), own)));
        for (; j < i && j < count; j++) before += scores[j] >= scores[i];
        for (; j + VF_WIDTH <= count; j += VF_WIDTH)
            before += __builtin_popcount(vm_bits(vf_gt(vf_load(scores + j), own)));
        for (; j < count; j++) before += scores[j] > scores[i];
        place[i] = (int32_t)before;
    }
}

/* Numbers that are encoded together, a multiple of 4. */
#define ENCODED 64

/* Of x - scale center the `n` components from t on; center: NULL for 0. */
static ALWAYS_INLINE vf less_center(const float *x, const float *center, float scale, int64_t t, int n) {
    vf value = n == VF_WIDTH ? vf_load(x + t) : vf_load_n(x + t, n);
    if (!center) return value;
    return vf_fma(n == VF_WIDTH ? vf_load(center + t) : vf_load_n(center + t, n), vf_set1(-scale), value);
}

/* The largest magnitude in x - scale center, 0 where it has no inverse, and the squared length unless NULL. */
static ALWAYS_INLINE float measure(const float *x, const float *center, float scale, int64_t dim, float *squared) {
    vf top = vf_zero(), sum = vf_zero();
    for (int64_t t = 0; t < dim; t += VF_WIDTH) {
        vf value = less_center(x, center, scale, t, dim - t < VF_WIDTH ? (int)(dim - t) : VF_WIDTH);
        top = vf_max(top, vf_max(value, vf_sub(vf_zero(), value)));
        if (squared) sum = vf_fma(value, value, sum);
    }
    if (squared) *squared = vf_reduce_add(sum);
    const float largest = vf_reduce_max(top);
    return largest < 127.0f / FLT_MAX ? 0.0f : largest;
}

/* Overflow and NaN, from numbers near the end of the range, stay within the range of codes too.  Where the count is a
 * constant the conversion has no tail. */
static ALWAYS_INLINE void encode_block(const float *x, const float *center, float scale, int64_t t, float inverse,
                                       int8_t *code, const int count) {
    float rounded[ENCODED];
    const vf maximum = vf_set1(127.0f), minimum = vf_set1(-127.0f), half = vf_set1(0.5f), minus_half = vf_set1(-0.5f);
    for (int i = 0; i < count; i += VF_WIDTH) {
        vf value = less_center(x, center, scale, t + i, count - i < VF_WIDTH ? count - i : VF_WIDTH);
        value = vf_max(vf_min(vf_mul(value, vf_set1(inverse)), maximum), minimum);
        vf_store(rounded + i, vf_add(value, vf_select(vf_gt(vf_zero(), value), minus_half, half)));
    }
    for (int i = 0; i < count; i++) code[i] = (int8_t)(int)rounded[i];
}

static float encode(const float *x, const float *center, int64_t dim, int64_t stride, int8_t *code) {
    const float largest = measure(x, center, 1.0f, dim, NULL), inverse = largest > 0 ? 127.0f / largest : 0.0f;
    int64_t t = 0;
    for (; t + ENCODED <= dim; t += ENCODED) encode_block(x, center, 1.0f, t, inverse, code + t, ENCODED);
    if (t < dim) encode_block(x, center, 1.0f, t, inverse, code + t, (int)(dim - t));
    for (t = dim; t < stride; t++) code[t] = 0;
    return largest / 127.0f;
}

/* Puts the codes of a block in a lane; returns their sum. */
static ALWAYS_INLINE int32_t place_block(const int8_t *code, const int count, int8_t *quads) {
    int32_t sum = 0;
    for (int i = 0; i < count; i++) sum += code[i];
    for (int i = 0; i < count; i += 4) memcpy(quads + i * ICE_PANEL, code + i, 4);
    return sum;
}

static float encode_lane(const float *query, const float *center, float scale, int64_t dim, int8_t *quads,
                         int32_t *offset, float *score) {
    float squared;
    const float largest = measure(query, center, scale, dim, &squared), inverse = largest > 0 ? 127.0f / largest : 0.0f;
    int32_t sum = 0;
    int64_t t = 0;
    for (; t + ENCODED <= dim; t += ENCODED) {
        int8_t code[ENCODED];
        encode_block(query, center, scale, t, inverse, code, ENCODED);
        sum += place_block(code, ENCODED, quads + t * ICE_PANEL);
    }
    if (t < dim) {
        int8_t code[ENCODED] = {0};
        encode_block(query, center, scale, t, inverse, code, (int)(dim - t));
        sum += place_block(code, (int)(dim - t), quads + t * ICE_PANEL);
    }
    *offset = -128 * sum;
    *score = -0.5f * squared;
    return largest / 127.0f;
}

static void chebyshev(const float *projection, int64_t stride, int simples, const float *query, int64_t count,
                      float *distance) {
    for (int64_t i = 0; i < count; i += VF_WIDTH) {
        int n = count - i < VF_WIDTH ? (int)(count - i) : VF_WIDTH;
        vf largest = vf_zero();
        for (int j = 0; j < simples; j++) {
            const float *own = projection + j * stride + i;
            vf difference = vf_sub(n == VF_WIDTH ? vf_load(own) : vf_load_n(own, n), vf_set1(query[j]));
            largest = vf_max(largest, vf_max(difference, vf_sub(vf_zero(), difference)));
        }
        if (n == VF_WIDTH) vf_store(distance + i, largest);
        else vf_store_n(distance + i, largest, n);
    }
}
