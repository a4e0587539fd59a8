// Rotary position embeddings (rotary.cuh), for every card.
#include "rotary.cuh"
