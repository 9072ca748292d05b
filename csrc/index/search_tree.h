/* Down the tree by 8-bit codes. */
#ifndef ICE_SEARCH_TREE_H
#define ICE_SEARCH_TREE_H

#include "index/search_space.h"

/* Inner products: the queries' own codes, for all parents. */
void ice_encode_queries(ice_search_space *w);
/* All parents of a layer become every query's picks. */
void ice_pick_all(ice_search_space *w, int layer);
/* The first layer's scores, and each query's picks in the second. */
void ice_pick_from_roots(ice_search_space *w);
/* Score the children of the picked parents and collect the best: nodes of the next layer, in the last one slots.  The
 * leading picks set a threshold for the others. */
void ice_scan_leading(ice_search_space *w, int layer);
void ice_scan_others(ice_search_space *w, int layer);
/* What was collected becomes the picks in `layer`. */
void ice_pick_parents(ice_search_space *w, int layer);

/* Two levels, after the last layer was scanned: picks and scans the parents whose reach says that they may hold one of
 * the k best all the same. */
void ice_extend(ice_search_space *w);

#endif
