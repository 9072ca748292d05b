/* Choosing instruction sets, and the core's own comparison of their kernels. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "icecore.h"

static void lists(void) {
    const char *built[16], *usable[16];
    int built_count = icecore_built_isas(built, 16), usable_count = icecore_usable_isas(usable, 16);
    EXPECT(usable_count >= 1 && usable_count <= built_count && built_count <= 16);
    EXPECT(strcmp(built[0], "scalar") == 0 && strcmp(usable[0], "scalar") == 0);
    for (int i = 0; i < usable_count; i++) {
        int found = 0;
        for (int j = 0; j < built_count; j++) found |= strcmp(usable[i], built[j]) == 0;
        EXPECT(found);
    }
    EXPECT(icecore_usable_isas(NULL, 0) == usable_count);
    const char *one[2] = {NULL, NULL};
    EXPECT(icecore_usable_isas(one, 1) == usable_count);
    EXPECT(one[0] && !one[1]);
}

static void choice(void) {
    const char *usable[16], *before = icecore_isa();
    int count = icecore_usable_isas(usable, 16);
    for (int i = 0; i < count; i++) {
        EXPECT(icecore_set_isa(usable[i]) == ICECORE_OK);
        EXPECT(strcmp(icecore_isa(), usable[i]) == 0);
    }
    EXPECT(icecore_set_isa("scalar") == ICECORE_OK);
    EXPECT(icecore_set_isa("abacus") == ICECORE_ERROR_ISA);
    EXPECT(strcmp(icecore_isa(), "scalar") == 0);
    EXPECT(icecore_set_isa(NULL) == ICECORE_OK);
    EXPECT(strcmp(icecore_isa(), usable[count - 1]) == 0);
    EXPECT(icecore_set_isa(before) == ICECORE_OK);
}

static int lines(const char *text) {
    int found = 0;
    for (; *text; text++) found += *text == '\n';
    return found;
}

static void kernels_agree(void) {
    static char report[8192];
    EXPECT(icecore_selftest(icecore_isa(), report, sizeof report) == 0);
    EXPECT(lines(report) >= 14);
    EXPECT(strstr(report, "scores") && strstr(report, "ok") && !strstr(report, "FAILED"));
}

static void unknown_kernels(void) {
    char report[200];
    EXPECT(icecore_selftest("abacus", report, sizeof report) == 1);
    EXPECT(strstr(report, "FAILED") && strstr(report, "abacus") && lines(report) == 1);
}

/* The report is cut to its room, and always terminated. */
static void short_reports(void) {
    EXPECT(icecore_selftest("abacus", NULL, 0) == 1);
    for (int size = 1; size <= 80; size++) {
        char report[82];
        memset(report, '#', sizeof report);
        EXPECT(icecore_selftest("abacus", report, size) == 1);
        EXPECT(memchr(report, '\0', (size_t)size) != NULL);
        EXPECT(report[size] == '#');
    }
}

void instruction_set_tests(void) {
    check_run("instruction sets: lists", lists);
    check_run("instruction sets: choice", choice);
    check_run("instruction sets: all kernels agree with the scalar ones", kernels_agree);
    check_run("instruction sets: an unknown one is a failure", unknown_kernels);
    check_run("instruction sets: reports of any size", short_reports);
}
