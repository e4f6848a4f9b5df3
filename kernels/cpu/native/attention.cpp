// Attention for the target that this file is compiled for.

#include <memory>

#include "attention.h"
#include "panel.h"
#include "vectors.h"

#include "attention.inc"

// 0, or 1 where types or sizes are none of those that attention.h names.
extern "C" __attribute__((visibility("default"))) int penstock_attention(const PenstockAttention* a) {
    if (a->q_type < PENSTOCK_FLOAT32 || a->q_type > PENSTOCK_FLOAT16) return 1;
    if (a->head_dim < 1 || a->head_dim > MOST_CHANNELS) return 1;
    switch (a->cache_type) {
        case PENSTOCK_FLOAT32: run_tiles<float>(*a); return 0;
        case PENSTOCK_BFLOAT16: run_tiles<BFloat16>(*a); return 0;
        case PENSTOCK_FLOAT16: run_tiles<Float16>(*a); return 0;
        default: return 1;
    }
}
