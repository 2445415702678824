/* The command line: one table of commands, one table of flags, strict parsing into one struct. */
#ifndef ARGS_H
#define ARGS_H

#include "report.h"

/* X(id, words, operands, fewest, most, summary, example): operands are what stands beside the flags. */
#define COMMAND_LIST(X)                                                                                                \
    X(SAMPLE, "sample", "", 0, 0, "draw pictures", "gmem sample --memory \"cat face\" pizza -s 7 -o two.png")          \
    X(EVAL, "eval", "", 0, 0, "one forward pass: x, t and c (or label) in, v out",                                     \
      "gmem eval -m network.pth --input io.safetensors -o v.safetensors")                                              \
    X(INTEGRATE, "integrate", "", 0, 0, "a trajectory from given noise: z, c (or label), for an SDE noise; out",       \
      "gmem integrate -m network.pth --input io.safetensors --method heun2 -o out.safetensors")                        \
    X(DECODE, "decode", "", 0, 0, "latents to pictures: z in, decoded and decoded_u8 out",                             \
      "gmem decode --autoencoder vae.pt --input latents.safetensors -o pictures.safetensors")                          \
    X(ENCODE, "encode", "", 0, 0, "pictures to latents: image in, mean and logvar out",                                \
      "gmem encode --autoencoder vae.pt --input pictures.safetensors -o latents.safetensors")                          \
    X(FEATURES, "features", "[IMAGE...]", 0, -1, "features of pictures: cls and patch out",                            \
      "gmem features --image-encoder dinov2_vitb14.pth photo.jpg -o features.safetensors")                             \
    X(BANK_INFO, "bank info", "", 0, 0, "what a bank holds", "gmem bank info --bank imagenet.pth --json")              \
    X(BANK_GET, "bank get", "", 0, 0, "rows of a bank, as stored",                                                     \
      "gmem bank get --bank imagenet.pth --rows 0-9,77 -o rows.safetensors")                                           \
    X(BANK_MIX, "bank mix", "[A B]", 0, 2, "the mixtures of two rows, or of a and b of --input",                       \
      "gmem bank mix \"cat face\" pizza --mix-method spherical --alpha 0.25 0.5 -o mixed.safetensors")                 \
    X(BANK_SEARCH, "bank search", "[WHAT...]", 0, -1, "the rows nearest to rows, names, pictures or query of --input", \
      "gmem bank search \"cat face\" photo.jpg -k 5")                                                                  \
    X(BANK_ADD, "bank add", "[IMAGE...]", 0, -1, "add rows from pictures, or features of --input",                     \
      "gmem bank add --bank imagenet.pth --bank mine.safetensors photo.jpg")                                           \
    X(BANK_COMPRESS, "bank compress", "", 0, 0, "a smaller bank: of rank R, or int8",                                  \
      "gmem bank compress --bank imagenet.pth --rank 256 -o small.safetensors")                                        \
    X(BANK_BUILD, "bank build", "FOLDER...", 1, -1,                                                                    \
      "a bank of every picture below folders; goes on where it was stopped",                                           \
      "gmem bank build photos --image-encoder dinov2_vitb14.pth -o photos.safetensors")                                \
    X(BANK_REMOVE, "bank remove", "[WHAT...]", 0, -1, "remove rows from the bank's last file",                         \
      "gmem bank remove --bank mine.safetensors --rows 3-5")                                                           \
    X(BANK_EXPORT, "bank export", "", 0, 0, "the whole bank as one file",                                              \
      "gmem bank export --bank imagenet.pth --bank mine.safetensors --dtype f16 -o all.safetensors")                   \
    X(INFO, "info", "FILE", 1, 1, "what a file is: architecture, tensors, types, parameters, foreign objects",         \
      "gmem info network.pth")                                                                                         \
    X(CONVERT, "convert", "FILE", 1, 1, "a checkpoint as safetensors",                                                 \
      "gmem convert network.pth --dtype bf16 -o network.safetensors")                                                  \
    X(SYNTH, "synth", "ARCH", 1, 1,                                                                                    \
      "a full-size model with procedural weights, to measure with; torch's where -o ends in .pth",                     \
      "gmem synth bank:1281167x768 -o bank.pth")                                                                       \
    X(BENCH_NETWORK, "bench network", "", 0, 0, "time a forward pass", "gmem bench network -m network.pth --json")     \
    X(BENCH_AUTOENCODER, "bench autoencoder", "", 0, 0, "time the decoding of a picture",                              \
      "gmem bench autoencoder --autoencoder vae.pt --dtype bf16")                                                      \
    X(BENCH_ENCODER, "bench encoder", "", 0, 0, "time the image encoder",                                              \
      "gmem bench encoder --image-encoder b14.safetensors")                                                            \
    X(BENCH_BANK, "bench bank", "", 0, 0, "time opening, rows and search; how pictures spread",                        \
      "gmem bench bank -m network.pth --bank imagenet.pth")                                                            \
    X(BENCH_GEMM, "bench gemm", "", 0, 0, "time the linear layers of XL/1 by every kernel",                            \
      "gmem bench gemm --dtype bf16 --json")                                                                           \
    X(BENCH_ALL, "bench all", "", 0, 0, "time everything, in f32, bf16 and int8, against this machine's peaks",        \
      "gmem bench all -m network.pth --bank imagenet.pth --autoencoder vae.pt --json")                                 \
    X(DEVICES, "devices", "", 0, 0, "what can compute here, tested; --tune finds the fastest kernels",                 \
      "gmem devices --tune --device 1 --cache-dir ~/.cache/gmem")

