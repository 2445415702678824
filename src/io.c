/* Files: the system's, behind the hooks of gmem_io, and whole files in memory, mapped where that is possible.
 * POSIX where there is one, else the C library. */
#include "file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* GMEM__C_FILES asks for the C library's files where POSIX has others, for the tests. */
#if (defined(__unix__) || defined(__APPLE__)) && !defined(GMEM__C_FILES)
#define GMEM__POSIX
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#ifndef GMEM_NO_MMAP
#include <sys/mman.h>
#endif
#endif

GMEM__FN void gmem__io_forget(void) { errno = 0; }

/* strerror is neither free of the locale nor safe with threads, and C99 itself knows none of these codes. */
GMEM__FN const char *gmem__io_reason(void) {
    static const struct {
        int code;
        const char *text;
    } reasons[] = {
#ifdef ENOENT
        {ENOENT, ": no such file or folder"},
#endif
#ifdef ENOTDIR
        {ENOTDIR, ": a part of the path is no folder"},
#endif
#ifdef EISDIR
        {EISDIR, ": it is a folder"},
#endif
#ifdef ESPIPE
        {ESPIPE, ": it is a pipe or a device"},
#endif
#ifdef EACCES
        {EACCES, ": permission denied"},
#endif
#ifdef EPERM
        {EPERM, ": not permitted"},
#endif
#ifdef EROFS
        {EROFS, ": the file system is read-only"},
#endif
#ifdef ENOSPC
        {ENOSPC, ": no space left"},
#endif
#ifdef EDQUOT
        {EDQUOT, ": the quota is used up"},
#endif
#ifdef EFBIG
        {EFBIG, ": too large for the file system"},
#endif
#ifdef ENOLCK
        {ENOLCK, ": there are no locks"},
#endif
#ifdef EOPNOTSUPP
        {EOPNOTSUPP, ": the file system cannot do it"},
#endif
#ifdef EMFILE
        {EMFILE, ": too many open files"},
#endif
#ifdef ENAMETOOLONG
        {ENAMETOOLONG, ": the name is too long"},
#endif
#ifdef ELOOP
        {ELOOP, ": too many symbolic links"},
#endif
#ifdef EEXIST
        {EEXIST, ": it exists already"},
#endif
#ifdef EIO
        {EIO, ": input/output error"},
#endif
        {0, ""}, /* ends the table, and stands for what is not in it */
    };
    int i = 0;
    while (reasons[i].code != 0 && reasons[i].code != errno)
        i++;
    return reasons[i].text;
}

GMEM__FN int gmem__io_no_such_file(void) {
#ifdef ENOENT
    return errno == ENOENT;
#else
    return 0;
#endif
}

#ifdef GMEM__POSIX

/* Hidden by strict C99, and the headers may be in already; the declaration is POSIX's own. */
#ifdef __cplusplus
extern "C" {
#endif
int fsync(int file);
#ifdef __cplusplus
}
#endif

typedef struct gmem__system_file {
    int descriptor;
} gmem__system_file;

static int gmem__system_descriptor(void *file) { return ((gmem__system_file *)file)->descriptor; }

/* Folders, pipes and devices are refused: a model is a regular file, and a finished one is renamed over its target. */
static int gmem__check_regular(int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) return 0;
    if (S_ISREG(status.st_mode)) return 1;
    errno = S_ISDIR(status.st_mode) ? EISDIR : ESPIPE;
    return 0;
}

static void *gmem__system_open(void *user, const char *path, int write_it) {
    int flags = write_it ? O_WRONLY | O_CREAT | O_EXCL : O_RDONLY | O_NONBLOCK; /* never wait for a pipe's writer */
    (void)user;
#ifdef O_CLOEXEC
    flags |= O_CLOEXEC;
#endif
    int descriptor = open(path, flags, 0666);
    if (descriptor < 0) return NULL;
    gmem__system_file *file = gmem__check_regular(descriptor) ? (gmem__system_file *)malloc(sizeof *file) : NULL;
    if (!file) {
        int reason = errno;
        close(descriptor);
        errno = reason;
        return NULL;
    }
    file->descriptor = descriptor;
    return file;
}

