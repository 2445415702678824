/* Search: exact against brute force in double, whatever the type, shape, instruction set and number of threads. */
#include "../backends/cpu/narrow.h"
#include "../src/bank_search.h"
#include "check.h"
#include "edit.h"
#include "failing.h"
#include "golden.h"

/* rows and queries ------------------------------------------------------------------------------------------------ */

static uint64_t state = 1;

static double uniform(void) {
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(state >> 11) / 9007199254740992.0;
}

static float *made_vectors(int64_t rows, int64_t width, int64_t clusters, double spread) {
    float *out = (float *)malloc((size_t)(rows * width) * sizeof *out);
    if (!out) exit(1);
    for (int64_t i = 0; i < rows * width; i++)
        out[i] = (float)(i / width < clusters ? uniform() - 0.5 : 0);
    for (int64_t r = clusters; r < rows; r++) /* near the first rows, at lengths of their own */
        for (int64_t i = 0; i < width; i++)
            out[r * width + i] =
                (float)((double)(1 + r % 5) * ((double)out[r % clusters * width + i] + spread * (uniform() - 0.5)));
    return out;
}

/* A bank in memory, with its rows in double. */
typedef struct made {
    edit_list *list;
    gmem_file *file;
    gmem_bank *bank;
    double *rows; /* as stored */
    int64_t count, width;
} made;

/* `features` of the type; int8 with scales. */
static edit_list *list_of(gmem_type type, int64_t rows, int64_t width, const float *values) {
    edit_list *list = edit_new(), *rounded = edit_new();
    const int64_t shape[2] = {rows, width};
    void *data = edit_own(list, (size_t)(rows * width) * gmem_type_bytes(type));
    if (type == GMEM_I8) {
        edit_add(list, "features", GMEM_F32, 2, shape, values);
        edit_add(rounded, "features", GMEM_F32, 2, shape, values);
        edit_quantise(list, rounded, 0);
    } else {
        gmem_convert_f32(values, rows * width, type, data);
        edit_add(list, "features", type, 2, shape, data);
    }
    edit_free(rounded);
    return list;
}

static made open_made(gmem_context *context, edit_list *list) {
    gmem_bank_desc desc;
    gmem_error error;
    made m;
    memset(&m, 0, sizeof m);
    memset(&desc, 0, sizeof desc);
    m.list = list;
    desc.file = m.file = edit_open(context, list);
    if (!CHECK_OK(gmem_bank_open(context, &desc, &m.bank, &error))) {
        printf("%s\n", error.message);
        exit(1);
    }
    m.count = gmem_bank_rows(m.bank);
    m.width = gmem_bank_width(m.bank);
    m.rows = (double *)edit_own(list, (size_t)(m.count * m.width) * sizeof *m.rows);
    const gmem_tensor *features = gmem_file_find(m.file, "features");
    for (int64_t i = 0; i < m.count * m.width; i++) {
        float value = 0;
        if (features->type == GMEM_F64)
            gmem_tensor_read(features, i, 1, &m.rows[i]);
        else
            gmem_tensor_read_f32(features, i, 1, &value), m.rows[i] = (double)value;
    }
    return m;
}

static void close_made(made *m) {
    gmem_bank_close(m->bank);
    gmem_file_close(m->file);
    edit_free(m->list);
}

/* brute force ----------------------------------------------------------------------------------------------------- */

typedef struct exact {
    double cosine;
    int64_t row;
} exact;

static int exact_order(const void *a_, const void *b_) {
    const exact *a = (const exact *)a_, *b = (const exact *)b_;
    if (a->cosine != b->cosine) return a->cosine > b->cosine ? -1 : 1;
    return (a->row > b->row) - (a->row < b->row);
}

static double cosine_of(const double *row, const float *query, int64_t width) {
    double product = 0, square = 0, norm = 0;
    for (int64_t i = 0; i < width; i++) {
        product += row[i] * (double)query[i];
        square += row[i] * row[i];
        norm += (double)query[i] * (double)query[i];
    }
    return product / sqrt(square * norm);
}

