/* RMSNorm on a CPU; the code is in kernels/native/norm.h. */
#include <math.h>
#include <omp.h>

#define CENTRED 0
#include "norm.h"
