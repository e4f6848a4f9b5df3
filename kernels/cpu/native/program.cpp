// Runs what was recorded: see kernels/cpu/recording.py.

#include "program.h"

#include <chrono>

#include "operations.h"

#ifdef PENSTOCK_SOURCES
// What build.py looks for.
extern "C" __attribute__((visibility("default"), used)) const char penstock_sources[] = PENSTOCK_SOURCES;
#endif

namespace {

using namespace penstock;

int run(const PenstockCall& call, Team& team) {
    const void* a = call.arguments;
    switch (call.function) {
        case PENSTOCK_CALL_LINEAR: return linear(*(const PenstockLinear*)a, team);
        case PENSTOCK_CALL_ATTENTION: return attention(*(const PenstockAttention*)a, team);
        case PENSTOCK_CALL_HEADS: return heads(*(const PenstockHeads*)a, team);
        case PENSTOCK_CALL_NORM: return norm(*(const PenstockNorm*)a, team);
        case PENSTOCK_CALL_ACTIVATE: return activate(*(const PenstockActivation*)a, team);
        case PENSTOCK_CALL_UNPACK: return unpack(*(const PenstockUnpack*)a, team);
        case PENSTOCK_CALL_TAKE: return take(*(const PenstockTake*)a, team);
        case PENSTOCK_CALL_ELEMENTS: return elements(*(const PenstockElements*)a, team);
        case PENSTOCK_CALL_TILES: return tiles(*(const PenstockTiles*)a, team);
        default: return 1;
    }
}

// f(count) for every field of a call that says how many rows it is of.
template <typename F>
void each_count(const PenstockCall& call, F f) {
    void* a = call.arguments;
    switch (call.function) {
        case PENSTOCK_CALL_LINEAR: return f(((PenstockLinear*)a)->rows);
        case PENSTOCK_CALL_ATTENTION: return f(((PenstockAttention*)a)->num_tiles);  // of one query each
        case PENSTOCK_CALL_HEADS: return f(((PenstockHeads*)a)->rows);
        case PENSTOCK_CALL_NORM: return f(((PenstockNorm*)a)->rows);
        case PENSTOCK_CALL_ACTIVATE: return f(((PenstockActivation*)a)->rows);
        case PENSTOCK_CALL_UNPACK: return f(((PenstockUnpack*)a)->rows);
        case PENSTOCK_CALL_TAKE: return f(((PenstockTake*)a)->rows);
        case PENSTOCK_CALL_ELEMENTS: return f(((PenstockElements*)a)->rows);
        case PENSTOCK_CALL_TILES: f(((PenstockTiles*)a)->num_seqs), f(((PenstockTiles*)a)->num_tiles);
    }
}

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// How many of the calls are not of `rows` rows.
extern "C" __attribute__((visibility("default"))) int penstock_other_rows(
    const PenstockCall* calls, int64_t count, int32_t rows
) {
    int others = 0;
    for (int64_t i = 0; i < count; i++) {
        bool is_other = false;
        each_count(calls[i], [&](auto& found) { is_other |= found != rows; });
        others += is_other;
    }
    return others;
}

// Calls that are all of some number of rows, on `rows` of them, which there is memory for. 0, or 1 where a function
// returned something else: what comes after it was not called. seconds_taken: [count], what each call took, or null.
extern "C" __attribute__((visibility("default"))) int penstock_run(
    const PenstockCall* calls, int64_t count, int32_t rows, double* seconds_taken
) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        each_count(calls[i], [=](auto& found) { found = rows; });
        if (calls[i].function == PENSTOCK_CALL_LINEAR)
            bytes = std::max(bytes, linear_scratch(*(const PenstockLinear*)calls[i].arguments));
    }
    TeamState state;
    state.scratch = kept_scratch(bytes);
    return with_team(true, state, [=](Team& team) {
        bool timed = seconds_taken && team.leads();
        double before = timed ? seconds() : 0;
        for (int64_t i = 0; i < count; i++) {
            if (run(calls[i], team)) return 1;
            if (!timed) continue;
            double after = seconds();
            seconds_taken[i] = after - before;
            before = after;
        }
        return 0;
    });
}
