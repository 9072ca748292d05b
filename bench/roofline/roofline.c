/* Kernels of the usable instruction sets against what the machine can do at most, as a table.  One core.
 *
 * The least time of a kernel is that of its products and its exponentials together, or where units of their own
 * multiply the longer of the two; or that of reading its bytes, where this takes longer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "kernels/kernels.h"
#include "peaks.h"

#define DIM 64
#define TRIES 15
#define NEAR (1 << 10) /* rows that a level-2 cache holds */
#define FAR (1 << 19)  /* and that none does */
#define PANEL (DIM * ICE_PANEL)
#define BLOCK (ICE_KEY_BLOCK * ICE_PANEL)

/* numbers: of which the first `near` stay in a level-2 cache. */
#define X(name) peaks peaks_of_##name(const float *numbers, int64_t near, int64_t far);
X(scalar)
ICE_BUILT_SETS(X)
#undef X

static const struct {
    const char *isa;
    peaks (*find)(const float *numbers, int64_t near, int64_t far);
} sets[] = {
#define X(name) {#name, peaks_of_##name},
    X(scalar) ICE_BUILT_SETS(X)
#undef X
};

#define SETS ((int)(sizeof sets / sizeof *sets))

static double least_seconds = 2e-3; /* of a timing: the kernel again and again */

typedef struct {
    const ice_kernels *kernels;
    float panel[PANEL], scores[BLOCK], weights[BLOCK], accumulator[PANEL], maximum[ICE_PANEL], sum[ICE_PANEL],
        correction[ICE_PANEL], row[NEAR], facts[5][ICE_KEY_BLOCK];
    uint16_t pairs[PANEL + ICE_PANEL], query[DIM];
    float *keys;          /* FAR x DIM */
    uint16_t *short_keys; /* the same in bfloat16 */
    uint16_t packed[(ICE_KEY_BLOCK + ICE_PACKED) * DIM];
    uint16_t thirds[3][ICE_THIRDS * (ICE_KEY_BLOCK + ICE_PACKED) * DIM]; /* of queries, keys, values */
    int64_t place;                                                       /* where the next rows are read */
} inputs;

/* ---- Kernels ---- */

static void scores(inputs *in) {
    in->kernels->scores(in->panel, DIM, ICE_PANEL, in->keys, DIM, ICE_KEY_BLOCK, in->scores);
}

/* Of its own weights: exponentials take as long whatever the number. */
static void softmax(inputs *in) {
    in->kernels->softmax(in->weights, ICE_KEY_BLOCK, ICE_PANEL, in->maximum, in->sum, in->correction);
}

static void weighted_sum(inputs *in) {
    in->kernels->weighted_sum(in->weights, ICE_KEY_BLOCK, ICE_PANEL, in->keys, DIM, DIM, in->correction,
                              in->accumulator);
}

static void attend(inputs *in) {
    scores(in);
    in->kernels->softmax(in->scores, ICE_KEY_BLOCK, ICE_PANEL, in->maximum, in->sum, in->correction);
    in->kernels->weighted_sum(in->scores, ICE_KEY_BLOCK, ICE_PANEL, in->keys, DIM, DIM, in->correction,
                              in->accumulator);
}

static void short_scores(inputs *in) {
    in->kernels->bf16->scores(in->pairs, DIM, ICE_PANEL, 0.01f, in->short_keys, DIM, ICE_KEY_BLOCK, in->scores);
}

static void short_attend(inputs *in) {
    const ice_bf16_panel panel = {.queries = in->pairs,
                                  .dim = DIM,
                                  .value_dim = DIM,
                                  .lanes = ICE_PANEL,
                                  .scale = 0.01f,
                                  .maximum = in->maximum,
                                  .sum = in->sum,
                                  .correction = in->correction,
                                  .accumulator = in->accumulator};
    in->kernels->bf16->panel_attend(&panel, in->short_keys, DIM, in->packed, ICE_KEY_BLOCK, NULL);
}

static void attend_in_thirds(inputs *in) {
    const ice_bf16_panel panel = {.queries = in->thirds[0],
                                  .dim = DIM,
                                  .value_dim = DIM,
                                  .lanes = ICE_PANEL,
                                  .scale = 1.0f,
                                  .maximum = in->maximum,
                                  .sum = in->sum,
                                  .correction = in->correction,
                                  .accumulator = in->accumulator};
    in->kernels->thirds->panel_attend(&panel, in->thirds[1], in->thirds[2], ICE_KEY_BLOCK, NULL);
}

static void cell_risk(inputs *in) {
    const ice_node_facts facts = {in->facts[0], in->facts[1], in->facts[2], in->facts[3], in->facts[4]};
    const ice_spreads spreads = {in->sum, in->maximum, in->correction};
    in->kernels->cell_risk(in->scores, ICE_KEY_BLOCK, ICE_PANEL, &facts, &spreads, NULL, in->weights);
}

