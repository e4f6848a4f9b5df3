// Vectors of as many lanes as one likes, on registers of the target's width.
//
// GCC takes operations on vectors that no register holds apart by itself, but by way of memory: products of float32
// came to 3 GFLOP/s on AVX2 where they come to 150 now. So a wide vector is two halves, each of them a vector or two halves again, and
// every operation is done half by half, lane by lane in IEEE arithmetic: a result does not depend on the target.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#define PENSTOCK_INLINE static inline __attribute__((always_inline))

namespace penstock {

#if defined(PENSTOCK_REGISTER)
constexpr int REGISTER = PENSTOCK_REGISTER;  // to try the others' way where they don't run
#elif defined(__AVX512F__)
constexpr int REGISTER = 64;  // bytes
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif

template <typename V>
struct Lanes {  // of one register
    typedef std::remove_cv_t<std::remove_reference_t<decltype(V{}[0])>> Number;
    static constexpr int COUNT = sizeof(V) / sizeof(Number);
    static constexpr bool HALVES = false;
};

template <typename V>
struct Twice {
    V low, high;

    __attribute__((always_inline)) typename Lanes<V>::Number operator[](int lane) const {
        return lane < Lanes<V>::COUNT ? low[lane] : high[lane - Lanes<V>::COUNT];
    }
};

template <typename V>
struct Lanes<Twice<V>> {
    typedef typename Lanes<V>::Number Number;
    static constexpr int COUNT = 2 * Lanes<V>::COUNT;
    static constexpr bool HALVES = true;
};

template <typename T, int COUNT, bool FITS = sizeof(T) * COUNT <= REGISTER>
struct Vector {
    typedef Twice<typename Vector<T, COUNT / 2>::Type> Type;
};

template <typename T, int COUNT>
struct Vector<T, COUNT, true> {
    typedef T Type __attribute__((vector_size(sizeof(T) * COUNT)));
};

template <typename V>
PENSTOCK_INLINE Twice<V> twice(V low, V high) {
    return {low, high};
}

// A number meets every lane, as it does with vectors of one register.
#define PENSTOCK_BY_HALVES(OP)                                                                    \
    template <typename V>                                                                         \
    PENSTOCK_INLINE auto operator OP(const Twice<V>& a, const Twice<V>& b) {                      \
        return twice(a.low OP b.low, a.high OP b.high);                                           \
    }                                                                                             \
    template <typename V>                                                                         \
    PENSTOCK_INLINE auto operator OP(const Twice<V>& a, typename Lanes<V>::Number b) {            \
        return twice(a.low OP b, a.high OP b);                                                    \
    }                                                                                             \
    template <typename V>                                                                         \
    PENSTOCK_INLINE auto operator OP(typename Lanes<V>::Number a, const Twice<V>& b) {            \
        return twice(a OP b.low, a OP b.high);                                                    \
    }
PENSTOCK_BY_HALVES(+)
PENSTOCK_BY_HALVES(-)
PENSTOCK_BY_HALVES(*)
PENSTOCK_BY_HALVES(/)
PENSTOCK_BY_HALVES(&)
PENSTOCK_BY_HALVES(|)
PENSTOCK_BY_HALVES(<<)
PENSTOCK_BY_HALVES(>>)
PENSTOCK_BY_HALVES(<)
PENSTOCK_BY_HALVES(>)
PENSTOCK_BY_HALVES(>=)
PENSTOCK_BY_HALVES(==)
PENSTOCK_BY_HALVES(!=)
#undef PENSTOCK_BY_HALVES

template <typename V>
PENSTOCK_INLINE Twice<V> operator-(const Twice<V>& a) {
    return {-a.low, -a.high};
}

template <typename V>
PENSTOCK_INLINE Twice<V> operator~(const Twice<V>& a) {
    return {~a.low, ~a.high};
}

template <typename V, typename B>
PENSTOCK_INLINE Twice<V>& operator+=(Twice<V>& a, const B& b) {
    return a = a + b;
}

template <typename V, typename B>
PENSTOCK_INLINE Twice<V>& operator-=(Twice<V>& a, const B& b) {
    return a = a - b;
}

template <typename V, typename B>
PENSTOCK_INLINE Twice<V>& operator*=(Twice<V>& a, const B& b) {
    return a = a * b;
}

template <typename V, typename B>
PENSTOCK_INLINE Twice<V>& operator|=(Twice<V>& a, const B& b) {
    return a = a | b;
}

template <typename V>
PENSTOCK_INLINE auto low_half(V x) {
    if constexpr (Lanes<V>::HALVES) return x.low;
    else {
        typename Vector<typename Lanes<V>::Number, Lanes<V>::COUNT / 2>::Type half;
        memcpy(&half, &x, sizeof half);
        return half;
    }
}

template <typename V>
PENSTOCK_INLINE auto high_half(V x) {
    if constexpr (Lanes<V>::HALVES) return x.high;
    else {
        typename Vector<typename Lanes<V>::Number, Lanes<V>::COUNT / 2>::Type half;
        memcpy(&half, (const char*)&x + sizeof half, sizeof half);
        return half;
    }
}

// The lanes' bits as other numbers of their size.
template <typename To, typename V>
PENSTOCK_INLINE To as(V x) {
    if constexpr (Lanes<To>::HALVES)
        return {as<decltype(To::low)>(low_half(x)), as<decltype(To::low)>(high_half(x))};
    else return (To)x;
}

// The lanes' values as other numbers.
template <typename To, typename V>
PENSTOCK_INLINE To convert(V x) {
    if constexpr (Lanes<To>::HALVES)
        return {convert<decltype(To::low)>(low_half(x)), convert<decltype(To::low)>(high_half(x))};
    else return __builtin_convertvector(x, To);
}

// Lane by lane a where the mask is set, else b.
template <typename M, typename V>
PENSTOCK_INLINE V where(M mask, V a, V b) {
    if constexpr (Lanes<V>::HALVES) return {where(mask.low, a.low, b.low), where(mask.high, a.high, b.high)};
    else return mask ? a : b;
}

// a · b + c, rounded once: compiled with -ffp-contract=fast.
template <typename V>
PENSTOCK_INLINE V fused(V a, V b, V c) {
    if constexpr (Lanes<V>::HALVES) return {fused(a.low, b.low, c.low), fused(a.high, b.high, c.high)};
    else return a * b + c;
}

// As many numbers as V has lanes.
template <typename V>
PENSTOCK_INLINE V load_as(const typename Lanes<V>::Number* from) {
    if constexpr (Lanes<V>::HALVES) {
        typedef decltype(V::low) Half;
        return {load_as<Half>(from), load_as<Half>(from + Lanes<Half>::COUNT)};
    } else {
        V x;
        memcpy(&x, from, sizeof x);
        return x;
    }
}

}  // namespace penstock
