/* Eigen-decomposition of symmetric matrices. */
#ifndef GMEM__EIGEN_H
#define GMEM__EIGEN_H

#include "internal.h"

/* a (n, n) symmetric and finite, of which the lower triangle is read: on return its rows are orthonormal eigenvectors,
 * and values (n) their eigenvalues, the largest first. work (n). Errors are of the order of 1e-16 |a|.
 * 0 where the iteration does not end, which no matrix is known to make it. */
GMEM__FN int gmem__eigen_symmetric(double *a, int64_t n, double *values, double *work);

#endif /* GMEM__EIGEN_H */
