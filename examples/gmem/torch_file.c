/* torch.save's format: a zip archive of stored entries, a pickle of the object and the values of each tensor in an
 * entry of its own, aligned for mapping. Field names follow PKWARE's APPNOTE.TXT. */
#define _POSIX_C_SOURCE 200809L
#include "torch_file.h"

#include "crc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ALIGNMENT  64                 /* of every entry's data, as torch writes it */
#define CHUNK      ((int64_t)1 << 18) /* elements */
#define SATURATED  0xffffffffu        /* what 32 bits cannot hold is in a zip64 field */
#define ATTEMPTS   100
#define NAME_BYTES 48

typedef struct entry {
    char name[NAME_BYTES];
    uint32_t crc;
    int64_t size, header;
} entry;

typedef struct writer {
    const char *path;
    const torch_content *content;
    gmem_error *error;
    FILE *file;
    int64_t at;
    crc_table crc;
    entry *entries; /* (entry_count) */
    int64_t entry_count;
    float *chunk; /* (CHUNK) */
} writer;

/* bytes ----------------------------------------------------------------------------------------------------------- */

/* Failures show in ferror, which is asked once a chunk. */
static void put(writer *w, const void *data, size_t bytes) { w->at += (int64_t)fwrite(data, 1, bytes, w->file); }

static void put_text(FILE *to, const char *text) { fputs(text, to); }

/* Little-endian. */
static void print_number(FILE *to, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) {
        putc((int)(value >> 8 * i & 255), to);
    }
}

static void number(writer *w, uint64_t value, int bytes) {
    print_number(w->file, value, bytes);
    w->at += bytes;
}

static outcome cannot_write(const writer *w) {
    return failed(w->error, w->path, "cannot write: %s", strerror(errno ? errno : EIO));
}

static outcome check(const writer *w) { return ferror(w->file) ? cannot_write(w) : OUTCOME_DONE; }

/* the pickle ------------------------------------------------------------------------------------------------------ */

static void pickle_integer(FILE *to, int64_t value) {
    if (value >= 0 && value < 256) {
        putc('K', to); /* BININT1 */
        print_number(to, (uint64_t)value, 1);
    } else if (value >= INT32_MIN && value <= INT32_MAX) {
        putc('J', to); /* BININT */
        print_number(to, (uint64_t)value, 4);
    } else {
        putc(0x8a, to); /* LONG1 of eight bytes */
        print_number(to, 8, 1);
        print_number(to, (uint64_t)value, 8);
    }
}

static void pickle_string(FILE *to, const char *text) {
    putc('X', to); /* BINUNICODE */
    print_number(to, strlen(text), 4);
    put_text(to, text);
}

static void pickle_tuple(FILE *to, const int64_t *values, int count) {
    putc('(', to); /* MARK */
    for (int i = 0; i < count; i++) {
        pickle_integer(to, values[i]);
    }
    putc('t', to); /* TUPLE */
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks); the storage is a persistent id. */
static void pickle_tensor(FILE *to, const gmem_tensor *tensor, int64_t index) {
    char key[24];
    snprintf(key, sizeof key, "%lld", (long long)index);
    put_text(to, "ctorch._utils\n_rebuild_tensor_v2\n((");
    pickle_string(to, "storage");
    put_text(to, "ctorch\nFloatStorage\n");
    pickle_string(to, key);
    pickle_string(to, "cpu");
    pickle_integer(to, gmem_tensor_count(tensor));
    put_text(to, "tQ"); /* BINPERSID */
    pickle_integer(to, 0);
    pickle_tuple(to, tensor->shape, tensor->rank);
    pickle_tuple(to, tensor->stride, tensor->rank);
    put_text(to, "\x89"
                 "ccollections\nOrderedDict\n)RtR");
}

static void pickle_tensors(FILE *to, const gmem_save_desc *desc) {
    put_text(to, "}("); /* EMPTY_DICT, MARK */
    for (int64_t i = 0; i < desc->count; i++) {
        pickle_string(to, desc->tensors[i].name);
        pickle_tensor(to, &desc->tensors[i], i);
    }
    putc('u', to); /* SETITEMS */
}

static void pickle_settings(FILE *to, const torch_content *content) {
    put_text(to, "}(");
    for (int i = 0; i < content->setting_count; i++) {
        const torch_setting *setting = &content->settings[i];
        pickle_string(to, setting->name);
        if (setting->is_boolean) {
            putc(setting->value ? 0x88 : 0x89, to); /* NEWTRUE, NEWFALSE */
        } else {
            pickle_integer(to, setting->value);
        }
    }
    putc('u', to);
}

