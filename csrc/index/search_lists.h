/* The P-DCI lists of the picked parents of the last layer. */
#ifndef ICE_SEARCH_LISTS_H
#define ICE_SEARCH_LISTS_H

#include "index/search_space.h"

void ice_search_lists(ice_search_space *w);

#endif
