/* Finding pictures. Folders wait in two lists: links to folders wait until everything else is done, so that what can be
 * reached in several ways is found under its own name. */
#define _POSIX_C_SOURCE 200809L
#include "walk.h"

#include "interrupt.h"
#include "picture.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* lists ----------------------------------------------------------------------------------------------------------- */

/* Makes room for one more item of `bytes`; 0 where there is no memory. */
static int grow(void **items, int64_t count, int64_t *capacity, size_t bytes) {
    if (count < *capacity) return 1;
    const int64_t larger = *capacity ? 2 * *capacity : 64;
    void *moved = realloc(*items, (size_t)larger * bytes);
    if (!moved) return 0;
    *items = moved;
    *capacity = larger;
    return 1;
}

static char *copy_text(const char *text) {
    const size_t bytes = strlen(text) + 1;
    char *copy = (char *)malloc(bytes);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

int path_add(path_list *list, const char *path) {
    void *items = list->items;
    const int grown = grow(&items, list->count, &list->capacity, sizeof *list->items);
    list->items = (char **)items;
    if (!grown || !(list->items[list->count] = copy_text(path))) return 0;
    list->count++;
    return 1;
}

void paths_free(path_list *list) {
    for (int64_t i = 0; i < list->count; i++) {
        free(list->items[i]);
    }
    free(list->items);
    memset(list, 0, sizeof *list);
}

int complaint_add(complaint_list *list, const char *path, const char *reason) {
    void *items = list->items;
    const int grown = grow(&items, list->count, &list->capacity, sizeof *list->items);
    list->items = (complaint *)items;
    if (!grown) return 0;
    complaint *added = &list->items[list->count];
    added->path = copy_text(path);
    added->reason = copy_text(reason);
    list->count++;
    return added->path && added->reason;
}

void complaints_free(complaint_list *list) {
    for (int64_t i = 0; i < list->count; i++) {
        free(list->items[i].path);
        free(list->items[i].reason);
    }
    free(list->items);
    memset(list, 0, sizeof *list);
}

/* walking --------------------------------------------------------------------------------------------------------- */

typedef struct folder_id {
    dev_t device;
    ino_t number;
    int taken;
} folder_id;

typedef struct walk {
    path_list folders, links; /* to look into */
    folder_id *seen;          /* (seen_size) open addressing, at most half taken */
    int64_t seen_size, seen_count;
    path_list *pictures;
    complaint_list *complaints;
} walk;

/* Where an id is, or belongs. */
static folder_id *find_seen(folder_id *seen, int64_t size, dev_t device, ino_t number) {
    uint64_t at = ((uint64_t)number ^ (uint64_t)device << 32) * 0x9e3779b97f4a7c15u >> 20;
    for (;; at++) {
        folder_id *id = &seen[at & (uint64_t)(size - 1)];
        if (!id->taken || (id->device == device && id->number == number)) return id;
    }
}

static int grow_seen(walk *w) {
    const int64_t size = w->seen_size ? 2 * w->seen_size : 256;
    folder_id *larger = (folder_id *)calloc((size_t)size, sizeof *larger);
    if (!larger) return 0;
    for (int64_t i = 0; i < w->seen_size; i++) {
        const folder_id *id = &w->seen[i];
        if (id->taken) *find_seen(larger, size, id->device, id->number) = *id;
    }
    free(w->seen);
    w->seen = larger;
    w->seen_size = size;
    return 1;
}

/* 1 where the folder was seen before, 0 where it is new, -1 where there is no memory. */
static int see(walk *w, const struct stat *status) {
    if (2 * w->seen_count >= w->seen_size && !grow_seen(w)) return -1;
    folder_id *id = find_seen(w->seen, w->seen_size, status->st_dev, status->st_ino);
    if (id->taken) return 1;
    id->device = status->st_dev;
    id->number = status->st_ino;
    id->taken = 1;
    w->seen_count++;
    return 0;
}

/* A folder's entry: into one of the lists, or nowhere. 0 where there is no memory. */
static int sort_in(walk *w, const char *path) {
    struct stat status;
    if (lstat(path, &status) != 0) return complaint_add(w->complaints, path, strerror(errno));
    const int is_link = S_ISLNK(status.st_mode);
    if (is_link && stat(path, &status) != 0) /* broken, or a loop of its own */
        return !has_picture_name(path) || complaint_add(w->complaints, path, strerror(errno));
    if (S_ISDIR(status.st_mode)) return path_add(is_link ? &w->links : &w->folders, path);
    if (!S_ISREG(status.st_mode) || !(has_picture_name(path) || is_picture(path))) return 1;
    return path_add(w->pictures, path);
}

static int sort_in_entry(walk *w, const char *folder, const char *name) {
    const size_t length = strlen(folder), bytes = length + strlen(name) + 2;
    const int slash = length && folder[length - 1] == '/';
    char *path = (char *)malloc(bytes);
    if (!path) return 0;
    snprintf(path, bytes, "%s%s%s", folder, slash ? "" : "/", name);
    const int done = sort_in(w, path);
    free(path);
    return done;
}

static outcome read_folder(walk *w, DIR *open_folder, const char *folder, gmem_error *error) {
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(open_folder);
        if (!entry) break;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (!sort_in_entry(w, folder, entry->d_name)) return out_of_memory(error);
    }
    if (errno && !complaint_add(w->complaints, folder, strerror(errno))) return out_of_memory(error);
    return OUTCOME_DONE;
}

