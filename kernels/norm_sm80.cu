// The join of a layer's branches (norm.cuh), for every card.
#include "norm.cuh"
