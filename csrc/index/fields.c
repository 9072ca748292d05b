#include "index/fields.h"

#include <stdio.h>

int64_t ice_fields_of(ice_tree *s, const icecore_index_options *o, ice_field *fields) {
    int64_t n = 0;
    fields[n++] = (ice_field){"order", 'i', s->count, (void **)&s->order};
    for (int i = 0; i < s->layers; i++) {
        ice_layer *layer = &s->layer[i];
        const int is_last = i + 1 == s->layers, coded = !is_last || o->composites == 0;
        struct {
            const char *name;
            char type;
            int64_t count;
            void **data;
        } own[] = {
            {"offset", 'l', layer->parents + 1, (void **)&layer->offset},
            {"mean", 'f', layer->parents * s->dim, (void **)&layer->mean},
            {"code", 'b', coded ? layer->children * layer->stride : 0, (void **)&layer->code},
            {"scale", 'f', coded ? layer->children : 0, (void **)&layer->scale},
            {"bias", 'f', coded && o->metric == ICECORE_SQUARED_DISTANCE ? layer->children : 0, (void **)&layer->bias},
            {"radius", 'f', is_last && coded ? layer->parents : 0, (void **)&layer->radius},
            {"spread", 'f', is_last && coded ? layer->parents : 0, (void **)&layer->spread},
        };
        for (int k = 0; k < 7; k++) {
            if (!own[k].count) continue;
            fields[n] = (ice_field){"", own[k].type, own[k].count, own[k].data};
            snprintf(fields[n++].part, sizeof fields->part, "layer%d.%s", i, own[k].name);
        }
    }
    if (o->composites) {
        int64_t lists = (int64_t)o->composites * o->simples;
        fields[n++] = (ice_field){"lists.row", 'i', o->composites * s->count, (void **)&s->lists.row};
        fields[n++] = (ice_field){"lists.projection", 'f', lists * s->count, (void **)&s->lists.projection};
        if (o->simples > 1)
            fields[n++] =
                (ice_field){"lists.sorted", 'f', (lists - o->composites) * s->count, (void **)&s->lists.sorted};
    }
    return n;
}
