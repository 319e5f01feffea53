// Runs kernels on the CPU: a fiber for each thread of a block, a schedule drawn from a seed.
//
// A thread runs until it meets others: at a barrier, in a shuffle, in a product of matrices. Then another
// that can go on is drawn: a warp by priorities that change now and then, so that some warps get far ahead of
// others, and a lane of it at random. What a thread may not rely on is made visible: shared memory starts
// as NaN, and copies to it that are not waited for come late.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "shim.h"

extern "C" {
__thread const emulator::Lane *remit_lane;
__thread emulator::Index remit_block_index, remit_block_size, remit_grid_size;

enum RemitStatus {
    REMIT_OK = 0,
    REMIT_UNKNOWN_KERNEL = 1,
    REMIT_BAD_LAUNCH = 2,
    REMIT_DEADLOCK = 3,
    REMIT_DIVERGENCE = 4,
    REMIT_SHARED_MEMORY = 5,
};
}

namespace emulator {
namespace {

constexpr unsigned MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32;
/// What a block may have on sm_90.
constexpr unsigned MAX_SHARED = 227 << 10;
constexpr size_t PAGE = 4096;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 512 << 10;
#else
constexpr size_t STACK = 128 << 10;
#endif

// Switching fibers: what a call has to keep is pushed, then the stack is exchanged.

#if defined(__x86_64__)
using Saved = void *;
extern "C" __attribute__((visibility("hidden"))) void remit_emulator_switch(Saved *from, Saved to);
asm(R"(
    .text
    .hidden remit_emulator_switch
    .globl remit_emulator_switch
    .type remit_emulator_switch, @function
remit_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size remit_emulator_switch, . - remit_emulator_switch
)");

void switch_to(Saved &from, Saved &to) { remit_emulator_switch(&from, to); }

void prepare(Saved &saved, char *stack, size_t size, void (*entry)()) {
    // Six registers, the address to return to, and one that `entry` never returns to.
    auto *top = reinterpret_cast<void **>(stack + size) - 8;
    std::fill(top, top + 8, nullptr);
    top[6] = reinterpret_cast<void *>(entry);
    saved = top;
}
#else
using Saved = ucontext_t;
void switch_to(Saved &from, Saved &to) { swapcontext(&from, &to); }
void prepare(Saved &saved, char *stack, size_t size, void (*entry)()) {
    getcontext(&saved);
    saved.uc_stack.ss_sp = stack;
    saved.uc_stack.ss_size = size;
    saved.uc_link = nullptr;
    makecontext(&saved, entry, 0);
}
#endif

struct Fiber {
    Saved saved;
    char *stack = nullptr;
};

struct Copy {
    void *to;
    const void *from;
    unsigned bytes, group;
};

struct Thread {
    Lane lane;
    /// None before the thread starts.
    Fiber *fiber;
    unsigned groups;
    std::vector<Copy> copies;
};

struct Warp {
    /// Lanes that can go on, and those that came to the meeting.
    uint32_t ready, met;
    Together together;
    Meeting meeting;
};

struct SharedArray {
    const void *key;
    size_t bytes;
    void *memory;
};

/// Returns whole pages for so many bytes, and behind them one that can't be touched.
void *fenced(size_t bytes) {
    const size_t pages = (bytes + PAGE - 1) / PAGE * PAGE;
    void *memory = mmap(nullptr, pages + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, pages, PROT_READ | PROT_WRITE) != 0) {
        std::fprintf(stderr, "emulator: no memory for a block\n");
        std::abort();
    }
    return memory;
}

/// All that a launch on one OS thread has.
struct State {
    std::vector<Thread> threads{MAX_THREADS};
    std::vector<Warp> warps{MAX_WARPS};
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber *> idle;
    Saved outside;
    Fiber *running = nullptr;
    Thread *now = nullptr;

    const Kernel *kernel = nullptr;
    void **arguments = nullptr;
    unsigned count = 0, left = 0, at_barrier = 0;
    /// Warps by priority, the place of each, and the places whose warps have lanes that can go on.
    unsigned order[MAX_WARPS], place[MAX_WARPS];
    uint32_t ready_places = 0;
    bool by_priority = false;
    uint64_t random = 1;

