#include "base/quota.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define LONGEST_PATH 4096
#define LONGEST_LINE (4 * LONGEST_PATH)

/* One of the two versions: where its groups are mounted and which is the process's own. */
typedef struct {
    int is_mounted;
    char mount[LONGEST_PATH]; /* the folder of the group `top` */
    char top[LONGEST_PATH];
    char own[LONGEST_PATH]; /* "" where it is not said */
} hierarchy;

static FILE *open_file(const char *root, const char *folder, const char *name) {
    char path[4 * LONGEST_PATH];
    const int length = snprintf(path, sizeof path, "%s%s%s", root, folder, name);
    return length > 0 && (size_t)length < sizeof path ? fopen(path, "r") : NULL;
}

/* Whether `word` is in a list with commas. */
static int lists(const char *list, const char *word) {
    const size_t length = strlen(word);
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, word, length) && (at[length] == ',' || at[length] == '\0' || at[length] == '\n')) return 1;
    return 0;
}

/* Lines of mountinfo: number, parent, device, root, mount point, options, "-", type, source, options of the file
 * system. */
static void find_mounts(const char *root, hierarchy *one, hierarchy *two) {
    char line[LONGEST_LINE], top[LONGEST_PATH], mount[LONGEST_PATH], type[64], options[LONGEST_PATH];
    FILE *file = open_file(root, "/proc/self", "/mountinfo");
    while (file && fgets(line, sizeof line, file)) {
        const char *rest = strstr(line, " - ");
        if (!rest || sscanf(line, "%*d %*d %*s %4095s %4095s", top, mount) != 2) continue;
        if (sscanf(rest, " - %63s %*s %4095s", type, options) != 2) continue;
        hierarchy *h = NULL;
        if (!strcmp(type, "cgroup2")) h = two;
        else if (!strcmp(type, "cgroup") && lists(options, "cpu")) h = one;
        if (!h || h->is_mounted) continue;
        h->is_mounted = 1;
        strcpy(h->mount, mount);
        strcpy(h->top, strcmp(top, "/") ? top : "");
    }
    if (file) fclose(file);
}

/* Lines of cgroup: number, controllers (version 2: none), group. */
static void find_groups(const char *root, hierarchy *one, hierarchy *two) {
    char line[LONGEST_LINE];
    FILE *file = open_file(root, "/proc/self", "/cgroup");
    while (file && fgets(line, sizeof line, file)) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        group[strcspn(group, "\n")] = '\0';
        controllers++;
        hierarchy *h = NULL;
        if (!*controllers) h = two;
        else if (lists(controllers, "cpu")) h = one;
        if (h && strlen(group) < sizeof h->own) strcpy(h->own, strcmp(group, "/") ? group : "");
    }
    if (file) fclose(file);
}

/* How many of the two numbers a file begins with. */
static int read_numbers(FILE *file, long *first, long *second) {
    if (!file) return 0;
    const int found = fscanf(file, "%ld %ld", first, second);
    fclose(file);
    return found;
}

/* CPUs' worth of one group, rounded up; 0 where it has no quota. */
static int quota_of(const char *root, const char *folder, int version) {
    long quota = 0, period = 0, none;
    if (version == 2) {
        read_numbers(open_file(root, folder, "/cpu.max"), &quota, &period); /* "max" is no number */
    } else {
        read_numbers(open_file(root, folder, "/cpu.cfs_quota_us"), &quota, &none);
        read_numbers(open_file(root, folder, "/cpu.cfs_period_us"), &period, &none);
    }
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

/* From the process's own group up to the mounted one. */
static int min_quota(const char *root, const hierarchy *h, int version) {
    char folder[2 * LONGEST_PATH];
    const size_t mount = strlen(h->mount), top = strlen(h->top);
    /* a group that lies outside of what is mounted cannot be looked at */
    const int inside =
        !strncmp(h->own, h->top, top) && (h->own[top] == '/' || h->own[top] == '\0') && !strstr(h->own, "/..");
    int minimum = 0;
    if (!h->is_mounted) return 0;
    snprintf(folder, sizeof folder, "%s%s", h->mount, inside ? h->own + top : "");
    for (;;) {
        const int quota = quota_of(root, folder, version);
        if (quota > 0 && (minimum == 0 || quota < minimum)) minimum = quota;
        char *last = strrchr(folder, '/');
        if (strlen(folder) <= mount || !last) return minimum;
        *last = '\0';
    }
}

int ice_read_cpu_quota(const char *root) {
    hierarchy one = {0}, two = {0};
    find_mounts(root, &one, &two);
    find_groups(root, &one, &two);
    const int first = min_quota(root, &one, 1), second = min_quota(root, &two, 2);
    return first > 0 && (second == 0 || first < second) ? first : second;
}

int ice_cpu_quota(void) {
    static _Atomic int64_t next;
    static atomic_int quota;
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    int64_t now = time.tv_sec * (int64_t)1000000000 + time.tv_nsec, due = atomic_load(&next);
    if (now >= due && atomic_compare_exchange_strong(&next, &due, now + 1000000000))
        atomic_store(&quota, ice_read_cpu_quota(""));
    return atomic_load(&quota);
}
