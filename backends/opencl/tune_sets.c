/* The parameters that can be tuned: CLBlast's as its documentation lists them (doc/tuning.md, and the constraints among
 * them that its own tuners keep), and the sizes of this project's product kernels. */
#include "tune.h"

#ifndef GMEM_NO_OPENCL

/* what fits together ---------------------------------------------------------------------------------------------- */

static int gmem__is_multiple(int a, int b) { return b > 0 && a % b == 0; }

static int gmem__group_fits(int x, int y, const gmem__cl_limits *limits) {
    return (int64_t)x * y <= limits->work_group && x <= limits->work_items[0] && y <= limits->work_items[1];
}

/* Values in the order of the table below. */
struct gmem__tune_xgemm {
    int kreg, kwg, kwi, mdima, mdimc, mwg, ndimb, ndimc, nwg, sa, sb, strm, strn, vwm, vwn, gemmk;
};

static int gmem__fits_xgemm(const int *values, const gmem__cl_limits *limits) {
    struct gmem__tune_xgemm v;
    memcpy(&v, values, sizeof v);
    const int group = v.mdimc * v.ndimc;
    const int64_t local = (int64_t)4 * v.kwg * (v.sa * v.mwg + v.sb * v.nwg);
    if (!gmem__is_multiple(group, v.mdima) || !gmem__is_multiple(group, v.ndimb)) return 0;
    return gmem__is_multiple(v.kwg, v.kwi) && gmem__is_multiple(v.mwg, v.mdimc * v.vwm) &&
           gmem__is_multiple(v.nwg, v.ndimc * v.vwn) && gmem__is_multiple(v.mwg, v.mdima * v.vwm) &&
           gmem__is_multiple(v.nwg, v.ndimb * v.vwn) && gmem__is_multiple(v.kwg, group / v.mdima) &&
           gmem__is_multiple(v.kwg, group / v.ndimb) && local <= limits->local_memory &&
           gmem__group_fits(v.mdimc, v.ndimc, limits);
}

struct gmem__tune_direct {
    int kwid, mdimad, mdimcd, ndimbd, ndimcd, pada, padb, vwmd, vwnd, wgd;
};

static int gmem__fits_direct(const int *values, const gmem__cl_limits *limits) {
    struct gmem__tune_direct v;
    memcpy(&v, values, sizeof v);
    const int group = v.mdimcd * v.ndimcd;
    const int64_t local = (int64_t)4 * v.wgd * (2 * v.wgd + v.pada + v.padb);
    if (!gmem__is_multiple(group, v.mdimad) || !gmem__is_multiple(group, v.ndimbd)) return 0;
    return gmem__is_multiple(v.wgd, v.kwid) && gmem__is_multiple(v.wgd, v.mdimcd * v.vwmd) &&
           gmem__is_multiple(v.wgd, v.ndimcd * v.vwnd) && gmem__is_multiple(v.wgd, v.mdimad * v.vwmd) &&
           gmem__is_multiple(v.wgd, v.ndimbd * v.vwnd) && gmem__is_multiple(v.wgd, group / v.mdimad) &&
           gmem__is_multiple(v.wgd, group / v.ndimbd) && local <= limits->local_memory &&
           gmem__group_fits(v.mdimcd, v.ndimcd, limits);
}

/* Copy and Pad begin with the two sides of the work-group. */
static int gmem__fits_copy(const int *values, const gmem__cl_limits *limits) {
    return gmem__group_fits(values[0], values[1], limits);
}

static int gmem__fits_transpose(const int *values, const gmem__cl_limits *limits) {
    const int dim = values[0], pad = values[1], work = values[3];
    return (int64_t)4 * work * work * dim * (dim + pad) <= limits->local_memory && gmem__group_fits(dim, dim, limits);
}

