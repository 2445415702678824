/* What to draw: rows of the bank by number, name or at random, mixtures of two, or class labels. */
#ifndef CHOOSE_H
#define CHOOSE_H

#include "session.h"

typedef enum choice_kind { CHOICE_RANDOM, CHOICE_ROWS, CHOICE_LABELS, CHOICE_MIX } choice_kind;

typedef struct choice {
    choice_kind kind;
    int64_t *items; /* (count) rows or labels, used in turn */
    int64_t count;
    int64_t mixed[2]; /* CHOICE_MIX: the rows A and B */
    float *ends;      /* CHOICE_MIX: (2, width), normalised */
} choice;

/* Refuses flags that contradict each other, before any file is opened. */
outcome choose_check(const arguments *args, gmem_error *error);
/* Reads the flags; the network, and its bank where it has one, are open. */
outcome choose(session *s, choice *out, gmem_error *error);

/* A row by its number or name. */
outcome find_row(session *s, const char *what, int64_t *row, gmem_error *error);
/* "A-B,C" as rows that the bank has, in the session's memory. */
outcome parse_rows(session *s, const char *text, int64_t **rows, int64_t *count, gmem_error *error);

gmem_mix_method mix_method_of(const arguments *args);
/* The seed of --seed, or one from the system's entropy. */
uint64_t seed_of(const arguments *args);
gmem_rng_kind rng_of(const arguments *args);

#endif /* CHOOSE_H */