/* Rows behind those that were read last; `all` of them are read before the first again. */
static int64_t next(inputs *in, int64_t all) {
    in->place = (in->place + NEAR) % all;
    return in->place * DIM;
}

static void row_scores(inputs *in) {
    in->kernels->row_scores(in->panel, DIM, ICECORE_FLOAT32, in->keys + next(in, NEAR), DIM, NEAR, in->row);
}

static void row_scores_far(inputs *in) {
    in->kernels->row_scores(in->panel, DIM, ICECORE_FLOAT32, in->keys + next(in, FAR), DIM, NEAR, in->row);
}

static void row_sum_far(inputs *in) {
    in->kernels->row_weighted_sum(in->row, NEAR, ICECORE_FLOAT32, in->keys + next(in, FAR), DIM, DIM, 1.0f,
                                  in->accumulator);
}

static void short_row_scores(inputs *in, int64_t all) {
    const uint16_t *rows = in->short_keys + next(in, all);
    if (in->kernels->bf16) in->kernels->bf16->row_scores(in->query, DIM, 0.01f, rows, DIM, NEAR, in->row);
    else in->kernels->row_scores(in->panel, DIM, ICECORE_BFLOAT16, rows, DIM, NEAR, in->row);
}

static void short_row_scores_near(inputs *in) { short_row_scores(in, NEAR); }
static void short_row_scores_far(inputs *in) { short_row_scores(in, FAR); }

#define PANEL_PRODUCTS (2.0 * BLOCK * DIM)
#define THIRDS_PRODUCTS 6 /* of thirds, for one of float32 */
#define ROW_PRODUCTS (2.0 * NEAR * DIM)

static const struct {
    const char *name;
    void (*run)(inputs *in);
    double float32, bfloat16, exponentials, bytes; /* of a run */
    int read_from, in_thirds;
} kernels[] = {
    {"panel, float32: scores", scores, PANEL_PRODUCTS, 0, 0, 0, NOTHING, 0},
    {"panel, float32: softmax", softmax, 0, 0, BLOCK, 0, NOTHING, 0},
    {"panel, float32: weighted sum", weighted_sum, PANEL_PRODUCTS, 0, 0, 0, NOTHING, 0},
    {"panel, float32: all three", attend, 2 * PANEL_PRODUCTS, 0, BLOCK, 0, NOTHING, 0},
    {"panel, bfloat16: scores", short_scores, 0, PANEL_PRODUCTS, 0, 0, NOTHING, 0},
    {"panel, bfloat16: all three", short_attend, 0, 2 * PANEL_PRODUCTS, BLOCK, 0, NOTHING, 0},
    {"panel, float32 in thirds: all three", attend_in_thirds, 0, 2 * PANEL_PRODUCTS, BLOCK, 0, NOTHING, 1},
    {"row, float32: scores, from a cache", row_scores, ROW_PRODUCTS, 0, 0, 4.0 * NEAR * DIM, IN_CACHE, 0},
    {"row, float32: scores, from memory", row_scores_far, ROW_PRODUCTS, 0, 0, 4.0 * NEAR * DIM, IN_MEMORY, 0},
    {"row, float32: weighted sum, from memory", row_sum_far, ROW_PRODUCTS, 0, 0, 4.0 * NEAR * DIM, IN_MEMORY, 0},
    {"row, bfloat16: scores, from a cache", short_row_scores_near, ROW_PRODUCTS, 0, 0, 2.0 * NEAR * DIM, IN_CACHE, 0},
    {"row, bfloat16: scores, from memory", short_row_scores_far, ROW_PRODUCTS, 0, 0, 2.0 * NEAR * DIM, IN_MEMORY, 0},
    {"panel: risk of cells", cell_risk, 0, 0, 0, 0, NOTHING, 0},
};
#define KERNELS ((int)(sizeof kernels / sizeof *kernels))

/* ---- Timing ---- */

/* Of one run, the least of some tries. */
static double seconds_of(void (*run)(inputs *in), inputs *in) {
    double least = 1e9;
    for (int try = 0; try < TRIES; try++) {
        int runs = 0;
        const double begin = seconds_now();
        double now;
        do {
            for (int i = 0; i < 8; i++) run(in);
            runs += 8;
            now = seconds_now();
        } while (now - begin < least_seconds);
        if ((now - begin) / runs < least) least = (now - begin) / runs;
    }
    return least;
}

static double longer(double x, double y) { return x > y ? x : y; }

