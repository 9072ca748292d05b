/* A tile by the row kernels: what run.h does where rows go one by one. */
#ifndef ICE_ATTEND_ROWS_H
#define ICE_ATTEND_ROWS_H

#include "attend/run.h"

void ice_rows_attend(ice_tile *tile, const ice_run *run);
void ice_rows_attend_keys(ice_tile *tile, const icecore_attention *source, int64_t first, int64_t end);
void ice_rows_attend_gathered(ice_tile *tile, const void *const *keys, const void *const *values, int64_t count);

#endif
