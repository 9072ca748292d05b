/* Rows on their way through the keys (ice_state), with the row kernels. */
#ifndef ICE_ATTEND_ROWS_H
#define ICE_ATTEND_ROWS_H

#include "attend/request.h"

/* Attends to keys first .. end - 1, all visible but for the mask of the problem.  cleaned_values: room for
 * ICE_KEY_BLOCK float32 rows. */
void ice_row_attend(ice_state *state, const icecore_attention *problem, const ice_kernels *kernels, ice_row row,
                    int64_t key_head, const float *query, int64_t first, int64_t end, void *cleaned_values);

/* Contiguous rows that are all visible.  rounded: NULL, or the query as bfloat16, which is then multiplied with keys of
 * bfloat16. query: times scale (which includes log2(e)); rounded: not scaled. */
void ice_row_scores(const ice_kernels *kernels, const float *query, const uint16_t *rounded, float scale, int64_t dim,
                    icecore_dtype dtype, const void *keys, int64_t count, float *scores);
/* Attends to `count` of them, for the rows that `lanes` has a bit for, whose queries follow one another and whose
 * states are state[lane]; bias: added to the scores (log2 units), or NULL. */
void ice_rows_attend(ice_state *state, uint64_t lanes, const ice_kernels *kernels, const float *queries,
                     const uint16_t *rounded, float scale, int64_t dim, int64_t value_dim, icecore_dtype dtype,
                     const void *keys, const void *values, int64_t count, const float *bias);

/* Adds contiguous values by scores, for rows as above: scores + lane * stride, which are lost. */
void ice_rows_add_means(ice_state *state, uint64_t lanes, const ice_kernels *kernels, int64_t value_dim,
                        icecore_dtype dtype, float *scores, int64_t stride, const void *values, int64_t count);

/* Adds another partial result over other keys: the log-sum-exp merge. */
void ice_state_merge(ice_state *state, int64_t value_dim, float maximum, float sum, const float *accumulator);

#endif
