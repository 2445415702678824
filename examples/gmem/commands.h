/* The commands. Each leaves nothing behind when it fails, and fills `error` unless it returns OUTCOME_DONE. */
#ifndef COMMANDS_H
#define COMMANDS_H

#include "args.h"

outcome command_sample(const arguments *args, gmem_error *error);
outcome command_eval(const arguments *args, gmem_error *error);
outcome command_integrate(const arguments *args, gmem_error *error);
outcome command_decode(const arguments *args, gmem_error *error);
outcome command_encode(const arguments *args, gmem_error *error);
outcome command_features(const arguments *args, gmem_error *error);
outcome command_bank_info(const arguments *args, gmem_error *error);
outcome command_bank_get(const arguments *args, gmem_error *error);
outcome command_bank_add(const arguments *args, gmem_error *error);
outcome command_bank_remove(const arguments *args, gmem_error *error);
outcome command_bank_export(const arguments *args, gmem_error *error);
outcome command_bank_mix(const arguments *args, gmem_error *error);
outcome command_bank_search(const arguments *args, gmem_error *error);
outcome command_bank_compress(const arguments *args, gmem_error *error);
outcome command_bank_build(const arguments *args, gmem_error *error);
outcome command_info(const arguments *args, gmem_error *error);
outcome command_convert(const arguments *args, gmem_error *error);
outcome command_synth(const arguments *args, gmem_error *error);
outcome command_bench_network(const arguments *args, gmem_error *error);
outcome command_bench_autoencoder(const arguments *args, gmem_error *error);
outcome command_bench_encoder(const arguments *args, gmem_error *error);
outcome command_bench_bank(const arguments *args, gmem_error *error);
outcome command_bench_gemm(const arguments *args, gmem_error *error);
outcome command_bench_all(const arguments *args, gmem_error *error);
outcome command_devices(const arguments *args, gmem_error *error);

#endif /* COMMANDS_H */
