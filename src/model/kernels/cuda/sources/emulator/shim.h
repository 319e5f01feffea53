// What nvcc would provide, for g++: kernels run on the CPU, a fiber for each thread of a block.
//
// Included before every .cu file (`g++ -x c++ -include emulator/shim.h`). One block runs at a time on an
// OS thread; several OS threads may each run a launch.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

namespace emulator {

struct Index {
    unsigned x, y, z;
};

/// A thread of the block that is running.
struct Lane {
    Index thread;
    unsigned warp, lane;
};

/// Words that a lane brings to a collective of its warp and takes from it.
constexpr int MAX_IN = 10, MAX_OUT = 4;

/// What the lanes of a warp have in common while they meet.
struct Meeting {
    uint32_t in[32][MAX_IN];
    uint32_t out[32][MAX_OUT];
    const void *pointer[32];
};

/// What a collective computes once all lanes of a warp have come; its address tells collectives apart.
using Together = void (*)(Meeting &);

/// Waits until all lanes of the warp are in this collective, of which the last to come computes `together`.
Meeting &meet(Together together, const uint32_t *in, int words, const void *pointer);

/// Waits until all threads of the block are here.
void barrier();

/// Returns the launch's dynamic shared memory, after a check that it has at least so many bytes.
unsigned char *dynamic_shared(size_t bytes);

/// Returns the block's shared array of this key, poisoned when the first thread comes.
void *shared_array(const void *key, size_t bytes);

/// Copies 16 bytes, of which only the first `bytes` are read and the others zero: at once, or at any time
/// until the wait for their group.
void copy_async(void *to, const void *from, unsigned bytes);
void commit_copies();
/// Waits until at most `pending` of this thread's groups of copies are under way.
void wait_for_copies(unsigned pending);

/// A kernel that can be launched by name.
struct Kernel {
    const char *name;
    /// A letter per parameter: p pointer, i int, u unsigned, q long long, f float.
    const char *signature;
    void (*function)();
    void (*call)(void (*function)(), void **arguments);
    Kernel *next;
};

/// Makes a kernel known; at most once for each name.
void add(Kernel *kernel);

template <class P>
constexpr char letter() {
    if (std::is_pointer<P>::value) return 'p';
    if (std::is_same<P, int>::value) return 'i';
    if (std::is_same<P, unsigned>::value) return 'u';
    if (std::is_same<P, long long>::value) return 'q';
    if (std::is_same<P, float>::value) return 'f';
    return '?';
}

template <class... P>
struct Registered {
    Kernel kernel;

    template <size_t... I>
    static void unpacked(void (*function)(P...), void **arguments, std::index_sequence<I...>) {
        function(*static_cast<P *>(arguments[I])...);
    }

    static void call(void (*function)(), void **arguments) {
        unpacked(reinterpret_cast<void (*)(P...)>(function), arguments, std::index_sequence_for<P...>());
    }

    explicit Registered(const char *name, void (*function)(P...)) {
        static const char signature[] = {letter<P>()..., 0};
        kernel = {name, signature, reinterpret_cast<void (*)()>(function), call, nullptr};
        add(&kernel);
    }
};

}  // namespace emulator

extern "C" {
extern __thread const emulator::Lane *remit_lane;
extern __thread emulator::Index remit_block_index, remit_block_size, remit_grid_size;
}

#define threadIdx (remit_lane->thread)
#define blockIdx remit_block_index
#define blockDim remit_block_size
#define gridDim remit_grid_size

inline void __syncthreads() { emulator::barrier(); }

inline void __syncwarp() {
    emulator::meet([](emulator::Meeting &) {}, nullptr, 0, nullptr);
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