static void pickle_content(FILE *to, const torch_content *content) {
    put_text(to, "\x80\2"); /* protocol 2 */
    if (content->bare) {
        pickle_tensor(to, &content->tensors->tensors[0], 0);
    } else if (!content->key) {
        pickle_tensors(to, content->tensors);
    } else {
        put_text(to, "}(");
        pickle_string(to, content->key);
        pickle_tensors(to, content->tensors);
        pickle_string(to, "config");
        pickle_settings(to, content);
        putc('u', to);
    }
    putc('.', to); /* STOP */
}

/* the archive ----------------------------------------------------------------------------------------------------- */

/* The local header, with torch's padding field "FB" so that the data begins aligned. Sizes and checksum follow the
 * data, in a descriptor. */
static entry *entry_begin(writer *w, const char *name, int64_t size) {
    entry *e = &w->entries[w->entry_count++];
    snprintf(e->name, sizeof e->name, "archive/%s", name);
    e->header = w->at;
    e->size = size;
    e->crc = 0;
    const int wide = size >= SATURATED;
    const int64_t fields = w->at + 30 + (int64_t)strlen(e->name) + (wide ? 20 : 0) + 4;
    const int64_t padding = (ALIGNMENT - fields % ALIGNMENT) % ALIGNMENT;
    put(w, "PK\3\4", 4);
    number(w, wide ? 45 : 20, 2);   /* version needed */
    number(w, 1 << 3 | 1 << 11, 2); /* a descriptor; UTF-8 */
    number(w, 0, 2);                /* stored */
    number(w, 0, 4);                /* no time: the same file each time */
    number(w, 0, 4);
    number(w, wide ? SATURATED : 0, 4);
    number(w, wide ? SATURATED : 0, 4);
    number(w, strlen(e->name), 2);
    number(w, (uint64_t)((wide ? 20 : 0) + 4 + padding), 2);
    put(w, e->name, strlen(e->name));
    if (wide) {
        number(w, 1, 2);
        number(w, 16, 2);
        number(w, (uint64_t)size, 8);
        number(w, (uint64_t)size, 8);
    }
    put(w, "FB", 2);
    number(w, (uint64_t)padding, 2);
    for (int64_t i = 0; i < padding; i++) {
        put(w, "Z", 1);
    }
    return e;
}

static void entry_add(writer *w, entry *e, const void *data, size_t bytes) {
    e->crc = crc_add(&w->crc, e->crc, data, bytes);
    put(w, data, bytes);
}

static void entry_end(writer *w, const entry *e) {
    const int bytes = e->size >= SATURATED ? 8 : 4;
    put(w, "PK\7\10", 4);
    number(w, e->crc, 4);
    number(w, (uint64_t)e->size, bytes);
    number(w, (uint64_t)e->size, bytes);
}

static outcome write_entry(writer *w, const char *name, const void *data, size_t bytes) {
    entry *e = entry_begin(w, name, (int64_t)bytes);
    entry_add(w, e, data, bytes);
    entry_end(w, e);
    return check(w);
}

static outcome write_pickle(writer *w) {
    char *pickle = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&pickle, &bytes);
    if (!memory) return out_of_memory(w->error);
    pickle_content(memory, w->content);
    outcome result = fclose(memory) == 0 ? write_entry(w, "data.pkl", pickle, bytes) : out_of_memory(w->error);
    free(pickle);
    return result;
}

static outcome write_values(writer *w, int64_t index) {
    const gmem_save_desc *desc = w->content->tensors;
    const gmem_tensor *tensor = &desc->tensors[index];
    const int64_t total = gmem_tensor_count(tensor);
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "data/%lld", (long long)index);
    entry *e = entry_begin(w, name, total * (int64_t)sizeof(float));
    for (int64_t first = 0; first < total; first += CHUNK) {
        const int64_t count = total - first < CHUNK ? total - first : CHUNK;
        if (tensor->data) {
            gmem_tensor_read_f32(tensor, first, count, w->chunk);
        } else {
            TRY(from_status(desc->fill(desc->fill_user, index, first, count, w->chunk, w->error)));
        }
        entry_add(w, e, w->chunk, (size_t)count * sizeof(float));
        TRY(check(w));
    }
    entry_end(w, e);
    return check(w);
}

