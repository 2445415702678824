/* Writers of one bank: threads and processes that take turns, what keeps them apart, and kill -9 in the middle. */
#define _POSIX_C_SOURCE 200809L
#include "bank_rows.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

/* locks ----------------------------------------------------------------------------------------------------------- */

static void test_lock_files(gmem_context *context) {
    gmem_io io = gmem__system_io();
    gmem_error error;
    int held = 0;
    clear();
    CHECK_OK(add(context, target, GMEM_F32, make_rows(0, 3), NULL, NULL));
    void *lock = io.lock(NULL, target, &held);
    CHECK(lock && !held && exists(lock_path));
    CHECK_STATUS(GMEM_E_LOCKED, add(context, target, GMEM_F32, make_rows(3, 3), NULL, &error));
    CHECK_TEXT(error.path, target);
    CHECK(io.lock(NULL, target, &held) == NULL && held);
    CHECK_OK(add(context, other, GMEM_F32, make_rows(3, 3), NULL, NULL)); /* other files are free */
    io.unlock(NULL, lock);
    CHECK(!exists(lock_path));
    put(lock_path, "", 0); /* left by a crash */
    put(unfinished, "half a bank", 11);
    CHECK_OK(add(context, target, GMEM_F32, make_rows(3, 3), NULL, NULL));
    CHECK(!exists(lock_path) && !exists(unfinished));
    put(lock_path, "notes", 5); /* somebody's own */
    CHECK_OK(add(context, target, GMEM_F32, make_rows(6, 3), NULL, NULL));
    CHECK(exists(lock_path));
    remove(lock_path);
    CHECK(mkdir(lock_path, 0700) == 0);
    CHECK_STATUS(GMEM_E_OPEN, add(context, target, GMEM_F32, make_rows(9, 3), NULL, &error));
    CHECK_CONTAINS(error.message, "it is a folder");
    CHECK(rmdir(lock_path) == 0);
    CHECK(is_bank_up_to(context, target, GMEM_F32, 9));
}

static void pause_for(long nanoseconds) {
    struct timespec time = {0, nanoseconds};
    nanosleep(&time, NULL);
}

/* Adds single rows until so many are its own, waiting for the others. */
static int add_in_turn(gmem_context *context, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count;) {
        gmem_status status = add(context, target, GMEM_F32, make_rows(first + i, 1), NULL, NULL);
        if (status == GMEM_OK)
            i++;
        else if (status != GMEM_E_LOCKED)
            return 0;
        else
            pause_for(100000);
    }
    return 1;
}

enum { WRITERS = 4, EACH = 12 };

typedef struct writer {
    gmem_context *context;
    int64_t first;
    int done;
} writer;

static void *write_in_thread(void *user) {
    writer *w = (writer *)user;
    w->done = add_in_turn(w->context, w->first, EACH);
    return NULL;
}

/* Every row of every writer is there once, for no writer has read what another one was about to replace. */
static void check_all_rows(gmem_context *context) {
    int found[WRITERS * EACH] = {0}, all = 0;
    gmem_bank *bank = open_path(context, target);
    CHECK_INT(gmem_bank_rows(bank), WRITERS * EACH);
    for (int64_t at = 0; at < gmem_bank_rows(bank); at++) {
        for (int64_t row = 0; row < WRITERS * EACH; row++)
            found[row] += is_row(bank, at, row) && (row % 3 != 2 || !found[row]);
    }
    for (int row = 0; row < WRITERS * EACH; row++)
        all += found[row] >= 1;
    CHECK_INT(all, WRITERS * EACH);
    gmem_bank_close(bank);
    CHECK(!exists(lock_path) && !exists(unfinished));
}

