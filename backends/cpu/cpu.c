/* The CPU's operations: the choice of the instruction set, and the products cut into tasks. OpenMP pragmas stay in this
 * file, outside the kernels' target regions, where compilers mishandle them. */
#include "narrow.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* Operations with the kernels that they run on; engine->ops points to the first member. */
typedef struct gmem__cpu {
    gmem__ops ops;
    const gmem__kernels *(*kernels)(void);
} gmem__cpu;

GMEM__FN const gmem__kernels *gmem__engine_kernels(const gmem__engine *engine) {
    return ((const gmem__cpu *)(const void *)engine->ops)->kernels();
}

/* tasks ----------------------------------------------------------------------------------------------------------- */

static int64_t gmem__cpu_scratch_bytes(int threads) {
    return (GMEM__SHARED + (int64_t)threads * GMEM__SCRATCH) * (int64_t)sizeof(float);
}

/* engine->scratch is the shared part, then one part for each thread. */
static float *gmem__engine_scratch(const gmem__engine *engine, int thread) {
    return (float *)engine->scratch + GMEM__SHARED + (int64_t)thread * GMEM__SCRATCH;
}

GMEM__FN int gmem__scratch_owner(const gmem__engine *engine, const float *scratch) {
    return (int)((scratch - gmem__engine_scratch(engine, 0)) / GMEM__SCRATCH);
}

/* By default LLVM's runtime lets threads without work spin for 200 ms, which a host that waits between steps would pay
 * for. A millisecond bridges the gaps between a pass's products. Its functions are found where it is linked; GCC's
 * runtime, a few milliseconds, can be set from outside only. */
#if defined(_OPENMP) && defined(__clang__) && defined(__ELF__)
#define GMEM__KMP_DEFAULT 200
#ifdef __cplusplus
extern "C" {
#endif
__attribute__((weak)) int kmp_get_blocktime(void);
__attribute__((weak)) void kmp_set_blocktime(int milliseconds);
#ifdef __cplusplus
}
#endif

/* Where the host has chosen nothing else. Returns what to put back. */
static int gmem__spin_briefly(void) {
    if (!kmp_get_blocktime || !kmp_set_blocktime || kmp_get_blocktime() != GMEM__KMP_DEFAULT) return 0;
    kmp_set_blocktime(1);
    return GMEM__KMP_DEFAULT;
}

static void gmem__spin_as_before(int milliseconds) {
    if (milliseconds) kmp_set_blocktime(milliseconds);
}
#undef GMEM__KMP_DEFAULT
#elif defined(_OPENMP)
static int gmem__spin_briefly(void) { return 0; }
static void gmem__spin_as_before(int milliseconds) { (void)milliseconds; }
#endif

GMEM__FN void gmem__run_tasks(const gmem__engine *engine, int64_t tasks,
                              void (*task)(const void *job, int64_t i, float *scratch), const void *job) {
    int64_t i;
#ifdef _OPENMP
    if (engine->threads > 1 && tasks > 1) {
        const int before = gmem__spin_briefly();
#pragma omp parallel for schedule(dynamic) num_threads(engine->threads)
        for (i = 0; i < tasks; i++)
            task(job, i, gmem__engine_scratch(engine, omp_get_thread_num()));
        gmem__spin_as_before(before);
        return;
    }
#endif
    for (i = 0; i < tasks; i++)
        task(job, i, gmem__engine_scratch(engine, 0));
}

/* linear and conv ------------------------------------------------------------------------------------------------- */

typedef struct gmem__gemm_job {
    const gmem__gemm *gemm;
    const gmem__kernels *kernels;
    int64_t rows, row_block; /* of y, hence pairs with SWIGLU */
    int64_t column, columns; /* the columns being worked on */
    int64_t column_tasks;
    float *panels; /* these columns, packed for all row blocks; or NULL */
} gmem__gemm_job;

/* Some rows of x, all columns. */
static void gmem__pack_task(const void *job_, int64_t i, float *scratch) {
    const gmem__gemm_job *job = (const gmem__gemm_job *)job_;
    const int64_t nr = job->kernels->nr, depth = job->gemm->depth, k = i * GMEM__PACK_ROWS;
    const int64_t rows = gmem__min(GMEM__PACK_ROWS, depth - k);
    (void)scratch;
    gmem__pack(job->gemm, k, rows, job->column, job->columns, nr, depth * nr, job->panels + k * nr);
    for (int64_t panel = 0; job->gemm->round_bf16 && panel * nr < job->columns; panel++)
        job->kernels->round_bf16(job->panels + (panel * depth + k) * nr, rows * nr);
}

GMEM__FN void gmem__normed_columns(const gmem__kernels *kernels, const gmem__gemm *gemm, int64_t begin, int64_t count,
                                   float *out) {
    gmem__norm norm = *gemm->norm;
    norm.y = out;
    norm.y_stride = GMEM__PACK_COLUMNS;
    norm.y_column = begin;
    const int64_t tokens = norm.shift || norm.scale ? norm.tokens : norm.columns, end = begin + count;
    for (int64_t column = begin, next; column < end; column = next) { /* sample by sample */
        next = gmem__min(end, (column / tokens + 1) * tokens);
        kernels->norm(&norm, column / tokens, column, next);
    }
}