/* All rows in order for each query: out (count, rows). */
static exact *brute_force(const double *rows, int64_t row_count, int64_t width, const float *queries, int64_t count) {
    exact *out = (exact *)malloc((size_t)(row_count * count) * sizeof *out);
    if (!out) exit(1);
    for (int64_t q = 0; q < count; q++) {
        exact *order = out + q * row_count;
        for (int64_t r = 0; r < row_count; r++) {
            order[r].row = r;
            order[r].cosine = cosine_of(rows + r * width, queries + q * width, width);
        }
        qsort(order, (size_t)row_count, sizeof *order, exact_order);
    }
    return out;
}

/* Rows whose cosines are as close as sums in double are exact may come in any order here. */
static int agrees(const gmem_match *matches, const exact *expected, int64_t row_count, int64_t count, int64_t k) {
    for (int64_t i = 0; i < count * k; i++) {
        const gmem_match *match = matches + i;
        const exact *order = expected + i / k * row_count;
        int64_t at = i % k;
        if (match->row != order[at].row) {
            for (at = 0; at < row_count && order[at].row != match->row;)
                at++;
            if (at == row_count || !(fabs(order[at].cosine - order[i % k].cosine) < 1e-13)) return 0;
        }
        if (!(fabs((double)match->cosine - order[at].cosine) < 1e-7)) return 0;
    }
    return 1;
}

/* everything by brute force --------------------------------------------------------------------------------------- */

static gmem_context *context_of(gmem_isa isa, int threads) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    memset(&desc, 0, sizeof desc);
    desc.isa = isa;
    desc.threads = threads;
    desc.backend = GMEM_BACKEND_CPU;
    return gmem_context_create(&desc, &context, NULL) == GMEM_OK ? context : NULL;
}

typedef struct shape {
    int64_t rows, width, queries, k, clusters;
    double spread;
} shape;

static gmem_bank_search_desc desc_of(const float *queries, int64_t count, int64_t k) {
    gmem_bank_search_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.queries = queries;
    desc.count = count;
    desc.k = k;
    return desc;
}

/* What stands in for a kernel that comes in several widths. */
static const gmem__narrow *like(gmem_type type) {
    for (int i = 0; gmem__portable_like(i); i++)
        if (gmem__portable_like(i)->type == type && gmem__portable_like(i)->thinner) return gmem__portable_like(i);
    return NULL;
}

/* On every instruction set and on kernels that this machine may lack: all must agree with brute force, to the bit with
 * each other. */
