/* Pictures into files. A grid is written at the end, separate files as they are done: a long run keeps what it has. */
#define _POSIX_C_SOURCE 200809L
#include "output.h"

#include "interrupt.h"
#include "terminal.h"

#include <stdlib.h>
#include <string.h>

#define MOST_FILES 10000000

/* The one %d or %0Nd of a pattern: where it begins, its width, where it ends. */
static int find_number(const char *path, const char **begin, int *width, const char **end) {
    const char *c = strchr(path, '%');
    *begin = c++;
    *width = 0;
    if (*c == '0' && c[1] >= '1' && c[1] <= '9') {
        *width = c[1] - '0';
        c += 2;
    }
    *end = c + 1;
    return *c == 'd' && !strchr(*end, '%');
}

static const char *numbered_path(const char *pattern, int64_t index, char *out, size_t bytes) {
    const char *begin, *end;
    int width;
    find_number(pattern, &begin, &width, &end);
    snprintf(out, bytes, "%.*s%0*lld%s", (int)(begin - pattern), pattern, width, (long long)index, end);
    return out;
}

outcome output_check(output *out, const arguments *args, gmem_error *error) {
    const char *begin, *end;
    char first[4096];
    int width;
    out->args = args;
    out->path = args->output ? args->output : "gmem.png";
    if (strlen(out->path) > sizeof first - 32) return misused(error, "--output: the name is too long");
    out->separate = strchr(out->path, '%') != NULL;
    TRY(check_pictures_kept(&args->like, out->path, error));
    if (!out->separate) return check_output(out->path, error);
    if (!find_number(out->path, &begin, &width, &end))
        return misused(error, "--output: expected one number like %%03d in the name, found '%s'", out->path);
    if (args->show) return misused(error, "--show prints one picture: leave out the %% of --output");
    return check_output(numbered_path(out->path, 0, first, sizeof first), error);
}

outcome output_begin(output *out, gmem_context *context, int64_t count, int columns, int width, int height,
                     gmem_error *error) {
    out->context = context;
    out->count = count;
    out->columns = columns;
    out->width = width;
    out->height = height;
    if (out->separate) return OUTCOME_DONE;
    if (count > MOST_FILES || !grid_make(&out->sheet, (int)count, columns, width, height, count > 1))
        return failed(error, out->path, "%lld pictures are too many for one: put %%03d into the name for a file each",
                      (long long)count);
    out->item_stream = open_memstream(&out->item_list, &out->item_bytes);
    out->name_stream = open_memstream(&out->name_list, &out->name_bytes);
    return out->item_stream && out->name_stream ? OUTCOME_DONE : out_of_memory(error);
}

/* One PNG file, and what the picture shows beside what all have in common. */
static outcome write_png(output *out, const char *path, const unsigned char *pixels, int width, int height,
                         const char *items, const char *names, gmem_error *error) {
    size_t bytes = 0;
    int texts = out->text_count;
    if (items && items[0]) {
        out->texts[texts].key = out->items;
        out->texts[texts++].value = items;
    }
    if (names && names[0]) {
        out->texts[texts].key = "names";
        out->texts[texts++].value = names;
    }
    TRY(interrupt_check(error));
    unsigned char *png = png_encode(pixels, width, height, out->texts, texts, &bytes);
    if (!png) return out_of_memory(error);
    outcome result = from_status(gmem_save_bytes(out->context, path, png, bytes, error));
    if (result == OUTCOME_DONE && out->args->show) terminal_show(pixels, width, height, png, bytes);
    free(png);
    return result;
}

outcome output_put(output *out, int64_t index, int64_t cell, const unsigned char *pixels, const caption *c,
                   gmem_error *error) {
    char path[4200];
    if (out->separate)
        return write_png(out, numbered_path(out->path, index, path, sizeof path), pixels, out->width, out->height,
                         c->item, c->name, error);
    grid_put(&out->sheet, (int)cell, pixels, c->label);
    fprintf(out->item_stream, "%s%s", index ? "," : "", c->item);
    if (c->name) fprintf(out->name_stream, "%s%s", index ? "\n" : "", c->name);
    return OUTCOME_DONE;
}

void output_original(output *out, int64_t cell, const unsigned char *pixels, const char *name) {
    if (!out->separate) grid_put(&out->sheet, (int)cell, pixels, name);
}

outcome output_end(output *out, gmem_error *error) {
    if (out->separate) return OUTCOME_DONE;
    if (fflush(out->item_stream) != 0 || fflush(out->name_stream) != 0) return out_of_memory(error);
    return write_png(out, out->path, out->sheet.pixels, out->sheet.width, out->sheet.height, out->item_list,
                     out->name_list, error);
}

void output_free(output *out) {
    if (out->item_stream) fclose(out->item_stream);
    if (out->name_stream) fclose(out->name_stream);
    free(out->item_list);
    free(out->name_list);
    if (out->sheet.pixels) grid_free(&out->sheet);
}
