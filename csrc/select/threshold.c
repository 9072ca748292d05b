#include "select/threshold.h"

#include <math.h>

#include "base/order.h"

void ice_risk_threshold(const ice_kernels *kernels, const float *risk, int64_t cells, int lanes, const float *count,
                        int64_t wanted, float *threshold) {
    /* low: at least `wanted` keys, or 0; high: fewer.  Cells between low and high are counted to end early. */
    uint32_t low[ICE_PANEL], high[ICE_PANEL];
    float cells_low[ICE_PANEL], cells_high[ICE_PANEL], middle[ICE_PANEL], keys[ICE_PANEL], opened[ICE_PANEL];
    for (int lane = 0; lane < ICE_PANEL; lane++) {
        low[lane] = ice_ordered(-INFINITY);
        high[lane] = ice_ordered(INFINITY) + 1; /* above every risk */
        cells_low[lane] = (float)cells;
        cells_high[lane] = 0.0f;
        middle[lane] = 0.0f;
    }
    for (int pass = 0; pass < 32; pass++) {
        int open = 0;
        for (int lane = 0; lane < lanes; lane++) {
            int undecided = high[lane] - low[lane] > 1 && cells_low[lane] - cells_high[lane] > 1.0f;
            open |= undecided;
            middle[lane] = ice_unordered(low[lane] + (high[lane] - low[lane]) / 2);
        }
        if (!open) break;
        kernels->count_at_least(risk, cells, lanes, count, middle, keys, opened);
        for (int lane = 0; lane < lanes; lane++) {
            uint32_t bits = low[lane] + (high[lane] - low[lane]) / 2;
            if (keys[lane] >= (float)wanted) {
                low[lane] = bits;
                cells_low[lane] = opened[lane];
            } else {
                high[lane] = bits;
                cells_high[lane] = opened[lane];
            }
        }
    }
    for (int lane = 0; lane < ICE_PANEL; lane++) threshold[lane] = ice_unordered(low[lane < lanes ? lane : 0]);
}
