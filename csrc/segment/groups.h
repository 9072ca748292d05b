/* Keys in cells and cells under parents, from the top down.
 *
 * Parents first, CELLS_PER_PARENT times the size of a cell each; then each parent's keys in cells of their own.  Both
 * by the clustering of cells.h.  A key is thus compared with count / (cell_size * CELLS_PER_PARENT) parents and
 * CELLS_PER_PARENT cells instead of with count / cell_size cells; the error at equal near keys is about a tenth larger
 * than with cells found among all keys (measured on SmolLM2 and DINOv2). */
#ifndef ICE_GROUPS_H
#define ICE_GROUPS_H

#include "cluster/cells.h"

#define ICE_CELLS_PER_PARENT 16
/* Keys that are far from their cell become cells of their own: of a parent at most one for so many cells. */
#define ICE_CELLS_PER_APART 4

/* Rows in cells: cell c holds the rows order[cell[c]] .. order[cell[c + 1] - 1]. */
typedef struct {
    int64_t cells, rows;
    int64_t *cell; /* cells + 1 */
    int32_t *order;
} ice_grouped;

typedef struct {
    int64_t parents;
    int64_t *parent; /* parents + 1: parent p holds cells parent[p] .. parent[p + 1] - 1 of `found` */
    ice_grouped found;
    int has_apart; /* whether the last parent holds what is apart */
    /* on the way there */
    ice_grouped apart;
    const ice_kernels *kernels;
    ice_rows rows;
    ice_projection projection;
    int64_t cell_size;
    uint64_t seed;
    int32_t *spare;
    ice_cells clustering; /* of the parents */
    int clustered;
    int64_t next; /* parent to be split */
} ice_groups;

/* In steps, serial: for callers that are tasks.  The projection must stay.  On failure of `begin` there is nothing to
 * end. */
icecore_status ice_groups_begin(ice_groups *groups, const ice_kernels *kernels, ice_rows rows,
                                ice_projection projection, int64_t cell_size, uint64_t seed);
/* Goes on by about `work` comparisons of a row with 16 others (the whole takes ice_groups_work of them); *work becomes
 * what is left of it, 0 or less where there is more to do.  When the status is not ICECORE_OK nothing is lost: call
 * again, or end. */
icecore_status ice_groups_step(ice_groups *groups, int64_t *work);
int64_t ice_groups_work(int64_t rows, int64_t cell_size);
int ice_groups_done(const ice_groups *groups);
/* Once it is done: frees `order`, when the caller has it elsewhere. */
void ice_groups_forget_rows(ice_groups *groups);
void ice_groups_end(ice_groups *groups);

#endif
