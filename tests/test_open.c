/* Opening touches what describes the weights and not the weights: a network and a bank of published size whose bulk is
 * memory that nobody may read. */
#define _DEFAULT_SOURCE /* for mmap's anonymous memory */
#include "check.h"
#include "resident.h"
#include "torch_bytes.h"

#include "../src/file.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ROWS = 1281167, WIDTH = 768 };           /* ImageNet's bank */
enum { HIDDEN = 1152, DEPTH = 28, MLP = 3072 }; /* XL/1 */

/* A file of which the first and the last bytes are there. */
typedef struct hollow {
    const char *path;
    bytes head, tail;
    int64_t size;
} hollow;

/* the bank -------------------------------------------------------------------------------------------------------- */

static void pickle_number(bytes *to, int64_t value) {
    bytes_add(to, "J", 1);
    bytes_number(to, (uint64_t)value, 4);
}

static void pickle_bank(bytes *to) {
    const int64_t numbers[] = {0, ROWS, WIDTH, WIDTH, 1}; /* offset, shape, stride */
    PIECE(to, "\x80\2" P_REBUILD "(X\7\0\0\0storage" P_CLASS("Float") P_TEXT1("0") "X\3\0\0\0cpu");
    pickle_number(to, (int64_t)ROWS * WIDTH);
    PIECE(to, "tQ");
    for (int i = 0; i < 5; i++) {
        pickle_number(to, numbers[i]);
        if (i == 2 || i == 4) PIECE(to, "\x86");
    }
    PIECE(to, P_REST "R.");
}

/* A zip whose last entry, the storage, is small, and grows to its size: what follows it moves. */
static hollow make_bank(void) {
    hollow bank = {"bank.pth", {NULL, 0, 0}, {NULL, 0, 0}, 0};
    const int64_t storage = (int64_t)ROWS * WIDTH * 4;
    bytes pickle = {NULL, 0, 0};
    zip_image image;
    pickle_bank(&pickle);
    const zip_item items[3] = {
        {"a/data.pkl", 0, pickle.data, pickle.size}, {"a/version", 0, "3\n", 2}, {"a/data/0", 0, "", 0}};
    zip_write(&image, items, 3, 1);
    bytes_patch(&image.file, image.central[2] + 20, (uint64_t)storage, 4);
    bytes_patch(&image.file, image.central[2] + 24, (uint64_t)storage, 4);
    bytes_patch(&image.file, image.end64 + 48, image.directory + (uint64_t)storage, 8);
    bytes_patch(&image.file, image.locator + 8, image.end64 + (uint64_t)storage, 8);
    bytes_patch(&image.file, image.end + 16, image.directory + (uint64_t)storage, 4);
    bytes_add(&bank.head, image.file.data, image.data[2]);
    bytes_add(&bank.tail, image.file.data + image.data[2], image.file.size - image.data[2]);
    bank.size = (int64_t)image.file.size + storage;
    bytes_free(&image.file);
    bytes_free(&pickle);
    return bank;
}

/* the network ----------------------------------------------------------------------------------------------------- */

typedef struct network_header {
    bytes text;
    int64_t at; /* where the next tensor's data begins */
} network_header;