static void check_shape(const shape *s, gmem_type type) {
    float *values = made_vectors(s->rows, s->width, s->clusters, s->spread);
    float *queries = made_vectors(s->queries, s->width, s->queries, 0);
    gmem_match *matches = (gmem_match *)malloc((size_t)(s->queries * s->k) * sizeof *matches);
    gmem_match *first = (gmem_match *)malloc((size_t)(s->queries * s->k) * sizeof *first);
    exact *expected = NULL;
    int runs = 0;
    if (!matches || !first) exit(1);
    for (int64_t q = 0; q < s->queries; q += 2) /* every other one is near a row */
        for (int64_t i = 0; i < s->width; i++)
            queries[q * s->width + i] = 3 * values[q * 7 % s->rows * s->width + i] + 0.001f * (float)(i % 3);
    for (int i = 0; i < 5 * golden_isa_count; i++) {
        const gmem_isa isa = golden_isas[i / 5];
        const int threads = i % 5, of_machine = threads >= 1 && threads <= 3; /* else kernels that it may lack */
        gmem_context *context = context_of(isa, of_machine ? threads : 1);
        if (!context) continue;
        made m = open_made(context, list_of(type, s->rows, s->width, values));
        gmem_bank_search_desc desc = desc_of(queries, s->queries, s->k);
        gmem__engine engine = gmem__cpu_engine(context);
        gmem_status status;
        if (!expected) expected = brute_force(m.rows, s->rows, s->width, queries, s->queries);
        memset(matches, 255, (size_t)(s->queries * s->k) * sizeof *matches);
        if (of_machine) {
            status = gmem_bank_search(m.bank, &desc, matches, NULL);
        } else {
            engine.bf16 = i == 0 ? gmem__amx_stand_in(GMEM_BF16) : i == 5 ? like(GMEM_BF16) : gmem__portable_bf16();
            engine.int8 = i == 0 ? gmem__amx_stand_in(GMEM_I8) : i == 5 ? like(GMEM_I8) : gmem__portable_i8();
            engine.f32 = i % 5 == 4 ? like(GMEM_F32) : NULL;
            status = gmem__bank_search_on(&engine, m.bank, &desc, matches, NULL);
        }
        CHECK_OK(status);
        if (!CHECK(agrees(matches, expected, s->rows, s->queries, s->k)))
            printf("%s %lld x %lld, %lld queries, isa %s\n", gmem_type_name(type), (long long)s->rows,
                   (long long)s->width, (long long)s->queries, golden_isa_name(isa));
        if (runs++ == 0) memcpy(first, matches, (size_t)(s->queries * s->k) * sizeof *first);
        for (int64_t j = 0; j < s->queries * s->k; j++)
            if (first[j].row != matches[j].row || first[j].cosine != matches[j].cosine) {
                CHECK_INT(matches[j].row, first[j].row); /* the same on every instruction set and number of threads */
                CHECK(matches[j].cosine == first[j].cosine);
                break;
            }
        close_made(&m);
        gmem_context_destroy(context);
    }
    CHECK(runs > 0);
    free(values);
    free(queries);
    free(matches);
    free(first);
    free(expected);
}

static void test_shapes(void) {
    static const gmem_type types[] = {GMEM_F32, GMEM_F16, GMEM_BF16, GMEM_F64, GMEM_I8};
    static const shape shapes[] = {
        {1, 1, 1, 1, 1, 0},          {3, 2, 2, 3, 3, 0},           {33, 7, 5, 4, 33, 0},
        {257, 48, 17, 257, 20, 0.5}, {201, 769, 33, 7, 201, 0},    {700, 31, 9, 5, 3, 1e-6},
        {150, 100, 270, 2, 5, 0.01}, {1500, 16, 16, 10, 1500, 0.}, {900, 96, 64, 10, 4, 1e-3},
        {350, 130, 12, 5, 350, 0},   {110, 448, 6, 3, 2, 0.01},    {90, 1531, 8, 3, 90, 0},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int t = 0; t < 5; t++)
            check_shape(&shapes[i], types[t]);
}

/* recorded -------------------------------------------------------------------------------------------------------- */

static void test_golden(gmem_context *context) {
    static const char *const path = "tests/golden/bank_full.pth";
    gmem_file *io = golden_open(context, "bank.io.safetensors");
    const int64_t count = golden_dim(io, "topk_index", 0), k = golden_dim(io, "topk_index", 1);
    float *queries = golden_f32(io, "query", NULL), *cosines = golden_f32(io, "topk_cosine", NULL);
    int64_t *rows = golden_i64(io, "topk_index", NULL);
    gmem_match *matches = (gmem_match *)malloc((size_t)(count * k) * sizeof *matches);
    gmem_bank_search_desc desc = desc_of(queries, count, k);
    gmem_bank_desc bank_desc;
    gmem_bank *bank = NULL;
    memset(&bank_desc, 0, sizeof bank_desc);
    bank_desc.paths = &path;
    bank_desc.path_count = 1;
    if (!matches || !CHECK_OK(gmem_bank_open(context, &bank_desc, &bank, NULL))) exit(1);
    CHECK_OK(gmem_bank_search(bank, &desc, matches, NULL));
    for (int64_t i = 0; i < count * k; i++) {
        CHECK_INT(matches[i].row, rows[i]);
        CHECK(fabsf(matches[i].cosine - cosines[i]) < 1e-6f);
    }
    gmem_bank_close(bank);
    gmem_file_close(io);
    free(queries);
    free(cosines);
    free(rows);
    free(matches);
}

