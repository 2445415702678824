/* Reading pictures: every kind that the command takes, in pixels that are known; sizes, files that end too early and
 * other malformed ones; every prefix and every flipped bit of a PNG, a JPEG and a GIF ends in an error or a picture. */
#define _POSIX_C_SOURCE 200809L
#include "../examples/gmem/picture.h"

#include "check.h"
#include "golden.h"

#include <sys/stat.h>
#include <unistd.h>

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wshadow"
#endif
#define STBI_WRITE_NO_STDIO
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include "../examples/stb/stb_image_write.h"
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic pop
#endif

enum { W = 11, H = 7, MOST = 1 << 16 };

/* A file's bytes, written by hand or by stb_image_write. */
typedef struct bytes {
    uint8_t data[MOST];
    int size;
} bytes;

static char path[700]; /* beside this program */

static void add(void *user, void *data, int size) {
    bytes *b = (bytes *)user;
    if (b->size + size > MOST) exit(1);
    memcpy(b->data + b->size, data, (size_t)size);
    b->size += size;
}

static void add_number(bytes *b, uint64_t value, int size, int big_endian) {
    for (int i = 0; i < size; i++)
        b->data[b->size++] = (uint8_t)(value >> 8 * (big_endian ? size - 1 - i : i));
}

static void add_text(bytes *b, const char *text) { add(b, (void *)(uintptr_t)text, (int)strlen(text)); }

static void put(const void *data, size_t size) {
    remove(path); /* some file systems wait for the disk where a file is written over */
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0) exit(1);
}

static outcome read_bytes(const bytes *b, picture *out, gmem_error *error) {
    memset(error, 0, sizeof *error);
    memset(out, 0, sizeof *out);
    put(b->data, (size_t)b->size);
    return read_picture(path, out, error);
}

static void check_refused(const bytes *b, const char *why) {
    gmem_error error;
    picture p;
    CHECK_INT(read_bytes(b, &p, &error), OUTCOME_FAILED);
    CHECK(p.pixels == NULL);
    CHECK_TEXT(error.path, path);
    CHECK_CONTAINS(error.message, why);
}

/* pixels ---------------------------------------------------------------------------------------------------------- */

/* Channel c of `channels` of the picture that everything here shows; the alpha of its last column is 0. */
static uint8_t sample(int x, int y, int c, int channels) {
    if (c == channels - 1 && channels % 2 == 0) return (uint8_t)(x == W - 1 ? 0 : 255 - 20 * x);
    return (uint8_t)(20 * x + 3 * y * y + 50 * c);
}

static const uint8_t *samples(int channels) {
    static uint8_t pixels[W * H * 4];
    for (int i = 0; i < W * H * channels; i++)
        pixels[i] = sample(i / channels % W, i / channels / W, i % channels, channels);
    return pixels;
}

static int on_white(int value, int alpha) { return (value * alpha + 255 * (255 - alpha) + 127) / 255; }

static void check_pixels(const bytes *b, int channels, int tolerance, const char *what) {
    gmem_error error;
    char text[700];
    picture p;
    int worst = 0;
    const outcome result = read_bytes(b, &p, &error);
    snprintf(text, sizeof text, "%s: %.300s", what, error.message);
    if (!check_result(result == OUTCOME_DONE, __FILE__, __LINE__, text)) return;
    if (CHECK_INT(p.width, W) && CHECK_INT(p.height, H)) {
        for (int i = 0; i < W * H * 3; i++) {
            const int x = i / 3 % W, y = i / 3 / W, c = channels < 3 ? 0 : i % 3;
            const int alpha = channels % 2 ? 255 : sample(x, y, channels - 1, channels);
            const int difference = abs(p.pixels[i] - on_white(sample(x, y, c, channels), alpha));
            worst = difference > worst ? difference : worst;
        }
        snprintf(text, sizeof text, "%s: a pixel is off by %d", what, worst);
        check_result(worst <= tolerance, __FILE__, __LINE__, text);
    }
    CHECK(is_picture(path) || strcmp(what, "TGA") == 0);
    free_picture(&p);
}

