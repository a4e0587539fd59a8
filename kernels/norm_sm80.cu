// The join of a layer's branches (norm.cuh, norm_rows.cuh), for every card.
#include "norm_rows.cuh"