typedef enum command_id {
#define COMMAND_ENUM(id, words, operands, fewest, most, summary, example) COMMAND_##id,
    COMMAND_LIST(COMMAND_ENUM)
#undef COMMAND_ENUM
        COMMAND_COUNT
} command_id;

#define IN(id)     (1u << COMMAND_##id)
#define EVERYWHERE (~0u)
#define SAMPLERS   (IN(SAMPLE) | IN(INTEGRATE))
#define NETWORKS   (SAMPLERS | IN(EVAL) | IN(BENCH_NETWORK) | IN(BENCH_BANK) | IN(BENCH_ALL))
#define BANK_EDITS (IN(BANK_ADD) | IN(BANK_REMOVE) | IN(BANK_EXPORT) | IN(BANK_COMPRESS))
#define BANKS                                                                                                   \
    (IN(SAMPLE) | IN(BANK_INFO) | IN(BANK_GET) | IN(BANK_MIX) | IN(BANK_SEARCH) | BANK_EDITS | IN(BENCH_BANK) | \
     IN(BENCH_ALL))
#define ENCODERS                                                                                                      \
    (IN(SAMPLE) | IN(FEATURES) | IN(BANK_MIX) | IN(BANK_SEARCH) | IN(BANK_ADD) | IN(BANK_BUILD) | IN(BENCH_ENCODER) | \
     IN(BENCH_BANK) | IN(BENCH_ALL))
#define CODERS       (IN(DECODE) | IN(ENCODE))
#define AUTOENCODERS (IN(SAMPLE) | CODERS | IN(BENCH_BANK) | IN(BENCH_AUTOENCODER) | IN(BENCH_ALL))
#define INPUTS       (IN(EVAL) | IN(INTEGRATE) | CODERS | IN(FEATURES) | IN(BANK_MIX) | IN(BANK_SEARCH) | IN(BANK_ADD))
#define OUTPUTS                                                                                           \
    (IN(EVAL) | IN(INTEGRATE) | CODERS | IN(FEATURES) | IN(BANK_MIX) | IN(BANK_BUILD) | IN(BANK_EXPORT) | \
     IN(BANK_COMPRESS) | IN(SAMPLE) | IN(BANK_GET) | IN(CONVERT) | IN(SYNTH))
#define RANDOM   (IN(SAMPLE) | IN(BANK_MIX))
#define COMPUTES (NETWORKS | AUTOENCODERS | BANKS | ENCODERS | IN(INFO) | IN(CONVERT) | IN(SYNTH) | IN(BENCH_GEMM))

