/* What opening costs, and what threads do when there is nothing to do: milliseconds and memory for a network and a
 * bank, medians of several openings; then the processor time of a second's sleep after a pass.
 *
 *     open NETWORK [BANK [RUNS]] */
#define _POSIX_C_SOURCE 200112L
#include "../src/api.h"
#include "../tests/resident.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_RUNS = 1000 };

static double milliseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static void check(gmem_status status, const gmem_error *error) {
    if (status == GMEM_OK) return;
    fprintf(stderr, "open: %s: %s\n", error->path, error->message);
    exit(1);
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_median(const char *what, double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare);
    printf("%-10s %8.2f ms (%.2f to %.2f)\n", what, values[count / 2], values[0], values[count - 1]);
}

static gmem_network *open_network(gmem_context *context, const char *path) {
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    desc.path = path;
    check(gmem_network_open(context, &desc, &network, &error), &error);
    return network;
}

static gmem_bank *open_bank(gmem_context *context, const char *path) {
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    desc.paths = &path;
    desc.path_count = 1;
    check(gmem_bank_open(context, &desc, &bank, &error), &error);
    return bank;
}

static void measure_opening(gmem_context *context, const char *network_path, const char *bank_path, int runs) {
    static double network_times[MOST_RUNS], bank_times[MOST_RUNS], both[MOST_RUNS];
    int64_t grown = 0;
    for (int i = 0; i < runs; i++) {
        const int64_t before = resident_bytes();
        const double start = milliseconds(CLOCK_MONOTONIC);
        gmem_network *network = open_network(context, network_path);
        const double between = milliseconds(CLOCK_MONOTONIC);
        gmem_bank *bank = bank_path ? open_bank(context, bank_path) : NULL;
        const double end = milliseconds(CLOCK_MONOTONIC);
        network_times[i] = between - start;
        bank_times[i] = end - between;
        both[i] = end - start;
        if (resident_bytes() - before > grown) grown = resident_bytes() - before;
        if (i == 0) printf("%-10s %8.2f ms\n", "the first", both[0]);
        gmem_bank_close(bank);
        gmem_network_close(network);
    }
    print_median("network", network_times, runs);
    if (bank_path) print_median("bank", bank_times, runs);
    if (bank_path) print_median("together", both, runs);
    printf("%-10s %8.1f MB\n", "resident", (double)grown / 1e6);
}

static void measure_idling(gmem_context *context, const char *network_path) {
    gmem_network *network = open_network(context, network_path);
    const gmem_network_info *info = gmem_network_get_info(network);
    const int64_t size = info->channels * info->height * info->width;
    float *x = (float *)calloc((size_t)size, sizeof *x), *v = (float *)calloc((size_t)size, sizeof *v), t = 0.5f;
    const int64_t label = 0;
    const struct timespec second = {1, 0};
    gmem_pass *pass = NULL;
    gmem_error error;
    if (!x || !v) exit(1);
    check(gmem_pass_create(network, 1, &pass, &error), &error);
    for (int i = 0; i < 3; i++) {
        check(gmem_pass_run(pass, 1, x, &t, NULL, info->classes ? &label : NULL, v, &error), &error);
        const double before = milliseconds(CLOCK_PROCESS_CPUTIME_ID);
        nanosleep(&second, NULL);
        printf("%-10s %8.2f ms of processor time in 1 s of sleep after a pass\n", "idle",
               milliseconds(CLOCK_PROCESS_CPUTIME_ID) - before);
    }
    gmem_pass_destroy(pass);
    gmem_network_close(network);
    free(x);
    free(v);
}

int main(int count, char **arguments) {
    gmem_context *context = NULL;
    gmem_error error;
    const int runs = count > 3 ? atoi(arguments[3]) : 21;
    if (count < 2 || runs < 1 || runs > MOST_RUNS) {
        fprintf(stderr, "usage: open NETWORK [BANK [RUNS]]\n");
        return 2;
    }
    check(gmem_context_create(NULL, &context, &error), &error);
    measure_opening(context, arguments[1], count > 2 ? arguments[2] : NULL, runs);
    measure_idling(context, arguments[1]);
    gmem_context_destroy(context);
    return 0;
}