static int gmem__fits_padtranspose(const int *values, const gmem__cl_limits *limits) {
    const int pad = values[0], tile = values[1];
    const int64_t side = (int64_t)values[2] * tile;
    return 4 * side * (side + pad) <= limits->local_memory && gmem__group_fits(tile, tile, limits);
}

static int gmem__fits_any(const int *values, const gmem__cl_limits *limits) {
    (void)values;
    (void)limits;
    return 1;
}

static int gmem__fits_tiles(gmem__tune_set_id id, const int *values, const gmem__cl_limits *limits) {
    gmem__cl_tiles tiles = gmem__product_tiles(limits);
    gmem__tune_point point;
    memset(&point, 0, sizeof point);
    memcpy(point.values, values, (size_t)gmem__tune_get_set(id)->count * sizeof *values);
    gmem__tune_set_tiles(&tiles, id, &point);
    return gmem__product_tiles_fit(&tiles, limits);
}

static int gmem__fits_own(const int *values, const gmem__cl_limits *limits) {
    return gmem__fits_tiles(GMEM__TUNE_OWN, values, limits);
}

static int gmem__fits_tile(const int *values, const gmem__cl_limits *limits) {
    return gmem__fits_tiles(GMEM__TUNE_TILE, values, limits);
}

/* the sets -------------------------------------------------------------------------------------------------------- */

#define GMEM__TUNE_BOTH \
    { 0, 1 }
#define GMEM__TUNE_DIM \
    { 8, 16, 32, 4, 2 }
#define GMEM__TUNE_WORK \
    { 1, 2, 4, 8 }

/* In the order of gmem__tune_set_id. GEMMK 1, CLBlast's other kernel, is left out: version 1.5.3 writes outside its
 * buffers with it on PoCL. */
static const gmem__tune_set gmem__tune_sets[] = {
    {"Xgemm",
     gmem__fits_xgemm,
     16,
     {{"KREG", {1}},
      {"KWG", {16, 32, 64}},
      {"KWI", {2, 8, 1}},
      {"MDIMA", GMEM__TUNE_DIM},
      {"MDIMC", GMEM__TUNE_DIM},
      {"MWG", {16, 32, 64, 128}},
      {"NDIMB", GMEM__TUNE_DIM},
      {"NDIMC", GMEM__TUNE_DIM},
      {"NWG", {16, 32, 64, 128}},
      {"SA", GMEM__TUNE_BOTH},
      {"SB", GMEM__TUNE_BOTH},
      {"STRM", GMEM__TUNE_BOTH},
      {"STRN", GMEM__TUNE_BOTH},
      {"VWM", GMEM__TUNE_WORK},
      {"VWN", GMEM__TUNE_WORK},
      {"GEMMK", {0}}}},
    {"XgemmDirect",
     gmem__fits_direct,
     10,
     {{"KWID", {2, 8, 16, 1}},
      {"MDIMAD", GMEM__TUNE_DIM},
      {"MDIMCD", GMEM__TUNE_DIM},
      {"NDIMBD", GMEM__TUNE_DIM},
      {"NDIMCD", GMEM__TUNE_DIM},
      {"PADA", GMEM__TUNE_BOTH},
      {"PADB", GMEM__TUNE_BOTH},
      {"VWMD", GMEM__TUNE_WORK},
      {"VWND", GMEM__TUNE_WORK},
      {"WGD", {8, 16, 32, 64}}}},
    {"Copy",
     gmem__fits_copy,
     4,
     {{"COPY_DIMX", {8, 16, 32}},
      {"COPY_DIMY", {8, 16, 32}},
      {"COPY_VW", GMEM__TUNE_WORK},
      {"COPY_WPT", GMEM__TUNE_WORK}}},
    {"Pad",
     gmem__fits_copy,
     4,
     {{"PAD_DIMX", {8, 16, 32}}, {"PAD_DIMY", {8, 16, 32}}, {"PAD_WPTX", {1, 2, 4}}, {"PAD_WPTY", {1, 2, 4}}}},
    {"Transpose",
     gmem__fits_transpose,
     4,
     {{"TRA_DIM", {4, 8, 16, 32, 64}},
      {"TRA_PAD", GMEM__TUNE_BOTH},
      {"TRA_SHUFFLE", GMEM__TUNE_BOTH},
      {"TRA_WPT", {1, 2, 4, 8, 16}}}},
    {"Padtranspose",
     gmem__fits_padtranspose,
     3,
     {{"PADTRA_PAD", GMEM__TUNE_BOTH}, {"PADTRA_TILE", {8, 16, 32, 64}}, {"PADTRA_WPT", {1, 2, 4, 8, 16}}}},
    {"GemmRoutine", gmem__fits_any, 1, {{"XGEMM_MIN_INDIRECT_SIZE", {1, 64, 128, 256, 512, 768, 1024, 65536}}}},
    {"product",
     gmem__fits_own,
     5,
     {{"item_rows", {2, 4, 8, 16}},
      {"item_columns", {1, 2, 4, 8, 16}},
      {"group_rows", {4, 8, 16, 32}},
      {"group_columns", {4, 8, 16, 32}},
      {"group_depth", {4, 8, 16, 32, 64}}}},
    {"product_tile",
     gmem__fits_tile,
     5,
     {{"tile_rows", {4, 6, 8, 12}},
      {"tile_vectors", {1, 2, 4}},
      {"tile_width", {4, 8, 16}},
      {"tile_columns", {16, 32, 64, 96, 128, 192, 256, 512}},
      {"tile_depth", {32, 64, 128, 192, 256, 384, 512, 1024}}}},
};