/* Files of different kinds, one of which is decomposed, numbered through; rows as gmem_bank_row gives them. */
static void test_files(gmem_context *context) {
    static const char *const paths[3] = {"tests/golden/bank_dmd16.pth", "build/test_bank_search.safetensors",
                                         "tests/golden/bank_full.pth"};
    enum { WIDTH = 48, EXTRA = 70, K = 12 };
    float *values = made_vectors(EXTRA, WIDTH, EXTRA, 0), *queries = made_vectors(40, WIDTH, 40, 0), row[WIDTH];
    edit_list *list = list_of(GMEM_F16, EXTRA, WIDTH, values);
    static gmem_match matches[40 * K];
    gmem_bank_desc bank_desc;
    gmem_bank *bank = NULL;
    edit_save(list, paths[1]);
    edit_free(list);
    memset(&bank_desc, 0, sizeof bank_desc);
    bank_desc.paths = paths;
    bank_desc.path_count = 3;
    if (!CHECK_OK(gmem_bank_open(context, &bank_desc, &bank, NULL))) exit(1);
    const int64_t rows = gmem_bank_rows(bank);
    CHECK_INT(rows, 257 + EXTRA + 257);
    double *all = (double *)malloc((size_t)(rows * WIDTH) * sizeof *all);
    if (!all) exit(1);
    for (int64_t r = 0; r < rows; r++) {
        CHECK_OK(gmem_bank_row(bank, r, row, NULL));
        for (int i = 0; i < WIDTH; i++)
            all[r * WIDTH + i] = (double)row[i];
        if (r % 19 == 0) memcpy(queries + r / 19 * WIDTH, row, sizeof row); /* 31 of them */
    }
    for (int64_t count = 1; count <= 40; count = 3 * count + 1) {
        gmem_bank_search_desc desc = desc_of(queries, count, K);
        exact *expected = brute_force(all, rows, WIDTH, queries, count);
        CHECK_OK(gmem_bank_search(bank, &desc, matches, NULL));
        CHECK(agrees(matches, expected, rows, count, K));
        free(expected);
    }
    gmem_bank_close(bank);
    free(values);
    free(queries);
    free(all);
    remove(paths[1]);
}

/* Columns at right angles are searched by coefficients, others by composed rows, and so are rows that all but vanish:
 * every one of them as gmem_bank_row gives it. */
