// How weights are packed, and rows of x beside them: one struct for each kind of linear.h.
//
// A weight is packed in panels of PANEL outputs. UNIT consecutive k of one output lie together, and a panel's
// outputs side by side, so that UNIT numbers of x, broadcast, meet two vectors of them. A Format has
//   Number      of x and of packed weights, of one size; UNIT of them are 4 bytes or one number
//   Sum         a vector of 16 outputs' sums
//   row()       a row of x in float32 as Numbers; returns what its sums are to be multiplied with
//   output()    a row of a weight as Numbers; returns what its sums are to be multiplied with
//   multiply()  M rows with one panel
#pragma once

#include <algorithm>
#include <cmath>

#include "panel.h"

namespace penstock {

// NaN where one of them is.
static inline float greatest_magnitude(const float* x, int count) {
    Floats most = Floats{};
    Ints strange = Ints{};
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        Floats at = load(x + i);
        most = greater(most, greater(at, -at));
        strange |= at != at;
    }
    float top = greatest(most);
    bool is_nan = false;
    for (int lane = 0; lane < LANES; lane++) is_nan |= strange[lane] != 0;
    for (; i < count; i++) {
        top = std::fmax(top, std::fabs(x[i]));
        is_nan |= x[i] != x[i];
    }
    return is_nan ? NAN : top;
}

// Of weights of type W, widened to float32.
template <typename W>
struct Widened {
    typedef W Number;
    typedef float Input;
    typedef Floats Sum;
    static constexpr int UNIT = 1;
    static constexpr bool SCALED = false;

    static float row(const float* x, float* to, int count) {
        memcpy(to, x, count * sizeof(float));
        return 1;
    }

    static float output(const float* w, W* to, int count) {
        for (int k = 0; k < count; k++) {
            W rounded[LANES];
            store(rounded, splat(w[k]));
            to[k] = rounded[0];
        }
        return 1;
    }

    template <int M>
    static void multiply(const float* x, int64_t stride, const W* panel, int k_count, Sum (*sums)[2]) {
        penstock::multiply<W, M>(x, stride, panel, k_count, sums);
    }

    static Floats finish(Sum sum, Ints) { return sum; }
};

// The loop of those that multiply UNIT numbers of a lane in one instruction: 4 bytes of x, and as `fetch` gives them of
// the panel. V of the panel's vectors, from the first on.
template <typename Format, int M, int V>
static inline void multiply_words_of(
    const typename Format::Input* x, int64_t stride, const typename Format::Number* panel, int words,
    typename Format::Sum (*sums)[2], int first
) {
    constexpr int UNIT = Format::UNIT;
    typename Format::Sum of[M][V] = {};
    for (int word = 0; word < words; word++) {
        Words at[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) at[v] = Format::fetch(panel + ((int64_t)word * PANEL + (first + v) * LANES) * UNIT);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            uint32_t each;
            memcpy(&each, x + m * stride + word * UNIT, 4);
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) of[m][v] = Format::dot(of[m][v], each, at[v]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) sums[m][first + v] = of[m][v];
}

template <typename Format, int M>
static inline void multiply_words(
    const typename Format::Input* x, int64_t stride, const typename Format::Number* panel, int k_count,
    typename Format::Sum (*sums)[2]
) {
    int words = (k_count + Format::UNIT - 1) / Format::UNIT;
    if constexpr (TAKE_TURNS<M>) {
        for (int v = 0; v < 2; v++) multiply_words_of<Format, M, 1>(x, stride, panel, words, sums, v);
    } else multiply_words_of<Format, M, 2>(x, stride, panel, words, sums, 0);
}

// x = scale · number, scale = max|x| / 127, and an output's numbers likewise. Where one of them is NaN or infinite the
// scale is, and with it every sum. With VNNI four products are one instruction, which takes x as bytes without a sign:
// its numbers have OFFSET added to them. Otherwise two are, of 16 bits each.
struct Bytes {
    typedef int8_t Number;
    typedef Ints Sum;
#if defined(__AVX512VNNI__)
    typedef uint8_t Input;
    static constexpr int OFFSET = 128;
#else
    typedef int16_t Input;
    static constexpr int OFFSET = 0;
#endif
    static constexpr int UNIT = 4 / sizeof(Input);
    static constexpr bool SCALED = true;

    // By what numbers are multiplied; 0 where they are NaN, or so small that it would be infinite.
    static float factor_of(float top) { return top > 1e-36f ? 127.0f / top : 0.0f; }

    static int32_t rounded(float x) {
        float shifted = x + 12582912.0f;  // 1.5·2^23: rounds to nearest, ties to even
        int32_t bits;
        memcpy(&bits, &shifted, 4);
        return bits - 0x4B400000;
    }

    static float row(const float* x, Input* to, int count) {
        float top = greatest_magnitude(x, count);
        float factor = factor_of(top);
        for (int i = 0; i < count; i++) to[i] = (Input)(rounded(x[i] * factor) + OFFSET);
        for (int i = count; i % UNIT; i++) to[i] = OFFSET;
        return top / 127.0f;
    }

    static float output(const float* w, int8_t* to, int count) {
        float top = greatest_magnitude(w, count);
        float factor = factor_of(top);
        for (int k = 0; k < count; k++) to[k] = (int8_t)rounded(w[k] * factor);
        return top / 127.0f;
    }

