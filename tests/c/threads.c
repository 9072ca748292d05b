/* The number of threads changes nothing; forks and interrupts are survived. */
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "tensors.h"

static problem prefill(void) {
    problem s = one_head(150, 150, 16, 16);
    s.p.batch = s.p.key_heads = 2;
    s.p.query_heads = 4;
    s.p.causal = 1;
    s.p.sinks = 4;
    return s;
}

static problem decode(void) {
    problem s = one_head(1, 9000, 16, 16);
    s.p.query_heads = 2;
    s.p.causal = 1;
    s.p.sinks = 4;
    return s;
}

static icecore_status attend(const icecore_attention *p, int kind) {
    const icecore_near_far options = {.near_keys = 10, .block = 16, .cell_size = 4};
    if (kind == 0) return icecore_attend_exact(p);
    return kind == 1 ? icecore_attend_near_far(p, &options, NULL) : icecore_attend_pdci(p, 10, 60, 0, NULL);
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
            EXPECT(attend(&one.p, kind) == ICECORE_OK);
            for (int i = 0; i < 5; i++) {
                check_at("shape %d, kind %d, threads %d", shape, kind, threads[i]);
                problem_clear(&many);
                many.p.threads = threads[i];
                EXPECT(attend(&many.p, kind) == ICECORE_OK);
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
    EXPECT(attend(&parent.p, 1) == ICECORE_OK);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(60); /* a child that hangs fails */
        int same = attend(&child.p, 1) == ICECORE_OK &&
                   memcmp(parent.p.out.data, child.p.out.data, (size_t)child.out_bytes) == 0;
        _exit(same ? 0 : 1);
    }
    int status = -1;
    EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT(attend(&child.p, 1) == ICECORE_OK);
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
            problem s = one_head(4096, 1024, 64, 1), wide = one_head(4096, 1, 1, 1);
            wide.p.query_heads = wide.p.key_heads = 500;
            problem_allocate(&s);
            problem_allocate(&wide);
            icecore_attention p = s.p;
            p.query_heads = p.key_heads = 500;
            p.query.head_stride = p.key.head_stride = p.value.head_stride = 0;
            p.out = wide.p.out;
            p.lse = NULL;
            p.threads = threads;
            p.causal = causal;
            checks = 0;
            answer = 1;
            check_at("kind %d, causal %d, threads %d", kind, causal, threads);
            icecore_set_interrupt_check(count_and_answer);
            EXPECT(attend(&p, kind) == ICECORE_INTERRUPTED);
            EXPECT(checks >= 1);
            icecore_set_interrupt_check(NULL);
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
    EXPECT(attend(&a.p, 1) == ICECORE_OK);
    icecore_set_interrupt_check(count_and_answer);
    EXPECT(attend(&b.p, 1) == ICECORE_OK);
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
