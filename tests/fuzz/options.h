/* Options of an index and of a cache from the bytes of an input: any bytes are some options, wrong ones among them. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "icecore.h"
#include "input.h"

/* Bytes that both targets read in the same way. */
enum { AT_ISA = 24, AT_STEPS = 25, STEPS = OPTIONS - AT_STEPS };

/* Bytes of an index. */
enum { AT_DIM, AT_METRIC, AT_COMPOSITES, AT_SIMPLES, AT_LEVELS, AT_DTYPE, AT_PROMOTION };
icecore_index_options index_options(const uint8_t *option);

/* Bytes of a cache. */
enum {
    AT_HEADS,
    AT_KEY_DIM,
    AT_VALUE_DIM,
    AT_STORAGE,
    AT_NEAR_KEYS,
    AT_TOLERANCE,
    AT_BLOCK,
    AT_SINKS = AT_BLOCK + 2,
    AT_CELL_SIZE,
    AT_CACHES,
    AT_OWN
};
icecore_cache_options cache_options(const uint8_t *option);

/* Puts an instruction set of this machine in force. */
void choose_isa(const uint8_t *option);

#endif
