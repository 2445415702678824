/* The tests' few macros. A test program calls test_ functions from main and ends with `return check_report();`, which
 * prints "N passed, N failed" and gives the exit code. A failed check is printed with its place and does not stop. */
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_passed, check_failed;

static inline int check_result(int ok, const char *file, int line, const char *what) {
    if (ok) {
        check_passed++;
    } else {
        check_failed++;
        printf("%s:%d: failed: %s\n", file, line, what);
    }
    return ok;
}

/* Each is an expression: nonzero where it held. */
#define CHECK(condition)             check_result(!!(condition), __FILE__, __LINE__, #condition)
#define CHECK_INT(actual, expected)  check_int((long long)(actual), (long long)(expected), __FILE__, __LINE__, #actual)
#define CHECK_TEXT(actual, expected) check_text((actual), (expected), __FILE__, __LINE__, #actual)
#define CHECK_CONTAINS(text, part)   check_contains((text), (part), __FILE__, __LINE__)
/* CHECK_STATUS(GMEM_E_SHAPE, gmem_network_open(...)); needs api.h */
#define CHECK_STATUS(expected, call) check_status((int)(expected), (int)(call), __FILE__, __LINE__, #call)
#define CHECK_OK(call)               CHECK_STATUS(GMEM_OK, call)
/* relative L2 error of actual against expected, both float (count), at most `bar`; `label` is printed on failure. */
#define CHECK_CLOSE(label, actual, expected, count, bar) \
    check_close((label), (actual), (expected), (int64_t)(count), (bar), __FILE__, __LINE__)

static inline int check_int(long long actual, long long expected, const char *file, int line, const char *what) {
    char text[256];
    snprintf(text, sizeof text, "%s is %lld, expected %lld", what, actual, expected);
    return check_result(actual == expected, file, line, text);
}

static inline int check_text(const char *actual, const char *expected, const char *file, int line, const char *what) {
    char text[1024];
    if (!actual) actual = "(null)";
    snprintf(text, sizeof text, "%s is \"%.400s\", expected \"%.400s\"", what, actual, expected);
    return check_result(strcmp(actual, expected) == 0, file, line, text);
}

static inline int check_contains(const char *text, const char *part, const char *file, int line) {
    char message[1024];
    if (!text) text = "(null)";
    snprintf(message, sizeof message, "\"%.400s\" does not contain \"%.400s\"", text, part);
    return check_result(strstr(text, part) != NULL, file, line, message);
}

#define check_status(expected, actual, file, line, what) \
    check_status_named((expected), (actual), (file), (line), (what))
static inline int check_status_named(int expected, int actual, const char *file, int line, const char *what) {
    char text[512];
    snprintf(text, sizeof text, "%.300s gave status %d, expected %d", what, actual, expected);
    return check_result(expected == actual, file, line, text);
}

static inline double check_relative_l2(const float *actual, const float *expected, int64_t count) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)actual[i] - (double)expected[i];
        difference += d * d;
        norm += (double)expected[i] * (double)expected[i];
    }
    return sqrt(difference / (norm > 0 ? norm : 1));
}

static inline int check_close(const char *label, const float *actual, const float *expected, int64_t count, double bar,
                              const char *file, int line) {
    char text[512];
    double error = check_relative_l2(actual, expected, count);
    snprintf(text, sizeof text, "%.300s: relative L2 error %.3g, bar %.3g", label, error, bar);
    return check_result(error <= bar, file, line, text); /* false for NaN */
}

static inline int check_report(void) {
    printf("%d passed, %d failed\n", check_passed, check_failed);
    return check_failed != 0 || check_passed == 0;
}

#endif /* CHECK_H */