static int64_t gmem__system_size(void *user, void *file) {
    struct stat status;
    (void)user;
    return fstat(gmem__system_descriptor(file), &status) == 0 ? (int64_t)status.st_size : -1;
}

static int64_t gmem__system_read(void *user, void *file, void *to, int64_t bytes, int64_t offset) {
    int descriptor = gmem__system_descriptor(file);
    off_t position = (off_t)offset;
    int64_t count;
    (void)user;
    if ((int64_t)position != offset || lseek(descriptor, position, SEEK_SET) != position) return -1;
    do {
        count = (int64_t)read(descriptor, to, (size_t)gmem__min(bytes, 1 << 30));
    } while (count < 0 && errno == EINTR);
    return count;
}

static int64_t gmem__system_write(void *user, void *file, const void *from, int64_t bytes) {
    int64_t count;
    (void)user;
    do {
        count = (int64_t)write(gmem__system_descriptor(file), from, (size_t)gmem__min(bytes, 1 << 30));
    } while (count < 0 && errno == EINTR);
    return count;
}

static int gmem__system_sync(void *user, void *file) {
    (void)user;
    return fsync(gmem__system_descriptor(file));
}

static int gmem__system_close(void *user, void *file) {
    (void)user;
    int result = close(gmem__system_descriptor(file));
    free(file);
    return result;
}

#ifndef GMEM_NO_MMAP
static const void *gmem__system_map(void *user, void *file, int64_t bytes) {
    (void)user;
    if ((uint64_t)bytes > SIZE_MAX / 2) return NULL;
    void *memory = mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, gmem__system_descriptor(file), 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void gmem__system_unmap(void *user, const void *memory, int64_t bytes) {
    (void)user;
    munmap((void *)(uintptr_t)memory, (size_t)bytes);
}

/* Linux drops the pages from the process and takes them from the file when they are touched again. Its posix_madvise
 * does nothing, and strict C99 hides what does. */
#if defined(__linux__) && !defined(__alpha__)
#define GMEM__SYSTEM_DISCARD gmem__system_discard
#define GMEM__ADVICE_DISCARD 4  /* MADV_DONTNEED */
#define GMEM__ADVICE_HUGE    14 /* MADV_HUGEPAGE */
#ifndef MADV_DONTNEED
#ifdef __cplusplus
extern "C" {
#endif
int madvise(void *memory, size_t bytes, int advice);
#ifdef __cplusplus
}
#endif
#endif

/* Whole pages only: the others hold what belongs to somebody else. */
static void gmem__advise(void *memory, int64_t bytes, int advice) {
    const long page = sysconf(_SC_PAGESIZE);
    if (page <= 0) return;
    const uintptr_t size = (uintptr_t)page, end = ((uintptr_t)memory + (uintptr_t)bytes) / size * size;
    const uintptr_t start = ((uintptr_t)memory + size - 1) / size * size;
    if (start < end) (void)madvise((void *)start, (size_t)(end - start), advice);
}

static void gmem__system_discard(void *user, const void *memory, int64_t bytes) {
    (void)user;
    gmem__advise((void *)(uintptr_t)memory, bytes, GMEM__ADVICE_DISCARD);
}
#else
#define GMEM__SYSTEM_DISCARD NULL
#endif
#endif

GMEM__FN void gmem__prefer_huge_pages(void *memory, int64_t bytes) {
#ifdef GMEM__ADVICE_HUGE
    gmem__advise(memory, bytes, GMEM__ADVICE_HUGE);
#else
    (void)memory;
    (void)bytes;
#endif
}
#undef GMEM__ADVICE_DISCARD
#undef GMEM__ADVICE_HUGE

/* A rename is on the disk once its folder is. Some file systems cannot sync a folder: the file is whole anyway. */
static void gmem__sync_folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) + 1 : 1;
    char *folder = (char *)malloc(length + 1);
    if (!folder) return;
    memcpy(folder, slash ? path : ".", length);
    folder[length] = 0;
    int descriptor = open(folder, O_RDONLY);
    free(folder);
    if (descriptor < 0) return;
    (void)fsync(descriptor);
    close(descriptor);
}

