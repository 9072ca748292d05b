/* P-DCI: the sorted projection lists of a tree, and the candidates they give (Li & Malik, arXiv 1703.00440).
 *
 * Composite l of a cell yields its keys in ascending order of r_l(x) = max_j |<x - q, u_jl>|, which is the order in
 * which the published queue over its simple indices completes them.  A budget of `visit` pops ends at the visit-th
 * smallest of all
 * |<x - q, u_jl>|, a budget of `retrieve` candidates at the retrieve-th smallest r_l; what ties with the last one comes
 * along.  So instead of a queue: a selection among sorted lists finds the radius, and the first list's window of that
 * radius is scanned. */
#ifndef ICE_LISTS_H
#define ICE_LISTS_H

#include "tree/tree.h"

/* Building, in steps. */
typedef struct {
    int stage;
    int64_t next;
    const float *centre; /* the root's mean; NULL for 0, where inner products are lifted by less so */
} ice_lists_builder;
icecore_status ice_lists_step(ice_lists_builder *builder, const ice_tree_plan *plan, ice_tree *tree, int64_t *work,
                              int threads);
int ice_lists_done(const ice_lists_builder *builder);

/* scale (x - centre), with the tree's scale: what the lists project.  centre: NULL for 0. */
void ice_frame_row(const ice_tree *tree, const float *centre, const float *x, float *framed);
/* <T(x), u> for some directions, dim + 1 wide where lifted. */
void ice_project(const ice_kernels *kernels, const float *x, int64_t dim, float lifting, float last_coordinate,
                 const float *directions, int simples, float *projection);
/* The same of a query that is lifted, T(q) = [ q / |q| ; 0 ]; a zero query stays zero. */
void ice_project_query(const ice_kernels *kernels, const float *query, int64_t dim, const float *directions,
                       int simples, float *projection);
/* Unit vectors uniform on the sphere: rows x width. */
void ice_lists_directions(uint64_t seed, int64_t rows, int64_t width, float *directions);

/* Whether the row of tree->order may be a candidate. */
typedef int (*ice_wanted)(const void *context, int32_t row);
/* What a query asks of the lists. */
typedef struct {
    const ice_kernels *kernels;
    const float *projection; /* the query's, by all simple indices of all composites */
    int64_t visit, retrieve; /* of each composite; 0: no bound */
    ice_wanted wanted;       /* others are no candidates, though they count as pops */
    const void *context;     /* of wanted */
    uint64_t *spare;         /* room for ICE_LISTS_SPARE(cell's keys) numbers */
} ice_lists_query;
#define ICE_LISTS_SPARE(keys) ((keys) + (keys) / 2 + 2)
/* The candidates of one composite in one cell: appends numbers of stored rows to `rows` (room for the cell) and returns
 * how many. */
int64_t ice_lists_candidates(const ice_lists_query *query, const ice_tree *tree, int composite, int64_t cell,
                             int32_t *rows);

#endif
