/* AMX: narrow kernels of tile instructions (Intel SDM, volume 1, chapter 18), and beside them the same kernels on tiles
 * in plain C, which test the loops on machines without. Assembly of our own rather than intrinsics: gcc's don't say
 * which memory they touch, and clang may spill tiles of its own choice (LLVM 110190). */
#include "narrow.h"

#include <float.h>

/* Blocks of 288 words: two strips of that are 36 KB of the first-level cache's 48. A shorter block would load and store
 * the sums more often, 8 KB each time beside the 2 KB of x in a step, all from the second-level cache: with 12 steps
 * (192 words) 42 bytes a cycle, with 18 steps 38, of about 47 that it gives. int8 of depth 1152 is one block. */
#define GMEM__TILES_MR     16
#define GMEM__TILES_NR     16
#define GMEM__TILES_STRIPS 2
#define GMEM__TILES_BLOCK  288

/* What LDTILECFG reads: eight tiles of 16 rows of 64 bytes. */
typedef struct gmem__tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} gmem__tile_config;

static const gmem__tile_config gmem__tile_shapes = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* the stand-in ---------------------------------------------------------------------------------------------------- */

typedef struct gmem__tiles {
    uint32_t word[8][16][16]; /* tile, row, column */
} gmem__tiles;

static void gmem__tile_zero(gmem__tiles *tiles, int n) { memset(tiles->word[n], 0, sizeof tiles->word[n]); }

static void gmem__tile_load(gmem__tiles *tiles, int n, const void *p, int64_t stride) {
    gmem__tile_zero(tiles, n);
    for (int r = 0; r < gmem__tile_shapes.rows[n]; r++)
        memcpy(tiles->word[n][r], (const char *)p + r * stride, gmem__tile_shapes.row_bytes[n]);
}

static void gmem__tile_store(const gmem__tiles *tiles, int n, void *p, int64_t stride) {
    for (int r = 0; r < gmem__tile_shapes.rows[n]; r++)
        memcpy((char *)p + r * stride, tiles->word[n][r], gmem__tile_shapes.row_bytes[n]);
}

/* TDPBF16PS takes subnormal numbers for zero, and gives none. */
GMEM__INLINE float gmem__tile_flush(float x) { return x < FLT_MIN && x > -FLT_MIN ? 0 : x; }

GMEM__INLINE float gmem__tile_half(uint32_t word, int high) {
    return gmem__tile_flush(gmem__bf16_to_f32((uint16_t)(word >> 16 * high)));
}

/* TDPBF16PS: the lower and the higher halves' products, which are exact, are summed apart, then added to the sum. */
static void gmem__tile_dot_bf16(gmem__tiles *tiles, int sum, int weights, int x) {
    float values[16][2][16]; /* x, once for all rows */
    for (int i = 0; i < 16 * 2 * 16; i++)
        values[i / 32][i / 16 % 2][i % 16] = gmem__tile_half(tiles->word[x][i / 32][i % 16], i / 16 % 2);
    for (int r = 0; r < 16; r++) {
        float part[2][16], total;
        memset(part, 0, sizeof part);
        for (int k = 0; k < 16; k++)
            for (int high = 0; high < 2; high++) {
                const float w = gmem__tile_half(tiles->word[weights][r][k], high);
                for (int c = 0; c < 16; c++)
                    part[high][c] = gmem__tile_flush(part[high][c] + w * values[k][high][c]);
            }
        for (int c = 0; c < 16; c++) {
            memcpy(&total, &tiles->word[sum][r][c], sizeof total);
            total = gmem__tile_flush(gmem__tile_flush(total) + gmem__tile_flush(part[0][c] + part[1][c]));
            memcpy(&tiles->word[sum][r][c], &total, sizeof total);
        }
    }
}

GMEM__INLINE int32_t gmem__tile_byte(uint32_t word, int i) { return (signed char)(unsigned char)(word >> 8 * i); }

/* TDPBSSD: signed by signed, without saturation. */
static void gmem__tile_dot_i8(gmem__tiles *tiles, int sum, int weights, int x) {
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++)
            for (int i = 0; i < 4; i++) {
                const int32_t w = gmem__tile_byte(tiles->word[weights][r][k], i);
                for (int c = 0; c < 16; c++)
                    tiles->word[sum][r][c] += (uint32_t)(w * gmem__tile_byte(tiles->word[x][k][c], i));
            }
}

#define TILE_STATE                gmem__tiles
#define TILE_ZERO(n)              gmem__tile_zero(tiles, n)
#define TILE_LOAD(n, p, stride)   gmem__tile_load(tiles, n, p, stride)
#define TILE_STREAM(n, p, stride) gmem__tile_load(tiles, n, p, stride)
#define TILE_STORE(n, p, stride)  gmem__tile_store(tiles, n, p, stride)
#define TILE_PREFETCH(p)          ((void)*(const volatile char *)(p)) /* what is asked for must be there */

#define GMEM__K(name)             gmem__stand_in_bf16_##name
#define TILE_DOT(sum, weights, x) gmem__tile_dot_bf16(tiles, sum, weights, x)
#include "tiles.inc"

