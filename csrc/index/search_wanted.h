/* Filters and removed vectors. */
#ifndef ICE_SEARCH_WANTED_H
#define ICE_SEARCH_WANTED_H

#include "index/search_space.h"

/* Finds what may be returned.  The forest must be known. */
icecore_status ice_find_wanted(ice_search_call *call);
/* Whether a filter leaves fewer vectors than a search of the trees would visit: since its budgets count what is wanted
 * alone, it opens the more parents, the fewer there are. */
int ice_exact_is_less(const ice_search_call *call);

#endif
