/* The k-th largest of a list. */
#ifndef ICE_TOP_K_H
#define ICE_TOP_K_H

#include <stdint.h>

/* The k-th largest number, 1 <= k <= count, none NaN; reorders `numbers`.  Expected time linear. */
float ice_kth_largest(float *numbers, int64_t count, int64_t k);

#endif
