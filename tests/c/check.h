/* Expectations and their count.  A test is a function; it fails when an expectation in it does not hold. */
#ifndef CHECK_H
#define CHECK_H

#define EXPECT(condition) ((condition) ? (void)0 : check_failed(__FILE__, __LINE__, #condition))

/* Says, for the next failure's message, what the test is at. */
void check_at(const char *format, ...) __attribute__((format(printf, 1, 2)));
void check_failed(const char *file, int line, const char *condition);
/* Runs one test and prints its line. */
void check_run(const char *name, void (*test)(void));
/* Prints the last line; the exit status. */
int check_result(void);

/* Each of these runs the tests of the file of its name. */
void exact_tests(void);
void caps_and_sinks_tests(void);
void near_far_tests(void);
void selector_tests(void);
void indices_tests(void);
void segment_tests(void);
void index_tests(void);
void cache_tests(void);
void special_value_tests(void);
void thread_tests(void);
void concurrent_tests(void);
void quota_tests(void);
void argument_tests(void);
void out_of_memory_tests(void);
void any_order_cache_tests(void);
void any_order_index_tests(void);
void instruction_set_tests(void);

#endif
