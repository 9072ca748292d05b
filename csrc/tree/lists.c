#include "tree/lists.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/order.h"
#include "base/parallel.h"
#include "base/random.h"
#include "tree/lifting.h"

/* ---- Building ---- */

enum { PROJECT, SORT_FIRST, SORT_REST, DONE };

/* Rows projected by one task. */
#define PROJECT_BLOCK 256

typedef struct {
    const ice_tree_plan *plan;
    ice_tree *tree;
    const float *centre;
    int64_t next;
    int64_t largest_cell; /* scratch of a sort: twice as many 64-bit keys */
} build_step;

/* Of one stage: how much there is to do, what a part of it costs (in rows), and by what it is done. */
typedef struct {
    int64_t items, cost;
    size_t scratch;
    ice_task task;
} stage_work;

void ice_frame_row(const ice_tree *s, const float *centre, const float *x, float *framed) {
    for (int64_t t = 0; t < s->dim; t++) framed[t] = (centre ? x[t] - centre[t] : x[t]) * s->scale;
}

void ice_project(const ice_kernels *kernels, const float *x, int64_t dim, float lifting, float last_coordinate,
                 const float *directions, int simples, float *projection) {
    int64_t width = dim + (lifting > 0);
    kernels->row_scores(x, dim, ICECORE_FLOAT32, directions, width, simples, projection);
    if (lifting > 0)
        for (int j = 0; j < simples; j++)
            projection[j] = projection[j] / lifting + last_coordinate * directions[j * width + dim];
}

void ice_project_query(const ice_kernels *kernels, const float *query, int64_t dim, const float *directions,
                       int simples, float *projection) {
    double squared = 0.0;
    for (int64_t t = 0; t < dim; t++) squared += (double)query[t] * query[t];
    const float norm = (float)sqrt(squared);
    ice_project(kernels, query, dim, norm > 0.0f ? norm : 1.0f, 0.0f, directions, simples, projection);
}

/* Normal numbers by Box and Muller, normalized. */
void ice_lists_directions(uint64_t seed, int64_t rows, int64_t width, float *directions) {
    for (float *direction = directions; direction < directions + rows * width; direction += width) {
        double squared = 0.0;
        for (int64_t t = 0; t < width; t++) {
            double a = ((double)(ice_random(&seed) >> 11) + 1.0) * 0x1p-53,
                   b = (double)(ice_random(&seed) >> 11) * 0x1p-53;
            double x = sqrt(-2.0 * log(a)) * cos(6.283185307179586 * b);
            direction[t] = (float)x;
            squared += x * x;
        }
        for (int64_t t = 0; t < width; t++) direction[t] = (float)(direction[t] / sqrt(squared));
    }
}

static void project_rows(void *context, int64_t index, void *scratch) {
    const build_step *step = context;
    if (!scratch) return;
    const ice_tree_plan *plan = step->plan;
    ice_tree *s = step->tree;
    ice_lists *lists = &s->lists;
    int64_t width = s->dim + (s->lifting > 0), all = (int64_t)lists->composites * lists->simples;
    float *framed = scratch, *projection = framed + s->dim;
    int64_t first = (step->next + index) * PROJECT_BLOCK,
            end = first + PROJECT_BLOCK < s->count ? first + PROJECT_BLOCK : s->count;
    for (int64_t i = first; i < end; i++) {
        ice_frame_row(s, step->centre, plan->rows.read(plan->rows.context, s->order[i], framed), framed);
        float last = s->lifting > 0 ? ice_last_coordinate(framed, s->dim, s->lifting) : 0.0f;
        for (int l = 0; l < lists->composites; l++)
            ice_project(plan->kernels, framed, s->dim, s->lifting, last, plan->directions + l * lists->simples * width,
                        lists->simples, projection + l * lists->simples);
        for (int64_t p = 0; p < all; p++) lists->projection[p * s->count + i] = projection[p];
    }
}

