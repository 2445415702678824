/* The tile kernels against sums in double and in integers: the stand-in, and the instructions where this machine has
 * them; every shape of leftover, and nothing read or written that isn't the block's. */
#include "../backends/cpu/narrow.h"

#include "kernel.h"

#define BAR 1e-6 /* relative L2 error of f32 sums */

static uint32_t random_state = 1;

static uint32_t random_word(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state ^ random_state >> 16;
}

/* Two bf16 from 2^-2 to 2^2 in magnitude, or four int8. */
static uint32_t random_operand(gmem_type type) {
    const uint32_t word = random_word();
    return type == GMEM_I8 ? word : (word & 0x80ff80ffu) | (0x3e803e80u + (word >> 8 & 0x01000100u));
}

/* What a word stands for: its i-th value. */
static double value_of(gmem_type type, uint32_t word, int i) {
    if (type == GMEM_I8) return (signed char)(unsigned char)(word >> 8 * i);
    return (double)gmem__bf16_to_f32((uint16_t)(word >> 16 * i));
}

/* Words on a cache line, all of them poison: NaN, or 127. */
typedef struct words {
    void *memory;
    uint32_t *word;
} words;

static words words_make(int64_t count) {
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

static const uint32_t canary = 0xd1f2a3b4u;

static uint32_t *sum_at(const sums *s, int64_t r, int64_t c) { return s->product + GUARD + r * s->step + c; }

static sums sums_make(gmem_type type, int64_t rows, int64_t columns) {
    sums s;
    s.rows = rows;
    s.columns = columns;
    s.step = columns + 5;
    s.expected = (double *)need(rows * columns, sizeof(double));
    s.product = (uint32_t *)need(rows * s.step + 2 * GUARD, sizeof(uint32_t));
    for (int64_t i = 0; i < rows * s.step + 2 * GUARD; i++)
        s.product[i] = canary;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            const int32_t start = (int32_t)(random_word() & 0xfff) - 0x800;
            const float exact = (float)start / 64;
            s.expected[r * columns + c] = type == GMEM_I8 ? (double)start : (double)exact;
            memcpy(sum_at(&s, r, c), type == GMEM_I8 ? (const void *)&start : (const void *)&exact, 4);
        }
    return s;
}

static int sums_guards_hold(const sums *s) {
    for (int64_t i = 0; i < s->rows * s->step + 2 * GUARD; i++) {
        const int64_t at = i - GUARD;
        const int inside = at >= 0 && at < s->rows * s->step && at % s->step < s->columns;
        if (!inside && s->product[i] != canary) return 0;
    }
    return 1;
}

/* int8: the number of wrong sums. */
static double sums_error(gmem_type type, const sums *s) {
    double difference = 0, norm = 0;
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t c = 0; c < s->columns; c++) {
            const double expected = s->expected[r * s->columns + c];
            int32_t count;
            float sum;
            memcpy(&count, sum_at(s, r, c), 4);
            memcpy(&sum, sum_at(s, r, c), 4);
            const double d = (type == GMEM_I8 ? (double)count : (double)sum) - expected;
            difference += type == GMEM_I8 ? d != 0 : d * d;
            norm += expected * expected;
        }
    return type == GMEM_I8 ? difference : sqrt(difference / norm);
}

static void check_block(const gmem__narrow *kernel, int64_t strips, int64_t panels, int64_t depth, int first) {
    const int64_t mr = kernel->mr, nr = kernel->nr, values = kernel->type == GMEM_I8 ? 4 : 2;
    gmem__narrow_block block;
    memset(&block, 0, sizeof block);
    block.strips = strips;
    block.strip_step = (depth + GMEM__TILE_WORDS) * mr; /* a block is a part of a deeper strip */
    block.panel_count = panels;
    block.panel_step = (depth + GMEM__TILE_WORDS) * nr;
    block.words = depth;
    block.first = first;
    words weights = words_make(strips * block.strip_step), x = words_make(panels * block.panel_step);
    sums s = sums_make(kernel->type, strips * mr, panels * nr);
    block.weights = weights.word;
    block.panels = x.word;
    block.product = sum_at(&s, 0, 0);
    block.product_step = s.step;
    block.next_bytes = depth % 32 ? 0 : 1000 * panels;
    char *next = (char *)need(block.next_bytes, 1);
    block.next = block.next_bytes ? next : NULL;
    for (int64_t k = 0; k < depth; k++) {
        for (int64_t r = 0; r < s.rows; r++)
            weights.word[r / mr * block.strip_step + k / 16 * mr * 16 + r % mr * 16 + k % 16] =
                random_operand(kernel->type);
        for (int64_t c = 0; c < s.columns; c++)
            x.word[c / nr * block.panel_step + k * nr + c % nr] = random_operand(kernel->type);
    }
    for (int64_t r = 0; r < s.rows; r++)
        for (int64_t c = 0; c < s.columns; c++) {
            double sum = first ? 0 : s.expected[r * s.columns + c];
            for (int64_t k = 0; k < depth; k++)
                for (int i = 0; i < values; i++)
                    sum +=
                        value_of(kernel->type,
                                 weights.word[r / mr * block.strip_step + k / 16 * mr * 16 + r % mr * 16 + k % 16], i) *
                        value_of(kernel->type, x.word[c / nr * block.panel_step + k * nr + c % nr], i);
            s.expected[r * s.columns + c] = sum;
        }
    if (kernel->begin) kernel->begin();
    kernel->multiply(&block);
    if (kernel->end) kernel->end();
    const double error = sums_error(kernel->type, &s);
    if (!CHECK(kernel->type == GMEM_I8 ? error == 0 : error < BAR) || !CHECK(sums_guards_hold(&s)))
        printf("    %s: %d strips, %d panels, %d words, first %d: error %g\n", kernel->name, (int)strips, (int)panels,
               (int)depth, first, error);
    free(weights.memory);
    free(x.memory);
    free(s.expected);
    free(s.product);
    free(next);
}

