// Linear layers for the target that this file is compiled for.

#include <algorithm>
#include <vector>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#include "attention.h"
#include "linear.h"
#include "vectors.h"

#include "linear.inc"

// 0, or 1 where kind or type are none of those that linear.h names.
extern "C" __attribute__((visibility("default"))) int penstock_linear(const PenstockLinear* a) {
    bool wide = a->type == PENSTOCK_FLOAT32;
    if (!wide && a->type != PENSTOCK_BFLOAT16) return 1;
    switch (a->kind) {
        case PENSTOCK_PACKED_FLOAT32: wide ? run_float<float, float>(*a) : run_float<float, BFloat16>(*a); return 0;
        case PENSTOCK_PACKED_BFLOAT16:
            wide ? run_float<BFloat16, float>(*a) : run_float<BFloat16, BFloat16>(*a);
            return 0;
        case PENSTOCK_PACKED_INT8: wide ? run_bytes<float>(*a) : run_bytes<BFloat16>(*a); return 0;
        default: return 1;
    }
}

// Packs a weight [out_features, in_features] of float32 (type 0) or bfloat16 (1). `packed` has room for whole
// panels of 32 outputs: 32 · in_features numbers each, for int8 with in_features rounded up to 4.
extern "C" __attribute__((visibility("default"))) int penstock_pack_linear(
    const void* weight, int32_t type, int32_t out_features, int32_t in_features, int32_t kind, void* packed,
    float* scales, int32_t* offsets
) {
    int panels = (out_features + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
    for (int p = 0; p < panels; p++) {
        std::vector<float> row(in_features);
        for (int n = 0; n < PANEL; n++) {
            int output = p * PANEL + n;
            bool there = output < out_features;
            if (there && type == PENSTOCK_FLOAT32)
                memcpy(row.data(), (const float*)weight + (int64_t)output * in_features, in_features * 4);
            else if (there)
                widen_row((const BFloat16*)weight + (int64_t)output * in_features, row.data(), in_features);
            else
                std::fill(row.begin(), row.end(), 0.0f);
            if (kind == PENSTOCK_PACKED_INT8) {
                int quads = (in_features + 3) / 4;
                int8_t* to = (int8_t*)packed + (int64_t)p * PANEL * 4 * quads;
                float top = 0;
                for (float w : row) top = std::max(top, w < 0 ? -w : w);
                float factor = top > 0 ? 127.0f / top : 0.0f;
                int32_t total = 0;
                for (int k = 0; k < quads * 4; k++) {
                    int32_t code = k < in_features ? (int32_t)__builtin_nearbyintf(row[k] * factor) : 0;
                    to[((int64_t)k / 4 * PANEL + n) * 4 + k % 4] = (int8_t)code;
                    total += code;
                }
                if (there) scales[output] = top / 127.0f, offsets[output] = 128 * total;
            } else if (kind == PENSTOCK_PACKED_FLOAT32) {
                float* to = (float*)packed + (int64_t)p * PANEL * in_features;
                for (int k = 0; k < in_features; k++) to[(int64_t)k * PANEL + n] = row[k];
            } else {
                BFloat16* to = (BFloat16*)packed + (int64_t)p * PANEL * in_features;
                for (int k = 0; k < in_features; k++) {
                    BFloat16 rounded[LANES];
                    store(rounded, splat(row[k]));
                    to[(int64_t)k * PANEL + n] = rounded[0];
                }
            }
        }
    }
    return 0;
}
