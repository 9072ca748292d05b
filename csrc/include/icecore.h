/* icecore: attention over long sequences on CPUs.  The C interface and its manual.
 *
 * Conventions
 *   - Every function returns an icecore_status unless it cannot fail.  On any status but ICECORE_OK the output
 *     arrays hold unspecified values and nothing else has changed.
 *   - Strides count elements, not bytes.  The last axis of queries, keys, values and outputs is contiguous.
 *   - The caller owns every array.  No function keeps a pointer after it returns, unless it says so.
 *   - All functions may be called from several threads at once on separate outputs.  icecore_set_isa affects
 *     calls that start after it.
 *   - Results do not depend on the number of threads, bit for bit.  They differ between instruction sets by rounding.
 */
#ifndef ICECORE_H
#define ICECORE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    ICECORE_OK = 0,
    ICECORE_ERROR_MEMORY,    /* an allocation failed */
    ICECORE_ERROR_VALUE,     /* an argument is outside its documented range */
    ICECORE_ERROR_ISA,       /* this build or this machine lacks the instruction set asked for */
    ICECORE_INTERRUPTED,     /* the interrupt check said stop */
    ICECORE_ERROR_ABSENT,    /* an id that is not in the index */
    ICECORE_ERROR_EXISTS,    /* an id that is in the index already */
    ICECORE_ERROR_REPEATED,  /* an id named twice in one call */
    ICECORE_ERROR_READ_ONLY, /* a mapped index does not change */
    ICECORE_ERROR_INDEX,     /* an index that names no key */
    ICECORE_ERROR_BUSY,   /* the calling thread is at work on the same index or cache: what interrupts it (the interrupt
                             check, a progress callback) must not change it, nor use it while it changes */
    ICECORE_ERROR_FORKED, /* another thread was changing the index or cache when this process was forked: this copy of
                             it is lost, and is only to be freed */
    ICECORE_ERROR_RANGE   /* a finite number that the storage's type cannot hold */
} icecore_status;

/* ICECORE_INT8 and ICECORE_INT4 quantize rows in segments and caches and are no types of arguments: codes of 8 or 4
 * bits, each group of 16 numbers of a row (the last group may be shorter) under a scale of its own.  With m the group's
 * largest magnitude and c the largest code, 127 or 7:
 *   scale = m / c rounded to bfloat16
 *   code = number / scale rounded to the nearest integer, halves to even
 *   number = code * scale
 * Errors are at most half a scale, and rounding what was so rounded changes no bit, whatever the other numbers have
 * become a part of.  NaN or inf among 16 numbers makes the scale NaN, and thus NaN of all 16.  Where m / c is below
 * 2^-126 all are 0.
 * ICECORE_INT4 does so with y = H x / 16 of a group x, zeros appended to a shorter one, where x = H y and H is the
 * Hadamard matrix of Sylvester's order, all entries 1 or -1: a component that is larger than the others, as keys of
 * language models have some, takes no digits from its neighbours. */
typedef enum { ICECORE_FLOAT32 = 0, ICECORE_FLOAT16, ICECORE_BFLOAT16, ICECORE_INT8, ICECORE_INT4 } icecore_dtype;

/* Largest width of a query, key or value row in attention: of DeepSeek's latent keys, 512 and 64 with positions. */
#define ICECORE_MAX_DIM 576

/* ---- Runtime ------------------------------------------------------------------------------------------- */

/* Names of instruction sets, worst first: "scalar", "avx2", "avx512", "avx512_bf16", "amx"; "scalar", "neon".
 * Writes up to `capacity` names and returns how many there are.  `built`: compiled into this library;
 * `usable`: built, and this processor and operating system run it. */
int icecore_built_isas(const char **names, int capacity);
int icecore_usable_isas(const char **names, int capacity);

/* The instruction set in force: the best usable one, unless ICECORE_ISA in the environment (read at first use) or
 * icecore_set_isa chose another.  A bad ICECORE_ISA is reported by icecore_isa_status and by every computing call. */
const char *icecore_isa(void);
icecore_status icecore_isa_status(void);
/* ICECORE_ERROR_ISA if `name` is not usable here; NULL restores the default. */
icecore_status icecore_set_isa(const char *name);

/* 1 if built with OpenMP.  Without it a call uses one thread unless it asks for more, which it then starts and ends
 * itself; so do calls in a forked process, where OpenMP's threads are missing.  No call uses more threads than it has
 * tasks.  OpenMP ends the process where the system gives it no more threads; ask for few where they are scarce. */
int icecore_has_openmp(void);
/* Threads a call uses when asked for 0: the OpenMP maximum, bounded by affinity and by the least quota of the process's
 * control groups. */
int icecore_default_threads(void);

/* `check` is called from the calling thread about twenty times a second while that is in calls, also where it waits for
 * another thread; a non-zero answer ends the call with ICECORE_INTERRUPTED.  NULL removes it.  Not thread safe: set it
 * once. */
void icecore_set_interrupt_check(int (*check)(void));

/* Compares every kernel of one usable instruction set against the scalar kernels on awkward shapes.  Returns the number
 * of failures and writes one line per kernel into `report` (always terminated). */
int icecore_selftest(const char *isa, char *report, int64_t report_size);

/* ---- Named arrays ---------------------------------------------------------------------------------------- */

/* What a file of an index or of a cache consists of. */
typedef struct {
    char name[48];
    char type;     /* 'b' uint8, 'h' 16-bit float, 'i' int32, 'l' int64, 'f' float32 */
    int64_t count; /* elements */
    const void *data;
} icecore_array;
/* Is given first the table of all arrays (whose `data` mean nothing), with bytes = NULL, then the bytes of all arrays
 * one after another, in pieces.  A non-zero answer ends the call with ICECORE_INTERRUPTED. */
typedef int (*icecore_write)(void *context, const icecore_array *table, int64_t arrays, const void *bytes,
                             int64_t count);

/* ---- Attention ----------------------------------------------------------------------------------------- */

/* (batch, head, row) axes of a four-dimensional array whose fourth axis is contiguous. */
typedef struct {
    void *data;
    int64_t batch_stride, head_stride, row_stride;
} icecore_tensor;

typedef enum { ICECORE_MASK_NONE = 0, ICECORE_MASK_BOOL, ICECORE_MASK_FLOAT32 } icecore_mask_kind;

