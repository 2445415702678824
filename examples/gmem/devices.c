/* gmem devices: what can compute here. */
#include "commands.h"
#include "machine.h"

#include <string.h>

static int has_isa(int isa) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    memset(&desc, 0, sizeof desc);
    desc.isa = (gmem_isa)isa;
    int found = gmem_context_create(&desc, &context, NULL) == GMEM_OK;
    gmem_context_destroy(context);
    return found;
}

outcome command_devices(const arguments *args, gmem_error *error) {
    gmem_context *context = NULL;
    char model[256], isa[16];
    json_writer json;
    TRY(from_status(gmem_context_create(NULL, &context, error)));
    cpu_model(model, sizeof model);
    if (!args->json) {
        printf("0  cpu  %s, %d threads, instruction sets:", model, gmem_context_threads(context));
    } else {
        json_begin(&json, stdout);
        json_open(&json, NULL, '[');
        json_open(&json, NULL, '{');
        json_integer(&json, "device", 0);
        json_text(&json, "backend", gmem_context_backend(context));
        json_text(&json, "name", model);
        json_integer(&json, "threads", gmem_context_threads(context));
        json_open(&json, "isa", '[');
    }
    for (int i = GMEM_ISA_SCALAR; i <= GMEM_ISA_AMX; i++) {
        if (!has_isa(i)) continue;
        choice_name(FLAG_isa, i + 1, isa, sizeof isa);
        if (args->json) {
            json_text(&json, NULL, isa);
        } else {
            printf(" %s", isa);
        }
    }
    if (args->json) {
        json_close(&json, ']');
        json_close(&json, '}');
        json_close(&json, ']');
    } else {
        printf("\nin use: %s\n", gmem_context_backend(context));
    }
    gmem_context_destroy(context);
    return OUTCOME_DONE;
}
