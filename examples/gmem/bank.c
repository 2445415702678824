/* gmem bank: info, get, mix. */
#include "choose.h"
#include "commands.h"
#include "interrupt.h"

#include <string.h>

/* info ------------------------------------------------------------------------------------------------------------ */

static const char *kind_name(const gmem_bank *bank) {
    return gmem_bank_get_kind(bank) == GMEM_BANK_DECOMPOSED ? "decomposed" : "full";
}

static void print_bank_json(const gmem_bank *bank) {
    json_writer json;
    json_begin(&json, stdout);
    json_open(&json, NULL, '{');
    json_integer(&json, "rows", gmem_bank_rows(bank));
    json_integer(&json, "width", gmem_bank_width(bank));
    json_text(&json, "type", gmem_type_name(gmem_bank_type(bank)));
    json_text(&json, "kind", kind_name(bank));
    json_boolean(&json, "names", bank_has_names(bank));
    json_open(&json, "files", '[');
    for (int i = 0; i < gmem_bank_file_count(bank); i++) {
        json_open(&json, NULL, '{');
        json_text(&json, "path", gmem_bank_file_path(bank, i));
        json_integer(&json, "rows", gmem_bank_file_rows(bank, i));
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_close(&json, '}');
}

static void print_bank_text(const gmem_bank *bank) {
    char plain[1024];
    printf("rows   %lld\nwidth  %lld\ntype   %s, %s\nnames  %s\n", (long long)gmem_bank_rows(bank),
           (long long)gmem_bank_width(bank), gmem_type_name(gmem_bank_type(bank)), kind_name(bank),
           bank_has_names(bank) ? "yes" : "no");
    for (int i = 0; i < gmem_bank_file_count(bank); i++) {
        printf("file   %s: %lld rows\n", gmem_escape(gmem_bank_file_path(bank, i), plain, sizeof plain),
               (long long)gmem_bank_file_rows(bank, i));
    }
}

outcome command_bank_info(const arguments *args, gmem_error *error) {
    session s;
    memset(&s, 0, sizeof s);
    outcome result = session_begin(&s, args, error);
    if (result == OUTCOME_DONE) result = open_bank(&s, error);
    if (result == OUTCOME_DONE) (args->json ? print_bank_json : print_bank_text)(s.bank);
    session_end(&s);
    return result;
}

/* get ------------------------------------------------------------------------------------------------------------- */

/* The chosen rows' names in the native form: one run of UTF-8, and where each begins. */
typedef struct names {
    char *text;       /* (offsets[count]) */
    int64_t *offsets; /* (count + 1) */
} names;

static outcome gather_names(session *s, const int64_t *rows, int64_t count, names *out, gmem_error *error) {
    out->offsets = (int64_t *)session_alloc(s, count + 1, sizeof *out->offsets);
    if (!out->offsets) return out_of_memory(error);
    for (int64_t i = 0; i < count; i++) {
        const char *name = gmem_bank_name(s->bank, rows[i]);
        out->offsets[i + 1] = out->offsets[i] + (name ? (int64_t)strlen(name) : 0);
    }
    out->text = (char *)session_alloc(s, out->offsets[count], 1);
    if (!out->text) return out_of_memory(error);
    for (int64_t i = 0; i < count; i++) {
        const char *name = gmem_bank_name(s->bank, rows[i]);
        if (name) memcpy(out->text + out->offsets[i], name, strlen(name));
    }
    return OUTCOME_DONE;
}

/* What is written: rows as they are chosen, one of them at hand. */
typedef struct chosen_rows {
    const gmem_bank *bank;
    const int64_t *rows;
    int64_t at; /* the one of `row`, or -1 */
    float *row; /* (width) */
} chosen_rows;

/* Elements [first, first + count) of `features`: a row may begin in one call and end in the next. */
static gmem_status fill_chosen(void *user, int64_t index, int64_t first, int64_t count, void *out, gmem_error *error) {
    chosen_rows *c = (chosen_rows *)user;
    const int64_t width = gmem_bank_width(c->bank);
    float *to = (float *)out;
    (void)index; /* names have data */
    while (count > 0) {
        const int64_t at = first / width, column = first % width;
        const int64_t some = count < width - column ? count : width - column;
        if (interrupt_check(error) != OUTCOME_DONE) return GMEM_E_CANCELLED;
        if (at != c->at) {
            gmem_status status = gmem_bank_row(c->bank, c->rows[at], c->row, error);
            if (status != GMEM_OK) return status;
            c->at = at;
        }
        memcpy(to, c->row + column, (size_t)some * sizeof *to);
        first += some;
        count -= some;
        to += some;
    }
    return GMEM_OK;
}

static outcome get(session *s, gmem_error *error) {
    int64_t *rows = NULL, count = 0;
    gmem_tensor tensors[3];
    names n;
    if (!s->args->rows) return misused(error, "gmem bank get needs --rows A-B,C");
    if (!s->args->output) return misused(error, "gmem bank get needs -o FILE");
    TRY(open_bank(s, error));
    TRY(parse_rows(s, s->args->rows, &rows, &count, error));
    TRY(gather_names(s, rows, count, &n, error));
    const int64_t shape[2] = {count, gmem_bank_width(s->bank)}, offsets = count + 1;
    chosen_rows chosen = {s->bank, rows, -1, session_floats(s, shape[1])};
    if (!chosen.row) return out_of_memory(error);
    tensors[0] = gmem_tensor_make("features", GMEM_F32, 2, shape, NULL);
    tensors[1] = gmem_tensor_make("names", GMEM_U8, 1, &n.offsets[count], n.text);
    tensors[2] = gmem_tensor_make("names.offsets", GMEM_I64, 1, &offsets, n.offsets);
    return save_filled(s, tensors, n.offsets[count] > 0 ? 3 : 1, fill_chosen, &chosen, error);
}

outcome command_bank_get(const arguments *args, gmem_error *error) {
    session s;
    memset(&s, 0, sizeof s);
    outcome result = session_begin(&s, args, error);
    if (result == OUTCOME_DONE) result = get(&s, error);
    session_end(&s);
    return result;
}

/* mix ------------------------------------------------------------------------------------------------------------- */

/* Where A and B come from: rows, pictures, or the vectors a and b of --input. Normalised. */
static outcome mix_ends(session *s, float **ends, int64_t *width, gmem_error *error) {
    static const char *const vectors[] = {"a", "b"};
    const arguments *args = s->args;
    const gmem_tensor *tensor = NULL;
    int64_t any = -1;
    if (args->input) {
        TRY(open_input(s, error));
        TRY(input_tensor(s, "a", 1, &any, &tensor, error));
        *width = tensor->shape[0];
        if (*width < 1) return failed(error, args->input, "a: it is empty");
    } else {
        TRY(open_bank(s, error));
        *width = gmem_bank_width(s->bank);
    }
    *ends = session_floats(s, 2 * *width);
    if (!*ends) return out_of_memory(error);
    for (int i = 0; i < 2; i++) {
        float *end = *ends + i * *width;
        if (!args->input) {
            TRY(find_snippet(s, args->operands.items[i], *width, end, error));
            continue;
        }
        TRY(input_tensor(s, vectors[i], 1, width, &tensor, error));
        gmem_tensor_read_f32(tensor, 0, *width, end);
        if (gmem_normalize(end, *width, error) != GMEM_OK)
            return failed(error, args->input, "%s: it is zero or not finite", vectors[i]);
    }
    return OUTCOME_DONE;
}

/* Reads the alphas, one row each; one half where none is given. */
static outcome mix_alphas(session *s, double **alphas, int64_t *count, gmem_error *error) {
    const text_list *given = &s->args->alpha;
    *count = given->count ? given->count : 1;
    *alphas = (double *)session_alloc(s, *count, sizeof **alphas);
    if (!*alphas) return out_of_memory(error);
    (*alphas)[0] = 0.5;
    for (int i = 0; i < given->count; i++) {
        double *alpha = &(*alphas)[i];
        if (!parse_number(given->items[i], alpha) || *alpha < 0 || *alpha > 1)
            return misused(error, "--alpha: expected numbers 0..1, found '%s'", given->items[i]);
    }
    return OUTCOME_DONE;
}

static outcome mix_rows(session *s, const float *ends, int64_t width, const double *alphas, int64_t count,
                        gmem_error *error) {
    gmem_mix_method method = mix_method_of(s->args);
    uint64_t seed = method == GMEM_MIX_MASK ? seed_of(s->args) : 0;
    float *features = session_floats(s, count * width);
    if (!features) return out_of_memory(error);
    for (int64_t i = 0; i < count; i++) {
        gmem_rng rng; /* the same mask for every alpha: elements go over one after the other */
        gmem_rng_init(&rng, rng_of(s->args), seed);
        gmem_status status =
            gmem_mix(method, ends, ends + width, width, alphas[i], &rng, 0, features + i * width, error);
        TRY(in_file(s->args->input ? s->args->input : gmem_bank_file_path(s->bank, 0), status, error));
    }
    int64_t shape[2] = {count, width};
    gmem_tensor tensor = gmem_tensor_make("features", GMEM_F32, 2, shape, features);
    if (method == GMEM_MIX_MASK) note("seed: %llu", (unsigned long long)seed);
    return save_output(s, &tensor, 1, error);
}

static outcome mix(session *s, gmem_error *error) {
    const arguments *args = s->args;
    float *ends = NULL;
    double *alphas = NULL;
    int64_t width = 0, count = 0;
    if (!args->output) return misused(error, "gmem bank mix needs -o FILE");
    if (args->input && args->operands.count)
        return misused(error, "--input and '%s' cannot be combined: mix either tensors or rows",
                       args->operands.items[0]);
    if (args->input && args->bank.count) return misused(error, "--input and --bank cannot be combined");
    if (!args->input && args->operands.count != 2)
        return misused(error, "gmem bank mix needs two rows or pictures, A B, or --input FILE");
    TRY(mix_alphas(s, &alphas, &count, error));
    TRY(mix_ends(s, &ends, &width, error));
    return mix_rows(s, ends, width, alphas, count, error);
}

outcome command_bank_mix(const arguments *args, gmem_error *error) {
    session s;
    memset(&s, 0, sizeof s);
    outcome result = session_begin(&s, args, error);
    if (result == OUTCOME_DONE) result = mix(&s, error);
    session_end(&s);
    return result;
}
