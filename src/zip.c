/* The zip container of torch.save: the central directory is the authority, entries are stored, nothing is unpacked.
 * Everything is checked before anything is used; every refusal has its own code and the offset of the record at fault.
 * Field names follow PKWARE's APPNOTE.TXT. */
#include "zip.h"

#include "file.h"

enum {
    GMEM__ZIP_END_BYTES = 22,
    GMEM__ZIP64_LOCATOR_BYTES = 20,
    GMEM__ZIP64_END_BYTES = 56,
    GMEM__ZIP_CENTRAL_BYTES = 46,
    GMEM__ZIP_LOCAL_BYTES = 30
};

#define GMEM__ZIP_LOCAL_SIGNATURE     0x04034b50u
#define GMEM__ZIP_CENTRAL_SIGNATURE   0x02014b50u
#define GMEM__ZIP_END_SIGNATURE       0x06054b50u
#define GMEM__ZIP64_END_SIGNATURE     0x06064b50u
#define GMEM__ZIP64_LOCATOR_SIGNATURE 0x07064b50u
#define GMEM__ZIP_FLAGS_ENCRYPTED     0x2041u /* encrypted, strongly encrypted, masked headers */

static uint32_t gmem__zip_u16(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t gmem__zip_u32(const unsigned char *p) { return gmem__zip_u16(p) | gmem__zip_u16(p + 2) << 16; }
static uint64_t gmem__zip_u64(const unsigned char *p) {
    return (uint64_t)gmem__zip_u32(p) | (uint64_t)gmem__zip_u32(p + 4) << 32;
}

static gmem_status gmem__zip_fail(const gmem__zip *zip, gmem_status code, int64_t offset, const char *what,
                                  gmem_error *error) {
    return gmem__fail_at(error, code, zip->path, offset, "%s", what);
}

/* the end records -------------------------------------------------------------------------------------------------- */

typedef struct gmem__zip_end {
    uint64_t count, offset, size; /* of the central directory */
    int64_t start;                /* file offset of the first end record */
} gmem__zip_end;

/* torch writes the zip64 record always, so the plain fields may hold their values or be saturated. */
static int gmem__zip_same(uint32_t plain, uint32_t saturated, uint64_t value) {
    return plain == saturated || plain == value;
}

static gmem_status gmem__zip_read_end64(const gmem__zip *zip, gmem__zip_end *end, gmem_error *error) {
    const int64_t plain_at = end->start, at = plain_at - GMEM__ZIP64_LOCATOR_BYTES - GMEM__ZIP64_END_BYTES;
    const unsigned char *plain = zip->bytes + plain_at, *locator = plain - GMEM__ZIP64_LOCATOR_BYTES;
    if (at < 0 || gmem__zip_u32(locator + 4) != 0 || gmem__zip_u64(locator + 8) != (uint64_t)at ||
        gmem__zip_u32(locator + 16) != 1) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_END, plain_at - GMEM__ZIP64_LOCATOR_BYTES,
                              "the zip64 locator does not point to the record before it", error);
    }
    const unsigned char *record = zip->bytes + at;
    if (gmem__zip_u32(record) != GMEM__ZIP64_END_SIGNATURE || gmem__zip_u64(record + 4) != GMEM__ZIP64_END_BYTES - 12) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_END, at, "the zip64 end record is missing", error);
    }
    end->start = at;
    end->count = gmem__zip_u64(record + 32);
    end->size = gmem__zip_u64(record + 40);
    end->offset = gmem__zip_u64(record + 48);
    if (gmem__zip_u32(record + 16) != 0 || gmem__zip_u32(record + 20) != 0 ||
        gmem__zip_u64(record + 24) != end->count || !gmem__zip_same(gmem__zip_u16(plain + 10), 0xffffu, end->count) ||
        !gmem__zip_same(gmem__zip_u32(plain + 12), 0xffffffffu, end->size) ||
        !gmem__zip_same(gmem__zip_u32(plain + 16), 0xffffffffu, end->offset)) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_END, at, "the two zip end records disagree", error);
    }
    return GMEM_OK;
}

