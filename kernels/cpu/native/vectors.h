// Vectors of 16 floats on whatever the target has: one AVX-512 register, two of AVX2, four of NEON.
//
// GCC's vector extensions: every operation is done lane by lane in IEEE arithmetic, so a result does
// not depend on which target this was compiled for, but for fused multiplication, which all of them have.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace penstock {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t ByteInts __attribute__((vector_size(16)));

static inline Floats splat(float x) {
    return Floats{} + x;
}

static inline Floats load(const float* from) {
    Floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

static inline void store(float* to, Floats x) {
    memcpy(to, &x, sizeof x);
}

// bfloat16 is the upper half of a float32.
struct BFloat16 {
    uint16_t bits;
};

static inline Floats load(const BFloat16* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#else
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
#endif
}

// To nearest, ties to even; NaN stays NaN.
static inline void store(BFloat16* to, Floats x) {
    Words bits = (Words)x;
    Words rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    Words quiet = (bits >> 16) | 0x40;
    Words is_nan = (Words)(x != x);
    Words halves = (quiet & is_nan) | (rounded & ~is_nan);
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)halves));
#else
    Halves narrow = __builtin_convertvector(halves, Halves);
    memcpy(to, &narrow, sizeof narrow);
#endif
}

struct Float16 {
    uint16_t bits;
};

#if defined(__AVX512F__)
static inline Floats load(const Float16* from) {
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}

static inline void store(Float16* to, Floats x) {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
static inline Floats load(const Float16* from) {
    __m256 halves[2] = {
        _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)),
        _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8))),
    };
    Floats x;
    memcpy(&x, halves, sizeof x);
    return x;
}

static inline void store(Float16* to, Floats x) {
    __m256 halves[2];
    memcpy(halves, &x, sizeof x);
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(halves[0], _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i*)(to + 8), _mm256_cvtps_ph(halves[1], _MM_FROUND_TO_NEAREST_INT));
}
#else
static inline Floats load(const Float16* from) {
    Floats x;
    for (int i = 0; i < LANES; i++) {
        _Float16 half;
        memcpy(&half, from + i, sizeof half);
        x[i] = (float)half;
    }
    return x;
}

static inline void store(Float16* to, Floats x) {
    for (int i = 0; i < LANES; i++) {
        _Float16 half = (_Float16)x[i];
        memcpy(to + i, &half, sizeof half);
    }
}
#endif

static inline Floats load(const int8_t* from) {
    ByteInts bytes;
    memcpy(&bytes, from, sizeof bytes);
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)bytes));
#else
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
#endif
}

// To nearest, ties to even, of numbers up to 127 and a little more.
static inline void store(int8_t* to, Floats x) {
    Ints rounded = (Ints)(x + 12582912.0f) - 0x4B400000;  // 1.5·2^23
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)rounded));
#else
    ByteInts narrow = __builtin_convertvector(rounded, ByteInts);
    memcpy(to, &narrow, sizeof narrow);
#endif
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

static inline Floats fused(Floats a, Floats b, Floats c) {
    return a * b + c;  // one instruction: compiled with -ffp-contract=fast
}

// The greater of the two; where b is NaN, b.
static inline Floats greater(Floats a, Floats b) {
    return a > b ? a : b;
}

// The sum of the lanes, in one order.
static inline float sum(Floats x) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight halves[2];
    memcpy(halves, &x, sizeof x);
    Eight eight = halves[0] + halves[1];
    Four quarters[2];
    memcpy(quarters, &eight, sizeof eight);
    Four four = quarters[0] + quarters[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

static inline float greatest(Floats x) {
    typedef int32_t Index __attribute__((vector_size(64)));
    x = greater(x, __builtin_shuffle(x, Index{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));
    x = greater(x, __builtin_shuffle(x, Index{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));
    x = greater(x, __builtin_shuffle(x, Index{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));
    return x[0] > x[1] ? x[0] : x[1];
}

// e^x, to 1 unit in the last place or two, 0 below -87.3 and where x is -inf. Cephes' expf: x = n·ln 2 + r with
// |r| ≤ ln 2 / 2, a polynomial in r, and n added to the exponent.
static inline Floats exponential(Floats x) {
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
    Ints exponent = (((Ints)shifted - 0x4B400000) << 23);
    return (Floats)(((Ints)result + exponent) & ~vanishes);
}

}  // namespace penstock