/* One attention problem:  out[i] = sum_j softmax_j(cap(scale * query[i].key[j]) + mask[i][j]) value[j].
 *
 * cap(s) = softcap * tanh(s / softcap), or s where softcap is 0.  An inf score becomes softcap, -inf -softcap.
 * Query head h reads key head h / (query_heads / key_heads).  Query i stands at position keys - queries + i.
 * causal: key j is visible to a query at position p when j <= p.
 * window_left, window_right: where not negative, key j is visible only when p - j < window_left and j - p <
 * window_right, or j < sinks (and causality holds). ranges: query i of a batch entry sees no keys but first .. end - 1,
 * whatever else it might see, sinks included.  So masks whose rows are runs of keys need no array of queries x keys.
 * Numbers outside [0, keys] count as the nearest within; where end <= first the query sees nothing. mask: a bool mask
 * keeps where non-zero, a float32 mask is added to the scaled scores; -inf removes, finite numbers never.  A key that
 * is not visible contributes nothing, whatever it holds.  A query that sees no key gives 0 and lse -inf.  NaN and inf
 * in visible keys, values or queries propagate as IEEE arithmetic has it. sink_logits: as if each query head had one
 * more key, of that score (neither scaled nor capped) and without a value: it joins the denominator of the softmax, and
 * lse, which is the logarithm of that denominator.  alibi_slopes (ALiBi, arXiv 2108.12409): slope * |p - j| is taken
 * off the capped score of key j with a query at position p; every other path than icecore_attend_exact and a cache of
 * which nothing is sealed refuses them. */
typedef struct {
    icecore_dtype dtype;     /* of query and out */
    icecore_dtype key_dtype; /* of key and value */
    int64_t batch, query_heads, key_heads, queries, keys, dim, value_dim;
    icecore_tensor query, key, value; /* read only */
    icecore_tensor out;               /* must not overlap an input */
    float *lse;                /* NULL, or batch x query_heads x queries: natural log of the sum of exp(scores) */
    float scale;               /* of a magnitude up to 1e30 */
    float softcap;             /* 0: none; else from 1e-30 to 1e30 */
    const float *sink_logits;  /* NULL, or query_heads: of magnitudes up to 1e30, or -inf for none */
    const float *alibi_slopes; /* NULL, or query_heads: from 0 to 1e6; of exact attention and of caches */
    int causal;
    int64_t window_left, window_right; /* -1: not bounded on this side */
    int64_t sinks;                     /* first keys, visible in spite of the window (causality still holds) */
    const int64_t *ranges; /* NULL, or pairs {first, end}, those of one query side by side; strides below, in numbers */
    int64_t range_batch_stride, range_row_stride; /* 0 where broadcast */
    icecore_mask_kind mask_kind;
    const void *mask; /* strides below, 0 where broadcast */
    int64_t mask_batch_stride, mask_head_stride, mask_row_stride, mask_key_stride;
    int threads; /* 0: icecore_default_threads() */
} icecore_attention;

/* Exact attention, blocked, with an online softmax (Milakov & Gimelshein, arXiv 1805.02867; the blocking of
 * FlashAttention, arXiv 2205.14135).  No array of queries x keys exists.  Extra memory: per thread 0.2 MB at a width
 * of 64 to 1.1 MB at 576; for short query sides batch * query_heads * queries * value_dim * 4 bytes for each split of
 * the keys (at most 32); where bfloat16 is multiplied natively four times as much per thread, and copies of values, and
 * of keys whose rows do not fill cache lines, or of other types with matrix tiles both at 6 bytes a number: of as many
 * heads as take 64 MB, at least one. */
icecore_status icecore_attend_exact(const icecore_attention *problem);
/* Whether panels multiply bfloat16 of these widths as it is, and whether exact attention multiplies other types in
 * three parts of bfloat16, with so many query rows of a key head. */
int icecore_multiplies_bfloat16(int64_t dim, int64_t value_dim);
int icecore_multiplies_in_thirds(int64_t dim, int64_t value_dim, int64_t rows);

/* Near/far attention: a treecode for softmax.  Sinks, the local window and the keys of opened cells count exactly, all
 * others by means.
 *
 * Cells.  Keys are grouped in cells and these under parents (icecore_segment_build), so that keys are near one another
 * which queries score alike: the distance of two keys is sqrt(d^T M d), d their difference, M = E[q q^T] the second
 * moments of queries.  moments: M of each key head.  NULL: of each segment its own, from the queries that stand at its
 * keys (every eighth); where a call has none of them, from those of its first block; not causal, from all of the
 * call's.  Fewer than 64 rows say nothing: then from the segment's keys.
 *
 * Risk.  A cell c of n keys has for a query the scaled score z against its mean key.  Closed, it counts as n keys at
 * its mean value: weight n exp(z).  What that may be wrong by:
 *
 *     risk = n exp(z) sqrt(exp(2 g) - 1) w,        x = scale^2 variance sum_t (q_t / metric_t)^2 component_variance_t
 *     g = x / 2                   where x <= 2 ln n:  scores of the cell are taken as normal with variance x about z
 *     g = sqrt(2 x ln n) - ln n   beyond:  n samples reach no further (the random-energy model's frozen phase)
 *     g <= scale |q / metric| radius
 *     w^2 = mean squared distance of the cell's values from their mean + squared norm of the segment's mean value
 *
 * (sqrt(exp(x) - 1) within a twentieth).  The last term makes the mass count as one more component of the values.
 *
 * near_keys.  Parents are expanded in order of risk until they hold at least 16 near_keys and 2048 keys, and of the
 * cells of these, cells are opened in order of risk until they hold at least near_keys; equal risks open together.
 *
 * Thresholds.  A cell is opened when its risk is at least threshold |sum_j exp(z_j) value_j|, the sum being estimated
 * from the exact keys and the parents' means; a parent is expanded at 0.2 of that.
 *
 * tolerance.  The error that is asked for, of each query head and batch entry: sum |out - exact| / sum |exact| over its
 * rows, where half the relative error of the mass (the error of lse) counts as one more component of the output.
 * Thresholds are then measured: sampled rows are attended exactly, and of each the error is found for every threshold
 * 2 * 1.2^-g, g < 112.  In force is the largest below which every one has a mean error, plus a standard error,
 * within the tolerance; or a smaller one, by which later rows have kept the tolerance so far, and at which a row costs
 * up to a twentieth more.  Rows whose query is more than 1.5 times as long as the longest lately measured open all
 * cells.  Where no threshold keeps the tolerance, parents are no longer trusted and all cells are scored; where that
 * does not help either, or costs more than exact attention, the head is exact.  A head is exact on rounded
 * numbers, if there are such and twice what rounding was found to do is within the tolerance; then it is so also where
 * near/far attention costs more than that does (rounded_price).  Causal: rows of earlier blocks measure for later ones,
 * and rows that see fewer than three sealed blocks are exact; up to rounding a row depends on no later one.  Not
 * causal: 48 rows of each head are measured first.  Where these, or causal those of one step, are fewer than about 1 /
 * tolerance (causal: 0.6 / tolerance), two to four times as many are.
 *
 * causal: keys are sealed in blocks of `block`; a query in block b attends exactly to the first `sinks` keys and to the
 * keys from block b-1 on, and by cells to all between; the sealed blocks form segments as a binary counter does.
 * Not causal: one segment over all keys past the first `sinks`, which stay exact.
 *
 * mask: a cell of which it hides every key stands for nothing; one of which it hides or biases some is opened, and of
 * it the keys that are left count; a parent above such cells is expanded.  A row opens all when the cells so opened
 * leave it more than a sixth of the sealed keys.  Reading the mask costs a look at every key for each different row of
 * it.
 *
 * ranges: as a mask that hides the other keys; but no more than the cells' first and last keys are looked at for each
 * different range, and rows that see all sealed keys are as without.
 *
 * Uses of icecore_attention's fields: windows must be absent (-1); sinks as said here. */
