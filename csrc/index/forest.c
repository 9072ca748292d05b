#include "index/forest.h"

#include <string.h>

void ice_forest_find(const icecore_index *index, ice_forest *f) {
    memset(f, 0, sizeof *f);
    for (int n = 0; n < ICE_MAX_SEGMENTS; n++)
        if (ice_used_in(&index->sealed[n])) f->segment[f->segments++] = index->sealed[n].segment;
    f->layers = index->options.levels;
    for (int layer = 0; layer < f->layers; layer++)
        for (int n = 0; n < f->segments; n++)
            f->first[layer][n + 1] = f->first[layer][n] + f->segment[n]->layer[layer].parents;
    for (int n = 0; n < f->segments; n++)
        for (int64_t c = 0; c < f->segment[n]->cells; c++)
            if (f->segment[n]->offset[c + 1] - f->segment[n]->offset[c] > f->largest_cell)
                f->largest_cell = f->segment[n]->offset[c + 1] - f->segment[n]->offset[c];
}
