/* What tuning found, kept in the cache folder: a text file for each device, driver and version of gmem, which people
 * may read. It is taken for no more than a suggestion: every line that does not fit the device is passed over.
 */
#include "tune.h"

#ifndef GMEM_NO_OPENCL

#include <stdio.h>

#define GMEM__TUNE_LINE 512

static const char *const gmem__way_names[] = {"auto", "own", "tile", "clblast"};

static int gmem__find_name(const char *name, const char *const *names, int count) {
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

GMEM__FN const char *gmem__way_name(gmem__cl_way way) { return gmem__way_names[way]; }

/* the file's name ------------------------------------------------------------------------------------------------- */

/* What the file is for, its first line. */
static const char *gmem__tune_key(const struct gmem__device *device, char out[GMEM__TUNE_LINE]) {
    const gmem__cl_limits *limits = &device->found.limits;
    snprintf(out, GMEM__TUNE_LINE, "gmem %s, tuning of %s, driver %s, %s, %s", GMEM_VERSION, limits->name,
             limits->driver, limits->version, limits->platform);
    return out;
}

static const char *gmem__tune_file(const struct gmem__device *device, char out[40]) {
    char line[GMEM__TUNE_LINE];
    const char *key = gmem__tune_key(device, line);
    const uint64_t hash = gmem__fnv1a(key, (int64_t)strlen(key));
    snprintf(out, 40, "tuning-%08x%08x.txt", (unsigned)(hash >> 32), (unsigned)(hash & 0xffffffffu));
    return out;
}

/* writing --------------------------------------------------------------------------------------------------------- */

typedef struct gmem__tune_text {
    char bytes[8192];
    size_t used; /* more than there is room for: too long */
} gmem__tune_text;

static void gmem__tune_write(gmem__tune_text *text, const char *format, ...) GMEM__PRINTF(2, 3);
static void gmem__tune_write(gmem__tune_text *text, const char *format, ...) {
    va_list arguments;
    if (text->used >= sizeof text->bytes) return;
    va_start(arguments, format);
    const int length = vsnprintf(text->bytes + text->used, sizeof text->bytes - text->used, format, arguments);
    va_end(arguments);
    text->used = length < 0 ? sizeof text->bytes : text->used + (size_t)length;
}

static void gmem__tune_write_set(gmem__tune_text *text, gmem__tune_set_id id, const gmem__tune_point *point) {
    const gmem__tune_set *set = gmem__tune_get_set(id);
    gmem__tune_write(text, "set %s", set->name);
    for (int i = 0; i < set->count; i++)
        gmem__tune_write(text, " %s=%d", set->parameters[i].name, point->values[i]);
    gmem__tune_write(text, "\n");
}

GMEM__FN gmem_status gmem__tune_save(const struct gmem__device *device, const char *cache_dir,
                                     const gmem__tune_found *found, gmem_error *error) {
    char name[40], key[GMEM__TUNE_LINE];
    gmem__tune_point tiles;
    gmem__tune_text *text = (gmem__tune_text *)gmem__alloc(device->context, 1, sizeof *text);
    if (!text) return gmem__fail(error, GMEM_E_MEMORY, "no memory for what tuning found");
    gmem__tune_write(text, "%s\n", gmem__tune_key(device, key));
    for (int id = 0; id < GMEM__TUNE_CLBLAST_SETS; id++)
        if (found->has[id]) gmem__tune_write_set(text, (gmem__tune_set_id)id, &found->points[id]);
    for (int id = GMEM__TUNE_OWN; id < GMEM__TUNE_SETS; id++) {
        gmem__tune_get_tiles(&found->tuning.tiles, (gmem__tune_set_id)id, &tiles);
        gmem__tune_write_set(text, (gmem__tune_set_id)id, &tiles);
    }
    for (int i = 0; i < found->tuning.shape_count; i++)
        gmem__tune_write(text, "shape %lld %lld %lld %s\n", (long long)found->tuning.shapes[i].rows,
                         (long long)found->tuning.shapes[i].depth, (long long)found->tuning.shapes[i].columns,
                         gmem__way_name(found->tuning.shapes[i].way));
    const gmem_status status = text->used >= sizeof text->bytes
                                   ? gmem__fail(error, GMEM_E_OVERFLOW, "what tuning found is too long for its file")
                                   : gmem__cl_cache_write(device->context, cache_dir, gmem__tune_file(device, name),
                                                          text->bytes, (int64_t)text->used, error);
    gmem__free(device->context, text, 1, sizeof *text);
    return status;
}

/* reading --------------------------------------------------------------------------------------------------------- */

/* The words of a line, which loses its spaces. */
#define GMEM__TUNE_WORDS (GMEM__TUNE_PARAMETERS + 4)

static int gmem__tune_split(char *line, char *words[GMEM__TUNE_WORDS]) {
    int count = 0;
    for (char *at = line; *at;) {
        while (*at == ' ')
            *at++ = 0;
        if (!*at || count == GMEM__TUNE_WORDS) break;
        words[count++] = at;
        while (*at && *at != ' ')
            at++;
    }
    return count;
}

/* 0 to 999999 in digits; -1 for anything else. */
static int gmem__tune_number(const char *text) {
    int value = 0, digits = 0;
    for (; *text >= '0' && *text <= '9' && digits < 6; text++, digits++)
        value = 10 * value + (*text - '0');
    return digits > 0 && !*text ? value : -1;
}

static gmem__tune_set_id gmem__tune_find_set(const char *name) {
    int id = 0;
    while (id < GMEM__TUNE_SETS && strcmp(name, gmem__tune_get_set((gmem__tune_set_id)id)->name) != 0)
        id++;
    return (gmem__tune_set_id)id;
}

/* NAME=VALUE of a set; 0 where the set has no such parameter. */
static int gmem__tune_read_value(const gmem__tune_set *set, char *word, gmem__tune_point *point) {
    char *equals = strchr(word, '=');
    if (!equals) return 0;
    *equals = 0;
    for (int i = 0; i < set->count; i++) {
        if (strcmp(word, set->parameters[i].name) != 0) continue;
        point->values[i] = gmem__tune_number(equals + 1);
        return 1;
    }
    return 0;
}

/* "set NAME PARAMETER=VALUE ...": all of them, and fit for the device. */
static int gmem__tune_read_set(const gmem__cl_limits *limits, char **words, int count, gmem__tune_found *found) {
    gmem__tune_point point;
    const gmem__tune_set_id id = gmem__tune_find_set(words[1]);
    if (id == GMEM__TUNE_SETS || count != 2 + gmem__tune_get_set(id)->count) return 0;
    memset(&point, 0xff, sizeof point); /* -1, which no parameter may be */
    for (int i = 2; i < count; i++)
        if (!gmem__tune_read_value(gmem__tune_get_set(id), words[i], &point)) return 0;
    if (!gmem__tune_fits(id, &point, limits)) return 0;
    if (id < GMEM__TUNE_CLBLAST_SETS) {
        found->has[id] = 1;
        found->points[id] = point;
    } else {
        gmem__tune_set_tiles(&found->tuning.tiles, id, &point);
    }
    return 1;
}

/* "shape ROWS DEPTH COLUMNS WAY" */
static int gmem__tune_read_shape(const gmem__cl_library *library, char **words, int count, gmem__cl_tuning *out) {
    const int most = (int)(sizeof out->shapes / sizeof *out->shapes);
    if (count != 5 || out->shape_count == most) return 0;
    const int rows = gmem__tune_number(words[1]), depth = gmem__tune_number(words[2]),
              columns = gmem__tune_number(words[3]);
    const int way = gmem__find_name(words[4], gmem__way_names, (int)(sizeof gmem__way_names / sizeof(char *)));
    if (rows < 1 || depth < 1 || columns < 1 || way < 0 || (way == GMEM__CL_WAY_CLBLAST && !library->has_clblast))
        return 0;
    out->shapes[out->shape_count].rows = rows;
    out->shapes[out->shape_count].depth = depth;
    out->shapes[out->shape_count].columns = columns;
    out->shapes[out->shape_count++].way = (gmem__cl_way)way;
    return 1;
}

static int gmem__tune_read_line(const struct gmem__device *device, char *line, gmem__tune_found *found) {
    char *words[GMEM__TUNE_WORDS];
    const int count = gmem__tune_split(line, words);
    if (count == 0 || words[0][0] == '#') return 1;
    if (count > 1 && strcmp(words[0], "set") == 0)
        return gmem__tune_read_set(&device->found.limits, words, count, found);
    return strcmp(words[0], "shape") == 0 && gmem__tune_read_shape(&device->library, words, count, &found->tuning);
}

/* Copies the line at *at, without its end, and moves behind it; 0 at the end, or for a line that is no text. */
static int gmem__tune_next_line(const gmem__bytes *bytes, int64_t *at, char line[GMEM__TUNE_LINE]) {
    int64_t length = 0;
    if (*at >= bytes->size) return 0;
    while (*at + length < bytes->size && bytes->data[*at + length] != '\n')
        length++;
    if (length >= GMEM__TUNE_LINE || memchr(bytes->data + *at, 0, (size_t)length)) return 0;
    memcpy(line, bytes->data + *at, (size_t)length);
    line[length] = 0;
    *at += length + 1;
    return 1;
}

/* Returns how many lines were passed over, or -1 for the file of something else. */
static int gmem__tune_read(const struct gmem__device *device, const gmem__bytes *bytes, gmem__tune_found *found) {
    char line[GMEM__TUNE_LINE], key[GMEM__TUNE_LINE];
    int64_t at = 0;
    int ignored = 0;
    if (!gmem__tune_next_line(bytes, &at, line) || strcmp(line, gmem__tune_key(device, key)) != 0) return -1;
    while (gmem__tune_next_line(bytes, &at, line))
        ignored += !gmem__tune_read_line(device, line, found);
    return ignored + (at < bytes->size);
}

/* Together they may still want what the device has not. */
static void gmem__tune_take(struct gmem__device *device, const gmem__tune_found *found) {
    gmem_error why;
    if (gmem__product_tiles_fit(&found->tuning.tiles, &device->found.limits)) device->tuning = found->tuning;
    for (int id = 0; id < GMEM__TUNE_CLBLAST_SETS && device->library.has_clblast; id++) {
        if (!found->has[id]) continue;
        if (gmem__tune_apply(device, (gmem__tune_set_id)id, &found->points[id], &why) != GMEM_OK)
            gmem__log(device->context, "%s keeps CLBlast's parameters of %s: %s", device->backend,
                      gmem__tune_get_set((gmem__tune_set_id)id)->name, why.message);
    }
}

GMEM__FN int gmem__tune_load(const struct gmem__device *device, const char *cache_dir, gmem__tune_found *out) {
    char name[40];
    gmem__bytes bytes;
    memset(out, 0, sizeof *out);
    if (!cache_dir ||
        gmem__cl_cache_read(device->context, cache_dir, gmem__tune_file(device, name), &bytes, NULL) != GMEM_OK)
        return 0;
    out->tuning = device->tuning;
    out->tuning.shape_count = 0;
    out->tuning.tuned = 1;
    const int ignored = gmem__tune_read(device, &bytes, out);
    gmem__bytes_close(device->context, &bytes);
    if (ignored != 0)
        gmem__log(device->context, "%s: %s", name,
                  ignored < 0 ? "what was tuned is for another device"
                              : "lines that do not fit the device are ignored");
    return ignored >= 0;
}

GMEM__FN void gmem__device_tuning_load(struct gmem__device *device, const char *cache_dir) {
    char name[40];
    gmem__tune_found found;
    if (!gmem__tune_load(device, cache_dir, &found)) return;
    gmem__tune_take(device, &found);
    gmem__log(device->context, "%s: tuned parameters of %s/%s", device->backend, cache_dir,
              gmem__tune_file(device, name));
}

#endif /* GMEM_NO_OPENCL */
