/* gmem bank search: the rows of a bank that are nearest to rows, names, pictures or vectors. */
#include "choose.h"
#include "commands.h"
#include "search.h"

#include <string.h>

#define DEFAULT_K 10

/* The vectors to search for, and what to call them. */
typedef struct queries {
    float *vectors;           /* (count, width) */
    const char *const *texts; /* (count) as they were given; NULL: `query` of --input */
    int64_t count;
} queries;

/* `query` (count, width), or (width) for one. */
static outcome read_queries(session *s, int64_t width, queries *out, gmem_error *error) {
    const gmem_tensor *tensor = NULL;
    int64_t shape[2] = {-1, width};
    int one;
    TRY(open_input(s, error));
    const gmem_tensor *found = gmem_file_find(s->input, "query");
    one = found && found->rank == 1;
    TRY(input_floats(s, "query", one ? 1 : 2, one ? &width : shape, &tensor, &out->vectors, error));
    out->count = one ? 1 : tensor->shape[0];
    return OUTCOME_DONE;
}

static outcome gather_queries(session *s, queries *out, gmem_error *error) {
    const text_list *what = &s->args->operands;
    int64_t width = gmem_bank_width(s->bank);
    memset(out, 0, sizeof *out);
    if (s->args->input) return read_queries(s, width, out, error);
    out->count = what->count;
    out->texts = what->items;
    out->vectors = session_floats(s, out->count * width);
    if (!out->vectors) return out_of_memory(error);
    for (int64_t i = 0; i < out->count; i++) {
        TRY(find_snippet(s, what->items[i], width, out->vectors + i * width, error));
    }
    return OUTCOME_DONE;
}

/* printing -------------------------------------------------------------------------------------------------------- */

static void print_json(const gmem_bank *bank, const queries *q, int64_t k, const gmem_match *matches) {
    json_writer json;
    json_begin(&json, stdout);
    json_open(&json, NULL, '{');
    json_open(&json, "results", '[');
    for (int64_t i = 0; i < q->count; i++) {
        json_open(&json, NULL, '[');
        for (int64_t j = 0; j < k && matches[i * k + j].row >= 0; j++) {
            const gmem_match *match = &matches[i * k + j];
            json_open(&json, NULL, '{');
            json_integer(&json, "row", match->row);
            json_text(&json, "name", gmem_bank_name(bank, match->row));
            json_number(&json, "cosine", (double)match->cosine);
            json_close(&json, '}');
        }
        json_close(&json, ']');
    }
    json_close(&json, ']');
    json_close(&json, '}');
}

static void print_text(const gmem_bank *bank, const queries *q, int64_t k, const gmem_match *matches) {
    char plain[1024];
    for (int64_t i = 0; i < q->count; i++) {
        if (q->count > 1 && q->texts) printf("%s%s\n", i ? "\n" : "", gmem_escape(q->texts[i], plain, sizeof plain));
        if (q->count > 1 && !q->texts) printf("%squery %lld\n", i ? "\n" : "", (long long)i);
        for (int64_t j = 0; j < k && matches[i * k + j].row >= 0; j++) {
            const gmem_match *match = &matches[i * k + j];
            const char *name = gmem_bank_name(bank, match->row);
            printf("%10lld  %8.6f%s%s\n", (long long)match->row, (double)match->cosine, name ? "  " : "",
                   name ? gmem_escape(name, plain, sizeof plain) : "");
        }
    }
}

/* the command ----------------------------------------------------------------------------------------------------- */

outcome open_rerank(session *s, gmem_bank **out, gmem_error *error) {
    const char *path = s->args->rerank;
    *out = NULL;
    if (!path) return OUTCOME_DONE;
    gmem_bank_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.paths = &path;
    desc.path_count = 1;
    return in_file(path, gmem_bank_open(s->context, &desc, out, error), error);
}

static outcome search(session *s, gmem_bank **rerank, gmem_error *error) {
    const arguments *args = s->args;
    gmem_bank_search_desc desc;
    queries q;
    if (args->input && args->operands.count)
        return misused(error, "--input and '%s' cannot be combined: search for either tensors or rows",
                       args->operands.items[0]);
    if (!args->input && !args->operands.count)
        return misused(error, "gmem bank search needs what to search for: rows, names, pictures or --input FILE");
    TRY(open_bank(s, error));
    TRY(open_rerank(s, rerank, error));
    TRY(gather_queries(s, &q, error));
    memset(&desc, 0, sizeof desc);
    desc.queries = q.vectors;
    desc.count = q.count;
    desc.k = args->given[FLAG_k] ? args->k : DEFAULT_K;
    if (desc.k > gmem_bank_rows(s->bank)) desc.k = gmem_bank_rows(s->bank); /* all there are */
    desc.rerank = *rerank;
    gmem_match *matches = (gmem_match *)session_alloc(s, q.count * desc.k, sizeof *matches);
    if (!matches) return out_of_memory(error);
    TRY(in_file(args->input ? args->input : gmem_bank_file_path(s->bank, 0),
                gmem_bank_search(s->bank, &desc, matches, error), error));
    (args->json ? print_json : print_text)(s->bank, &q, desc.k, matches);
    return OUTCOME_DONE;
}

outcome command_bank_search(const arguments *args, gmem_error *error) {
    session s;
    gmem_bank *rerank = NULL;
    memset(&s, 0, sizeof s);
    outcome result = session_begin(&s, args, error);
    if (result == OUTCOME_DONE) result = search(&s, &rerank, error);
    gmem_bank_close(rerank);
    session_end(&s);
    return result;
}
