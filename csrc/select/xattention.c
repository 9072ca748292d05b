/* Blocks of keys by antidiagonals of scores until they hold a share of the mass: XAttention (arXiv 2503.16428), for
 * causal prefill.
 *
 * Rows and keys are cut in groups of `stride`.  A group of rows scores a group of keys by the mean of the scores on the
 * antidiagonal, row stride - 1 - i with key i, of those that its rows see: one product of dim * stride numbers for
 * stride^2 scores.  The softmax of each group of rows over all groups of keys, summed over the tile's rows and over
 * blocks of 128 keys, says which share of the mass each block holds.  The rows attend together to the blocks with the
 * most until these hold `threshold` of it.  The first block, where attention sinks are, and the keys behind the blocks
 * that all of the rows see whole are always among them. */
#include <string.h>

#include "base/order.h"
#include "select/selector.h"

#define BLOCK 128
#define MAX_STRIDE 16

_Static_assert(ICE_PANEL % MAX_STRIDE == 0 && BLOCK % MAX_STRIDE == 0, "tiles and blocks are whole groups");

typedef struct {
    int64_t stride; /* 4, 8 or 16 */
    double threshold;
} xattention_settings;

typedef struct {
    int64_t stride, row_groups, key_groups; /* those that the tile's last row sees some key of */
    float *query;                           /* ICE_PANEL x dim, each group's rows in reverse order */
    float *score;                           /* row_groups x key_groups: then weights */
    float *part;                            /* key groups of a block */
    float *mass;                            /* of each block */
    uint64_t *order, *spare;
    uint8_t *chosen;
} space;

static void lay_out(const ice_selector_call *call, void *own, ice_arena *a) {
    const xattention_settings *settings = call->settings;
    const int64_t stride = settings->stride, groups = (call->problem->keys + stride - 1) / stride,
                  blocks = call->problem->keys / BLOCK;
    space *s = own;
    s->stride = stride;
    s->query = ice_arena_take(a, ICE_PANEL * call->problem->dim, sizeof(float));
    s->score = ice_arena_take(a, ICE_PANEL / stride * groups, sizeof(float));
    s->part = ice_arena_take(a, BLOCK, sizeof(float));
    s->mass = ice_arena_take(a, blocks, sizeof(float));
    s->order = ice_arena_take(a, blocks, sizeof(uint64_t));
    s->spare = ice_arena_take(a, blocks, sizeof(uint64_t));
    s->chosen = ice_arena_take(a, blocks, 1);
}

/* ---- Scores of groups ---- */

static int64_t rows_of(const ice_tile *tile, const space *s, int64_t row_group) {
    const int64_t rest = tile->lanes - row_group * s->stride;
    return ice_min(rest, s->stride);
}

/* Groups of keys that a group of rows sees whole: its first row sees least. */
static int64_t whole_groups(const ice_tile *tile, const space *s, int64_t row_group) {
    return tile->visible[row_group * s->stride].end / s->stride;
}

/* score[n] = the mean on the antidiagonals of key groups first .. first + count - 1, which the rows see whole.  Row r
 * meets key stride - 1 - r: the rows that there are meet the last keys of a group. */
static void score_whole(const ice_tile *tile, int64_t row_group, int64_t first, int64_t count, space *s) {
    const icecore_attention *p = tile->problem;
    const int64_t rows = rows_of(tile, s, row_group), skipped = s->stride - rows;
    const int contiguous = p->key.row_stride == ice_row_stride(p->key_dtype, p->dim);
    const int64_t parts = contiguous ? 1 : rows, length = contiguous ? rows * p->dim : p->dim;
    float *score = s->score + row_group * s->key_groups + first;
    for (int64_t n = 0; n < count; n++) score[n] = 0.0f;
    for (int64_t i = 0; i < parts; i++) {
        const void *keys =
            ice_address(&p->key, p->key_dtype, tile->batch, tile->key_head, first * s->stride + skipped + i);
        tile->kernels->row_scores(s->query + (row_group * s->stride + skipped + i) * p->dim, length, p->key_dtype, keys,
                                  s->stride * p->key.row_stride, count, s->part);
        for (int64_t n = 0; n < count; n++) score[n] += s->part[n];
    }
    for (int64_t n = 0; n < count; n++) score[n] /= (float)rows;
}

/* The same of one group of which the rows see a part; returns whether they see anything of the antidiagonal. */
static int score_partly(const ice_tile *tile, int64_t row_group, int64_t key_group, space *s) {
    const icecore_attention *p = tile->problem;
    float sum = 0.0f, score;
    int pairs = 0;
    for (int64_t r = 0; r < rows_of(tile, s, row_group); r++) {
        const int64_t row = row_group * s->stride + r, key = (key_group + 1) * s->stride - 1 - r;
        if (key >= tile->visible[row].end) continue;
        tile->kernels->row_scores(tile->query_rows + row * p->dim, p->dim, p->key_dtype,
                                  ice_address(&p->key, p->key_dtype, tile->batch, tile->key_head, key),
                                  p->key.row_stride, 1, &score);
        sum += score;
        pairs++;
    }
    s->score[row_group * s->key_groups + key_group] = sum / (float)pairs;
    return pairs > 0;
}

