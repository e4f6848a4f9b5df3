// Linear layers for the target that this file is compiled for.

#include <algorithm>
#include <vector>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#include "attention.h"
#include "linear.h"
#include "panel.h"
#include "vectors.h"

#include "linear.inc"

namespace {

template <typename T>
int run(const PenstockLinear& a) {
    switch (a.kind) {
        case PENSTOCK_PACKED_FLOAT32: run_float<float, T>(a); return 0;
        case PENSTOCK_PACKED_BFLOAT16: run_float<BFloat16, T>(a); return 0;
        case PENSTOCK_PACKED_FLOAT16: run_float<Float16, T>(a); return 0;
        case PENSTOCK_PACKED_INT8: run_bytes<T>(a); return 0;
        default: return 1;
    }
}

template <typename T>
void widen_any(const void* weight, int64_t output, int32_t in_features, float* to) {
    widen_row((const T*)weight + output * in_features, to, in_features);
}

// One row of a panel as numbers of type W.
template <typename W>
void put_row(const std::vector<float>& row, void* packed, int64_t panel, int n) {
    W* to = (W*)packed + panel * PANEL * (int64_t)row.size();
    for (size_t k = 0; k < row.size(); k++) {
        W rounded[LANES];
        store(rounded, splat(row[k]));
        to[(int64_t)k * PANEL + n] = rounded[0];
    }
}

// One row of a panel as bytes; returns by what they are to be multiplied, and 128 times their sum.
std::pair<float, int32_t> put_bytes(const std::vector<float>& row, void* packed, int64_t panel, int n) {
    int in_features = (int)row.size(), quads = (in_features + 3) / 4;
    int8_t* to = (int8_t*)packed + panel * PANEL * 4 * quads;
    float top = 0;
    for (float w : row) top = std::max(top, w < 0 ? -w : w);
    float factor = top > 0 ? 127.0f / top : 0.0f;
    int32_t total = 0;
    for (int k = 0; k < quads * 4; k++) {
        int32_t code = k < in_features ? (int32_t)__builtin_nearbyintf(row[k] * factor) : 0;
        to[((int64_t)k / 4 * PANEL + n) * 4 + k % 4] = (int8_t)code;
        total += code;
    }
    return {top / 127.0f, 128 * total};
}

}  // namespace

// 0, or 1 where kind or type are none of those that linear.h names.
extern "C" __attribute__((visibility("default"))) int penstock_linear(const PenstockLinear* a) {
    switch (a->type) {
        case PENSTOCK_FLOAT32: return run<float>(*a);
        case PENSTOCK_BFLOAT16: return run<BFloat16>(*a);
        case PENSTOCK_FLOAT16: return run<Float16>(*a);
        default: return 1;
    }
}

// Packs a weight [out_features, in_features] of a type that attention.h names. `packed` has room for whole panels
// of 32 outputs: 32 · in_features numbers each, for int8 with in_features rounded up to 4. Scales and offsets are
// written for int8 alone. Returns what `penstock_linear` returns.
extern "C" __attribute__((visibility("default"))) int penstock_pack_linear(
    const void* weight, int32_t type, int32_t out_features, int32_t in_features, int32_t kind, void* packed,
    float* scales, int32_t* offsets
) {
    if (type < PENSTOCK_FLOAT32 || type > PENSTOCK_FLOAT16) return 1;
    if (kind < PENSTOCK_PACKED_FLOAT32 || kind > PENSTOCK_PACKED_INT8) return 1;
    int panels = (out_features + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
    for (int p = 0; p < panels; p++) {
        std::vector<float> row(in_features);
        for (int n = 0; n < PANEL; n++) {
            int64_t output = (int64_t)p * PANEL + n;
            bool there = output < out_features;
            if (!there)
                std::fill(row.begin(), row.end(), 0.0f);
            else if (type == PENSTOCK_FLOAT32)
                widen_any<float>(weight, output, in_features, row.data());
            else if (type == PENSTOCK_BFLOAT16)
                widen_any<BFloat16>(weight, output, in_features, row.data());
            else
                widen_any<Float16>(weight, output, in_features, row.data());
            if (kind == PENSTOCK_PACKED_INT8) {
                auto [scale, offset] = put_bytes(row, packed, p, n);
                if (there) scales[output] = scale, offsets[output] = offset;
            } else if (kind == PENSTOCK_PACKED_FLOAT32) {
                put_row<float>(row, packed, p, n);
            } else if (kind == PENSTOCK_PACKED_BFLOAT16) {
                put_row<BFloat16>(row, packed, p, n);
            } else {
                put_row<Float16>(row, packed, p, n);
            }
        }
    }
    return 0;
}
