// Primitives of the kernels. The only file with inline assembly; each such primitive has a twin that the
// emulator runs, of the same meaning by the PTX manual.
//
// A block's threads are in one dimension, a multiple of 32 of them.
#pragma once

using u16 = unsigned short;
using u32 = unsigned;
using i64 = long long;

#define DEVICE static __device__ __forceinline__

// A condition without which a kernel would be wrong: a bound or a mask that has to hold, and one under which
// more has to be done. The mutation check makes each GUARD true and each NEEDED false in turn, and expects the
// tests to fail.
#define GUARD(condition) (condition)
#define NEEDED(condition) (condition)

#ifdef __CUDACC__
// Shared memory whose size the launch gives; `bytes` of it are used.
extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
#define DYNAMIC_SHARED(name, bytes) unsigned char *const name = dynamic_shared_memory
#define SHARED_ARRAY(type, name, count) __shared__ __align__(16) type name[count]
#define REGISTER(name)
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#else
#define DYNAMIC_SHARED(name, bytes) unsigned char *const name = emulator::dynamic_shared(bytes)
#define SHARED_ARRAY(type, name, count)      \
    static const char name##_key = 0;        \
    type(&name)[count] = *static_cast<type(*)[count]>( \
        emulator::shared_array(&name##_key, sizeof(type) * (count)))
#define REGISTER(name) static const emulator::Registered name##_registered(#name, name);
#define UNROLL
#define NO_UNROLL
#endif

// Given threads of a block and, where the compiler would rather spill than use more registers, the blocks that a
// multiprocessor has to have room for.
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)

// Defines `name_bf16` and `name_f32`, which call the template function `name` with T set.
#define KERNEL_OF_BOTH(threads, name, parameters, arguments)                   \
    namespace of_bf16 {                                                        \
    using T = bf16;                                                            \
    KERNEL(threads) name##_bf16 parameters { name<T> arguments; }              \
    REGISTER(name##_bf16)                                                      \
    }                                                                          \
    namespace of_f32 {                                                         \
    using T = float;                                                           \
    KERNEL(threads) name##_f32 parameters { name<T> arguments; }               \
    REGISTER(name##_f32)                                                       \
    }

// bf16: the upper half of an f32.

struct bf16 {
    u16 bits;
};

DEVICE float bits_to_float(u32 bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, 4);
    return value;
#endif
}

DEVICE u32 float_to_bits(float value) {
#ifdef __CUDACC__
    return __float_as_uint(value);
#else
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
#endif
}

// Two values rounded to nearest even; the first in the lower half.
DEVICE u32 pack_bf16(float low, float high) {
#ifdef __CUDACC__
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    auto rounded = [](float value) -> u32 {
        if (value != value) return 0x7fff;
        const u32 bits = float_to_bits(value);
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    };
    return rounded(low) | rounded(high) << 16;
#endif
}

DEVICE float low_half(u32 packed) { return bits_to_float(packed << 16); }
DEVICE float high_half(u32 packed) { return bits_to_float(packed & 0xffff0000u); }

DEVICE float widened(bf16 value) { return bits_to_float(u32(value.bits) << 16); }
DEVICE float widened(float value) { return value; }

template <class T>
DEVICE T rounded(float value);
template <>
__device__ __forceinline__ bf16 rounded<bf16>(float value) {
    return bf16{u16(pack_bf16(value, 0.0f))};
}
template <>
__device__ __forceinline__ float rounded<float>(float value) {
    return value;
}

// 16 bytes at a time.

struct alignas(16) Words {
    u32 x, y, z, w;
};

// Values of T in 16 bytes.
template <class T>
constexpr int VECTOR = 16 / int(sizeof(T));

template <class... P>
DEVICE bool aligned16(P... pointers) {
    return ((reinterpret_cast<size_t>(pointers) | ...) & 15) == 0;
}


// Reads VECTOR<T> values at a 16-byte boundary.
DEVICE void load_vector(const bf16 *from, float (&values)[8]) {
    const Words words = *reinterpret_cast<const Words *>(from);
    const u32 pairs[4] = {words.x, words.y, words.z, words.w};
    UNROLL for (int i = 0; i < 4; ++i) {
        values[2 * i] = low_half(pairs[i]);
        values[2 * i + 1] = high_half(pairs[i]);
    }
}

DEVICE void load_vector(const float *from, float (&values)[4]) {
    const Words words = *reinterpret_cast<const Words *>(from);
    values[0] = bits_to_float(words.x);
    values[1] = bits_to_float(words.y);
    values[2] = bits_to_float(words.z);
    values[3] = bits_to_float(words.w);
}

DEVICE void store_vector(bf16 *to, const float (&values)[8]) {
    *reinterpret_cast<Words *>(to) =
        Words{pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]),
              pack_bf16(values[4], values[5]), pack_bf16(values[6], values[7])};
}

