// The greatest of each row, masks, and uniform draws, for the target that this file is compiled for.

#include "spans.h"

namespace {

using namespace penstock;

template <typename F>
int64_t first_of_span(int64_t start, int64_t size, F is_it) {
    int64_t at = start, end = std::min(start + SPAN, size);
    while (at < end && !is_it(at)) at++;
    return at;
}

// The first of the greatest, or the first NaN.
int64_t argmax_of_row(const float* row, int64_t size) {
    float best = -INFINITE;
    int64_t holder = 0;
    for (int64_t start = 0; start < size; start += SPAN) {
        Ints is_nan = {};
        float most = greatest(span_maxima(row, size, start, is_nan));
        if (any(is_nan)) return first_of_span(start, size, [&](int64_t at) { return row[at] != row[at]; });
        if (most > best) best = most, holder = start;
    }
    return first_of_span(holder, size, [&](int64_t at) { return row[at] == best; });
}

void mask_row(float* row, int64_t size, const uint32_t* bits) {
    const Ints lanes = lane_numbers();
    for (int64_t at = 0; at < size; at += LANES) {
        int32_t half = bits[at / 32] >> at % 32 & 0xFFFF;
        Ints allowed = (splat<Ints>(half) >> lanes & 1) != 0;
        Floats x = get(row + at, size - at);
        put(row + at, size - at, where(allowed, x, splat(-INFINITE)));
    }
}

// The first word of Philox4x32-10, see kernels/philox.py.
uint32_t philox(uint64_t key, uint32_t c0, uint32_t c1) {
    uint32_t c2 = 0, c3 = 0, k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t first = (uint64_t)c0 * 0xD2511F53, second = (uint64_t)c2 * 0xCD9E8D57;
        c0 = (uint32_t)(second >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)second;
        c2 = (uint32_t)(first >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)first;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return c0;
}

}  // namespace

// See kernels/argmax.py. logits: [rows, size], rows stride apart.
extern "C" __attribute__((visibility("default"))) void penstock_argmax(
    const float* logits, int64_t stride, int64_t rows, int64_t size, int64_t* tokens
) {
#pragma omp parallel for schedule(static) if (rows > 1 && rows * size >= 4 * WORTH_THREADS)
    for (int64_t row = 0; row < rows; row++) tokens[row] = argmax_of_row(logits + row * stride, size);
}

// See kernels/mask.py. bits: [rows, words] for the rows of `logits` [any, size] that `index` names.
extern "C" __attribute__((visibility("default"))) void penstock_mask(
    float* logits, int64_t size, const int64_t* index, const uint32_t* bits, int64_t rows
) {
    int64_t words = (size + 31) / 32;
#pragma omp parallel for schedule(static) if (rows > 1 && rows * size >= 4 * WORTH_THREADS)
    for (int64_t row = 0; row < rows; row++) mask_row(logits + index[row] * size, size, bits + row * words);
}

// See `kernels.philox.uniform`: 24 bits of the first word.
extern "C" __attribute__((visibility("default"))) void penstock_uniform(
    const int64_t* seeds, const int64_t* output_indices, const int64_t* samples, float* uniforms, int64_t rows
) {
    for (int64_t row = 0; row < rows; row++) {
        uint32_t word = philox((uint64_t)seeds[row], (uint32_t)output_indices[row], (uint32_t)samples[row]);
        uniforms[row] = (float)(word >> 8) * 0x1p-24f;
    }
}
