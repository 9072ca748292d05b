/* What a fuzzing target reads: options, and named arrays as in a file of an index or of a cache, without checksums.
 *
 *   OPTIONS bytes             what the target makes of them
 *   1 byte                    number of arrays
 *   ENTRY bytes per array     name, padded with zeros; type; number of elements, 4 bytes
 *   the arrays' elements, one array after another */
#ifndef INPUT_H
#define INPUT_H

#include <stddef.h>
#include <stdint.h>

#include "arrays.h"

enum { OPTIONS = 32, NAME = 32, ENTRY = NAME + 5, MAX_INPUT = 1 << 17 };

typedef struct {
    uint8_t option[OPTIONS];
    icecore_array array[255];
    int64_t count;
} input;

/* The options and arrays, each array in memory of exactly its size.  Whatever the bytes are, this is some input: an
 * array of which bytes are missing ends there. */
void read_input(input *in, const uint8_t *bytes, size_t size);
void free_input(input *in);
/* Its bytes, of at most `capacity`; 0 where that is too little. */
size_t write_input(const input *in, uint8_t *bytes, size_t capacity);

/* Ends the process, so that the fuzzer keeps the input, when a promise does not hold. */
#define PROMISE(condition) ((condition) ? (void)0 : broken(__FILE__, __LINE__, #condition))
void broken(const char *file, int line, const char *condition) __attribute__((noreturn));

/* libFuzzer's names for the target, and for changing an input in the way of its format. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t size, size_t capacity, unsigned seed);
/* Defined by libFuzzer, or by plain.c: changes bytes without regard to any format. */
size_t LLVMFuzzerMutate(uint8_t *bytes, size_t size, size_t capacity);

#endif
