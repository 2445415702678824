/* Reads the tables of tensors (layers.h). */
#include "layers.h"

#include <stdio.h>

static gmem_status gmem__load_part(gmem__store *store, const gmem__part *part, const int64_t *extents, const char *name,
                                   void *place, gmem_error *error) {
    const int64_t rows = extents[part->rows], cols = extents[part->cols];
    switch (part->kind) {
    case GMEM__PART_VECTOR:
        return gmem__store_vector(store, name, rows, (const float **)place, error);
    case GMEM__PART_MATRIX:
        return gmem__store_matrix(store, name, rows, cols, (gmem__weight *)place, error);
    case GMEM__PART_TABLE:
        return gmem__store_table(store, name, rows, cols, (gmem__weight *)place, error);
    case GMEM__PART_CONV:
        break;
    }
    return gmem__store_conv(store, name, rows, cols, extents[part->kernel], (gmem__weight *)place, error);
}

GMEM__FN gmem_status gmem__load_parts(gmem__store *store, const gmem__part_table *table, const gmem__part_sizes *sizes,
                                      const char *prefix, void *base, gmem_error *error) {
    for (size_t i = 0; i < table->count; i++) {
        const gmem__part *part = &table->parts[i];
        char name[96];
        if ((part->options & ~sizes->options) != 0) continue;
        snprintf(name, sizeof name, "%s%s", prefix, part->name);
        GMEM__TRY(gmem__load_part(store, part, sizes->extents, name, (char *)base + part->place, error));
    }
    return GMEM_OK;
}

GMEM__FN int gmem__is_part(const gmem__part_table *table, int options, const char *name) {
    for (size_t i = 0; i < table->count; i++) {
        const gmem__part *part = &table->parts[i];
        const size_t length = strlen(part->name);
        if ((part->options & ~options) == 0 && strncmp(name, part->name, length) == 0 &&
            (!name[length] || strcmp(name + length, ".scale") == 0))
            return 1;
    }
    return 0;
}

GMEM__FN int gmem__is_listed(const char *const *list, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++) {
        const size_t length = strlen(list[i]);
        if (strncmp(name, list[i], length) == 0 && (list[i][length - 1] == '.' || !name[length])) return 1;
    }
    return 0;
}