DEVICE void store_vector(float *to, const float (&values)[4]) {
    *reinterpret_cast<Words *>(to) = Words{float_to_bits(values[0]), float_to_bits(values[1]),
                                           float_to_bits(values[2]), float_to_bits(values[3])};
}

// Reads or writes N values: one, or as many as fit 16 bytes, at a boundary of their size.
template <int N, class T>
DEVICE void load(const T *from, float (&values)[N]) {
    if constexpr (N == 1) {
        values[0] = widened(*from);
    } else {
        load_vector(from, values);
    }
}

template <int N, class T>
DEVICE void store(T *to, const float (&values)[N]) {
    if constexpr (N == 1) {
        *to = rounded<T>(values[0]);
    } else {
        store_vector(to, values);
    }
}

// A number of values that is known when compiling.
template <int N>
struct Many {
    static constexpr int count = N;
};

// Calls `body(Many<N>, at)` for all of n elements, N of T at a time: as many as fit 16 bytes where `aligned`.
template <class T, class F>
DEVICE void for_elements(i64 n, bool aligned, F body) {
    const i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    const i64 whole = aligned ? n / VECTOR<T> * VECTOR<T> : 0;
    for (i64 at = thread * VECTOR<T>; GUARD(at < whole); at += threads * VECTOR<T>) body(Many<VECTOR<T>>{}, at);
    for (i64 at = whole + thread; GUARD(at < n); at += threads) body(Many<1>{}, at);
}

// Reads N f32 values, four at a time if N allows it; then they are at a 16-byte boundary.
template <int N>
DEVICE void load_floats(const float *from, float (&values)[N]) {
    if constexpr (N % 4 == 0) {
        UNROLL for (int i = 0; i < N; i += 4) {
            float four[4];
            load_vector(from + i, four);
            UNROLL for (int j = 0; j < 4; ++j) values[i + j] = four[j];
        }
    } else {
        UNROLL for (int i = 0; i < N; ++i) values[i] = from[i];
    }
}

// Calls `body(Many<N>, at)` for the `width` elements of a row, shared among `size` threads of which this is
// number `rank`; N is 1, or VECTOR<T> if `vectors`, and then the width a multiple of it.
template <class T, class F>
DEVICE void for_row(int width, bool vectors, int rank, int size, F body) {
    if (vectors) {
        for (int at = rank * VECTOR<T>; GUARD(at < width); at += size * VECTOR<T>) body(Many<VECTOR<T>>{}, at);
    } else {
        for (int at = rank; GUARD(at < width); at += size) body(Many<1>{}, at);
    }
}

// Arithmetic.

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;
constexpr float INFINITE = __builtin_huge_valf();