static void check_decomposed(gmem_context *context, gmem_type type, int skewed) {
    enum { ROWS = 350, WIDTH = 90, RANK = 37, COUNT = 30, K = 8 };
    static gmem_match matches[COUNT * K];
    static double all[ROWS * WIDTH];
    static float m[WIDTH * RANK], s[RANK], row[WIDTH];
    const int64_t c_shape[2] = {ROWS, RANK}, m_shape[2] = {WIDTH, RANK}, width = WIDTH, rank = RANK;
    float *c = made_vectors(ROWS, RANK, 20, 0.4), *mean = made_vectors(1, WIDTH, 1, 0);
    float *queries = made_vectors(COUNT, WIDTH, COUNT, 0), *columns = made_vectors(RANK, WIDTH, RANK, 0);
    edit_list *list = edit_new();
    for (int k = 0; k < RANK; k++) { /* Gram and Schmidt */
        float *column = columns + k * WIDTH;
        for (int l = 0; l < k && !skewed; l++) {
            double product = 0;
            for (int i = 0; i < WIDTH; i++)
                product += (double)column[i] * (double)columns[l * WIDTH + i];
            for (int i = 0; i < WIDTH; i++)
                column[i] -= (float)product * columns[l * WIDTH + i];
        }
        CHECK_OK(gmem_normalize(column, WIDTH, NULL));
    }
    for (int i = 0; i < WIDTH * RANK; i++)
        m[i] = columns[i % RANK * WIDTH + i / RANK] * (float)(RANK - i % RANK) * 0.1f;
    for (int i = 0; i < WIDTH; i++) /* the mean is row 3's opposite, which leaves next to nothing of it */
        for (int k = 0; k < RANK; k++)
            mean[i] = (k ? mean[i] : 0) - c[3 * RANK + k] * m[i * RANK + k];
    void *narrow = edit_own(list, ROWS * RANK * 8);
    gmem_convert_f32(c, ROWS * RANK, type, narrow);
    edit_add(list, "C", type, 2, c_shape, narrow);
    edit_add(list, "M", GMEM_F32, 2, m_shape, m);
    edit_add(list, "S", GMEM_F32, 1, &rank, s);
    edit_add(list, "mean", GMEM_F32, 1, &width, mean);
    gmem_bank_desc bank_desc;
    gmem_bank *bank = NULL;
    memset(&bank_desc, 0, sizeof bank_desc);
    bank_desc.file = edit_open(context, list);
    if (!CHECK_OK(gmem_bank_open(context, &bank_desc, &bank, NULL))) exit(1);
    for (int r = 0; r < ROWS; r++) {
        CHECK_OK(gmem_bank_row(bank, r, row, NULL));
        for (int i = 0; i < WIDTH; i++)
            all[r * WIDTH + i] = (double)row[i];
        if (r < COUNT / 2) memcpy(queries + 2 * r * WIDTH, row, sizeof row);
    }
    for (int64_t count = 1; count <= COUNT; count += 29) {
        gmem_bank_search_desc desc = desc_of(queries, count, K);
        exact *expected = brute_force(all, ROWS, WIDTH, queries, count);
        CHECK_OK(gmem_bank_search(bank, &desc, matches, NULL));
        CHECK(agrees(matches, expected, ROWS, count, K));
        free(expected);
    }
    gmem_bank_close(bank);
    gmem_file_close(bank_desc.file);
    edit_free(list);
    free(c);
    free(mean);
    free(queries);
    free(columns);
}

static void test_decomposed(gmem_context *context) {
    check_decomposed(context, GMEM_F32, 0);
    check_decomposed(context, GMEM_F16, 0);
    check_decomposed(context, GMEM_F64, 0);
    check_decomposed(context, GMEM_BF16, 1);
}

/* ties and bad rows ----------------------------------------------------------------------------------------------- */

/* More equal rows than there is room for, at any length: the first ones are found. */
static void test_ties(gmem_context *context) {
    enum { ROWS = 3000, WIDTH = 20, K = 10 };
    static float values[ROWS * WIDTH];
    static gmem_match matches[40 * K];
    float *queries = made_vectors(40, WIDTH, 40, 0);
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < WIDTH; i++)
            values[r * WIDTH + i] = (float)((1 + r % 3) * (i % 7 - 2)) * (r % 10 == 9 ? -1.0f : 1.0f);
    for (int q = 0; q < 40; q++) /* all positive with the rows that are not turned around */
        for (int i = 0; i < WIDTH; i++)
            queries[q * WIDTH + i] = (float)(i % 7 - 2) + 0.1f * queries[q * WIDTH + i];
    for (int type = 0; type < 2; type++) {
        made m = open_made(context, list_of(type ? GMEM_I8 : GMEM_F32, ROWS, WIDTH, values));
        for (int64_t count = 1; count <= 40; count += 13) {
            gmem_bank_search_desc desc = desc_of(queries, count, K);
            CHECK_OK(gmem_bank_search(m.bank, &desc, matches, NULL));
            for (int64_t i = 0; i < count * K; i++)
                CHECK_INT(matches[i].row, i % K + i % K / 9);
        }
        close_made(&m);
    }
    free(queries);
}

