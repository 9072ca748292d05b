/* The selftest of kernels/codes.inc.h. */
#ifndef ICE_SELFTEST_SEARCH_H
#define ICE_SELFTEST_SEARCH_H

#include <stddef.h>

#include "kernels/kernels.h"

/* Kernels that are compared, and their names. */
#define ICE_SEARCH_KERNELS 11
extern const char *const ice_search_kernel_names[ICE_SEARCH_KERNELS];

/* Compares one of them with the scalar one on all its cases.  Returns the number of failures, the first of them told in
 * `reason`; *error becomes the largest error relative to what rounding allows. */
int ice_selftest_search(int number, const ice_kernels *plain, const ice_kernels *fast, char *reason, size_t size,
                        double *error);

#endif