static gmem_status gmem__zip_read_end(const gmem__zip *zip, gmem__zip_end *end, gmem_error *error) {
    const int64_t at = zip->size - GMEM__ZIP_END_BYTES;
    const unsigned char *record = zip->bytes + gmem__max(at, 0);
    if (at < 0 || gmem__zip_u32(record) != GMEM__ZIP_END_SIGNATURE || gmem__zip_u16(record + 20) != 0) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_END, gmem__max(at, 0), "no zip end record at the end: cut short?", error);
    }
    if (gmem__zip_u16(record + 4) != 0 || gmem__zip_u16(record + 6) != 0 ||
        gmem__zip_u16(record + 8) != gmem__zip_u16(record + 10)) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_END, at, "the zip is one part of several", error);
    }
    end->start = at;
    end->count = gmem__zip_u16(record + 10);
    end->size = gmem__zip_u32(record + 12);
    end->offset = gmem__zip_u32(record + 16);
    if (at >= GMEM__ZIP64_LOCATOR_BYTES &&
        gmem__zip_u32(record - GMEM__ZIP64_LOCATOR_BYTES) == GMEM__ZIP64_LOCATOR_SIGNATURE) {
        GMEM__TRY(gmem__zip_read_end64(zip, end, error));
    }
    if (end->offset > (uint64_t)end->start || end->size != (uint64_t)end->start - end->offset) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, end->start,
                              "the zip directory does not end where the end record begins", error);
    }
    if (end->count > end->size / GMEM__ZIP_CENTRAL_BYTES) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, end->start,
                              "the zip directory cannot hold the entries it counts", error);
    }
    if (end->count > INT32_MAX / 4) {
        return gmem__zip_fail(zip, GMEM_E_LIMIT, end->start, "too many zip entries", error);
    }
    return GMEM_OK;
}

/* names ------------------------------------------------------------------------------------------------------------ */

/* Components separated by single slashes; none of them empty (but after a folder's last slash), "." or "..". */
static int gmem__zip_name_is_safe(const unsigned char *name, int32_t bytes) {
    int32_t start = 0;
    if (bytes == 0 || (bytes >= 3 && name[1] == ':' && name[2] == '/')) return 0;
    for (int32_t i = 0; i <= bytes; i++) {
        if (i < bytes && (name[i] == 0 || name[i] == '\\')) return 0;
        if (i < bytes && name[i] != '/') continue;
        int32_t length = i - start;
        if (length == 0 && i < bytes) return 0;
        if (length == 1 && name[start] == '.') return 0;
        if (length == 2 && name[start] == '.' && name[start + 1] == '.') return 0;
        start = i + 1;
    }
    return 1;
}

static gmem_status gmem__zip_check_roots(gmem__zip *zip, gmem_error *error) {
    for (int64_t i = 0; i < zip->count; i++) {
        const gmem__zip_entry *entry = &zip->entries[i], *first = &zip->entries[0];
        const unsigned char *slash = (const unsigned char *)memchr(entry->name, '/', (size_t)entry->name_bytes);
        int32_t bytes = slash ? (int32_t)(slash - entry->name) + 1 : 0;
        if (i == 0) zip->root_bytes = bytes;
        if (bytes == 0 || bytes != zip->root_bytes || memcmp(entry->name, first->name, (size_t)bytes) != 0) {
            return gmem__zip_fail(zip, GMEM_E_ZIP_ROOT, entry->name - zip->bytes,
                                  "the zip entries are not in one folder", error);
        }
    }
    return GMEM_OK;
}

/* Names are kept without the root; one that is there already is the archive's fault. */
static gmem_status gmem__zip_index_names(gmem__zip *zip, gmem_error *error) {
    if (!gmem__names_reserve(&zip->names, zip->count)) return gmem__fail(error, GMEM_E_MEMORY, "out of memory");
    for (int64_t i = 0; i < zip->count; i++) {
        const gmem__zip_entry *entry = &zip->entries[i];
        const unsigned char *name = entry->name + zip->root_bytes;
        const int32_t bytes = entry->name_bytes - zip->root_bytes;
        if (gmem__names_find(&zip->names, name, bytes) >= 0) {
            return gmem__zip_fail(zip, GMEM_E_ZIP_DUPLICATE, name - zip->bytes, "a zip name occurs twice", error);
        }
        gmem__names_add(&zip->names, name, bytes, (int32_t)i);
    }
    return GMEM_OK;
}

GMEM__FN const gmem__zip_entry *gmem__zip_find(const gmem__zip *zip, const char *name) {
    int32_t index = gmem__names_find(&zip->names, (const unsigned char *)name, (int64_t)strlen(name));
    return index >= 0 ? &zip->entries[index] : NULL;
}

GMEM__FN gmem_status gmem__zip_require_stored(const gmem__zip *zip, gmem_error *error) {
    for (int64_t i = 0; i < zip->count; i++) {
        if (zip->entries[i].method != 0) {
            return gmem__zip_fail(zip, GMEM_E_ZIP_COMPRESSED, zip->entries[i].header, "a zip entry is compressed",
                                  error);
        }
    }
    return GMEM_OK;
}

/* entries ---------------------------------------------------------------------------------------------------------- */

