/* The command line, parsed strictly by the two tables of args.h, and the help that is printed from them. */
#include "args.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct command {
    const char *words, *operands;
    int fewest, most; /* operands; -1: any number */
    const char *summary, *example;
} command;

static const command commands[] = {
#define COMMAND_ROW(id, words, operands, fewest, most, summary, example) \
    {words, operands, fewest, most, summary, example},
    COMMAND_LIST(COMMAND_ROW)
#undef COMMAND_ROW
};

typedef enum flag_kind {
    KIND_TEXT,
    KIND_REPEAT,
    KIND_LIST,
    KIND_NUMBER,
    KIND_INTEGER,
    KIND_SEED,
    KIND_CHOICE,
    KIND_SWITCH
} flag_kind;

typedef struct flag {
    flag_kind kind;
    const char *name;
    char letter;
    size_t offset; /* of the member in `arguments` */
    const char *allowed, *value, *fallback;
    unsigned commands;
    const char *help;
} flag;

static const flag flags[] = {
#define FLAG_ROW(kind, name, letter, member, allowed, value, fallback, commands, help) \
    {KIND_##kind, name, letter, offsetof(arguments, member), allowed, value, fallback, commands, help},
    FLAG_LIST(FLAG_ROW)
#undef FLAG_ROW
};

const char *command_words(command_id id) { return id < COMMAND_COUNT ? commands[id].words : ""; }

/* values ---------------------------------------------------------------------------------------------------------- */

int parse_integer(const char *text, int64_t low, int64_t high, int64_t *out) {
    char *end = NULL;
    const char *digits = text + (*text == '-');
    if (!isdigit((unsigned char)*digits)) return 0; /* strtoll would skip spaces */
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || *end || value < low || value > high) return 0;
    *out = value;
    return 1;
}

/* The program never calls setlocale, so strtod and printf see the C locale whatever the host's is. */
int parse_number(const char *text, double *out) {
    char *end = NULL;
    if (!*text || text[strspn(text, "0123456789+-.eE")]) return 0; /* no spaces, hexadecimals, infinities */
    double value = strtod(text, &end);
    if (end == text || *end || !(value - value == 0.0)) return 0;
    *out = value;
    return 1;
}

static int parse_seed(const char *text, uint64_t *out) {
    char *end = NULL;
    if (!isdigit((unsigned char)*text)) return 0;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *end) return 0;
    *out = value;
    return 1;
}

static int same_bytes(const char *a, const char *b, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (tolower((unsigned char)a[i]) != tolower((unsigned char)b[i])) return 0;
    }
    return 1;
}

int same_ignoring_case(const char *a, const char *b) { return strlen(a) == strlen(b) && same_bytes(a, b, strlen(a)); }

/* The place of `text` among "a|b|c", from 1; 0 where it is none. */
static int parse_choice(const char *text, const char *allowed) {
    size_t bytes = strlen(text);
    for (int place = 1;; place++) {
        size_t length = strcspn(allowed, "|");
        if (length == bytes && same_bytes(text, allowed, bytes)) return place;
        if (!allowed[length]) return 0;
        allowed += length + 1;
    }
}

const char *choice_name(flag_id id, int choice, char *out, size_t bytes) {
    const char *allowed = flags[id].allowed;
    for (; choice > 1; choice--) {
        allowed += strcspn(allowed, "|") + 1;
    }
    snprintf(out, bytes, "%.*s", (int)strcspn(allowed, "|"), allowed);
    return out;
}

/* "LOW..HIGH", either side may be missing. */
static int within(double value, const char *range) {
    char low[32];
    double bound;
    const char *dots = strstr(range, "..");
    snprintf(low, sizeof low, "%.*s", (int)(dots - range), range);
    if (parse_number(low, &bound) && value < bound) return 0;
    return !(parse_number(dots + 2, &bound) && value > bound);
}