/* X(kind, name, letter, member, allowed, value, default, commands, help)
 * `allowed` constrains the value: names joined by | for CHOICE (the member gets 1 for the first; 0: not given),
 * LOW..HIGH or LOW.. for numbers. LIST takes what follows up to the next flag; REPEAT takes one and may come again. */
#define FLAG_LIST(X)                                                                                                   \
    X(TEXT, "network", 'm', network, "", "FILE", "the built-in model", NETWORKS, "the transformer")                    \
    X(REPEAT, "bank", 0, bank, "", "FILE", "the built-in model's", BANKS, "the memory; again for more files")          \
    X(TEXT, "names", 0, names, "", "FILE", "those in the bank", BANKS, "a text file, a row's name a line")             \
    X(TEXT, "autoencoder", 0, autoencoder, "", "FILE", "the built-in model's", AUTOENCODERS, "latents to pixels")      \
    X(TEXT, "latent-stats", 0, latent_stats, "", "FILE", "mean 0, std 1", IN(SAMPLE) | IN(BENCH_BANK),                 \
      "mean and std of the latents")                                                                                   \
    X(NUMBER, "multiplier", 0, multiplier, "1e-9..", "X", "the autoencoder's", IN(SAMPLE) | IN(BENCH_BANK),            \
      "latents are divided by it")                                                                                     \
    X(TEXT, "image-encoder", 0, image_encoder, "", "FILE", "the built-in model's", ENCODERS, "pictures to snippets")   \
    X(SWITCH, "published-range", 0, published_range, "", "", "", ENCODERS,                                             \
      "pictures as the published script for novel ones feeds them")                                                    \
    X(TEXT, "input", 0, input, "", "FILE", "", INPUTS, "a file with the input tensors")                                \
    X(TEXT, "output", 'o', output, "", "FILE", "", OUTPUTS, "what to write; %03d in a picture's name: one file each")  \
    X(LIST, "memory", 0, memory, "", "WHAT...", "random rows", IN(SAMPLE), "rows by number or name, or pictures")      \
    X(TEXT, "rows", 0, rows, "", "A-B,C", "", IN(SAMPLE) | IN(BANK_GET) | IN(BANK_REMOVE), "rows by number")           \
    X(LIST, "mix", 0, mix, "", "A B", "", IN(SAMPLE), "the frames between two rows or pictures")                       \
    X(CHOICE, "mix-method", 0, mix_method, "linear|spherical|concat|mask", "METHOD", "linear",                         \
      IN(SAMPLE) | IN(BANK_MIX), "how to mix")                                                                         \
    X(INTEGER, "frames", 0, frames, "1..100000", "N", "8", IN(SAMPLE), "pictures from A to B of --mix")                \
    X(LIST, "alpha", 0, alpha, "", "X...", "0.5", IN(BANK_MIX), "how far from A to B, 0 to 1")                         \
    X(LIST, "label", 0, label, "", "N...", "random labels", IN(SAMPLE), "classes, for class-conditional networks")     \
    X(LIST, "like", 0, like, "", "IMAGE...", "", IN(SAMPLE) | IN(BENCH_BANK),                                          \
      "variations of pictures, each beside its original; bench: rows to add")                                          \
    X(NUMBER, "strength", 0, strength, "0..1", "X", "1", IN(SAMPLE),                                                   \
      "of --like; less: mixed with a random row for each")                                                             \
    X(INTEGER, "k", 'k', k, "1..100000000", "K", "10", IN(BANK_SEARCH), "rows to find for each")                       \
    X(TEXT, "rerank", 0, rerank, "", "FILE", "", IN(BANK_SEARCH) | IN(BENCH_BANK),                                     \
      "the same rows, more exact: orders what was found")                                                              \
    X(INTEGER, "rank", 0, rank, "1..65536", "R", "", IN(BANK_COMPRESS), "directions to keep; without: int8")           \
    X(INTEGER, "count", 'n', count, "1..1000000", "N", "what is chosen; 16 without -o; each of --like: 14; bench: 48", \
      IN(SAMPLE) | IN(BENCH_BANK), "pictures")                                                                         \
    X(SEED, "seed", 's', seed, "", "N", "from the clock", RANDOM, "of the random numbers")                             \
    X(CHOICE, "rng", 0, rng, "philox|torch-cpu|torch-cuda", "KIND", "philox", RANDOM, "whose random numbers")          \
    X(INTEGER, "batch", 'b', batch, "1..65536", "N", "what fits the caches",                                           \
      SAMPLERS | IN(EVAL) | CODERS | IN(FEATURES) | IN(BANK_BUILD) | IN(BANK_ADD), "most pictures at a time")          \
    X(SWITCH, "show", 0, show, "", "", "", IN(SAMPLE), "print the picture in the terminal")                            \
    X(CHOICE, "method", 0, method,                                                                                     \
      "euler|midpoint|heun2|heun3|rk4|dopri5|sde-euler|sde-heun|repa-euler|repa-heun|repa-sde|ab2|ab3|dpmpp2m",        \
      "METHOD", "sde-heun", SAMPLERS, "the integrator (repa-sde for GMem on SiT and REPA)")                            \
    X(INTEGER, "steps", 0, steps, "1..100000", "N", "50; repa-sde: 250", SAMPLERS,                                     \
      "as the method's published code counts")                                                                         \
    X(NUMBER, "timestep-shift", 0, timestep_shift, "0..1e6", "X", "0", SAMPLERS, "ODE; 0 or 1: none")                  \
    X(NUMBER, "atol", 0, atol, "1e-30..", "X", "1e-6", SAMPLERS, "dopri5's absolute tolerance")                        \
    X(NUMBER, "rtol", 0, rtol, "1e-30..", "X", "1e-3", SAMPLERS, "dopri5's relative tolerance")                        \
    X(CHOICE, "diffusion-form", 0, diffusion_form,                                                                     \
      "constant|sbdm|sigma|linear|decreasing|increasing-decreasing|inccreasing-decreasing", "FORM", "linear",          \
      SAMPLERS, "SDE")                                                                                                 \
    X(NUMBER, "diffusion-norm", 0, diffusion_norm, "1e-30..", "X", "1", SAMPLERS, "SDE")                               \
    X(CHOICE, "last-step", 0, last_step, "mean|tweedie|euler|none", "KIND", "mean", SAMPLERS, "SDE")                   \
    X(NUMBER, "last-step-size", 0, last_step_size, "0..1", "X", "0.004", SAMPLERS, "SDE")                              \
    X(CHOICE, "path", 0, path, "linear|gvp|vp", "PATH", "linear", SAMPLERS, "from noise to data")                      \
    X(CHOICE, "prediction", 0, prediction, "velocity|noise|score", "KIND", "velocity", SAMPLERS, "of the network")     \
    X(NUMBER, "cfg-scale", 0, cfg_scale, "..", "X", "1", SAMPLERS, "guidance; 1 or less: none")                        \
    X(TEXT, "cfg-interval", 0, cfg_interval, "", "START[,END]", "0, no end", SAMPLERS, "times that are guided")        \
    X(TEXT, "cfg-channels", 0, cfg_channels, "", "all|N", "all; LightningDiT: 3", SAMPLERS,                            \
      "channels that are guided")                                                                                      \
    X(NUMBER, "cache-threshold", 0, cache_threshold, "0..", "X", "0, off", SAMPLERS,                                   \
      "reuse blocks that change less, such as 0.04")                                                                   \
    X(INTEGER, "threads", 't', threads, "1..4096", "N", "all", COMPUTES, "of the processor")                           \
    X(CHOICE, "backend", 0, backend, "auto|cpu|opencl", "NAME", "auto", COMPUTES, "what computes")                     \
    X(TEXT, "device", 0, device, "", "N|NAME", "the first", COMPUTES | IN(DEVICES),                                    \
      "its number in gmem devices (0: the processor) or a part of its name")                                           \
    X(CHOICE, "isa", 0, isa, "auto|scalar|avx2|avx512|amx", "NAME", "auto", COMPUTES, "the instruction set")           \
    X(CHOICE, "dtype", 0, dtype, "f32|bf16|f16|int8", "TYPE", "f32; convert: each tensor's own", COMPUTES,             \
      "of the arithmetic (f16: OpenCL only); where a checkpoint or bank is written: of the file")                      \
    X(INTEGER, "heads", 0, heads, "1..4096", "N", "from the file", NETWORKS | IN(INFO) | IN(CONVERT),                  \
      "attention heads")                                                                                               \
    X(TEXT, "key", 0, key, "", "NAME", "ema, model, state_dict, network", NETWORKS | IN(INFO) | IN(CONVERT),           \
      "the dictionary to use; . for the whole file")                                                                   \
    X(TEXT, "cache-dir", 0, cache_dir, "", "DIR", "", COMPUTES | IN(DEVICES),                                          \
      "keeps compiled and tuned OpenCL kernels; only you may write there")                                             \
    X(SWITCH, "tune", 0, tune, "", "", "", IN(DEVICES), "find an OpenCL device's fastest kernels; keep them")          \
    X(NUMBER, "seconds", 0, seconds, "1..86400", "S", "60", IN(DEVICES), "how long --tune may take, about")            \
    X(SWITCH, "profile", 0, profile, "", "", "", IN(BENCH_NETWORK), "what a pass spends its time on")                  \
    X(SWITCH, "quiet", 'q', quiet, "", "", "", EVERYWHERE, "nothing but errors")                                       \
    X(SWITCH, "verbose", 'v', verbose, "", "", "", EVERYWHERE, "more about the work")                                  \
    X(SWITCH, "json", 0, json, "", "", "", EVERYWHERE, "one JSON value on standard output")                            \
    X(SWITCH, "version", 0, version, "", "", "", EVERYWHERE, "the version")                                            \
    X(SWITCH, "help", 'h', help, "", "", "", EVERYWHERE, "this text")

