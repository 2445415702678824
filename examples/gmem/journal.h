/* What bank build has finished, kept beside the bank until that is written: the features of a picture a record, added
 * whole and checked by a sum, so that a run that was ended in any way goes on where it was. */
#ifndef JOURNAL_H
#define JOURNAL_H

#include "crc.h"
#include "report.h"

typedef struct journal {
    char *path; /* BANK.part */
    int file;   /* locked against other runs as long as it is open; -1: none */
    int64_t width;
    int64_t end;           /* of the whole records */
    unsigned char *record; /* (record_bytes) the one at work */
    int64_t record_bytes;
    crc_table crc;
} journal;

/* A record: which picture, in which state, it is about. Features lie at `features` of the file. */
typedef struct journal_entry {
    const char *name;    /* until the next call */
    int64_t size, mtime; /* of the picture's file */
    int64_t features;
} journal_entry;

/* Opens or makes the journal of an output. The key tells encoders and settings apart: one of another key, one that
 * another run is at and a file that is no journal are refused. `j` must be zero but for file = -1. */
outcome journal_open(journal *j, const char *output, uint32_t key, int64_t width, gmem_error *error);
/* Lets go of it; the file stays, unless journal_remove was called before. */
void journal_close(journal *j);
void journal_remove(journal *j);

/* The record after the one before, first with *out zero: 1, or 0 at the end; what follows a torn record is cut off.
 * -1: see error. */
int journal_next(journal *j, journal_entry *out, gmem_error *error);
/* Adds a record: features (width). */
outcome journal_add(journal *j, journal_entry *entry, const float *features, gmem_error *error);
/* Features of a record: out (width). */
outcome journal_read(const journal *j, int64_t features, float *out, gmem_error *error);

#endif /* JOURNAL_H */
