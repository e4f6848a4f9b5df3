// Norms for the target that this file is compiled for.

#include "operations.h"
#include "rows.h"

namespace {

using namespace penstock;

void add_row(const float* x, float* residual, int64_t width) {
    for (int64_t at = 0; at < width; at += LANES) {
        int64_t left = width - at;
        put(residual + at, left, get(residual + at, left) + get(x + at, left));
    }
}

void norm_row(const PenstockNorm& a, const float* x, int head, float* out) {
    int64_t width = a.width;
    float mean = 0;
    if (a.centred) mean = sum_of_row(width, [&](int64_t at) { return get(x + at, width - at); }) / a.width;
    float squares = sum_of_row(width, [&](int64_t at) {
        Floats distance = get(x + at, width - at, mean) - mean;
        return distance * distance;
    });
    Floats factor = splat(1.0f / __builtin_sqrtf(squares / a.width + a.eps));
    const float* weight = a.weight + head * width;
    const float* bias = a.bias ? a.bias + head * width : nullptr;
    for (int64_t at = 0; at < width; at += LANES) {
        int64_t left = width - at;
        Floats y = (get(x + at, left) - mean) * factor * get(weight + at, left);
        put(out + at, left, bias ? y + get(bias + at, left) : y);
    }
}

bool is_large(const PenstockNorm& a) {
    return a.rows > 1 && (int64_t)a.rows * a.heads * a.width >= WORTH_THREADS;
}

}  // namespace

int penstock::norm(const PenstockNorm& a, Team& team) {
    int64_t row_size = (int64_t)a.heads * a.width;
    team.share(is_large(a), a.rows, [&](int64_t row) {
        const float* x = a.x + row * a.x_stride;
        float* out = a.out + row * row_size;
        if (a.residual) {
            float* residual = a.residual + row * row_size;
            add_row(x, residual, row_size);
            return norm_row(a, residual, 0, out);
        }
        for (int head = 0; head < a.heads; head++) {
            norm_row(a, x + head * a.head_stride, head, out + (int64_t)head * a.width);
        }
    });
    return 0;
}

// 0: every norm can be computed.
extern "C" __attribute__((visibility("default"))) int penstock_norm(const PenstockNorm* a) {
    return with_team(is_large(*a), [=](Team& team) { return norm(*a, team); });
}
