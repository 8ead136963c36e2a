// One instruction set's kernels, in the order in which they build on each other.
#include "vector.h"
#include "matrix.h"
#include "place.h"
#include "layers.h"
#include "compact.h"
#include "lstm.h"
#include "executor.h"
#include "quantizer.h"
