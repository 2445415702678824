/* Tuning's inside: the parameters of CLBlast's kernels and of the own ones, the file that keeps them (tune.c), and the
 * search among them (tune_search.c). */
#ifndef GMEM__TUNE_H
#define GMEM__TUNE_H

#include "opencl.h"

#ifndef GMEM_NO_OPENCL

#define GMEM__TUNE_PARAMETERS 16
#define GMEM__TUNE_VALUES     8

/* What can be set together: kernels of CLBlast by its names, and the own kernels' tiles. */
typedef enum gmem__tune_set_id {
    GMEM__TUNE_XGEMM,
    GMEM__TUNE_XGEMM_DIRECT,
    GMEM__TUNE_COPY,
    GMEM__TUNE_PAD,
    GMEM__TUNE_TRANSPOSE,
    GMEM__TUNE_PADTRANSPOSE,
    GMEM__TUNE_ROUTINE, /* from which size on XGEMM runs and not XGEMM_DIRECT */
    GMEM__TUNE_CLBLAST_SETS,
    GMEM__TUNE_OWN = GMEM__TUNE_CLBLAST_SETS, /* `product`'s */
    GMEM__TUNE_TILE,                          /* `product_tile`'s */
    GMEM__TUNE_SETS
} gmem__tune_set_id;

typedef struct gmem__tune_parameter {
    const char *name;
    int values[GMEM__TUNE_VALUES]; /* that may be; ended by 0, but for the first */
} gmem__tune_parameter;

/* One value for each of the set's parameters. */
typedef struct gmem__tune_point {
    int values[GMEM__TUNE_PARAMETERS];
} gmem__tune_point;

typedef struct gmem__tune_set {
    const char *name;
    int (*fits)(const int *values, const gmem__cl_limits *limits); /* values of the set together on a device */
    int count;
    gmem__tune_parameter parameters[GMEM__TUNE_PARAMETERS];
} gmem__tune_set;

GMEM__FN const gmem__tune_set *gmem__tune_get_set(gmem__tune_set_id id);
/* Where to begin: the `index`-th of the points that are known to be good somewhere; 0 beyond the last. */
GMEM__FN int gmem__tune_seed(gmem__tune_set_id id, int index, gmem__tune_point *out);
/* Whether every value is one that may be, and all of them work together on such a device. CLBlast checks nothing: with
 * values that do not fit it computes nonsense or writes where it must not. */
GMEM__FN int gmem__tune_fits(gmem__tune_set_id id, const gmem__tune_point *point, const gmem__cl_limits *limits);
/* Sets the parameters of one of CLBlast's kernels for the device, in the whole process. Errors: E_DEVICE. */
GMEM__FN gmem_status gmem__tune_apply(const struct gmem__device *device, gmem__tune_set_id id,
                                      const gmem__tune_point *point, gmem_error *error);

/* The tiles' part of a point, and back. */
GMEM__FN void gmem__tune_get_tiles(const gmem__cl_tiles *tiles, gmem__tune_set_id id, gmem__tune_point *out);
GMEM__FN void gmem__tune_set_tiles(gmem__cl_tiles *tiles, gmem__tune_set_id id, const gmem__tune_point *point);

/* All that the file of a device holds. */
typedef struct gmem__tune_found {
    gmem__cl_tuning tuning;
    int has[GMEM__TUNE_CLBLAST_SETS];
    gmem__tune_point points[GMEM__TUNE_CLBLAST_SETS];
} gmem__tune_found;
GMEM__FN const char *gmem__way_name(gmem__cl_way way); /* "tile" */
/* What the folder's file holds and this device can do, if there is one; nothing is applied. */
GMEM__FN int gmem__tune_load(const struct gmem__device *device, const char *cache_dir, gmem__tune_found *out);
GMEM__FN gmem_status gmem__tune_save(const struct gmem__device *device, const char *cache_dir,
                                     const gmem__tune_found *found, gmem_error *error);

#endif /* GMEM_NO_OPENCL */
#endif /* GMEM__TUNE_H */