/* The sizes and the offset that did not fit 32 bits are in the zip64 extra field, in this order. */
static gmem_status gmem__zip_read_extra64(const gmem__zip *zip, const unsigned char *extra, uint32_t bytes,
                                          uint64_t *uncompressed, uint64_t *compressed, uint64_t *offset,
                                          gmem_error *error) {
    uint64_t *fields[3];
    uint32_t wanted = 0;
    if (*uncompressed == 0xffffffffu) fields[wanted++] = uncompressed;
    if (*compressed == 0xffffffffu) fields[wanted++] = compressed;
    if (*offset == 0xffffffffu) fields[wanted++] = offset;
    if (wanted == 0) return GMEM_OK;
    for (uint32_t at = 0; bytes - at >= 4;) {
        uint32_t id = gmem__zip_u16(extra + at), size = gmem__zip_u16(extra + at + 2);
        if (size > bytes - at - 4) break;
        if (id != 1) {
            at += 4 + size;
            continue;
        }
        if (size < 8 * wanted) break;
        for (uint32_t i = 0; i < wanted; i++)
            *fields[i] = gmem__zip_u64(extra + at + 4 + 8 * i);
        return GMEM_OK;
    }
    return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, extra - zip->bytes, "a zip64 size is missing", error);
}

/* One central record at *at; moves *at behind it. */
static gmem_status gmem__zip_read_central(const gmem__zip *zip, int64_t *at, int64_t directory_end,
                                          gmem__zip_entry *entry, gmem_error *error) {
    const unsigned char *record = zip->bytes + *at;
    if (directory_end - *at < GMEM__ZIP_CENTRAL_BYTES || gmem__zip_u32(record) != GMEM__ZIP_CENTRAL_SIGNATURE) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, *at, "no zip directory record here", error);
    }
    const uint32_t flags = gmem__zip_u16(record + 8), method = gmem__zip_u16(record + 10);
    const uint32_t name_bytes = gmem__zip_u16(record + 28), extra_bytes = gmem__zip_u16(record + 30);
    const uint32_t comment_bytes = gmem__zip_u16(record + 32), disk = gmem__zip_u16(record + 34);
    const int64_t record_bytes = (int64_t)GMEM__ZIP_CENTRAL_BYTES + name_bytes + extra_bytes + comment_bytes;
    uint64_t compressed = gmem__zip_u32(record + 20), uncompressed = gmem__zip_u32(record + 24);
    uint64_t offset = gmem__zip_u32(record + 42);
    if (record_bytes > directory_end - *at) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, *at, "a zip directory record runs over the end", error);
    }
    entry->name = record + GMEM__ZIP_CENTRAL_BYTES;
    entry->name_bytes = (int32_t)name_bytes;
    if (flags & GMEM__ZIP_FLAGS_ENCRYPTED) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_ENCRYPTED, *at, "a zip entry is encrypted", error);
    }
    if (!gmem__zip_name_is_safe(entry->name, entry->name_bytes)) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_NAME, *at, "a zip name is empty, absolute or leaves its folder", error);
    }
    GMEM__TRY(
        gmem__zip_read_extra64(zip, entry->name + name_bytes, extra_bytes, &uncompressed, &compressed, &offset, error));
    if (compressed > INT64_MAX || uncompressed > INT64_MAX || offset > INT64_MAX) {
        return gmem__zip_fail(zip, GMEM_E_OVERFLOW, *at, "a zip size or offset overflows", error);
    }
    if ((method == 0 && compressed != uncompressed) || disk != 0) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, *at, "a stored zip entry has two sizes, or another disk",
                              error);
    }
    entry->method = method;
    entry->size = (int64_t)compressed;
    entry->header = (int64_t)offset;
    *at += record_bytes;
    return GMEM_OK;
}

/* torch leaves the local sizes zero and writes a descriptor behind the data; other writers repeat the directory. */
static int gmem__zip_local_size_agrees(const unsigned char *local, const gmem__zip_entry *entry) {
    const uint32_t compressed = gmem__zip_u32(local + 18), uncompressed = gmem__zip_u32(local + 22);
    if (compressed != 0 && compressed != 0xffffffffu && (int64_t)compressed != entry->size) return 0;
    return entry->method != 0 || uncompressed == 0 || uncompressed == 0xffffffffu ||
           (int64_t)uncompressed == entry->size;
}

