// Rows of any width, a vector at a time.
//
// What is left over at a row's end goes through the same vector operations as the rest, so that a number's bits
// do not depend on where in a row it stands; and a row is one thread's, so that neither do they on threads.
#pragma once

#include "vectors.h"

namespace penstock {

// A parallel region costs some microseconds, and a lot more where cores are shared: what has fewer numbers than
// this, some 10 microseconds' work, is done by the calling thread.
constexpr int64_t WORTH_THREADS = 32768;

// Up to LANES numbers; where fewer are left, `fill` for the others.
static inline Floats get(const float* from, int64_t left, float fill = 0.0f) {
    if (left >= LANES) return load(from);
    float padded[LANES];
    store(padded, splat(fill));
    memcpy(padded, from, left * sizeof(float));
    return load(padded);
}

template <typename T>
static inline void put(T* to, int64_t left, Floats x) {
    if (left >= LANES) return store(to, x);
    T padded[LANES];
    store(padded, x);
    memcpy(to, padded, left * sizeof(T));
}

// The sum of f(place) over the places of a row's vectors, in an order that its width alone sets.
template <typename F>
static inline float sum_of_row(int64_t width, F f) {
    Floats parts[4] = {};
    int64_t at = 0;
    for (; at + 4 * LANES <= width; at += 4 * LANES)
        for (int i = 0; i < 4; i++) parts[i] += f(at + i * LANES);
    for (; at < width; at += LANES) parts[0] += f(at);
    return sum((parts[0] + parts[1]) + (parts[2] + parts[3]));
}

// e^x for any x: infinite above 88.37, NaN where x is.
static inline Floats exponential_of_any(Floats x) {
    Floats most = splat(88.37f);
    Floats result = exponential(where(x > most, most, x));
    result = where(x > most, splat(__builtin_inff()), result);
    return where(x != x, x, result);
}

}  // namespace penstock
