// Draws from logits, for the target that this file is compiled for.
//
// Filters are bounds on the logit (kernels/sample.py), looked for among the few numbers above a first guess of
// them, which the maxima of spans give: of n maxima not below it, at least n numbers are not. Only where a bound
// leaves many of many tokens is the whole row dealt into buckets; of these the one that holds it is sorted.

#include <cmath>
#include <utility>

#include "logits.h"
#include "spans.h"

namespace {

using namespace penstock;

constexpr int64_t FEW = 8192;  // numbers that are looked at one by one
constexpr int64_t PREFIX = 256;  // maxima not below the first guess of a top_p's bound
constexpr int NUM_BUCKETS = 4096;
constexpr float PER_UNIT = 128;  // buckets per unit of logit: the last has all that weighs less than e^-32

// What a thread keeps from row to row.
struct Scratch {
    std::vector<float> maxima, candidates, numbers, weights;
    std::vector<int64_t> tokens;  // the candidates'
    std::vector<double> sums, buckets;
};

int bucket_of(float logit) {
    float distance = -logit * PER_UNIT;
    return distance < NUM_BUCKETS - 1 ? (int)distance : NUM_BUCKETS - 1;
}

// One row, none of whose logits is NaN and whose greatest is finite. A logit from here on is one over the
// temperature and less the greatest, so at most 0.
class Row {
public:
    Row(const float* logits, int64_t size, float best, float temperature, Scratch& scratch)
        : raw(logits), size(size), best(best), temperature(temperature), s(scratch) {
        for (int64_t at = 0; at < (int64_t)s.maxima.size(); at += LANES)
            store(s.maxima.data() + at, scaled(load(s.maxima.data() + at)));
    }

    int64_t sample(float uniform, int64_t top_k, float top_p, float min_p) {
        float bound = min_p > 0 ? (float)std::log((double)min_p) : -INFINITE;
        if (0 < top_k && top_k < size) bound = std::max(bound, top_k_bound(top_k));
        if (top_p < 1) bound = std::max(bound, top_p_bound(bound, top_p));
        return bound >= reach ? draw_candidate(uniform, bound) : draw(uniform, bound);
    }

private:
    const float* raw;
    const int64_t size;
    const float best, temperature;
    Scratch& s;
    float reach = INFINITE;  // the candidates are all tokens whose logits are not below this

    Floats scaled(Floats x) const { return (x - best) / temperature; }
    Floats logits(int64_t at) const { return scaled(logits_at(raw, size, at)); }

    // What the logits of a vector weigh, 0 where below the bound.
    static Floats weights(Floats logits, float bound) {
        return where(logits >= bound, exponential(logits), Floats{});
    }

    bool span_reaches(int64_t span, float bound) const {
        return any(load(s.maxima.data() + span * LANES) >= bound);
    }

    // Calls f(logits, at) for the vectors of all spans that hold something not below the bound.
    template <typename F>
    void each(float bound, F f) const {
        for (int64_t span = 0; span < num_spans(size); span++) {
            if (!span_reaches(span, bound)) continue;
            int64_t end = std::min((span + 1) * SPAN, size);
            for (int64_t at = span * SPAN; at < end; at += LANES) f(logits(at), at);
        }
    }

    // The nth greatest maximum: at least so many logits are not below it. -inf if there are fewer maxima.
    float guess(int64_t nth) {
        if (nth > (int64_t)s.maxima.size()) return -INFINITE;
        s.numbers = s.maxima;
        return nth_greatest(s.numbers, nth);
    }

    // Makes candidates of all tokens not below the bound, unless these are many. Returns whether it did.
    bool collect(float bound) {
        s.candidates.clear();
        s.tokens.clear();
        reach = INFINITE;
        for (int64_t span = 0; span < num_spans(size); span++) {
            if (!span_reaches(span, bound)) continue;
            if ((int64_t)s.candidates.size() > FEW) return false;
            int64_t end = std::min((span + 1) * SPAN, size);
            for (int64_t at = span * SPAN; at < end; at += LANES) {
                Floats x = logits(at);
                if (!any(x >= bound)) continue;
                for (int i = 0; i < LANES && at + i < end; i++) {
                    if (!(x[i] >= bound)) continue;
                    s.candidates.push_back(x[i]);
                    s.tokens.push_back(at + i);
                }
            }
        }
        reach = bound;
        return true;
    }

    // The numbers from the greatest down, and what they weigh.
    void order() {
        std::sort(s.numbers.begin(), s.numbers.end(), std::greater<float>());
        weigh(s.numbers, -INFINITE);
    }

    void weigh(const std::vector<float>& numbers, float bound) {
        int64_t count = numbers.size();
        s.weights.resize(count);
        for (int64_t at = 0; at < count; at += LANES) {
            int64_t left = count - at;
            put(s.weights.data() + at, left, weights(get(numbers.data() + at, left), bound));
        }
    }

    // How many of the ordered numbers come before the running mass, from `mass` on, reaches what is needed.
    size_t num_below(double mass, double needed) const {
        size_t count = 0;
        for (; count < s.weights.size(); count++) {
            mass += s.weights[count];
            if (mass >= needed) break;
        }
        return count;
    }