/* The first list of a composite: cell by cell, rows sorted by their first projection. */
static void sort_first(void *context, int64_t index, void *scratch) {
    const build_step *step = context;
    if (!scratch) return;
    ice_tree *s = step->tree;
    int64_t composite = step->next + index;
    float *projection = s->lists.projection + composite * s->lists.simples * s->count;
    int32_t *row = s->lists.row + composite * s->count;
    uint64_t *keys = scratch, *spare = keys + step->largest_cell;
    for (int64_t c = 0; c < s->cells; c++) {
        int64_t first = s->offset[c], count = s->offset[c + 1] - first;
        for (int64_t i = 0; i < count; i++)
            keys[i] = (uint64_t)ice_ordered(projection[first + i]) << 32 | (uint32_t)(first + i);
        ice_sort(keys, spare, count);
        for (int64_t i = 0; i < count; i++) {
            projection[first + i] = ice_unordered((uint32_t)(keys[i] >> 32));
            row[first + i] = (int32_t)(uint32_t)keys[i];
        }
    }
}

/* The other lists: projections in the order of the first, and sorted by themselves. */
static void sort_rest(void *context, int64_t index, void *scratch) {
    const build_step *step = context;
    if (!scratch) return;
    ice_tree *s = step->tree;
    int rest = s->lists.simples - 1;
    int64_t composite = (step->next + index) / rest, j = (step->next + index) % rest;
    float *projection = s->lists.projection + (composite * s->lists.simples + j + 1) * s->count;
    float *sorted = s->lists.sorted + (composite * rest + j) * s->count;
    const int32_t *row = s->lists.row + composite * s->count;
    uint64_t *keys = scratch, *spare = keys + step->largest_cell;
    for (int64_t c = 0; c < s->cells; c++) {
        int64_t first = s->offset[c], count = s->offset[c + 1] - first;
        for (int64_t i = 0; i < count; i++) sorted[first + i] = projection[row[first + i]];
        memcpy(projection + first, sorted + first, (size_t)count * sizeof(float));
        for (int64_t i = 0; i < count; i++) keys[i] = ice_ordered(projection[first + i]);
        ice_sort(keys, spare, count);
        for (int64_t i = 0; i < count; i++) sorted[first + i] = ice_unordered((uint32_t)keys[i]);
    }
}

/* c of the lifting: at least the largest norm, above 0. */
static icecore_status find_lifting(const ice_tree_plan *plan, const ice_tree *s, const float *centre, float *lifting) {
    float *framed = ice_alloc(s->dim, sizeof *framed);
    if (!framed) return ICECORE_ERROR_MEMORY;
    double largest = 0.0;
    int stopped = 0;
    for (int64_t i = 0; i < s->count && !stopped; i++) {
        if (i % ICE_UNASKED == 0) stopped = ice_interrupted();
        ice_frame_row(s, centre, plan->rows.read(plan->rows.context, s->order[i], framed), framed);
        double squared = 0.0;
        for (int64_t t = 0; t < s->dim; t++) squared += (double)framed[t] * framed[t];
        largest = fmax(largest, squared);
    }
    ice_free(framed);
    double norm = sqrt(largest) * (1.0 + 0x1p-23); /* rounding to float must not put it below a row's norm */
    *lifting = norm > 0x1.fffffep127 ? 0x1.fffffep127f : (float)norm;
    if (norm < 0x1p-100) *lifting = 1.0f;
    return stopped ? ICECORE_INTERRUPTED : ICECORE_OK;
}

/* The centre adds the same to all inner products with a query; what is lifted by less is nearer to what it stands for.
 */
static icecore_status find_frame(ice_lists_builder *b, const ice_tree_plan *plan, ice_tree *s) {
    b->centre = s->layer[0].mean;
    if (plan->metric != ICECORE_INNER_PRODUCT) return ICECORE_OK;
    float plain, centred;
    icecore_status status = find_lifting(plan, s, NULL, &plain);
    if (status == ICECORE_OK) status = find_lifting(plan, s, b->centre, &centred);
    if (status != ICECORE_OK) return status;
    s->lifting = fminf(plain, centred);
    if (plain <= centred) b->centre = NULL;
    return ICECORE_OK;
}