/* Some columns of gemm->norm's result, all rows. */
static void gmem__pack_norm_task(const void *job_, int64_t i, float *scratch) {
    const gmem__gemm_job *job = (const gmem__gemm_job *)job_;
    const int64_t nr = job->kernels->nr, depth = job->gemm->depth, done = i * GMEM__PACK_COLUMNS;
    const int64_t count = gmem__min(GMEM__PACK_COLUMNS, job->columns - done);
    gmem__gemm normed = *job->gemm;
    float *panels = job->panels + done * depth;
    gmem__normed_columns(job->kernels, job->gemm, job->column + done, count, scratch);
    normed.x = scratch;
    normed.x_stride = GMEM__PACK_COLUMNS;
    gmem__pack(&normed, 0, depth, 0, count, nr, depth * nr, panels);
    if (job->gemm->round_bf16) job->kernels->round_bf16(panels, depth * gmem__round_up(count, nr));
}

static void gmem__pack_all(const gmem__engine *engine, const gmem__gemm_job *job) {
    if (job->gemm->norm)
        gmem__run_tasks(engine, gmem__ceil_div(job->columns, GMEM__PACK_COLUMNS), gmem__pack_norm_task, job);
    else
        gmem__run_tasks(engine, gmem__ceil_div(job->gemm->depth, GMEM__PACK_ROWS), gmem__pack_task, job);
}

static void gmem__gemm_task(const void *job_, int64_t i, float *scratch) {
    const gmem__gemm_job *job = (const gmem__gemm_job *)job_;
    const int64_t done = i % job->column_tasks * GMEM__NC;
    gmem__tile tile;
    tile.row = i / job->column_tasks * job->row_block;
    tile.rows = gmem__min(job->row_block, job->rows - tile.row);
    tile.column = job->column + done;
    tile.columns = gmem__min(GMEM__NC, job->columns - done);
    const float *panels = job->panels ? job->panels + done * job->gemm->depth : NULL;
    job->kernels->gemm(job->gemm, &tile, panels, scratch);
}

/* As few blocks as fit, but enough of them to keep the threads evenly busy. */
GMEM__FN int64_t gmem__row_block(const gmem__engine *engine, int64_t rows, int64_t columns, int64_t mr,
                                 int64_t largest) {
    const int64_t threads = engine->threads;
    int64_t blocks = gmem__ceil_div(rows, largest);
    if (gmem__ceil_div(columns, GMEM__NC) < 4 * threads && threads > 1)
        blocks = gmem__max(blocks, gmem__min(4 * threads, gmem__ceil_div(rows, mr)));
    return gmem__min(largest, gmem__round_up(gmem__ceil_div(rows, blocks), mr));
}

/* How long lines are where a tile copies them; 0: panels. Each row task copies lines, 1 to 3 times each row of the
 * image; panels, with nine copies, are shared by all row tasks. */
static int64_t gmem__line_choose(const gmem__gemm *gemm, const gmem__kernels *kernels, int64_t row_tasks) {
    const int64_t width = gemm->conv && kernels->lines ? gmem__line_width(gemm->conv, kernels->nr) : 0;
    const int64_t rows = width ? GMEM__NC / width : 0;
    return row_tasks * (rows + 2) < 9 * rows ? width : 0;
}

static void gmem__f32_run(const gmem__engine *engine, const gmem__gemm *gemm) {
    const int64_t halves = gemm->activation == GMEM__ACT_SWIGLU ? 2 : 1;
    gmem__gemm plain = *gemm;
    gmem__gemm_job job;
    job.gemm = &plain;
    job.kernels = gmem__engine_kernels(engine);
    job.rows = gemm->rows / halves;
    job.row_block = gmem__row_block(engine, job.rows, gemm->columns, job.kernels->mr,
                                    GMEM__MC / halves / job.kernels->mr * job.kernels->mr);
    const int64_t row_tasks = gmem__ceil_div(job.rows, job.row_block);
    plain.line = gmem__line_choose(gemm, job.kernels, row_tasks);
    /* x is packed once for all row blocks where there are several and it fits */
    const int64_t packable = GMEM__SHARED / gemm->depth / GMEM__NC * GMEM__NC;
    const int share = row_tasks > 1 && packable > 0 && !plain.line;
    if (gemm->norm && (!share || !gmem__norm_fits(gemm))) {
        gmem__cpu_norm(engine, gemm->norm);
        plain.norm = NULL;
        plain.x = gemm->norm->y;
        plain.x_stride = gemm->norm->columns;
    }
    for (job.column = 0; job.column < gemm->columns; job.column += job.columns) {
        job.columns = gmem__min(gemm->columns - job.column, share ? packable : gemm->columns);
        job.column_tasks = gmem__ceil_div(job.columns, GMEM__NC);
        job.panels = share ? (float *)engine->scratch : NULL;
        if (share) gmem__pack_all(engine, &job);
        gmem__run_tasks(engine, row_tasks * job.column_tasks, gmem__gemm_task, &job);
    }
}

