/* LayerNorm on a CPU; the code is in kernels/native/norm.h. */
#include <math.h>
#include <omp.h>

#define CENTRED 1
#include "norm.h"
