// Rotary position embeddings (rotary.cuh), for Hopper: with programmatic dependent launch.
#include "rotary.cuh"
