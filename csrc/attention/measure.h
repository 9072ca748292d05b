/* How far to open, measured: from the curves of sampled rows (curve.h) the threshold that keeps a tolerance
 * (icecore_near_far). */
#ifndef ICE_MEASURE_H
#define ICE_MEASURE_H

#include "attention/curve.h"

/* What rows weigh whose successors have been measured. */
#define ICE_FADING 0.7
/* Thresholds finer than the one that was chosen before a row was known, on which the row is tried as well: down to a
 * 6000th of it. */
#define ICE_FINER 48

/* Sums over rows of w e, w |o|, w^2 e^2, w^2 e |o| and w^2 |o|^2: w a row's weight, e its error, o its output. */
typedef struct {
    double error, norm, squared, cross, squared_norm;
    int64_t rows;
} ice_error_sums;

void ice_add_error(ice_error_sums *sums, double weight, double error, double norm);
/* Of error / norm. */
double ice_standard_error(const ice_error_sums *sums);

/* The relative error of the mass counts half, and here its square: with all of it pictures need twice the near keys,
 * for an error of the output far below the tolerance. */
#define ICE_MASS_SHARE 0.25

/* What the sampled rows of a query head have shown so far; the older a row, the less it weighs. */
typedef struct {
    double rows, norm, squared_norm;                            /* sums of w, w |o| and w^2 |o|^2 */
    double error[ICE_GRID], squared[ICE_GRID], cross[ICE_GRID]; /* of w e, w^2 e^2, w^2 e |o| */
    double largest[ICE_GRID];                                   /* w e of the row where that is largest */
    double means[ICE_GRID], far[ICE_GRID];  /* of w m^2, w m f: m the mass of means, f of what they stand for */
    double near[ICE_GRID], nodes[ICE_GRID]; /* of w (keys of opened cells), w (nodes scored) */
    double keys, exact;                     /* of w (sealed keys), w (keys that are exact anyway) */
    float max_squared;                      /* of the queries' squared lengths */
    double longer_rows;                     /* of w of rows whose queries are longer than the rule knows */
    float max_longer;                       /* and of their squared lengths */
    int level;                              /* of the threshold that these rows speak for; below 0: there is none */
    double later_rows, later_norm, later_error[ICE_FINER]; /* of w, w |o| and w e of rows at the finer levels from that
                                                  on which was chosen before they were known */
    double rounding, rounding_weight;                      /* of w (error of rounding / |o|)^2 and w */
    ice_error_sums tested;                                 /* by the threshold in force before the row was known */
} ice_measured;

/* Rows that see fewer sealed blocks are exact and say nothing: what the next block is about, one need not have met.
 * (Measured from one on, single heads of SmolLM2 had errors of 15 to 50 x the tolerance in the block after.) */
#define ICE_MIN_BLOCKS 2
/* Whether rows that see so many sealed blocks are measured: the first, and those that see twice as many as the last
 * that were measured thoroughly (then *renews), and others where one block in so many is new: that is a few per cent of
 * a prompt's time.  Decoding measures single queries, the more blocks there are the fewer (cache/measure.c). */
#define ICE_NEW_BLOCKS 16
static inline int ice_is_measured(int64_t blocks, int64_t last, int64_t renewed, int *renews) {
    *renews = renewed == 0 || blocks >= 2 * renewed;
    return *renews || ICE_NEW_BLOCKS * (blocks - last) >= blocks;
}
/* And of how many queries at once: about 32 rows of all query heads together, or 12. */
#define ICE_MAX_QUERIES_MEASURED 32
static inline int64_t ice_measured_queries(int64_t group, int renews) {
    const int64_t minimum = renews ? 8 : 3, wanted = (renews ? ICE_MAX_QUERIES_MEASURED : 12) / group;
    return ice_max(wanted, minimum);
}
/* Of fewer rows than 1 / tolerance none may be the one that misses everything: so many times the queries that are
 * measured at once, at most four.  (At 0.005 once left made-up heads at four times the tolerance.)  Causal calls
 * measure again as they go, and are content with three fifths.  (At 0.02 once left a twentieth of SmolLM2's heads at 2
 * to 5 times the tolerance where a text is a list of similar lines.) */
#define ICE_MAX_PANELS_MEASURED 4
#define ICE_CAUSAL_SHARE 0.6f
static inline int64_t ice_panels_measured(float tolerance, float queries) {
    const float wanted = 1.0f / (queries * tolerance) + 0.5f;
    if (wanted < 2.0f) return 1;
    return wanted < ICE_MAX_PANELS_MEASURED ? (int64_t)wanted : ICE_MAX_PANELS_MEASURED;
}

/* Scratch for at most `count` queries of a key head over at most so many levels, and cells and parents. */
size_t ice_measure_bytes(const icecore_attention *problem, int64_t levels, int64_t nodes, int64_t count);
/* Tests the rules in force on the rows, then renews them.  measured, rules: of the key head's query heads. */
void ice_measure(const ice_sample *sample, ice_measured *measured, ice_rule *rules, void *scratch);

/* Writes the tested error of a query head, its standard error, NaN where no row was tested, and the number of rows. */
void ice_report_error(const icecore_report *report, int64_t head, const ice_error_sums *tested);

#endif
