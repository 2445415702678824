/* weights GOLDEN OUT: the procedural weights that a golden file lists, as a safetensors file. For the tests of the
 * command from outside. */
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    gmem_save_desc desc;
    gmem_error error;
    if (argc != 3) return 2;
    gmem_context *context = golden_cpu_context(GMEM_ISA_SCALAR);
    gmem_file *io = golden_open(context, argv[1]);
    golden_network weights = golden_procedural(context, io, NULL);
    const char *metadata[] = {"config", gmem_file_metadata(weights.file, "config")};
    memset(&desc, 0, sizeof desc);
    desc.count = gmem_file_tensor_count(weights.file);
    gmem_tensor *tensors = (gmem_tensor *)calloc((size_t)desc.count, sizeof *tensors);
    for (int64_t i = 0; tensors && i < desc.count; i++) {
        tensors[i] = *gmem_file_tensor(weights.file, i);
    }
    desc.tensors = tensors;
    desc.metadata = metadata;
    desc.metadata_count = metadata[1] != NULL;
    const gmem_status status = gmem_save(context, argv[2], &desc, &error);
    if (status != GMEM_OK) printf("%s: %s\n", error.path, error.message);
    free(tensors);
    golden_network_close(&weights);
    gmem_file_close(io);
    gmem_context_destroy(context);
    return status != GMEM_OK;
}
