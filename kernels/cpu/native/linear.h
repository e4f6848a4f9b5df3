// Linear layers y = x · Wᵀ + b on packed weights. Plain C.
#pragma once

#include <stdint.h>

// How a weight is stored. Products of the first two are summed in float32 by fused multiplication, in order of k,
// a row's in the same way whatever rows stand beside it; those of int8 are exact integers.
enum {
    PENSTOCK_PACKED_FLOAT32 = 0,
    PENSTOCK_PACKED_BFLOAT16 = 1,
    PENSTOCK_PACKED_FLOAT16 = 2,
    PENSTOCK_PACKED_INT8 = 3,
};

typedef struct {
    const void* weight;  // packed
    const float* scales;  // int8: [out_features] by which sums are multiplied; else null
    const int32_t* offsets;  // int8: [out_features] 128 · the sum of a row's numbers
    const float* bias;  // [out_features] or null
    const void* x;  // [rows, in_features], rows x_stride apart
    void* out;  // [rows, out_features]
    int64_t x_stride;
    int32_t rows;
    int32_t in_features;
    int32_t out_features;
    int32_t kind;
    int32_t type;  // of x and out: see attention.h
} PenstockLinear;