static void add_tensor(network_header *header, const char *name, int rank, const int64_t *shape) {
    char text[256], dimension[24];
    int64_t size = 4;
    snprintf(text, sizeof text, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[", header->text.size ? "," : "{", name);
    bytes_add(&header->text, text, strlen(text));
    for (int i = 0; i < rank; i++) {
        size *= shape[i];
        snprintf(dimension, sizeof dimension, "%s%lld", i ? "," : "", (long long)shape[i]);
        bytes_add(&header->text, dimension, strlen(dimension));
    }
    snprintf(text, sizeof text, "],\"data_offsets\":[%lld,%lld]}", (long long)header->at,
             (long long)(header->at + size));
    bytes_add(&header->text, text, strlen(text));
    header->at += size;
}

static void add_vector(network_header *header, const char *name, int64_t size, int64_t unused) {
    (void)unused;
    add_tensor(header, name, 1, &size);
}

static void add_linear(network_header *header, const char *name, int64_t rows, int64_t columns) {
    const int64_t shape[4] = {rows, columns, 1, 1};
    char full[96];
    snprintf(full, sizeof full, "%s.weight", name);
    add_tensor(header, full, strcmp(name, "x_embedder.proj") == 0 ? 4 : 2, shape);
    snprintf(full, sizeof full, "%s.bias", name);
    add_vector(header, full, rows, 0);
}

static void add_block(network_header *header, int index) {
    static const struct {
        const char *name;
        int64_t rows, columns; /* columns 0: a norm's weight */
    } parts[] = {{"norm1.weight", HIDDEN, 0},
                 {"norm2.weight", HIDDEN, 0},
                 {"attn.qkv", 3 * HIDDEN, HIDDEN},
                 {"attn.proj", HIDDEN, HIDDEN},
                 {"mlp.w12", 2 * MLP, HIDDEN},
                 {"mlp.w3", HIDDEN, MLP},
                 {"adaLN_modulation.1", 6 * HIDDEN, HIDDEN}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char name[64];
        snprintf(name, sizeof name, "blocks.%d.%s", index, parts[i].name);
        (parts[i].columns ? add_linear : add_vector)(header, name, parts[i].rows, parts[i].columns);
    }
}

static hollow make_network(void) {
    hollow network = {"xl1.safetensors", {NULL, 0, 0}, {NULL, 0, 0}, 0};
    static const int64_t positions[3] = {1, 256, HIDDEN}, rope[2] = {256, HIDDEN / 16};
    network_header header = {{NULL, 0, 0}, 0};
    add_tensor(&header, "pos_embed", 3, positions);
    const int64_t read = header.at; /* the positions are rearranged, the rest is not wanted yet */
    add_tensor(&header, "feat_rope.freqs_cos", 2, rope);
    add_tensor(&header, "feat_rope.freqs_sin", 2, rope);
    add_linear(&header, "x_embedder.proj", HIDDEN, 32);
    add_linear(&header, "t_embedder.mlp.0", HIDDEN, 256);
    add_linear(&header, "t_embedder.mlp.2", HIDDEN, HIDDEN);
    add_linear(&header, "condition_projection.linear", HIDDEN, WIDTH);
    for (int i = 0; i < DEPTH; i++)
        add_block(&header, i);
    add_vector(&header, "final_layer.norm_final.weight", HIDDEN, 0);
    add_linear(&header, "final_layer.linear", 32, HIDDEN);
    add_linear(&header, "final_layer.adaLN_modulation.1", 2 * HIDDEN, HIDDEN);
    bytes_add(&header.text, "}", 1);
    while (header.text.size % 8)
        bytes_add(&header.text, " ", 1);
    bytes_number(&network.head, header.text.size, 8);
    bytes_add(&network.head, header.text.data, header.text.size);
    network.size = (int64_t)network.head.size + header.at;
    for (int64_t i = 0; i < read; i++)
        bytes_number(&network.head, 0, 1);
    bytes_free(&header.text);
    return network;
}

/* files that cannot be read but through their mapping -------------------------------------------------------------- */

typedef struct hollow_files {
    const hollow *files; /* (count) */
    int count;
    int64_t mapped;
} hollow_files;

static void *hollow_open(void *user, const char *path, int write) {
    const hollow_files *all = (const hollow_files *)user;
    for (int i = 0; i < all->count && !write; i++) {
        if (strcmp(path, all->files[i].path) == 0) return (void *)(uintptr_t)(all->files + i);
    }
    return NULL;
}

static int64_t hollow_size(void *user, void *file) {
    (void)user;
    return ((const hollow *)file)->size;
}

static int64_t hollow_read(void *user, void *file, void *to, int64_t size, int64_t offset) {
    (void)user, (void)file, (void)to, (void)size, (void)offset;
    return -1;
}

static int64_t hollow_write(void *user, void *file, const void *from, int64_t size) {
    (void)user, (void)file, (void)from, (void)size;
    return -1;
}

static int hollow_done(void *user, void *file) {
    (void)user, (void)file;
    return 0;
}

static int hollow_rename(void *user, const char *from, const char *to) {
    (void)user, (void)from, (void)to;
    return -1;
}

static int hollow_remove(void *user, const char *path) {
    (void)user, (void)path;
    return -1;
}

/* Makes the pages of [at, at + size) readable, and puts the bytes there. */
static int place(char *memory, int64_t at, const bytes *from) {
    const int64_t page = sysconf(_SC_PAGESIZE), begin = at / page * page;
    if (from->size == 0) return 1;
    const size_t size = (size_t)(at - begin) + from->size;
    if (mprotect(memory + begin, size, PROT_READ | PROT_WRITE) != 0) return 0;
    memcpy(memory + at, from->data, from->size);
    return mprotect(memory + begin, size, PROT_READ) == 0;
}

static const void *hollow_map(void *user, void *file, int64_t size) {
    const hollow *from = (const hollow *)file;
    void *memory = mmap(NULL, (size_t)size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    if (!place((char *)memory, 0, &from->head)) return NULL;
    if (!place((char *)memory, size - (int64_t)from->tail.size, &from->tail)) return NULL;
    ((hollow_files *)user)->mapped += size;
    return memory;
}

static void hollow_unmap(void *user, const void *memory, int64_t size) {
    munmap((void *)(uintptr_t)memory, (size_t)size);
    ((hollow_files *)user)->mapped -= size;
}

static gmem_io hollow_io(hollow_files *files) {
    gmem_io io;
    memset(&io, 0, sizeof io);
    io.user = files;
    io.open = hollow_open;
    io.size = hollow_size;
    io.read = hollow_read;
    io.write = hollow_write;
    io.sync = hollow_done;
    io.close = hollow_done;
    io.map = hollow_map;
    io.unmap = hollow_unmap;
    io.rename = hollow_rename;
    io.remove = hollow_remove;
    return io;
}

/* --------------------------------------------------------------------------------------------------------------------
 */

static void test_opening(hollow_files *files, gmem_compute compute) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    gmem_network_desc network_desc;
    gmem_bank_desc bank_desc;
    gmem_network *network = NULL;
    gmem_bank *bank = NULL;
    const char *bank_path = "bank.pth";
    memset(&desc, 0, sizeof desc);
    memset(&network_desc, 0, sizeof network_desc);
    memset(&bank_desc, 0, sizeof bank_desc);
    desc.io = hollow_io(files);
    desc.compute = compute;
    network_desc.path = "xl1.safetensors";
    bank_desc.paths = &bank_path;
    bank_desc.path_count = 1;
    const int64_t before = resident_bytes();
    CHECK_OK(gmem_context_create(&desc, &context, NULL));
    CHECK_OK(gmem_network_open(context, &network_desc, &network, NULL));
    CHECK_OK(gmem_bank_open(context, &bank_desc, &bank, NULL));
    const int64_t after = resident_bytes();
    CHECK_INT(files->mapped, files->files[0].size + files->files[1].size); /* else the system has no room for them */
    if (network && bank) {
        CHECK_TEXT(gmem_network_get_info(network)->name, "GMem-LightningDiT-XL/1");
        CHECK_INT(gmem_bank_rows(bank), ROWS);
        CHECK_INT(gmem_bank_width(bank), WIDTH);
        if (before >= 0) CHECK(after - before < 50 << 20);
    }
    gmem_bank_close(bank);
    gmem_network_close(network);
    gmem_context_destroy(context);
    CHECK_INT(files->mapped, 0);
}

int main(void) {
    static const gmem_compute computes[] = {GMEM_COMPUTE_F32, GMEM_COMPUTE_BF16, GMEM_COMPUTE_INT8};
    hollow all[2];
    hollow_files files = {all, 2, 0};
    all[0] = make_network();
    all[1] = make_bank();
    for (int i = 0; i < 3; i++)
        test_opening(&files, computes[i]);
    for (int i = 0; i < 2; i++) {
        bytes_free(&all[i].head);
        bytes_free(&all[i].tail);
    }
    return check_report();
}
