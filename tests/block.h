/* What tests of narrow kernels share: one block of words multiplied, against sums in double, which hold integers
 * exactly. Between and behind the operands lies poison, around the product a canary. */
#ifndef BLOCK_H
#define BLOCK_H

#include "../backends/cpu/narrow.h"

#include "kernel.h"

#define BLOCK_BAR 1e-6 /* relative L2 error of f32 sums */

/* RANDOM: f32 from -4 to 4, bf16 from 2^-2 to 2^2 in magnitude, every int8. EDGES: numbers that any order of sums gives
 * exactly, in f32 and bf16 from -8 to 8, in int8 the ends of the range and zero. */
typedef enum block_values { BLOCK_RANDOM, BLOCK_EDGES } block_values;

static uint32_t block_state = 1;

static inline uint32_t block_random(void) {
    block_state = block_state * 1664525u + 1013904223u;
    return block_state ^ block_state >> 16;
}

static inline uint32_t any_operand(gmem_type type, block_values values) {
    static const uint8_t ends[] = {0x80, 0x81, 0x7f, 0xff, 0x00, 0x80, 0x7f, 0x01};
    uint32_t word = block_random();
    if (type == GMEM_F32) {
        const int whole = (int)(word % 17) - 8, thousandths = (int)(word % 8001) - 4000;
        return gmem__float_word(values == BLOCK_EDGES ? (float)whole : (float)thousandths / 1000);
    }
    if (values == BLOCK_RANDOM)
        return type == GMEM_I8 ? word : (word & 0x80ff80ffu) | (0x3e803e80u + (word >> 8 & 0x01000100u));
    uint32_t out = 0;
    for (int i = 0; i < 32; word >>= 5, i += type == GMEM_I8 ? 8 : 16)
        out |= (type == GMEM_I8 ? ends[word & 7u] : (uint32_t)gmem__f32_to_bf16((float)((int)(word & 31u) % 17 - 8)))
               << i;
    return out;
}

/* The x of a kernel of 7 bits has no more. */
static inline uint32_t block_operand(const gmem__narrow *kernel, int is_x, block_values values) {
    const uint32_t word = any_operand(kernel->type, values);
    return is_x && kernel->offset == 64 ? word & 0x7f7f7f7fu : word;
}

/* What a word stands for: its i-th value. The kernel's x may be unsigned. */
static inline double block_value(const gmem__narrow *kernel, int is_x, uint32_t word, int i) {
    if (kernel->type == GMEM_F32) return (double)gmem__word_float(word);
    if (kernel->type == GMEM_BF16) return (double)gmem__bf16_to_f32((uint16_t)(word >> 16 * i));
    const unsigned char byte = (unsigned char)(word >> 8 * i);
    return is_x && kernel->offset ? (double)byte : (double)(signed char)byte;
}

/* Words on a cache line, all of them poison: NaN, or 127. */
typedef struct words {
    void *memory;
    uint32_t *word;
} words;

static inline words words_make(int64_t count) {
    words w;
    w.memory = need(count * 4 + 64, 1);
    memset(w.memory, 0x7f, (size_t)count * 4 + 64);
    w.word = (uint32_t *)(void *)((char *)w.memory + (64 - (uintptr_t)w.memory % 64) % 64);
    return w;
}

typedef struct sums {
    int64_t rows, columns, step;
    double *expected;  /* (rows, columns) */
    uint32_t *product; /* the same with guards: rows `step` apart */
} sums;

static const uint32_t block_canary = 0xd1f2a3b4u;

static inline uint32_t *sum_at(const sums *s, int64_t r, int64_t c) { return s->product + GUARD + r * s->step + c; }

static inline double sum_value(gmem_type type, const sums *s, int64_t r, int64_t c) {
    int32_t count;
    float sum;
    memcpy(&count, sum_at(s, r, c), 4);
    memcpy(&sum, sum_at(s, r, c), 4);
    return type == GMEM_I8 ? (double)count : (double)sum;
}

/* The product holds sums so far; expected, what of them is to be kept. */
static inline sums sums_make(gmem_type type, int64_t rows, int64_t columns, int first) {
    sums s;
    s.rows = rows;
    s.columns = columns;
    s.step = columns + 5;
    s.expected = (double *)need(rows * columns, sizeof(double));
    s.product = (uint32_t *)need(rows * s.step + 2 * GUARD, sizeof(uint32_t));
    for (int64_t i = 0; i < rows * s.step + 2 * GUARD; i++)
        s.product[i] = block_canary;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            const int32_t start = (int32_t)(block_random() & 0xfff) - 0x800;
            const float exact = (float)start / 64;
            memcpy(sum_at(&s, r, c), type == GMEM_I8 ? (const void *)&start : (const void *)&exact, 4);
            s.expected[r * columns + c] = first ? 0 : sum_value(type, &s, r, c);
        }
    return s;
}