static void make_png(bytes *b, int channels) {
    b->size = 0;
    stbi_write_png_to_func(add, b, W, H, channels, samples(channels), W * channels);
}

static void add_chunk(bytes *b, const char *type, const void *data, int size) {
    add_number(b, (uint64_t)size, 4, 1);
    add_text(b, type);
    add(b, (void *)(uintptr_t)data, size);
    add_number(b, 0, 4, 1); /* nobody looks at the sum */
}

static void make_header(bytes *b, uint32_t width, uint32_t height, int depth, int colour) {
    bytes header;
    b->size = header.size = 0;
    add(b, (void *)(uintptr_t) "\x89PNG\r\n\x1a\n", 8);
    add_number(&header, width, 4, 1);
    add_number(&header, height, 4, 1);
    add_number(&header, (uint64_t)depth, 1, 1);
    add_number(&header, (uint64_t)colour, 1, 1);
    add_number(&header, 0, 3, 1);
    add_chunk(b, "IHDR", header.data, header.size);
}

/* 16 bits a sample, of which the upper 8 count. */
static void make_deep_png(bytes *b, int channels) {
    static const int colours[] = {0, 0, 4, 2, 6};
    static bytes raw;
    int size = 0;
    raw.size = 0;
    make_header(b, W, H, 16, colours[channels]);
    for (int y = 0; y < H; y++) {
        raw.data[raw.size++] = 0;
        for (int i = 0; i < W * channels; i++)
            add_number(&raw, (uint64_t)sample(i / channels, y, i % channels, channels) << 8 | (uint64_t)(i & 255), 2,
                       1);
    }
    unsigned char *packed = stbi_zlib_compress(raw.data, raw.size, &size, 8);
    add_chunk(b, "IDAT", packed, size);
    add_chunk(b, "IEND", "", 0);
    free(packed);
}

static void make_pnm(bytes *b, const char *header, int channels, int greatest) {
    b->size = 0;
    add_text(b, header);
    for (int i = 0; i < W * H * channels; i++) {
        const int value = sample(i / channels % W, i / channels / W, i % channels, channels);
        add_number(b, (uint64_t)((value * greatest + 127) / 255), greatest > 255 ? 2 : 1, 1);
    }
}

static void make_psd(bytes *b) {
    b->size = 0;
    add_text(b, "8BPS");
    add_number(b, 1, 2, 1);
    add_number(b, 0, 6, 1);
    add_number(b, 3, 2, 1);
    add_number(b, H, 4, 1);
    add_number(b, W, 4, 1);
    add_number(b, 8, 2, 1);
    add_number(b, 3, 2, 1); /* RGB */
    for (int i = 0; i < 3; i++)
        add_number(b, 0, 4, 1); /* empty sections */
    add_number(b, 0, 2, 1);     /* not compressed */
    for (int i = 0; i < 3 * W * H; i++)
        b->data[b->size++] = sample(i % W, i / W % H, i / W / H, 3);
}

static void test_kinds(void) {
    static bytes b;
    char what[64];
    for (int channels = 1; channels <= 4; channels++) {
        make_png(&b, channels);
        snprintf(what, sizeof what, "PNG of %d channels", channels);
        check_pixels(&b, channels, 0, what);
        make_deep_png(&b, channels);
        snprintf(what, sizeof what, "16-bit PNG of %d channels", channels);
        check_pixels(&b, channels, 0, what);
    }
    b.size = 0;
    stbi_write_bmp_to_func(add, &b, W, H, 3, samples(3));
    check_pixels(&b, 3, 0, "BMP");
    for (int packed = 0; packed < 2; packed++) {
        b.size = 0;
        stbi_write_tga_with_rle = packed;
        stbi_write_tga_to_func(add, &b, W, H, 4, samples(4));
        check_pixels(&b, 4, 0, "TGA");
    }
    make_psd(&b);
    check_pixels(&b, 3, 0, "PSD");
    make_pnm(&b, "P6 11 7 255\n", 3, 255);
    check_pixels(&b, 3, 0, "PPM");
    make_pnm(&b, "P5\n# by hand\n#\n11\t7 # wide\r\n255\n", 1, 255);
    check_pixels(&b, 1, 0, "PGM");
    make_pnm(&b, "P6\n11 7\n65535\n", 3, 65535);
    check_pixels(&b, 3, 0, "16-bit PPM");
    make_pnm(&b, "P5\n11 7\n1000\n", 1, 1000);
    check_pixels(&b, 1, 0, "PGM to 1000");
    make_pnm(&b, "P5\n11 7\n100\n", 1, 100);
    check_pixels(&b, 1, 2, "PGM to 100");
}

