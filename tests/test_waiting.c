/* Tasks on the OpenMP runtime: each runs once, and where the runtime lets idle threads spin for long by default, the
 * engine's wait briefly while the host's setting stays what it was. */
#include "kernel.h"

#include "../backends/cpu/cpu.h"

enum { TASKS = 100, THREADS = 2 };

/* LLVM's runtime has these, GCC's has not. */
#if defined(_OPENMP) && defined(__clang__)
int kmp_get_blocktime(void);
void kmp_set_blocktime(int milliseconds);
#define HAS_BLOCKTIME 1
#else
static int kmp_get_blocktime(void) { return 0; }
static void kmp_set_blocktime(int milliseconds) { (void)milliseconds; }
#define HAS_BLOCKTIME 0
#endif

typedef struct seen {
    int runs[TASKS], blocktime[TASKS];
    int scratch_missing[TASKS];
} seen;

static void note_task(const void *job, int64_t i, float *scratch) {
    seen *all = (seen *)(uintptr_t)job;
    all->runs[i]++;
    all->blocktime[i] = kmp_get_blocktime();
    all->scratch_missing[i] = scratch == NULL;
}

/* The host's setting, and what it is while tasks run. */
static void test_tasks(int threads, int host, int expected) {
    gmem__engine engine;
    seen all;
    memset(&engine, 0, sizeof engine);
    memset(&all, 0, sizeof all);
    engine.threads = threads;
    engine.scratch = need(GMEM__SHARED + (int64_t)threads * GMEM__SCRATCH, sizeof(float));
    kmp_set_blocktime(host);
    gmem__run_tasks(&engine, TASKS, note_task, &all);
    for (int i = 0; i < TASKS; i++) {
        CHECK_INT(all.runs[i], 1);
        CHECK(!all.scratch_missing[i]);
        if (HAS_BLOCKTIME) CHECK_INT(all.blocktime[i], expected);
    }
    if (HAS_BLOCKTIME) CHECK_INT(kmp_get_blocktime(), host);
    free(engine.scratch);
}

int main(void) {
    test_tasks(1, 200, 200);
    test_tasks(THREADS, 200, 1); /* the runtime's default */
    test_tasks(THREADS, 50, 50); /* a choice of the host's */
    test_tasks(THREADS, 0, 0);
    return check_report();
}
