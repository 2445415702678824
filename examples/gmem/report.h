/* What the command says: outcomes, the one error line, notes that wait for success, JSON. */
#ifndef REPORT_H
#define REPORT_H

#include "gmem.h"

#include <stdio.h>

#if defined(__GNUC__) || defined(__clang__)
#define PRINTF_LIKE(string, first) __attribute__((format(printf, string, first)))
#else
#define PRINTF_LIKE(string, first)
#endif

/* How a command ended; the values are the exit codes. */
typedef enum outcome {
    OUTCOME_DONE = 0,
    OUTCOME_FAILED = 1,       /* an error in the work */
    OUTCOME_MISUSED = 2,      /* wrong usage */
    OUTCOME_INTERRUPTED = 130 /* Ctrl-C, as shells report it */
} outcome;

#define TRY(call)                              \
    do {                                       \
        outcome try_ = (call);                 \
        if (try_ != OUTCOME_DONE) return try_; \
    } while (0)

/* Fill the error and return the outcome of that name. `path` may be NULL. Texts from files and from the command line
 * are escaped where the line is printed, so callers pass them as they are. */
outcome failed(gmem_error *error, const char *path, const char *format, ...) PRINTF_LIKE(3, 4);
outcome misused(gmem_error *error, const char *format, ...) PRINTF_LIKE(2, 3);
outcome out_of_memory(gmem_error *error);
/* The outcome of a library call. */
outcome from_status(gmem_status status);

/* The one line of an error, on standard error. */
void print_error(const gmem_error *error);

/* Standard error holds nothing before an error, so notes wait until the work is done; on a terminal, where people wait,
 * they appear at once. -q drops them, details need -v. */
typedef enum loudness { LOUDNESS_QUIET, LOUDNESS_NORMAL, LOUDNESS_VERBOSE } loudness;
void notes_begin(loudness level);
void note(const char *format, ...) PRINTF_LIKE(1, 2);
void detail(const char *format, ...) PRINTF_LIKE(1, 2);
void note_waiting(const char *format, ...)
    PRINTF_LIKE(1, 2); /* a note on terminals, where somebody waits; else a detail */
void notes_end(int success);

/* The progress of a run, on terminals only: passes per second and the time left. */
typedef struct progress_bar {
    double started, drawn;
    int visible;
} progress_bar;
void progress_begin(progress_bar *bar);
void progress_show(progress_bar *bar, int64_t done, int64_t total, const char *unit);
/* The same of work that takes a time which is known beforehand. */
void progress_show_time(progress_bar *bar, double seconds, double of, const char *what);
void progress_end(progress_bar *bar);

double seconds_now(void); /* a clock that only goes forward */

/* JSON: pure ASCII, one value. Keys are given inside objects, NULL inside lists. */
typedef struct json_writer {
    FILE *to;
    int depth, filled;
    int compact; /* all on one line */
} json_writer;
void json_begin(json_writer *json, FILE *to);
void json_open(json_writer *json, const char *key, char bracket); /* '{' or '[' */
void json_close(json_writer *json, char bracket);
void json_text(json_writer *json, const char *key, const char *text); /* NULL: null */
void json_integer(json_writer *json, const char *key, int64_t value);
void json_unsigned(json_writer *json, const char *key, uint64_t value);
void json_number(json_writer *json, const char *key, double value); /* null where not finite */
void json_boolean(json_writer *json, const char *key, int value);

/* Whether a text is UTF-8 without control characters. */
int is_utf8_line(const char *text);

#endif /* REPORT_H */
