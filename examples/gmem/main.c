/* gmem: the command. Parses, dispatches, and turns outcomes into the one error line and the exit code. */
#include "commands.h"
#include "interrupt.h"
#include "waiting.h"

#include <errno.h>
#include <string.h>

typedef outcome (*command_function)(const arguments *args, gmem_error *error);

static command_function function_of(command_id command) {
    switch (command) {
    case COMMAND_SAMPLE:
        return command_sample;
    case COMMAND_EVAL:
        return command_eval;
    case COMMAND_INTEGRATE:
        return command_integrate;
    case COMMAND_DECODE:
        return command_decode;
    case COMMAND_ENCODE:
        return command_encode;
    case COMMAND_FEATURES:
        return command_features;
    case COMMAND_BANK_INFO:
        return command_bank_info;
    case COMMAND_BANK_GET:
        return command_bank_get;
    case COMMAND_BANK_ADD:
        return command_bank_add;
    case COMMAND_BANK_REMOVE:
        return command_bank_remove;
    case COMMAND_BANK_EXPORT:
        return command_bank_export;
    case COMMAND_BANK_MIX:
        return command_bank_mix;
    case COMMAND_BANK_SEARCH:
        return command_bank_search;
    case COMMAND_BANK_COMPRESS:
        return command_bank_compress;
    case COMMAND_BANK_BUILD:
        return command_bank_build;
    case COMMAND_INFO:
        return command_info;
    case COMMAND_CONVERT:
        return command_convert;
    case COMMAND_SYNTH:
        return command_synth;
    case COMMAND_BENCH_NETWORK:
        return command_bench_network;
    case COMMAND_BENCH_AUTOENCODER:
        return command_bench_autoencoder;
    case COMMAND_BENCH_ENCODER:
        return command_bench_encoder;
    case COMMAND_BENCH_BANK:
        return command_bench_bank;
    case COMMAND_BENCH_GEMM:
        return command_bench_gemm;
    case COMMAND_BENCH_ALL:
        return command_bench_all;
    case COMMAND_DEVICES:
        return command_devices;
    default:
        return NULL;
    }
}

static void print_version(int json) {
    if (json) {
        printf("{\"version\": \"%s\"}\n", gmem_version());
    } else {
        printf("gmem %s\n", gmem_version());
    }
}

static outcome run(const arguments *args, gmem_error *error) {
    if (args->help) {
        print_help(stdout, args->command);
        return OUTCOME_DONE;
    }
    if (args->version) {
        print_version(args->json);
        return OUTCOME_DONE;
    }
    return function_of(args->command)(args, error);
}

int main(int argc, char **argv) {
    static arguments args;
    static gmem_error error;
    wait_briefly(argv);
    error.offset = -1;
    interrupt_install();
    outcome result = arguments_parse(&args, argc, argv, &error);
    if (args.command < COMMAND_COUNT && !args.help && !function_of(args.command)) /* whatever its flags will be */
        result = failed(&error, NULL, "gmem %s does not have '%s' yet", gmem_version(), command_words(args.command));
    notes_begin(args.quiet ? LOUDNESS_QUIET : args.verbose ? LOUDNESS_VERBOSE : LOUDNESS_NORMAL);
    if (result == OUTCOME_DONE) result = run(&args, &error);
    if (result == OUTCOME_DONE && (fflush(stdout) != 0 || ferror(stdout)))
        result = failed(&error, "standard output", "cannot write: %s", strerror(errno));
    notes_end(result == OUTCOME_DONE);
    if (result == OUTCOME_INTERRUPTED) interrupt_check(&error); /* no file is to blame */
    if (result != OUTCOME_DONE) print_error(&error);
    if (result == OUTCOME_MISUSED && args.command < COMMAND_COUNT)
        fprintf(stderr, "usage: gmem %s -h shows the flags and an example\n", command_words(args.command));
    arguments_free(&args);
    return (int)result;
}