#define GMEM__K(name)             gmem__stand_in_i8_##name
#define TILE_DOT(sum, weights, x) gmem__tile_dot_i8(tiles, sum, weights, x)
#include "tiles.inc"

#undef TILE_STATE
#undef TILE_ZERO
#undef TILE_LOAD
#undef TILE_STREAM
#undef TILE_STORE
#undef TILE_PREFETCH

/* A kernel on tiles. */
#define GMEM__TILES(name, type, begin, end, multiply)                                                                  \
    {                                                                                                                  \
        name, type, GMEM__TILES_MR, GMEM__TILES_NR, GMEM__TILES_STRIPS, GMEM__TILES_BLOCK, 0, 1, begin, end, multiply, \
            NULL                                                                                                       \
    }

GMEM__FN const gmem__narrow *gmem__amx_stand_in(gmem_type type) {
    static const gmem__narrow bf16 = GMEM__TILES("like-amx-bf16", GMEM_BF16, NULL, NULL, gmem__stand_in_bf16_multiply);
    static const gmem__narrow i8 = GMEM__TILES("like-amx-int8", GMEM_I8, NULL, NULL, gmem__stand_in_i8_multiply);
    return type == GMEM_BF16 ? &bf16 : type == GMEM_I8 ? &i8 : NULL;
}

/* the instructions ------------------------------------------------------------------------------------------------ */

/* Where the compiler's assembler knows them. MemorySanitizer doesn't see what a tile stores. */
#if defined(GMEM__X86) && defined(__linux__) && !defined(__ILP32__)
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define GMEM__AMX 1
#endif
#endif
#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#undef GMEM__AMX
#endif
#endif

#ifdef GMEM__AMX
static int64_t gmem__arch_prctl(int64_t code, uintptr_t argument) {
    int64_t result = 158; /* arch_prctl, which libraries don't declare */
    __asm__ volatile("syscall" : "+a"(result) : "D"(code), "S"(argument) : "rcx", "r11", "memory");
    return result;
}

/* Tiles are 8 KB of state that Linux keeps for those who ask. Asking again is harmless; being refused (an old kernel, a
 * filter, an alternative signal stack too small for it) is not an error. */
static int gmem__tiles_permitted(void) {
    enum { GET_PERMISSION = 0x1022, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    uint64_t permitted = 0;
    gmem__arch_prctl(REQUEST_PERMISSION, TILE_DATA);
    return gmem__arch_prctl(GET_PERMISSION, (uintptr_t)&permitted) == 0 && (permitted >> TILE_DATA & 1) != 0;
}

GMEM__FN int gmem__has_amx(void) { return gmem__processor_features().amx && gmem__tiles_permitted(); }

/* The configuration is the thread's own and is nobody's between two calls: loaded for each task, then released. */
static void gmem__amx_begin(void) { __asm__ volatile("ldtilecfg %0" : : "m"(gmem__tile_shapes)); }
static void gmem__amx_end(void) { __asm__ volatile("tilerelease" : : : "memory"); }

#define TILE_STATE   char
#define TILE_ZERO(n) __asm__ volatile("tilezero %%tmm" #n : : : "memory")
#define TILE_LOAD(n, p, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #n : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define TILE_STREAM(n, p, stride) \
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #n : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(n, p, stride) \
    __asm__ volatile("tilestored %%tmm" #n ", (%0,%1,1)" : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define TILE_PREFETCH(p) __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(p)))

#define GMEM__K(name)             gmem__amx_bf16_##name
#define TILE_DOT(sum, weights, x) __asm__ volatile("tdpbf16ps %%tmm" #x ", %%tmm" #weights ", %%tmm" #sum : :)
#include "tiles.inc"

#define GMEM__K(name)             gmem__amx_i8_##name
#define TILE_DOT(sum, weights, x) __asm__ volatile("tdpbssd %%tmm" #x ", %%tmm" #weights ", %%tmm" #sum : :)
#include "tiles.inc"

#undef TILE_STATE
#undef TILE_ZERO
#undef TILE_LOAD
#undef TILE_STREAM
#undef TILE_STORE
#undef TILE_PREFETCH

/* Whether they can run or not. */
static const gmem__narrow *gmem__amx_kernel(gmem_type type) {
    static const gmem__narrow bf16 =
        GMEM__TILES("amx-bf16", GMEM_BF16, gmem__amx_begin, gmem__amx_end, gmem__amx_bf16_multiply);
    static const gmem__narrow i8 =
        GMEM__TILES("amx-int8", GMEM_I8, gmem__amx_begin, gmem__amx_end, gmem__amx_i8_multiply);
    return type == GMEM_BF16 ? &bf16 : type == GMEM_I8 ? &i8 : NULL;
}

GMEM__FN const gmem__narrow *gmem__amx_narrow(gmem_type type) {
    return gmem__has_amx() ? gmem__amx_kernel(type) : NULL;
}

#else
GMEM__FN int gmem__has_amx(void) { return 0; }

GMEM__FN const gmem__narrow *gmem__amx_narrow(gmem_type type) {
    (void)type;
    return NULL;
}
#endif

#undef GMEM__TILES
#undef GMEM__TILES_MR
#undef GMEM__TILES_NR
#undef GMEM__TILES_STRIPS
#undef GMEM__TILES_BLOCK