typedef struct {
    int64_t near_keys;           /* >= 1; used where there is neither a tolerance nor a threshold */
    float tolerance;             /* >= 0; 0: none */
    const float *head_tolerance; /* NULL, or query_heads: each head's own, above 0, instead */
    const float *head_threshold; /* NULL, or query_heads, above 0: where measuring starts; without a tolerance they stay
                                    in force */
    /* what a near key, a cell or parent scored, and a key of exact attention on rounded numbers cost by a key of exact
     * attention; 0: 1 */
    float near_price, node_price, rounded_price;
    const float *moments; /* NULL, or key_heads x dim x dim, finite */
    int rounding;      /* 1: keys, values, queries and weights are rounded to bfloat16 where this machine multiplies it
                          natively (and the widths suit); sums stay in float32 */
    int64_t block;     /* causal: >= 1 */
    int64_t cell_size; /* keys per cell, on average; >= 1 */
    const int64_t *head_cell_size; /* NULL, or key_heads: each key head's own, instead */
    uint64_t seed;
} icecore_near_far;

/* What is to be reported of a call, and where: arrays that the call fills.  NULL: not asked for. */
typedef struct {
    int32_t *near_count;           /* batch x query_heads x queries: keys summed exactly besides sinks and window */
    float *captured_mass;          /* same shape: exact mass / (exact + far mass), within [0, 1] */
    float *missed_bound;           /* same shape: no larger a share of the true mass (of rounded inputs, where they are
                                      rounded) lies outside the exact keys */
    int32_t *summaries;            /* same shape: cells and parents scored */
    float *error, *standard_error; /* batch x query_heads: as of tolerance, of the rows that were measured
                                      before their threshold was renewed by them; NaN where none was */
    int32_t *error_rows;           /* same shape: how many they are */
    double *seconds;               /* 3: spent sealing, attending, measuring, all threads together */
} icecore_report;

/* report: NULL, or what is asked for. */
icecore_status icecore_attend_near_far(const icecore_attention *problem, const icecore_near_far *options,
                                       const icecore_report *report);

/* Exact attention on queries, keys, values and weights rounded to bfloat16, in key heads where what rounding does to
 * sampled rows, and as much more as one row like the worst or a standard error, is within the tolerance of each query
 * head; the others are exact as they were given.  Of the options: tolerance and head_tolerance; of the report: the
 * errors.  Numbers above 3.39e38 become infinite.  ICECORE_ERROR_VALUE where there is no tolerance, with ALiBi, and
 * where panels do not multiply bfloat16 or get it anyway. */
icecore_status icecore_attend_rounded(const icecore_attention *problem, const icecore_near_far *options,
                                      const icecore_report *report);

/* What icecore_attend_near_far does, as far as shapes and options tell: in steps, each of which is the queries that see
 * the same sealed keys.  Of one key head, masks aside. */
typedef struct {
    int64_t queries;       /* of each query head */
    int64_t pairs;         /* (query, visible key) of each query head */
    int64_t sealed_keys;   /* that each query sees by cells; all others it sees exactly */
    int64_t is_exact;      /* 1: these exactly, too, because nothing has been measured yet */
    int64_t built_keys;    /* of the segments that are built for the step */
    int64_t distances;     /* of these keys from means, about: 2 n (16 + n / (16 cell_size)) for a segment of n */
    int64_t measured_rows; /* of all query heads: by which the thresholds of later steps are measured */
} icecore_near_far_step;
/* Writes up to `capacity` steps and returns how many there are.  Reads the sizes, causal and sinks of the problem, and
 * block, cell_size, tolerance, head_tolerance and head_threshold of the options; all must be as icecore_attend_near_far
 * accepts them. */
int64_t icecore_near_far_count(const icecore_attention *problem, const icecore_near_far *options,
                               icecore_near_far_step *steps, int64_t capacity);

/* The keys that each query attends to, as its caller chose them: query i of head key_head * group + member (group =
 * query_heads / key_heads) has the list of indices batch * batch_stride + key_head * key_head_stride + member *
 * member_stride + i * row_stride
 * + n * index_stride, n < count.  A stride of 0 shares lists along its axis; with member_stride = 0 the query heads of
 * a key head share the copying of keys and values too. */
typedef struct {
    const void *data;
    int is_int64;  /* else int32 */
    int64_t count; /* indices in a list, >= 0 */
    int64_t block; /* 0: of single keys; else index b stands for keys b * block .. (b + 1) * block - 1 */
    int64_t batch_stride, key_head_stride, member_stride, row_stride, index_stride;
} icecore_indices;

/* Attention to the listed keys alone.  An index of -1 is ignored, and with causality a key that is not visible; a key
 * that is listed twice counts twice.  Any other index of no key: ICECORE_ERROR_INDEX before any output is
 * written, and *place becomes the place of the first of them in an array of (batch, key head, member, query, n).  No
 * row outside the keys is ever read, even if another thread changes the indices meanwhile. Uses of icecore_attention's
 * fields: windows, ranges and mask must be absent (-1, NULL,
 * ICECORE_MASK_NONE). Cost: batch * query_heads * queries * count * (dim +
 * value_dim) products; extra memory under 2 MB a thread. */
icecore_status icecore_attend_indices(const icecore_attention *problem, const icecore_indices *indices, int64_t *place);

