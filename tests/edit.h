/* Files that differ from a given one, made in memory: a list of tensors to edit, written out as safetensors. */
#ifndef EDIT_H
#define EDIT_H

#include "../src/api.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EDIT_MAX_TENSORS = 1024, EDIT_MAX_OWNED = 1024, EDIT_MAX_METADATA = 8 };

typedef struct edit_list {
    gmem_tensor tensors[EDIT_MAX_TENSORS]; /* names and data belong to the file they came from, or to `owned` */
    int count;
    void *owned[EDIT_MAX_OWNED];
    int owned_count;
    const char *metadata[2 * EDIT_MAX_METADATA]; /* keys and values without anything to escape */
    int metadata_count;
    char *memory; /* the file, once written */
    size_t bytes;
} edit_list;

static inline void *edit_own(edit_list *list, size_t bytes) {
    void *memory = calloc(bytes + 1, 1);
    if (!memory || list->owned_count == EDIT_MAX_OWNED) exit(1);
    list->owned[list->owned_count++] = memory;
    return memory;
}

static inline edit_list *edit_new(void) {
    edit_list *list = (edit_list *)calloc(1, sizeof *list);
    if (!list) exit(1);
    return list;
}

static inline edit_list *edit_of(const gmem_file *file) {
    edit_list *list = edit_new();
    for (int64_t i = 0; i < gmem_file_tensor_count(file) && list->count < EDIT_MAX_TENSORS; i++) {
        list->tensors[list->count++] = *gmem_file_tensor(file, i);
    }
    return list;
}

static inline void edit_free(edit_list *list) {
    for (int i = 0; i < list->owned_count; i++) {
        free(list->owned[i]);
    }
    free(list->memory);
    free(list);
}

static inline gmem_tensor *edit_find(edit_list *list, const char *name) {
    for (int i = 0; i < list->count; i++) {
        if (strcmp(list->tensors[i].name, name) == 0) return &list->tensors[i];
    }
    printf("no tensor %s to edit\n", name);
    exit(1);
}

/* Adds a tensor over the caller's memory; zeros where `data` is NULL. */
static inline void edit_add(edit_list *list, const char *name, gmem_type type, int rank, const int64_t *shape,
                            const void *data) {
    gmem_tensor tensor = gmem_tensor_make(name, type, rank, shape, data);
    if (!data) tensor.data = edit_own(list, (size_t)gmem_tensor_count(&tensor) * gmem_type_bytes(type));
    if (list->count == EDIT_MAX_TENSORS) exit(1);
    list->tensors[list->count++] = tensor;
}

static inline void edit_drop(edit_list *list, const char *name) {
    gmem_tensor *tensor = edit_find(list, name);
    *tensor = list->tensors[--list->count];
}

/* Drops every tensor whose name begins with `prefix`. */
static inline void edit_drop_all(edit_list *list, const char *prefix) {
    int kept = 0;
    for (int i = 0; i < list->count; i++) {
        if (strncmp(list->tensors[i].name, prefix, strlen(prefix)) != 0) list->tensors[kept++] = list->tensors[i];
    }
    list->count = kept;
}

/* Gives a tensor another type or shape, and zeros for it. */
static inline void edit_replace(edit_list *list, const char *name, gmem_type type, int rank, const int64_t *shape) {
    gmem_tensor *tensor = edit_find(list, name);
    *tensor = gmem_tensor_make(tensor->name, type, rank, shape, NULL);
    tensor->data = edit_own(list, (size_t)gmem_tensor_count(tensor) * gmem_type_bytes(type));
}

/* A tensor's values in memory of the list. */
static inline float *edit_values(edit_list *list, const gmem_tensor *tensor) {
    int64_t count = gmem_tensor_count(tensor);
    float *values = (float *)edit_own(list, (size_t)count * sizeof *values);
    gmem_tensor_read_f32(tensor, 0, count, values);
    return values;
}

/* Tensor i of `stored` in another type; tensor i of `rounded` in f32 with the values that are left. Both hold the same
 * tensors. */
static inline void edit_round(edit_list *stored, edit_list *rounded, int i, gmem_type type) {
    gmem_tensor *narrow = &stored->tensors[i], *wide = &rounded->tensors[i];
    int64_t count = gmem_tensor_count(narrow);
    void *converted = edit_own(stored, (size_t)count * gmem_type_bytes(type));
    gmem_convert_f32(edit_values(stored, narrow), count, type, converted);
    *narrow = gmem_tensor_make(narrow->name, type, narrow->rank, narrow->shape, converted);
    *wide = gmem_tensor_make(wide->name, GMEM_F32, wide->rank, wide->shape, edit_values(rounded, narrow));
}