static inline int sums_guards_hold(const sums *s) {
    for (int64_t i = 0; i < s->rows * s->step + 2 * GUARD; i++) {
        const int64_t at = i - GUARD;
        const int inside = at >= 0 && at < s->rows * s->step && at % s->step < s->columns;
        if (!inside && s->product[i] != block_canary) return 0;
    }
    return 1;
}

static inline double sums_error(gmem_type type, const sums *s) {
    double difference = 0, norm = 0;
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t c = 0; c < s->columns; c++) {
            const double expected = s->expected[r * s->columns + c], d = sum_value(type, s, r, c) - expected;
            difference += d * d;
            norm += expected * expected;
        }
    return sqrt(difference / (norm > 0 ? norm : 1));
}

static inline void block_multiply(const gmem__narrow *kernel, const gmem__narrow_block *block) {
    if (kernel->begin) kernel->begin();
    kernel->multiply(block);
    if (kernel->end) kernel->end();
}

/* Operands as narrow.h lays them out, and their sums. */
static inline void block_fill(const gmem__narrow *kernel, const gmem__narrow_block *block, block_values values,
                              uint32_t *weights, uint32_t *x, const sums *s) {
    const int64_t mr = kernel->mr, nr = kernel->nr;
    const int per_word = (int)gmem__narrow_per_word(kernel);
    for (int64_t k = 0; k < block->words; k++) {
        uint32_t *row = weights + k / GMEM__TILE_WORDS * mr * GMEM__TILE_WORDS + k % GMEM__TILE_WORDS;
        for (int64_t r = 0; r < s->rows; r++)
            row[r / mr * block->strip_step + r % mr * GMEM__TILE_WORDS] = block_operand(kernel, 0, values);
        for (int64_t c = 0; c < s->columns; c++)
            x[c / nr * block->panel_step + k * nr + c % nr] = block_operand(kernel, 1, values);
        for (int64_t r = 0; r < s->rows; r++)
            for (int64_t c = 0; c < s->columns; c++)
                for (int i = 0; i < per_word; i++)
                    s->expected[r * s->columns + c] +=
                        block_value(kernel, 0, row[r / mr * block->strip_step + r % mr * GMEM__TILE_WORDS], i) *
                        block_value(kernel, 1, x[c / nr * block->panel_step + k * nr + c % nr], i);
    }
}

static inline void check_block(const gmem__narrow *kernel, int64_t strips, int64_t panels, int64_t depth, int first,
                               block_values values) {
    gmem__narrow_block block;
    memset(&block, 0, sizeof block);
    block.strips = strips;
    block.strip_step = (depth + GMEM__TILE_WORDS) * kernel->mr; /* a block is a part of a deeper strip */
    block.panel_count = panels;
    block.panel_step = (depth + GMEM__TILE_WORDS) * kernel->nr;
    block.words = depth;
    block.first = first;
    words weights = words_make(strips * block.strip_step), x = words_make(panels * block.panel_step);
    sums s = sums_make(kernel->type, strips * kernel->mr, panels * kernel->nr, first);
    block.weights = weights.word;
    block.panels = x.word;
    block.product = sum_at(&s, 0, 0);
    block.product_step = s.step;
    block.next_bytes = depth % 32 ? 0 : block.strip_step * 4 - 24;
    block.next_strips = depth % 32 ? 0 : 1 + panels % kernel->strips;
    char *next = (char *)need(block.next_strips * block.strip_step, 4);
    block.next = block.next_bytes ? next : NULL;
    block_fill(kernel, &block, values, weights.word, x.word, &s);
    block_multiply(kernel, &block);
    const double error = sums_error(kernel->type, &s);
    const double bar = kernel->type == GMEM_I8 || values == BLOCK_EDGES ? 0 : BLOCK_BAR;
    if (!CHECK(error <= bar) || !CHECK(sums_guards_hold(&s)))
        printf("    %s: %d strips, %d panels, %d words, first %d, values %d: error %g\n", kernel->name, (int)strips,
               (int)panels, (int)depth, first, (int)values, error);
    free(weights.memory);
    free(x.memory);
    free(s.expected);
    free(s.product);
    free(next);
}

/* All counts of strips and panels, odd ones too, in shallow blocks and in the deepest. */
static inline void check_kernel(const gmem__narrow *kernel) {
    const int64_t depths[] = {16, 32, 48, kernel->block};
    CHECK_INT(GMEM__MC / 2 % kernel->mr, 0);
    CHECK_INT(GMEM__NC % kernel->nr, 0);
    CHECK(kernel->nr >= 8);
    CHECK_INT(kernel->block % GMEM__TILE_WORDS, 0);
    for (int i = 0; i < LENGTH(depths); i++)
        for (int64_t strips = 1; strips <= kernel->strips; strips++)
            for (int64_t panels = 1; panels <= 9; panels++)
                for (int first = 0; first < 2; first++)
                    check_block(kernel, strips, panels, depths[i], first,
                                (panels + first) % 3 ? BLOCK_RANDOM : BLOCK_EDGES);
}

