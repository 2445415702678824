/* What to draw, as the flags of sample and of the bank's commands say it. */
#define _POSIX_C_SOURCE 200809L
#include "choose.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MOST_ROWS 100000000

outcome choose_check(const arguments *args, gmem_error *error) {
    const flag_id ways[] = {FLAG_memory, FLAG_rows, FLAG_mix, FLAG_label, FLAG_like};
    const char *const names[] = {"memory", "rows", "mix", "label", "like"};
    const char *first = NULL;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        if (!args->given[ways[i]]) continue;
        if (first)
            return misused(error, "--%s and --%s cannot be combined: choose one way to say what to draw", first,
                           names[i]);
        first = names[i];
    }
    if (args->mix.count && args->mix.count != 2)
        return misused(error, "--mix needs two values, found %d: --mix A B", args->mix.count);
    if (args->mix.count && args->given[FLAG_count])
        return misused(error, "--count and --mix cannot be combined: --frames says how many pictures there are");
    if (!args->mix.count && args->given[FLAG_frames]) return misused(error, "--frames needs --mix A B");
    if (!args->mix.count && args->given[FLAG_mix_method]) return misused(error, "--mix-method needs --mix A B");
    if (args->given[FLAG_strength] && !args->like.count) return misused(error, "--strength needs --like IMAGE");
    if (args->published_range && args->command == COMMAND_SAMPLE && !args->like.count && !args->memory.count &&
        !args->mix.count)
        return misused(error, "--published-range is for pictures: --like, --memory or --mix with a file");
    return OUTCOME_DONE;
}

/* A pipe would block whoever opens it. */
static int is_file(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && S_ISREG(status.st_mode);
}

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c; }

static int is_word_byte(char c) {
    c = lower(c);
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (unsigned char)c >= 0x80;
}

/* Whether `name` has `words` in it, as whole words, case ignored. */
static int has_words(const char *name, const char *words) {
    size_t length = strlen(words);
    for (const char *at = name; *at; at++) {
        size_t i = 0;
        while (i < length && lower(at[i]) == lower(words[i])) {
            i++;
        }
        if (i == length && (at == name || !is_word_byte(at[-1])) && !is_word_byte(at[length])) return 1;
    }
    return 0;
}

/* The one row whose name has these words: "pizza" is enough for "slice of pizza". */
static int find_by_words(const gmem_bank *bank, const char *words, int64_t *row) {
    int64_t found = -1, rows = gmem_bank_rows(bank);
    for (int64_t i = 0; i < rows; i++) {
        const char *name = gmem_bank_name(bank, i);
        if (!name || !has_words(name, words)) continue;
        if (found >= 0) return 0;
        found = i;
    }
    if (found < 0) return 0;
    *row = found;
    return 1;
}

/* Of what could be a row's name as well: `error` says why that it is not. */
static outcome no_picture(const char *what, gmem_error *error) {
    char why[sizeof error->message];
    memcpy(why, error->message, sizeof why);
    return failed(error, what, "no such picture file, and %s", why);
}

/* A row by its number, name, or words of its name; *picture where `what` is a picture file instead. Whoever has no bank
 * open can only mean a picture. */
static outcome find(session *s, const char *what, int64_t *row, int *photo, gmem_error *error) {
    *photo = 0;
    if (s->bank && parse_integer(what, 0, INT64_MAX, row)) {
        if (*row < gmem_bank_rows(s->bank)) return OUTCOME_DONE;
        return failed(error, gmem_bank_file_path(s->bank, 0), "no row %lld: the bank's rows are 0 to %lld",
                      (long long)*row, (long long)gmem_bank_rows(s->bank) - 1);
    }
    if (s->bank && gmem_bank_find(s->bank, what, row, error) == GMEM_OK) return OUTCOME_DONE;
    if (s->bank && find_by_words(s->bank, what, row)) return OUTCOME_DONE;
    *photo = !s->bank || is_file(what); /* one that cannot be read says why */
    if (*photo) return OUTCOME_DONE;
    if (has_picture_name(what)) return no_picture(what, error);
    if (!error->path[0]) snprintf(error->path, sizeof error->path, "%s", gmem_bank_file_path(s->bank, 0));
    return OUTCOME_FAILED;
}

