// The join of a layer's branches (norm.cuh, norm_rows.cuh), for Hopper: with programmatic dependent launch.
#include "norm_rows.cuh"