typedef enum flag_id {
#define FLAG_ENUM(kind, name, letter, member, allowed, value, fallback, commands, help) FLAG_##member,
    FLAG_LIST(FLAG_ENUM)
#undef FLAG_ENUM
        FLAG_COUNT
} flag_id;

typedef struct text_list {
    const char **items;
    int count;
} text_list;

/* One member of the kind's type for each flag. */
#define FLAG_TYPE_TEXT    const char *
#define FLAG_TYPE_REPEAT  text_list
#define FLAG_TYPE_LIST    text_list
#define FLAG_TYPE_NUMBER  double
#define FLAG_TYPE_INTEGER int64_t
#define FLAG_TYPE_SEED    uint64_t
#define FLAG_TYPE_CHOICE  int
#define FLAG_TYPE_SWITCH  int

typedef struct arguments {
    command_id command; /* COMMAND_COUNT: none, only general flags */
    text_list operands;
#define FLAG_MEMBER(kind, name, letter, member, allowed, value, fallback, commands, help) FLAG_TYPE_##kind member;
    FLAG_LIST(FLAG_MEMBER)
#undef FLAG_MEMBER
    unsigned char given[FLAG_COUNT];
} arguments;

/* Fills `out` from the command line, which must outlive it. Every failure is a misuse. */
outcome arguments_parse(arguments *out, int argc, char **argv, gmem_error *error);
void arguments_free(arguments *args);

const char *command_words(command_id command); /* "bank mix", "" for none */
/* The help of a command, or of the whole program. */
void print_help(FILE *to, command_id command);

/* The name of a flag's chosen value: choice_name(FLAG_rng, 2) is "torch-cpu"; 0 gives the first. */
const char *choice_name(flag_id flag, int choice, char *out, size_t bytes);

/* ASCII letters only. */
int same_ignoring_case(const char *a, const char *b);

/* Whole texts only; 0 where the text is no number of that kind. Never depend on the locale. */
int parse_integer(const char *text, int64_t low, int64_t high, int64_t *out);
int parse_number(const char *text, double *out);

#endif /* ARGS_H */
