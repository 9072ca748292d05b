/* Caches over any arrays: they are refused with a reason, or are safe in every use and stay valid. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"

enum { ROWS = 40, GROUP = 2, MAX_HEADS = 16, MAX_CACHES = 4 };

static float rows[ROWS * MAX_HEADS * GROUP * 255], out[ROWS * MAX_HEADS * GROUP * 255];

/* Whether the cache finds nothing wrong with itself.  Its structure never is; numbers that a file made up may lead to
 * others that are not finite, when segments are built anew from them. */
static int is_sound(icecore_cache *cache) {
    const char *fault = NULL;
    PROMISE(icecore_cache_validate(cache, &fault) == ICECORE_OK);
    if (!fault) return 1;
    if (!strstr(fault, "not a number") && !strstr(fault, "not finite")) {
        fprintf(stderr, "%s\n", fault);
        PROMISE(!"sound");
    }
    return 0;
}

static icecore_cache_state state_of(icecore_cache *cache) {
    icecore_cache_state state;
    PROMISE(icecore_cache_get_state(cache, &state) == ICECORE_OK);
    PROMISE(state.evicted >= 0 && state.evicted <= state.length && state.open >= 0);
    return state;
}

static void attend(icecore_cache *cache, const icecore_cache_options *o, int64_t queries) {
    const icecore_cache_state state = state_of(cache);
    if (queries > state.length - state.first_query) queries = state.length - state.first_query;
    const int64_t heads = o->heads * GROUP;
    const icecore_attention problem = {
        .query_heads = heads,
        .queries = queries,
        .query = {rows, heads * queries * o->dim, queries * o->dim, o->dim},
        .out = {out, heads * queries * o->value_dim, queries * o->value_dim, o->value_dim},
        .scale = 0.3f,
        .threads = 1,
    };
    int32_t near_count[ROWS * MAX_HEADS * GROUP];
    float missed_bound[ROWS * MAX_HEADS * GROUP];
    const icecore_report report = {.near_count = near_count, .missed_bound = missed_bound};
    PROMISE(icecore_cache_attend(&cache, 1, NULL, &problem, NULL, &report) == ICECORE_OK);
    for (int64_t i = 0; i < heads * queries; i++) PROMISE(near_count[i] >= 0 && near_count[i] <= state.length);
}

static void append(icecore_cache *cache, const icecore_cache_options *o, int64_t count) {
    const icecore_tensor keys = {rows, 0, count * o->dim, o->dim},
                         values = {rows, 0, count * o->value_dim, o->value_dim};
    const int64_t before = state_of(cache).length;
    const icecore_status status = icecore_cache_append(cache, ICECORE_FLOAT32, keys, values, keys, o->heads, count);
    PROMISE(status == ICECORE_OK || status == ICECORE_ERROR_VALUE);
    PROMISE(state_of(cache).length == before + (status == ICECORE_OK ? count : 0));
}

static void step(icecore_cache *cache, const icecore_cache_options *o, uint8_t what) {
    const int64_t length = state_of(cache).length, some = what / 8;
    int64_t evicted;
    switch (what % 8) {
    case 0:
    case 1: append(cache, o, 1); break;
    case 2: append(cache, o, 1 + some); break;
    case 3: icecore_cache_truncate(cache, length - some, 1); break;
    case 4: icecore_cache_truncate(cache, length / 32 * some, 1); break;
    case 5: icecore_cache_evict(cache, length / 32 * some, &evicted); break;
    case 6: attend(cache, o, 1 + some); return;
    default: attend(cache, o, 1); return;
    }
    attend(cache, o, 1);
}

/* What is sound may be written and mapped again. */
static void write_and_map(icecore_cache *const *caches, int64_t count, const icecore_cache_options *o) {
    file f = {.count = 0};
    int sound = 1;
    for (int64_t i = 0; i < count; i++) sound &= is_sound(caches[i]);
    icecore_cache *again[MAX_CACHES];
    char reason[256];
    PROMISE(icecore_cache_write(caches, count, write_arrays, &f) == ICECORE_OK);
    const icecore_status status = icecore_cache_map(o, f.arrays, f.count, 0, again, count, reason, sizeof reason);
    PROMISE(status == ICECORE_OK || (!sound && status == ICECORE_ERROR_VALUE));
    for (int64_t i = 0; i < count && again[i]; i++) {
        attend(again[i], o, 2);
        icecore_cache_free(again[i]);
    }
    free_arrays(&f);
}

static void use(icecore_cache **caches, int64_t count, const icecore_cache_options *o, const uint8_t *option) {
    for (int64_t i = 0; i < count; i++) {
        icecore_cache *fork = NULL;
        PROMISE(is_sound(caches[i]));
        attend(caches[i], o, 2);
        PROMISE(icecore_cache_fork(caches[i], &fork) == ICECORE_OK);
        for (int j = 0; j < STEPS && option[AT_STEPS + j]; j++) {
            step(j % 2 ? caches[i] : fork, o, option[AT_STEPS + j]);
            is_sound(caches[i]);
            is_sound(fork);
        }
        icecore_cache_free(fork);
        append(caches[i], o, 1);
    }
    write_and_map(caches, count, o);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    input in;
    read_input(&in, bytes, size);
    choose_isa(in.option);
    if (!rows[0])
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) rows[i] = (float)((int)(i * 37 % 101) - 50) / 16.0f;
    const icecore_cache_options o = cache_options(in.option);
    const int64_t count = 1 + in.option[AT_CACHES] % MAX_CACHES;
    const int own = in.option[AT_OWN] & 1;
    icecore_cache *caches[MAX_CACHES] = {0};
    char reason[256] = "";
    const icecore_status status = icecore_cache_map(&o, in.array, in.count, own, caches, count, reason, sizeof reason);
    PROMISE(status == ICECORE_OK || (status == ICECORE_ERROR_VALUE && reason[0] && !caches[0]));
    if (own) free_input(&in);
    if (status == ICECORE_OK && o.heads <= MAX_HEADS) use(caches, count, &o, in.option);
    for (int64_t i = 0; i < count; i++) icecore_cache_free(caches[i]);
    if (!own) free_input(&in);
    return 0;
}
