// Runs what was recorded: see kernels/cpu/recording.py.

#include "program.h"

#include <chrono>

#include "activation.h"
#include "attention.h"
#include "elements.h"
#include "heads.h"
#include "linear.h"
#include "norm.h"

#pragma GCC visibility push(default)  // as where they are defined
extern "C" {
int penstock_linear(const PenstockLinear*);
int penstock_attention(const PenstockAttention*);
int penstock_heads(const PenstockHeads*);
int penstock_norm(const PenstockNorm*);
int penstock_activate(const PenstockActivation*);
int penstock_unpack(const PenstockUnpack*);
int penstock_take(const PenstockTake*);
int penstock_elements(const PenstockElements*);
int penstock_tiles(const PenstockTiles*);
}
#pragma GCC visibility pop

namespace {

int run(const PenstockCall& call) {
    switch (call.function) {
        case PENSTOCK_CALL_LINEAR: return penstock_linear((const PenstockLinear*)call.arguments);
        case PENSTOCK_CALL_ATTENTION: return penstock_attention((const PenstockAttention*)call.arguments);
        case PENSTOCK_CALL_HEADS: return penstock_heads((const PenstockHeads*)call.arguments);
        case PENSTOCK_CALL_NORM: return penstock_norm((const PenstockNorm*)call.arguments);
        case PENSTOCK_CALL_ACTIVATE: return penstock_activate((const PenstockActivation*)call.arguments);
        case PENSTOCK_CALL_UNPACK: return penstock_unpack((const PenstockUnpack*)call.arguments);
        case PENSTOCK_CALL_TAKE: return penstock_take((const PenstockTake*)call.arguments);
        case PENSTOCK_CALL_ELEMENTS: return penstock_elements((const PenstockElements*)call.arguments);
        case PENSTOCK_CALL_TILES: return penstock_tiles((const PenstockTiles*)call.arguments);
        default: return 1;
    }
}

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// 0, or 1 where a function returned something else: what comes after it was not called. seconds_taken: [count], what
// each call took, or null.
extern "C" __attribute__((visibility("default"))) int penstock_run(
    const PenstockCall* calls, int64_t count, double* seconds_taken
) {
    if (!seconds_taken) {
        for (int64_t i = 0; i < count; i++) {
            if (run(calls[i])) return 1;
        }
        return 0;
    }
    double before = seconds();
    for (int64_t i = 0; i < count; i++) {
        if (run(calls[i])) return 1;
        double after = seconds();
        seconds_taken[i] = after - before;
        before = after;
    }
    return 0;
}
