/* What the command says: the one error line, notes, progress, JSON. The only state is what standard error is owed. */
#define _POSIX_C_SOURCE 200809L
#include "report.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NOTES_BYTES 16384

static struct {
    loudness level;
    int immediate;
    size_t used;
    char text[NOTES_BYTES];
} notes;

static outcome fill_error(outcome result, gmem_error *error, gmem_status code, const char *path, const char *format,
                          va_list arguments) {
    error->code = code;
    error->offset = -1;
    snprintf(error->path, sizeof error->path, "%s", path ? path : "");
    vsnprintf(error->message, sizeof error->message, format, arguments);
    return result;
}

outcome failed(gmem_error *error, const char *path, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fill_error(OUTCOME_FAILED, error, GMEM_E_ARGUMENT, path, format, arguments);
    va_end(arguments);
    return OUTCOME_FAILED;
}

outcome misused(gmem_error *error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fill_error(OUTCOME_MISUSED, error, GMEM_E_ARGUMENT, NULL, format, arguments);
    va_end(arguments);
    return OUTCOME_MISUSED;
}

outcome out_of_memory(gmem_error *error) {
    failed(error, NULL, "out of memory");
    error->code = GMEM_E_MEMORY;
    return OUTCOME_FAILED;
}

outcome from_status(gmem_status status) {
    if (status == GMEM_OK) return OUTCOME_DONE;
    return status == GMEM_E_CANCELLED ? OUTCOME_INTERRUPTED : OUTCOME_FAILED;
}

/* Bytes that are not printable ASCII as \xNN. A backslash stays: the library has escaped its names already. */
static void print_plain(FILE *to, const char *text) {
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c >= 0x20 && c < 0x7f) {
            fputc(c, to);
        } else {
            fprintf(to, "\\x%02x", c);
        }
    }
}

void print_error(const gmem_error *error) {
    fputs("gmem: error: ", stderr);
    if (error->path[0]) {
        print_plain(stderr, error->path);
        fputs(": ", stderr);
    }
    print_plain(stderr, error->message);
    if (error->offset >= 0) fprintf(stderr, " (at byte %lld)", (long long)error->offset);
    fputc('\n', stderr);
}

void notes_begin(loudness level) {
    notes.level = level;
    notes.immediate = isatty(STDERR_FILENO);
    notes.used = 0;
}

static void add_note(const char *format, va_list arguments) {
    char line[1024];
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    size_t bytes = length < 0 ? 0 : (size_t)length < sizeof line - 1 ? (size_t)length : sizeof line - 2;
    line[bytes++] = '\n';
    if (notes.immediate) {
        fwrite(line, 1, bytes, stderr);
    } else if (bytes <= sizeof notes.text - notes.used) { /* a flood of details is cut, not the run stopped */
        memcpy(notes.text + notes.used, line, bytes);
        notes.used += bytes;
    }
}

void note(const char *format, ...) {
    va_list arguments;
    if (notes.level < LOUDNESS_NORMAL) return;
    va_start(arguments, format);
    add_note(format, arguments);
    va_end(arguments);
}

void detail(const char *format, ...) {
    va_list arguments;
    if (notes.level < LOUDNESS_VERBOSE) return;
    va_start(arguments, format);
    add_note(format, arguments);
    va_end(arguments);
}

void note_waiting(const char *format, ...) {
    va_list arguments;
    if (notes.level < (notes.immediate ? LOUDNESS_NORMAL : LOUDNESS_VERBOSE)) return;
    va_start(arguments, format);
    add_note(format, arguments);
    va_end(arguments);
}

void notes_end(int success) {
    if (success) fwrite(notes.text, 1, notes.used, stderr);
    notes.used = 0;
}

double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void progress_begin(progress_bar *bar) {
    bar->started = seconds_now();
    bar->drawn = 0;
    bar->visible = notes.level >= LOUDNESS_NORMAL && isatty(STDERR_FILENO);
}

enum { CELLS = 30 }; /* of the bar */

static const char *bar_cells(double fraction, char cells[CELLS + 1]) {
    const int filled = fraction >= 1 ? CELLS : (int)(CELLS * fraction);
    for (int i = 0; i < CELLS; i++) {
        cells[i] = i < filled ? '#' : '.';
    }
    cells[CELLS] = 0;
    return cells;
}

void progress_show_time(progress_bar *bar, double seconds, double of, const char *what) {
    char cells[CELLS + 1];
    if (bar->visible)
        fprintf(stderr, "\r[%s] %.0f of %.0f s: %s\033[K", bar_cells(seconds / of, cells), seconds, of, what);
}

