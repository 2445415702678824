/* The machine code of the tile kernels on processors without tiles: each tile instruction traps, is decoded and done in
 * C, and the program goes on. So operands and their order are tested where they can't be run. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* a trapped instruction's registers */
#endif

/* The part itself rather than its interface, which gives no kernel that can't run. */
#include "../backends/cpu/amx.c"

#include "block.h"

#ifdef GMEM__AMX
#include <signal.h>
#include <ucontext.h>

/* Handlers of signals take no argument of ours. */
static gmem__tiles trap_tiles;
static int trap_configured, trap_count;

static uint64_t *trap_register(mcontext_t *machine, int number) {
    static const int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t *)(void *)&machine->gregs[order[number]];
}

/* An instruction of the form C4 xx xx opcode ModRM [SIB] [displacement]. */
typedef struct trapped {
    int prefix, opcode; /* prefix: 0, 0x66, 0xf3, 0xf2 */
    int mode, reg, rm, third;
    uint64_t address;
    int64_t stride;
    int length;
} trapped;

static int32_t trap_displacement(const uint8_t *at, int bytes) {
    int32_t wide = 0;
    if (bytes == 1) return (signed char)*at;
    memcpy(&wide, at, (size_t)bytes);
    return wide;
}

static int trap_decode(const uint8_t *code, mcontext_t *machine, trapped *t) {
    static const int prefixes[] = {0, 0x66, 0xf3, 0xf2};
    const int high_index = code[1] & 0x40 ? 0 : 8, high_base = code[1] & 0x20 ? 0 : 8;
    memset(t, 0, sizeof *t);
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || code[2] & 0x84) return 0; /* 0F38, W0, 128 bits */
    t->prefix = prefixes[code[2] & 3];
    t->third = ~(code[2] >> 3) & 15;
    t->opcode = code[3];
    t->mode = code[4] >> 6, t->reg = code[4] >> 3 & 7, t->rm = code[4] & 7;
    t->length = 5;
    if (t->mode == 3) return 1;
    const int bytes = t->mode == 1 ? 1 : t->mode == 2 || (t->mode == 0 && t->rm == 5) ? 4 : 0;
    if (t->rm == 4) {
        const uint8_t sib = code[t->length++];
        if (t->mode == 0 && (sib & 7) == 5) return 0; /* no base: not used */
        t->address = *trap_register(machine, (sib & 7) + high_base);
        t->stride = (int64_t)*trap_register(machine, (sib >> 3 & 7) + high_index) << (sib >> 6);
    } else if (t->mode != 0 || t->rm != 5) {
        t->address = *trap_register(machine, t->rm + high_base);
    }
    t->address += (uint64_t)(int64_t)trap_displacement(code + t->length, bytes);
    t->length += bytes;
    if (t->mode == 0 && t->rm == 5) t->address += (uint64_t)(uintptr_t)(code + t->length);
    return 1;
}

/* 0 where the instruction is not one of ours, or not allowed now. */
static int trap_execute(const trapped *t) {
    void *memory = (void *)(uintptr_t)t->address;
    const int in_memory = t->mode != 3;
    if (t->opcode == 0x49 && t->prefix == 0 && in_memory) { /* LDTILECFG */
        memset(&trap_tiles, 0, sizeof trap_tiles);
        trap_configured = memcmp(memory, &gmem__tile_shapes, 64) == 0;
        return trap_configured;
    }
    if (!trap_configured) return 0;
    if (t->opcode == 0x49 && t->prefix == 0) /* TILERELEASE */
        trap_configured = 0;
    else if (t->opcode == 0x49 && t->prefix == 0xf2) /* TILEZERO */
        gmem__tile_zero(&trap_tiles, t->reg);
    else if (t->opcode == 0x4b && t->rm == 4 && (t->prefix == 0xf2 || t->prefix == 0x66)) /* TILELOADD, TILELOADDT1 */
        gmem__tile_load(&trap_tiles, t->reg, memory, t->stride);
    else if (t->opcode == 0x4b && t->rm == 4 && t->prefix == 0xf3) /* TILESTORED */
        gmem__tile_store(&trap_tiles, t->reg, memory, t->stride);
    else if (t->opcode == 0x5c && t->prefix == 0xf3) /* TDPBF16PS */
        gmem__tile_dot_bf16(&trap_tiles, t->reg, t->rm, t->third);
    else if (t->opcode == 0x5e && t->prefix == 0xf2) /* TDPBSSD */
        gmem__tile_dot_i8(&trap_tiles, t->reg, t->rm, t->third);
    else
        return 0;
    return 1;
}

static void trap_handle(int number, siginfo_t *info, void *context) {
    mcontext_t *machine = &((ucontext_t *)context)->uc_mcontext;
    const uint8_t *code = (const uint8_t *)(uintptr_t)machine->gregs[REG_RIP];
    trapped t;
    (void)info;
    if (trap_decode(code, machine, &t) && trap_execute(&t)) {
        machine->gregs[REG_RIP] += t.length;
        trap_count++;
    } else {
        signal(number, SIG_DFL); /* and trap again */
    }
}

static int trap_begin(struct sigaction *before) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = trap_handle;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGILL, &action, before) == 0;
}

static void trap_end(const struct sigaction *before) { sigaction(SIGILL, before, NULL); }

static void test_trapped(void) {
    struct sigaction before;
    if (cpuinfo_has("amx_tile") || !CHECK(trap_begin(&before))) return;
    check_kernel(gmem__amx_kernel(GMEM_BF16));
    check_edges_bf16(gmem__amx_kernel(GMEM_BF16));
    check_kernel(gmem__amx_kernel(GMEM_I8));
    check_edges_i8(gmem__amx_kernel(GMEM_I8));
    trap_end(&before);
    CHECK(trap_count > 0 && !trap_configured);
    printf("trapped %d tile instructions\n", trap_count);
}
#else
static void test_trapped(void) {
    CHECK(!gmem__has_amx());
    CHECK(gmem__amx_narrow(GMEM_BF16) == NULL);
}
#endif

int main(void) {
    CHECK(gmem__amx_stand_in(GMEM_BF16) != NULL);
    test_trapped();
    return check_report();
}
