/* Picture files to pixels: stb_image behind a reader that notices files which end too early, within limits on what a
 * file may make it allocate. */
#include "picture.h"
#include "pnm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MOST_BYTES  ((int64_t)1 << 30) /* of a file */
#define MOST_SIDE   65535
#define MOST_PIXELS ((int64_t)1 << 28)
#define HEAD_BYTES  16

/* stb_image --------------------------------------------------------------------------------------------------------
 * It gets no more memory at a time than the size of the picture and of the file accounts for: a few bytes of PNG can
 * stand for gigabytes. The limit is the thread's, for stb_image hands nothing through to its allocator. */
#if defined(_MSC_VER)
#define OF_THE_THREAD __declspec(thread)
#else
#define OF_THE_THREAD __thread
#endif
static OF_THE_THREAD size_t most_at_a_time;

/* Zeroed, for what a damaged JPEG leaves out is used all the same. */
static void *limited_alloc(size_t bytes) { return bytes <= most_at_a_time ? calloc(1, bytes) : NULL; }

static void *limited_realloc(void *memory, size_t bytes) {
    return bytes <= most_at_a_time ? realloc(memory, bytes) : NULL;
}

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wshadow"
#endif
#define STBI_MALLOC(bytes)          limited_alloc(bytes)
#define STBI_REALLOC(memory, bytes) limited_realloc(memory, bytes)
#define STBI_FREE(memory)           free(memory)
#define STBI_MAX_DIMENSIONS         MOST_SIDE
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_NO_PIC
#define STBI_NO_PNM
#define STB_IMAGE_IMPLEMENTATION
#include "examples/stb/stb_image.h"
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic pop
#endif

/* recognising ----------------------------------------------------------------------------------------------------- */

static int ends_with(const char *text, const char *ending) {
    const size_t length = strlen(text), bytes = strlen(ending);
    return length > bytes && same_ignoring_case(text + length - bytes, ending);
}

int has_picture_name(const char *path) {
    static const char *const endings[] = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp",
                                          ".dib", ".tga", ".psd",  ".pgm", ".ppm",  ".pnm"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        if (ends_with(path, endings[i])) return 1;
    }
    return 0;
}

static int is_pnm(const uint8_t *head) { return head[0] == 'P' && (head[1] == '5' || head[1] == '6'); }

static int is_space(int c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* All but TGA, which has no mark of its own; more than two letters, with which a text could begin too. */
static int begins_like_picture(const uint8_t *head) {
    static const struct {
        size_t bytes;
        const char *text;
    } marks[] = {{8, "\x89PNG\r\n\x1a\n"}, {3, "\xff\xd8\xff"}, {4, "GIF8"}, {4, "8BPS"}};
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        if (!memcmp(head, marks[i].text, marks[i].bytes)) return 1;
    }
    if (head[0] == 'B' && head[1] == 'M') return head[14] != 0 && head[15] == 0; /* a short header follows */
    return is_pnm(head) && (head[2] == '#' || is_space(head[2]));
}

/* the reader ------------------------------------------------------------------------------------------------------ */

typedef struct reader {
    FILE *file;
    uint8_t head[HEAD_BYTES]; /* the file's first ones, then zeros */
    int64_t size, at;
    const char *window; /* where stb_image reads ahead to; what goes elsewhere it needs */
    int beyond;         /* it needed bytes behind the end */
} reader;

static int reader_read(void *user, char *out, int bytes) {
    reader *r = (reader *)user;
    const int count = (int)fread(out, 1, (size_t)bytes, r->file);
    if (!r->window) r->window = out;
    if (count < bytes && (count == 0 || out != r->window)) r->beyond = 1;
    r->at += count;
    return count;
}

static void reader_skip(void *user, int bytes) {
    reader *r = (reader *)user;
    r->at += bytes;
    if (r->at > r->size) r->beyond = 1;
    if (r->at < 0 || fseek(r->file, (long)r->at, SEEK_SET) != 0) r->at = r->size;
}

static int reader_eof(void *user) {
    const reader *r = (const reader *)user;
    return r->at >= r->size;
}

static const stbi_io_callbacks callbacks = {reader_read, reader_skip, reader_eof};

static void reader_rewind(reader *r) {
    rewind(r->file);
    r->at = 0;
    r->window = NULL;
    r->beyond = 0;
}

/* opening --------------------------------------------------------------------------------------------------------- */

/* A pipe would block whoever opens it. */
static outcome reader_open(reader *r, const char *path, gmem_error *error) {
    struct stat status;
    memset(r, 0, sizeof *r);
    if (stat(path, &status) != 0) return failed(error, path, "cannot open the picture: %s", strerror(errno));
    if (!S_ISREG(status.st_mode))
        return failed(error, path, "it is %s, not a picture", S_ISDIR(status.st_mode) ? "a folder" : "a device");
    if (status.st_size == 0) return failed(error, path, "the file is empty");
    if (status.st_size > MOST_BYTES)
        return failed(error, path, "the file has %lld bytes, a picture at most %lld", (long long)status.st_size,
                      (long long)MOST_BYTES);
    r->size = status.st_size;
    r->file = fopen(path, "rb");
    if (!r->file) return failed(error, path, "cannot open the picture: %s", strerror(errno));
    if (fread(r->head, 1, sizeof r->head, r->file) < sizeof r->head && ferror(r->file)) {
        fclose(r->file);
        return failed(error, path, "cannot read the picture: %s", strerror(errno));
    }
    reader_rewind(r);
    return OUTCOME_DONE;
}

