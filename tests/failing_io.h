/* The system's files behind hooks that count what is open, fail on demand and move few bytes at a time. */
#ifndef FAILING_IO_H
#define FAILING_IO_H

#include "../src/file.h"
#include "failing.h"

typedef enum failing_op {
    FAILING_OPEN,
    FAILING_SIZE,
    FAILING_READ,
    FAILING_WRITE,
    FAILING_SYNC,
    FAILING_CLOSE,
    FAILING_RENAME,
    FAILING_LOCK,
    FAILING_OPS
} failing_op;

typedef struct failing_io {
    gmem_io system;
    failing_op op;     /* what fails */
    int64_t countdown; /* calls of it until one fails; negative: none does */
    int for_good;
    int64_t most;                       /* bytes that one read or write moves; 0: all */
    int64_t open, mapped, temporary;    /* handles, mappings and unfinished files that are there */
    int64_t locked;                     /* locks that are held */
    int64_t discarded;                  /* bytes */
    int64_t calls[FAILING_OPS], failed; /* made; made to fail */
} failing_io;

static inline int failing_io_hit(failing_io *io, failing_op op) {
    io->calls[op]++;
    if (op != io->op || io->countdown < 0) return 0;
    if (io->countdown-- > 0) return 0;
    if (io->for_good) io->countdown = 0;
    io->failed++;
    return 1;
}

static inline int64_t failing_io_bytes(const failing_io *io, int64_t bytes) {
    return io->most && bytes > io->most ? io->most : bytes;
}

static inline void *failing_io_open(void *user, const char *path, int write) {
    failing_io *io = (failing_io *)user;
    void *file = failing_io_hit(io, FAILING_OPEN) ? NULL : io->system.open(NULL, path, write);
    io->open += file != NULL;
    io->temporary += file && write;
    return file;
}

static inline int64_t failing_io_size(void *user, void *file) {
    failing_io *io = (failing_io *)user;
    return failing_io_hit(io, FAILING_SIZE) ? -1 : io->system.size(NULL, file);
}

static inline int64_t failing_io_read(void *user, void *file, void *to, int64_t bytes, int64_t offset) {
    failing_io *io = (failing_io *)user;
    if (failing_io_hit(io, FAILING_READ)) return -1;
    return io->system.read(NULL, file, to, failing_io_bytes(io, bytes), offset);
}

static inline int64_t failing_io_write(void *user, void *file, const void *from, int64_t bytes) {
    failing_io *io = (failing_io *)user;
    if (failing_io_hit(io, FAILING_WRITE)) return -1;
    return io->system.write(NULL, file, from, failing_io_bytes(io, bytes));
}

static inline int failing_io_sync(void *user, void *file) {
    failing_io *io = (failing_io *)user;
    return failing_io_hit(io, FAILING_SYNC) ? -1 : io->system.sync(NULL, file);
}

static inline int failing_io_close(void *user, void *file) {
    failing_io *io = (failing_io *)user;
    int result = io->system.close(NULL, file);
    io->open--;
    return failing_io_hit(io, FAILING_CLOSE) ? -1 : result;
}

static inline const void *failing_io_map(void *user, void *file, int64_t bytes) {
    failing_io *io = (failing_io *)user;
    const void *memory = io->system.map ? io->system.map(NULL, file, bytes) : NULL;
    io->mapped += memory != NULL;
    return memory;
}

static inline void failing_io_unmap(void *user, const void *memory, int64_t bytes) {
    failing_io *io = (failing_io *)user;
    io->system.unmap(NULL, memory, bytes);
    io->mapped--;
}

static inline void failing_io_discard(void *user, const void *memory, int64_t bytes) {
    failing_io *io = (failing_io *)user;
    if (io->system.discard) io->system.discard(NULL, memory, bytes);
    io->discarded += bytes;
}

static inline int failing_io_rename(void *user, const char *from, const char *to) {
    failing_io *io = (failing_io *)user;
    if (failing_io_hit(io, FAILING_RENAME)) return -1;
    int result = io->system.rename(NULL, from, to);
    io->temporary -= result == 0;
    return result;
}

static inline int failing_io_remove(void *user, const char *path) {
    failing_io *io = (failing_io *)user;
    int result = io->system.remove(NULL, path);
    io->temporary -= result == 0;
    return result;
}

static inline void *failing_io_lock(void *user, const char *path, int *held) {
    failing_io *io = (failing_io *)user;
    *held = 0;
    void *lock = failing_io_hit(io, FAILING_LOCK) ? NULL : io->system.lock(NULL, path, held);
    io->locked += lock != NULL;
    return lock;
}

static inline void failing_io_unlock(void *user, void *lock) {
    failing_io *io = (failing_io *)user;
    io->system.unlock(NULL, lock);
    io->locked--;
}

static inline gmem_context *failing_io_context(failing_io *io, failing *memory, gmem_io system, int no_map) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    memset(&desc, 0, sizeof desc);
    memset(io, 0, sizeof *io);
    io->system = system;
    io->countdown = memory->countdown = -1;
    desc.no_map = no_map;
    desc.allocator.user = memory;
    desc.allocator.alloc = failing_alloc;
    desc.allocator.release = failing_release;
    desc.io.user = io;
    desc.io.open = failing_io_open;
    desc.io.size = failing_io_size;
    desc.io.read = failing_io_read;
    desc.io.write = failing_io_write;
    desc.io.sync = failing_io_sync;
    desc.io.close = failing_io_close;
    desc.io.map = failing_io_map;
    desc.io.unmap = failing_io_unmap;
    desc.io.discard = failing_io_discard;
    desc.io.rename = failing_io_rename;
    desc.io.remove = failing_io_remove;
    desc.io.lock = system.lock ? failing_io_lock : NULL;
    desc.io.unlock = system.lock ? failing_io_unlock : NULL;
    if (gmem_context_create(&desc, &context, NULL) != GMEM_OK) exit(1);
    return context;
}

/* Everything given back but the context itself. */
static inline int failing_io_clean(const failing_io *io, const failing *memory) {
    return io->open == 0 && io->mapped == 0 && io->temporary == 0 && io->locked == 0 &&
           memory->live == (int64_t)sizeof(gmem_context);
}

#endif /* FAILING_IO_H */
