/* What a call that attends has to do with one cache: attend.c goes through it, measure.c measures in between. */
#ifndef ICE_CACHE_ATTEND_H
#define ICE_CACHE_ATTEND_H

#include "attention/near_far_split.h"
#include "cache/cache.h"

typedef struct {
    icecore_cache *cache;
    icecore_attention problem, sinks; /* equal but for where keys and values lie */
    icecore_near_far options;
    icecore_report report;
    int64_t position;               /* tokens before this one have been attended */
    int64_t first_query, end_query; /* of one block */
    int64_t blocks;                 /* wanted in the stacks */
    int last;                       /* whether the newest token is among them */
    int64_t tiles;                  /* panels of rows for each head; 0: no block is left */
    int64_t parts;                  /* of a head's only tile; 1: it is attended as a whole */
    ice_split *split;               /* parts > 1: of each head */
    int by_tolerance, by_threshold;
    enum { NOT_MEASURED, MEASURED_BEFORE, MEASURED_AFTER } measuring; /* before or after blocks are sealed */
    int64_t usable, measured_end; /* kept queries that may be measured, and the place that the last stands before */
    int64_t measured;             /* so many of them, evenly spread, are */
    int renews;                   /* as in ice_sample */
    double fading;
} ice_cache_call;

/* Sinks and open rows, at present. */
ice_exact_keys ice_cache_exact_keys(const ice_cache_call *call, int64_t head);

/* ---- measure.c ---- */

/* What of the newest kept queries is measured before the block's queries attend. */
void ice_cache_plan_measuring(ice_cache_call *call);
void ice_cache_measure(ice_cache_call *call, int64_t head, void *scratch);
/* Once all heads have been. */
void ice_cache_note_measuring(const ice_cache_call *call);
/* The caller's thresholds, until some are measured. */
void ice_cache_take_thresholds(const ice_cache_call *call);
/* How the block's queries attend. */
void ice_cache_apply_rules(const ice_cache_call *call, int64_t head);
void ice_cache_report_errors(const ice_cache_call *call);

#endif