static outcome check_size(const char *path, int64_t width, int64_t height, gmem_error *error) {
    if (width < 1 || height < 1)
        return failed(error, path, "the picture has no pixels: it is %lld x %lld", (long long)width, (long long)height);
    if (width > MOST_SIDE || height > MOST_SIDE || width > MOST_PIXELS / height)
        return failed(error, path, "the picture is too large: %lld x %lld; at most %d a side and %lld pixels are read",
                      (long long)width, (long long)height, MOST_SIDE, (long long)MOST_PIXELS);
    return OUTCOME_DONE;
}

/* Why reading came to nothing: the file itself, or what stb_image found in it. */
static outcome unreadable(const reader *r, const char *path, const char *reason, gmem_error *error) {
    if (ferror(r->file)) return failed(error, path, "cannot read the picture: %s", strerror(errno));
    if (!begins_like_picture(r->head) && !ends_with(path, ".tga"))
        return failed(error, path, "not a picture of a known kind: PNG, JPEG, GIF, BMP, TGA, PSD, PPM or PGM");
    if (r->beyond) return failed(error, path, "the file ends too early");
    if (reason && strcmp(reason, "0-pixel image") == 0) return failed(error, path, "the picture has no pixels");
    if (reason && strcmp(reason, "too large") == 0)
        return failed(error, path, "the picture is too large: at most %d a side and %lld pixels are read", MOST_SIDE,
                      (long long)MOST_PIXELS);
    return failed(error, path, "cannot read the picture: %s", reason ? reason : "unknown reason");
}

/* decoding -------------------------------------------------------------------------------------------------------- */

/* `channels` bytes a pixel become 3, in place: gray, gray and alpha, RGB, RGB and alpha. */
static void to_rgb(uint8_t *pixels, int64_t count, int channels) {
    if (channels == 3) return;
    for (int64_t k = 0; k < count; k++) {
        const int64_t i = channels < 3 ? count - 1 - k : k; /* what grows is moved from its end */
        const uint8_t *from = pixels + i * channels;
        const int colours = channels < 3 ? 1 : 3, alpha = channels % 2 ? 255 : from[channels - 1];
        uint8_t rgb[3];
        for (int c = 0; c < 3; c++) {
            rgb[c] = (uint8_t)((from[colours == 3 ? c : 0] * alpha + 255 * (255 - alpha) + 127) / 255);
        }
        memcpy(pixels + 3 * i, rgb, sizeof rgb);
    }
}

/* What a decoder needs at most at a time: 16 bits for each of 4 channels and a filter byte for each row, or whole
 * blocks of coefficients, or a buffer of the file that grows by doubling. */
static size_t most_needed(int64_t width, int64_t height, int64_t file_bytes) {
    const uint64_t need = (uint64_t)(9 * width * height + 128 * (width + height) + 2 * file_bytes + (1 << 20));
    return need > SIZE_MAX / 2 ? SIZE_MAX / 2 : (size_t)need;
}

/* What keeps a picture from being read whose size cannot be told: looking for that, stb_image goes on to other formats
 * and forgets what it was. Decoding, it stays with one; it gets no memory for more than the beginning. */
static const char *why_no_size(reader *r) {
    int width, height, channels;
    reader_rewind(r);
    free(stbi_load_from_callbacks(&callbacks, r, &width, &height, &channels, 0));
    return stbi_failure_reason();
}

static outcome decode(reader *r, const char *path, picture *out, gmem_error *error) {
    int width = 0, height = 0, channels = 0;
    most_at_a_time = most_needed(0, 0, 0);
    if (!stbi_info_from_callbacks(&callbacks, r, &width, &height, &channels))
        return unreadable(r, path, why_no_size(r), error);
    TRY(check_size(path, width, height, error));
    reader_rewind(r);
    most_at_a_time = most_needed(width, height, r->size);
    uint8_t *pixels = stbi_load_from_callbacks(&callbacks, r, &width, &height, &channels, 0);
    if (!pixels || r->beyond || ferror(r->file)) {
        free(pixels);
        return unreadable(r, path, stbi_failure_reason(), error);
    }
    if (channels < 3) { /* room to grow */
        uint8_t *larger = (uint8_t *)realloc(pixels, (size_t)width * (size_t)height * 3);
        if (!larger) {
            free(pixels);
            return out_of_memory(error);
        }
        pixels = larger;
    }
    to_rgb(pixels, (int64_t)width * height, channels);
    out->pixels = pixels;
    out->width = width;
    out->height = height;
    return OUTCOME_DONE;
}

static outcome decode_pnm(reader *r, const char *path, picture *out, gmem_error *error) {
    pnm_header header;
    const char *wrong = pnm_read_header(r->file, &header);
    if (wrong) return unreadable(r, path, wrong, error);
    TRY(check_size(path, header.width, header.height, error));
    uint8_t *pixels = (uint8_t *)malloc((size_t)header.width * (size_t)header.height * 3);
    if (!pixels) return out_of_memory(error);
    wrong = pnm_read_pixels(r->file, &header, pixels);
    if (wrong) {
        free(pixels);
        r->beyond = 1;
        return unreadable(r, path, wrong, error);
    }
    out->pixels = pixels;
    out->width = header.width;
    out->height = header.height;
    return OUTCOME_DONE;
}

outcome read_picture(const char *path, picture *out, gmem_error *error) {
    reader r;
    TRY(reader_open(&r, path, error));
    outcome result = (is_pnm(r.head) ? decode_pnm : decode)(&r, path, out, error);
    fclose(r.file);
    return result;
}

void free_picture(picture *p) {
    free(p->pixels);
    memset(p, 0, sizeof *p);
}

int is_picture(const char *path) {
    reader r;
    gmem_error ignored;
    if (reader_open(&r, path, &ignored) != OUTCOME_DONE) return 0;
    fclose(r.file);
    return begins_like_picture(r.head) || ends_with(path, ".tga");
}
