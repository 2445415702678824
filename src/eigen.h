/* Eigen-decomposition of symmetric matrices. */
#ifndef GMEM__EIGEN_H
#define GMEM__EIGEN_H

#include "internal.h"

#define GMEM__EIGEN_MOST   16384 /* rows of a matrix */
#define GMEM__EIGEN_SWEEPS 32    /* of which the turns are kept */

/* Doubles of work for a matrix of n rows. */
#define GMEM__EIGEN_WORK(n) ((2 * GMEM__EIGEN_SWEEPS + 1) * (n))

/* a (n, n) symmetric and finite, n at most GMEM__EIGEN_MOST, of which the lower triangle is read: on return its rows
 * are orthonormal eigenvectors, and values (n) their eigenvalues, the largest first. work (GMEM__EIGEN_WORK(n)). Errors
 * are of the order of 1e-16 |a|. Runs on the engine's threads, on which the result does not depend. 0 where the
 * iteration does not end, which no matrix is known to make it. */
GMEM__FN int gmem__eigen_symmetric(const gmem__engine *engine, double *a, int64_t n, double *values, double *work);

#endif /* GMEM__EIGEN_H */
