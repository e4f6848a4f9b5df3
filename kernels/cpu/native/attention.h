// Causal attention over a paged KV cache, in place. Plain C: no type of another library crosses it.
#pragma once

#include <stdint.h>

enum { PENSTOCK_FLOAT32 = 0, PENSTOCK_BFLOAT16 = 1, PENSTOCK_FLOAT16 = 2, PENSTOCK_INT8 = 3 };

// See kernels/attention.py, whose names these are. Strides count elements.
typedef struct {
    const void* q;       // [tokens, heads, head_dim], rows q_stride apart
    const void* keys;    // [blocks, kv_heads, head_dim, block_size]
    const void* values;  // [blocks, kv_heads, block_size, head_dim]
    const float* key_scales;    // [blocks, kv_heads, block_size]: of a cache in 8 bits, what each key is multiplied by
    const float* value_scales;  // likewise
    void* out;           // [tokens, heads, head_dim]
    const int32_t* cu_seqlens_q;
    const int32_t* context_lens;
    const int32_t* block_tables;
    const float* slopes;  // [heads], or null
    const int32_t* tiles; // [num_tiles, 3]: sequence, first query of the tile, number of queries
    int64_t q_stride;
    int64_t table_stride;
    int32_t num_tiles;
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t heads_at_once;  // KV heads of a unit of work at most, a divisor of their number; with all queries ≤ 128 rows
    int32_t head_dim;       // at most 256
    int32_t block_size;
    int32_t window;  // 0: all that came before
    float scale;
    float soft_cap;  // 0: none
    int32_t q_type;
    int32_t cache_type;
} PenstockAttention;

// The tiles of a step: up to `most_queries` consecutive queries of a sequence each, those with most to do first.
// Sequences without a context have none.
typedef struct {
    const int32_t* cu_seqlens_q;  // [num_seqs + 1]
    const int32_t* context_lens;  // [num_seqs]
    int32_t* tiles;               // [num_tiles, 3]
    int32_t num_seqs;
    int32_t most_queries;
    int32_t num_tiles;
} PenstockTiles;