    /// The launch's shared memory, which ends where memory that can't be touched begins.
    unsigned char *shared = nullptr, *shared_end = nullptr;
    size_t shared_bytes = 0;
    std::vector<SharedArray> arrays;

    int status = REMIT_OK;
    std::string error;

    State() { shared_end = static_cast<unsigned char *>(fenced(MAX_SHARED)) + (MAX_SHARED + PAGE - 1) / PAGE * PAGE; }

    ~State() {
        const size_t pages = (MAX_SHARED + PAGE - 1) / PAGE * PAGE;
        munmap(shared_end - pages, pages + PAGE);
        for (auto &fiber : fibers) munmap(fiber->stack, STACK + PAGE);
    }

    uint32_t draw() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return uint32_t(random >> 32);
    }
};

thread_local std::unique_ptr<State> owned;
__thread State *state;

/// A set bit of a mask that is not zero, at random.
unsigned drawn_bit(uint32_t mask, uint32_t random) {
    const unsigned turn = random % 32;
    const uint32_t turned = mask >> turn | mask << (-turn & 31);
    return (unsigned(__builtin_ctz(turned)) + turn) % 32;
}

void make_ready(State &s, unsigned warp, uint32_t lanes) {
    s.warps[warp].ready |= lanes;
    s.ready_places |= 1u << s.place[warp];
}

void exchange(State &s, unsigned a, unsigned b) {
    std::swap(s.order[a], s.order[b]);
    s.place[s.order[a]] = a;
    s.place[s.order[b]] = b;
    const uint32_t differ = (s.ready_places >> a ^ s.ready_places >> b) & 1;
    s.ready_places ^= differ << a | differ << b;
}

/// Draws the thread that goes on; none if all wait.
Thread *draw_next(State &s) {
    if (s.ready_places == 0) return nullptr;
    const uint32_t random = s.draw();
    if (s.by_priority && (random >> 26) == 0) {
        const unsigned warps = s.count / 32;
        exchange(s, random % warps, random / 32 % warps);
    }
    const unsigned place =
        s.by_priority ? unsigned(__builtin_ctz(s.ready_places)) : drawn_bit(s.ready_places, random >> 8);
    const unsigned number = s.order[place];
    Warp &warp = s.warps[number];
    const unsigned lane = drawn_bit(warp.ready, random);
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) s.ready_places &= ~(1u << place);
    return &s.threads[number * 32 + lane];
}

void leave(State &s, int status, std::string error) {
    if (s.status == REMIT_OK) {
        s.status = status;
        s.error = std::move(error);
    }
    Fiber *from = s.running;
    s.running = nullptr;
    switch_to(from->saved, s.outside);
}

void fiber_main();

Fiber *idle_fiber(State &s) {
    if (s.idle.empty()) {
        auto fiber = std::make_unique<Fiber>();
        fiber->stack = static_cast<char *>(fenced(STACK));
        prepare(fiber->saved, fiber->stack, STACK, fiber_main);
        s.idle.push_back(fiber.get());
        s.fibers.push_back(std::move(fiber));
    }
    Fiber *fiber = s.idle.back();
    s.idle.pop_back();
    return fiber;
}

/// Lets `next` go on in place of the thread that runs, which is not over.
void go_on_with(State &s, Thread *next) {
    Thread *mine = s.now;
    if (next == mine) return;
    if (next == nullptr) {
        leave(s, REMIT_DEADLOCK, "all threads wait, some of them for a barrier or a collective that others never reach");
        return;
    }
    if (next->fiber == nullptr) next->fiber = idle_fiber(s);
    Fiber *from = s.running;
    s.now = next;
    s.running = next->fiber;
    remit_lane = &next->lane;
    switch_to(from->saved, next->fiber->saved);
}

void land(const Copy &copy) {
    memset(copy.to, 0, 16);
    memcpy(copy.to, copy.from, copy.bytes);
}

