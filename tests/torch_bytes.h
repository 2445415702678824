/* Bytes of torch files made by hand: a buffer, a zip writer that remembers where everything lies so that a test can
 * break it, and pieces of pickles. */
#ifndef TORCH_BYTES_H
#define TORCH_BYTES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct bytes {
    unsigned char *data;
    size_t size, room;
} bytes;

static inline void bytes_add(bytes *to, const void *data, size_t size) {
    if (to->size + size > to->room) {
        to->room = 2 * (to->size + size) + 256;
        to->data = (unsigned char *)realloc(to->data, to->room);
        if (!to->data) exit(1);
    }
    if (size) memcpy(to->data + to->size, data, size);
    to->size += size;
}

/* A little-endian number, behind the rest or over what is there. */
static inline void bytes_number(bytes *to, uint64_t value, int size) {
    unsigned char number[8];
    for (int i = 0; i < size; i++)
        number[i] = (unsigned char)(value >> (8 * i));
    bytes_add(to, number, (size_t)size);
}

static inline void bytes_patch(bytes *in, size_t at, uint64_t value, int size) {
    if (at + (size_t)size > in->size) exit(1);
    for (int i = 0; i < size; i++)
        in->data[at + (size_t)i] = (unsigned char)(value >> (8 * i));
}

static inline void bytes_free(bytes *to) {
    free(to->data);
    memset(to, 0, sizeof *to);
}

/* zip */

enum { ZIP_MAX_ENTRIES = 8 };

typedef struct zip_item {
    const char *name;
    size_t name_size; /* 0: strlen(name) */
    const void *data;
    size_t size;
} zip_item;

typedef struct zip_image {
    bytes file;
    int count;
    size_t local[ZIP_MAX_ENTRIES], data[ZIP_MAX_ENTRIES], central[ZIP_MAX_ENTRIES];
    size_t directory, end64, locator, end;
} zip_image;

/* As torch writes it: the sizes in the directory and in a descriptor, with an end record of each kind. */
static inline void zip_write(zip_image *image, const zip_item *items, int count, int with_end64) {
    bytes *file = &image->file;
    memset(image, 0, sizeof *image);
    image->count = count;
    for (int i = 0; i < count; i++) {
        const size_t name_size = items[i].name_size ? items[i].name_size : strlen(items[i].name);
        image->local[i] = file->size;
        bytes_add(file, "PK\3\4\0\0\10\10\0\0\0\0\0\0", 14);
        bytes_number(file, 0, 8);
        bytes_number(file, 0, 4);
        bytes_number(file, name_size, 2);
        bytes_number(file, 5, 2);
        bytes_add(file, items[i].name, name_size);
        bytes_add(file, "FB\1\0Z", 5);
        image->data[i] = file->size;
        bytes_add(file, items[i].data, items[i].size);
        bytes_add(file, "PK\7\10\0\0\0\0", 8);
        bytes_number(file, items[i].size, 4);
        bytes_number(file, items[i].size, 4);
    }
    image->directory = file->size;
    for (int i = 0; i < count; i++) {
        const size_t name_size = items[i].name_size ? items[i].name_size : strlen(items[i].name);
        image->central[i] = file->size;
        bytes_add(file, "PK\1\2\0\0\0\0\10\10\0\0\0\0\0\0\0\0\0\0", 20);
        bytes_number(file, items[i].size, 4);
        bytes_number(file, items[i].size, 4);
        bytes_number(file, name_size, 2);
        bytes_number(file, 0, 8);
        bytes_number(file, 0, 4);
        bytes_number(file, image->local[i], 4);
        bytes_add(file, items[i].name, name_size);
    }
    const size_t directory_size = file->size - image->directory;
    if (with_end64) {
        image->end64 = file->size;
        bytes_add(file, "PK\6\6", 4);
        bytes_number(file, 44, 8);
        bytes_number(file, 0, 8);
        bytes_number(file, 0, 4);
        bytes_number(file, (uint64_t)count, 8);
        bytes_number(file, (uint64_t)count, 8);
        bytes_number(file, directory_size, 8);
        bytes_number(file, image->directory, 8);
        image->locator = file->size;
        bytes_add(file, "PK\6\7\0\0\0\0", 8);
        bytes_number(file, image->end64, 8);
        bytes_number(file, 1, 4);
    }
    image->end = file->size;
    bytes_add(file, "PK\5\6\0\0\0\0", 8);
    bytes_number(file, (uint64_t)count, 2);
    bytes_number(file, (uint64_t)count, 2);
    bytes_number(file, directory_size, 4);
    bytes_number(file, image->directory, 4);
    bytes_number(file, 0, 2);
}

/* pickles: every piece is a string literal; PIECE(x) adds it without its NUL */

#define PIECE(to, literal) bytes_add((to), (literal), sizeof(literal) - 1)

#define P_TEXT1(c)    "X\1\0\0\0" c /* a string of one character */
#define P_ORDERED     "ccollections\nOrderedDict\n)R"
#define P_REBUILD     "ctorch._utils\n_rebuild_tensor_v2\n("
#define P_CLASS(c)    "ctorch\n" c "Storage\n"
#define P_ID(c, k, n) "(X\7\0\0\0storage" P_CLASS(c) P_TEXT1(k) "X\3\0\0\0cpu" n "tQ"
#define P_REST        "\x89" P_ORDERED "t"
#define P_STORAGE     P_ID("Float", "0", "K\6")
/* 2 x 3 floats of the storage "0", which has six */
#define P_TENSOR                     \
    P_REBUILD P_STORAGE "K\0"        \
                        "K\2K\3\x86" \
                        "K\3K\1\x86" P_REST "R"

/* A torch zip around a pickle: data.pkl, data/0 (24 bytes), version. */
static const unsigned char torch_floats[24] = {0, 0, 0,  0,  0, 0, 128, 63, 0, 0, 0,   64,
                                               0, 0, 64, 64, 0, 0, 128, 64, 0, 0, 160, 64};

static inline void torch_zip(zip_image *image, const void *pickle, size_t size) {
    const zip_item items[3] = {
        {"a/data.pkl", 0, pickle, size}, {"a/data/0", 0, torch_floats, 24}, {"a/version", 0, "3\n", 2}};
    zip_write(image, items, 3, 1);
}

/* A legacy stream around an object's pickle. */
#define LEGACY_MAGIC    "\x80\2\x8a\12\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
#define LEGACY_PROTOCOL "\x80\2M\xe9\3."
#define LEGACY_SYSTEM   "\x80\2}X\15\0\0\0little_endian\x88s."
#define LEGACY_KEYS    \
    "\x80\2]X\1\0\0\0" \
    "0"                \
    "a."
#define L_STORAGE "(X\7\0\0\0storage" P_CLASS("Float") P_TEXT1("0") "X\3\0\0\0cpuK\6NtQ"
#define L_TENSOR                     \
    P_REBUILD L_STORAGE "K\0"        \
                        "K\2K\3\x86" \
                        "K\3K\1\x86" P_REST "R"

#endif /* TORCH_BYTES_H */
