/* Errors as values: codes and their strings from one list, messages with escaped names and plain numbers. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>

GMEM_API const char *gmem_version(void) { return GMEM_VERSION; }

GMEM_API const char *gmem_status_name(gmem_status status) {
    static const char *const names[] = {
#define GMEM__STATUS_NAME(name, text) #name,
        GMEM_STATUS_LIST(GMEM__STATUS_NAME)
#undef GMEM__STATUS_NAME
    };
    return (int)status >= 0 && status < GMEM_STATUS_COUNT ? names[status] : "E_UNKNOWN";
}

GMEM_API const char *gmem_status_text(gmem_status status) {
    static const char *const texts[] = {
#define GMEM__STATUS_TEXT(name, text) text,
        GMEM_STATUS_LIST(GMEM__STATUS_TEXT)
#undef GMEM__STATUS_TEXT
    };
    return (int)status >= 0 && status < GMEM_STATUS_COUNT ? texts[status] : "unknown error";
}

static void gmem__copy_text(char *out, size_t bytes, const char *text) {
    size_t length = strlen(text);
    if (length >= bytes) length = bytes - 1;
    memcpy(out, text, length);
    out[length] = 0;
}

static void gmem__set_error(gmem_error *error, gmem_status code, const char *path, int64_t offset, const char *format,
                            va_list arguments) {
    if (!error) return;
    error->code = code;
    error->offset = offset;
    gmem__copy_text(error->path, sizeof error->path, path ? path : "");
    vsnprintf(error->message, sizeof error->message, format, arguments);
}

GMEM__FN gmem_status gmem__fail(gmem_error *error, gmem_status code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    gmem__set_error(error, code, NULL, -1, format, arguments);
    va_end(arguments);
    return code;
}

GMEM__FN gmem_status gmem__fail_at(gmem_error *error, gmem_status code, const char *path, int64_t offset,
                                   const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    gmem__set_error(error, code, path, offset, format, arguments);
    va_end(arguments);
    return code;
}

GMEM__FN gmem_status gmem__fail_in(gmem_error *error, gmem_status code, const char *path) {
    if (error && code != GMEM_OK && !error->path[0]) gmem__copy_text(error->path, sizeof error->path, path);
    return code;
}

GMEM__FN gmem_error gmem__callback_error(void) {
    gmem_error error;
    memset(&error, 0, sizeof error);
    error.offset = -1;
    return error;
}

GMEM__FN gmem_status gmem__fail_callback(gmem_error *error, gmem_status status, const gmem_error *from,
                                         const char *who) {
    if (status == GMEM_OK || !error) return status;
    if (!from->message[0]) return gmem__fail(error, status, "%s failed: %s", who, gmem_status_text(status));
    *error = *from;
    error->code = status;
    return status;
}

GMEM_API const char *gmem_escape(const char *text, char *out, size_t bytes) {
    static const char digits[] = "0123456789abcdef";
    size_t used = 0;
    if (bytes == 0) return out;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        int plain = c >= 0x20 && c < 0x7f && c != '\\';
        size_t need = plain ? 1 : 4;
        if (used + need >= bytes) break;
        if (plain) {
            out[used++] = (char)c;
        } else {
            out[used++] = '\\';
            out[used++] = 'x';
            out[used++] = digits[c >> 4];
            out[used++] = digits[c & 15];
        }
    }
    out[used] = 0;
    return out;
}

GMEM__FN const char *gmem__quote(gmem__quoted *buffer, const char *name) {
    return gmem_escape(name, buffer->text, sizeof buffer->text);
}

GMEM__FN const char *gmem__shape_text(gmem__quoted *buffer, const int64_t *shape, int rank) {
    size_t used = 0;
    if (rank == 0) gmem__copy_text(buffer->text, sizeof buffer->text, "scalar");
    for (int i = 0; i < rank && used < sizeof buffer->text; i++) {
        const char *format = i == 0 ? "%lld" : " x %lld";
        if (shape[i] < 0) { /* a dimension that may be anything */
            used += (size_t)snprintf(buffer->text + used, sizeof buffer->text - used, i == 0 ? "any" : " x any");
        } else {
            used += (size_t)snprintf(buffer->text + used, sizeof buffer->text - used, format, (long long)shape[i]);
        }
    }
    return buffer->text;
}

GMEM__FN const char *gmem__format_double(gmem__quoted *buffer, double value) {
    snprintf(buffer->text, sizeof buffer->text, "%.9g", value);
    for (char *c = buffer->text; *c; c++) {
        if (*c == ',') *c = '.';
    }
    return buffer->text;
}

/* strtod obeys the locale, so the text is checked here and its point replaced by whatever the locale wants. */
GMEM__FN int gmem__parse_double(const char *text, size_t bytes, double *out) {
    char copy[64], point[8];
    size_t used = 0;
    int digits = 0;
    if (bytes == 0 || bytes > 40) return 0;
    snprintf(point, sizeof point, "%.1f", 0.5);
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (c == '.') {
            for (const char *p = point + 1; *p && *p != '5'; p++)
                copy[used++] = *p;
            continue;
        }
        if (c >= '0' && c <= '9')
            digits = 1;
        else if (c != '-' && c != '+' && c != 'e' && c != 'E')
            return 0;
        copy[used++] = c;
    }
    if (!digits) return 0;
    copy[used] = 0;
    char *end = NULL;
    double value = strtod(copy, &end);
    if (end != copy + used || !(value - value == 0.0)) return 0;
    *out = value;
    return 1;
}