/* Capped; -inf of groups that rows do not see.  Keys by the block, so that all groups of rows read them while they are
 * near. */
static void score_groups(const ice_tile *tile, space *s) {
    const int64_t dim = tile->problem->dim, step = BLOCK / s->stride;
    for (int64_t row = 0; row < tile->lanes; row++) {
        const int64_t reversed = row - row % s->stride + s->stride - 1 - row % s->stride;
        memcpy(s->query + reversed * dim, tile->query_rows + row * dim, (size_t)dim * sizeof *s->query);
    }
    for (int64_t first = 0; first < s->key_groups; first += step)
        for (int64_t m = 0; m < s->row_groups; m++) {
            const int64_t rest = whole_groups(tile, s, m) - first, count = ice_min(rest, step);
            if (count > 0) score_whole(tile, m, first, count, s);
        }
    for (int64_t m = 0; m < s->row_groups; m++) {
        int64_t seen = whole_groups(tile, s, m);
        while (seen < s->key_groups && score_partly(tile, m, seen, s)) seen++;
        ice_tile_cap_row(tile, s->score + m * s->key_groups, seen);
        for (int64_t n = seen; n < s->key_groups; n++) s->score[m * s->key_groups + n] = -INFINITY;
    }
}

/* ---- Blocks by their mass ---- */

/* Adds each group of rows' weights to the blocks' mass, and those of the keys behind the blocks to *behind.  Returns
 * the mass of all, or NaN where weights are not numbers. */
static double weigh_blocks(const ice_tile *tile, int64_t blocks, space *s, double *behind) {
    double total = 0.0;
    memset(s->mass, 0, (size_t)blocks * sizeof *s->mass);
    for (int64_t m = 0; m < s->row_groups; m++) {
        float *weight = s->score + m * s->key_groups, maximum = -INFINITY, sum = 0.0f, correction;
        tile->kernels->row_softmax(weight, s->key_groups, &maximum, &sum, &correction);
        if (sum == 0.0f) continue; /* it sees nothing */
        if (!(sum < INFINITY)) return NAN;
        for (int64_t n = 0; n < s->key_groups; n++) {
            if (n * s->stride < blocks * BLOCK) s->mass[n * s->stride / BLOCK] += weight[n] / sum;
            else *behind += weight[n] / sum;
        }
        total += 1.0;
    }
    return total;
}

/* Marks blocks until they and what is behind them hold the wanted mass, the first among equals.  Where weights are not
 * numbers all are chosen. */
static void choose(const ice_tile *tile, int64_t blocks, double threshold, space *s) {
    double held = 0.0;
    const double total = weigh_blocks(tile, blocks, s, &held);
    memset(s->chosen, total != total, (size_t)blocks);
    if (total != total || blocks == 0) return;
    s->chosen[0] = 1;
    held += (double)s->mass[0];
    for (int64_t i = 1; i < blocks; i++) s->order[i - 1] = (uint64_t)ice_ordered(s->mass[i]) << 32 | (uint32_t)~i;
    ice_sort(s->order, s->spare, blocks - 1);
    for (int64_t i = blocks - 2; i >= 0 && held < threshold * total; i--) {
        const int64_t block = (uint32_t)~s->order[i];
        s->chosen[block] = 1;
        held += (double)s->mass[block];
    }
}

static void select_blocks(const ice_selector_call *call, ice_tile *tile, const void *digests, void *own,
                          int64_t near_count[ICE_PANEL]) {
    const xattention_settings *settings = call->settings;
    const int64_t blocks = tile->visible[0].end / BLOCK, end = ice_tile_visible(tile).end;
    space *s = own;
    (void)digests;
    s->row_groups = (tile->lanes + s->stride - 1) / s->stride;
    s->key_groups = (end + s->stride - 1) / s->stride;
    score_groups(tile, s);
    choose(tile, blocks, settings->threshold, s);
    for (int64_t i = 0, next; i < blocks; i = next) { /* neighbours together */
        for (next = i + 1; next < blocks && s->chosen[next] == s->chosen[i];) next++;
        if (s->chosen[i]) ice_attend_counted(tile, i * BLOCK, next * BLOCK, near_count);
    }
    ice_attend_counted(tile, blocks * BLOCK, end, near_count);
}

static const ice_selector xattention = {.space = {sizeof(space), lay_out}, .select = select_blocks};

icecore_status icecore_attend_xattention(const icecore_attention *problem, int64_t stride, double threshold,
                                         int32_t *near_count) {
    const xattention_settings settings = {stride, threshold};
    const ice_selector_call call = {.problem = problem, .near_keys = 1, .settings = &settings};
    if (stride != 4 && stride != 8 && stride != 16) return ICECORE_ERROR_VALUE;
    if (!(threshold > 0.0 && threshold < 1.0) || !problem->causal) return ICECORE_ERROR_VALUE;
    return ice_attend_selected_by_heads(&call, &xattention, near_count);
}
