/* Products on matrix tiles, of a panel's sixteen lanes at a time; for bf16_tiles.inc.h.
 *
 * Scores: a = 16 keys x 32 components as they lie in memory, b = 16 component pairs x 16 queries (the packed panel), c
 * = keys x queries. Weighted sum: a = 16 value components x 32 keys (packed: transposed), b = 16 key pairs x 16 queries
 * (the weights as softmax writes them), c = components x queries, a part of the panel's accumulator. */

#define TILE 16        /* rows of a tile, and floats or pairs in a row */
#define TILE_PAIRED 32 /* bfloat16 numbers in a row; keys in a step */
#define TILE_NUMBERS (TILE * TILE_PAIRED)
#define GROUPS (ICE_PANEL / TILE)
#define STEP_PRODUCTS (TILE_PAIRED * TILE) /* of one group */
#define UNIT_STEPS 4                       /* whose weights are made before their values are summed up */
#define UNIT_KEYS (UNIT_STEPS * TILE_PAIRED)
#define UNIT_NUMBERS (UNIT_STEPS * TILE_NUMBERS) /* pairs of a unit, of one group and part */
#define PANEL_ROW_BYTES (ICE_PANEL * 4)          /* of scores, of accumulators, and of pairs */

#if ICE_PANEL != 3 * TILE || TILE_PAIRED != ICE_PACKED
#error "three tiles cover a panel, and values are packed by steps"
#endif

/* `groups`, how many tiles b there are, and `parts`, how many bfloat16 numbers make one of the caller's (1, or
 * ICE_THIRDS: thirds_tiles.inc.h), are constants wherever these are inlined. */

/* ---- Two tiles a by up to three tiles b ----
 *
 * Tiles 0 to 2 are the sums of the first a, 3 to 5 those of the second; 6 holds an a, 7 a b.  `both`, whether
 * there is a second a, is a constant as well. */

static ALWAYS_INLINE void tiles_zero(const int groups) {
    tile_zero(0);
    tile_zero(3);
    if (groups > 1) tile_zero(1);
    if (groups > 1) tile_zero(4);
    if (groups > 2) tile_zero(2);
    if (groups > 2) tile_zero(5);
}

/* Where sums lie: rows so many bytes apart, those of the next b and of the second a so many numbers further on. */
typedef struct {
    int64_t row_bytes, group, second;
} tile_layout;

static const tile_layout in_panel = {PANEL_ROW_BYTES, TILE, TILE * ICE_PANEL}, /* of scores, and of accumulators */
    by_group = {TILE * sizeof(float), STEP_PRODUCTS, TILE * TILE};

#define EACH_SUM(operation)                                                                  \
    do {                                                                                     \
        operation(0, sums, at.row_bytes);                                                    \
        if (groups > 1) operation(1, sums + at.group, at.row_bytes);                         \
        if (groups > 2) operation(2, sums + 2 * at.group, at.row_bytes);                     \
        if (both) operation(3, sums + at.second, at.row_bytes);                              \
        if (both && groups > 1) operation(4, sums + at.second + at.group, at.row_bytes);     \
        if (both && groups > 2) operation(5, sums + at.second + 2 * at.group, at.row_bytes); \
    } while (0)

static ALWAYS_INLINE void tiles_load(const float *sums, tile_layout at, const int groups, const int both) {
    EACH_SUM(tile_load);
}

static ALWAYS_INLINE void tiles_store(float *sums, tile_layout at, const int groups, const int both) {
    EACH_SUM(tile_store);
}

#undef EACH_SUM

/* The sums += a b.  The second a meets the tiles b from the last on, which is still there. */
static ALWAYS_INLINE void tiles_multiply(const uint16_t *a, const uint16_t *second_a, int64_t a_bytes,
                                         const uint16_t *b, int64_t group, int64_t b_bytes, const int groups,
                                         const int both) {
    tile_load(6, a, a_bytes);
    tile_load(7, b, b_bytes);
    tile_float_product(0, 6, 7);
    if (groups > 1) {
        tile_load(7, b + group, b_bytes);
        tile_float_product(1, 6, 7);
    }
    if (groups > 2) {
        tile_load(7, b + 2 * group, b_bytes);
        tile_float_product(2, 6, 7);
    }
    if (!both) return;
    tile_load(6, second_a, a_bytes);
    if (groups > 2) {
        tile_float_product(5, 6, 7);
        tile_load(7, b + group, b_bytes);
    }
    if (groups > 1) {
        tile_float_product(4, 6, 7);
        tile_load(7, b, b_bytes);
    }
    tile_float_product(3, 6, 7);
}

/* ---- A tile a in thirds by up to three tiles b in thirds ----
 *
 * Tiles 0 to 2 are the sums; 3 and 4 hold thirds of a, 5 to 7 a third of all b.  Six of nine products: the others are
 * below float32's precision.  Thirds, and steps, lie so many numbers apart. */

typedef struct {
    const uint16_t *numbers;
    int64_t row_bytes, third, group; /* group: of b */
} tile_thirds;