static outcome malformed(const flag *f, const char *text, const char *expected, gmem_error *error) {
    int limited = strlen(f->allowed) > 2; /* not ".." */
    return misused(error, "--%s: expected %s%s%s, found '%s'", f->name, expected, limited ? " " : "",
                   limited ? f->allowed : "", text);
}

static outcome append(text_list *list, int capacity, const char *text, gmem_error *error) {
    if (!list->items) list->items = (const char **)calloc((size_t)capacity, sizeof *list->items);
    if (!list->items) return out_of_memory(error);
    list->items[list->count++] = text;
    return OUTCOME_DONE;
}

static outcome store(const flag *f, void *member, int capacity, const char *text, gmem_error *error) {
    int64_t integer = 0;
    double number = 0;
    if (!*text) return misused(error, "--%s: the value is empty", f->name);
    switch (f->kind) {
    case KIND_TEXT:
        *(const char **)member = text;
        return OUTCOME_DONE;
    case KIND_REPEAT:
    case KIND_LIST:
        return append((text_list *)member, capacity, text, error);
    case KIND_NUMBER:
        if (!parse_number(text, &number) || !within(number, f->allowed)) return malformed(f, text, "a number", error);
        *(double *)member = number;
        return OUTCOME_DONE;
    case KIND_INTEGER:
        if (!parse_integer(text, INT64_MIN, INT64_MAX, &integer) || !within((double)integer, f->allowed))
            return malformed(f, text, "an integer", error);
        *(int64_t *)member = integer;
        return OUTCOME_DONE;
    case KIND_SEED:
        if (!parse_seed(text, (uint64_t *)member)) return malformed(f, text, "an integer from 0 to 2^64 - 1", error);
        return OUTCOME_DONE;
    case KIND_CHOICE:
        *(int *)member = parse_choice(text, f->allowed);
        return *(int *)member ? OUTCOME_DONE : malformed(f, text, "one of", error);
    case KIND_SWITCH:
        break;
    }
    return misused(error, "--%s takes no value", f->name);
}

/* flags ----------------------------------------------------------------------------------------------------------- */

/* How many edits lead from a to b, at most 31 letters each: enough to tell a slip from another word. */
static int edit_distance(const char *a, const char *b) {
    int row[32], columns = (int)strlen(b);
    if (strlen(a) > 31 || columns > 31) return 99;
    for (int j = 0; j <= columns; j++) {
        row[j] = j;
    }
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= columns; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[columns];
}

static outcome unknown_flag(command_id id, const char *name, gmem_error *error) {
    const char *nearest = NULL;
    int least = 3;
    for (int i = 0; i < FLAG_COUNT; i++) {
        int distance = edit_distance(name, flags[i].name);
        if (id < COMMAND_COUNT && !(flags[i].commands & (1u << id))) continue;
        if (distance < least) {
            least = distance;
            nearest = flags[i].name;
        }
    }
    const char *space = id < COMMAND_COUNT ? " " : "";
    if (nearest) return misused(error, "unknown flag --%s: did you mean --%s?", name, nearest);
    return misused(error, "unknown flag --%s: gmem%s%s -h lists the flags", name, space, command_words(id));
}

/* Finds the flag of "--name", "--name=value", "-x" or "-xvalue"; `*value` is the value that is attached, or NULL. */
static outcome find_flag(command_id id, const char *word, const flag **out, const char **value, gmem_error *error) {
    char name[64];
    int is_long = word[1] == '-';
    const char *equals = strchr(word, '=');
    size_t length = is_long ? (equals ? (size_t)(equals - word) - 2 : strlen(word) - 2) : 1;
    snprintf(name, sizeof name, "%.*s", (int)length, word + (is_long ? 2 : 1));
    *value = is_long ? (equals ? equals + 1 : NULL) : word[2] ? word + 2 + (word[2] == '=') : NULL;
    for (int i = 0; i < FLAG_COUNT; i++) {
        const flag *f = &flags[i];
        if (is_long ? strcmp(f->name, name) != 0 : f->letter != word[1]) continue;
        *out = f;
        if (id == COMMAND_COUNT ? f->commands == EVERYWHERE : (f->commands & (1u << id)) != 0) return OUTCOME_DONE;
        if (id == COMMAND_COUNT)
            return misused(error, "--%s belongs after a command: gmem COMMAND --%s", f->name, f->name);
        return misused(error, "gmem %s does not take --%s: gmem %s -h lists its flags", command_words(id), f->name,
                       command_words(id));
    }
    if (is_long) return unknown_flag(id, name, error);
    return misused(error, "unknown flag -%s: gmem%s%s -h lists the flags", name, id < COMMAND_COUNT ? " " : "",
                   command_words(id));
}

