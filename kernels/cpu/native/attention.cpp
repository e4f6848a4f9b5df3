// Attention for the target that this file is compiled for.

#include <memory>

#include "attention.h"
#include "vectors.h"

#include "attention.inc"

namespace {

template <typename Q, typename C>
bool run_chunks(const PenstockAttention& a) {
    switch ((a.head_dim + LANES - 1) / LANES) {
        case 1: run_tiles<1, Q, C>(a); return true;
        case 2: run_tiles<2, Q, C>(a); return true;
        case 3: case 4: run_tiles<4, Q, C>(a); return true;
        case 5: run_tiles<5, Q, C>(a); return true;
        case 6: run_tiles<6, Q, C>(a); return true;
        case 7: case 8: run_tiles<8, Q, C>(a); return true;
        case 9: case 10: case 11: case 12: run_tiles<12, Q, C>(a); return true;
        case 13: case 14: case 15: case 16: run_tiles<16, Q, C>(a); return true;
        default: return false;
    }
}

}  // namespace

// 0, or 1 where types or sizes are none of those that attention.h names.
extern "C" __attribute__((visibility("default"))) int penstock_attention(const PenstockAttention* a) {
    bool done = false;
    if (a->q_type == PENSTOCK_FLOAT32 && a->cache_type == PENSTOCK_FLOAT32) done = run_chunks<float, float>(*a);
    if (a->q_type == PENSTOCK_FLOAT32 && a->cache_type == PENSTOCK_BFLOAT16) done = run_chunks<float, BFloat16>(*a);
    if (a->q_type == PENSTOCK_FLOAT32 && a->cache_type == PENSTOCK_FLOAT16) done = run_chunks<float, Float16>(*a);
    if (a->q_type == PENSTOCK_BFLOAT16 && a->cache_type == PENSTOCK_BFLOAT16)
        done = run_chunks<BFloat16, BFloat16>(*a);
    if (a->q_type == PENSTOCK_FLOAT16 && a->cache_type == PENSTOCK_FLOAT16)
        done = run_chunks<Float16, Float16>(*a);
    return done ? 0 : 1;
}