/* What replaces a file belongs to whom it belonged, where the system lets, and is for those to read that it was for. */
static void gmem__take_over(const char *from, const char *to) {
    struct stat old;
    if (stat(to, &old) != 0) return;
    if (chown(from, old.st_uid, old.st_gid) == 0 || chown(from, (uid_t)-1, old.st_gid) == 0)
        (void)chmod(from, old.st_mode & 0777);
}

static int gmem__system_rename(void *user, const char *from, const char *to) {
    (void)user;
    gmem__take_over(from, to);
    if (rename(from, to) != 0) return -1;
    gmem__sync_folder_of(to);
    return 0;
}

static int gmem__system_remove(void *user, const char *path) {
    (void)user;
    return unlink(path);
}

/* A lock on PATH.lock, which holds nothing and is there while PATH is being written. It belongs to the open file, so it
 * keeps the process's own threads apart too and ends with the process, however that ends; what is left of the file then
 * hinders nobody. */
#if defined(LOCK_EX) && defined(LOCK_NB)
#define GMEM__SYSTEM_LOCK   gmem__system_lock
#define GMEM__SYSTEM_UNLOCK gmem__system_unlock

typedef struct gmem__system_lock_file {
    int descriptor;
    char path[1]; /* and more */
} gmem__system_lock_file;

/* For reading alone where another user's process left it, whose file may be locked but not written. */
static int gmem__lock_file_open(const char *path) {
    int descriptor = open(path, O_RDWR | O_CREAT | O_NONBLOCK, 0666);
    if (descriptor < 0 && errno == EACCES) {
        descriptor = open(path, O_RDONLY | O_NONBLOCK);
        if (descriptor < 0) errno = EACCES;
    }
    if (descriptor < 0) return -1;
    (void)fcntl(descriptor, F_SETFD, FD_CLOEXEC); /* a program that is started meanwhile must not hold it */
    if (gmem__check_regular(descriptor)) return descriptor;
    int reason = errno;
    close(descriptor);
    errno = reason;
    return -1;
}

/* Whether the open file is the one of that name. Its holder before may have removed it between opening and locking, and
 * then somebody else's may be there already. */
static int gmem__lock_file_is_current(const gmem__system_lock_file *lock, struct stat *opened) {
    struct stat named;
    return fstat(lock->descriptor, opened) == 0 && stat(lock->path, &named) == 0 && opened->st_dev == named.st_dev &&
           opened->st_ino == named.st_ino;
}

/* 1: locked; 0: it failed, or somebody holds it; -1: to be tried again. */
static int gmem__lock_file_try(gmem__system_lock_file *lock, int *held) {
    struct stat opened;
    int result;
    lock->descriptor = gmem__lock_file_open(lock->path);
    if (lock->descriptor < 0) return 0;
    do {
        result = flock(lock->descriptor, LOCK_EX | LOCK_NB);
    } while (result != 0 && errno == EINTR);
    if (result == 0 && gmem__lock_file_is_current(lock, &opened)) return 1;
    int reason = errno;
    close(lock->descriptor);
    errno = reason;
    *held = result != 0 && reason == EWOULDBLOCK;
    return result == 0 ? -1 : 0;
}