static outcome look_into(walk *w, const char *folder, gmem_error *error) {
    struct stat status;
    TRY(interrupt_check(error));
    DIR *open_folder = opendir(folder);
    if (!open_folder || stat(folder, &status) != 0) {
        const int reason = errno;
        if (open_folder) closedir(open_folder);
        return complaint_add(w->complaints, folder, strerror(reason)) ? OUTCOME_DONE : out_of_memory(error);
    }
    const int seen = see(w, &status);
    outcome result = seen < 0 ? out_of_memory(error) : seen ? OUTCOME_DONE : read_folder(w, open_folder, folder, error);
    closedir(open_folder);
    return result;
}

static outcome look_into_all(walk *w, gmem_error *error) {
    while (w->folders.count || w->links.count) {
        path_list *from = w->folders.count ? &w->folders : &w->links;
        char *folder = from->items[--from->count];
        outcome result = look_into(w, folder, error);
        free(folder);
        TRY(result);
    }
    return OUTCOME_DONE;
}

static int compare_paths(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void sort_once_each(path_list *list) {
    int64_t kept = 0;
    if (list->count) qsort(list->items, (size_t)list->count, sizeof *list->items, compare_paths);
    for (int64_t i = 0; i < list->count; i++) {
        if (kept && !strcmp(list->items[kept - 1], list->items[i])) {
            free(list->items[i]);
        } else {
            list->items[kept++] = list->items[i];
        }
    }
    list->count = kept;
}

/* Those that are named must be there: a typing mistake is no unreadable picture. */
static outcome add_named(walk *w, const text_list *folders, gmem_error *error) {
    for (int i = 0; i < folders->count; i++) {
        DIR *folder = opendir(folders->items[i]);
        if (!folder) return failed(error, folders->items[i], "cannot open the folder: %s", strerror(errno));
        closedir(folder);
        if (!path_add(&w->folders, folders->items[i])) return out_of_memory(error);
        char *added = w->folders.items[w->folders.count - 1];
        for (size_t bytes = strlen(added); bytes > 1 && added[bytes - 1] == '/'; bytes--) {
            added[bytes - 1] = 0;
        }
    }
    return OUTCOME_DONE;
}

outcome find_pictures(const text_list *folders, path_list *out, complaint_list *complaints, gmem_error *error) {
    walk w;
    memset(&w, 0, sizeof w);
    w.pictures = out;
    w.complaints = complaints;
    outcome result = add_named(&w, folders, error);
    if (result == OUTCOME_DONE) result = look_into_all(&w, error);
    if (result == OUTCOME_DONE) sort_once_each(out);
    paths_free(&w.folders);
    paths_free(&w.links);
    free(w.seen);
    return result;
}