/* The keys that a trained indexer chooses (the lightning indexer of DeepSeek-V3.2, arXiv 2512.02556): of the visible
 * keys those with the `count` largest scores
 *
 *     score[i][j] = sum_h weights[i][h] max(0, query[h][i] . key[j]),
 *
 * the smaller among equals; of NaN as of the largest.  Query i stands at position keys - queries + i.  Cost: batch *
 * heads * queries * keys * dim products.  Memory: 64 MB, 64 bytes per key, and 4 per key and thread. */
typedef struct {
    icecore_dtype dtype; /* of query and key */
    int64_t batch, heads, queries, keys, dim;
    icecore_tensor query, key; /* read only; the key has one head for all */
    const float *weights;      /* batch x queries x heads */
    int causal;
    int64_t count;    /* >= 1: keys of each query */
    int32_t *indices; /* batch x queries x count: ascending, then -1 where fewer keys are visible */
    int threads;      /* 0: icecore_default_threads() */
} icecore_indexer;
icecore_status icecore_indexer_top_k(const icecore_indexer *indexer);

/* Vertical and slash lines for causal prefill (MInference, arXiv 2407.02490).  The weights of a head's last 64 queries
 * vote for keys and for distances between query and key; a query attends exactly to the `vertical` keys with the most
 * votes and, with the 48 queries of its block (those from a multiple of 48 on), to what the `slash` distances with the
 * most come to for any of them, as far as it sees it.  The first 30 keys and the first 100 distances go before all
 * others, then the smaller among equals.  The rest is dropped.  Queries whose weights are not finite do not vote.
 * near_count: NULL, or batch x query_heads x queries, the keys attended to.  ICECORE_ERROR_VALUE for windows, ranges,
 * masks, `vertical` or `slash` below 1, where the problem is not causal, and more than INT32_MAX keys.  The same bits
 * for any number of threads; rows depend on later queries and keys by the votes.  Memory: 28 bytes per key and thread.
 */
icecore_status icecore_attend_minference(const icecore_attention *problem, int64_t vertical, int64_t slash,
                                         int32_t *near_count);

/* Blocks of 64 keys by the score of their mean with the mean query (MInference's block-sparse pattern): the 48 queries
 * of a block (from a multiple of 48 on) attend exactly to the blocks with the largest scores, of those that all of them
 * see whole, until they hold near_keys, and to the keys behind these, each as far as it sees them; the rest is dropped.
 * Blocks of which a key is NaN are attended to first.  near_count: NULL, or batch x query_heads x queries, the keys
 * attended to.  ICECORE_ERROR_VALUE for windows, ranges, masks, near_keys below 1 and more than INT32_MAX keys.  The
 * same bits for any number of threads; causal, no row depends on a later key. */
icecore_status icecore_attend_block_sparse(const icecore_attention *problem, int64_t near_keys, int32_t *near_count);

/* Blocks of 128 keys by antidiagonals of scores, for causal prefill (XAttention, arXiv 2503.16428).  A group of
 * `stride` queries (4, 8 or 16) scores a group of as many keys by the mean score of its query stride - 1 - i with key
 * i, of the pairs that are visible; softmaxes of these scores say which share of the mass a block of keys holds.  The
 * 48 queries of a block (from a multiple of 48 on) attend exactly to the blocks with the most, of those that all of
 * them see whole, until they hold `threshold` of it (above 0, below 1), each as far as it sees them; the first block
 * and the keys behind the others are always among them, and the rest is dropped.  Queries of which such a score is not
 * a number attend to all keys.  near_count: NULL, or batch x query_heads x queries, the keys attended to.
 * ICECORE_ERROR_VALUE for windows, ranges, masks, another `stride` or `threshold`, where the problem is not causal, and
 * more than INT32_MAX keys.  The same bits for any number of threads; no row depends on keys behind its block of
 * queries.  Memory: 192 / stride^2 bytes per key and thread. */
icecore_status icecore_attend_xattention(const icecore_attention *problem, int64_t stride, double threshold,
                                         int32_t *near_count);

/* Neighbours on a Z-order curve (ZETA, arXiv 2501.14577), with random projections in place of trained ones: vectors of
 * length 1 are projected to three random directions, in cells of 1 / 1024 of eight standard deviations, and the cells'
 * numbers, interleaved bit by bit, are the places of keys and queries on the curve.  A query attends exactly to the
 * near_keys next to its place, of those that it sees, half on either side, or more where a side has fewer; the rest is
 * dropped.  A coordinate that is not a number is in the first cell.  near_count: NULL, or batch x query_heads x
 * queries, the keys attended to.  ICECORE_ERROR_VALUE for windows, ranges, masks, near_keys below 1 and more than
 * INT32_MAX keys.  The same bits for any number of threads; causal, no row depends on a later key.  Memory: 8 bytes per
 * key of a head, and per key and thread. */
icecore_status icecore_attend_zeta(const icecore_attention *problem, int64_t near_keys, uint64_t seed,
                                   int32_t *near_count);

/* The largest scores and a sample of the rest (vAttention, arXiv 2510.05688). */
typedef struct {
    int64_t near_keys;     /* with the largest scores; >= 1 */
    int64_t sinks, window; /* the first keys, and the last ones that a query sees: attended to besides; >= 0 */
    double epsilon, delta; /* above 0, below 1 */
    uint64_t seed;
} icecore_vattention;

/* A query attends exactly to the sinks, the window, and of the keys between to the near_keys with the largest scores,
 * the first among equals; and to a uniform sample without replacement of the n others, each of b keys with log(n / b)
 * added to its score, so that the sum of weights is unbiased.  The first max(n / 40, 32) keys of the sample say how
 * many, b = (z n s / (epsilon D))^2 or as many as they are, keep this sum within epsilon of itself in a share 1 - delta
 * of cases, by the central limit theorem: s is the standard deviation of the samples' weights, D the estimated sum, z
 * the normal deviate that is exceeded to both sides with probability delta.  A NaN score is among the largest and makes
 * the row NaN.  The sample depends on the seed, the query's position and its head alone.  near_count: NULL, or batch x
 * query_heads x queries, the keys attended to, the sample among them.  ICECORE_ERROR_VALUE for windows, ranges and
 * masks of the problem, options out of range, and more than INT32_MAX keys.  The same bits for any number of threads;
 * causal, no row depends on a later key.  Memory: 13 bytes per key and 400 * near_keys bytes per thread. */
icecore_status icecore_attend_vattention(const icecore_attention *problem, const icecore_vattention *options,
                                         int32_t *near_count);