/* A word that begins another flag; a negative number is a value. */
static int is_flag(const char *word) {
    return word[0] == '-' && word[1] != 0 && !isdigit((unsigned char)word[1]) && word[1] != '.';
}

typedef struct cursor {
    int argc, next;
    char **argv;
} cursor;

static outcome parse_flag(arguments *out, cursor *at, gmem_error *error) {
    const flag *f = NULL;
    const char *value = NULL;
    TRY(find_flag(out->command, at->argv[at->next++], &f, &value, error));
    void *member = (char *)out + f->offset;
    if (out->given[f - flags]++ && f->kind != KIND_REPEAT)
        return misused(error, "--%s is given twice%s", f->name,
                       f->kind == KIND_LIST ? ": put all its values behind the first" : "");
    if (f->kind == KIND_SWITCH) {
        if (value) return misused(error, "--%s takes no value, found '%s'", f->name, value);
        *(int *)member = 1;
        return OUTCOME_DONE;
    }
    if (!value) {
        if (at->next >= at->argc || is_flag(at->argv[at->next]) || !strcmp(at->argv[at->next], "-"))
            return misused(error, "--%s needs a value: --%s %s", f->name, f->name, f->value);
        value = at->argv[at->next++];
    } else if (f->kind == KIND_LIST) {
        return store(f, member, at->argc, value, error); /* --memory=NAME: that one value only */
    }
    TRY(store(f, member, at->argc, value, error));
    while (f->kind == KIND_LIST && at->next < at->argc && !is_flag(at->argv[at->next])) {
        TRY(store(f, member, at->argc, at->argv[at->next++], error));
    }
    return OUTCOME_DONE;
}

/* commands -------------------------------------------------------------------------------------------------------- */

/* Matches the first word or two against the table. `*words` receives how many were used. */
static outcome find_command(int argc, char **argv, command_id *out, int *words, gmem_error *error) {
    int is_group = 0;
    for (int i = 0; i < COMMAND_COUNT; i++) {
        const char *space = strchr(commands[i].words, ' ');
        size_t first = space ? (size_t)(space - commands[i].words) : strlen(commands[i].words);
        if (strlen(argv[1]) != first || strncmp(argv[1], commands[i].words, first) != 0) continue;
        *out = (command_id)i;
        *words = space ? 2 : 1;
        is_group = space != NULL;
        if (!space || (argc > 2 && strcmp(argv[2], space + 1) == 0)) return OUTCOME_DONE;
    }
    *out = COMMAND_COUNT;
    if (!is_group) return misused(error, "unknown command '%s': gmem -h lists the commands", argv[1]);
    if (argc == 3 && (!strcmp(argv[2], "-h") || !strcmp(argv[2], "--help"))) { /* "bank -h" lists all */
        *words = 1;
        return OUTCOME_DONE;
    }
    if (argc > 2 && !is_flag(argv[2]))
        return misused(error, "unknown command '%s %s': gmem -h lists the commands", argv[1], argv[2]);
    return misused(error, "gmem %s needs to know what to do: gmem -h lists the commands", argv[1]);
}

