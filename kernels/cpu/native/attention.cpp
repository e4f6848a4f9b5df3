// Attention for the target that this file is compiled for.

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "operations.h"
#include "panel.h"
#include "vectors.h"

#include "attention.inc"

namespace {

struct TileOfQueries {
    int64_t work;
    int32_t sequence, first, queries;
};

}  // namespace

int penstock::tiles(const PenstockTiles& a, Team& team) {
    static thread_local std::vector<TileOfQueries> found;
    found.clear();
    for (int32_t b = 0; b < a.num_seqs; b++) {
        int32_t count = a.cu_seqlens_q[b + 1] - a.cu_seqlens_q[b], context = a.context_lens[b];
        if (context <= 0) continue;
        for (int32_t first = 0; first < count; first += a.most_queries) {
            int32_t queries = std::min(count - first, a.most_queries);
            found.push_back({(int64_t)(context - count + first + queries) * queries, b, first, queries});
        }
    }
    if ((int64_t)found.size() != a.num_tiles) return 1;
    team.alone([&] {
        std::stable_sort(found.begin(), found.end(), [](const TileOfQueries& one, const TileOfQueries& other) {
            return one.work > other.work;
        });
        int32_t* to = a.tiles;
        for (const TileOfQueries& tile : found) *to++ = tile.sequence, *to++ = tile.first, *to++ = tile.queries;
    });
    return 0;
}

int penstock::attention(const PenstockAttention& a, Team& team) {
    if (a.q_type < PENSTOCK_FLOAT32 || a.q_type > PENSTOCK_FLOAT16) return 1;
    if (a.head_dim < 1 || a.head_dim > MOST_CHANNELS) return 1;
    switch (a.cache_type) {
        case PENSTOCK_FLOAT32: return run_tiles<float>(a, team);
        case PENSTOCK_BFLOAT16: return run_tiles<BFloat16>(a, team);
        case PENSTOCK_FLOAT16: return run_tiles<Float16>(a, team);
        case PENSTOCK_INT8: return a.key_scales && a.value_scales ? run_tiles<int8_t>(a, team) : 1;
        default: return 1;
    }
}

// 0, or 1 where there are not as many tiles as there should be.
extern "C" __attribute__((visibility("default"))) int penstock_tiles(const PenstockTiles* a) {
    return with_team(false, [=](Team& team) { return tiles(*a, team); });
}

// 0, or 1 where types or sizes are none of those that attention.h names, or scales are missing.
extern "C" __attribute__((visibility("default"))) int penstock_attention(const PenstockAttention* a) {
    return with_team(true, [=](Team& team) { return attention(*a, team); });
}
