/* Products with narrow operands: bf16 or int8 on both sides, summed in f32 or int32. Both operands are made of 32-bit
 * words that hold 2 (bf16) or 4 (int8) values neighbouring in depth, the first in the lowest bits, as dot-product and
 * tile instructions read them; so one packing, one loop and one epilogue serve them all. Scans, whose rows are copied
 * anyway, take words of one f32 too.
 *
 *     weights   strips of mr rows:   (strip, words / 16, mr, 16)    an AMX tile is 16 rows of 16 words, 1 KB
 *     x         panels of nr columns: (panel, words, nr)
 *
 * words: the depth in words, padded with zeros to a multiple of 16. Rows past the last one are zero, columns too. */
#ifndef GMEM__NARROW_H
#define GMEM__NARROW_H

#include "cpu.h"

#define GMEM__TILE_WORDS 16

/* One block of the depth of one group of strips, against all panels of a tile. */
typedef struct gmem__narrow_block {
    const uint32_t *weights; /* strips strip_step words apart; 64-byte aligned */
    int64_t strips, strip_step;
    const uint32_t *panels; /* panel_step words apart; 64-byte aligned */
    int64_t panel_count, panel_step;
    int64_t
        words; /* depth of this block; zeros follow up to a multiple of GMEM__TILE_WORDS, and may be multiplied too */
    int first; /* the sums start from zero, else from `product` */
    void *product; /* f32 for bf16, int32 for int8: (strips * mr, panel_count * nr), rows product_step apart */
    int64_t product_step;
    /* Weights that come next from memory, worth a prefetch while this block is computed: next_bytes each of so many
     * strips, strip_step words apart; 0: none. */
    const char *next;
    int64_t next_strips, next_bytes;
} gmem__narrow_block;

/* The kernel of one instruction set and one type. All fields constant. */
typedef struct gmem__narrow {
    const char *name; /* "avx512-bf16" */
    gmem_type type;   /* GMEM_BF16 or GMEM_I8; scans' also GMEM_F32 */
    int64_t mr, nr;   /* rows of a strip (divides GMEM__MC / 2), columns of a panel (divides GMEM__NC) */
    int64_t strips;   /* how many strips multiply takes at a time, at most */
    int64_t block;    /* words of a block of the depth, at most; a multiple of GMEM__TILE_WORDS */
    /* int8: bytes of x are stored as x + offset, unsigned, of which the epilogue subtracts offset * sum of the weight
     * row; 0: they are signed. 128, or 64 where x has 7 bits. */
    int offset;
    int keep;            /* packed weights are kept for all passes; else each pass packs them from the file's type */
    void (*begin)(void); /* around the products of one task on one thread (AMX's configuration), or NULL */
    void (*end)(void);
    void (*multiply)(const gmem__narrow_block *block);
    /* The same with a smaller nr, maybe below 16 as only scans take; or NULL. */
    const struct gmem__narrow *thinner;
} gmem__narrow;

/* Values in a word. */
GMEM__INLINE int64_t gmem__narrow_per_word(const gmem__narrow *narrow) {
    return narrow->type == GMEM_I8 ? 4 : narrow->type == GMEM_BF16 ? 2 : 1;
}

/* int8: the largest |x|. */
GMEM__INLINE int gmem__narrow_levels(const gmem__narrow *narrow) { return narrow->offset == 64 ? 63 : 127; }

/* A word of one f32. */
GMEM__INLINE float gmem__word_float(uint32_t word) {
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

GMEM__INLINE uint32_t gmem__float_word(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    return word;
}

/* narrow_portable.c: plain C, the reference, and what runs where there is no vector instruction. */
GMEM__FN const gmem__narrow *gmem__portable_bf16(void);
GMEM__FN const gmem__narrow *gmem__portable_i8(void);
/* The same under the shapes of kernels that need an instruction, for tests: the i-th, NULL after the last. */
GMEM__FN const gmem__narrow *gmem__portable_like(int i);

#ifdef GMEM__X86
/* avx512_dots.c, avx2_dots.c: NULL where the compiler lacks the instruction; whether the processor has it is
 * narrow_choose.c's question. */
GMEM__FN const gmem__narrow *gmem__avx512_dots(gmem_type type);
GMEM__FN const gmem__narrow *gmem__avx512_widened(gmem_type type); /* BF16 and F32 in f32 arithmetic: always there */
GMEM__FN const gmem__narrow *gmem__avx_vnni_dots(void);            /* I8 */
GMEM__FN const gmem__narrow *gmem__avx2_dots(gmem_type type);      /* always there */
#endif

/* amx.c: whether the processor has AMX and the system grants it to this process; its kernels, NULL without; and the
 * same loops on tiles in plain C, for tests on any machine. type: GMEM_BF16 or GMEM_I8. */
GMEM__FN int gmem__has_amx(void);
GMEM__FN const gmem__narrow *gmem__amx_narrow(gmem_type type);
GMEM__FN const gmem__narrow *gmem__amx_stand_in(gmem_type type);

/* By instruction set: the fastest that this processor has, by a table of processor families where the mere presence of
 * an instruction does not tell; NULL where f32 kernels on rounded operands (bf16) are better, and for f32 where it has
 * bf16 products that are faster. isa: GMEM_ISA_SCALAR, AVX2, AVX512 or AMX, never AUTO. type: BF16, I8 or F32. */
GMEM__FN const gmem__narrow *gmem__narrow_of(gmem_isa isa, gmem_type type);

#endif /* GMEM__NARROW_H */
