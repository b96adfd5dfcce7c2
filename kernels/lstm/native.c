#include "lstm.h"
#include "recurrent_gradient.h"