static icecore_status allocate_lists(const ice_tree_plan *plan, ice_tree *s) {
    const int composites = plan->composites, simples = plan->simples;
    ice_lists *lists = &s->lists;
    /* what there was memory for before stays */
    if (!lists->row) lists->row = ice_owned_alloc(&s->owned, (int64_t)composites * s->count, sizeof(int32_t));
    if (!lists->projection)
        lists->projection = ice_owned_alloc(&s->owned, (int64_t)composites * simples * s->count, sizeof(float));
    if (!lists->sorted)
        lists->sorted = ice_owned_alloc(&s->owned, (int64_t)composites * (simples - 1) * s->count, sizeof(float));
    if (!lists->row || !lists->projection || !lists->sorted) return ICECORE_ERROR_MEMORY;
    lists->composites = composites;
    lists->simples = simples;
    return ICECORE_OK;
}

/* Where this is interrupted or fails it can be begun again. */
static icecore_status begin_lists(ice_lists_builder *b, const ice_tree_plan *plan, ice_tree *s) {
    icecore_status status = find_frame(b, plan, s);
    return status == ICECORE_OK ? allocate_lists(plan, s) : status;
}

int ice_lists_done(const ice_lists_builder *b) { return b->stage == DONE; }

icecore_status ice_lists_step(ice_lists_builder *b, const ice_tree_plan *plan, ice_tree *s, int64_t *work,
                              int threads) {
    icecore_status status = s->lists.composites ? ICECORE_OK : begin_lists(b, plan, s);
    if (status != ICECORE_OK) return status;
    int64_t largest = 0;
    for (int64_t c = 0; c < s->cells; c++)
        if (s->offset[c + 1] - s->offset[c] > largest) largest = s->offset[c + 1] - s->offset[c];
    build_step step = {.plan = plan, .tree = s, .centre = b->centre, .largest_cell = largest};
    const size_t sorting = 2 * (size_t)largest * sizeof(uint64_t);
    const size_t projecting = (size_t)(s->dim + (int64_t)plan->composites * plan->simples) * sizeof(float);
    const stage_work work_of[] = {
        [PROJECT] = {(s->count + PROJECT_BLOCK - 1) / PROJECT_BLOCK, PROJECT_BLOCK, projecting, project_rows},
        [SORT_FIRST] = {plan->composites, s->count, sorting, sort_first},
        [SORT_REST] = {(int64_t)plan->composites * (plan->simples - 1), s->count, sorting, sort_rest},
    };
    while (*work > 0 && b->stage != DONE) {
        const stage_work *now = &work_of[b->stage];
        const int64_t items = now->items, cost = now->cost;
        int64_t wanted = (*work - 1) / cost + 1;
        if (wanted > items - b->next) wanted = items - b->next;
        step.next = b->next;
        status = ice_parallel_for(wanted, threads, now->scratch, now->task, &step);
        if (status != ICECORE_OK) return status;
        *work -= wanted * cost;
        b->next += wanted;
        if (b->next < items) continue;
        b->stage++;
        b->next = 0;
    }
    return ICECORE_OK;
}

/* ---- Candidates ---- */

/* One side of one sorted list as seen from the query: distances that grow from index 0 on. */
typedef struct {
    const float
        *values; /* at the query's place: values[0], values[1], .. upwards; values[-1], values[-2], .. downwards */
    float query;
    int down;
    int64_t low, high; /* the first `low` are within the radius, those from `high` on are not */
} side;

static float distance_at(const side *s, int64_t i) {
    return s->down ? s->query - s->values[-1 - i] : s->values[i] - s->query;
}