static outcome check_operands(const arguments *out, gmem_error *error) {
    const command *c = &commands[out->command];
    if (out->operands.count < c->fewest)
        return misused(error, "gmem %s needs %s: %s", c->words, c->operands, c->example);
    if (c->most >= 0 && out->operands.count > c->most)
        return misused(error, "gmem %s: unexpected '%s'%s", c->words, out->operands.items[c->most],
                       c->most == 0 ? "; values stand behind their flags" : "");
    for (int i = 0; i < out->operands.count; i++) {
        if (!out->operands.items[i][0]) return misused(error, "gmem %s: an operand is empty: %s", c->words, c->example);
    }
    return OUTCOME_DONE;
}

outcome arguments_parse(arguments *out, int argc, char **argv, gmem_error *error) {
    cursor at = {argc, 1, argv};
    int words = 0;
    memset(out, 0, sizeof *out);
    out->command = COMMAND_COUNT;
    if (argc < 2) return misused(error, "no command is given: gmem sample draws pictures, gmem -h lists the commands");
    if (argv[1][0] != '-') {
        TRY(find_command(argc, argv, &out->command, &words, error));
        at.next += words;
    }
    while (at.next < argc) {
        const char *word = argv[at.next];
        if (strcmp(word, "--") == 0) {
            for (at.next++; at.next < argc; at.next++) {
                TRY(append(&out->operands, argc, argv[at.next], error));
            }
        } else if (is_flag(word)) {
            TRY(parse_flag(out, &at, error));
        } else if (out->command == COMMAND_COUNT) {
            return misused(error, "the command comes first: gmem %s", word);
        } else {
            TRY(append(&out->operands, argc, word, error));
            at.next++;
        }
    }
    if (out->quiet && out->verbose) return misused(error, "--quiet and --verbose cannot be combined");
    if (out->help || out->version) return OUTCOME_DONE;
    if (out->command == COMMAND_COUNT) return misused(error, "no command is given: gmem -h lists the commands");
    return check_operands(out, error);
}

void arguments_free(arguments *args) {
    free(args->operands.items);
    for (int i = 0; i < FLAG_COUNT; i++) {
        if (flags[i].kind == KIND_LIST || flags[i].kind == KIND_REPEAT)
            free(((text_list *)(void *)((char *)args + flags[i].offset))->items);
    }
}

/* help ------------------------------------------------------------------------------------------------------------ */

static void print_flags(FILE *to, unsigned mask, int all_commands) {
    for (int i = 0; i < FLAG_COUNT; i++) {
        const flag *f = &flags[i];
        char left[64], letter[8] = "    ";
        if (all_commands ? f->commands != EVERYWHERE : !(f->commands & mask)) continue;
        if (f->letter) snprintf(letter, sizeof letter, "-%c, ", f->letter);
        snprintf(left, sizeof left, "%s--%s %s", letter, f->name, f->value);
        fprintf(to, "  %-30s %s", left, f->help);
        if (f->fallback[0]) fprintf(to, " [%s]", f->fallback);
        if (f->kind == KIND_CHOICE) fprintf(to, "\n%33s%s", "", f->allowed);
        fputc('\n', to);
    }
}

void print_help(FILE *to, command_id id) {
    if (id < COMMAND_COUNT) {
        const command *c = &commands[id];
        fprintf(to, "usage: gmem %s %s%s[flags]\n%s\n\n", c->words, c->operands, c->operands[0] ? " " : "", c->summary);
        print_flags(to, 1u << id, 0);
        if (c->example[0]) fprintf(to, "\nexample: %s\n", c->example);
        return;
    }
    fprintf(to, "gmem %s: image generation with explicit memory\n\nusage: gmem COMMAND [flags]\n\n", gmem_version());
    for (int i = 0; i < COMMAND_COUNT; i++) {
        fprintf(to, "  %-18s %s\n", commands[i].words, commands[i].summary);
    }
    fputs("\nevery command takes:\n", to);
    print_flags(to, 0, 1);
    fputs("\nexample: gmem sample -o picture.png; gmem sample -h shows its flags\n", to);
}