/* Pages of 16 keys by the largest score that a page could hold, from its componentwise maximum and minimum (Quest,
 * arXiv 2406.10774): a query attends exactly to the pages with the largest bounds until they hold near_keys, equal
 * bounds together, and to the page that it sees a part of; the rest is dropped.  Pages that hold a NaN are attended to.
 * near_count: NULL, or batch x query_heads x queries, the keys attended to.  ICECORE_ERROR_VALUE for windows, ranges,
 * masks, near_keys below 1 and more than INT32_MAX keys.  The same bits for any number of threads. */
icecore_status icecore_attend_pages(const icecore_attention *problem, int64_t near_keys, int32_t *near_count);

/* ArkVale (NeurIPS 2024): as icecore_attend_pages, by pages of `page` keys and smaller boxes, which have the same
 * centre and reach in each component as far as keys do on average; the first two pages, and the newest that a query
 * sees whole, are always among those it attends to.  Pages that hold a number that is not finite are attended to.
 * ICECORE_ERROR_VALUE also for `page` below 1. */
icecore_status icecore_attend_arkvale(const icecore_attention *problem, int64_t near_keys, int64_t page,
                                      int32_t *near_count);

/* Clusters in three zones (RetroInfer, arXiv 2505.02922). */
typedef struct {
    int64_t segment;              /* keys that are clustered together; >= 1 */
    int64_t sinks, local;         /* the first keys, and at least so many of the last: exact; >= 0 */
    double retrieval, estimation; /* shares of the clusters; above 0, at most 1 together */
    uint64_t seed;
} icecore_retroinfer;

/* The keys behind the sinks are cut in segments, from the first key on, and the keys of each segment, less their mean,
 * in clusters of 16 on average by spherical k-means.  A query ranks the clusters of the segments that end at least
 * `local` keys before what it sees ends, by the scores of their mean keys: it attends exactly to the share `retrieval`
 * of them with the largest scores, to the share `estimation` that follows as if all keys of a cluster were at its mean
 * key and had its mean value, and drops the rest.  Shares are rounded up, and equal scores are together.  It attends
 * exactly to the sinks and to all keys behind these segments.  A segment in which a key or a value is not finite is
 * attended to exactly.  near_count: NULL, or batch x query_heads x queries, the keys attended to exactly.
 * ICECORE_ERROR_VALUE for windows, ranges, masks, options out of range, and more than INT32_MAX keys.  The same bits
 * for any number of threads; causal, no row depends on a later key.  Memory: (dim + value_dim) / 4 + 5 bytes per key of
 * a head, and 24 per key and thread. */
icecore_status icecore_attend_retroinfer(const icecore_attention *problem, const icecore_retroinfer *options,
                                         int32_t *near_count);

/* Exact top-k attention: a query attends to the near_keys with the largest scores, the first keys among equals; a NaN
 * score is kept and makes the row NaN.  The rest is dropped.  near_count: NULL, or batch x query_heads x queries, the
 * keys attended to.  ICECORE_ERROR_VALUE for windows, ranges, masks, near_keys below 1 and more than INT32_MAX keys.
 * The same bits for any number of threads.  Memory: 400 * near_keys bytes per thread. */
icecore_status icecore_attend_top_k(const icecore_attention *problem, int64_t near_keys, int32_t *near_count);

/* The published method (IceFormer, arXiv 2405.02842): of the keys that Prioritized DCI visits, a query attends to the
 * near_keys with the largest scores; the rest is dropped.  Two composite indices of seven simple ones, in trees of two
 * levels: each composite yields `visit` of the keys below the parents that a query opens, in order of the largest
 * difference of their projections from the query's, and all of these are compared exactly.  Causal: trees are made of
 * whole blocks of 512 keys that the query sees, each visited by its share; the keys behind them are compared besides.
 * With visit >= keys it is exact top-k attention, the first keys among equals.  Keys of a tree of which one is not
 * finite are all compared; a NaN score is kept and makes the row NaN.  near_count: NULL, or batch x query_heads x
 * queries, the keys attended to.  ICECORE_ERROR_VALUE for windows, ranges, masks, near_keys below 1, visit below
 * near_keys and more than INT32_MAX keys.  The same bits for any number of threads; no row depends on a later key.
 * Memory: about 60 log2(keys / 512) bytes per key of a head when causal, else 120. */
icecore_status icecore_attend_pdci(const icecore_attention *problem, int64_t near_keys, int64_t visit, uint64_t seed,
                                   int32_t *near_count);

/* SparQ (arXiv 2312.04985): a query attends exactly to its last `local` keys and to the others with the largest
 * approximate scores, near_keys in all, the first keys among equals; and to the mean of all values that it sees, for
 * the rest.  Approximate scores come from the `components` largest of |query|, divided by the root of their share in
 * the sum of |query|.  alpha being the mass of the keys in the softmax of the approximate scores, the mean weighs
 * (1 - alpha) / alpha times the keys; lse is the keys' less log(alpha).  A NaN score is chosen and makes the row NaN,
 * and a value that is not finite spoils all rows that see it.  near_count: NULL, or batch x query_heads x queries, the
 * keys attended to.  ICECORE_ERROR_VALUE for windows, ranges, masks, near_keys and `components` below 1, `local` below
 * 0 or above near_keys, and more than INT32_MAX keys.  The same bits for any number of threads; no row depends on a
 * later key.  Memory: value_dim / 16 bytes per key of a head, and 400 * near_keys bytes per thread. */
icecore_status icecore_attend_sparq(const icecore_attention *problem, int64_t near_keys, int64_t components,
                                    int64_t local, int32_t *near_count);

/* MagicPIG (arXiv 2410.16179): a query attends to its first `sinks` and last `local` keys exactly, and to the others
 * that collide with it in at least two of `tables` hash tables, with -log(w) added to their scores, w being the
 * probability of that: sums are right on average over seeds.  A code is the signs of projections on `bits` random
 * directions, of the query and of the key less a centre: the mean of all finite keys, when causal of those in the
 * blocks of 64 before the key's own (0 for the first).  Two vectors have the same sign with the probability 1 - angle /
 * pi, of which less than 2^-10 counts as that.  Keys that are not finite are attended to exactly.  lse is an estimate,
 * too.  near_count: NULL, or batch x query_heads x queries, the keys attended to.  ICECORE_ERROR_VALUE for windows,
 * ranges, masks, `bits` outside of 1 to 16, `tables` outside of 2 to 4096, `sinks` below 0, `local` below 1, and more
 * than INT32_MAX keys.  The same bits for any number of threads; no row depends on a later key.  Memory: 4 * tables
 * bytes per key of a head, and 4 * tables * (2^bits + bits * dim) per head. */