/* How many of the side are <= radius, known to lie within [low, high]. */
static int64_t within(const side *s, float radius) {
    int64_t low = s->low, high = s->high;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (distance_at(s, middle) <= radius) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Distances left undecided that are simply sorted. */
#define UNDECIDED 48

/* The wanted-th smallest distance of all sides: pivots from the middle of the widest side until few are undecided. */
static float smallest(side *sides, int count, int64_t wanted) {
    for (;;) {
        int64_t decided = 0, undecided = 0;
        int widest = 0;
        for (int i = 0; i < count; i++) {
            decided += sides[i].low;
            undecided += sides[i].high - sides[i].low;
            if (sides[i].high - sides[i].low > sides[widest].high - sides[widest].low) widest = i;
        }
        if (undecided <= UNDECIDED) {
            uint64_t keys[UNDECIDED], spare[UNDECIDED];
            int64_t n = 0;
            for (int i = 0; i < count; i++)
                for (int64_t j = sides[i].low; j < sides[i].high; j++)
                    keys[n++] = ice_ordered(distance_at(&sides[i], j));
            ice_sort(keys, spare, n);
            return ice_unordered((uint32_t)keys[wanted - decided - 1]);
        }
        const side *w = &sides[widest];
        float pivot = distance_at(w, w->low + (w->high - w->low) / 2);
        int64_t reach[2 * ICECORE_MAX_SIMPLES], below[2 * ICECORE_MAX_SIMPLES], reached = 0, all_below = 0,
                                                                                progress = 0;
        for (int i = 0; i < count; i++) {
            reached += reach[i] = within(&sides[i], pivot);
            below[i] = reach[i];
            while (below[i] > sides[i].low && distance_at(&sides[i], below[i] - 1) == pivot) below[i]--;
            all_below += below[i];
        }
        if (reached >= wanted && all_below < wanted) return pivot;
        for (int i = 0; i < count; i++) {
            int64_t *bound = reached < wanted ? &sides[i].low : &sides[i].high,
                    now = reached < wanted ? reach[i] : below[i];
            progress |= *bound != now;
            *bound = now;
        }
        if (!progress) return pivot; /* only where the lists of a damaged file are not sorted */
    }
}

static int64_t first_at_least(const float *sorted, int64_t count, float value) {
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (sorted[middle] < value) low = middle + 1;
        else high = middle;
    }
    return low;
}

int64_t ice_lists_candidates(const ice_lists_query *own, const ice_tree *s, int composite, int64_t cell,
                             int32_t *rows) {
    const ice_lists *lists = &s->lists;
    const int simples = lists->simples;
    const float *query = own->projection + composite * simples;
    const int64_t visit = own->visit, retrieve = own->retrieve;
    uint64_t *spare = own->spare;
    int64_t first = s->offset[cell], count = s->offset[cell + 1] - first;
    const float *projection = lists->projection + (int64_t)composite * simples * s->count + first;
    const int64_t others = (int64_t)composite * (simples - 1) * s->count + first; /* `sorted` is NULL without any */
    const int32_t *row = lists->row + (int64_t)composite * s->count + first;
    int64_t begin = 0, end = count;
    float radius = INFINITY;
    if (visit > 0 && visit < count * simples) {
        side sides[2 * ICECORE_MAX_SIMPLES];
        for (int j = 0; j < simples; j++) {
            const float *values = j == 0 ? projection : lists->sorted + others + (j - 1) * s->count;
            int64_t place = first_at_least(values, count, query[j]);
            sides[2 * j] = (side){values + place, query[j], 0, 0, count - place};
            sides[2 * j + 1] = (side){values + place, query[j], 1, 0, place};
        }
        side up = sides[0], down = sides[1];
        radius = smallest(sides, 2 * simples, visit);
        begin = down.high - within(&down, radius);
        end = down.high + within(&up, radius);
    }
    float *distance = (float *)(spare + count);
    own->kernels->chebyshev(projection + begin, s->count, simples, query, end - begin, distance);
    int64_t found = 0;
    for (int64_t i = begin; i < end; i++)
        if (distance[i - begin] <= radius && own->wanted(own->context, s->order[row[i]]))
            spare[found++] = (uint64_t)~ice_ordered(distance[i - begin]) << 32 | (uint32_t)i;
    float last = INFINITY;
    if (retrieve > 0 && retrieve < found) {
        ice_select_largest(spare, found, retrieve);
        uint32_t minimum = UINT32_MAX;
        for (int64_t i = 0; i < retrieve; i++)
            if ((uint32_t)(spare[i] >> 32) < minimum) minimum = (uint32_t)(spare[i] >> 32);
        last = ice_unordered(~minimum);
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < found; i++)
        if (ice_unordered(~(uint32_t)(spare[i] >> 32)) <= last) rows[kept++] = row[(uint32_t)spare[i]];
    return kept;
}