static ALWAYS_INLINE void thirds_load_b(const tile_thirds *b, int third, const int groups) {
    const uint16_t *own = b->numbers + third * b->third;
    tile_load(5, own, b->row_bytes);
    if (groups > 1) tile_load(6, own + b->group, b->row_bytes);
    if (groups > 2) tile_load(7, own + 2 * b->group, b->row_bytes);
}

#define THIRDS_PRODUCTS(a)                           \
    do {                                             \
        tile_float_product(0, a, 5);                 \
        if (groups > 1) tile_float_product(1, a, 6); \
        if (groups > 2) tile_float_product(2, a, 7); \
    } while (0)

static ALWAYS_INLINE void thirds_multiply(const tile_thirds *a, const tile_thirds *b, const int groups) {
    tile_load(3, a->numbers, a->row_bytes);
    thirds_load_b(b, 2, groups);
    THIRDS_PRODUCTS(3);
    thirds_load_b(b, 0, groups);
    tile_load(4, a->numbers + 2 * a->third, a->row_bytes);
    THIRDS_PRODUCTS(4);
    tile_load(4, a->numbers + a->third, a->row_bytes);
    THIRDS_PRODUCTS(4);
    THIRDS_PRODUCTS(3);
    thirds_load_b(b, 1, groups);
    THIRDS_PRODUCTS(4);
    THIRDS_PRODUCTS(3);
}

#undef THIRDS_PRODUCTS

/* ---- Scores ---- */

static ALWAYS_INLINE void thirds_products(const uint16_t *queries, int64_t dim, const uint16_t *keys, float *out,
                                          tile_layout at, const int groups) {
    tile_thirds a = {keys, dim * (int64_t)sizeof *keys, TILE_PAIRED * dim, 0},
                b = {queries, PANEL_ROW_BYTES, dim * ICE_PANEL, TILE_PAIRED};
    for (int half = 0; half < 2; half++, out += at.second) {
        tiles_zero(groups);
        for (int64_t t = 0; t < dim; t += TILE_PAIRED) {
            a.numbers = keys + half * TILE * dim + t;
            b.numbers = queries + t * ICE_PANEL;
            thirds_multiply(&a, &b, groups);
        }
        tiles_store(out, at, groups, 0);
    }
}

/* The products of 32 keys and all groups of queries.  Thirds: stride = dim. */
static ALWAYS_INLINE void tile_products(const uint16_t *queries, int64_t dim, const uint16_t *keys, int64_t stride,
                                        float *out, tile_layout at, const int groups, const int parts) {
    if (parts == ICE_THIRDS) {
        thirds_products(queries, dim, keys, out, at, groups);
        return;
    }
    tiles_zero(groups);
    for (int64_t t = 0; t < dim; t += TILE_PAIRED)
        tiles_multiply(keys + t, keys + TILE * stride + t, stride * (int64_t)sizeof *keys, queries + t * ICE_PANEL,
                       TILE_PAIRED, PANEL_ROW_BYTES, groups, 1);
    tiles_store(out, at, groups, 1);
}

/* ---- Weighted sums ---- */

/* A unit's products are added up from 0, so that the error does not grow with all keys. */
static ALWAYS_INLINE void thirds_sum_values(const uint16_t *values, int64_t value_dim, const uint16_t *pairs, int steps,
                                            float *accumulator, const int groups) {
    float sums[TILE * ICE_PANEL] __attribute__((aligned(64)));
    tile_thirds a = {values, TILE_PAIRED * sizeof *values, TILE_PAIRED * value_dim, 0},
                b = {pairs, TILE_PAIRED * sizeof *pairs, UNIT_NUMBERS, ICE_THIRDS * UNIT_NUMBERS};
    tiles_zero(groups);
    for (int step = 0; step < steps; step++) {
        thirds_multiply(&a, &b, groups);
        a.numbers += ICE_THIRDS * TILE_PAIRED * value_dim;
        b.numbers += TILE_NUMBERS;
    }
    tiles_store(sums, in_panel, groups, 0);
    for (int lane = 0; lane < groups * TILE; lane += TILE)
        for (int64_t i = lane; i < TILE * ICE_PANEL; i += ICE_PANEL)
            vf_store(accumulator + i, vf_add(vf_load(accumulator + i), vf_load(sums + i)));
}

/* accumulator += the values of a unit's steps times its weights; of 16 components, or of 32. */
static ALWAYS_INLINE void tile_sum_values(const uint16_t *values, int64_t value_dim, const uint16_t *pairs, int steps,
                                          float *accumulator, const int groups, const int both, const int parts) {
    if (parts == ICE_THIRDS) {
        thirds_sum_values(values, value_dim, pairs, steps, accumulator, groups);
        if (both)
            thirds_sum_values(values + TILE_NUMBERS, value_dim, pairs, steps, accumulator + TILE * ICE_PANEL, groups);
        return;
    }
    tiles_load(accumulator, in_panel, groups, both);
    for (int step = 0; step < steps; step++) {
        const uint16_t *a = values + step * TILE_PAIRED * value_dim;
        tiles_multiply(a, a + TILE_NUMBERS, TILE_PAIRED * sizeof *a, pairs + step * TILE_NUMBERS, UNIT_NUMBERS,
                       TILE_PAIRED * sizeof *pairs, groups, both);
    }
    tiles_store(accumulator, in_panel, groups, both);
}
