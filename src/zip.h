/* The directory of a torch zip archive, checked: what zip.c hands to torch.c. */
#ifndef GMEM__ZIP_H
#define GMEM__ZIP_H

#include "names.h"

typedef struct gmem__zip_entry {
    const unsigned char *name; /* (name_bytes) in the file, with the root folder, not terminated */
    int32_t name_bytes;
    uint32_t method;    /* 0: stored */
    int64_t header;     /* file offset of the local header */
    int64_t data, size; /* file offset and bytes of the stored data */
} gmem__zip_entry;

typedef struct gmem__zip {
    const gmem_context *context;
    const char *path;
    const unsigned char *bytes; /* (size) the whole file */
    int64_t size;
    gmem__zip_entry *entries; /* (count) in the directory's order, never overlapping */
    int64_t count;
    gmem__names names;  /* below the root, to indices into entries */
    int32_t root_bytes; /* of the folder that all names share, with its slash */
} gmem__zip;

/* Checks every record of the archive. Errors: E_ZIP_*, E_LIMIT, E_OVERFLOW, E_MEMORY. On failure nothing is held. */
GMEM__FN gmem_status gmem__zip_open(const gmem_context *context, const char *path, const gmem__bytes *bytes,
                                    gmem__zip *out, gmem_error *error);
/* The entry of that name below the root folder, or NULL. */
GMEM__FN const gmem__zip_entry *gmem__zip_find(const gmem__zip *zip, const char *name);
/* Refuses an archive with compressed entries, apart so that the caller can say first what else it is. Errors:
 * E_ZIP_COMPRESSED. */
GMEM__FN gmem_status gmem__zip_require_stored(const gmem__zip *zip, gmem_error *error);
/* Bytes of memory that the open archive takes: some 1.4 for each byte of the file at most. */
GMEM__FN int64_t gmem__zip_held(const gmem__zip *zip);
GMEM__FN void gmem__zip_close(gmem__zip *zip);

#endif /* GMEM__ZIP_H */
