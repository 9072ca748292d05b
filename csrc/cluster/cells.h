/* Grouping rows in cells, in steps.
 *
 * Promotion: `cells` rows are sampled without replacement as parents.  Each row goes to the nearest parent, each parent
 * moves to the mean of its rows (a Lloyd step), perhaps again, and in the end each row to the nearest parent once more,
 * and each parent to their mean where it is asked for.  Empty cells vanish.
 *
 * With a projection, rows are compared as their images.  By angle (spherical k-means) a parent has length 1, and a row
 * goes to the one that it has the largest product with. */
#ifndef ICE_CELLS_H
#define ICE_CELLS_H

#include "cluster/rows.h"

/* A projection has at most so many rows: wider heads would spend more on it than on distances, and it holds what
 * differs most. */
#define ICE_MAX_PROJECTED 64
/* A linear map of rows: count x dim numbers; NULL: none. */
typedef struct {
    const float *rows;
    int64_t count;
} ice_projection;

/* What cells are made by.  But for ICE_CELLS_WITH_MEANS parents are not to be read in the end. */
typedef enum { ICE_CELLS_ALONE, ICE_CELLS_WITH_MEANS, ICE_CELLS_BY_ANGLE } ice_cells_kind;

typedef struct {
    const ice_kernels *kernels;
    ice_rows rows;
    ice_projection projection;
    ice_cells_kind kind;
    int pulled_back; /* whether rows are compared as they are with P'P of the parents, P being the projection */
    int64_t width;   /* of what is compared: dim, or the projection's count where it is not pulled back */
    int64_t cells;   /* shrinks when empty cells vanish */
    float *parents;  /* cells x width, as they are compared */
    int32_t *label;  /* rows: the cell of each */
    int32_t *order;  /* rows, cell by cell, ascending within each */
    int64_t *offset; /* cells + 1 */
    float *bias;     /* cells: -|parent|^2 / 2, of the projected parent where there is a projection; by angle 0 */
    int steps;       /* Lloyd steps that are left */
    int stage;
    int64_t next; /* panel or cell at which the stage goes on */
} ice_cells;

/* Samples the parents; steps: of Lloyd's, at least one.  1 <= cells <= rows.count <= INT32_MAX.  By angle there is no
 * projection.  ICECORE_ERROR_MEMORY leaves nothing to end. */
icecore_status ice_cells_begin(ice_cells *c, const ice_kernels *kernels, ice_rows rows, ice_projection projection,
                               int64_t cells, int steps, ice_cells_kind kind, uint64_t seed);
/* Goes on by about `work` visits of a row (the whole takes 3 a row, with means 4, and a sort); *work becomes what is
 * left of it, 0 or less where there is more to do: call again.  When the status is not ICECORE_OK nothing is lost: call
 * again, or end. */
icecore_status ice_cells_step(ice_cells *c, int64_t *work, int threads);
int ice_cells_done(const ice_cells *c);
/* Frees what is left; fields that a caller took over are set to NULL by it before. */
void ice_cells_end(ice_cells *c);

/* order and offset of `count` items by label, stable; offset has groups + 1 places. */
void ice_group_by_label(const int32_t *label, int64_t count, int64_t groups, int32_t *order, int64_t *offset);

#endif