outcome find_snippet(session *s, const char *what, int64_t width, float *out, gmem_error *error) {
    int64_t row = 0;
    int photo = 0;
    TRY(find(s, what, &row, &photo, error));
    return photo ? picture_snippet(s, what, width, out, error) : read_snippet(s, row, out, error);
}

/* Reads "A" or "A-B" and moves past it. */
static outcome parse_range(const char **text, int64_t *first, int64_t *last, gmem_error *error) {
    char low[24], high[24];
    size_t length = strcspn(*text, ","), dash = strcspn(*text, "-,");
    snprintf(low, sizeof low, "%.*s", (int)dash, *text);
    snprintf(high, sizeof high, "%s", low);
    if (dash < length) snprintf(high, sizeof high, "%.*s", (int)(length - dash - 1), *text + dash + 1);
    if (dash >= sizeof low || !parse_integer(low, 0, INT64_MAX, first) || !parse_integer(high, 0, INT64_MAX, last) ||
        *first > *last)
        return misused(error, "--rows: expected A-B,C and the like, found '%s'", *text);
    *text += length + ((*text)[length] == ',' && (*text)[length + 1] != 0);
    return **text == ',' ? misused(error, "--rows: expected a row after the comma") : OUTCOME_DONE;
}

outcome parse_rows(session *s, const char *text, int64_t **rows, int64_t *count, gmem_error *error) {
    int64_t first, last, bank_rows = gmem_bank_rows(s->bank), total = 0;
    for (const char *at = text; *at;) {
        TRY(parse_range(&at, &first, &last, error));
        if (last >= bank_rows)
            return failed(error, gmem_bank_file_path(s->bank, 0), "no row %lld: the bank's rows are 0 to %lld",
                          (long long)last, (long long)bank_rows - 1);
        total += last - first + 1;
        if (total > MOST_ROWS) return misused(error, "--rows: more than %d rows at once", MOST_ROWS);
    }
    *rows = (int64_t *)session_alloc(s, total, sizeof **rows);
    if (!*rows) return out_of_memory(error);
    *count = 0;
    for (const char *at = text; *at;) {
        TRY(parse_range(&at, &first, &last, error));
        for (int64_t row = first; row <= last; row++) {
            (*rows)[(*count)++] = row;
        }
    }
    return OUTCOME_DONE;
}

