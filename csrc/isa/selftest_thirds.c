/* Selftest: panels of float32 in thirds, against the scalar float32 kernels. */
#include "isa/selftest_harness.h"

/* Of results, for each product of a score within 16. */
#define TOLERANCE 3e-6f
/* Of scores within about 16. */
#define CAP 2.5f

/* Whether thirds are to hold some numbers. */
static int hold(const float *x, int64_t count) {
    float largest = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        if (!(fabsf(x[i]) <= 0x1p60f)) return 0;
        largest = fmaxf(largest, fabsf(x[i]));
    }
    return largest == 0.0f || largest >= 0x1p-60f;
}

static void expect_room(selftest *t, const uint16_t *packed, int64_t room, int64_t all) {
    for (int64_t i = 0; i < all; i++)
        if ((i < GUARD || i >= GUARD + room) && packed[i] != UNTOUCHED) fail(t, "packed outside its room");
}

/* The sum of its thirds is every number, bit for bit. */
static void compare_thirds_queries(selftest *t) {
    const ice_thirds_kernels *thirds = t->fast->thirds;
    t->dim = (int)round_up(t->dim, thirds->dim_multiple);
    if (t->dim > MAX_DIM) return;
    const int64_t numbers = (int64_t)t->dim * ICE_PANEL;
    static uint16_t pairs[GUARD + ICE_THIRDS * BLOCK + GUARD];
    fill_panel(t, t->panel, t->dim);
    fill_untouched(pairs, GUARD + ICE_THIRDS * BLOCK + GUARD);
    const int held = thirds->pack_queries(t->panel, t->dim, pairs + GUARD);
    if (held != hold(t->panel, numbers)) fail(t, "thirds %s", held ? "do not hold this" : "are refused");
    for (int64_t i = 0; i < t->dim && held; i++)
        for (int lane = 0; lane < ICE_PANEL; lane++) {
            const uint16_t *first = pairs + GUARD + (i / 2 * ICE_PANEL + lane) * 2 + i % 2;
            const float sum = ice_bfloat16_to_float(first[0]) + ice_bfloat16_to_float(first[numbers]) +
                              ice_bfloat16_to_float(first[2 * numbers]);
            if (sum != t->panel[i * ICE_PANEL + lane]) fail(t, "thirds lose a bit");
        }
    expect_room(t, pairs, ICE_THIRDS * numbers, GUARD + ICE_THIRDS * BLOCK + GUARD);
}

