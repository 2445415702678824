/* gmem bank compress: a bank of a rank, or of another type, and what was lost. */
#include "commands.h"
#include "interrupt.h"
#include "session.h"

#include <string.h>

static gmem_type type_of(const arguments *args) { return written_type(args, args->rank ? GMEM_F32 : GMEM_I8); }

static int show_progress(void *user, int64_t done, int64_t total) {
    progress_show((progress_bar *)user, done / 1000, total / 1000, "thousand rows");
    return interrupt_pending();
}

static void print_json(const session *s, const gmem_bank_compress_desc *desc, const gmem_bank_compress_report *r) {
    json_writer json;
    json_begin(&json, stdout);
    json_open(&json, NULL, '{');
    json_text(&json, "output", s->args->output);
    json_integer(&json, "rows", gmem_bank_rows(s->bank));
    json_integer(&json, "width", gmem_bank_width(s->bank));
    if (desc->rank > 0) {
        json_integer(&json, "rank", desc->rank);
    } else {
        json_text(&json, "rank", NULL);
    }
    json_text(&json, "type", gmem_type_name(desc->type));
    json_number(&json, "energy", r->energy);
    json_number(&json, "mean_cosine", r->mean_cosine);
    json_number(&json, "least_cosine", r->least_cosine);
    json_integer(&json, "bytes_before", r->bytes_before);
    json_integer(&json, "bytes_after", r->bytes_after);
    json_close(&json, '}');
}

static void print_text(const session *s, const gmem_bank_compress_desc *desc, const gmem_bank_compress_report *r) {
    char plain[1024], rank[64] = "all directions";
    if (s->args->quiet) return;
    if (desc->rank > 0) snprintf(rank, sizeof rank, "rank %lld", (long long)desc->rank);
    printf("%s\n", gmem_escape(s->args->output, plain, sizeof plain));
    printf("rows    %lld of width %lld\n", (long long)gmem_bank_rows(s->bank), (long long)gmem_bank_width(s->bank));
    printf("type    %s, %s\n", gmem_type_name(desc->type), rank);
    printf("energy  %.6f of the rows' about their mean\n", r->energy);
    printf("cosine  %.6f on average, %.6f at least\n", r->mean_cosine, r->least_cosine);
    printf("bytes   %lld, before %lld: %.1f %%\n", (long long)r->bytes_after, (long long)r->bytes_before,
           100.0 * (double)r->bytes_after / (double)r->bytes_before);
}

static outcome compress(session *s, gmem_error *error) {
    const arguments *args = s->args;
    gmem_bank_compress_report report;
    gmem_bank_compress_desc desc;
    progress_bar bar;
    memset(&desc, 0, sizeof desc);
    desc.rank = args->rank;
    desc.type = type_of(args);
    desc.progress = show_progress;
    desc.user = &bar;
    TRY(check_bank_output(args->output, error));
    TRY(open_bank(s, error));
    progress_begin(&bar);
    gmem_status status = gmem_bank_compress(s->bank, args->output, &desc, &report, error);
    progress_end(&bar);
    TRY(in_file(gmem_bank_file_path(s->bank, 0), status, error));
    (args->json ? print_json : print_text)(s, &desc, &report);
    return OUTCOME_DONE;
}

outcome command_bank_compress(const arguments *args, gmem_error *error) {
    session s;
    memset(&s, 0, sizeof s);
    if (!args->output) return misused(error, "gmem bank compress needs -o FILE");
    if (args->rank && type_of(args) == GMEM_I8)
        return misused(error, "--rank and --dtype int8 cannot be combined: int8 is for whole rows");
    outcome result = session_begin(&s, args, error);
    if (result == OUTCOME_DONE) result = compress(&s, error);
    session_end(&s);
    return result;
}
