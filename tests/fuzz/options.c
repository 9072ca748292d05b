#include "options.h"

icecore_index_options index_options(const uint8_t *option) {
    return (icecore_index_options){.dim = option[AT_DIM],
                                   .metric = (icecore_metric)(option[AT_METRIC] & 1),
                                   .composites = option[AT_COMPOSITES],
                                   .simples = option[AT_SIMPLES],
                                   .levels = option[AT_LEVELS],
                                   .promotion = option[AT_PROMOTION] / 256.0,
                                   .dtype = (icecore_dtype)(option[AT_DTYPE] & 3),
                                   .seed = 7};
}

icecore_cache_options cache_options(const uint8_t *option) {
    return (icecore_cache_options){.heads = option[AT_HEADS],
                                   .dim = option[AT_KEY_DIM],
                                   .value_dim = option[AT_VALUE_DIM],
                                   .dtype = (icecore_dtype)(option[AT_STORAGE] & 7),
                                   .near_keys = option[AT_NEAR_KEYS],
                                   .tolerance = (float)option[AT_TOLERANCE] / 256.0f,
                                   .block = option[AT_BLOCK] + 256 * option[AT_BLOCK + 1],
                                   .sinks = option[AT_SINKS],
                                   .cell_size = option[AT_CELL_SIZE],
                                   .seed = 7};
}

void choose_isa(const uint8_t *option) {
    const char *names[16];
    const int usable = icecore_usable_isas(names, 16);
    icecore_set_isa(names[option[AT_ISA] % usable]);
}