static void *gmem__system_lock(void *user, const char *path, int *held) {
    size_t bytes = sizeof(gmem__system_lock_file) + strlen(path) + sizeof ".lock";
    gmem__system_lock_file *lock = (gmem__system_lock_file *)malloc(bytes);
    int locked = -1;
    (void)user;
    *held = 0;
    if (!lock) return NULL;
    snprintf(lock->path, bytes - offsetof(gmem__system_lock_file, path), "%s.lock", path);
    for (int attempt = 0; attempt < 100 && locked < 0; attempt++) /* every time another writer came and went */
        locked = gmem__lock_file_try(lock, held);
    if (locked > 0) return lock;
    *held |= locked < 0;
    int reason = errno;
    free(lock);
    errno = reason;
    return NULL;
}

/* Removes the file while it is still locked: nobody else then does. One that somebody wrote to is somebody's. */
static void gmem__system_unlock(void *user, void *held) {
    gmem__system_lock_file *lock = (gmem__system_lock_file *)held;
    struct stat opened;
    (void)user;
    if (gmem__lock_file_is_current(lock, &opened) && opened.st_size == 0) (void)unlink(lock->path);
    (void)flock(lock->descriptor, LOCK_UN); /* a process that was forked meanwhile has the file open too */
    close(lock->descriptor);
    free(lock);
}
#endif

#else /* the C library's files, which have no locks */

/* long has 32 bits in some places where files are larger. */
#ifdef _WIN32
#define GMEM__SEEK(file, offset, whence) _fseeki64((file), (offset), (whence))
#define GMEM__TELL(file)                 _ftelli64(file)
#else
#define GMEM__SEEK(file, offset, whence) \
    ((int64_t)(long)(offset) == (offset) ? fseek((file), (long)(offset), (whence)) : -1)
#define GMEM__TELL(file) ftell(file)
#endif

static void *gmem__system_open(void *user, const char *path, int write_it) {
    char first;
    (void)user;
    FILE *file = fopen(path, "rb");
    if (write_it) {
        if (!file) return fopen(path, "wb"); /* C99 has no exclusive creation */
        fclose(file);
        errno = 0;
        return NULL;
    }
    /* Some systems open folders and refuse to read them. */
    if (file && fread(&first, 1, 1, file) != 1 && ferror(file)) {
        int reason = errno;
        fclose(file);
        errno = reason;
        return NULL;
    }
    return file;
}

static int64_t gmem__system_size(void *user, void *file) {
    (void)user;
    return GMEM__SEEK((FILE *)file, (int64_t)0, SEEK_END) == 0 ? (int64_t)GMEM__TELL((FILE *)file) : -1;
}

static int64_t gmem__system_read(void *user, void *file, void *to, int64_t bytes, int64_t offset) {
    (void)user;
    if (GMEM__SEEK((FILE *)file, offset, SEEK_SET) != 0) return -1;
    size_t count = fread(to, 1, (size_t)gmem__min(bytes, 1 << 30), (FILE *)file);
    return count == 0 && ferror((FILE *)file) ? -1 : (int64_t)count;
}

static int64_t gmem__system_write(void *user, void *file, const void *from, int64_t bytes) {
    (void)user;
    size_t count = fwrite(from, 1, (size_t)gmem__min(bytes, 1 << 30), (FILE *)file);
    return count == 0 ? -1 : (int64_t)count;
}

static int gmem__system_sync(void *user, void *file) {
    (void)user;
    return fflush((FILE *)file);
}

static int gmem__system_close(void *user, void *file) {
    (void)user;
    return fclose((FILE *)file);
}

static int gmem__system_rename(void *user, const char *from, const char *to) {
    (void)user;
#ifdef _WIN32
    (void)remove(to); /* its rename does not replace */
#endif
    return rename(from, to);
}

static int gmem__system_remove(void *user, const char *path) {
    (void)user;
    return remove(path);
}

#undef GMEM__SEEK
#undef GMEM__TELL
#endif

