// Linear layers for the target that this file is compiled for.

#include <algorithm>
#include <numeric>
#include <vector>

#include "formats.h"
#include "operations.h"

#include "linear.inc"

namespace {

// Calls f with the Format of a kind; returns false where this target has none.
template <typename F>
bool with_format(int kind, F f) {
    switch (kind) {
        case PENSTOCK_FLOAT32_SUMS: f(Widened<float>{}); return true;
        case PENSTOCK_BFLOAT16_SUMS: f(Widened<BFloat16>{}); return true;
        case PENSTOCK_FLOAT16_SUMS: f(Widened<Float16>{}); return true;
        case PENSTOCK_INT8_DOTS: f(Bytes{}); return true;
#if defined(__AVX512BF16__)
        case PENSTOCK_BFLOAT16_DOTS: f(Pairs{}); return true;
#endif
#if defined(__AVX512FP16__) || defined(PENSTOCK_EMULATE_FLOAT16)
        case PENSTOCK_FLOAT16_PRODUCTS: f(Products{}); return true;
#endif
        default: return false;
    }
}

}  // namespace

// Whether this target computes a kind.
extern "C" __attribute__((visibility("default"))) int penstock_has_linear(int32_t kind) {
    return with_format(kind, [](auto) {});
}

int64_t penstock::linear_scratch(const PenstockLinear& a) {
    return a.rows * ((int64_t)a.in_features * sizeof(float) + 256);  // of the widest inputs, see Layer::stride
}

int penstock::linear(const PenstockLinear& a, Team& team) {
    if (a.type < PENSTOCK_FLOAT32 || a.type > PENSTOCK_FLOAT16) return 1;
    return !with_format(a.kind, [&](auto format) { Layer<decltype(format)>(a, team.scratch()).run(team); });
}

int penstock::unpack(const PenstockUnpack& a, Team& team) {
    for (int i = 0; i < a.rows; i++) {
        if (a.ids[i] < 0 || a.ids[i] >= a.out_features) return 1;
    }
    return !with_format(a.kind, [&](auto format) {
        team.share(true, a.rows, [&](int64_t i) { Layer<decltype(format)>::unpack(a, i); });
    });
}

// 0, or 1 where kind or type are none that this target has.
extern "C" __attribute__((visibility("default"))) int penstock_linear(const PenstockLinear* a) {
    TeamState state;
    state.scratch = kept_scratch(linear_scratch(*a));
    return with_team(true, state, [=](Team& team) { return linear(*a, team); });
}

// 0, or 1 where an id is none of the weight's or the kind none that this target has.
extern "C" __attribute__((visibility("default"))) int penstock_unpack(const PenstockUnpack* a) {
    return with_team(false, [=](Team& team) { return unpack(*a, team); });
}

// Packs a weight [out_features, in_features] of a type that attention.h names, for the sizes and the kind of `a`.
// `packed` has room for whole panels of 32 outputs, 32 · in_features numbers each, for kinds that take several at
// once with in_features rounded up to 4. a's scales and offsets are written where they are not null. Returns what
// `penstock_linear` returns.
extern "C" __attribute__((visibility("default"))) int penstock_pack_linear(
    const void* weight, int32_t type, const PenstockLinear* a, void* packed
) {
    if (type < PENSTOCK_FLOAT32 || type > PENSTOCK_FLOAT16) return 1;
    return !with_format(a->kind, [&](auto format) {
        typedef Layer<decltype(format)> Packing;
        int panels = (a->out_features + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(dynamic, 1)
        for (int p = 0; p < panels; p++) Packing::pack(weight, type, *a, (typename Packing::Number*)packed, p);
    });
}