static outcome choose_labels(session *s, choice *out, gmem_error *error) {
    for (int i = 0; i < s->args->label.count; i++) {
        const char *text = s->args->label.items[i];
        if (!parse_integer(text, INT64_MIN, INT64_MAX, &out->items[i]))
            return misused(error, "--label: expected integers, found '%s'", text);
        if (out->items[i] < 0 || out->items[i] >= s->network_info->classes)
            return failed(error, gmem_file_path(s->network_file), "no label %lld: the network's are 0 to %lld",
                          (long long)out->items[i], (long long)s->network_info->classes - 1);
    }
    return OUTCOME_DONE;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static outcome choose_picture(session *s, const char *path, choice *out, int64_t *item, gmem_error *error) {
    chosen_picture *photo = &out->pictures[out->picture_count];
    int64_t width = s->network_info->snippet_width;
    float *snippet = session_floats(s, width);
    if (!snippet) return out_of_memory(error);
    TRY(picture_snippet(s, path, width, snippet, error));
    photo->path = path;
    photo->name = base_name(path);
    photo->snippet = snippet;
    *item = ~out->picture_count++;
    return OUTCOME_DONE;
}

/* --like takes pictures alone: a row's number must not be taken for a missing file's name. */
static outcome choose_what(session *s, const text_list *what, int pictures_only, choice *out, gmem_error *error) {
    out->pictures = (chosen_picture *)session_alloc(s, what->count, sizeof *out->pictures);
    if (!out->pictures) return out_of_memory(error);
    for (int i = 0; i < what->count; i++) {
        int photo = 1;
        if (!pictures_only) TRY(find(s, what->items[i], &out->items[i], &photo, error));
        if (photo) TRY(choose_picture(s, what->items[i], out, &out->items[i], error));
    }
    return OUTCOME_DONE;
}

static outcome choose_mix(session *s, choice *out, gmem_error *error) {
    int64_t width = s->network_info->snippet_width;
    out->ends = session_floats(s, 2 * width);
    if (!out->ends) return out_of_memory(error);
    TRY(choose_what(s, &s->args->mix, 0, out, error));
    for (int i = 0; i < 2; i++) {
        const chosen_picture *photo = picture_of(out, out->items[i]);
        if (!photo) TRY(read_snippet(s, out->items[i], out->ends + i * width, error));
        if (photo) memcpy(out->ends + i * width, photo->snippet, (size_t)width * sizeof(float));
    }
    return OUTCOME_DONE;
}

static const text_list *list_of(const arguments *args) {
    return args->label.count  ? &args->label
           : args->like.count ? &args->like
           : args->mix.count  ? &args->mix
                              : &args->memory;
}

int choose_needs_bank(const arguments *args) {
    const text_list *what = list_of(args);
    if (!args->network || args->bank.count || args->rows || !what->count) return 1;
    if (args->like.count) return args->given[FLAG_strength] && args->strength < 1;
    for (int i = 0; i < what->count; i++) {
        if (!is_picture(what->items[i])) return 1;
    }
    return 0;
}

outcome choose(session *s, choice *out, gmem_error *error) {
    const arguments *args = s->args;
    const text_list *what = list_of(args);
    int by_snippet = args->memory.count || args->rows || args->mix.count || args->like.count;
    memset(out, 0, sizeof *out);
    if (!s->network_info->snippet_width && by_snippet)
        return misused(error, "%s is conditioned on classes: choose with --label", s->network_info->name);
    if (s->network_info->snippet_width && args->label.count)
        return misused(error, "%s draws from a bank: choose with --memory, --rows, --mix or --like",
                       s->network_info->name);
    out->count = what->count;
    out->items = (int64_t *)session_alloc(s, out->count, sizeof *out->items);
    if (!out->items) return out_of_memory(error);
    out->kind = args->label.count  ? CHOICE_LABELS
                : args->mix.count  ? CHOICE_MIX
                : args->like.count ? CHOICE_LIKE
                : by_snippet       ? CHOICE_SNIPPETS
                                   : CHOICE_RANDOM;
    if (out->kind == CHOICE_LABELS) return choose_labels(s, out, error);
    if (out->kind == CHOICE_MIX) return choose_mix(s, out, error);
    if (args->rows) return parse_rows(s, args->rows, &out->items, &out->count, error);
    return choose_what(s, what, out->kind == CHOICE_LIKE, out, error);
}

const chosen_picture *picture_of(const choice *from, int64_t item) {
    return from->kind != CHOICE_LABELS && item < 0 ? &from->pictures[~item] : NULL;
}

const char *item_text(const choice *from, int64_t item, char *out, size_t bytes) {
    const chosen_picture *photo = picture_of(from, item);
    if (photo) return photo->path;
    snprintf(out, bytes, "%lld", (long long)item);
    return out;
}

gmem_mix_method mix_method_of(const arguments *args) {
    return args->mix_method ? (gmem_mix_method)(args->mix_method - 1) : GMEM_MIX_LINEAR;
}

gmem_rng_kind rng_of(const arguments *args) { return args->rng ? (gmem_rng_kind)(args->rng - 1) : GMEM_RNG_PHILOX; }

/* 32 bits are quick to type again, and all that PyTorch's CPU generator takes. */
uint64_t seed_of(const arguments *args) {
    uint32_t seed = (uint32_t)time(NULL) * 2654435761u ^ (uint32_t)getpid() << 16 ^ (uint32_t)(seconds_now() * 1e6);
    if (args->given[FLAG_seed]) return args->seed;
    FILE *entropy = fopen("/dev/urandom", "rb");
    if (entropy) {
        uint32_t bits = 0;
        if (fread(&bits, sizeof bits, 1, entropy) == 1) seed ^= bits;
        fclose(entropy);
    }
    return seed;
}