static void report(const char *isa, const peaks *peak, inputs *in) {
    for (int i = 0; i < KERNELS; i++) {
        const int is_short = kernels[i].bfloat16 > 0;
        if (is_short && !in->kernels->bf16) continue;
        if (kernels[i].in_thirds && !in->kernels->thirds) continue;
        memset(in->sum, 0, sizeof in->sum);
        in->place = 0;
        const double seconds = seconds_of(kernels[i].run, in);
        double products = kernels[i].float32 / peak->float32;
        if (is_short) products += kernels[i].bfloat16 / peak->bfloat16 * (kernels[i].in_thirds ? THIRDS_PRODUCTS : 1);
        const double exponentials = kernels[i].exponentials / peak->exponentials;
        double least = is_short && peak->apart ? longer(products, exponentials) : products + exponentials;
        if (kernels[i].read_from) least = longer(least, kernels[i].bytes / peak->bytes[kernels[i].read_from]);
        const double flop = kernels[i].float32 + kernels[i].bfloat16;
        printf("| %s | %s | ", isa, kernels[i].name);
        if (flop > 0) printf("%.1f | ", flop / seconds * 1e-9);
        else printf("| ");
        if (kernels[i].exponentials > 0) printf("%.2f | ", kernels[i].exponentials / seconds * 1e-9);
        else printf("| ");
        if (kernels[i].bytes > 0) printf("%.1f | ", kernels[i].bytes / seconds * 1e-9);
        else printf("| ");
        if (least > 0) printf("%.0f %% |\n", 100 * least / seconds);
        else printf("%.2f ns a cell and row |\n", 1e9 * seconds / BLOCK);
        fflush(stdout);
    }
}

static float uniform(uint64_t *random) { return (float)(ice_random(random) >> 40) * 0x1p-23f - 1.0f; }

int main(int count, char **arguments) {
    if (count > 1) least_seconds = atof(arguments[1]);
    inputs *in = calloc(1, sizeof *in);
    uint64_t random = 1;
    in->keys = malloc(sizeof(float) * FAR * DIM);
    in->short_keys = malloc(sizeof(uint16_t) * FAR * DIM);
    if (!in->keys || !in->short_keys) return 1;
    for (int64_t i = 0; i < (int64_t)FAR * DIM; i++) in->keys[i] = uniform(&random);
    for (int i = 0; i < PANEL; i++) in->panel[i] = uniform(&random);
    for (int k = 0; k < 5; k++)
        for (int i = 0; i < ICE_KEY_BLOCK; i++) in->facts[k][i] = 1.0f + 0.5f * uniform(&random);
    const ice_kernels *scalar = ice_find_kernels("scalar");
    scalar->from_float32(ICECORE_BFLOAT16, in->keys, in->short_keys, (int64_t)FAR * DIM);
    memcpy(in->query, in->short_keys, sizeof in->query);
    printf("| set | products, float32, GFLOP/s | bfloat16 | G exp2/s | GB/s from a level-2 cache, from memory |\n");
    printf("|---|---|---|---|---|\n");
    peaks found[sizeof sets / sizeof *sets];
    for (int i = 0; i < SETS; i++) {
        if (!ice_find_kernels(sets[i].isa)) continue;
        found[i] = sets[i].find(in->keys, NEAR * DIM, (int64_t)FAR * DIM);
        printf("| %s | %.1f | ", sets[i].isa, found[i].float32 * 1e-9);
        if (found[i].bfloat16 > 0) printf("%.1f | ", found[i].bfloat16 * 1e-9);
        else printf("| ");
        printf("%.2f | %.0f, %.1f |\n", found[i].exponentials * 1e-9, found[i].bytes[IN_CACHE] * 1e-9,
               found[i].bytes[IN_MEMORY] * 1e-9);
        fflush(stdout);
    }
    printf("\n| set | kernel | GFLOP/s | G exp2/s | GB/s | of what the machine can do |\n|---|---|---|---|---|---|\n");
    for (int i = 0; i < SETS; i++) {
        in->kernels = ice_find_kernels(sets[i].isa);
        if (!in->kernels) continue;
        if (in->kernels->bf16) {
            in->kernels->bf16->pack_queries(in->panel, DIM, in->pairs);
            in->kernels->bf16->pack_values(in->short_keys, DIM, ICE_KEY_BLOCK, DIM, in->packed);
        }
        if (in->kernels->thirds) {
            in->kernels->thirds->pack_queries(in->panel, DIM, in->thirds[0]);
            in->kernels->thirds->pack_keys(in->keys, DIM, ICE_KEY_BLOCK, DIM, in->thirds[1]);
            in->kernels->thirds->pack_values(in->keys, DIM, ICE_KEY_BLOCK, DIM, in->thirds[2]);
        }
        for (int lane = 0; lane < ICE_PANEL; lane++) in->maximum[lane] = in->correction[lane] = 1.0f;
        report(sets[i].isa, &found[i], in);
    }
    free(in->keys);
    free(in->short_keys);
    free(in);
    return 0;
}