/* A bias or none, ALiBi or none, a fresh panel or one on its way. */
static void compare_thirds_attend(selftest *t) {
    const ice_thirds_kernels *thirds = t->fast->thirds;
    enum { ROOM = ICE_THIRDS * MAX_COUNT * MAX_DIM, ALL = GUARD + ROOM + GUARD };
    static uint16_t pairs[ICE_THIRDS * BLOCK], packed[2][ALL];
    static float values[MAX_COUNT * MAX_DIM], biases[BLOCK], scores[BLOCK];
    const int value_dim = t->gap ? 80 : MAX_DIM;
    const int64_t room = round_up(t->count, ICE_PACKED);
    const float cap = t->lanes % 2 ? CAP : 0.0f;
    float state[2][3][ICE_PANEL]; /* plain and fast: maximum, sum, correction */
    t->dtype = ICECORE_FLOAT32;
    t->dim = (int)round_up(t->dim, thirds->dim_multiple);
    if (t->dim > MAX_DIM) return;
    fill_panel(t, t->panel, t->dim);
    fill_rows(t, t->count, t->dim);
    fill(t, biases, t->count * ICE_PANEL);
    fill(t, values, (int64_t)t->count * value_dim);
    fill_output(t, 0, value_dim * ICE_PANEL);
    for (int i = 0; i < value_dim * ICE_PANEL; i++) before(t, 0)[i] = t->gap ? 0.0f : uniform(t);
    begin(t, 1);
    for (int i = 0; i < 2; i++)
        for (int lane = 0; lane < ICE_PANEL; lane++) {
            state[i][0][lane] = t->gap ? -INFINITY : -1.0f;
            state[i][1][lane] = t->gap ? 0.0f : 3.0f;
        }
    for (int i = 0; i < 2; i++) fill_untouched(packed[i], ALL);
    const int queries = thirds->pack_queries(t->panel, t->dim, pairs);
    const int keys = thirds->pack_keys(t->raw, t->dim + t->gap, t->count, t->dim, packed[0] + GUARD);
    expect_room(t, packed[0], ICE_THIRDS * room * t->dim, ALL);
    if (keys != hold(t->rows, (int64_t)t->count * t->dim)) fail(t, "keys: thirds %s", keys ? "do not fit" : "fit");
    const int fit = thirds->pack_values(values, value_dim, t->count, value_dim, packed[1] + GUARD);
    expect_room(t, packed[1], ICE_THIRDS * room * value_dim, ALL);
    if (fit != hold(values, (int64_t)t->count * value_dim)) fail(t, "values: thirds %s", fit ? "do not fit" : "fit");
    if (!queries || !keys || !fit) return; /* then nobody multiplies what was packed */
    const float *bias = t->count % 8 ? biases : NULL;
    ice_alibi alibi;
    fill_alibi(t, &alibi);
    const ice_alibi *lower = t->lanes % 3 ? &alibi : NULL;
    const ice_bf16_panel panel = {pairs,       t->dim,      value_dim,   t->lanes,   1.0f, cap,
                                  state[1][0], state[1][1], state[1][2], fast(t, 0), lower};
    thirds->panel_attend(&panel, packed[0] + GUARD, packed[1] + GUARD, t->count, bias);
    t->plain->scores(t->panel, t->dim, t->lanes, t->rows, t->dim, t->count, scores);
    if (cap > 0.0f) t->plain->softcap(scores, t->count, t->lanes, cap);
    if (lower) t->plain->alibi(scores, 0, t->count, t->lanes, lower);
    for (int i = 0; bias && i < t->count * ICE_PANEL; i++)
        scores[i] = bias[i] == -INFINITY ? -INFINITY : scores[i] + bias[i];
    t->plain->softmax(scores, t->count, t->lanes, state[0][0], state[0][1], state[0][2]);
    t->plain->weighted_sum(scores, t->count, t->lanes, values, value_dim, value_dim, state[0][2], plain(t, 0));
    for (int lane = 0; lane < t->lanes; lane++) {
        if (isnan(state[0][1][lane]) != isnan(state[1][1][lane])) fail(t, "a NaN is lost or made up");
        if (t->kind != ORDINARY) continue; /* wide ones cancel as their order has it */
        if (state[1][0][lane] > state[0][0][lane] + 1e-3f || state[0][0][lane] > state[1][0][lane] + 16.0f)
            fail(t, "the maximum %g is not %g", (double)state[1][0][lane], (double)state[0][0][lane]);
        for (int i = 0; i < value_dim; i++) {
            const float one = plain(t, 0)[i * ICE_PANEL + lane] / state[0][1][lane],
                        other = fast(t, 0)[i * ICE_PANEL + lane] / state[1][1][lane];
            const double error = fabs((double)(one - other));
            if (error > t->error) t->error = error;
            if (!(error <= (double)TOLERANCE * (t->dim + 2))) fail(t, "%g is not %g", (double)other, (double)one);
        }
    }
    expect_untouched(t, 0, value_dim, ICE_PANEL, ICE_PANEL);
}

const ice_comparison ice_selftest_thirds[] = {
    {"thirds pack_queries", compare_thirds_queries, DIM | LANES},
    {"thirds panel_attend", compare_thirds_attend, DIM | LANES | GAP},
    {NULL, NULL, 0},
};
