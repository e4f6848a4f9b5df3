// A row of logits, in spans.
//
// Of each span the greatest number of every lane is kept: what lies above a bound is then found without looking
// at the row again but in the spans that hold some of it.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "rows.h"

namespace penstock {

constexpr int64_t SPAN = 64 * LANES;
constexpr float INFINITE = __builtin_inff();

typedef Vector<double, LANES>::Type Doubles;

static inline Doubles widened(Floats x) {
    return convert<Doubles>(x);
}

// The sum of the lanes, from the first to the last.
static inline double total_of(Doubles x) {
    double total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

// Whether any lane of a comparison is true.
template <typename V>
PENSTOCK_INLINE bool any(V mask) {
    if constexpr (Lanes<V>::HALVES) return any(mask.low | mask.high);
    else {
#if defined(__AVX512F__)
        return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
        return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
        int64_t pairs[sizeof mask / sizeof(int64_t)], found = 0;
        memcpy(pairs, &mask, sizeof mask);
        for (int64_t pair : pairs) found |= pair;
        return found != 0;
#endif
    }
}

static inline int64_t num_spans(int64_t size) {
    return (size + SPAN - 1) / SPAN;
}

// A vector of a row; past its end, -inf.
static inline Floats logits_at(const float* row, int64_t size, int64_t at) {
    return get(row + at, size - at, -INFINITE);
}

// The greatest of every lane of a span; `is_nan` is set where one is none.
static inline Floats span_maxima(const float* row, int64_t size, int64_t start, Ints& is_nan) {
    Floats most[4];
    for (int i = 0; i < 4; i++) most[i] = splat(-INFINITE);
    int64_t end = std::min(start + SPAN, size);
    for (int64_t at = start; at < end; at += 4 * LANES) {
        for (int i = 0; i < 4; i++) {
            if (at + i * LANES >= end) break;
            Floats x = logits_at(row, size, at + i * LANES);
            is_nan |= x != x;
            most[i] = greater(x, most[i]);
        }
    }
    for (int i = 1; i < 4; i++) most[0] = greater(most[i], most[0]);
    return most[0];
}

// All spans' maxima, LANES each. Returns the greatest; NaN where the row holds one.
static inline float row_maxima(const float* row, int64_t size, std::vector<float>& maxima) {
    maxima.resize(num_spans(size) * LANES);
    Floats most = splat(-INFINITE);
    Ints is_nan = {};
    for (int64_t span = 0; span < num_spans(size); span++) {
        Floats x = span_maxima(row, size, span * SPAN, is_nan);
        store(maxima.data() + span * LANES, x);
        most = greater(x, most);
    }
    return any(is_nan) ? __builtin_nanf("") : greatest(most);
}

// The nth greatest of some numbers, none of them NaN, which are put in another order. 1 ≤ nth ≤ their number.
static inline float nth_greatest(std::vector<float>& numbers, int64_t nth) {
    std::nth_element(numbers.begin(), numbers.begin() + (nth - 1), numbers.end(), std::greater<float>());
    return numbers[nth - 1];
}

}  // namespace penstock
