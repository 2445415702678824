/* The opened bank: its files numbered through, and the names of its rows. */
#ifndef GMEM__BANK_H
#define GMEM__BANK_H

#include "internal.h"

/* Centred SVD of the rows, C = U sqrt(S), M = V sqrt(S): row = C M^T + mean. Everything but C is small and copied. */
typedef struct gmem__bank_factors {
    int64_t rank;
    float *memory; /* (count) of the three below */
    int64_t count;
    float *m;    /* (rank, width): M transposed, so that a row is a sum of contiguous rows */
    float *s;    /* (rank) */
    float *mean; /* (width) */
} gmem__bank_factors;

typedef struct gmem__bank_part {
    gmem_file *file;
    int file_owned;
    int64_t first, rows; /* the bank's numbers of this file's rows */
    gmem_bank_kind kind;
    const gmem_tensor *rows_tensor; /* (rows, width), or C (rows, rank) */
    const gmem_tensor *scale;       /* (rows) for I8, else NULL */
    gmem__bank_factors factors;     /* DECOMPOSED */
} gmem__bank_part;

/* Names stand one after the other, each with its NUL; a row without one takes no bytes. */
typedef struct gmem__bank_names {
    char *text;
    int64_t text_bytes;
    int64_t *start; /* (rows + 1) offsets into text; NULL where the bank has no names */
} gmem__bank_names;

struct gmem_bank {
    const gmem_context *context;
    gmem__bank_part *parts; /* (part_count) */
    int64_t part_count;
    int64_t rows, width;
    gmem__bank_names names;
};

/* bank.c: the file that a row is in; and columns [first, first + count) of a row (of the file) of a decomposed bank:
 * C's row (rank) times M^T, plus the mean. */
GMEM__FN const gmem__bank_part *gmem__bank_part_of(const gmem_bank *bank, int64_t row);
GMEM__FN void gmem__bank_compose(const gmem__bank_part *part, int64_t row, int64_t width, int64_t first, int64_t count,
                                 float *out);

/* Lets go of the memory that rows [first, first + count) take in the files' mappings, until they are read again. */
GMEM__FN void gmem__bank_discard(const gmem_bank *bank, int64_t first, int64_t count);

/* The largest magnitude of a row, not a number or infinite where an element is; its scale in int8, which is symmetric:
 * the largest magnitude becomes 127; and the row itself. */
GMEM__FN float gmem__row_largest(const float *row, int64_t width);
GMEM__FN float gmem__row_scale(float largest);
GMEM__FN void gmem__quantise_row(const float *row, int64_t width, float scale, int8_t *out);

/* "f32", "int8", ...: as the metadata `dtype` of files says it. */
GMEM__FN const char *gmem__dtype_name(gmem_type type);

/* Writes a bank's file under its lock; see gmem_save. bank_edit.c */
GMEM__FN gmem_status gmem__bank_save(gmem_context *context, const char *path, const gmem_save_desc *desc,
                                     gmem_error *error);

/* bank_names.c */
GMEM__FN gmem_status gmem__bank_read_names(gmem_bank *bank, const gmem_bank_desc *desc, gmem_error *error);
GMEM__FN void gmem__bank_free_names(gmem_bank *bank);

/* The names of rows as a native file holds them, written from the first to the last: `names`, one run without NULs, and
 * `names.offsets`, where each begins in it and the last ends. */
typedef struct gmem__names_writer {
    const char *(*name)(const void *user, int64_t row); /* NULL for a row without one */
    const void *user;
    int64_t row, at;     /* of the run: what comes next */
    int64_t next, start; /* of the offsets: how many are written, and the last one */
} gmem__names_writer;
/* Bytes of the names of so many rows. */
GMEM__FN int64_t gmem__names_bytes(const gmem__names_writer *writer, int64_t rows);
/* The next `bytes` of the run, and the next `count` offsets. */
GMEM__FN void gmem__names_write(gmem__names_writer *writer, int64_t bytes, char *out);
GMEM__FN void gmem__names_write_offsets(gmem__names_writer *writer, int64_t count, int64_t *out);
/* The `name` of a writer whose user is a bank. */
GMEM__FN const char *gmem__names_of_bank(const void *bank, int64_t row);

#endif /* GMEM__BANK_H */
