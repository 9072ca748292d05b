#include "check.h"

#include <stdarg.h>
#include <stdio.h>

#include "icecore.h"

static int passed, failed, failures_here;
static char place[256], first_failure[640];

void check_at(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(place, sizeof place, format, arguments);
    va_end(arguments);
}

void check_failed(const char *file, int line, const char *condition) {
    if (failures_here++) return;
    snprintf(first_failure, sizeof first_failure, "%s:%d: %s%s%s", file, line, condition, *place ? " at " : "", place);
}

void check_run(const char *name, void (*test)(void)) {
    failures_here = 0;
    place[0] = '\0';
    test();
    if (failures_here) {
        failed++;
        printf("FAILED  [%s] %s: %s (%d failures)\n", icecore_isa(), name, first_failure, failures_here);
    } else {
        passed++;
        printf("ok      [%s] %s\n", icecore_isa(), name);
    }
    fflush(stdout);
}

int check_result(void) {
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
