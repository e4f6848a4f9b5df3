// What is done number by number, for the target that this file is compiled for.

#include "operations.h"
#include "rows.h"

namespace {

using namespace penstock;

bool is_large(const PenstockElements& a) {
    return a.rows > 1 && a.rows * a.width >= WORTH_THREADS;
}

template <typename F>
int each_vector(const PenstockElements& a, Team& team, F f) {
    int64_t width = a.width;
    team.share(is_large(a), a.rows, [&](int64_t row) {
        const float* x = a.x + row * a.x_stride;
        float* to = a.to + row * a.to_stride;
        for (int64_t at = 0; at < width; at += LANES) f(x + at, to + at, width - at);
    });
    return 0;
}

template <typename T>
int take_rows(const PenstockTake& a, Team& team) {
    for (int64_t row = 0; row < a.rows; row++) {
        if (a.ids[row] < 0 || a.ids[row] >= a.entries) return 1;
    }
    team.share(false, a.rows, [&](int64_t row) {
        const T* from = (const T*)a.table + a.ids[row] * a.width;
        float* out = a.out + row * a.width;
        int64_t at = 0;
        for (; at + LANES <= a.width; at += LANES) store(out + at, load(from + at));
        for (; at < a.width; at++) out[at] = widen(from[at]);
    });
    return 0;
}

}  // namespace

int penstock::elements(const PenstockElements& a, Team& team) {
    switch (a.operation) {
        case PENSTOCK_ADD:
            return each_vector(a, team, [](const float* x, float* to, int64_t left) {
                put(to, left, get(to, left) + get(x, left));
            });
        case PENSTOCK_SCALE:
            return each_vector(a, team, [&](const float* x, float* to, int64_t left) {
                put(to, left, get(x, left) * a.factor);
            });
        case PENSTOCK_COPY:
            return each_vector(a, team, [](const float* x, float* to, int64_t left) { put(to, left, get(x, left)); });
        default: return 1;
    }
}

int penstock::take(const PenstockTake& a, Team& team) {
    switch (a.type) {
        case PENSTOCK_FLOAT32: return take_rows<float>(a, team);
        case PENSTOCK_BFLOAT16: return take_rows<BFloat16>(a, team);
        case PENSTOCK_FLOAT16: return take_rows<Float16>(a, team);
        default: return 1;
    }
}

// 0, or 1 where the operation is none of those that elements.h names.
extern "C" __attribute__((visibility("default"))) int penstock_elements(const PenstockElements* a) {
    return with_team(is_large(*a), [=](Team& team) { return elements(*a, team); });
}

// 0, or 1 where an id is none of the table's or the type none that attention.h names.
extern "C" __attribute__((visibility("default"))) int penstock_take(const PenstockTake* a) {
    return with_team(false, [=](Team& team) { return take(*a, team); });
}
