/* Narrow kernels in plain C: the reference of those made of special instructions, what runs without them, and under
 * those kernels' shapes the stand-in that tests their packing, loops and epilogues on any machine. */
#include "narrow.h"

static float gmem__word_dot_bf16(uint32_t w, uint32_t x) {
    const float low = gmem__bf16_to_f32((uint16_t)w) * gmem__bf16_to_f32((uint16_t)x);
    return low + gmem__bf16_to_f32((uint16_t)(w >> 16)) * gmem__bf16_to_f32((uint16_t)(x >> 16));
}

/* Byte i of a word, signed. */
static int32_t gmem__word_byte(uint32_t word, int i) { return (int32_t)(signed char)(unsigned char)(word >> 8 * i); }

/* x is unsigned where there is an offset, which stays in it. */
static int32_t gmem__word_dot_i8(uint32_t w, uint32_t x, int offset) {
    int32_t sum = 0;
    for (int i = 0; i < 4; i++)
        sum += gmem__word_byte(w, i) * (offset ? (int32_t)(x >> 8 * i & 0xff) : gmem__word_byte(x, i));
    return sum;
}

typedef struct gmem__portable {
    int64_t mr, nr;
    gmem_type type;
    int offset;
} gmem__portable;

/* One row of a strip against one panel. */
static void gmem__portable_row(const gmem__portable *kernel, const gmem__narrow_block *block, const uint32_t *row,
                               const uint32_t *panel, char *product) {
    float sums[32];
    int32_t counts[32];
    memset(sums, 0, sizeof sums);
    memset(counts, 0, sizeof counts);
    for (int64_t word = 0; word < block->words; word++, panel += kernel->nr) {
        const uint32_t w = row[word / GMEM__TILE_WORDS * kernel->mr * GMEM__TILE_WORDS + word % GMEM__TILE_WORDS];
        for (int64_t c = 0; c < kernel->nr; c++) {
            if (kernel->type == GMEM_F32)
                sums[c] += gmem__word_float(w) * gmem__word_float(panel[c]);
            else if (kernel->type == GMEM_BF16)
                sums[c] += gmem__word_dot_bf16(w, panel[c]);
            else
                counts[c] += gmem__word_dot_i8(w, panel[c], kernel->offset);
        }
    }
    for (int64_t c = 0; c < kernel->nr; c++, product += 4) {
        float sum = 0;
        int32_t count = 0;
        if (!block->first) memcpy(&sum, product, 4), memcpy(&count, product, 4);
        sum += sums[c], count += counts[c];
        memcpy(product, kernel->type == GMEM_I8 ? (const void *)&count : (const void *)&sum, 4);
    }
}

static void gmem__portable_run(const gmem__portable *kernel, const gmem__narrow_block *block) {
    for (int64_t i = 0; i < block->strips * block->panel_count * kernel->mr; i++) {
        const int64_t r = i % kernel->mr, panel = i / kernel->mr % block->panel_count;
        const int64_t strip = i / kernel->mr / block->panel_count;
        const int64_t at = (strip * kernel->mr + r) * block->product_step + panel * kernel->nr;
        gmem__portable_row(kernel, block, block->weights + strip * block->strip_step + r * GMEM__TILE_WORDS,
                           block->panels + panel * block->panel_step, (char *)block->product + at * 4);
    }
}

/* A kernel of given shape: multiply takes nothing but a block, so each has its own. */
#define GMEM__PORTABLE(name, text, type, mr, nr, strips, block, offset, thinner)                 \
    static void name##_multiply(const gmem__narrow_block *b) {                                   \
        const gmem__portable kernel = {mr, nr, type, offset};                                    \
        gmem__portable_run(&kernel, b);                                                          \
    }                                                                                            \
    static const gmem__narrow name##_kernel = {text,   type, mr,   nr,   strips,          block, \
                                               offset, 1,    NULL, NULL, name##_multiply, thinner};

