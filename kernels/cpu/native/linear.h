// Linear layers y = x · Wᵀ + b on packed weights. Plain C.
#pragma once

#include <stdint.h>

// How a weight is packed and multiplied. A row's sums don't depend on the rows beside it.
enum {
    PENSTOCK_FLOAT32_SUMS = 0,     // float32; float32 multiplied and added at once, in order of k
    PENSTOCK_BFLOAT16_SUMS = 1,    // bfloat16, widened; likewise
    PENSTOCK_FLOAT16_SUMS = 2,     // float16, widened; likewise
    PENSTOCK_INT8_DOTS = 3,        // int8 with a scale for each output; x in bytes with one for each row; exact sums
    PENSTOCK_BFLOAT16_DOTS = 4,    // bfloat16, x rounded to it; pairs of products added to float32 (AVX512-BF16)
    PENSTOCK_FLOAT16_PRODUCTS = 5, // float16 with powers of two as scales of outputs and of rows; sums of 64 in
                                   // float16, of those in float32 (AVX512-FP16)
};

// What belongs to the weight comes first.
typedef struct {
    const void* weight;      // packed
    const float* scales;     // [out_features] by which sums are multiplied, for kinds that have them
    const int32_t* offsets;  // int8: [out_features] 128 · the sum of a row's numbers
    const float* bias;       // [out_features] or null
    int32_t in_features;
    int32_t out_features;
    int32_t kind;
    int32_t type;            // of x and out: see attention.h
    const void* x;           // [rows, in_features], rows x_stride apart
    void* out;               // [rows, out_features]
    int64_t x_stride;
    int32_t rows;
} PenstockLinear;

// Rows of a packed weight, as numbers again.
typedef struct {
    const void* weight;  // as PenstockLinear has them
    const float* scales;
    const int64_t* ids;  // [rows]
    float* out;          // [rows, in_features]
    int32_t in_features;
    int32_t out_features;
    int32_t kind;
    int32_t rows;
} PenstockUnpack;