/* The arithmetic at its edges: one product alone in a block of zeros. */
static inline uint32_t one_product(const gmem__narrow *kernel, uint32_t weight, uint32_t x) {
    const int64_t mr = kernel->mr, nr = kernel->nr, column = nr / 2 + 1;
    gmem__narrow_block block;
    words weights = words_make(16 * mr), panel = words_make(16 * nr), product = words_make(mr * nr);
    memset(&block, 0, sizeof block);
    memset(weights.word, 0, (size_t)(64 * mr));
    memset(panel.word, 0, (size_t)(64 * nr));
    weights.word[3 * 16 + 5] = weight; /* row 3, word 5 */
    panel.word[5 * nr + column] = x;   /* word 5 */
    block.weights = weights.word;
    block.strips = block.panel_count = block.first = 1;
    block.strip_step = 16 * mr;
    block.panel_step = 16 * nr;
    block.panels = panel.word;
    block.words = 16;
    block.product_step = nr;
    block.product = product.word;
    block_multiply(kernel, &block);
    const uint32_t result = product.word[3 * nr + column];
    for (int i = 0; i < mr * nr; i++) /* NaN times zero is NaN */
        CHECK(i / nr == 3 || i % nr == column || product.word[i] == 0);
    free(weights.memory);
    free(panel.memory);
    free(product.memory);
    return result;
}

static inline void check_edges_f32(const gmem__narrow *kernel) {
    CHECK_INT(one_product(kernel, 0x40400000, 0x40000000), 0x40c00000);             /* 3 . 2 = 6 */
    CHECK((one_product(kernel, 0x7fc00000, 0x3f800000) & 0x7fffffff) > 0x7f800000); /* NaN */
    CHECK_INT(one_product(kernel, 0x7f800000, 0xbf800000), 0xff800000);             /* infinity . -1 */
}

static inline void check_edges_bf16(const gmem__narrow *kernel) {
    CHECK_INT(one_product(kernel, 0x3f804000, 0x40403f80), 0x40a00000);             /* (2, 1) . (1, 3) = 5 */
    CHECK((one_product(kernel, 0x00007fc0, 0x00003f80) & 0x7fffffff) > 0x7f800000); /* NaN */
    CHECK_INT(one_product(kernel, 0x00007f80, 0x0000bf80), 0xff800000);             /* infinity . -1 */
}

/* Of the instructions. */
static inline void check_subnormal_bf16(const gmem__narrow *kernel) {
    CHECK_INT(one_product(kernel, 0x0000007f, 0x00007f00), 0); /* a subnormal counts for zero */
    CHECK_INT(one_product(kernel, 0x00000080, 0x00003f00), 0); /* and is not given */
}

static inline void check_edges_i8(const gmem__narrow *kernel) {
    const int x_low = kernel->offset ? 0x80 : -0x80, x_high = kernel->offset ? 0xff : -1;
    CHECK_INT((int32_t)one_product(kernel, 0x7f7f7f7f, 0x7f7f7f7f), 4 * 127 * 127);
    if (kernel->offset != 64) { /* 8 bits of x */
        CHECK_INT((int32_t)one_product(kernel, 0x80808080, 0x80808080), 4 * -128 * x_low);
        CHECK_INT((int32_t)one_product(kernel, 0x80808080, 0xffffffff), 4 * -128 * x_high);
        CHECK_INT((int32_t)one_product(kernel, 0x7f7f7f7f, 0xffffffff), 4 * 127 * x_high);
    }
    CHECK_INT((int32_t)one_product(kernel, 0x80808080, 0x7f7f7f7f), -4 * 128 * 127);
    CHECK_INT((int32_t)one_product(kernel, 0x04030201, 0x01000000), 4);
}

/* 1: the processor says that it has the feature, 0: that it has not, -1: nobody to ask. */
static inline int cpuinfo_has(const char *feature) {
    static char line[1 << 16];
    const size_t length = strlen(feature);
    FILE *file = fopen("/proc/cpuinfo", "r");
    int found = -1;
    while (file && found < 0 && fgets(line, sizeof line, file)) {
        if (strncmp(line, "flags", 5) != 0) continue;
        found = 0;
        for (char *at = strstr(line, feature); at && !found; at = strstr(at + 1, feature))
            found = at[-1] == ' ' && (at[length] == ' ' || at[length] == '\n');
    }
    if (file) fclose(file);
    return found;
}

#endif /* BLOCK_H */