static gmem_status gmem__zip_check_local(const gmem__zip *zip, int64_t directory, gmem__zip_entry *entry,
                                         gmem_error *error) {
    const int64_t at = entry->header;
    if (at > directory - GMEM__ZIP_LOCAL_BYTES) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_LOCAL, entry->name - zip->bytes - GMEM__ZIP_CENTRAL_BYTES,
                              "a zip entry lies outside the file", error);
    }
    const unsigned char *local = zip->bytes + at;
    const uint32_t name_bytes = gmem__zip_u16(local + 26), extra_bytes = gmem__zip_u16(local + 28);
    entry->data = at + GMEM__ZIP_LOCAL_BYTES + name_bytes + extra_bytes;
    if (gmem__zip_u32(local) != GMEM__ZIP_LOCAL_SIGNATURE || gmem__zip_u16(local + 8) != entry->method ||
        (gmem__zip_u16(local + 6) & GMEM__ZIP_FLAGS_ENCRYPTED) || (int32_t)name_bytes != entry->name_bytes ||
        entry->data > directory || memcmp(local + GMEM__ZIP_LOCAL_BYTES, entry->name, name_bytes) != 0 ||
        !gmem__zip_local_size_agrees(local, entry)) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_LOCAL, at, "a zip local header disagrees with the directory", error);
    }
    if (entry->size > directory - entry->data) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_OVERLAP, at, "a zip entry runs into the directory", error);
    }
    return GMEM_OK;
}

static int gmem__zip_compare_headers(const void *user, int32_t a, int32_t b) {
    const gmem__zip_entry *entries = (const gmem__zip_entry *)user;
    return (entries[a].header > entries[b].header) - (entries[a].header < entries[b].header);
}

static gmem_status gmem__zip_check_overlap(const gmem__zip *zip, gmem_error *error) {
    int32_t *order = (int32_t *)gmem__alloc(zip->context, zip->count, sizeof *order);
    gmem_status status = GMEM_OK;
    if (!order) return gmem__fail(error, GMEM_E_MEMORY, "out of memory");
    gmem__sort(order, zip->count, gmem__zip_compare_headers, zip->entries);
    for (int64_t i = 1; i < zip->count && status == GMEM_OK; i++) {
        const gmem__zip_entry *before = &zip->entries[order[i - 1]], *entry = &zip->entries[order[i]];
        if (before->data + before->size > entry->header) {
            status = gmem__zip_fail(zip, GMEM_E_ZIP_OVERLAP, entry->header, "two zip entries overlap", error);
        }
    }
    gmem__free(zip->context, order, zip->count, sizeof *order);
    return status;
}

/* the whole -------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__zip_read_directory(gmem__zip *zip, const gmem__zip_end *end, gmem_error *error) {
    const int64_t directory = (int64_t)end->offset;
    int64_t at = directory;
    for (int64_t i = 0; i < zip->count; i++) {
        GMEM__TRY(gmem__zip_read_central(zip, &at, end->start, &zip->entries[i], error));
        GMEM__TRY(gmem__zip_check_local(zip, directory, &zip->entries[i], error));
    }
    if (at != end->start) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, at, "the zip directory has more records than it counts",
                              error);
    }
    GMEM__TRY(gmem__zip_check_roots(zip, error));
    GMEM__TRY(gmem__zip_index_names(zip, error));
    return gmem__zip_check_overlap(zip, error);
}

GMEM__FN gmem_status gmem__zip_open(const gmem_context *context, const char *path, const gmem__bytes *bytes,
                                    gmem__zip *out, gmem_error *error) {
    gmem__zip zip;
    gmem__zip_end end = {0, 0, 0, 0};
    memset(&zip, 0, sizeof zip);
    zip.context = context;
    zip.path = path;
    zip.bytes = bytes->data;
    zip.size = bytes->size;
    GMEM__TRY(gmem__zip_read_end(&zip, &end, error));
    zip.count = (int64_t)end.count;
    zip.names.context = context;
    zip.entries = (gmem__zip_entry *)gmem__alloc(context, zip.count, sizeof *zip.entries);
    gmem_status status = zip.entries ? GMEM_OK : gmem__fail(error, GMEM_E_MEMORY, "out of memory");
    if (status == GMEM_OK) status = gmem__zip_read_directory(&zip, &end, error);
    if (status == GMEM_OK) *out = zip;
    if (status != GMEM_OK) gmem__zip_close(&zip);
    return status;
}

GMEM__FN int64_t gmem__zip_held(const gmem__zip *zip) {
    return zip->count * (int64_t)sizeof *zip->entries + zip->names.size * (int64_t)sizeof *zip->names.slots;
}

GMEM__FN void gmem__zip_close(gmem__zip *zip) {
    gmem__free(zip->context, zip->entries, zip->count, sizeof *zip->entries);
    gmem__names_free(&zip->names);
    zip->entries = NULL;
    zip->count = 0;
}

#undef GMEM__ZIP_LOCAL_SIGNATURE
#undef GMEM__ZIP_CENTRAL_SIGNATURE
#undef GMEM__ZIP_END_SIGNATURE
#undef GMEM__ZIP64_END_SIGNATURE
#undef GMEM__ZIP64_LOCATOR_SIGNATURE
#undef GMEM__ZIP_FLAGS_ENCRYPTED