    // The k-th greatest logit.
    float top_k_bound(int64_t top_k) {
        if (collect(guess(top_k))) {
            s.numbers = s.candidates;
            return nth_greatest(s.numbers, top_k);
        }
        deal(-INFINITE, [](float) { return 1.0; });
        auto [holder, before] = holder_of((double)top_k);
        take_bucket(holder, -INFINITE);
        return nth_greatest(s.numbers, top_k - (int64_t)before);
    }

    // The least logit whose more probable tokens weigh less than top_p of those not below the bound.
    float top_p_bound(float bound, float top_p) {
        if (bound >= reach) {
            take_candidates(bound);
            double total = 0;
            for (float weight : s.weights) total += weight;
            return s.numbers[std::min(num_below(0, top_p * total), s.numbers.size() - 1)];
        }
        double needed = top_p * mass(bound);
        float least = std::max(bound, guess(std::min(PREFIX, (int64_t)s.maxima.size())));
        if (collect(least)) {
            take_candidates(least);
            size_t last = num_below(0, needed);
            if (last < s.numbers.size()) return s.numbers[last];
        }
        deal(bound, [](float weight) { return weight; });
        auto [holder, before] = holder_of(needed);
        take_bucket(holder, bound);
        order();
        return s.numbers[std::min(num_below(before, needed), s.numbers.size() - 1)];
    }

    void take_candidates(float bound) {
        s.numbers.clear();
        for (float logit : s.candidates)
            if (logit >= bound) s.numbers.push_back(logit);
        order();
    }

    // Deals what is not below the bound into buckets, each number as much as f(weight) says.
    template <typename F>
    void deal(float bound, F f) {
        s.buckets.assign(NUM_BUCKETS, 0.0);
        each(bound, [&](Floats x, int64_t at) {
            Floats of = exponential(x);
            for (int i = 0; i < LANES && at + i < size; i++)
                if (x[i] >= bound) s.buckets[bucket_of(x[i])] += f(of[i]);
        });
    }

    // The first bucket at which the running mass reaches what is needed, else the last with any, and the mass
    // before it.
    std::pair<int, double> holder_of(double needed) const {
        int holder = 0;
        double total = 0, before = 0;
        for (int i = 0; i < NUM_BUCKETS && (i == 0 || total < needed); i++) {
            if (s.buckets[i] == 0) continue;
            holder = i;
            before = total;
            total += s.buckets[i];
        }
        return {holder, before};
    }

    void take_bucket(int holder, float bound) {
        s.numbers.clear();
        each(bound, [&](Floats x, int64_t at) {
            for (int i = 0; i < LANES && at + i < size; i++)
                if (x[i] >= bound && bucket_of(x[i]) == holder) s.numbers.push_back(x[i]);
        });
    }

    // What all tokens not below the bound weigh; `sums` has each span's.
    double mass(float bound) {
        double total = 0;
        s.sums.assign(num_spans(size), 0.0);
        for (int64_t span = 0; span < num_spans(size); span++) {
            if (!span_reaches(span, bound)) continue;
            Doubles parts = {};
            int64_t end = std::min((span + 1) * SPAN, size);
            for (int64_t at = span * SPAN; at < end; at += LANES) parts += widened(weights(logits(at), bound));
            s.sums[span] = total_of(parts);
            total += s.sums[span];
        }
        return total;
    }

    // The inverse of the distribution function over tokens not below the bound, in the vocabulary's order.
    int64_t draw(float uniform, float bound) {
        double target = uniform * mass(bound), before = 0, running = 0;
        int64_t holder = 0;
        for (int64_t span = 0; span < num_spans(size); span++) {
            if (s.sums[span] == 0) continue;
            holder = span;
            before = running;
            running += s.sums[span];
            if (running > target) break;
        }
        int64_t token = 0, end = std::min((holder + 1) * SPAN, size);
        for (int64_t at = holder * SPAN; at < end; at += LANES) {
            Floats of = weights(logits(at), bound);
            for (int i = 0; i < LANES && at + i < end; i++) {
                if (of[i] == 0) continue;
                token = at + i;
                before += of[i];
                if (before > target) return token;
            }
        }
        return token;
    }

    int64_t draw_candidate(float uniform, float bound) {
        weigh(s.candidates, bound);
        double total = 0, running = 0;
        for (float weight : s.weights) total += weight;
        int64_t token = 0;
        for (size_t i = 0; i < s.weights.size(); i++) {
            if (s.weights[i] == 0) continue;
            token = s.tokens[i];
            running += s.weights[i];
            if (running > uniform * total) break;
        }
        return token;
    }
};

int64_t sample_row(const PenstockSample& a, int64_t row, Scratch& scratch) {
    const float* logits = a.logits + row * a.stride;
    float best = row_maxima(logits, a.vocab_size, scratch.maxima);
    if (!(best > -INFINITE && best < INFINITE)) return 0;  // such a row's token means nothing, but must be one
    Row of(logits, a.vocab_size, best, a.temperature[row], scratch);
    return of.sample(a.uniforms[row], a.top_k[row], a.top_p[row], a.min_p[row]);
}

}  // namespace

// See kernels/sample.py.
extern "C" __attribute__((visibility("default"))) void penstock_sample(const PenstockSample* args) {
    const PenstockSample& a = *args;
#pragma omp parallel for schedule(dynamic, 1) if (a.rows > 1 && a.rows * a.vocab_size >= WORTH_THREADS)
    for (int64_t row = 0; row < a.rows; row++) {
        static thread_local Scratch scratch;
        a.tokens[row] = sample_row(a, row, scratch);
    }
}