GMEM__PORTABLE(gmem__plain_bf16, "portable-bf16", GMEM_BF16, 8, 32, 1, 288, 0, NULL)
GMEM__PORTABLE(gmem__plain_i8, "portable-int8", GMEM_I8, 8, 32, 1, 288, 0, NULL)
GMEM__PORTABLE(gmem__like_8_bf16, "like-avx512-bf16-8", GMEM_BF16, 12, 8, 1, 384, 0, NULL)
GMEM__PORTABLE(gmem__like_16_bf16, "like-avx512-bf16-16", GMEM_BF16, 12, 16, 1, 384, 0, &gmem__like_8_bf16_kernel)
GMEM__PORTABLE(gmem__like_dots_bf16, "like-avx512-bf16", GMEM_BF16, 12, 32, 1, 288, 0, &gmem__like_16_bf16_kernel)
GMEM__PORTABLE(gmem__like_8_i8, "like-avx512-vnni-8", GMEM_I8, 12, 8, 1, 384, 128, NULL)
GMEM__PORTABLE(gmem__like_16_i8, "like-avx512-vnni-16", GMEM_I8, 12, 16, 1, 384, 128, &gmem__like_8_i8_kernel)
GMEM__PORTABLE(gmem__like_dots_i8, "like-avx512-vnni", GMEM_I8, 12, 32, 1, 288, 128, &gmem__like_16_i8_kernel)
GMEM__PORTABLE(gmem__like_vnni_i8, "like-avx-vnni", GMEM_I8, 6, 16, 1, 288, 128, NULL)
GMEM__PORTABLE(gmem__like_avx2_bf16, "like-avx2-bf16", GMEM_BF16, 6, 16, 1, 192, 0, NULL)
GMEM__PORTABLE(gmem__like_avx512f_bf16, "like-avx512f-bf16", GMEM_BF16, 12, 32, 1, 128, 0, NULL)
GMEM__PORTABLE(gmem__like_avx512f_16, "like-avx512f-f32-16", GMEM_F32, 12, 16, 1, 160, 0, NULL)
GMEM__PORTABLE(gmem__like_avx512f_f32, "like-avx512f-f32", GMEM_F32, 12, 32, 1, 160, 0, &gmem__like_avx512f_16_kernel)
GMEM__PORTABLE(gmem__like_avx2_f32_8, "like-avx2-f32-8", GMEM_F32, 6, 8, 1, 256, 0, NULL)
GMEM__PORTABLE(gmem__like_avx2_f32, "like-avx2-f32", GMEM_F32, 6, 16, 1, 256, 0, &gmem__like_avx2_f32_8_kernel)
GMEM__PORTABLE(gmem__like_avx2_i8, "like-avx2-int8", GMEM_I8, 4, 16, 1, 288, 64, NULL)

#undef GMEM__PORTABLE

GMEM__FN const gmem__narrow *gmem__portable_bf16(void) { return &gmem__plain_bf16_kernel; }
GMEM__FN const gmem__narrow *gmem__portable_i8(void) { return &gmem__plain_i8_kernel; }

GMEM__FN const gmem__narrow *gmem__portable_like(int i) {
    static const gmem__narrow *const kernels[] = {
        &gmem__like_dots_bf16_kernel,    &gmem__like_16_bf16_kernel,     &gmem__like_8_bf16_kernel,
        &gmem__like_dots_i8_kernel,      &gmem__like_16_i8_kernel,       &gmem__like_8_i8_kernel,
        &gmem__like_vnni_i8_kernel,      &gmem__like_avx2_bf16_kernel,   &gmem__like_avx2_i8_kernel,
        &gmem__like_avx512f_bf16_kernel, &gmem__like_avx512f_f32_kernel, &gmem__like_avx512f_16_kernel,
        &gmem__like_avx2_f32_kernel,     &gmem__like_avx2_f32_8_kernel};
    return i < (int)(sizeof kernels / sizeof *kernels) ? kernels[i] : NULL;
}
