// What is done number by number, and rows of tables. Plain C.
#pragma once

#include <stdint.h>

enum { PENSTOCK_ADD = 0, PENSTOCK_SCALE = 1, PENSTOCK_COPY = 2 };

// See kernels/elements.py. Strides count elements.
typedef struct {
    const float* x;  // [rows, width], rows x_stride apart
    float* to;       // [rows, width], rows to_stride apart: what x is added or copied to; of PENSTOCK_SCALE x
    int64_t x_stride;
    int64_t to_stride;
    int64_t rows;
    int32_t width;
    int32_t operation;
    float factor;    // by which, of PENSTOCK_SCALE
} PenstockElements;

// out[i] = table[ids[i]], in float32.
typedef struct {
    const void* table;   // [entries, width]
    const int64_t* ids;  // [rows]
    float* out;          // [rows, width]
    int64_t entries;
    int64_t rows;
    int64_t width;
    int32_t type;  // of the table: see attention.h
} PenstockTake;