/// Runs threads that have not started, one after the other, until one is drawn that has.
void fiber_main() {
    for (;;) {
        State &s = *state;
        s.kernel->call(s.kernel->function, s.arguments);
        Thread &done = *s.now;
        for (const Copy &copy : done.copies) land(copy);
        done.copies.clear();
        Fiber *mine = s.running;
        Thread *next = --s.left == 0 ? nullptr : draw_next(s);
        if (next == nullptr) {
            s.idle.push_back(mine);
            s.running = nullptr;
            if (s.left != 0 && s.status == REMIT_OK) {
                s.status = REMIT_DEADLOCK;
                s.error = "some threads ended where others wait for them at a barrier or in a collective";
            }
            switch_to(mine->saved, s.outside);
            continue;
        }
        s.now = next;
        remit_lane = &next->lane;
        if (next->fiber == nullptr) {
            next->fiber = mine;
            continue;
        }
        s.idle.push_back(mine);
        s.running = next->fiber;
        switch_to(mine->saved, next->fiber->saved);
    }
}

void run_block(State &s) {
    const unsigned warps = s.count / 32;
    s.left = s.count;
    s.at_barrier = 0;
    s.ready_places = 0;
    for (unsigned i = 0; i < warps; ++i) {
        const unsigned j = s.draw() % (i + 1);
        s.order[i] = s.order[j];
        s.order[j] = i;
    }
    for (unsigned i = 0; i < warps; ++i) s.place[s.order[i]] = i;
    for (unsigned i = 0; i < warps; ++i) {
        s.warps[i].ready = s.warps[i].met = 0;
        make_ready(s, i, ~0u);
    }
    for (unsigned i = 0; i < s.count; ++i) {
        Thread &thread = s.threads[i];
        thread.lane = {{i, 0, 0}, i / 32, i % 32};
        thread.fiber = nullptr;
        thread.groups = 0;
        thread.copies.clear();
    }
    s.by_priority = s.draw() % 4 != 0;
    memset(s.shared, 0xff, s.shared_bytes);
    for (SharedArray &array : s.arrays) memset(array.memory, 0xff, array.bytes);

    Thread *first = draw_next(s);
    first->fiber = idle_fiber(s);
    s.now = first;
    s.running = first->fiber;
    remit_lane = &first->lane;
    switch_to(s.outside, first->fiber->saved);
}

/// Frees what a failed launch left behind in the middle of its kernel.
void abandon(State &s) {
    s.idle.clear();
    for (auto &fiber : s.fibers) {
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(fiber->stack, STACK);
#endif
        prepare(fiber->saved, fiber->stack, STACK, fiber_main);
        s.idle.push_back(fiber.get());
    }
    for (Thread &thread : s.threads) thread.copies.clear();
}

Kernel *&kernels() {
    static Kernel *first = nullptr;
    return first;
}

const Kernel *find(const char *name) {
    for (const Kernel *kernel = kernels(); kernel != nullptr; kernel = kernel->next) {
        if (strcmp(kernel->name, name) == 0) return kernel;
    }
    return nullptr;
}

}  // namespace

void add(Kernel *kernel) {
    if (find(kernel->name) != nullptr) {
        std::fprintf(stderr, "emulator: two kernels are called %s\n", kernel->name);
        std::abort();
    }
    kernel->next = kernels();
    kernels() = kernel;
}

Meeting &meet(Together together, const uint32_t *in, int words, const void *pointer) {
    State &s = *state;
    const Lane &lane = s.now->lane;
    Warp &warp = s.warps[lane.warp];
    if (warp.met == 0) {
        warp.together = together;
    } else if (warp.together != together) {
        leave(s, REMIT_DIVERGENCE, "lanes of a warp are in different collectives");
    }
    Meeting &meeting = warp.meeting;
    for (int i = 0; i < words; ++i) meeting.in[lane.lane][i] = in[i];
    meeting.pointer[lane.lane] = pointer;
    warp.met |= 1u << lane.lane;
    if (warp.met == ~0u) {
        together(meeting);
        warp.met = 0;
        make_ready(s, lane.warp, ~0u);
    }
    go_on_with(s, draw_next(s));
    return meeting;
}

void barrier() {
    State &s = *state;
    if (++s.at_barrier == s.count) {
        s.at_barrier = 0;
        for (unsigned warp = 0; warp < s.count / 32; ++warp) make_ready(s, warp, ~0u);
    }
    go_on_with(s, draw_next(s));
}

unsigned char *dynamic_shared(size_t bytes) {
    State &s = *state;
    if (bytes > s.shared_bytes) {
        leave(s, REMIT_SHARED_MEMORY,
              "the kernel uses " + std::to_string(bytes) + " bytes of dynamic shared memory, the launch gave " +
                  std::to_string(s.shared_bytes));
    }
    return s.shared;
}

