/* The picture files below folders. */
#ifndef WALK_H
#define WALK_H

#include "args.h"

typedef struct path_list {
    char **items;
    int64_t count, capacity;
} path_list;

/* Paths and why they could not be read. */
typedef struct complaint {
    char *path, *reason;
} complaint;

typedef struct complaint_list {
    complaint *items;
    int64_t count, capacity;
} complaint_list;

/* 0 where there is no memory. */
int path_add(path_list *list, const char *path);
void paths_free(path_list *list);
int complaint_add(complaint_list *list, const char *path, const char *reason);
void complaints_free(complaint_list *list);

/* Every file below the folders that ends or begins like a picture, sorted, once each. Slashes at a folder's end are
 * not part of its name. Links are followed, but each folder is looked into once, so that loops end. Folders that cannot
 * be read are complained of; where one of those named cannot, it is an error. */
outcome find_pictures(const text_list *folders, path_list *out, complaint_list *complaints, gmem_error *error);

#endif /* WALK_H */