/* Points to begin with, of small processors' caches and registers and of large work-groups in turn. The rest is found
 * by changing one value after the other. */
static const gmem__tune_point gmem__seeds_xgemm[] = {
    {{1, 32, 2, 4, 4, 32, 4, 4, 32, 0, 0, 0, 0, 8, 8, 0}}, {{1, 16, 2, 16, 16, 128, 8, 8, 64, 1, 1, 1, 0, 4, 1, 0}},
    {{1, 32, 2, 4, 4, 64, 4, 4, 32, 0, 0, 0, 0, 8, 8, 0}}, {{1, 16, 2, 16, 8, 64, 8, 8, 64, 1, 1, 0, 0, 4, 4, 0}},
    {{1, 32, 2, 2, 2, 16, 4, 4, 32, 0, 0, 0, 0, 8, 8, 0}}, {{1, 32, 2, 8, 8, 64, 8, 8, 64, 0, 0, 0, 0, 4, 4, 0}},
};
static const gmem__tune_point gmem__seeds_direct[] = {
    {{2, 4, 4, 4, 4, 0, 0, 8, 8, 32}},
    {{2, 8, 8, 8, 8, 1, 1, 4, 4, 32}},
    {{2, 16, 16, 8, 8, 1, 1, 2, 4, 32}},
    {{8, 8, 8, 8, 8, 0, 0, 8, 8, 64}},
};
static const gmem__tune_point gmem__seeds_copy[] = {{{8, 8, 4, 4}}, {{32, 8, 4, 1}}};
static const gmem__tune_point gmem__seeds_pad[] = {{{8, 8, 4, 4}}, {{32, 8, 2, 1}}};
static const gmem__tune_point gmem__seeds_transpose[] = {{{4, 0, 0, 8}}, {{16, 1, 0, 4}}};
static const gmem__tune_point gmem__seeds_padtranspose[] = {{{0, 8, 4}}, {{1, 16, 2}}};

#define GMEM__TUNE_SEEDS(seeds) \
    { seeds, (int)(sizeof(seeds) / sizeof *(seeds)) }

