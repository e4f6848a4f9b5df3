// 16 rows of 16 words to 16 columns.
#pragma once

#include "vectors.h"

namespace penstock {

#if defined(__AVX512F__)
// By halves of halves: neighbours in pairs, pairs in quads, and then the quads as wholes.
static inline void transpose(Words (&x)[LANES]) {
    __m512i a[LANES], b[LANES];
    for (int i = 0; i < LANES; i += 2) {
        a[i] = _mm512_unpacklo_epi32((__m512i)x[i], (__m512i)x[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32((__m512i)x[i], (__m512i)x[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {  // b[4 j + i] holds, in quad q, column 4 q + i of rows 4 j to 4 j + 3
        __m512i low = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88), high = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xDD);
        __m512i low2 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
        __m512i high2 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xDD);
        x[i] = (Words)_mm512_shuffle_i32x4(low, low2, 0x88);
        x[8 + i] = (Words)_mm512_shuffle_i32x4(low, low2, 0xDD);
        x[4 + i] = (Words)_mm512_shuffle_i32x4(high, high2, 0x88);
        x[12 + i] = (Words)_mm512_shuffle_i32x4(high, high2, 0xDD);
    }
}
#else
// In squares of 4 by 4.
static inline void transpose(Words (&x)[LANES]) {
    typedef uint32_t Four __attribute__((vector_size(16)));
    alignas(64) uint32_t to[LANES][LANES];
    const uint32_t* from = (const uint32_t*)x;
    for (int row = 0; row < LANES; row += 4) {
        for (int column = 0; column < LANES; column += 4) {
            Four r[4];
            for (int i = 0; i < 4; i++) memcpy(&r[i], from + (row + i) * LANES + column, sizeof r[i]);
            Four low = __builtin_shuffle(r[0], r[1], Four{0, 4, 1, 5}), high = __builtin_shuffle(r[0], r[1], Four{2, 6, 3, 7});
            Four low2 = __builtin_shuffle(r[2], r[3], Four{0, 4, 1, 5}), high2 = __builtin_shuffle(r[2], r[3], Four{2, 6, 3, 7});
            Four out[4] = {
                __builtin_shuffle(low, low2, Four{0, 1, 4, 5}),
                __builtin_shuffle(low, low2, Four{2, 3, 6, 7}),
                __builtin_shuffle(high, high2, Four{0, 1, 4, 5}),
                __builtin_shuffle(high, high2, Four{2, 3, 6, 7}),
            };
            for (int i = 0; i < 4; i++) memcpy(&to[column + i][row], &out[i], sizeof out[i]);
        }
    }
    memcpy(x, to, sizeof to);
}
#endif

}  // namespace penstock
