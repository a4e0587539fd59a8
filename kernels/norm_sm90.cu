// The join of a layer's branches (norm.cuh), for Hopper: with programmatic dependent launch.
#include "norm.cuh"