/* What Pillow wrote, and read back (tools/record-pictures.py). Decoders of JPEG may round differently. */
static void test_recorded(void) {
    gmem_context *context = golden_context(GMEM_ISA_SCALAR);
    gmem_file *file = golden_open(context, "pictures.safetensors");
    CHECK_INT(gmem_file_tensor_count(file), 11);
    for (int64_t k = 0; k < gmem_file_tensor_count(file); k++) {
        const gmem_tensor *expected = gmem_file_tensor(file, k);
        const int tolerance = strstr(expected->name, "jpg") ? 4 : strstr(expected->name, "alpha") ? 1 : 0;
        char name[100], text[700];
        gmem_error error;
        picture p;
        int worst = 0;
        snprintf(name, sizeof name, "tests/golden/picture_%s", expected->name);
        CHECK(is_picture(name));
        memset(&error, 0, sizeof error);
        const outcome result = read_picture(name, &p, &error);
        snprintf(text, sizeof text, "%s: %.300s", name, error.message);
        if (!check_result(result == OUTCOME_DONE, __FILE__, __LINE__, text)) continue;
        CHECK(p.height == expected->shape[0] && p.width == expected->shape[1]);
        for (int64_t i = 0; i < gmem_tensor_count(expected); i++) {
            const int difference = abs(p.pixels[i] - ((const uint8_t *)expected->data)[i]);
            worst = difference > worst ? difference : worst;
        }
        snprintf(text, sizeof text, "%s: a pixel is off by %d", name, worst);
        check_result(worst <= tolerance, __FILE__, __LINE__, text);
        free_picture(&p);
    }
    gmem_file_close(file);
    gmem_context_destroy(context);
}

/* what is refused ------------------------------------------------------------------------------------------------- */

static void test_sizes(void) {
    static bytes b;
    make_header(&b, 31623, 31623, 8, 0);
    add_chunk(&b, "IDAT", "", 0);
    check_refused(&b, "too large: 31623 x 31623");
    make_header(&b, 31623, 31623, 8, 2);
    check_refused(&b, "too large: at most 65535 a side and 268435456 pixels");
    make_header(&b, 1, 65536, 8, 2);
    check_refused(&b, "too large: at most 65535 a side and 268435456 pixels");
    make_header(&b, 1000000000, 1, 8, 2);
    check_refused(&b, "too large: at most 65535 a side and 268435456 pixels");
    make_header(&b, 0, 5, 8, 2);
    check_refused(&b, "the picture has no pixels");
    make_pnm(&b, "P6 0 7 255\n", 3, 255);
    check_refused(&b, "no pixels: it is 0 x 7");
    make_pnm(&b, "P6 999999999 999999999 255\n", 3, 255);
    check_refused(&b, "too large");
    make_pnm(&b, "P6 99999999999999999999 7 255\n", 3, 255);
    check_refused(&b, "malformed");
    make_pnm(&b, "P6 11 7 65536\n", 3, 255);
    check_refused(&b, "malformed");
    make_pnm(&b, "P6 11 7 0\n", 3, 255);
    check_refused(&b, "malformed");
    make_pnm(&b, "P6 11 -7 255\n", 3, 255);
    check_refused(&b, "malformed");
}

/* A picture of one pixel whose data would fill 4 MiB. */
static void test_bomb(void) {
    static bytes b;
    const int zeros = 1 << 22;
    int size = 0;
    unsigned char *raw = (unsigned char *)calloc((size_t)zeros, 1), *packed = stbi_zlib_compress(raw, zeros, &size, 5);
    for (int pixels = 1; pixels <= 1000; pixels *= 1000) {
        make_header(&b, (uint32_t)pixels, 1, 8, 2);
        add_chunk(&b, "IDAT", packed, size);
        add_chunk(&b, "IEND", "", 0);
        check_refused(&b, "outofmem");
    }
    free(raw);
    free(packed);
}