/* Rows whose values all lie halfway between two bf16: the best one's all round down, those of rows a little worse all
 * round up, by as much as rounding ever changes a row. */
static void test_worst_rounding(gmem_context *context) {
    enum { ROWS = 60, WIDTH = 768, BEST = 41 };
    const float half = 1.0f / 256, little = 1.0f / 65536;
    float *values = (float *)malloc(ROWS * WIDTH * sizeof *values), *queries = made_vectors(40, WIDTH, 40, 0);
    gmem_match matches[40];
    if (!values) exit(1);
    for (int64_t i = 0; i < ROWS * WIDTH; i++)
        values[i] = (i % WIDTH == i / WIDTH ? 2 : 1) * (1 + half + little);
    for (int64_t i = 0; i < WIDTH; i++)
        values[BEST * WIDTH + i] = 1 + half - little;
    for (int64_t i = 0; i < 40 * WIDTH; i++)
        queries[i] = 1;
    made m = open_made(context, list_of(GMEM_F32, ROWS, WIDTH, values));
    for (int64_t count = 1; count <= 40; count += 3) {
        gmem_bank_search_desc desc = desc_of(queries, count, 1);
        CHECK_OK(gmem_bank_search(m.bank, &desc, matches, NULL));
        for (int64_t q = 0; q < count; q++)
            CHECK_INT(matches[q].row, BEST);
    }
    close_made(&m);
    free(values);
    free(queries);
}

/* Rows that are zero or not finite are never found; the largest and smallest numbers are no reason not to be. */
static void test_bad_rows(gmem_context *context) {
    enum { ROWS = 40, WIDTH = 12 };
    static gmem_match matches[20 * ROWS];
    float *values = made_vectors(ROWS, WIDTH, ROWS, 0), *queries = made_vectors(20, WIDTH, 20, 0);
    for (int i = 0; i < WIDTH; i++) {
        values[3 * WIDTH + i] = 0;
        values[10 * WIDTH + i] *= 3e38f;
        values[11 * WIDTH + i] *= 1e-38f;
        values[12 * WIDTH + i] *= 1e-20f;
    }
    values[5 * WIDTH + 2] = NAN;
    values[7 * WIDTH + 11] = INFINITY;
    values[8 * WIDTH] = -INFINITY;
    static const gmem_type types[] = {GMEM_F32, GMEM_BF16, GMEM_F64};
    for (int t = 0; t < 3; t++) {
        made m = open_made(context, list_of(types[t], ROWS, WIDTH, values));
        for (int64_t count = 1; count <= 20; count += 19) {
            gmem_bank_search_desc desc = desc_of(queries, count, ROWS);
            exact *expected = brute_force(m.rows, ROWS, WIDTH, queries, count);
            CHECK_OK(gmem_bank_search(m.bank, &desc, matches, NULL));
            for (int64_t q = 0; q < count; q++) {
                const gmem_match *found = matches + q * ROWS;
                int seen[ROWS] = {0};
                for (int i = 0; i < ROWS - 4; i++) {
                    if (!CHECK(found[i].row >= 0 && found[i].row < ROWS)) break;
                    seen[found[i].row]++;
                    CHECK(fabs(cosine_of(m.rows + found[i].row * WIDTH, queries + q * WIDTH, WIDTH) -
                               (double)found[i].cosine) < 1e-6);
                    CHECK(i == 0 || found[i].cosine <= found[i - 1].cosine);
                }
                for (int i = ROWS - 4; i < ROWS; i++)
                    CHECK_INT(found[i].row, -1);
                CHECK(seen[3] + seen[5] + seen[7] + seen[8] == 0 && seen[10] + seen[11] + seen[12] == 3);
            }
            free(expected);
        }
        close_made(&m);
    }
    free(values);
    free(queries);
}

