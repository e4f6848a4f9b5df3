// Log-probabilities, for the target that this file is compiled for.

#include <cmath>

#include "logits.h"
#include "spans.h"

namespace {

using namespace penstock;

struct Candidate {
    float logit;
    int64_t token;
};

bool is_before(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// The log of the sum of e^(logit - best); NaN where it is none.
double log_mass(const float* row, int64_t size, float best) {
    Doubles total = {};
    for (int64_t at = 0; at < size; at += LANES)
        total += widened(exponential_of_any(logits_at(row, size, at) - best));
    return std::log(total_of(total));
}

// 1 and how many logits are greater, or equal and of a lower id.
int64_t rank_of(const float* row, int64_t size, int64_t token) {
    float chosen = row[token];
    Ints greater_ones = {}, equals = {};
    for (int64_t at = 0; at < size; at += LANES) greater_ones -= logits_at(row, size, at) > chosen;
    for (int64_t at = 0; at + LANES <= token; at += LANES) equals -= load(row + at) == chosen;
    int64_t rank = 1;
    for (int i = 0; i < LANES; i++) rank += greater_ones[i] + equals[i];
    for (int64_t at = token / LANES * LANES; at < token; at++) rank += row[at] == chosen;
    return rank;
}

// The num_top greatest, in order. No logit is NaN.
void find_top(
    const float* row, int64_t size, int64_t num_top, std::vector<float>& maxima, std::vector<Candidate>& found
) {
    float bound = -INFINITE;  // at least num_top logits are not below it
    std::vector<float> numbers = maxima;
    if (num_top <= (int64_t)numbers.size()) bound = nth_greatest(numbers, num_top);
    found.clear();
    int64_t num_equal = 0;
    for (int64_t span = 0; span < num_spans(size); span++) {
        if (!any(load(maxima.data() + span * LANES) >= bound)) continue;
        int64_t end = std::min((span + 1) * SPAN, size);
        for (int64_t at = span * SPAN; at < end; at += LANES) {
            Floats x = logits_at(row, size, at);
            if (!any(x >= bound)) continue;
            for (int i = 0; i < LANES && at + i < end; i++) {
                if (x[i] < bound || (x[i] == bound && num_equal == num_top)) continue;
                num_equal += x[i] == bound;
                found.push_back({x[i], at + i});
            }
        }
    }
    std::partial_sort(found.begin(), found.begin() + num_top, found.end(), is_before);
}

void run_row(const PenstockLogprobs& a, int64_t row) {
    static thread_local std::vector<float> maxima;
    static thread_local std::vector<Candidate> found;
    const float* logits = a.logits + row * a.stride;
    float best = row_maxima(logits, a.vocab_size, maxima);
    double mass = log_mass(logits, a.vocab_size, best);
    a.chosen[row] = (float)((double)(logits[a.token_ids[row]] - best) - mass);
    a.ranks[row] = rank_of(logits, a.vocab_size, a.token_ids[row]);
    int64_t* ids = a.top_ids + row * a.num_top;
    float* top = a.top + row * a.num_top;
    if (best == best && a.num_top > 0) find_top(logits, a.vocab_size, a.num_top, maxima, found);
    for (int64_t i = 0; i < a.num_top; i++) {
        ids[i] = best == best ? found[i].token : i;
        top[i] = (float)((double)(logits[ids[i]] - best) - mass);
    }
}

}  // namespace

// See kernels/logprob.py. A row that holds a NaN gets nothing but NaN.
extern "C" __attribute__((visibility("default"))) void penstock_logprobs(const PenstockLogprobs* args) {
    const PenstockLogprobs& a = *args;
#pragma omp parallel for schedule(static) if (a.rows > 1 && a.rows * a.vocab_size >= WORTH_THREADS)
    for (int64_t row = 0; row < a.rows; row++) run_row(a, row);
}
