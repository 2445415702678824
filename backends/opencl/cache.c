/* The cache folder: files of which each is whole or not there, checked before they are used, for what lies in them runs
 * as code. A file is its contents and a last line that tells their size and checksum. */
#include "../../src/file.h"
#include "opencl.h"

#ifndef GMEM_NO_OPENCL

#include <stdio.h>

#if defined(__unix__) || defined(__APPLE__)
#define GMEM__CACHE_POSIX
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

GMEM__FN uint64_t gmem__fnv1a(const void *data, int64_t bytes) {
    const unsigned char *at = (const unsigned char *)data;
    uint64_t hash = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < bytes; i++)
        hash = (hash ^ at[i]) * 0x100000001b3u;
    return hash;
}

/* places ---------------------------------------------------------------------------------------------------------- */

/* Whoever else may write there could have his code run. Only POSIX tells. */
static gmem_status gmem__cache_check_folder(const char *folder, gmem_error *error) {
    if (!folder || !folder[0]) return gmem__fail(error, GMEM_E_OPEN, "there is no cache folder");
#ifdef GMEM__CACHE_POSIX
    struct stat status;
    errno = 0;
    if (stat(folder, &status) != 0)
        return gmem__fail_at(error, GMEM_E_OPEN, folder, -1, "cannot use the cache folder%s", gmem__io_reason());
    if (!S_ISDIR(status.st_mode))
        return gmem__fail_at(error, GMEM_E_OPEN, folder, -1, "cannot use the cache folder: it is none");
    if (status.st_uid != geteuid() && status.st_uid != 0)
        return gmem__fail_at(error, GMEM_E_OPEN, folder, -1, "cannot use the cache folder: it is another user's");
    if (status.st_mode & (S_IWGRP | S_IWOTH))
        return gmem__fail_at(error, GMEM_E_OPEN, folder, -1, "cannot use the cache folder: others may write to it");
#endif
    return GMEM_OK;
}

static int gmem__cache_name_is_plain(const char *name) {
    for (const char *c = name; *c; c++) {
        const int letter = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9');
        if (!letter && *c != '-' && *c != '_' && (*c != '.' || c == name)) return 0;
    }
    return name[0] != 0;
}

/* A file's path; freed with its size. */
typedef struct gmem__cache_path {
    char *text;
    int64_t bytes;
} gmem__cache_path;

static gmem_status gmem__cache_path_open(const gmem_context *context, const char *folder, const char *name,
                                         gmem__cache_path *out, gmem_error *error) {
    gmem__quoted quoted;
    GMEM__TRY(gmem__cache_check_folder(folder, error));
    if (!gmem__cache_name_is_plain(name))
        return gmem__fail(error, GMEM_E_ARGUMENT, "\"%s\" is no name for a file of the cache",
                          gmem__quote(&quoted, name));
    out->bytes = (int64_t)(strlen(folder) + strlen(name) + 2);
    out->text = (char *)gmem__alloc_raw(context, out->bytes, 1);
    if (!out->text) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a path in the cache");
    snprintf(out->text, (size_t)out->bytes, "%s/%s", folder, name);
    return GMEM_OK;
}

static void gmem__cache_path_close(const gmem_context *context, gmem__cache_path *path) {
    gmem__free(context, path->text, path->bytes, 1);
}

/* files ----------------------------------------------------------------------------------------------------------- */

/* The last line, always as long. */
#define GMEM__CACHE_END 72

static void gmem__cache_print_end(const void *data, int64_t bytes, char out[GMEM__CACHE_END + 1]) {
    const uint64_t hash = gmem__fnv1a(data, bytes), size = (uint64_t)bytes;
    snprintf(out, GMEM__CACHE_END + 1, "\ngmem cache 1: %08x%08x bytes, checksum FNV-1a %08x%08x\n",
             (unsigned)(size >> 32), (unsigned)(size & 0xffffffffu), (unsigned)(hash >> 32),
             (unsigned)(hash & 0xffffffffu));
}

/* Bytes of contents, or -1 where the end is not theirs. */
static int64_t gmem__cache_contents(const gmem__bytes *file) {
    char end[GMEM__CACHE_END + 1] = {0};
    const int64_t bytes = file->size - GMEM__CACHE_END;
    if (bytes < 0) return -1;
    gmem__cache_print_end(file->data, bytes, end);
    return memcmp(file->data + bytes, end, GMEM__CACHE_END) == 0 ? bytes : -1;
}

/* A copy of the contents alone. */
static gmem_status gmem__cache_copy(const gmem_context *context, const gmem__bytes *file, const char *path,
                                    gmem__bytes *out, gmem_error *error) {
    const int64_t bytes = gmem__cache_contents(file);
    if (bytes < 0) return gmem__fail_at(error, GMEM_E_FORMAT, path, -1, "the file is damaged or of another version");
    unsigned char *memory = (unsigned char *)gmem__alloc_raw(context, bytes, 1);
    if (!memory) return gmem__fail_at(error, GMEM_E_MEMORY, path, -1, "no memory for the file's contents");
    memcpy(memory, file->data, (size_t)bytes);
    memset(out, 0, sizeof *out);
    out->data = memory;
    out->size = bytes;
    out->owned = 1;
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__cl_cache_read(const gmem_context *context, const char *cache_dir, const char *name,
                                         gmem__bytes *out, gmem_error *error) {
    gmem__cache_path path;
    gmem__bytes file;
    GMEM__TRY(gmem__cache_path_open(context, cache_dir, name, &path, error));
    gmem_status status = gmem__bytes_open(context, path.text, &file, error);
    if (status == GMEM_OK) {
        status = gmem__cache_copy(context, &file, path.text, out, error);
        gmem__bytes_close(context, &file);
    }
    gmem__cache_path_close(context, &path);
    return status;
}

GMEM__FN gmem_status gmem__cl_cache_write(const gmem_context *context, const char *cache_dir, const char *name,
                                          const void *data, int64_t bytes, gmem_error *error) {
    gmem__cache_path path;
    const int64_t whole = bytes + GMEM__CACHE_END;
    char end[GMEM__CACHE_END + 1];
    GMEM__TRY(gmem__cache_path_open(context, cache_dir, name, &path, error));
    char *file = (char *)gmem__alloc_raw(context, whole, 1);
    gmem_status status = file ? GMEM_OK : gmem__fail(error, GMEM_E_MEMORY, "no memory to write to the cache");
    if (file) {
        memcpy(file, data, (size_t)bytes);
        gmem__cache_print_end(data, bytes, end);
        memcpy(file + bytes, end, GMEM__CACHE_END);
        status = gmem_save_bytes((gmem_context *)(uintptr_t)context, path.text, file, (size_t)whole, error);
    }
    gmem__free(context, file, whole, 1);
    gmem__cache_path_close(context, &path);
    return status;
}

#undef GMEM__CACHE_POSIX
#undef GMEM__CACHE_END

#endif /* GMEM_NO_OPENCL */
