#include "lstm.h"