void *shared_array(const void *key, size_t bytes) {
    State &s = *state;
    for (const SharedArray &array : s.arrays) {
        if (array.key == key) return array.memory;
    }
    void *memory = std::aligned_alloc(16, (bytes + 15) / 16 * 16);
    memset(memory, 0xff, bytes);
    s.arrays.push_back({key, bytes, memory});
    return memory;
}

void copy_async(void *to, const void *from, unsigned bytes) {
    State &s = *state;
    const Copy copy{to, from, bytes, s.now->groups};
    if (s.draw() % 2 == 0) {
        land(copy);
    } else {
        s.now->copies.push_back(copy);
    }
}

void commit_copies() { ++state->now->groups; }

void wait_for_copies(unsigned pending) {
    Thread &thread = *state->now;
    size_t kept = 0;
    for (size_t i = 0; i < thread.copies.size(); ++i) {
        const Copy copy = thread.copies[i];
        if (copy.group + pending < thread.groups) {
            land(copy);
        } else {
            thread.copies[kept++] = copy;
        }
    }
    thread.copies.resize(kept);
}

}  // namespace emulator

// The interface: see README.md.

extern "C" int remit_emulate(const char *name, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
                             void **arguments, unsigned long long seed) {
    using namespace emulator;
    if (!owned) {
        owned = std::make_unique<State>();
        state = owned.get();
    }
    State &s = *state;
    s.status = REMIT_OK;
    s.error.clear();
    auto failed = [&](int status, std::string error) {
        s.error = std::move(error);
        return status;
    };
    s.kernel = find(name);
    if (s.kernel == nullptr) return failed(REMIT_UNKNOWN_KERNEL, std::string("no kernel is called ") + name);
    const bool block_fits =
        block[0] != 0 && block[0] <= MAX_THREADS && block[0] % 32 == 0 && block[1] == 1 && block[2] == 1;
    if (!block_fits) return failed(REMIT_BAD_LAUNCH, "a block has 32 to 1024 threads in x, a multiple of 32");
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535) {
        return failed(REMIT_BAD_LAUNCH, "a grid has 1 to 2^31 - 1 blocks in x and 1 to 65535 in y and z");
    }
    if (shared_bytes > MAX_SHARED) return failed(REMIT_SHARED_MEMORY, "a block has at most 227 KiB of shared memory");

    s.arguments = arguments;
    s.count = block[0];
    s.random = seed * 0x9e3779b97f4a7c15ull + 0x632be59bd9b4e019ull;
    if (s.random == 0) s.random = 1;
    for (int i = 0; i < 4; ++i) s.draw();
    s.shared_bytes = shared_bytes;
    s.shared = s.shared_end - (shared_bytes + 15) / 16 * 16;
    remit_block_size = {block[0], 1, 1};
    remit_grid_size = {grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2] && s.status == REMIT_OK; ++z) {
        for (unsigned y = 0; y < grid[1] && s.status == REMIT_OK; ++y) {
            for (unsigned x = 0; x < grid[0] && s.status == REMIT_OK; ++x) {
                remit_block_index = {x, y, z};
                run_block(s);
            }
        }
    }
    if (s.status != REMIT_OK) {
        char place[96];
        std::snprintf(place, sizeof place, " (block %u, %u, %u)", remit_block_index.x, remit_block_index.y,
                      remit_block_index.z);
        s.error = std::string(name) + ": " + s.error + place;
        abandon(s);
    }
    for (const SharedArray &array : s.arrays) std::free(array.memory);
    s.arrays.clear();
    return s.status;
}

extern "C" const char *remit_emulated_error() {
    return emulator::state == nullptr ? "" : emulator::state->error.c_str();
}

extern "C" const char *remit_emulated_signature(const char *name) {
    const emulator::Kernel *kernel = emulator::find(name);
    return kernel == nullptr ? nullptr : kernel->signature;
}

extern "C" const char *remit_emulated_kernel(unsigned index) {
    const emulator::Kernel *kernel = emulator::kernels();
    for (; kernel != nullptr && index > 0; --index) kernel = kernel->next;
    return kernel == nullptr ? nullptr : kernel->name;
}
