/* Golden files: recorded inputs and outputs in tests/golden/, and networks made from procedural weights. */
#ifndef GOLDEN_H
#define GOLDEN_H

#include "../src/api.h"

#include <stdint.h>

/* Where a test program computes: on the CPU, or with GMEM_TEST_BACKEND=opencl in the environment on an OpenCL device,
 * of which GMEM_TEST_DEVICE may name one. */
int golden_on_device(void);
void golden_choose_backend(gmem_context_desc *desc);

/* The context on one instruction set, or NULL where this machine lacks it; on a device there is one instead of all
 * instruction sets. Fails the program on any other error. */
gmem_context *golden_context(gmem_isa isa);
gmem_context *golden_cpu_context(gmem_isa isa);

/* The instruction sets to test: for (int i = 0; i < golden_isa_count; i++) golden_context(golden_isas[i]) ... */
extern const gmem_isa golden_isas[];
extern const int golden_isa_count;
const char *golden_isa_name(gmem_isa isa);

/* Opens tests/golden/NAME (or, with a '/' in it, that path); exits the test with a message where it can't. */
gmem_file *golden_open(gmem_context *context, const char *name);

/* A tensor of a golden file in f32 or i64, malloc'ed; exits the test where it's missing. `count` may be NULL. */
float *golden_f32(const gmem_file *file, const char *name, int64_t *count);
int64_t *golden_i64(const gmem_file *file, const char *name, int64_t *count);
/* Dimension i of a tensor of a golden file. */
int64_t golden_dim(const gmem_file *file, const char *name, int i);
int golden_has(const gmem_file *file, const char *name);
/* A number or text of the JSON object in metadata `key`, such as ("args", "num_steps"). 1 where found. */
int golden_number(const gmem_file *file, const char *key, const char *name, double *out);
int golden_text(const gmem_file *file, const char *key, const char *name, char *out, size_t bytes);

/* The procedural network that the metadata `tensors` of golden file NAME lists, as an opened safetensors file in
 * memory, with the file's `config` as metadata. `skip` (may be NULL): tensors whose name contains it are left out.
 * golden_network_close frees it. */
typedef struct golden_network {
    gmem_file *file;
    void *memory;
} golden_network;
golden_network golden_procedural(gmem_context *context, const gmem_file *io, const char *skip);
void golden_network_close(golden_network *network);

/* The recorded case NAME with its procedural weights, opened as a transformer; exits the test where that fails. */
typedef struct golden_case {
    gmem_file *io; /* tests/golden/NAME.io.safetensors */
    golden_network weights;
    gmem_network *network;
} golden_case;
golden_case golden_case_open(gmem_context *context, const char *name, const char *skip);
void golden_case_close(golden_case *recorded);

#endif /* GOLDEN_H */