static const struct gmem__tune_seeds {
    const gmem__tune_point *points;
    int count;
} gmem__tune_seeds[] = {
    GMEM__TUNE_SEEDS(gmem__seeds_xgemm),     GMEM__TUNE_SEEDS(gmem__seeds_direct),
    GMEM__TUNE_SEEDS(gmem__seeds_copy),      GMEM__TUNE_SEEDS(gmem__seeds_pad),
    GMEM__TUNE_SEEDS(gmem__seeds_transpose), GMEM__TUNE_SEEDS(gmem__seeds_padtranspose),
};

GMEM__FN const gmem__tune_set *gmem__tune_get_set(gmem__tune_set_id id) { return &gmem__tune_sets[id]; }

GMEM__FN int gmem__tune_seed(gmem__tune_set_id id, int index, gmem__tune_point *out) {
    if (id > GMEM__TUNE_PADTRANSPOSE || index >= gmem__tune_seeds[id].count) return 0;
    *out = gmem__tune_seeds[id].points[index];
    return 1;
}

static int gmem__tune_allows(const gmem__tune_parameter *parameter, int value) {
    for (int i = 0; i < GMEM__TUNE_VALUES; i++) {
        if (i > 0 && parameter->values[i] == 0) return 0;
        if (parameter->values[i] == value) return 1;
    }
    return 0;
}

GMEM__FN int gmem__tune_fits(gmem__tune_set_id id, const gmem__tune_point *point, const gmem__cl_limits *limits) {
    const gmem__tune_set *set = &gmem__tune_sets[id];
    for (int i = 0; i < set->count; i++)
        if (!gmem__tune_allows(&set->parameters[i], point->values[i])) return 0;
    return set->fits(point->values, limits);
}

GMEM__FN gmem_status gmem__tune_apply(const struct gmem__device *device, gmem__tune_set_id id,
                                      const gmem__tune_point *point, gmem_error *error) {
    const gmem__tune_set *set = &gmem__tune_sets[id];
    const char *names[GMEM__TUNE_PARAMETERS];
    size_t values[GMEM__TUNE_PARAMETERS];
    for (int i = 0; i < set->count; i++) {
        names[i] = set->parameters[i].name;
        values[i] = (size_t)point->values[i];
    }
    const int code = device->library.api.CLBlastOverrideParameters(device->found.id, set->name, GMEM__CLBLAST_SINGLE,
                                                                   (size_t)set->count, names, values);
    return code == GMEM__CL_SUCCESS ? GMEM_OK : gmem__cl_fail(error, "CLBlastOverrideParameters", code);
}

/* tiles ----------------------------------------------------------------------------------------------------------- */

/* Where a set's parameters are, in its order. */
static void gmem__tune_tile_members(gmem__cl_tiles *tiles, gmem__tune_set_id id, int *members[5]) {
    int *own[5] = {&tiles->item_rows, &tiles->item_columns, &tiles->group_rows, &tiles->group_columns,
                   &tiles->group_depth};
    int *tile[5] = {&tiles->tile_rows, &tiles->tile_vectors, &tiles->tile_width, &tiles->tile_columns,
                    &tiles->tile_depth};
    memcpy(members, id == GMEM__TUNE_OWN ? own : tile, sizeof own);
}

GMEM__FN void gmem__tune_get_tiles(const gmem__cl_tiles *tiles, gmem__tune_set_id id, gmem__tune_point *out) {
    gmem__cl_tiles copy = *tiles;
    int *members[5];
    gmem__tune_tile_members(&copy, id, members);
    memset(out, 0, sizeof *out);
    for (int i = 0; i < 5; i++)
        out->values[i] = *members[i];
}

GMEM__FN void gmem__tune_set_tiles(gmem__cl_tiles *tiles, gmem__tune_set_id id, const gmem__tune_point *point) {
    int *members[5];
    gmem__tune_tile_members(tiles, id, members);
    for (int i = 0; i < 5; i++)
        *members[i] = point->values[i];
}

#endif /* GMEM_NO_OPENCL */
