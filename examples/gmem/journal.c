/* The journal's file: a head that names its key, then records, each with its sum at the end. In the machine's own byte
 * order: it does not outlive the run that it continues. */
#define _POSIX_C_SOURCE 200809L
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_NAME 65536 /* bytes */

typedef struct file_head {
    char magic[8];
    uint32_t key;
    uint32_t width;
    uint32_t version;
    uint32_t crc; /* of what precedes */
} file_head;

/* Then the features, the name, and the sum of all. */
typedef struct record_head {
    int64_t size, mtime;
    uint32_t name_bytes;
    uint32_t mark; /* 0 would be the sum of a file that was lengthened by zeros */
} record_head;

#define MARK 0x5abedu

/* reading and writing --------------------------------------------------------------------------------------------- */

/* The bytes at `offset`: as many as there are, up to `bytes`; -1 where they cannot be read. */
static int64_t read_at(const journal *j, int64_t offset, void *out, int64_t bytes) {
    int64_t done = 0;
    while (done < bytes) {
        const ssize_t count = pread(j->file, (char *)out + done, (size_t)(bytes - done), (off_t)(offset + done));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -1;
        if (count == 0) break;
        done += count;
    }
    return done;
}

/* Adds bytes at the end, all or none. */
static outcome append(journal *j, const void *from, int64_t bytes, gmem_error *error) {
    for (int64_t done = 0; done < bytes;) {
        const ssize_t count =
            pwrite(j->file, (const char *)from + done, (size_t)(bytes - done), (off_t)(j->end + done));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) {
            const int reason = errno;
            const int cut = ftruncate(j->file, (off_t)j->end);
            (void)cut; /* a record that is not whole would be seen as such anyway */
            return failed(error, j->path, "cannot write what was finished: %s", strerror(reason));
        }
        done += count;
    }
    j->end += bytes;
    return OUTCOME_DONE;
}

static outcome unreadable(const journal *j, gmem_error *error) {
    return failed(error, j->path, "cannot read what was finished: %s", strerror(errno));
}

/* opening --------------------------------------------------------------------------------------------------------- */

static outcome lock(journal *j, gmem_error *error) {
    struct flock whole;
    memset(&whole, 0, sizeof whole);
    whole.l_type = F_WRLCK;
    whole.l_whence = SEEK_SET;
    if (fcntl(j->file, F_SETLK, &whole) == 0) return OUTCOME_DONE;
    if (errno == EACCES || errno == EAGAIN) return failed(error, j->path, "another run is building this bank");
    return failed(error, j->path, "cannot lock the file: %s", strerror(errno));
}

static uint32_t head_crc(const journal *j, const file_head *head) {
    return crc_add(&j->crc, 0, head, offsetof(file_head, crc));
}

static outcome begin(journal *j, const file_head *head, gmem_error *error) {
    file_head found;
    memset(&found, 0, sizeof found);
    const int64_t bytes = read_at(j, 0, &found, sizeof found);
    if (bytes < 0) return unreadable(j, error);
    if (bytes < (int64_t)sizeof found &&
        !memcmp(&found, head, (size_t)bytes)) /* new, or torn before it held anything */
        return append(j, head, sizeof *head, error);
    if (memcmp(found.magic, head->magic, sizeof found.magic) != 0 || found.crc != head_crc(j, &found))
        return failed(error, j->path, "this file is in the way: it is not what an interrupted bank build leaves");
    if (memcmp(&found, head, sizeof found) != 0)
        return failed(error, j->path,
                      "it was begun with another image encoder or other settings: repeat those, or delete it to begin "
                      "anew");
    j->end = sizeof found;
    return OUTCOME_DONE;
}

