/* What to draw: rows of the bank by number, name or at random, pictures, mixtures of two, or class labels. */
#ifndef CHOOSE_H
#define CHOOSE_H

#include "picture.h"

typedef enum choice_kind { CHOICE_RANDOM, CHOICE_SNIPPETS, CHOICE_LABELS, CHOICE_MIX, CHOICE_LIKE } choice_kind;

/* A picture file in place of a row. */
typedef struct chosen_picture {
    const char *path;
    const char *name;     /* without its folders */
    const float *snippet; /* (width), normalised */
} chosen_picture;

typedef struct choice {
    choice_kind kind;
    int64_t *items; /* (count) rows, or ~index of a picture; labels. Used in turn; of CHOICE_MIX the ends A and B */
    int64_t count;
    chosen_picture *pictures; /* (picture_count) */
    int64_t picture_count;
    float *ends; /* CHOICE_MIX: (2, width), normalised */
} choice;

/* Refuses flags that contradict each other, before any file is opened. */
outcome choose_check(const arguments *args, gmem_error *error);
/* Whether what the flags choose is in a bank: pictures alone need none. */
int choose_needs_bank(const arguments *args);
/* Reads the flags; the network, and its bank where it needs one, are open. */
outcome choose(session *s, choice *out, gmem_error *error);

/* The picture that an item stands for, or NULL. */
const chosen_picture *picture_of(const choice *from, int64_t item);
/* "3", or the path of a picture. */
const char *item_text(const choice *from, int64_t item, char *out, size_t bytes);

/* The snippet of a row by number or name, or of a picture file: out (width), normalised. */
outcome find_snippet(session *s, const char *what, int64_t width, float *out, gmem_error *error);
/* "A-B,C" as rows that the bank has, in the session's memory. */
outcome parse_rows(session *s, const char *text, int64_t **rows, int64_t *count, gmem_error *error);

gmem_mix_method mix_method_of(const arguments *args);
/* The seed of --seed, or one from the system's entropy. */
uint64_t seed_of(const arguments *args);
gmem_rng_kind rng_of(const arguments *args);

#endif /* CHOOSE_H */