static void test_others(void) {
    gmem_error error;
    picture p;
    static bytes b;
    b.size = 0;
    check_refused(&b, "empty");
    add_text(&b, "hello\n");
    check_refused(&b, "not a picture of a known kind");
    CHECK(!is_picture(path));
    b.size = 0;
    add_text(&b, "BM is how this text begins\n");
    CHECK(!is_picture(path));
    check_refused(&b, "");
    remove(path);
    CHECK_INT(read_picture(path, &p, &error), OUTCOME_FAILED);
    CHECK_CONTAINS(error.message, "No such file");
    CHECK(!is_picture(path));
    CHECK(mkdir(path, 0700) == 0);
    CHECK_INT(read_picture(path, &p, &error), OUTCOME_FAILED);
    CHECK_CONTAINS(error.message, "a folder");
    CHECK(rmdir(path) == 0 && mkfifo(path, 0600) == 0);
    CHECK_INT(read_picture(path, &p, &error), OUTCOME_FAILED);
    CHECK_CONTAINS(error.message, "not a picture");
    remove(path);
    CHECK(has_picture_name("a/b.JPeg") && has_picture_name("x.png") && !has_picture_name(".png"));
    CHECK(!has_picture_name("png") && !has_picture_name("x.pngs") && !has_picture_name(""));
}

static void check_damage(const bytes *whole, const char *what) {
    static bytes b;
    char text[200];
    int accepted = 0, wrong = 0;
    gmem_error error;
    picture p;
    for (int size = 0; size < whole->size; size++) {
        b = *whole;
        b.size = size;
        accepted += read_bytes(&b, &p, &error) == OUTCOME_DONE;
        free_picture(&p);
    }
    snprintf(text, sizeof text, "%s: %d prefixes were taken for pictures", what, accepted);
    check_result(accepted == 0, __FILE__, __LINE__, text);
    b = *whole;
    for (int bit = 0; bit < 8 * whole->size; bit++) {
        b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        const outcome result = read_bytes(&b, &p, &error);
        wrong += result == OUTCOME_DONE ? !p.pixels : p.pixels || !error.message[0] || strcmp(error.path, path) != 0;
        uint32_t sum = 0;
        for (int64_t i = 0; p.pixels && i < p.width * p.height * 3; i++)
            sum += p.pixels[i]; /* all of it is there */
        wrong += sum == 1;      /* which no picture here has, but the compiler does not know */
        free_picture(&p);
        b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    snprintf(text, sizeof text, "%s: %d flipped bits were neither an error nor a picture", what, wrong);
    check_result(wrong == 0, __FILE__, __LINE__, text);
}

static void load_recorded(bytes *b, const char *name) {
    char from[100];
    snprintf(from, sizeof from, "tests/golden/picture_%s", name);
    FILE *file = fopen(from, "rb");
    b->size = file ? (int)fread(b->data, 1, MOST, file) : 0;
    if (!CHECK(b->size > 0)) exit(1);
    fclose(file);
}

static void test_damage(void) {
    static const char *const recorded[] = {"baseline.jpg", "progressive.jpg", "palette.png", "plain.gif"};
    static bytes b;
    for (size_t i = 0; i < sizeof recorded / sizeof *recorded; i++) {
        load_recorded(&b, recorded[i]);
        if (strstr(recorded[i], "gif")) b.size--; /* the trailer, which nobody waits for */
        check_damage(&b, recorded[i]);
    }
    make_png(&b, 4);
    check_damage(&b, "PNG");
    make_pnm(&b, "P6\n11 7\n1000\n", 3, 1000);
    check_damage(&b, "PPM");
}

int main(int argc, char **argv) {
    if (argc < 1 || snprintf(path, sizeof path, "%s.picture", argv[0]) >= (int)sizeof path) return 1;
    test_kinds();
    test_recorded();
    test_sizes();
    test_bomb();
    test_others();
    test_damage();
    remove(path);
    return check_report();
}