/* An int8 row's scale: negative ones turn it around, zero ones and those that are not finite take it away. */
static void test_scales(gmem_context *context) {
    enum { ROWS = 6, WIDTH = 5 };
    static const float scales[ROWS] = {1, -2, 0, NAN, 1e-20f, 3e38f};
    static signed char values[ROWS * WIDTH];
    static gmem_match matches[20 * ROWS];
    float queries[20 * WIDTH];
    const int64_t both[2] = {ROWS, WIDTH}, rows = ROWS;
    edit_list *list = edit_new();
    for (int i = 0; i < ROWS * WIDTH; i++)
        values[i] = (signed char)(i % WIDTH == i / WIDTH % WIDTH ? -128 : i % 3);
    for (int i = 0; i < 20 * WIDTH; i++)
        queries[i] = i % WIDTH == 1 ? 1.0f : 0.0f; /* row 1's -128, turned around */
    edit_add(list, "features", GMEM_I8, 2, both, values);
    edit_add(list, "features.scale", GMEM_F32, 1, &rows, scales);
    made m = open_made(context, list);
    for (int64_t count = 1; count <= 20; count += 19) {
        gmem_bank_search_desc desc = desc_of(queries, count, ROWS);
        CHECK_OK(gmem_bank_search(m.bank, &desc, matches, NULL));
        CHECK_INT(matches[0].row, 1);
        CHECK(matches[0].cosine > 0.99f);
        CHECK_INT(matches[2].row >= 0, 1);
        CHECK_INT(matches[3].row, -1); /* rows 2 and 3; and 5, whose 128 * 3e38 is infinite */
    }
    close_made(&m);
}

/* reranking ------------------------------------------------------------------------------------------------------- */

static void test_rerank(gmem_context *context) {
    enum { ROWS = 2000, WIDTH = 64, K = 10, COUNT = 30 };
    static gmem_match matches[COUNT * K];
    static const shape shapes[2] = {{ROWS, WIDTH, COUNT, K, ROWS, 0}, {ROWS, WIDTH, COUNT, K, 20, 0.3}};
    for (int i = 0; i < 2; i++) {
        float *values = made_vectors(ROWS, WIDTH, shapes[i].clusters, shapes[i].spread);
        float *queries = made_vectors(COUNT, WIDTH, COUNT, 0);
        memcpy(queries, values + 77 * WIDTH, 5 * WIDTH * sizeof *queries);
        made full = open_made(context, list_of(GMEM_F32, ROWS, WIDTH, values));
        made narrow = open_made(context, list_of(GMEM_I8, ROWS, WIDTH, values));
        exact *expected = brute_force(full.rows, ROWS, WIDTH, queries, COUNT);
        gmem_bank_search_desc desc = desc_of(queries, COUNT, K);
        desc.rerank = full.bank;
        CHECK_OK(gmem_bank_search(narrow.bank, &desc, matches, NULL));
        CHECK(agrees(matches, expected, ROWS, COUNT, K));
        desc.candidates = ROWS + 5; /* all there are */
        CHECK_OK(gmem_bank_search(narrow.bank, &desc, matches, NULL));
        CHECK(agrees(matches, expected, ROWS, COUNT, K));
        desc.candidates = K; /* the int8 bank's own ten, in another order */
        CHECK_OK(gmem_bank_search(narrow.bank, &desc, matches, NULL));
        for (int j = 1; j < K; j++)
            CHECK(matches[j].cosine <= matches[j - 1].cosine);
        close_made(&full);
        close_made(&narrow);
        free(values);
        free(queries);
        free(expected);
    }
}

/* refusals -------------------------------------------------------------------------------------------------------- */

