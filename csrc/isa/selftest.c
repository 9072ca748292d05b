/* Compares every kernel of one instruction set with the scalar kernels, on shapes that leave tails everywhere.
 *
 * Both get the same inputs.  What kernels.h does not let a kernel read (gaps between rows, what follows the last row)
 * holds NaN, so that reading it shows in the result; what it does not let a kernel write must be as before.
 *
 * Tolerances, with u = 2^-24 the rounding error of one operation.  A sum of n terms in any order, fused or not, is
 * within n u of the truth relative to the sum of the terms' absolute values, so two of them are within 2 n u.  vf_exp2
 * is within 2e-7 of the truth, and its argument is rounded alike everywhere; a soft cap is held against tanh itself.
 * What only adds, compares and selects agrees exactly. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "isa/selftest_harness.h"
#include "isa/selftest_search.h"

static const int dims[] = {1, 3, 15, 16, 17, 64, 65, MAX_DIM};
static const int counts[] = {1, 2, 5, 8, 9, 31, MAX_COUNT};
static const int lane_counts[] = {1, 3, 16, 17, 33, ICE_PANEL};
static const int gaps[] = {0, MAX_GAP};

static const char *const kind_names[] = {"ordinary", "wide", "special"};

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

/* Every case of one kernel; the first failure says where it was. */
static void compare_all(selftest *t, const ice_comparison *comparison) {
    const int axes = comparison->axes;
    const int combinations[] = {LENGTH(counts),
                                KINDS,
                                axes & DIM ? LENGTH(dims) : 1,
                                axes & LANES ? LENGTH(lane_counts) : 1,
                                axes & GAP ? LENGTH(gaps) : 1,
                                (axes & DTYPE ? DTYPES : 1) * (axes & ROW_DTYPE ? ROW_DTYPES : 1)};
    int total = 1;
    for (int i = 0; i < LENGTH(combinations); i++) total *= combinations[i];
    t->failed = 0;
    t->error = 0.0;
    for (int i = 0, rest; i < total; i++) {
        rest = i;
        t->count = counts[rest % combinations[0]], rest /= combinations[0];
        t->kind = rest % combinations[1], rest /= combinations[1];
        t->dim = dims[rest % combinations[2]], rest /= combinations[2];
        t->lanes = lane_counts[rest % combinations[3]], rest /= combinations[3];
        t->gap = gaps[rest % combinations[4]], rest /= combinations[4];
        t->dtype = (icecore_dtype)(axes & (DTYPE | ROW_DTYPE) ? rest : ICECORE_FLOAT32);
        int failed_before = t->failed;
        comparison->compare(t);
        if (failed_before || !t->failed) continue;
        size_t used = strlen(t->reason);
        snprintf(t->reason + used, sizeof t->reason - used,
                 " (dim %d, count %d, lanes %d, gap %d, dtype %d, %s values)", t->dim, t->count, t->lanes, t->gap,
                 (int)t->dtype, kind_names[t->kind]);
    }
}

/* Appends to a string of `size` bytes as far as there is room. */
static void append(char *report, int64_t size, const char *format, ...) {
    if (size <= 0) return;
    size_t used = strlen(report);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(report + used, (size_t)size - used, format, arguments);
    va_end(arguments);
}

/* One line for each kernel; the number that failed. */
static int report_all(selftest *t, const ice_comparison *list, char *report, int64_t size) {
    int failures = 0;
    for (int i = 0; list[i].name; i++) {
        compare_all(t, &list[i]);
        append(report, size, "%-22s", list[i].name);
        if (t->failed) append(report, size, "FAILED  %s\n", t->reason);
        else append(report, size, "ok  max error %.0e\n", t->error);
        failures += t->failed > 0;
    }
    return failures;
}

/* The kernels of a k-NN search, which have a file of their own. */
static int report_search(selftest *t, char *report, int64_t size) {
    int failures = 0;
    for (int i = 0; i < ICE_SEARCH_KERNELS; i++) {
        int failed = ice_selftest_search(i, t->plain, t->fast, t->reason, sizeof t->reason, &t->error);
        append(report, size, "%-22s", ice_search_kernel_names[i]);
        if (failed) append(report, size, "FAILED  %s\n", t->reason);
        else append(report, size, "ok  max error %.0e\n", t->error);
        failures += failed > 0;
    }
    return failures;
}

int icecore_selftest(const char *isa, char *report, int64_t report_size) {
    if (report_size > 0) report[0] = '\0';
    const ice_kernels *kernels = ice_find_kernels(isa);
    if (!kernels) {
        append(report, report_size, "FAILED  instruction set %s is not known here, not built or not usable\n", isa);
        return 1;
    }
    selftest *t = ice_alloc(1, sizeof *t);
    if (!t) {
        append(report, report_size, "FAILED  out of memory\n");
        return 1;
    }
    t->plain = ice_find_kernels("scalar");
    t->fast = kernels;
    t->random = 1;
    t->kind = ORDINARY;
    for (int i = 0; i < OUTPUTS; i++) fill(t, t->out[i].before, GUARD + BLOCK + GUARD);
    int failures = report_all(t, ice_selftest_rows, report, report_size);
    failures += report_all(t, ice_selftest_panels, report, report_size);
    failures += report_all(t, ice_selftest_cells, report, report_size);
    failures += report_search(t, report, report_size);
    if (kernels->bf16) failures += report_all(t, ice_selftest_bf16, report, report_size);
    if (kernels->thirds) failures += report_all(t, ice_selftest_thirds, report, report_size);
    ice_free(t);
    return failures;
}
