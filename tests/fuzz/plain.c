/* A fuzzer for compilers without libFuzzer: the inputs of a folder, changed at random, without a look at coverage.
 *
 *   TARGET [-max_total_time=SECONDS] [-artifact_prefix=PREFIX] FOLDER    other options of libFuzzer do nothing
 *   TARGET FILE...                                                       runs these inputs as they are */
#include <dirent.h>
#include <sanitizer/common_interface_defs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "input.h"

enum { SECONDS_PER_INPUT = 30 };

static uint8_t current[MAX_INPUT];
static size_t current_size;
static const char *prefix = "";

/* By the system's calls alone: it runs when the process is about to die. */
static void keep_current(void) {
    char path[512];
    snprintf(path, sizeof path, "%scrash-%ld", prefix, (long)getpid());
    FILE *file = fopen(path, "wb");
    if (!file) return;
    fwrite(current, 1, current_size, file);
    fclose(file);
    fprintf(stderr, "the input is kept as %s\n", path);
}

static void died(int signal_number) {
    fprintf(stderr, signal_number == SIGALRM ? "timeout: no end after %d s\n" : "ended by a signal\n",
            SECONDS_PER_INPUT);
    keep_current();
    _exit(1);
}

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t size, size_t capacity) {
    if (size == 0 && capacity == 0) return 0;
    const size_t at = size ? (size_t)rand() % size : 0;
    switch (size ? rand() % 4 : 3) {
    case 0: bytes[at] ^= (uint8_t)(1u << rand() % 8); return size;
    case 1: bytes[at] = (uint8_t)rand(); return size;
    case 2: memmove(bytes + at, bytes + at + 1, size - at - 1); return size - 1;
    default:
        if (size == capacity) return size;
        memmove(bytes + at + 1, bytes + at, size - at);
        bytes[at] = (uint8_t)rand();
        return size + 1;
    }
}

typedef struct {
    uint8_t *bytes;
    size_t size;
} seed;

static seed read_seed(const char *path) {
    seed s = {malloc(MAX_INPUT), 0};
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(1);
    }
    s.size = fread(s.bytes, 1, MAX_INPUT, file);
    fclose(file);
    return s;
}

static void run(const seed *s, int changes) {
    memcpy(current, s->bytes, s->size);
    current_size = s->size;
    for (int i = 0; i < changes; i++)
        current_size = LLVMFuzzerCustomMutator(current, current_size, MAX_INPUT, (unsigned)rand());
    alarm(SECONDS_PER_INPUT);
    uint8_t *exact = malloc(current_size ? current_size : 1);
    memcpy(exact, current, current_size);
    LLVMFuzzerTestOneInput(exact, current_size);
    free(exact);
}

static long fuzz(const char *folder, double seconds) {
    static seed seeds[1000];
    int count = 0;
    DIR *directory = opendir(folder);
    struct dirent *entry;
    while (directory && count < 1000 && (entry = readdir(directory))) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.') seeds[count++] = read_seed(path);
    }
    if (directory) closedir(directory);
    long runs = 0;
    const time_t end = time(NULL) + (time_t)seconds;
    for (; count && (runs < count || time(NULL) < end); runs++)
        run(&seeds[runs % count], runs < count ? 0 : 1 + rand() % 3);
    for (int i = 0; i < count; i++) free(seeds[i].bytes);
    return runs;
}

int main(int count, char **arguments) {
    double seconds = 10.0;
    long runs = 0;
    const int fatal[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM};
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) signal(fatal[i], died);
    __sanitizer_set_death_callback(keep_current);
    for (int i = 1; i < count; i++) {
        const char *argument = arguments[i];
        struct stat about;
        if (!strncmp(argument, "-max_total_time=", 16)) seconds = atof(argument + 16);
        else if (!strncmp(argument, "-artifact_prefix=", 17)) prefix = argument + 17;
        else if (argument[0] == '-') continue;
        else if (stat(argument, &about) == 0 && S_ISDIR(about.st_mode)) runs += fuzz(argument, seconds);
        else {
            const seed s = read_seed(argument);
            run(&s, 0);
            free(s.bytes);
            runs++;
        }
    }
    printf("Done %ld runs\n", runs);
    return 0;
}
