// Vectors of 16 numbers, whose lanes are float32 or of its size, and how they are read and written.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "wide.h"

namespace penstock {

constexpr int LANES = 16;

typedef Vector<float, LANES>::Type Floats;
typedef Vector<int32_t, LANES>::Type Ints;
typedef Vector<uint32_t, LANES>::Type Words;
typedef Vector<float, REGISTER / sizeof(float)>::Type NativeFloats;
typedef Vector<int32_t, REGISTER / sizeof(int32_t)>::Type NativeInts;
typedef Vector<uint32_t, REGISTER / sizeof(uint32_t)>::Type NativeWords;

template <typename V = Floats>
PENSTOCK_INLINE V splat(typename Lanes<V>::Number x) {
    if constexpr (Lanes<V>::HALVES) return {splat<decltype(V::low)>(x), splat<decltype(V::low)>(x)};
    else return x - V{};  // which GCC sees is x, as it does not of a sum: that may lose a sign
}

// 0, 1, 2 and so on.
PENSTOCK_INLINE Ints lane_numbers() {
    static constexpr int32_t numbers[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return load_as<Ints>(numbers);
}

// bfloat16 is the upper half of a float32.
struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

// A register of numbers, as float32.
PENSTOCK_INLINE NativeFloats load_native(const float* from) {
    return load_as<NativeFloats>(from);
}

PENSTOCK_INLINE void store_native(float* to, NativeFloats x) {
    memcpy(to, &x, sizeof x);
}

// The bits of bfloat16, to nearest, ties to even; NaN stays NaN.
PENSTOCK_INLINE NativeWords rounded_to_bfloat16(NativeFloats x) {
    NativeWords bits = (NativeWords)x;
    NativeWords rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    NativeWords quiet = (bits >> 16) | 0x40;
    NativeWords is_nan = (NativeWords)(x != x);
    return (quiet & is_nan) | (rounded & ~is_nan);
}

// int32 of numbers up to 127 and a little more, to nearest, ties to even.
PENSTOCK_INLINE NativeInts rounded_to_ints(NativeFloats x) {
    return (NativeInts)(x + 12582912.0f) - 0x4B400000;  // 1.5·2^23
}

#if defined(__AVX512F__)

PENSTOCK_INLINE NativeFloats load_native(const BFloat16* from) {
    return (NativeFloats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
}

PENSTOCK_INLINE void store_native(BFloat16* to, NativeFloats x) {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)rounded_to_bfloat16(x)));
}

PENSTOCK_INLINE NativeFloats load_native(const Float16* from) {
    return (NativeFloats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}

PENSTOCK_INLINE void store_native(Float16* to, NativeFloats x) {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}

PENSTOCK_INLINE NativeFloats load_native(const int8_t* from) {
    return (NativeFloats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
}

PENSTOCK_INLINE void store_native(int8_t* to, NativeFloats x) {
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)rounded_to_ints(x)));
}

#elif defined(__AVX2__)

PENSTOCK_INLINE NativeFloats load_native(const BFloat16* from) {
    return (NativeFloats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
}

PENSTOCK_INLINE void store_native(BFloat16* to, NativeFloats x) {
    __m256i words = (__m256i)rounded_to_bfloat16(x);
    __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)to, halves);
}

