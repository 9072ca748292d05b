/* Tests of the C core through its public header: one line a test, the count last; exit status 1 if any failed.
 *
 *   driver [instruction set | group of tests]...     default: each usable set in turn; all groups
 *
 * Instruction sets are those of icecore_usable_isas, and `best` for the last of them; groups are listed below.
 * ICECORE_TEST_FACTOR: how many times as many calls in any order. */
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
    const icecore_attention nothing = {.dim = 1, .value_dim = 1, .window_left = -1, .window_right = -1};
    EXPECT(icecore_attend_exact(&nothing) == ICECORE_ERROR_ISA);
    const icecore_near_far options = {.near_keys = 1, .cell_size = 1};
    EXPECT(icecore_attend_near_far(&nothing, &options, NULL) == ICECORE_ERROR_ISA);
    const icecore_indices none = {.count = 0};
    int64_t place;
    EXPECT(icecore_attend_indices(&nothing, &none, &place) == ICECORE_ERROR_ISA);
    const float key = 1.0f;
    icecore_segment *segment = NULL;
    const icecore_segment_source source = {.keys = &key,
                                           .key_stride = 1,
                                           .values = &key,
                                           .value_stride = 1,
                                           .count = 1,
                                           .dim = 1,
                                           .value_dim = 1,
                                           .cell_size = 1};
    EXPECT(icecore_segment_build(&source, &segment) == ICECORE_ERROR_ISA);
    setenv("ICECORE_ISA", "scalar", 1);
    EXPECT(icecore_isa_status() == ICECORE_OK);
    unsetenv("ICECORE_ISA");
}

static const struct {
    const char *name;
    void (*tests)(void);
} groups[] = {
    {"instruction_sets", instruction_set_tests},
    {"exact", exact_tests},
    {"caps_and_sinks", caps_and_sinks_tests},
    {"near_far", near_far_tests},
    {"selectors", selector_tests},
    {"indices", indices_tests},
    {"segments", segment_tests},
    {"index", index_tests},
    {"cache", cache_tests},
    {"special_values", special_value_tests},
    {"threads", thread_tests},
    {"concurrent", concurrent_tests},
    {"arguments", argument_tests},
    {"out_of_memory", out_of_memory_tests},
    {"any_order", any_order_tests},
};
enum { GROUPS = sizeof groups / sizeof *groups };

static char **names; /* the arguments, NULL last */

static int is_group(const char *name) {
    for (int g = 0; g < GROUPS; g++)
        if (!strcmp(name, groups[g].name)) return 1;
    return 0;
}

static int is_wanted(const char *group) {
    int others = 0;
    for (int i = 0; names[i]; i++) {
        if (!strcmp(names[i], group)) return 1;
        others += is_group(names[i]);
    }
    return !others;
}

static void test_with(const char *isa) {
    if (icecore_set_isa(strcmp(isa, "best") ? isa : NULL) != ICECORE_OK) {
        printf("%s is neither an instruction set that is usable here nor a group of tests\n", isa);
        exit(1);
    }
    for (int g = 0; g < GROUPS; g++)
        if (is_wanted(groups[g].name)) groups[g].tests();
}

int main(int count, char **arguments) {
    int sets = 0;
    names = arguments + 1;
    check_run("instruction sets: a bad ICECORE_ISA is an error of every call", bad_environment);
    if (count == 1) quota_tests();
    for (int i = 0; names[i]; i++) {
        if (is_group(names[i])) continue;
        test_with(names[i]);
        sets++;
    }
    const char *usable[16];
    const int usable_count = icecore_usable_isas(usable, 16);
    for (int i = 0; i < usable_count && !sets; i++) test_with(usable[i]);
    return check_result();
}
