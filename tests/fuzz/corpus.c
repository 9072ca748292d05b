/* Writes the inputs that fuzzing starts from: what small indexes and caches write of themselves.
 *
 *   corpus FOLDER     into FOLDER/index and FOLDER/cache, which must be there */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"

enum { MAX_ROWS = 1100, MAX_DIM = 16 };

static float rows[MAX_ROWS * MAX_DIM];

static void must(icecore_status status) { PROMISE(status == ICECORE_OK); }

static void save(const char *folder, const char *name, const uint8_t *option, const file *f) {
    static uint8_t bytes[MAX_INPUT];
    input in = {.count = f->count};
    memcpy(in.option, option, OPTIONS);
    memcpy(in.array, f->arrays, (size_t)f->count * sizeof *f->arrays);
    const size_t size = write_input(&in, bytes, sizeof bytes);
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *out = fopen(path, "wb");
    PROMISE(size && out && fwrite(bytes, 1, size, out) == size && fclose(out) == 0);
}

/* Two steps, of another kind in each seed; more are up to the mutations. */
static void set_steps(uint8_t *option, int variant) {
    for (int i = 0; i < 2; i++) option[AT_STEPS + i] = (uint8_t)(41 * i + 13 * variant + 9);
    option[AT_ISA] = (uint8_t)variant;
}

/* Every third vector of a segment waits for a merge to leave it out: no file of ours holds such, others may. */
static void mark_removed(file *f, int64_t sealed) {
    int64_t *header = NULL, removed = 0;
    for (int64_t i = 0; i < f->count; i++) {
        uint8_t *data = (uint8_t *)f->arrays[i].data;
        if (!strcmp(f->arrays[i].name, "header")) header = (int64_t *)(void *)data;
        if (!strcmp(f->arrays[i].name, "state"))
            for (int64_t slot = 0; slot < sealed; slot += 3, removed++) data[slot] = 2; /* ICE_SLOT_REMOVED */
    }
    PROMISE(header);
    header[0] -= removed;
    header[1] += removed;
}

static void save_index(const char *folder, int variant, int64_t sealed, int64_t open) {
    uint8_t option[OPTIONS] = {0};
    option[AT_DIM] = (uint8_t)(sealed > 100 ? 1 : 1 + variant % 6);
    option[AT_METRIC] = (uint8_t)(variant % 2);
    option[AT_LEVELS] = (uint8_t)(1 + variant % 3);
    option[AT_COMPOSITES] = (uint8_t)(variant % 4 == 3 ? 2 : 0);
    option[AT_SIMPLES] = (uint8_t)(1 + variant % 3);
    option[AT_DTYPE] = (uint8_t)(variant / 2 % 3);
    option[AT_PROMOTION] = (uint8_t)(variant % 5 == 4 ? 64 : 0);
    set_steps(option, variant);
    const icecore_index_options o = index_options(option);
    icecore_index *index = NULL;
    int64_t place;
    must(icecore_index_create(&o, &index));
    must(icecore_index_add(index, &(icecore_addition){.vectors = rows, .count = sealed, .threads = 1}, &place));
    must(icecore_index_add(index, &(icecore_addition){.vectors = rows + sealed * o.dim, .count = open, .threads = 1},
                           &place));
    file f = {.count = 0};
    must(icecore_index_write(index, write_arrays, &f));
    if (open == 7) mark_removed(&f, sealed);
    char name[64];
    snprintf(name, sizeof name, "%d-%d-%d", variant, (int)sealed, (int)open);
    save(folder, name, option, &f);
    free_arrays(&f);
    icecore_index_free(index);
}

static void save_cache(const char *folder, int variant, int64_t tokens) {
    uint8_t option[OPTIONS] = {0};
    option[AT_HEADS] = (uint8_t)(1 + variant % 2);
    option[AT_KEY_DIM] = (uint8_t)(1 + variant * 3 % 8);
    option[AT_VALUE_DIM] = (uint8_t)(1 + variant * 5 % 7);
    option[AT_STORAGE] = (uint8_t)(variant % 7 % 5);
    option[AT_NEAR_KEYS] = (uint8_t)(variant % 3 ? 8 : 0);
    option[AT_TOLERANCE] = (uint8_t)(variant % 3 ? 0 : 30);
    option[AT_BLOCK] = (uint8_t)(8 << variant % 2);
    option[AT_SINKS] = (uint8_t)(variant % 4);
    option[AT_CELL_SIZE] = 4;
    option[AT_CACHES] = (uint8_t)(variant % 5 == 0);
    option[AT_OWN] = (uint8_t)(variant / 2 % 2);
    set_steps(option, variant);
    const icecore_cache_options o = cache_options(option);
    icecore_cache *caches[2] = {NULL, NULL};
    must(icecore_cache_create(&o, &caches[0]));
    const float offset = variant % 5 == 2 ? 200.0f : 0.0f; /* storage less the mean of cells */
    static float keys[MAX_ROWS * MAX_DIM], out[MAX_ROWS * MAX_DIM];
    for (int i = 0; i < MAX_ROWS * MAX_DIM; i++) keys[i] = rows[i] + offset;
    const int64_t part = 16;
    for (int64_t first = 0; first < tokens; first += part) {
        const icecore_tensor k = {keys + first, 0, part * o.dim, o.dim},
                             v = {rows + first, 0, part * o.value_dim, o.value_dim};
        const icecore_attention problem = {.query_heads = o.heads,
                                           .queries = part,
                                           .query = {rows + first, 0, part * o.dim, o.dim},
                                           .out = {out, 0, part * o.value_dim, o.value_dim},
                                           .scale = 0.3f,
                                           .threads = 1};
        must(icecore_cache_append(caches[0], ICECORE_FLOAT32, k, v, (icecore_tensor){0}, 0, part));
        must(icecore_cache_attend(&caches[0], 1, NULL, &problem, NULL, NULL));
    }
    if (variant % 3 == 1) must(icecore_cache_evict(caches[0], tokens / 2, &(int64_t){0}));
    const int64_t count = 1 + option[AT_CACHES];
    if (count == 2) {
        must(icecore_cache_fork(caches[0], &caches[1]));
        must(icecore_cache_truncate(caches[1], tokens - 5, 1));
    }
    file f = {.count = 0};
    must(icecore_cache_write(caches, count, write_arrays, &f));
    char name[64];
    snprintf(name, sizeof name, "%d-%d", variant, (int)tokens);
    save(folder, name, option, &f);
    free_arrays(&f);
    for (int64_t i = 0; i < count; i++) icecore_cache_free(caches[i]);
}

int main(int count, char **arguments) {
    char index[512], cache[512];
    PROMISE(count == 2);
    snprintf(index, sizeof index, "%s/index", arguments[1]);
    snprintf(cache, sizeof cache, "%s/cache", arguments[1]);
    for (int i = 0; i < MAX_ROWS * MAX_DIM; i++) rows[i] = (float)draw(2001) / 500.0f - 2.0f;
    for (int variant = 0; variant < 12; variant++) {
        save_index(index, variant, 30, 5);
        save_index(index, variant, 0, 3);
        save_cache(cache, variant, 96);
        save_cache(cache, variant, 16);
    }
    for (int variant = 0; variant < 4; variant++) {
        save_index(index, variant, 1024, 10); /* sealed */
        save_index(index, variant, 1024, 7);
        save_cache(cache, variant, 256);
    }
    return 0;
}