static void test_threads(gmem_context *context) {
    pthread_t threads[WRITERS];
    writer writers[WRITERS];
    clear();
    for (int i = 0; i < WRITERS; i++) {
        writers[i].context = context;
        writers[i].first = (int64_t)i * EACH;
        writers[i].done = 0;
        CHECK(pthread_create(&threads[i], NULL, write_in_thread, &writers[i]) == 0);
    }
    for (int i = 0; i < WRITERS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(writers[i].done);
    }
    check_all_rows(context);
}

static void test_processes(gmem_context *context) {
    pid_t children[WRITERS];
    clear();
    for (int i = 0; i < WRITERS; i++) {
        children[i] = fork();
        if (children[i] == 0) _exit(!add_in_turn(context, (int64_t)i * EACH, EACH));
    }
    for (int i = 0; i < WRITERS; i++) {
        int status = -1;
        CHECK(waitpid(children[i], &status, 0) == children[i] && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    check_all_rows(context);
}

/* crashes --------------------------------------------------------------------------------------------------------- */

/* Adds rows and removes the first one, again and again; a row's name says what is in it. Never returns. */
static void edit_for_ever(gmem_context *context, int64_t next) {
    static const int64_t first_row[1] = {0};
    const char *path = target;
    for (;; next += 2) {
        gmem_status status = add(context, target, GMEM_F16, make_rows(next * 3, 2), NULL, NULL);
        if (status == GMEM_OK) status = gmem_bank_remove(context, &path, 1, first_row, 1, NULL, NULL, NULL);
        if (status != GMEM_OK) _exit(1);
    }
}

/* Every row is what its name says, as many as there were and those that came since, or one less. */
static int is_whole(gmem_context *context, int64_t *rows) {
    gmem_bank *bank = open_path(context, target);
    if (!bank) return 0;
    int64_t count = gmem_bank_rows(bank), right = 0;
    for (int64_t i = 0; i < count; i++) {
        const char *name = gmem_bank_name(bank, i);
        float row[WIDTH];
        long long number = -1;
        if (gmem_bank_row(bank, i, row, NULL) != GMEM_OK) break;
        if (name && sscanf(name, "row %lld", &number) == 1)
            right += is_row(bank, i, number);
        else /* the second of two, which has the first one before it unless that was removed */
            right += row[0] - floorf(row[0]) == 0.5f;
    }
    gmem_bank_close(bank);
    const int grown = count >= *rows - 1;
    *rows = count;
    return right == count && grown;
}

static void test_kill(gmem_context *context) {
    enum { KILLS = 120 };
    uint32_t random = 1;
    int64_t rows = 1, left_locks = 0, left_files = 0, whole = 0;
    clear();
    CHECK_OK(add(context, target, GMEM_F16, make_rows(1, 1), NULL, NULL));
    for (int64_t i = 0; i < KILLS; i++) {
        pid_t child = fork();
        if (child == 0) edit_for_ever(context, 1000 * (i + 1));
        random = random * 1664525u + 1013904223u;
        pause_for(300000 + (long)(random >> 10)); /* up to 4.5 ms */
        kill(child, SIGKILL);
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
        left_locks += exists(lock_path);
        left_files += exists(unfinished);
        whole += is_whole(context, &rows);
    }
    CHECK_INT(whole, KILLS);
    CHECK(left_locks > KILLS / 10 && left_files > 0); /* it was killed where it matters */
    CHECK_OK(add(context, target, GMEM_F16, make_rows(2, 1), NULL, NULL));
    CHECK(!exists(lock_path) && !exists(unfinished));
    printf("kill -9: %lld rows, %lld of %d left a lock, %lld a file\n", (long long)rows, (long long)left_locks,
           (int)KILLS, (long long)left_files);
}

int main(int count, char **arguments) {
    gmem_context *context = open_context(quick_io()), *durable = open_context(gmem__system_io());
    name_files(count > 0 ? arguments[0] : "test_bank_writers");
    test_lock_files(context);
    test_threads(context);
    test_processes(durable);
    test_kill(durable);
    clear();
    gmem_context_destroy(context);
    gmem_context_destroy(durable);
    return check_report();
}
