// Activations for the target that this file is compiled for.

#include "operations.h"
#include "rows.h"

namespace {

using namespace penstock;

// x / (1 + e^-x).
struct Silu {
    static Floats of(Floats x) { return x / (1.0f + exponential_of_any(-x)); }
};

// x · Φ(x). The tail of the normal distribution by Abramowitz and Stegun, 7.1.26, within 1e-7.
struct Gelu {
    static Floats of(Floats x) {
        Floats z = x * 0.70710678f;
        Floats distance = where(z < 0.0f, -z, z);
        Floats t = 1.0f / fused(splat(0.3275911f), distance, splat(1.0f));
        Floats p = fused(t, splat(1.061405429f), splat(-1.453152027f));
        p = fused(p, t, splat(1.421413741f));
        p = fused(p, t, splat(-0.284496736f));
        p = fused(p, t, splat(0.254829592f));
        Floats tail = 0.5f * p * t * exponential(-(distance * distance));
        return x * where(z < 0.0f, tail, 1.0f - tail);
    }
};

// x/2 · (1 + tanh u) = x / (1 + e^-2u), u = √(2/π) · (x + 0.044715 · x³).
struct GeluTanh {
    static Floats of(Floats x) {
        Floats u = fused(x * x, splat(0.044715f), splat(1.0f)) * x * 0.79788456f;
        return x / (1.0f + exponential_of_any(u * -2.0f));
    }
};

struct Relu {
    static Floats of(Floats x) { return greater(Floats{}, x); }
};

bool is_large(const PenstockActivation& a) {
    return a.rows > 1 && a.rows * a.width >= WORTH_THREADS;
}

template <typename A>
int run(const PenstockActivation& a, Team& team) {
    int64_t width = a.width, stride = a.gated ? 2 * width : width;
    team.share(is_large(a), a.rows, [&](int64_t row) {
        const float* x = a.x + row * stride;
        float* out = a.out + row * width;
        for (int64_t at = 0; at < width; at += LANES) {
            int64_t left = width - at;
            Floats y = A::of(get(x + at, left));
            put(out + at, left, a.gated ? y * get(x + width + at, left) : y);
        }
    });
    return 0;
}

}  // namespace

int penstock::activate(const PenstockActivation& a, Team& team) {
    switch (a.activation) {
        case PENSTOCK_SILU: return run<Silu>(a, team);
        case PENSTOCK_GELU: return run<Gelu>(a, team);
        case PENSTOCK_GELU_TANH: return run<GeluTanh>(a, team);
        case PENSTOCK_RELU: return run<Relu>(a, team);
        default: return 1;
    }
}

// 0, or 1 where the activation is none of those that activation.h names.
extern "C" __attribute__((visibility("default"))) int penstock_activate(const PenstockActivation* a) {
    return with_team(is_large(*a), [=](Team& team) { return activate(*a, team); });
}
