// Heads of queries, keys and values: normed, turned, and put where attention reads them. Plain C.
#pragma once

#include <stdint.h>

// See kernels/qkv.py. Numbers are float32 but for the caches'; strides count elements.
typedef struct {
    const float* queries;  // [rows, heads, head_dim]; keys and values: [rows, kv_heads, head_dim]
    const float* keys;
    const float* values;
    const float* weight;  // [heads + kv_heads, head_dim]: of each head's root mean square norm; or null
    const float* cos;  // [rows, half]: the pair (i, i + half) of queries and keys turns; or null
    const float* sin;  // likewise
    const int64_t* slots;  // [rows]: where keys and values go
    float* out;  // [rows, heads, head_dim]
    void* key_cache;    // of type cache_type: see attention.h
    void* value_cache;
    float* key_scales;  // of caches in 8 bits: see attention.h
    float* value_scales;
    int64_t query_stride;  // between rows
    int64_t key_stride;
    int64_t value_stride;
    int32_t rows;
    int32_t heads;  // of queries; may be 0
    int32_t kv_heads;  // likewise
    int32_t head_dim;
    int32_t half;  // 2 · half ≤ head_dim
    int32_t cache_type;
    int32_t block_size;
    float eps;
} PenstockHeads;
