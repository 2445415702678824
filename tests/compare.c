/* compare A NAME B NAME TOLERANCE: whether two tensors of safetensors files have the same shape and a relative L2 error
 * within the tolerance. For the tests of the command from outside. */
#include "../src/api.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static float *read_tensor(gmem_context *context, const char *path, const char *name, const gmem_tensor **tensor,
                          gmem_file **file) {
    gmem_error error;
    if (gmem_file_open(context, path, ".", file, &error) != GMEM_OK) {
        printf("%s: %s\n", error.path, error.message);
        return NULL;
    }
    *tensor = gmem_file_find(*file, name);
    if (!*tensor) {
        printf("%s: no tensor %s\n", path, name);
        return NULL;
    }
    int64_t count = gmem_tensor_count(*tensor);
    float *out = (float *)calloc((size_t)count + 1, sizeof *out);
    if (out) gmem_tensor_read_f32(*tensor, 0, count, out);
    return out;
}

static int same_shape(const gmem_tensor *a, const gmem_tensor *b) {
    int same = a->rank == b->rank;
    for (int i = 0; same && i < a->rank; i++) {
        same = a->shape[i] == b->shape[i];
    }
    return same;
}

int main(int argc, char **argv) {
    gmem_context *context = NULL;
    gmem_file *files[2] = {NULL, NULL};
    const gmem_tensor *tensors[2] = {NULL, NULL};
    double difference = 0, norm = 0;
    if (argc != 6 || gmem_context_create(NULL, &context, NULL) != GMEM_OK) return 2;
    float *a = read_tensor(context, argv[1], argv[2], &tensors[0], &files[0]);
    float *b = read_tensor(context, argv[3], argv[4], &tensors[1], &files[1]);
    int comparable = a && b && same_shape(tensors[0], tensors[1]);
    for (int64_t i = 0; comparable && i < gmem_tensor_count(tensors[0]); i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    double error = sqrt(difference / norm);
    int good = comparable && error <= strtod(argv[5], NULL);
    if (!good) printf("%s %s: %s %g\n", argv[1], argv[2], comparable ? "relative error" : "not comparable", error);
    free(a);
    free(b);
    gmem_file_close(files[0]);
    gmem_file_close(files[1]);
    gmem_context_destroy(context);
    return good ? 0 : 1;
}