icecore_status icecore_attend_magicpig(const icecore_attention *problem, int64_t bits, int64_t tables, int64_t sinks,
                                       int64_t local, uint64_t seed, int32_t *near_count);

/* ---- Segments ------------------------------------------------------------------------------------------ */

/* A sealed segment: keys and values of one head, grouped in cells and stored in cell order.  Immutable once built; any
 * number of threads may read it.  Owned by the caller until icecore_segment_free. */
typedef struct icecore_segment icecore_segment;

/* Keys under parents, 16 cells each, and each parent's keys in cells: both times so many keys are sampled without
 * replacement (count by the wanted size, rounded, at least one), each key goes to the nearest sample, each sample moves
 * to the mean of its keys (a Lloyd step, for cells two), and the keys are assigned once more.  Empty cells vanish.  Up
 * to 23 cells there is one parent.
 *
 * A cell is apart where its mean's squared distance from that of its parent's keys is above 8 times the mean of theirs,
 * and a key where its squared distance from its cell's mean is above 8 times the mean of those: the farthest, at most
 * one for four cells of a parent, each in a cell of its own.  With moments these are distances by the eight components
 * of a factor of M in which keys differ most.  What is apart is under one more parent, the last, which is always
 * expanded, and of its cells those of one key are always opened.
 *
 * Keys and values are copied, as `storage`; means are those of what is stored, in
 * that type, of quantized ones in float32. */
typedef struct {
    icecore_dtype dtype;       /* of keys and values */
    const void *keys, *values; /* count x dim, count x value_dim; the last axis is contiguous */
    int64_t key_stride, value_stride;
    int64_t count, dim, value_dim; /* count: 1 .. INT32_MAX */
    icecore_dtype storage;
    const float *moments; /* NULL, or dim x dim: as in icecore_near_far */
    int64_t cell_size;    /* keys per cell, on average; >= 1 */
    uint64_t seed;
} icecore_segment_source;

/* Cost: 4 count (count / (16 cell_size) + 16) dim flops. */
icecore_status icecore_segment_build(const icecore_segment_source *source, icecore_segment **result);
void icecore_segment_free(icecore_segment *segment);

/* Cells, or parents.  Mean keys are less the segment's centre.  Where a mean is not finite both are stored as 0.
 * Distances are those of keys times the segment's metric. */
typedef struct {
    int64_t count;
    const int64_t *offset; /* count + 1: cell c holds stored rows offset[c] .. offset[c + 1] - 1; a parent: cells */
    const void *mean_key, *mean_value; /* count x dim, count x value_dim */
    const float *variance;             /* mean squared distance of the keys from their mean, per dimension */
    const float *radius;               /* largest distance of a key from the mean */
    const float *log2_count;           /* keys */
    const float *log2_weight;          /* log2(keys w), w as in icecore_near_far; NaN: always opened or expanded */
} icecore_nodes_view;

/* Views into a segment, valid as long as it lives. */
typedef struct {
    icecore_dtype dtype, mean_dtype; /* of keys and values; of means */
    int64_t count, dim, value_dim;
    const int32_t *order;      /* count: the input row of each stored row */
    const void *keys, *values; /* count x dim, count x value_dim, in cell order.  Quantized: a row is its codes, then
                                  its scales as bfloat16, without gaps or alignment.  Codes of ICECORE_INT8 are bytes;
                                  of ICECORE_INT4 a group is 8 bytes, the lower halves codes 0 .. 7, the upper ones
                                  codes 8 .. 15 */
    const float *metric;       /* dim: the root of the diagonal of M, by its geometric mean, within 2^-6 of the largest;
                                  without M, that of the keys' second moments (of up to 511 of them) */
    const float *component_variance; /* dim: the mean squared distance of keys from their cells' means, by that of all
                                        components; a tenth counts as if all were alike */
    const float *centre;             /* dim: the mean of up to 511 keys */
    icecore_nodes_view cell, parent;
} icecore_segment_view;
icecore_segment_view icecore_segment_get(const icecore_segment *segment);

/* ---- Cache ----------------------------------------------------------------------------------------------- */

/* Keys and values of one sequence and one layer, for decoding by near/far attention: icecore_attend_near_far with
 * causal = 1 over all tokens so far, without going through all of them.
 *
 * Tokens are appended in order.  The newest one to two blocks and the first `sinks` are kept as they came and attended
 * exactly; older blocks are sealed, in the same segments that icecore_attend_near_far makes of them.  The segment that
 * the next block's queries will need is built a little at each call of attend, so that no merge shows as a pause.  With
 * quantized storage rows are rounded when they are sealed; merges round nothing again.
 *
 * Where the first 64 tokens show that keys share a large offset (some component's root mean square is 24 times what it,
 * and what half of the components, vary from token to token) storage shorter than float32 holds sealed keys less the
 * mean of their cell, rounded anew by each merge, and open rows, sinks and means as float32.
 *
 * Where a tolerance is measured, sealed keys and values of float32 lie in halves, and means are bfloat16: of opened
 * cells the first half of each number, it rounded to bfloat16, is read alone, for half of the memory's time.  What that
 * takes is part of the error that is measured; heads whose tolerance it breaks read both halves.
 *
 * Every call on a cache waits for the others on it (ICECORE_ERROR_BUSY, ICECORE_ERROR_FORKED).  Forks are caches of
 * their own, whatever they share inside. */
typedef struct icecore_cache icecore_cache;

typedef struct {
    int64_t heads; /* key heads, >= 1 */
    int64_t dim, value_dim;
    icecore_dtype dtype; /* of storage.  Quantized: of sealed rows; open ones and sinks are bfloat16, or as above */
    int64_t near_keys;   /* as in icecore_near_far; near_keys >= 1 or tolerance > 0 */
    float tolerance;
    int64_t block, sinks, cell_size; /* block, cell_size >= 1 */
    uint64_t seed;
    const float *moments; /* NULL, or heads x dim x dim: as in icecore_near_far.  Copied */
} icecore_cache_options;

icecore_status icecore_cache_create(const icecore_cache_options *options, icecore_cache **result);
void icecore_cache_free(icecore_cache *cache);

/* Appends `count` tokens.  keys, values: (head, row) of one batch entry, of any dtype; rounded to the storage's,
 * ICECORE_ERROR_RANGE where that has no finite number for a finite one.  All or nothing. queries: NULL data, or those
 * of the tokens, of query_heads heads: for the metric and for measuring, where they are not attended from the cache.
 * Cost: a copy; sealing is done by the calls of attend that need it. */
