// What is made of logits: the greatest, draws, masks and log-probabilities. Plain C.
#pragma once

#include <stdint.h>

// See kernels/sample.py, whose names these are.
typedef struct {
    const float* logits;  // [rows, vocab_size], rows stride apart
    const float* uniforms;  // [rows]
    const float* temperature;
    const int64_t* top_k;
    const float* top_p;
    const float* min_p;
    int64_t* tokens;  // [rows]
    int64_t stride;
    int64_t rows;
    int64_t vocab_size;
} PenstockSample;

// See kernels/logprob.py, whose names these are.
typedef struct {
    const float* logits;  // [rows, vocab_size], rows stride apart
    const int64_t* token_ids;  // [rows]
    float* chosen;  // [rows]
    int64_t* ranks;
    int64_t* top_ids;  // [rows, num_top]
    float* top;
    int64_t stride;
    int64_t rows;
    int64_t vocab_size;
    int64_t num_top;
} PenstockLogprobs;
