// The inner loop of every product: some rows of x with one panel of a matrix, summed in registers.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace penstock {

constexpr int PANEL = 2 * LANES;  // columns of a panel, side by side for each k

// Rows at most at once: their sums, an input and the panel's vectors fill the registers.
constexpr int ROWS = REGISTER == 64 ? 12 : 6;

// Calls f with m as a constant, 1 ≤ m ≤ M: loops over it are unrolled.
template <int M = ROWS, typename F>
inline void with_rows(int m, F f) {
    if constexpr (M > 1) {
        if (m < M) return with_rows<M - 1>(m, f);
    }
    f(std::integral_constant<int, M>{});
}

// Whether the sums of M rows with both of a panel's vectors are more than there are registers for: its halves then take turns.
template <int M>
constexpr bool TAKE_TURNS = REGISTER < 64 && M * 2 > ROWS;

// sums[m][first + v] += x[m, k] · the v-th vector of panel[k] from the first on, V of them.
template <typename W, int M, int V>
inline void multiply_columns(
    const float* x, int64_t stride, const W* panel, int k_count, Floats (*sums)[2], int first
) {
    Floats of[M][V];
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) of[m][v] = sums[m][first + v];
    for (int k = 0; k < k_count; k++) {
        Floats at[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) at[v] = load(panel + (int64_t)k * PANEL + (first + v) * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            Floats each = splat(x[m * stride + k]);
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) of[m][v] = fused(each, at[v], of[m][v]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) sums[m][first + v] = of[m][v];
}

// sums[m] += x[m, k] · panel[k], in order of k, by fused multiplication.
template <typename W, int M>
inline void multiply(const float* x, int64_t stride, const W* panel, int k_count, Floats (*sums)[2]) {
    if constexpr (TAKE_TURNS<M>) {
        for (int first = 0; first < 2; first++) multiply_columns<W, M, 1>(x, stride, panel, k_count, sums, first);
    } else multiply_columns<W, M, 2>(x, stride, panel, k_count, sums, 0);
}

}  // namespace penstock