void progress_show(progress_bar *bar, int64_t done, int64_t total, const char *unit) {
    char cells[CELLS + 1];
    double now = seconds_now(), elapsed = now - bar->started;
    if (!bar->visible || now - bar->drawn < 0.1) return; /* ten times a second is plenty */
    bar->drawn = now;
    double rate = elapsed > 0 ? (double)done / elapsed : 0;
    if (total <= 0) { /* an adaptive method does not know its end */
        fprintf(stderr, "\r%lld %s, %.2f a second\033[K", (long long)done, unit, rate);
        return;
    }
    int64_t left = rate > 0 ? (int64_t)((double)(total - done) / rate + 0.5) : 0;
    fprintf(stderr, "\r[%s] %lld/%lld %s, %.2f a second, %lld:%02lld left\033[K",
            bar_cells((double)done / (double)total, cells), (long long)done, (long long)total, unit, rate,
            (long long)(left / 60), (long long)(left % 60));
}

void progress_end(progress_bar *bar) {
    if (bar->visible) fputs("\r\033[K", stderr);
    bar->visible = 0;
}

/* JSON ------------------------------------------------------------------------------------------------------------ */

void json_begin(json_writer *json, FILE *to) {
    json->to = to;
    json->depth = 0;
    json->filled = 0;
    json->compact = 0;
}

/* Reads one code point at *text and moves past it; 0xfffd for bytes that are no UTF-8. */
static uint32_t next_code_point(const unsigned char **text) {
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    const unsigned char *s = *text;
    uint32_t point = *s;
    int more = point < 0x80 ? 0 : point >= 0xf0 && point < 0xf8 ? 3 : point >= 0xe0 ? 2 : 1;
    *text = s + 1;
    if (more == 0) return point;
    if (point < 0xc0 || point >= 0xf8) return 0xfffd;
    point &= 0x3fu >> more;
    for (int i = 1; i <= more; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0xfffd;
        point = point << 6 | (s[i] & 0x3f);
    }
    if (point < least[more] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return 0xfffd;
    *text = s + 1 + more;
    return point;
}

int is_utf8_line(const char *text) {
    const unsigned char *next = (const unsigned char *)text;
    while (*next) {
        const unsigned char *start = next;
        const uint32_t point = next_code_point(&next);
        if (point < 0x20 || point == 0x7f || (point == 0xfffd && next - start != 3)) return 0;
    }
    return 1;
}

static void json_string(FILE *to, const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    fputc('"', to);
    while (*s) {
        uint32_t point = next_code_point(&s);
        if (point == '"' || point == '\\') {
            fprintf(to, "\\%c", (int)point);
        } else if (point >= 0x20 && point < 0x7f) {
            fputc((int)point, to);
        } else if (point < 0x10000) {
            fprintf(to, "\\u%04x", (unsigned)point);
        } else {
            point -= 0x10000;
            fprintf(to, "\\u%04x\\u%04x", 0xd800u + (unsigned)(point >> 10), 0xdc00u + (unsigned)(point & 0x3ff));
        }
    }
    fputc('"', to);
}

static void json_line(const json_writer *json) {
    if (!json->compact) fprintf(json->to, "\n%*s", 2 * json->depth, "");
}

static void json_start(json_writer *json, const char *key) {
    if (json->filled) fputs(json->compact ? ", " : ",", json->to);
    if (json->depth > 0) json_line(json);
    if (key) {
        json_string(json->to, key);
        fputs(": ", json->to);
    }
    json->filled = 1;
}

void json_open(json_writer *json, const char *key, char bracket) {
    json_start(json, key);
    fputc(bracket, json->to);
    json->depth++;
    json->filled = 0;
}

void json_close(json_writer *json, char bracket) {
    json->depth--;
    if (json->filled) json_line(json);
    fputc(bracket, json->to);
    if (json->depth == 0 && !json->compact) fputc('\n', json->to);
    json->filled = 1;
}

void json_text(json_writer *json, const char *key, const char *text) {
    json_start(json, key);
    if (text) {
        json_string(json->to, text);
    } else {
        fputs("null", json->to);
    }
}

void json_integer(json_writer *json, const char *key, int64_t value) {
    json_start(json, key);
    fprintf(json->to, "%lld", (long long)value);
}

void json_unsigned(json_writer *json, const char *key, uint64_t value) {
    json_start(json, key);
    fprintf(json->to, "%llu", (unsigned long long)value);
}

void json_number(json_writer *json, const char *key, double value) {
    json_start(json, key);
    if (isfinite(value)) {
        fprintf(json->to, "%.9g", value);
    } else {
        fputs("null", json->to);
    }
}

void json_boolean(json_writer *json, const char *key, int value) {
    json_start(json, key);
    fputs(value ? "true" : "false", json->to);
}