static void gmem__gemm_run(const gmem__engine *engine, gmem__gemm *gemm) {
    const struct gmem__narrow *narrow = gmem__narrow_for(engine, gemm->weight);
    gemm->round_bf16 = gemm->weight->compute != GMEM_COMPUTE_F32;
    if (narrow)
        gmem__narrow_run(engine, gemm, narrow);
    else
        gmem__f32_run(engine, gemm);
}

static void gmem__cpu_linear(const gmem__engine *engine, const gmem__linear *op) {
    gmem__gemm gemm;
    memset(&gemm, 0, sizeof gemm);
    gemm.weight = op->weight;
    gemm.rows = op->weight->rows;
    gemm.depth = op->weight->cols;
    gemm.columns = op->columns;
    gemm.x = op->x;
    gemm.x_stride = op->x_stride;
    gemm.norm = op->norm;
    gemm.bias = op->bias;
    gemm.activation = op->activation;
    gemm.gate = op->gate;
    gemm.gate_stride = op->gate_stride;
    gemm.tokens = op->tokens;
    gemm.residual = op->residual || op->gate ? op->y : NULL;
    gemm.y = op->y;
    gemm.y_stride = op->y_stride;
    gemm.to = op->to;
    gemm.from = op->from;
    gmem__gemm_run(engine, &gemm);
}

static void gmem__cpu_conv(const gmem__engine *engine, const gmem__conv *op) {
    const int64_t area = (op->height << op->upsample) / op->stride * ((op->width << op->upsample) / op->stride);
    gmem__gemm gemm;
    memset(&gemm, 0, sizeof gemm);
    gemm.weight = op->weight;
    gemm.rows = op->weight->rows;
    gemm.depth = op->weight->cols;
    gemm.columns = area;
    gemm.conv = op;
    gemm.bias = op->bias;
    gemm.activation = GMEM__ACT_NONE;
    gemm.residual = op->residual;
    gemm.y = op->y;
    gemm.y_stride = area;
    gmem__gemm_run(engine, &gemm);
}

/* the choice ------------------------------------------------------------------------------------------------------ */

#define GMEM__CPU_OPS(name, kernels) \
    {                                \
        {name,                       \
         gmem__cpu_scratch_bytes,    \
         gmem__cpu_linear,           \
         gmem__cpu_norm,             \
         gmem__cpu_rotate,           \
         gmem__cpu_attention,        \
         gmem__cpu_conv,             \
         gmem__cpu_group_norm,       \
         gmem__host_copy,            \
         gmem__host_patches,         \
         gmem__host_combine,         \
         gmem__host_transpose,       \
         gmem__host_silu,            \
         gmem__host_normal,          \
         gmem__host_scale_shift,     \
         gmem__host_finite,          \
         gmem__host_error_norm,      \
         gmem__host_change,          \
         gmem__host_transfer,        \
         gmem__host_pixels,          \
         gmem__host_hand_over,       \
         gmem__host_transfer,        \
         gmem__host_reserve,         \
         gmem__host_release,         \
         gmem__host_settle},         \
            kernels                  \
    }

GMEM__FN const gmem__ops *gmem__cpu_ops(gmem_isa isa, gmem_isa *chosen) {
    static const gmem__cpu scalar = GMEM__CPU_OPS("cpu/scalar", gmem__scalar_kernels);
    gmem_isa found = GMEM_ISA_SCALAR;
    const gmem__cpu *cpu = isa == GMEM_ISA_AUTO || isa == GMEM_ISA_SCALAR ? &scalar : NULL;
#ifdef GMEM__X86
    static const gmem__cpu avx2 = GMEM__CPU_OPS("cpu/avx2", gmem__avx2_kernels);
    static const gmem__cpu avx512 = GMEM__CPU_OPS("cpu/avx512", gmem__avx512_kernels);
    static const gmem__cpu amx = GMEM__CPU_OPS("cpu/amx", gmem__avx512_kernels);
    const gmem__features has = gmem__processor_features();
    if ((isa == GMEM_ISA_AUTO || isa == GMEM_ISA_AVX2) && has.avx2) cpu = &avx2, found = GMEM_ISA_AVX2;
    if ((isa == GMEM_ISA_AUTO || isa == GMEM_ISA_AVX512) && has.avx512) cpu = &avx512, found = GMEM_ISA_AVX512;
    /* tiles multiply narrow words; everything else is AVX-512's */
    if (isa == GMEM_ISA_AMX && gmem__has_amx()) cpu = &amx, found = GMEM_ISA_AMX;
#endif
    if (!cpu) return NULL;
    if (chosen) *chosen = found;
    return &cpu->ops;
}

#undef GMEM__CPU_OPS

GMEM__FN int gmem__cpu_count(void) {
#ifdef _OPENMP
    return omp_get_num_procs();
#else
    return 1;
#endif
}