static void check_kernel(const gmem__narrow *kernel) {
    static const int64_t depths[] = {16, 32, 48, 288};
    CHECK_INT(kernel->mr, 16);
    CHECK_INT(kernel->nr, 16);
    for (int i = 0; i < LENGTH(depths); i++) {
        CHECK(depths[i] <= kernel->block);
        for (int64_t strips = 1; strips <= kernel->strips; strips++)
            for (int64_t panels = 1; panels <= 9; panels++)
                for (int first = 0; first < 2; first++)
                    check_block(kernel, strips, panels, depths[i], first);
    }
}

/* The instructions' arithmetic at its edges: one product alone in a tile of zeros. */
static uint32_t one_product(const gmem__narrow *kernel, uint32_t weight, uint32_t x) {
    gmem__narrow_block block;
    words weights = words_make(256), panel = words_make(256), product = words_make(256);
    uint32_t result;
    memset(&block, 0, sizeof block);
    memset(weights.word, 0, 1024);
    memset(panel.word, 0, 1024);
    weights.word[3 * 16 + 5] = weight; /* row 3, word 5 */
    panel.word[5 * 16 + 9] = x;        /* word 5, column 9 */
    block.weights = weights.word;
    block.strips = block.panel_count = block.first = 1;
    block.strip_step = block.panel_step = 256;
    block.panels = panel.word;
    block.words = block.product_step = 16;
    block.product = product.word;
    if (kernel->begin) kernel->begin();
    kernel->multiply(&block);
    if (kernel->end) kernel->end();
    result = product.word[3 * 16 + 9];
    for (int i = 0; i < 256; i++)
        CHECK(i / 16 == 3 || i % 16 == 9 || product.word[i] == 0);
    free(weights.memory);
    free(panel.memory);
    free(product.memory);
    return result;
}

static void check_edges_bf16(const gmem__narrow *kernel) {
    CHECK_INT(one_product(kernel, 0x3f804000, 0x40403f80), 0x40a00000);             /* (2, 1) . (1, 3) = 5 */
    CHECK_INT(one_product(kernel, 0x0000007f, 0x00007f00), 0);                      /* a subnormal counts for zero */
    CHECK_INT(one_product(kernel, 0x00000080, 0x00003f00), 0);                      /* and is not given */
    CHECK((one_product(kernel, 0x00007fc0, 0x00003f80) & 0x7fffffff) > 0x7f800000); /* NaN */
    CHECK_INT(one_product(kernel, 0x00007f80, 0x0000bf80), 0xff800000);             /* infinity . -1 */
}

static void check_edges_i8(const gmem__narrow *kernel) {
    CHECK_INT((int32_t)one_product(kernel, 0x80808080, 0x80808080), 4 * 128 * 128);
    CHECK_INT((int32_t)one_product(kernel, 0x80808080, 0x7f7f7f7f), -4 * 128 * 127);
    CHECK_INT((int32_t)one_product(kernel, 0x04030201, 0x01000000), 4);
}

/* 1: the processor says that it has tiles, 0: that it has none, -1: nobody to ask. */
static int cpuinfo_has_tiles(void) {
    static char line[1 << 16];
    FILE *file = fopen("/proc/cpuinfo", "r");
    int found = -1;
    while (file && found < 0 && fgets(line, sizeof line, file))
        if (strncmp(line, "flags", 5) == 0) found = strstr(line, " amx_tile") != NULL;
    if (file) fclose(file);
    return found;
}

static void test_detection(void) {
    const int tiles = cpuinfo_has_tiles(), found = gmem__has_amx();
    if (tiles == 0) CHECK_INT(found, 0);
    CHECK_INT(gmem__has_amx(), found); /* asking again changes nothing */
    CHECK((gmem__amx_narrow(GMEM_BF16) != NULL) == found);
    CHECK((gmem__amx_narrow(GMEM_I8) != NULL) == found);
    CHECK(gmem__amx_narrow(GMEM_F32) == NULL);
    CHECK(gmem__amx_stand_in(GMEM_F32) == NULL);
    printf("AMX: %s\n", found ? "tested" : tiles > 0 ? "refused" : "none, the stand-in only");
}

int main(void) {
    const gmem__narrow *bf16[] = {gmem__amx_stand_in(GMEM_BF16), gmem__amx_narrow(GMEM_BF16)};
    const gmem__narrow *int8[] = {gmem__amx_stand_in(GMEM_I8), gmem__amx_narrow(GMEM_I8)};
    test_detection();
    for (int i = 0; i < 2; i++) {
        if (bf16[i]) check_kernel(bf16[i]), check_edges_bf16(bf16[i]);
        if (int8[i]) check_kernel(int8[i]), check_edges_i8(int8[i]);
    }
    return check_report();
}
