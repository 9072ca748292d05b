/* Tests of the C core through its public header: one line a test, the count last; exit status 1 if any failed.
 *
 *   driver [instruction set]...     default: each usable one in turn
 *   driver concurrent               what several threads do at once, for the thread sanitizer
 *   driver any_order                calls in any order, some of which fail; ICECORE_TEST_FACTOR times as many */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "icecore.h"

static void any_order_tests(void) {
    any_order_cache_tests();
    any_order_index_tests();
}

/* Before any other call: ICECORE_ISA asks for what is not there. */
static void bad_environment(void) {
    setenv("ICECORE_ISA", "abacus", 1);
    EXPECT(icecore_isa_status() == ICECORE_ERROR_ISA);
    const icecore_attention nothing = {.dim = 1, .value_dim = 1, .window = -1};
    EXPECT(icecore_attend_exact(&nothing) == ICECORE_ERROR_ISA);
    const icecore_near_far options = {.near_keys = 1, .far_field = 1, .cell_size = 1};
    EXPECT(icecore_attend_near_far(&nothing, &options) == ICECORE_ERROR_ISA);
    const icecore_indices none = {.count = 0};
    int64_t place;
    EXPECT(icecore_attend_indices(&nothing, &none, &place) == ICECORE_ERROR_ISA);
    const float key = 1.0f;
    icecore_segment *segment = NULL;
    EXPECT(icecore_segment_build(ICECORE_FLOAT32, &key, 1, &key, 1, 1, 1, 1, ICECORE_FLOAT32, NULL, 1, 0, &segment) ==
           ICECORE_ERROR_ISA);
    setenv("ICECORE_ISA", "scalar", 1);
    EXPECT(icecore_isa_status() == ICECORE_OK);
    unsetenv("ICECORE_ISA");
}

static void test_with(const char *isa) {
    if (icecore_set_isa(isa) != ICECORE_OK) {
        printf("instruction set %s is not usable here\n", isa);
        exit(1);
    }
    instruction_set_tests();
    exact_tests();
    near_far_tests();
    indices_tests();
    segment_tests();
    index_tests();
    cache_tests();
    special_value_tests();
    thread_tests();
    concurrent_tests();
    argument_tests();
    out_of_memory_tests();
    any_order_tests();
}

int main(int count, char **arguments) {
    check_run("instruction sets: a bad ICECORE_ISA is an error of every call", bad_environment);
    if (count == 2 && !strcmp(arguments[1], "concurrent")) {
        concurrent_tests();
        return check_result();
    }
    if (count == 2 && !strcmp(arguments[1], "any_order")) {
        any_order_tests();
        return check_result();
    }
    quota_tests();
    const char *names[16];
    int usable = icecore_usable_isas(names, 16);
    for (int i = 1; i < count; i++) test_with(arguments[i]);
    for (int i = 0; i < usable && count < 2; i++) test_with(names[i]);
    return check_result();
}