static void write_central(writer *w, const entry *e) {
    const int wide = e->size >= SATURATED, far = e->header >= SATURATED;
    const int extra = wide || far ? 4 + 16 * wide + 8 * far : 0;
    put(w, "PK\1\2", 4);
    number(w, 0, 2);               /* made by */
    number(w, extra ? 45 : 20, 2); /* version needed */
    number(w, 1 << 3 | 1 << 11, 2);
    number(w, 0, 2);
    number(w, 0, 4);
    number(w, e->crc, 4);
    number(w, wide ? SATURATED : (uint64_t)e->size, 4);
    number(w, wide ? SATURATED : (uint64_t)e->size, 4);
    number(w, strlen(e->name), 2);
    number(w, (uint64_t)extra, 2);
    number(w, 0, 2); /* comment */
    number(w, 0, 2); /* disk */
    number(w, 0, 2); /* attributes */
    number(w, 0, 4);
    number(w, far ? SATURATED : (uint64_t)e->header, 4);
    put(w, e->name, strlen(e->name));
    if (!extra) return;
    number(w, 1, 2);
    number(w, (uint64_t)(extra - 4), 2);
    for (int i = 0; i < 2 * wide; i++) {
        number(w, (uint64_t)e->size, 8);
    }
    if (far) number(w, (uint64_t)e->header, 8);
}

/* The directory, and the end records of both kinds, whatever the size: torch writes the zip64 one always. */
static void write_directory(writer *w) {
    const int64_t directory = w->at, most = 0xffff;
    for (int64_t i = 0; i < w->entry_count; i++) {
        write_central(w, &w->entries[i]);
    }
    const int64_t end = w->at, size = end - directory;
    put(w, "PK\6\6", 4);
    number(w, 44, 8); /* bytes of what follows */
    number(w, 45, 2); /* made by */
    number(w, 45, 2); /* version needed */
    number(w, 0, 8);  /* disks */
    number(w, (uint64_t)w->entry_count, 8);
    number(w, (uint64_t)w->entry_count, 8);
    number(w, (uint64_t)size, 8);
    number(w, (uint64_t)directory, 8);
    put(w, "PK\6\7\0\0\0\0", 8);
    number(w, (uint64_t)end, 8);
    number(w, 1, 4);
    const uint64_t count = (uint64_t)(w->entry_count < most ? w->entry_count : most);
    put(w, "PK\5\6\0\0\0\0", 8);
    number(w, count, 2);
    number(w, count, 2);
    number(w, size < SATURATED ? (uint64_t)size : SATURATED, 4);
    number(w, directory < SATURATED ? (uint64_t)directory : SATURATED, 4);
    number(w, 0, 2);
}

static outcome write_archive(writer *w) {
    TRY(write_pickle(w));
    TRY(write_entry(w, "byteorder", "little", 6));
    for (int64_t i = 0; i < w->content->tensors->count; i++) {
        TRY(write_values(w, i));
    }
    TRY(write_entry(w, "version", "3\n", 2));
    write_directory(w);
    return check(w);
}

/* the file -------------------------------------------------------------------------------------------------------- */

static outcome create(writer *w, char *temporary, size_t bytes) {
    int descriptor = -1;
    for (int attempt = 0; descriptor < 0 && attempt < ATTEMPTS; attempt++) {
        snprintf(temporary, bytes, "%s.tmp%d", w->path, attempt);
        descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL, 0666);
        if (descriptor < 0 && errno != EEXIST) break;
    }
    w->file = descriptor < 0 ? NULL : fdopen(descriptor, "wb");
    if (w->file) return OUTCOME_DONE;
    outcome result = cannot_write(w);
    if (descriptor >= 0) {
        close(descriptor);
        unlink(temporary);
    }
    return result;
}

static outcome finish(writer *w, const char *temporary) {
    if (fflush(w->file) != 0 || fsync(fileno(w->file)) != 0) return cannot_write(w);
    FILE *file = w->file;
    w->file = NULL;
    return fclose(file) == 0 && rename(temporary, w->path) == 0 ? OUTCOME_DONE : cannot_write(w);
}

static outcome write_file(writer *w, char *temporary, size_t bytes) {
    TRY(create(w, temporary, bytes));
    outcome result = write_archive(w);
    if (result == OUTCOME_DONE) result = finish(w, temporary);
    if (w->file) fclose(w->file);
    if (result != OUTCOME_DONE) unlink(temporary);
    return result;
}

outcome torch_save(const char *path, const torch_content *content, gmem_error *error) {
    writer w;
    memset(&w, 0, sizeof w);
    w.path = path;
    w.content = content;
    w.error = error;
    crc_prepare(&w.crc);
    const size_t bytes = strlen(path) + 16;
    char *temporary = (char *)malloc(bytes);
    w.entries = (entry *)calloc((size_t)content->tensors->count + 3, sizeof *w.entries);
    w.chunk = (float *)malloc((size_t)CHUNK * sizeof *w.chunk);
    outcome result = temporary && w.entries && w.chunk ? write_file(&w, temporary, bytes) : out_of_memory(error);
    free(temporary);
    free(w.entries);
    free(w.chunk);
    return result;
}
