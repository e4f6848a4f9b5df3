// Activations of an MLP. Plain C.
#pragma once

#include <stdint.h>

enum { PENSTOCK_SILU = 0, PENSTOCK_GELU = 1, PENSTOCK_GELU_TANH = 2, PENSTOCK_RELU = 3 };

// See kernels/activation.py. All numbers are float32.
typedef struct {
    const float* x;  // [rows, width], or gated [rows, 2 · width]: what is activated, then by what it is multiplied
    float* out;  // [rows, width]
    int64_t rows;
    int64_t width;
    int32_t activation;
    int32_t gated;
} PenstockActivation;