icecore_status icecore_cache_append(icecore_cache *cache, icecore_dtype dtype, icecore_tensor keys,
                                    icecore_tensor values, icecore_tensor queries, int64_t query_heads, int64_t count);

/* Rows first .. first + count - 1 of a batch entry: those of its array that are its own. */
typedef struct {
    int64_t first, count;
} icecore_rows;

/* Attends the queries of the last tokens of `count` caches, each as if it were alone, in one go for all threads; entry
 * i of `problem` is for caches[i], of heads and widths as the others'.  rows: NULL, `queries` rows of each, or rows[i]
 * of entry i: of so many tokens, none included.  Of `problem` count: dtype, query_heads, queries, query, out, lse,
 * scale, softcap, sink_logits, alibi_slopes, threads; of `options`, or NULL: head_tolerance, head_threshold; of
 * `report`, or NULL: all but seconds.  Arrays of lse and `report` hold each cache's own rows, query_heads x rows, one
 * cache after another without gaps.  A cache must not stand twice, and calls at the same time name caches that they
 * share in one order.
 *
 * By tolerance, queries of earlier calls (and of append) are measured when blocks are sealed; until eight tokens'
 * queries are known a query opens all. A call of at most 256 queries opens as well every cell of which one key is
 * expected to hold 1 / 64 of the tolerance as its share of the mass: a mean over many rows says little about the one
 * that a fact hangs on.  Expected: the largest, over cosines c, of exp(-dim c^2 / 2), about how often a direction at
 * random has it, times min(1, exp(mean score + c scale |q / metric| radius) / mass).
 * What was measured is kept by fork, write and map; with another number of query heads it is forgotten.
 * With alibi_slopes attention is exact, whatever the cache's tolerance: nothing is sealed, no query is kept, and of
 * `report` nothing is filled. ICECORE_ERROR_VALUE when a query stands before first_query of icecore_cache_get_state:
 * what it must not see is sealed already; and with alibi_slopes where anything is. */
icecore_status icecore_cache_attend(icecore_cache *const *caches, int64_t count, const icecore_rows *rows,
                                    const icecore_attention *problem, const icecore_near_far *options,
                                    const icecore_report *report);

/* Forgets all tokens but the first `length`.  A few tokens cost nothing; across a block's beginning, or more than an
 * eighth of a block beyond it, segments are sealed anew (of quantized storage some rows come back as open ones, rounded
 * to bfloat16).  What is known of queries stays. ICECORE_ERROR_VALUE when length is larger than now, or some but not
 * all of the tokens that remain were evicted. */
icecore_status icecore_cache_truncate(icecore_cache *cache, int64_t length, int threads);

/* Forgets tokens before token `before`, sinks aside: those in segments of which none is newer, in every head the same.
 * *evicted: how many are forgotten now. */
icecore_status icecore_cache_evict(icecore_cache *cache, int64_t before, int64_t *evicted);

/* A cache of the same tokens.  They share what there is until one of them appends: O(number of segments). */
icecore_status icecore_cache_fork(icecore_cache *cache, icecore_cache **result);

typedef struct {
    int64_t length, evicted; /* tokens; those forgotten at the front, sinks included if they count as such */
    int64_t first_query;     /* queries may stand at this token and after it */
    int64_t sealed,
        segments;  /* tokens in segments (of one head, sinks and evicted ones included), segments of a head */
    int64_t open;  /* tokens kept as they came */
    int64_t held;  /* tokens that are not forgotten */
    int64_t bytes; /* memory held, shared parts included, mapped files not counted */
} icecore_cache_state;
icecore_status icecore_cache_get_state(icecore_cache *cache, icecore_cache_state *state);

/* The tokens held, in order, as float32: `keys` is heads x count x dim, `values` heads x count x value_dim, either may
 * be NULL.  ICECORE_ERROR_VALUE where count is not `held` of the state.  float32 storage gives back what was appended,
 * shorter storage what it was rounded to.  Cost: a copy. */
icecore_status icecore_cache_read(icecore_cache *cache, float *keys, float *values, int64_t count);

/* Caches of equal heads, widths, dtype, block, sinks and cell_size as named arrays, for files; each is written as it is
 * when the call begins. Segments that they share are written once.  Segments in the making are left out: they begin
 * anew. */
icecore_status icecore_cache_write(icecore_cache *const *caches, int64_t count, icecore_write write, void *context);
/* The caches of these arrays, `cache_count` of them; options must be those they were made with (near_keys and tolerance
 * may differ). own = 0: over the arrays themselves, which must stay as they are as long as these caches or forks of
 * them live; the caches may be used in every way all the same, since what is sealed does not change and all else is
 * copied when it does.  own = 1: in memory of their own. Every number that leads to memory is checked;
 * ICECORE_ERROR_VALUE and a reason otherwise, and all of `caches` are NULL, as they are with ICECORE_ERROR_MEMORY,
 * where nothing is wrong with the arrays. */
icecore_status icecore_cache_map(const icecore_cache_options *options, const icecore_array *arrays, int64_t count,
                                 int own, icecore_cache **caches, int64_t cache_count, char *reason,
                                 int64_t reason_size);

/* *fault: NULL, or what is wrong with the cache (a static string). */
icecore_status icecore_cache_validate(icecore_cache *cache, const char **fault);

/* ---- Index --------------------------------------------------------------------------------------------- */

/* A dynamic k-NN index: Prioritized DCI (Li & Malik, arXiv 1703.00440) in one level or several, over sealed segments.
 *
 * Vectors live in slots.  The newest are in the open block and compared exactly; full blocks are sealed into segments,
 * trees over slots that never change.  Two segments of one size merge, a few rows at each insertion, while both go on
 * serving.  A removed vector's slot is marked, left out of answers, and given back when a merge leaves it out of the
 * new segment.
 *
 * Locks: any number of threads may search and read at once; whoever changes the index waits until they are done, and
 * they for it (ICECORE_ERROR_BUSY, ICECORE_ERROR_FORKED). */
typedef struct icecore_index icecore_index;

#define ICECORE_MAX_INDEX_DIM 16384
#define ICECORE_MAX_LEVELS 8
#define ICECORE_MAX_COMPOSITES 64
#define ICECORE_MAX_SIMPLES 64

typedef enum { ICECORE_INNER_PRODUCT = 0, ICECORE_SQUARED_DISTANCE } icecore_metric;