    // UNIT numbers of each lane.
    PENSTOCK_INLINE Words fetch(const int8_t* from) {
#if defined(__AVX512VNNI__)
        return (Words)_mm512_loadu_si512(from);
#elif defined(__AVX512F__)
        return (Words)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
        return {
            (NativeWords)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from)),
            (NativeWords)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(from + LANES))),
        };
#else
        uint32_t words[LANES];
        for (int i = 0; i < LANES; i++) words[i] = (uint16_t)from[2 * i] | (uint32_t)(uint16_t)from[2 * i + 1] << 16;
        return load_as<Words>(words);
#endif
    }

    // sum + the products of UNIT numbers of x, the same for all lanes, with those of each lane.
    PENSTOCK_INLINE Ints dot(Ints sum, uint32_t x, Words w) {
#if defined(__AVX512VNNI__)
        return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32((int)x), (__m512i)w);
#elif defined(__AVX512F__)
        return sum + (Ints)_mm512_madd_epi16(_mm512_set1_epi32((int)x), (__m512i)w);
#elif defined(__AVX2__)
        __m256i each = _mm256_set1_epi32((int)x);
        return {
            sum.low + (NativeInts)_mm256_madd_epi16(each, (__m256i)w.low),
            sum.high + (NativeInts)_mm256_madd_epi16(each, (__m256i)w.high),
        };
#else
        Ints low = as<Ints>(w << 16) >> 16, high = as<Ints>(w) >> 16;
        return sum + low * (int16_t)x + high * ((int32_t)x >> 16);
#endif
    }

    template <int M>
    static void multiply(const Input* x, int64_t stride, const int8_t* panel, int k_count, Sum (*sums)[2]) {
        multiply_words<Bytes, M>(x, stride, panel, k_count, sums);
    }

    static Floats finish(Sum sum, Ints offset) { return convert<Floats>(sum - offset); }
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16, whose products the processor adds to a float32.
struct Pairs {
    typedef uint16_t Number;
    typedef uint16_t Input;
    typedef Floats Sum;
    static constexpr int UNIT = 2;
    static constexpr bool SCALED = false;

    static float row(const float* x, uint16_t* to, int count) {
        int i = 0;
        for (; i + LANES <= count; i += LANES) store((BFloat16*)(to + i), load(x + i));
        for (; i < count; i++) {
            BFloat16 rounded[LANES];
            store(rounded, splat(x[i]));
            to[i] = rounded[0].bits;
        }
        if (count % UNIT) to[count] = 0;
        return 1;
    }

    static float output(const float* w, uint16_t* to, int count) { return row(w, to, count); }

    PENSTOCK_INLINE Words fetch(const uint16_t* from) { return (Words)_mm512_loadu_si512(from); }

    PENSTOCK_INLINE Floats dot(Floats sum, uint32_t x, Words w) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)x), (__m512bh)w);
    }

    template <int M>
    static void multiply(const uint16_t* x, int64_t stride, const uint16_t* panel, int k_count, Sum (*sums)[2]) {
        multiply_words<Pairs, M>(x, stride, panel, k_count, sums);
    }

    static Floats finish(Sum sum, Ints) { return sum; }
};
#endif

#if defined(__AVX512FP16__) || defined(PENSTOCK_EMULATE_FLOAT16)
// float16 throughout, 32 outputs in a vector, so that no more than FLUSH products are added before they go to
// float32. Powers of two bring the greatest of a row, and of an output, to between 1/2 and 1.
struct Products {
    typedef _Float16 Number;
    typedef _Float16 Input;
    typedef Floats Sum;
    typedef _Float16 Many __attribute__((vector_size(64)));
    typedef _Float16 Half __attribute__((vector_size(32)));
    static constexpr int UNIT = 1, FLUSH = 64;
    static constexpr bool SCALED = true;

    static float row(const float* x, _Float16* to, int count) {
        int exponent = 0;
        float top = greatest_magnitude(x, count);
        if (top > 0 && std::isfinite(top)) std::frexp(top, &exponent);
        exponent = std::max(exponent, -126);  // whose inverse is still a number
        float factor = std::ldexp(1.0f, -exponent);
        for (int i = 0; i < count; i++) to[i] = (_Float16)(x[i] * factor);
        return std::ldexp(1.0f, exponent);
    }

    static float output(const float* w, _Float16* to, int count) { return row(w, to, count); }

    template <int M>
    static void multiply(const _Float16* x, int64_t stride, const _Float16* panel, int k_count, Sum (*sums)[2]) {
        for (int m = 0; m < M; m++) sums[m][0] = sums[m][1] = Floats{};
        for (int from = 0; from < k_count; from += FLUSH) {
            int to = from + FLUSH < k_count ? from + FLUSH : k_count;
            Many part[M] = {};
            for (int k = from; k < to; k++) {
                Many w;
                memcpy(&w, panel + (int64_t)k * PANEL, sizeof w);
#pragma GCC unroll 12
                for (int m = 0; m < M; m++) part[m] = (x[m * stride + k] - Many{}) * w + part[m];
            }
            for (int m = 0; m < M; m++) {
                Half halves[2];
                memcpy(halves, &part[m], sizeof halves);
                for (int i = 0; i < 2; i++) sums[m][i] += convert<Floats>(halves[i]);
            }
        }
    }

    static Floats finish(Sum sum, Ints) { return sum; }
};
#endif

}  // namespace penstock
