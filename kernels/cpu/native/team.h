// Threads that go through an operation together.
//
// Every operation is written for a team, each of whose threads calls it with the same arguments. Called alone it is given
// a team of its own, by a parallel region. A recorded step (program.cpp) is one region for all of its operations: between
// two of them threads that have nothing to do look for the others' arrival instead of sleeping, which would take longer
// than a small operation, and let whoever else needs the core have it.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

// Of the runtime that torch has loaded, whose header need not be there.
extern "C" int omp_get_thread_num(void);
extern "C" int omp_get_num_threads(void);

namespace penstock {

struct TeamState {
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<unsigned> phase{0};
    alignas(64) std::atomic<int64_t> next[2] = {};
    alignas(64) char* scratch = nullptr;  // for linear layers, see linear.inc
};

static inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

class Team {
  public:
    Team(TeamState& shared, int nth, int count) : state(shared), rank(nth), size(count) {}

    char* scratch() const { return state.scratch; }
    bool leads() const { return rank == 0; }
    int threads() const { return size; }

    // Returns when all threads of the team have called it.
    void wait() {
        if (size == 1) return;
        unsigned phase = state.phase.load(std::memory_order_relaxed);
        if (state.arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            state.arrived.store(0, std::memory_order_relaxed);
            state.phase.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int looks = 0; state.phase.load(std::memory_order_acquire) == phase; looks++) {
            if (looks < LOOKS) relax();
            else sched_yield();
        }
    }

    // f() by one thread.
    template <typename F>
    void alone(F f) {
        if (rank == 0) f();
        wait();
    }

    // f(i) for i < count: by all threads, each of consecutive i, or by one.
    template <typename F>
    void share(bool by_all, int64_t count, F f) {
        int64_t from = by_all ? count * rank / size : 0, to = by_all ? count * (rank + 1) / size : count;
        if (by_all || rank == 0) {
            for (int64_t i = from; i < to; i++) f(i);
        }
        wait();
    }

    // f(i) for i < count, by whoever comes first, `at_once` of them at a time.
    template <typename F>
    void in_turn(int64_t count, int64_t at_once, F f) {
        std::atomic<int64_t>& next = state.next[loops % 2];
        // Nobody looks at the other one before all have waited once more.
        if (rank == 0) state.next[++loops % 2].store(0, std::memory_order_relaxed);
        else ++loops;
        for (;;) {
            int64_t from = next.fetch_add(at_once, std::memory_order_relaxed);
            if (from >= count) break;
            for (int64_t i = from; i < std::min(from + at_once, count); i++) f(i);
        }
        wait();
    }

  private:
    static constexpr int LOOKS = 1000;  // some tens of microseconds

    TeamState& state;
    int rank, size;
    unsigned loops = 0;
};

// Memory of the calling thread that lives on, as a step asks for the same again and again.
static inline char* kept_scratch(int64_t bytes) {
    static thread_local std::vector<char> memory;
    memory.resize(std::max<size_t>(memory.size(), bytes + 64));
    return (char*)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
}

// Returns what work(team) returns, which is the same for every thread.
template <typename F>
int with_team(bool many, TeamState& state, F work) {
    if (!many) {
        Team team(state, 0, 1);
        return work(team);
    }
    int status = 0;
#pragma omp parallel
    {
        Team team(state, omp_get_thread_num(), omp_get_num_threads());
        int found = work(team);
        if (team.leads()) status = found;
    }
    return status;
}

template <typename F>
int with_team(bool many, F work) {
    TeamState state;
    return with_team(many, state, work);
}

}  // namespace penstock
