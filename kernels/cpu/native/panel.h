// The inner loop of every product: some rows of x with one panel of a matrix, summed in registers.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace penstock {

constexpr int PANEL = 2 * LANES;  // columns of a panel, side by side for each k

// Rows at most at once: their sums, an input and the panel's two vectors fill the registers.
#if defined(__AVX512F__)
constexpr int ROWS = 12;
#else
constexpr int ROWS = 3;
#endif

// Calls f with m as a constant, 1 ≤ m ≤ M: loops over it are unrolled.
template <int M = ROWS, typename F>
inline void with_rows(int m, F f) {
    if constexpr (M > 1) {
        if (m < M) return with_rows<M - 1>(m, f);
    }
    f(std::integral_constant<int, M>{});
}

// sums[m] += x[m, k] · panel[k], in order of k, by fused multiplication.
template <typename W, int M>
inline void multiply(const float* x, int64_t stride, const W* panel, int k_count, Floats (*sums)[2]) {
    Floats low[M], high[M];
    for (int m = 0; m < M; m++) low[m] = sums[m][0], high[m] = sums[m][1];
    for (int k = 0; k < k_count; k++) {
        Floats a = load(panel + (int64_t)k * PANEL), b = load(panel + (int64_t)k * PANEL + LANES);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            Floats at = splat(x[m * stride + k]);
            low[m] = fused(at, a, low[m]);
            high[m] = fused(at, b, high[m]);
        }
    }
    for (int m = 0; m < M; m++) sums[m][0] = low[m], sums[m][1] = high[m];
}

}  // namespace penstock
