// Heads for the target that this file is compiled for.

#include "operations.h"
#include "rows.h"

namespace {

using namespace penstock;

constexpr int MOST_CHANNELS = 256;

// What one head's numbers are multiplied by: all by `factor`, each by its weight.
struct Scale {
    const float* weight;  // null: the head stays as it is
    Floats factor;

    Floats of(const float* head, int64_t at, int64_t left) const {
        Floats x = get(head + at, left);
        return weight ? x * factor * get(weight + at, left) : x;
    }
};

Scale scale_of(const PenstockHeads& a, const float* head, int nth) {
    if (!a.weight) return {nullptr, Floats{}};
    int64_t width = a.head_dim;
    float squares = sum_of_row(width, [&](int64_t at) {
        Floats x = get(head + at, width - at);
        return x * x;
    });
    return {a.weight + nth * width, splat(1.0f / __builtin_sqrtf(squares / a.head_dim + a.eps))};
}

// `nth` of the queries' and keys' heads. [0, half) and [half, 2 · half) turn, what comes after does not.
template <typename T>
void turn_head(const PenstockHeads& a, int64_t row, int nth, const float* head, T* to) {
    Scale scale = scale_of(a, head, nth);
    int64_t half = a.cos ? a.half : 0;
    const float *cos = a.cos + row * half, *sin = a.sin + row * half;
    for (int64_t at = 0; at < half; at += LANES) {
        int64_t left = half - at;
        Floats first = scale.of(head, at, left), second = scale.of(head, half + at, left);
        Floats c = get(cos + at, left), s = get(sin + at, left);
        put(to + at, left, first * c - second * s);
        put(to + half + at, left, second * c + first * s);
    }
    for (int64_t at = 2 * half; at < a.head_dim; at += LANES) {
        int64_t left = a.head_dim - at;
        put(to + at, left, scale.of(head, at, left));
    }
}

// A head's numbers as the cache has them. Returns what they are to be multiplied by.
template <typename C>
float narrow(const float* head, int64_t width, C* to) {
    for (int64_t at = 0; at < width; at += LANES) put(to + at, width - at, get(head + at, width - at));
    return 1.0f;
}

// In 8 bits: the greatest is ±127. Where one is no finite number, neither is what they are multiplied by.
template <>
float narrow(const float* head, int64_t width, int8_t* to) {
    Ints sizes = {};  // as integers, floats without their signs are in order, NaN above all
    for (int64_t at = 0; at < width; at += LANES) {
        Ints size = as<Ints>(get(head + at, width - at)) & 0x7FFFFFFF;
        sizes = greater(sizes, size);
    }
    int32_t most = 0;
    for (int i = 0; i < LANES; i++) most = most > sizes[i] ? most : sizes[i];
    float greatest;
    memcpy(&greatest, &most, sizeof greatest);
    float scale = most ? greatest / 127.0f : 1.0f;
    for (int64_t at = 0; at < width; at += LANES) put(to + at, width - at, get(head + at, width - at) / scale);
    return scale;
}

// A key is written all over its block, and a block was last seen a step ago: the processor may fetch it meanwhile.
template <typename C>
void fetch_keys(const PenstockHeads& a, int64_t row) {
    if (!a.kv_heads) return;
    int64_t width = a.head_dim * a.block_size, block = a.slots[row] / a.block_size, at = a.slots[row] % a.block_size;
    C* keys = (C*)a.key_cache + block * a.kv_heads * width + at;
    int64_t apart = a.block_size * sizeof(C) < 64 ? 64 / sizeof(C) : a.block_size;
    for (int64_t i = 0; i < a.kv_heads * width; i += apart) __builtin_prefetch(keys + i, 1, 2);
    for (int64_t h = 0; h < a.kv_heads && a.key_scales; h++) {
        int64_t slot = (block * a.kv_heads + h) * a.block_size + at;
        __builtin_prefetch(a.key_scales + slot, 1, 2);
        __builtin_prefetch(a.value_scales + slot, 1, 2);
    }
}

bool is_large(const PenstockHeads& a) {
    return a.rows > 1 && (int64_t)a.rows * (a.heads + 2 * a.kv_heads) * a.head_dim >= WORTH_THREADS;
}

template <typename C>
int run(const PenstockHeads& a, Team& team) {
    int64_t width = a.head_dim, block_size = a.block_size;
    team.share(is_large(a), a.rows, [=, &a](int64_t row) {
        fetch_keys<C>(a, row);
        for (int64_t h = 0; h < a.heads; h++) {
            const float* head = a.queries + row * a.query_stride + h * width;
            turn_head(a, row, h, head, a.out + (row * a.heads + h) * width);
        }
        if (!a.kv_heads) return;
        int64_t block = a.slots[row] / a.block_size, at = a.slots[row] % a.block_size;
        for (int64_t h = 0; h < a.kv_heads; h++) {
            int64_t begin = (block * a.kv_heads + h) * width * a.block_size;
            float turned[MOST_CHANNELS];
            C key[MOST_CHANNELS];
            turn_head(a, row, a.heads + h, a.keys + row * a.key_stride + h * width, turned);
            float key_scale = narrow(turned, width, key);
            C* keys = (C*)a.key_cache + begin + at;
            for (int64_t d = 0; d < width; d++) keys[d * block_size] = key[d];
            const float* value = a.values + row * a.value_stride + h * width;
            float value_scale = narrow(value, width, (C*)a.value_cache + begin + at * width);
            if (!a.key_scales) continue;
            a.key_scales[begin / width + at] = key_scale;
            a.value_scales[begin / width + at] = value_scale;
        }
    });
    return 0;
}

}  // namespace

int penstock::heads(const PenstockHeads& a, Team& team) {
    if (a.kv_heads && a.head_dim > MOST_CHANNELS) return 1;
    switch (a.cache_type) {
        case PENSTOCK_FLOAT32: return run<float>(a, team);
        case PENSTOCK_BFLOAT16: return run<BFloat16>(a, team);
        case PENSTOCK_FLOAT16: return run<Float16>(a, team);
        case PENSTOCK_INT8: return a.key_scales && a.value_scales ? run<int8_t>(a, team) : 1;
        default: return 1;
    }
}

// 0, or 1 where the caches' type is none that attention.h names or lacks its scales, or a head that is stored has more than 256 channels.
extern "C" __attribute__((visibility("default"))) int penstock_heads(const PenstockHeads* a) {
    return with_team(is_large(*a), [=](Team& team) { return heads(*a, team); });
}