// 2^x, to two units in the last place; 1 for 0 and 0 for minus infinity, exactly.
DEVICE float exp2_fast(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// 1 / x, to a unit in the last place; 0 for infinity.
DEVICE float reciprocal(float x) {
#ifdef __CUDACC__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}

DEVICE float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }

// `cap * tanh(x / cap)`, or x if there is no cap: if it is 0.
DEVICE float soft_capped(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }

// The slope of `soft_capped` where it gave y.
DEVICE float soft_cap_slope(float y, float cap) {
    const float t = y / cap;
    return 1.0f - t * t;
}

// Reductions, in an order that depends on nothing but the number of threads.

DEVICE float shuffle_xor(float value, int mask) {
#ifdef __CUDACC__
    return __shfl_xor_sync(0xffffffffu, value, mask);
#else
    const u32 in[2] = {float_to_bits(value), u32(mask)};
    const auto &meeting = emulator::meet(
        [](emulator::Meeting &m) {
            for (unsigned lane = 0; lane < 32; ++lane) m.out[lane][0] = m.in[lane ^ m.in[lane][1]][0];
        },
        in, 2, nullptr);
    return bits_to_float(meeting.out[threadIdx.x % 32][0]);
#endif
}

DEVICE float warp_sum(float value) {
    UNROLL for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

DEVICE float warp_max(float value) {
    UNROLL for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}

DEVICE double warp_sum(double value) {
    UNROLL for (int mask = 16; mask > 0; mask /= 2) {
#ifdef __CUDACC__
        value += __shfl_xor_sync(0xffffffffu, value, mask);
#else
        u32 in[3];
        memcpy(in, &value, 8);
        in[2] = u32(mask);
        const auto &meeting = emulator::meet(
            [](emulator::Meeting &m) {
                for (unsigned lane = 0; lane < 32; ++lane) memcpy(m.out[lane], m.in[lane ^ m.in[lane][2]], 8);
            },
            in, 3, nullptr);
        double other;
        memcpy(&other, meeting.out[threadIdx.x % 32], 8);
        value += other;
#endif
    }
    return value;
}

// Sums over the block, which all threads get. `partial` holds a value per warp, and may be used again
// after the next barrier but one: two arrays in turn are enough.
template <class F>
DEVICE F block_sum(F value, F *partial) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    F total = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += partial[warp];
    return total;
}

// Tensor cores and the copies that feed them.

// d += a b, of a 16 x 16 and b 16 x 8 in bf16, d 16 x 8 in f32: mma.m16n8k16, with its fragments.
DEVICE void multiply_add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef __CUDACC__
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    const u32 in[10] = {a[0],
                        a[1],
                        a[2],
                        a[3],
                        b0,
                        b1,
                        float_to_bits(d[0]),
                        float_to_bits(d[1]),
                        float_to_bits(d[2]),
                        float_to_bits(d[3])};
    const auto &meeting = emulator::meet(
        [](emulator::Meeting &m) {
            float left[16][16], right[16][8], sum[16][8];
            for (int lane = 0; lane < 32; ++lane) {
                const int group = lane / 4, pair = lane % 4 * 2;
                const u32 *in = m.in[lane];
                for (int half = 0; half < 2; ++half) {
                    left[group][pair + 8 * half] = low_half(in[2 * half]);
                    left[group][pair + 8 * half + 1] = high_half(in[2 * half]);
                    left[group + 8][pair + 8 * half] = low_half(in[2 * half + 1]);
                    left[group + 8][pair + 8 * half + 1] = high_half(in[2 * half + 1]);
                    right[pair + 8 * half][group] = low_half(in[4 + half]);
                    right[pair + 8 * half + 1][group] = high_half(in[4 + half]);
                    sum[group + 8 * half][pair] = bits_to_float(in[6 + 2 * half]);
                    sum[group + 8 * half][pair + 1] = bits_to_float(in[7 + 2 * half]);
                }
            }
            for (int i = 0; i < 16; ++i) {
                for (int k = 0; k < 16; ++k) {
                    for (int j = 0; j < 8; ++j) sum[i][j] += left[i][k] * right[k][j];
                }
            }
            for (int lane = 0; lane < 32; ++lane) {
                const int group = lane / 4, pair = lane % 4 * 2;
                memcpy(&m.out[lane][0], &sum[group][pair], 8);
                memcpy(&m.out[lane][2], &sum[group + 8][pair], 8);
            }
        },
        in, 10, nullptr);
    memcpy(d, meeting.out[threadIdx.x % 32], 16);
#endif
}

#ifdef __CUDACC__
DEVICE u32 shared_address(const void *pointer) { return u32(__cvta_generic_to_shared(pointer)); }
#else
// Matrix i of 8 x 8 bf16 has its rows where lanes 8 i to 8 i + 7 point; a lane gets two neighbours of it.
DEVICE void matrices_together(emulator::Meeting &m, bool transposed) {
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            u16 pair[2];
            for (int side = 0; side < 2; ++side) {
                const int row = transposed ? lane % 4 * 2 + side : lane / 4;
                const int column = transposed ? lane / 4 : lane % 4 * 2 + side;
                pair[side] = static_cast<const u16 *>(m.pointer[8 * i + row])[column];
            }
            m.out[lane][i] = pair[0] | u32(pair[1]) << 16;
        }
    }
}
#endif

// ldmatrix.x4, and the same of the matrices transposed. Each lane points at a row of 16 bytes.
DEVICE void load_matrices(u32 (&to)[4], const bf16 *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)));
#else
    const auto &meeting =
        emulator::meet([](emulator::Meeting &m) { matrices_together(m, false); }, nullptr, 0, row);
    memcpy(to, meeting.out[threadIdx.x % 32], 16);
#endif
}

DEVICE void load_matrices_transposed(u32 (&to)[4], const bf16 *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)));
#else
    const auto &meeting =
        emulator::meet([](emulator::Meeting &m) { matrices_together(m, true); }, nullptr, 0, row);
    memcpy(to, meeting.out[threadIdx.x % 32], 16);
#endif
}

// Starts to copy 16 bytes to shared memory, of which the first `bytes` are read and the others zero.
DEVICE void copy_async(void *to, const void *from, u32 bytes) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
#else
    emulator::copy_async(to, from, bytes);
#endif
}

// Puts the copies that this thread started since the last call into a group.
DEVICE void commit_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::commit_copies();
#endif
}

// Waits for this thread's copies but for those of its last PENDING groups.
template <int PENDING>
DEVICE void wait_for_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    emulator::wait_for_copies(PENDING);
#endif
}