PENSTOCK_INLINE NativeFloats load_native(const Float16* from) {
    return (NativeFloats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}

PENSTOCK_INLINE void store_native(Float16* to, NativeFloats x) {
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}

PENSTOCK_INLINE NativeFloats load_native(const int8_t* from) {
    return (NativeFloats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}

PENSTOCK_INLINE void store_native(int8_t* to, NativeFloats x) {
    __m256i words = (__m256i)(rounded_to_ints(x) & 0xFF);  // the lowest bytes, of whatever it is
    __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(halves, halves));
}

#else

PENSTOCK_INLINE NativeFloats load_native(const BFloat16* from) {
    NativeWords bits;
    for (int i = 0; i < Lanes<NativeWords>::COUNT; i++) bits[i] = (uint32_t)from[i].bits << 16;
    return (NativeFloats)bits;
}

PENSTOCK_INLINE void store_native(BFloat16* to, NativeFloats x) {
    NativeWords bits = rounded_to_bfloat16(x);
    for (int i = 0; i < Lanes<NativeWords>::COUNT; i++) to[i].bits = (uint16_t)bits[i];
}

PENSTOCK_INLINE NativeFloats load_native(const Float16* from) {
    NativeFloats x;
    for (int i = 0; i < Lanes<NativeFloats>::COUNT; i++) {
        _Float16 half;
        memcpy(&half, from + i, sizeof half);
        x[i] = (float)half;
    }
    return x;
}

PENSTOCK_INLINE void store_native(Float16* to, NativeFloats x) {
    for (int i = 0; i < Lanes<NativeFloats>::COUNT; i++) {
        _Float16 half = (_Float16)x[i];
        memcpy(to + i, &half, sizeof half);
    }
}

PENSTOCK_INLINE NativeFloats load_native(const int8_t* from) {
    NativeFloats x;
    for (int i = 0; i < Lanes<NativeFloats>::COUNT; i++) x[i] = from[i];
    return x;
}

PENSTOCK_INLINE void store_native(int8_t* to, NativeFloats x) {
    NativeInts rounded = rounded_to_ints(x);
    for (int i = 0; i < Lanes<NativeInts>::COUNT; i++) to[i] = (int8_t)rounded[i];
}

#endif

template <typename V = Floats, typename T>
PENSTOCK_INLINE V load(const T* from) {
    if constexpr (Lanes<V>::HALVES) {
        typedef decltype(V::low) Half;
        return {load<Half>(from), load<Half>(from + Lanes<Half>::COUNT)};
    } else return load_native(from);
}

template <typename V, typename T>
PENSTOCK_INLINE void store(T* to, V x) {
    if constexpr (Lanes<V>::HALVES) {
        store(to, x.low);
        store(to + Lanes<decltype(V::low)>::COUNT, x.high);
    } else store_native(to, x);
}

// One number, by way of a vector.
static inline float widen(Float16 x) {
    Float16 padded[LANES] = {x};
    return load(padded)[0];
}

static inline float widen(int8_t x) {
    return x;
}

static inline float widen(float x) {
    return x;
}

static inline float widen(BFloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// The greater of the two; where b is NaN, b.
template <typename V>
PENSTOCK_INLINE V greater(V a, V b) {
    return where(a > b, a, b);
}

// The sum of the lanes, in one order.
template <typename V>
PENSTOCK_INLINE float sum(V x) {
    if constexpr (Lanes<V>::COUNT > 4) return sum(low_half(x) + high_half(x));
    else return (x[0] + x[2]) + (x[1] + x[3]);
}

template <typename V>
PENSTOCK_INLINE float greatest(V x) {
    if constexpr (Lanes<V>::COUNT > 4) return greatest(greater(low_half(x), high_half(x)));
    else {
        float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
        return a > b ? a : b;
    }
}

// e^x, to 1 unit in the last place or two, 0 below -87.3 and where x is -inf. Cephes' expf: x = n·ln 2 + r with
// |r| ≤ ln 2 / 2, a polynomial in r, and n added to the exponent.
PENSTOCK_INLINE Floats exponential(Floats x) {
    Floats least = splat(-87.33654f);
    Ints vanishes = x < least;
    x = greater(least, x);
    Floats shifter = splat(12582912.0f);  // 1.5·2^23: adding it rounds to an integer
    Floats shifted = fused(x, splat(1.44269504f), shifter);
    Floats n = shifted - shifter;
    Floats r = fused(n, splat(-0.693359375f), x);
    r = fused(n, splat(2.12194440e-4f), r);
    Floats p = splat(1.9875691500e-4f);
    p = fused(p, r, splat(1.3981999507e-3f));
    p = fused(p, r, splat(8.3334519073e-3f));
    p = fused(p, r, splat(4.1665795894e-2f));
    p = fused(p, r, splat(1.6666665459e-1f));
    p = fused(p, r, splat(5.0000001201e-1f));
    Floats result = fused(p * r, r, r) + 1.0f;
    Ints exponent = (as<Ints>(shifted) - 0x4B400000) << 23;
    return as<Floats>((as<Ints>(result) + exponent) & ~vanishes);
}

}  // namespace penstock
