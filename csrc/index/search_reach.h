/* How good the best keys below a parent may be: by default, of two levels, parents beyond the field of view are opened
 * where one of their keys may be among the k best.
 *
 * With w = q (inner products) or q - m (squared distances, whose scores are -|q - x|^2 / 2), a key x = m + r scores
 * s + w.r, less |r|^2 / 2 of squared distances, where s is the mean's score.  Directions of r are taken as random: w.r
 * is then nearly normal, of standard deviation |w| |r| / sqrt(dim), and exceeds z of these with a probability of less
 * than exp(-z^2 / 2) / 2.  A parent of n keys among N parents is left closed where by that bound it holds fewer than k
 * / N of the k best: z = sqrt(2 log(n N / (2 k))).  So few are missed in all, whatever the query: most closed parents
 * are far from the bound, and the bound is four times too large where z is 3.5.
 *
 * Of |r| the root mean square (spread) and the maximum (radius) are known.  What the bound says is largest, for inner
 * products, where n (spread / radius)^2 keys lie at the radius and all others at the mean.  Of squared distances keys
 * that are far lose |r|^2 / 2, and n keys at the spread may be worse; the larger counts. */
#ifndef ICE_SEARCH_REACH_H
#define ICE_SEARCH_REACH_H

#include "index/search_space.h"

/* Fills call->reach where the search extends.  Forest, scale, what is wanted and whether that is compared exactly must
 * be known. */
icecore_status ice_find_reach(ice_search_call *call);
/* Fills w->norm. */
void ice_find_norms(ice_search_space *w);
/* Raises the scores of nodes' means, for a panel of queries, to what keys below the nodes may score; reach: of the
 * first one. */
void ice_add_reach(const ice_search_space *w, const ice_reach *reach, int64_t nodes, int lines, const int32_t *queries,
                   int lanes, float *scores);

/* Whether a view by reach is added to that by means; with a filter it takes its place.  By inner product a mean loses
 * length where directions differ, and cells of many clusters would lose against those of one, however near their best
 * keys are; distances from means have no such bias. */
static inline int ice_ranks_by_reach(const ice_search_call *call) {
    return call->reach && call->index->options.metric == ICECORE_INNER_PRODUCT;
}

#endif
