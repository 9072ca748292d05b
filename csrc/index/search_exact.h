/* Exact scores. */
#ifndef ICE_SEARCH_EXACT_H
#define ICE_SEARCH_EXACT_H

#include "index/search_space.h"

/* Some slots, or all with slots = NULL, against all queries of the chunk, in float32. */
void ice_scan_exactly(ice_search_space *w, const int32_t *slots, int64_t count);
/* Stored rows of a segment against one query. */
void ice_compare_exactly(ice_search_space *w, int64_t q, const ice_tree *segment, const int32_t *rows, int64_t count);
/* What was collected for a query, best first, into w->final_scores and w->final_slots; returns how many.
 *
 * A query is unsure, in call->unsure, where the k-th best of these is hardly better than what was left out: within
 * ICE_UNSURE standard deviations of the difference between exact scores and those of codes.  Near-duplicates that codes
 * do not tell apart are; of clustered and independent vectors, whatever their norms, hardly a query is. */
#define ICE_UNSURE 4.0
int64_t ice_compare_kept(ice_search_space *w, int64_t q);
/* Whether a squared distance of the `found` best is out of what float32 holds on the call's scale: infinite, or next to
 * 0 of a vector that is not the query.  The scale is one for all, and others may be of quite another size. */
int ice_is_out_of_scale(const ice_search_space *w, int64_t q, int64_t found);
/* The k nearest of all that are wanted in double: w->final_slots, and their squared distances in w->final_scores as far
 * as float32 holds them; returns how many. */
int64_t ice_find_in_double(ice_search_space *w, int64_t q);

#endif
