// Root mean square norm and layer norm. Plain C.
#pragma once

#include <stdint.h>

// See kernels/norm.py. All numbers are float32; strides count elements.
typedef struct {
    const float* x;  // [rows, heads, width], rows x_stride and heads head_stride apart
    float* residual;  // [rows, width] to which x is added first, then normed in its stead; or null
    const float* weight;  // [heads, width]
    const float* bias;  // likewise, or null
    float* out;  // [rows, heads, width]
    int64_t x_stride;
    int64_t head_stride;
    int32_t rows;
    int32_t heads;  // 1 with a residual
    int32_t width;
    int32_t centred;  // layer norm: the mean is taken from x first
    float eps;
} PenstockNorm;