outcome journal_open(journal *j, const char *output, uint32_t key, int64_t width, gmem_error *error) {
    file_head head;
    const size_t bytes = strlen(output) + sizeof ".part";
    j->width = width;
    j->record_bytes = (int64_t)sizeof(record_head) + width * (int64_t)sizeof(float) + MOST_NAME + 4;
    j->record = (unsigned char *)malloc((size_t)j->record_bytes);
    j->path = (char *)malloc(bytes);
    if (!j->path || !j->record) return out_of_memory(error);
    snprintf(j->path, bytes, "%s.part", output);
    crc_prepare(&j->crc);
    memset(&head, 0, sizeof head);
    memcpy(head.magic, "gmempart", sizeof head.magic);
    head.key = key;
    head.width = (uint32_t)width;
    head.version = 1;
    head.crc = head_crc(j, &head);
    j->file = open(j->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    if (j->file < 0) return failed(error, j->path, "cannot open the file: %s", strerror(errno));
    TRY(lock(j, error));
    return begin(j, &head, error);
}

void journal_close(journal *j) {
    if (j->file >= 0) close(j->file);
    free(j->path);
    free(j->record);
    memset(j, 0, sizeof *j);
    j->file = -1;
}

void journal_remove(journal *j) {
    if (j->file >= 0) unlink(j->path);
}

/* records --------------------------------------------------------------------------------------------------------- */

/* The whole record at `offset` into j->record: its bytes; 0 where there is none, -1 where it cannot be read. */
static int64_t load_record(journal *j, int64_t offset) {
    record_head head;
    uint32_t crc;
    const int64_t got = read_at(j, offset, &head, sizeof head);
    if (got < 0) return -1;
    if (got < (int64_t)sizeof head || head.mark != MARK || head.name_bytes < 2 || head.name_bytes > MOST_NAME) return 0;
    const int64_t summed = (int64_t)sizeof head + j->width * (int64_t)sizeof(float) + head.name_bytes;
    const int64_t bytes = summed + (int64_t)sizeof crc, there = read_at(j, offset, j->record, bytes);
    if (there < 0) return -1;
    if (there < bytes || j->record[summed - 1] != 0) return 0;
    memcpy(&crc, j->record + summed, sizeof crc);
    return crc == crc_add(&j->crc, 0, j->record, (size_t)summed) ? bytes : 0;
}

int journal_next(journal *j, journal_entry *out, gmem_error *error) {
    record_head head;
    const int64_t bytes = load_record(j, j->end);
    if (bytes < 0) {
        unreadable(j, error);
        return -1;
    }
    if (bytes == 0) {
        if (ftruncate(j->file, (off_t)j->end) == 0) return 0;
        failed(error, j->path, "cannot cut off what is not whole: %s", strerror(errno));
        return -1;
    }
    memcpy(&head, j->record, sizeof head);
    out->size = head.size;
    out->mtime = head.mtime;
    out->features = j->end + (int64_t)sizeof head;
    out->name = (const char *)j->record + sizeof head + (size_t)j->width * sizeof(float);
    j->end += bytes;
    return 1;
}

outcome journal_add(journal *j, journal_entry *entry, const float *features, gmem_error *error) {
    record_head head;
    unsigned char *next = j->record;
    const size_t name = strlen(entry->name) + 1, floats = (size_t)j->width * sizeof(float);
    if (name > MOST_NAME) return failed(error, entry->name, "the name is too long");
    memset(&head, 0, sizeof head);
    head.size = entry->size;
    head.mtime = entry->mtime;
    head.name_bytes = (uint32_t)name;
    head.mark = MARK;
    memcpy(next, &head, sizeof head);
    memcpy(next += sizeof head, features, floats);
    memcpy(next += floats, entry->name, name);
    next += name;
    const uint32_t crc = crc_add(&j->crc, 0, j->record, (size_t)(next - j->record));
    memcpy(next, &crc, sizeof crc);
    entry->features = j->end + (int64_t)sizeof head;
    return append(j, j->record, next + sizeof crc - j->record, error);
}

outcome journal_read(const journal *j, int64_t features, float *out, gmem_error *error) {
    const int64_t bytes = j->width * (int64_t)sizeof *out, got = read_at(j, features, out, bytes);
    if (got < 0) return unreadable(j, error);
    return got == bytes ? OUTCOME_DONE : failed(error, j->path, "the file became shorter while the bank was written");
}
