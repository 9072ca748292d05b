/* The number of threads changes nothing; forks and interrupts are survived. */
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "tensors.h"

static problem prefill(void) {
    return (problem){.p = {.batch = 2, .query_heads = 4, .key_heads = 2, .queries = 150, .keys = 150, .dim = 16, .value_dim = 16, .window = -1,
                           .causal = 1, .sinks = 4}, .seed = 80};
}

static problem decode(void) {
    return (problem){.p = {.batch = 1, .query_heads = 2, .key_heads = 1, .queries = 1, .keys = 9000, .dim = 16, .value_dim = 16, .window = -1,
                           .causal = 1, .sinks = 4}, .seed = 81};
}

static icecore_status attend(const problem *s, int kind) {
    icecore_near_far options = {.near_keys = 10, .visit = 60, .far_field = kind == 1, .block = 16, .cell_size = 4};
    return kind == 0 ? icecore_attend_exact(&s->p) : icecore_attend_near_far(&s->p, &options);
}

static problem prefill_bfloat16(void) {
    problem s = prefill();
    s.p.dtype = ICECORE_BFLOAT16;
    s.p.dim = 32;
    return s;
}

static void same_bits(void) {
    static const int threads[] = {2, 3, 7, 0, -1};
    static problem (*const shapes[])(void) = {prefill, prefill_bfloat16, decode};
    for (int shape = 0; shape < 3; shape++)
        for (int kind = 0; kind < 3; kind++) {
            problem one = shapes[shape]();
            if (shape == 2 && kind) one.p.keys = 300;
            problem many = one;
            problem_allocate(&one);
            problem_allocate(&many);
            one.p.threads = 1;
            EXPECT(attend(&one, kind) == ICECORE_OK);
            for (int i = 0; i < 5; i++) {
                check_at("shape %d, kind %d, threads %d", shape, kind, threads[i]);
                problem_clear(&many);
                many.p.threads = threads[i];
                EXPECT(attend(&many, kind) == ICECORE_OK);
                EXPECT(memcmp(one.p.out.data, many.p.out.data, (size_t)one.out_bytes) == 0);
                EXPECT(memcmp(one.p.lse, many.p.lse, (size_t)one.lse_count * sizeof *one.p.lse) == 0);
            }
            problem_free(&one);
            problem_free(&many);
        }
}

static void defaults(void) {
    EXPECT(icecore_default_threads() >= 1);
    if (!icecore_has_openmp()) EXPECT(icecore_default_threads() == 1);
}

static void after_fork(void) {
    problem parent = prefill(), child = prefill();
    problem_allocate(&parent);
    problem_allocate(&child);
    parent.p.threads = child.p.threads = 2;
    EXPECT(attend(&parent, 1) == ICECORE_OK);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(60);   /* a child that hangs fails */
        int same = attend(&child, 1) == ICECORE_OK && memcmp(parent.p.out.data, child.p.out.data, (size_t)child.out_bytes) == 0;
        _exit(same ? 0 : 1);
    }
    int status = -1;
    EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT(attend(&child, 1) == ICECORE_OK);
    EXPECT(memcmp(parent.p.out.data, child.p.out.data, (size_t)child.out_bytes) == 0);
    problem_free(&parent);
    problem_free(&child);
}

static int checks, answer;
static int count_and_answer(void) {
    checks++;
    return answer;
}

/* Far more work than passes between two checks, in little memory: all heads share one query, key and value head. */
static void interrupt(void) {
    for (int i = 0; i < 6; i++)
        for (int threads = 1; threads <= 2; threads++) {
            const int kind = i / 2, causal = i % 2;
            problem s = {.p = {.batch = 1, .query_heads = 1, .key_heads = 1, .queries = 4096, .keys = 1024, .dim = 64, .value_dim = 1, .window = -1},
                         .seed = 82};
            problem_allocate(&s);
            problem wide = {.p = {.batch = 1, .query_heads = 2000, .key_heads = 2000, .queries = 4096, .keys = 1, .dim = 1, .value_dim = 1}};
            s.p.query_heads = s.p.key_heads = wide.p.query_heads;
            s.p.query.head_stride = s.p.key.head_stride = s.p.value.head_stride = 0;
            s.p.threads = threads;
            s.p.causal = causal;
            float *lse = s.p.lse;
            s.p.lse = NULL;
            icecore_tensor out = s.p.out;
            problem_allocate(&wide);
            s.p.out = wide.p.out;
            checks = 0;
            answer = 1;
            check_at("kind %d, causal %d, threads %d", kind, causal, threads);
            icecore_set_interrupt_check(count_and_answer);
            EXPECT(attend(&s, kind) == ICECORE_INTERRUPTED);
            EXPECT(checks >= 1);
            icecore_set_interrupt_check(NULL);
            s.p.out = out;
            s.p.lse = lse;
            problem_free(&wide);
            problem_free(&s);
        }
}

/* A check that says go on changes nothing. */
static void no_interrupt(void) {
    problem a = prefill(), b = prefill();
    problem_allocate(&a);
    problem_allocate(&b);
    answer = 0;
    EXPECT(attend(&a, 1) == ICECORE_OK);
    icecore_set_interrupt_check(count_and_answer);
    EXPECT(attend(&b, 1) == ICECORE_OK);
    icecore_set_interrupt_check(NULL);
    EXPECT(memcmp(a.p.out.data, b.p.out.data, (size_t)a.out_bytes) == 0);
    problem_free(&a);
    problem_free(&b);
}

void thread_tests(void) {
    check_run("threads: the same bits for any number", same_bits);
    check_run("threads: the default is at least one", defaults);
    check_run("threads: a forked child computes the same", after_fork);
    check_run("threads: an interrupt ends a long call", interrupt);
    check_run("threads: a check that does not interrupt changes nothing", no_interrupt);
}
