// What is done number by number, for the target that this file is compiled for.

#include "attention.h"
#include "elements.h"
#include "rows.h"

namespace {

using namespace penstock;

template <typename F>
void each_vector(const PenstockElements& a, F f) {
    int64_t width = a.width;
#pragma omp parallel for schedule(static) if (a.rows > 1 && a.rows * width >= WORTH_THREADS)
    for (int64_t row = 0; row < a.rows; row++) {
        const float* x = a.x ? a.x + row * a.x_stride : nullptr;
        float* to = a.to + row * a.to_stride;
        for (int64_t at = 0; at < width; at += LANES) f(x + at, to + at, width - at);
    }
}

template <typename T>
int take(const PenstockTake& a) {
    for (int64_t row = 0; row < a.rows; row++) {
        if (a.ids[row] < 0 || a.ids[row] >= a.entries) return 1;
        const T* from = (const T*)a.table + a.ids[row] * a.width;
        float* out = a.out + row * a.width;
        for (int64_t at = 0; at + LANES <= a.width; at += LANES) store(out + at, load(from + at));
        for (int64_t at = a.width / LANES * LANES; at < a.width; at++) out[at] = widen(from[at]);
    }
    return 0;
}

}  // namespace

// 0, or 1 where the operation is none of those that elements.h names.
extern "C" __attribute__((visibility("default"))) int penstock_elements(const PenstockElements* a) {
    switch (a->operation) {
        case PENSTOCK_ADD:
            each_vector(*a, [](const float* x, float* to, int64_t left) {
                put(to, left, get(to, left) + get(x, left));
            });
            return 0;
        case PENSTOCK_SCALE: {
            Floats factor = splat(a->factor);
            each_vector(*a, [=](const float*, float* to, int64_t left) { put(to, left, get(to, left) * factor); });
            return 0;
        }
        case PENSTOCK_COPY:
            each_vector(*a, [](const float* x, float* to, int64_t left) { put(to, left, get(x, left)); });
            return 0;
        default: return 1;
    }
}

// 0, or 1 where an id is none of the table's or the type none that attention.h names.
extern "C" __attribute__((visibility("default"))) int penstock_take(const PenstockTake* a) {
    switch (a->type) {
        case PENSTOCK_FLOAT32: return take<float>(*a);
        case PENSTOCK_BFLOAT16: return take<BFloat16>(*a);
        case PENSTOCK_FLOAT16: return take<Float16>(*a);
        default: return 1;
    }
}