typedef struct {
    int64_t dim; /* 1 .. ICECORE_MAX_INDEX_DIM */
    icecore_metric metric;
    int composites,
        simples; /* composites = 0: cells are scanned in 8-bit codes; else P-DCI lists of that many simple indices */
    int levels;  /* 1 .. ICECORE_MAX_LEVELS: 1 keeps all vectors of a segment under its root */
    double promotion;    /* share of a level promoted to the next, in (0, 1); 0: count^(-1 / levels) for each segment */
    icecore_dtype dtype; /* of storage */
    uint64_t seed;
} icecore_index_options;

icecore_status icecore_index_create(const icecore_index_options *options, icecore_index **result);
void icecore_index_free(icecore_index *index);
/* Room for `count` vectors in all without further allocation of slots. */
icecore_status icecore_index_reserve(icecore_index *index, int64_t count);

/* Is told from time to time how much of the work is done, in [0, 1]; a non-zero answer ends the call with
 * ICECORE_INTERRUPTED. */
typedef int (*icecore_progress)(void *context, double done);

typedef struct {
    const float *vectors; /* count x dim: contiguous, finite */
    const int64_t *ids;   /* count; NULL: counting up from next_id */
    int64_t count;
    int replace; /* whether vectors of ids that are in the index are replaced */
    int threads;
    icecore_progress progress; /* or NULL */
    void *context;             /* of progress */
} icecore_addition;

/* Adds vectors under ids that are neither in the index (ICECORE_ERROR_EXISTS, but for `replace`) nor repeated
 * (ICECORE_ERROR_REPEATED); *place becomes the row at fault, or without ids the first id.  All or nothing.  Cost:
 * amortized O(dim sqrt(n)) per vector with two levels; one vector's share of pending merges at a time. */
icecore_status icecore_index_add(icecore_index *index, const icecore_addition *added, int64_t *place);
/* Removes ids; one that is absent (ICECORE_ERROR_ABSENT) or repeated (ICECORE_ERROR_REPEATED) stops all, and *place
 * becomes its own; with absent_too they are passed over.  In the end *place becomes how many were removed.  Each takes
 * a share of pending merges, as an insertion does; those that a large removal makes due are done in the call. */
icecore_status icecore_index_remove(icecore_index *index, const int64_t *ids, int64_t count, int absent_too,
                                    int threads, int64_t *place);
/* Seals everything into one segment without removed vectors, and gives unused memory back. */
icecore_status icecore_index_compact(icecore_index *index, int threads);
/* Removes everything; ids start at 0 again. */
icecore_status icecore_index_clear(icecore_index *index);

typedef struct {
    int64_t k;
    int64_t visit; /* scan mode: cells are opened in order of score until they hold this many keys that may be returned.
                      Lists: pops for each composite, shared out over the opened cells.  0: no bound */
    int64_t retrieve;      /* candidates compared exactly; lists: for each composite.  0: no bound (lists); k and some
                              (scan), and 8 k and some where the k-th best is hardly better than what that leaves out */
    int64_t field_of_view; /* parents kept at each level; 0: no bound */
    int extend; /* scan mode in two levels: field_of_view grows with the number of segments, by the sum of sqrt(m / n)
                   over segments of m of all n keys; and every other parent is opened as well of which a key may be
                   among the k best if directions are random, by the spread and the radius of its keys
                   (index/search_reach.h).  By inner product half as many as the view are added by what their typical
                   keys may score, not by their mean */
    int exact;  /* compare all, in float32; the budgets are not used */
    const int64_t *allowed; /* NULL, or ids: all others are left out; absent ones do not matter */
    int64_t allowed_count;
    const int64_t *excluded; /* NULL, or ids that are left out */
    int64_t excluded_count;
    int threads;
} icecore_search;

/* ids, scores: queries x k, best first, ties by the smaller id; places left over hold -1 and NaN.  With `exact` of ties
 * the smallest ids are found, for copies of a vector and for scores that float32 holds without rounding; else they come
 * first of what was compared exactly, and codes decide what that is.  Scores are inner products or squared distances in
 * float32.  counts: queries.  visited: NULL, or queries: vectors and means that the query was compared with.
 * queries: contiguous, finite. */
icecore_status icecore_index_search(icecore_index *index, const float *queries, int64_t count,
                                    const icecore_search *search, int64_t *ids, float *scores, int64_t *counts,
                                    int64_t *visited);

/* ICECORE_ERROR_ABSENT with *place where an id is absent.  vectors: count x dim. */
icecore_status icecore_index_get(icecore_index *index, const int64_t *ids, int64_t count, float *vectors,
                                 int64_t *place);
/* present[i] = 1 where ids[i] is in the index. */
icecore_status icecore_index_contains(icecore_index *index, const int64_t *ids, int64_t count, uint8_t *present);
typedef struct {
    int64_t count;                           /* vectors in the index */
    int64_t removed;                         /* slots that wait for a merge to give them back */
    int64_t open;                            /* vectors in the open block */
    int64_t slots, segments, cells, merging; /* merging: segments that a pending merge will replace */
    int64_t next_id;                         /* one above the largest id ever added, 0 .. INT64_MAX */
    int64_t bytes;                           /* memory held, mapped files not counted */
    int read_only;
} icecore_index_state;
icecore_status icecore_index_get_state(icecore_index *index, icecore_index_state *state);
/* ids of all vectors, in the order of their slots, as far as `capacity` goes; *count: how many there are. */
icecore_status icecore_index_ids(icecore_index *index, int64_t *ids, int64_t capacity, int64_t *count);

/* Checks the structure; returns ICECORE_ERROR_VALUE and a sentence in `reason` (always terminated) when something is
 * wrong. */
icecore_status icecore_index_validate(icecore_index *index, char *reason, int64_t reason_size);

/* The index as named arrays, for files.  Pending merges are left out: they begin anew.  `write` reads alone meanwhile.
 */
icecore_status icecore_index_write(icecore_index *index, icecore_write write, void *context);
/* An index over the arrays themselves, which must stay as they are as long as it lives: it is read only.  Every number
 * that leads to memory is checked; ICECORE_ERROR_VALUE and a reason otherwise; ICECORE_ERROR_MEMORY where nothing is
 * wrong with the arrays. */
icecore_status icecore_index_map(const icecore_index_options *options, const icecore_array *arrays, int64_t count,
                                 icecore_index **result, char *reason, int64_t reason_size);
/* A writable copy with memory of its own. */
icecore_status icecore_index_copy(icecore_index *index, icecore_index **result);

#ifdef __cplusplus
}
#endif
#endif