static void test_refusals(gmem_context *context) {
    enum { ROWS = 9, WIDTH = 4 };
    float *values = made_vectors(ROWS, WIDTH, ROWS, 0);
    float queries[2 * WIDTH] = {1, 2, 3, 4, 0, 0, 0, 0};
    gmem_match out[2 * ROWS], before[2 * ROWS];
    made m = open_made(context, list_of(GMEM_F32, ROWS, WIDTH, values));
    made wider = open_made(context, list_of(GMEM_F32, ROWS, WIDTH - 1, values));
    made longer = open_made(context, list_of(GMEM_F32, ROWS - 1, WIDTH, values));
    gmem_bank_search_desc desc = desc_of(queries, 1, 3);
    gmem_error error;
    memset(out, 7, sizeof out);
    memcpy(before, out, sizeof out);
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_search(NULL, &desc, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_search(m.bank, NULL, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_search(m.bank, &desc, NULL, NULL));
    desc.k = 0;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_search(m.bank, &desc, out, NULL));
    desc.k = ROWS + 1;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_search(m.bank, &desc, out, NULL));
    desc.k = 3;
    desc.count = -1;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_search(m.bank, &desc, out, NULL));
    desc.count = 2;
    CHECK_STATUS(GMEM_E_ROW_ZERO, gmem_bank_search(m.bank, &desc, out, &error));
    CHECK_CONTAINS(error.message, "query 1");
    queries[WIDTH] = NAN;
    CHECK_STATUS(GMEM_E_ROW_ZERO, gmem_bank_search(m.bank, &desc, out, NULL));
    desc.count = 1;
    desc.rerank = wider.bank;
    CHECK_STATUS(GMEM_E_WIDTH, gmem_bank_search(m.bank, &desc, out, NULL));
    desc.rerank = longer.bank;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_search(m.bank, &desc, out, NULL));
    desc.rerank = m.bank;
    desc.candidates = 2;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_search(m.bank, &desc, out, NULL));
    CHECK(memcmp(out, before, sizeof out) == 0);
    desc.count = 0;
    desc.candidates = 0;
    CHECK_OK(gmem_bank_search(m.bank, &desc, out, NULL));
    CHECK(memcmp(out, before, sizeof out) == 0);
    close_made(&m);
    close_made(&wider);
    close_made(&longer);
    free(values);
}

static gmem_status attempt_search(gmem_context *context, void *user) {
    float query[4] = {1, 2, 3, 4};
    gmem_bank_desc desc;
    gmem_bank_search_desc search = desc_of(query, 1, 2);
    gmem_match out[2];
    gmem_bank *bank = NULL;
    memset(&desc, 0, sizeof desc);
    memset(out, 1, sizeof out);
    if (gmem_file_open_memory(context, "bank", ((edit_list *)user)->memory, ((edit_list *)user)->bytes, ".", &desc.file,
                              NULL) != GMEM_OK)
        return GMEM_E_MEMORY;
    gmem_status status = gmem_bank_open(context, &desc, &bank, NULL);
    if (status == GMEM_OK) {
        search.rerank = bank;
        status = gmem_bank_search(bank, &search, out, NULL);
        if (status != GMEM_OK) CHECK(memchr(out, 1, 1) == (void *)out);
    }
    gmem_bank_close(bank);
    gmem_file_close(desc.file);
    return status;
}

static void test_allocations(void) {
    float *values = made_vectors(9, 4, 9, 0);
    edit_list *list = list_of(GMEM_F32, 9, 4, values);
    edit_write(list);
    check_failing_allocations(attempt_search, list, 3);
    edit_free(list);
    free(values);
}

int main(void) {
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *context = golden_cpu_context(golden_isas[i]);
        if (!context) continue;
        test_golden(context);
        test_files(context);
        test_decomposed(context);
        test_ties(context);
        test_worst_rounding(context);
        test_bad_rows(context);
        test_scales(context);
        test_rerank(context);
        gmem_context_destroy(context);
    }
    gmem_context *context = golden_cpu_context(GMEM_ISA_AUTO);
    test_refusals(context);
    gmem_context_destroy(context);
    test_shapes();
    test_allocations();
    return check_report();
}