/* The same for int8 with a scale for each row, `NAME.scale`, which takes the row's largest value to 127. */
static inline void edit_quantise(edit_list *stored, edit_list *rounded, int i) {
    gmem_tensor *narrow = &stored->tensors[i], *wide = &rounded->tensors[i];
    int64_t rows = narrow->shape[0], columns = gmem_tensor_count(narrow) / rows;
    float *values = edit_values(rounded, narrow), *scales = (float *)edit_own(stored, (size_t)rows * sizeof *scales);
    signed char *levels = (signed char *)edit_own(stored, (size_t)(rows * columns));
    size_t room = strlen(narrow->name) + sizeof ".scale";
    char *scale_name = (char *)edit_own(stored, room);
    snprintf(scale_name, room, "%s.scale", narrow->name);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t at = row * columns; at < (row + 1) * columns; at++) {
            scales[row] = fmaxf(scales[row], fabsf(values[at]) / 127);
        }
        for (int64_t at = row * columns; at < (row + 1) * columns; at++) {
            levels[at] = (signed char)(scales[row] > 0 ? lrintf(values[at] / scales[row]) : 0);
            values[at] = (float)levels[at] * scales[row];
        }
    }
    *narrow = gmem_tensor_make(narrow->name, GMEM_I8, narrow->rank, narrow->shape, levels);
    *wide = gmem_tensor_make(wide->name, GMEM_F32, wide->rank, wide->shape, values);
    edit_add(stored, scale_name, GMEM_F32, 1, &rows, scales);
}

static inline void edit_prefix_all(edit_list *list, const char *prefix) {
    for (int i = 0; i < list->count; i++) {
        size_t bytes = strlen(prefix) + strlen(list->tensors[i].name) + 1;
        char *name = (char *)edit_own(list, bytes);
        snprintf(name, bytes, "%s%s", prefix, list->tensors[i].name);
        list->tensors[i].name = name;
    }
}

static inline void edit_metadata(edit_list *list, const char *key, const char *value) {
    list->metadata[2 * list->metadata_count] = key;
    list->metadata[2 * list->metadata_count++ + 1] = value;
}

static inline size_t edit_tensor_bytes(const gmem_tensor *tensor) {
    return (size_t)gmem_tensor_count(tensor) * gmem_type_bytes(tensor->type);
}

/* The safetensors header; returns its end. */
static inline size_t edit_write_header(edit_list *list) {
    size_t at = 8, data = 0;
    at += (size_t)sprintf(list->memory + at, "{\"__metadata__\":{");
    for (int i = 0; i < list->metadata_count; i++) {
        at += (size_t)sprintf(list->memory + at, "%s\"%s\":\"%s\"", i ? "," : "", list->metadata[2 * i],
                              list->metadata[2 * i + 1]);
    }
    at += (size_t)sprintf(list->memory + at, "}");
    for (int i = 0; i < list->count; i++) {
        const gmem_tensor *tensor = &list->tensors[i];
        at += (size_t)sprintf(list->memory + at, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensor->name,
                              gmem_type_name(tensor->type));
        for (int j = 0; j < tensor->rank; j++) {
            at += (size_t)sprintf(list->memory + at, "%s%lld", j ? "," : "", (long long)tensor->shape[j]);
        }
        at += (size_t)sprintf(list->memory + at, "],\"data_offsets\":[%lld,%lld]}", (long long)data,
                              (long long)(data + edit_tensor_bytes(tensor)));
        data += edit_tensor_bytes(tensor);
    }
    at += (size_t)sprintf(list->memory + at, "}");
    while (at % 64 != 0) {
        list->memory[at++] = ' ';
    }
    return at;
}

/* Fills `memory` and `bytes`. Tensors must be contiguous. */
static inline void edit_write(edit_list *list) {
    size_t room = 4096, at;
    for (int i = 0; i < list->count; i++) {
        room += strlen(list->tensors[i].name) + 512 + edit_tensor_bytes(&list->tensors[i]);
    }
    for (int i = 0; i < 2 * list->metadata_count; i++) {
        room += strlen(list->metadata[i]) + 8;
    }
    free(list->memory);
    list->memory = (char *)calloc(room, 1);
    if (!list->memory) exit(1);
    at = edit_write_header(list);
    for (int i = 0; i < 8; i++) {
        list->memory[i] = (char)(unsigned char)((at - 8) >> (8 * i));
    }
    for (int i = 0; i < list->count; i++) {
        size_t bytes = edit_tensor_bytes(&list->tensors[i]);
        if (bytes) memcpy(list->memory + at, list->tensors[i].data, bytes);
        at += bytes;
    }
    list->bytes = at;
}

/* The list as an opened file; the list must outlive it. */
static inline gmem_file *edit_open(gmem_context *context, edit_list *list) {
    gmem_file *file = NULL;
    gmem_error error;
    memset(&error, 0, sizeof error);
    edit_write(list);
    if (gmem_file_open_memory(context, "edited", list->memory, list->bytes, NULL, &file, &error) != GMEM_OK) {
        printf("cannot open the edited file: %s\n", error.message);
        exit(1);
    }
    return file;
}

/* The list as a file on disk. */
static inline void edit_save(edit_list *list, const char *path) {
    FILE *file = fopen(path, "wb");
    edit_write(list);
    if (!file || fwrite(list->memory, 1, list->bytes, file) != list->bytes || fclose(file) != 0) {
        printf("cannot write %s\n", path);
        exit(1);
    }
}

#endif /* EDIT_H */