GMEM__FN gmem_io gmem__system_io(void) {
    gmem_io io;
    memset(&io, 0, sizeof io);
    io.open = gmem__system_open;
    io.size = gmem__system_size;
    io.read = gmem__system_read;
    io.write = gmem__system_write;
    io.sync = gmem__system_sync;
    io.close = gmem__system_close;
#ifdef GMEM__SYSTEM_LOCK
    io.lock = GMEM__SYSTEM_LOCK;
    io.unlock = GMEM__SYSTEM_UNLOCK;
#endif
#if defined(GMEM__POSIX) && !defined(GMEM_NO_MMAP)
    io.map = gmem__system_map;
    io.unmap = gmem__system_unmap;
    io.discard = GMEM__SYSTEM_DISCARD;
#endif
    io.rename = gmem__system_rename;
    io.remove = gmem__system_remove;
    return io;
}

static gmem_status gmem__read_fully(const gmem_io *io, void *file, unsigned char *to, int64_t bytes, const char *path,
                                    gmem_error *error) {
    for (int64_t done = 0; done < bytes;) {
        gmem__io_forget();
        int64_t count = io->read(io->user, file, to + done, bytes - done, done);
        if (count < 0 || count > bytes - done)
            return gmem__fail_at(error, GMEM_E_READ, path, done, "cannot read the file%s", gmem__io_reason());
        if (count == 0)
            return gmem__fail_at(error, GMEM_E_TRUNCATED, path, done,
                                 "the file ends after %lld bytes, but had %lld when it was opened", (long long)done,
                                 (long long)bytes);
        done += count;
    }
    return GMEM_OK;
}

/* Maps or reads `bytes` of an open file. */
static gmem_status gmem__bytes_load(const gmem_context *context, void *file, int64_t bytes, const char *path,
                                    gmem__bytes *out, gmem_error *error) {
    const gmem_io *io = &context->io;
    out->size = bytes;
    out->data = (const unsigned char *)"";
    if (bytes == 0) return GMEM_OK;
    const void *mapped = context->no_map || !io->map ? NULL : io->map(io->user, file, bytes);
    if (mapped) {
        out->data = (const unsigned char *)mapped;
        out->mapped = 1;
        return GMEM_OK;
    }
    unsigned char *memory = (unsigned char *)gmem__alloc_raw(context, bytes, 1);
    if (!memory)
        return gmem__fail_at(error, GMEM_E_MEMORY, path, -1, "no memory for the file's %lld bytes", (long long)bytes);
    gmem_status status = gmem__read_fully(io, file, memory, bytes, path, error);
    if (status != GMEM_OK) {
        gmem__free(context, memory, bytes, 1);
        return status;
    }
    out->data = memory;
    out->owned = 1;
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__bytes_open(const gmem_context *context, const char *path, gmem__bytes *out,
                                      gmem_error *error) {
    const gmem_io *io = &context->io;
    gmem__bytes loaded;
    memset(&loaded, 0, sizeof loaded);
    gmem__io_forget();
    void *file = io->open(io->user, path, 0);
    if (!file) return gmem__fail_at(error, GMEM_E_OPEN, path, -1, "cannot open the file%s", gmem__io_reason());
    gmem__io_forget();
    int64_t size = io->size(io->user, file);
    gmem_status status =
        size < 0 ? gmem__fail_at(error, GMEM_E_READ, path, -1, "cannot tell the file's size%s", gmem__io_reason())
                 : gmem__bytes_load(context, file, size, path, &loaded, error);
    (void)io->close(io->user, file); /* what was read is here, whatever closing says */
    if (status == GMEM_OK) *out = loaded;
    return status;
}

GMEM__FN void gmem__bytes_close(const gmem_context *context, gmem__bytes *bytes) {
    if (bytes->mapped && context->io.unmap) context->io.unmap(context->io.user, bytes->data, bytes->size);
    if (bytes->owned) gmem__free(context, (void *)(uintptr_t)bytes->data, bytes->size, 1);
    memset(bytes, 0, sizeof *bytes);
}

#undef GMEM__POSIX
#undef GMEM__SYSTEM_DISCARD
#undef GMEM__SYSTEM_LOCK
#undef GMEM__SYSTEM_UNLOCK
