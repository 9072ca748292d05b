/* Neighbours on a space-filling curve: ZETA (arXiv 2501.14577).
 *
 * Keys and queries are projected to three dimensions, and the bits of their coordinates, interleaved, are places on a
 * Z-order curve (Morton codes).  Keys are sorted by them once; a row attends to the keys next to its query's place
 * among those that it sees, half of them on either side.
 *
 * The published projection is trained.  Here it is three random directions, on which vectors of length 1 are laid, so
 * that no place depends on another key.  Everything up to the codes is computed in double: float products are exact
 * there, and codes do not depend on the instruction set. */
#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "base/order.h"
#include "select/kept.h"
#include "select/selector.h"
#include "tree/lists.h"

#define AXES 3
/* Cells of a coordinate, over eight standard deviations of a random direction's; what is outside is in the last. */
#define AXIS_BITS 10
#define CELLS (1 << AXIS_BITS)
#define DEVIATIONS 8.0

typedef struct {
    float *direction; /* AXES x dim */
    uint64_t *place;  /* of the keys, ascending: code << 32 | key */
} curve;

static void lay_out_curve(const ice_selector_call *call, void *own, ice_arena *a) {
    curve *c = own;
    c->direction = ice_arena_take(a, AXES * call->problem->dim, sizeof(float));
    c->place = ice_arena_take(a, call->problem->keys, sizeof(uint64_t));
}

/* The Morton code of a vector; NaN and vectors without a direction are in the first cell. */
static uint64_t code_of(const float *vector, int64_t dim, const float *direction) {
    double projection[AXES] = {0.0}, squared = 0.0;
    uint64_t code = 0;
    for (int64_t t = 0; t < dim; t++) {
        for (int axis = 0; axis < AXES; axis++)
            projection[axis] += (double)direction[axis * dim + t] * (double)vector[t];
        squared += (double)vector[t] * (double)vector[t];
    }
    for (int axis = 0; axis < AXES; axis++) {
        const double x = (projection[axis] / sqrt(squared) * sqrt((double)dim) / DEVIATIONS + 0.5) * CELLS;
        uint64_t cell = 0;
        if (x >= 0.0) cell = x < CELLS ? (uint64_t)x : CELLS - 1;
        for (int bit = 0; bit < AXIS_BITS; bit++) code |= (cell >> bit & 1) << (bit * AXES + axis);
    }
    return code;
}

static icecore_status digest(const ice_selector_call *call, int64_t head, void *digests) {
    const icecore_attention *p = call->problem;
    uint64_t *spare = ice_alloc(p->keys > 0 ? p->keys : 1, sizeof *spare);
    float key[ICECORE_MAX_DIM];
    const curve *c = digests;
    if (!spare) return ICECORE_ERROR_MEMORY;
    ice_lists_directions(call->seed, AXES, p->dim, c->direction);
    for (int64_t j = 0; j < p->keys; j++) {
        ice_read_key(call, head, j, key);
        c->place[j] = code_of(key, p->dim, c->direction) << 32 | (uint64_t)j;
    }
    ice_sort(c->place, spare, p->keys);
    ice_free(spare);
    return ICECORE_OK;
}

typedef struct {
    uint64_t *place; /* of the keys that some row of the tile sees */
    ice_kept kept;
} space;

static void lay_out(const ice_selector_call *call, void *own, ice_arena *a) {
    const int64_t keys = call->problem->keys, kept = ice_min(call->near_keys, keys);
    space *s = own;
    s->place = ice_arena_take(a, keys, sizeof(uint64_t));
    s->kept.score = ice_arena_take(a, kept, sizeof(float));
    s->kept.number = ice_arena_take(a, kept, sizeof(int32_t));
}

/* The first of `count` places that is not before `code`. */
static int64_t find_place(const uint64_t *place, int64_t count, uint64_t code) {
    int64_t first = 0;
    while (count > 0) {
        const int64_t half = count / 2;
        if (place[first + half] < code << 32) {
            first += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return first;
}

/* The next place from `i` on, in steps of 1 or -1, of a key before `end`; -1 or `count` where there is none. */
static int64_t next_seen(const uint64_t *place, int64_t count, int64_t i, int64_t step, int64_t end) {
    while (i >= 0 && i < count && (int64_t)(uint32_t)place[i] >= end) i += step;
    return i;
}

/* By turns the key before and the key behind the query's place, of those before `end`. */
static void take_neighbours(const uint64_t *place, int64_t count, uint64_t code, int64_t end, int64_t wanted,
                            ice_kept *kept) {
    int64_t behind = find_place(place, count, code), before = behind - 1;
    kept->count = 0;
    while (kept->count < wanted) {
        const int64_t taken = kept->count;
        before = next_seen(place, count, before, -1, end);
        if (before >= 0) kept->number[kept->count++] = (int32_t)(uint32_t)place[before--];
        behind = next_seen(place, count, behind, 1, end);
        if (behind < count && kept->count < wanted) kept->number[kept->count++] = (int32_t)(uint32_t)place[behind++];
        if (kept->count == taken) return;
    }
}

static void select_neighbours(const ice_selector_call *call, ice_tile *tile, const void *digests, void *own,
                              int64_t near_count[ICE_PANEL]) {
    const icecore_attention *p = call->problem;
    const int64_t end = ice_tile_visible(tile).end;
    const float sign = p->scale < 0.0f ? -1.0f : 1.0f;
    float query[ICECORE_MAX_DIM];
    int64_t count = 0;
    const curve *c = digests;
    space *s = own;
    for (int64_t j = 0; j < p->keys; j++) {
        s->place[count] = c->place[j];
        count += (int64_t)(uint32_t)c->place[j] < end;
    }
    for (int lane = 0; lane < tile->lanes && !ice_interrupted(); lane++) {
        ice_load_query(p, call->kernels, ice_tile_row(tile, lane), sign, query);
        take_neighbours(s->place, count, code_of(query, p->dim, c->direction), tile->visible[lane].end, call->near_keys,
                        &s->kept);
        near_count[lane] = s->kept.count;
        ice_kept_score(tile, lane, &s->kept);
        ice_kept_attend(tile, lane, &s->kept, NULL);
    }
}

static const ice_selector zeta = {.digests = {sizeof(curve), lay_out_curve},
                                  .space = {sizeof(space), lay_out},
                                  .digest = digest,
                                  .select = select_neighbours};

icecore_status icecore_attend_zeta(const icecore_attention *problem, int64_t near_keys, uint64_t seed,
                                   int32_t *near_count) {
    const ice_selector_call call = {.problem = problem, .near_keys = near_keys, .seed = seed};
    return ice_attend_selected(&call, &zeta, near_count);
}
