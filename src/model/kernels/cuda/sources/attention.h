// What the attention kernels share: tiles, masks, fragments.
//
// A block has a tile of 64 tokens of one row and one head, of which each group of 16 belongs to a warp. It
// goes through the tiles of the other side that it meets; two of them are in shared memory, one under way
// while the other is used. Heads are padded with zeros, rows of shared memory by 16 bytes, so that eight of
// them lie in different banks.
#pragma once
#include "device.h"

constexpr int TILE = 64;

// The shape of an attention that a kernel is given.
struct Attention {
    int tokens, heads, kv_heads, head_dim, v_head_dim;
    float scale, cap;
    int window;
};

// 64 tokens of a row, or those left: the row's first token and length, the position of the tile in it.
struct Tile {
    int start, len, first;
};

DEVICE Tile tile_at(const int *tiles, int index) {
    const Words words = *reinterpret_cast<const Words *>(tiles + 4 * i64(index));
    return Tile{int(words.x), int(words.y), int(words.z)};
}

DEVICE bool sees(int query, int key, int window) {
    return GUARD(key <= query) && (window == 0 || GUARD(key > query - window));
}

// The first key that a tile of queries sees, rounded down to a tile of N.
template <int N>
DEVICE int first_key(int query, int window) {
    return window > 0 && query + 1 > window ? (query + 1 - window) / N * N : 0;
}

// The end of the queries that see a key up to `last`.
DEVICE int end_of_queries(int last, int len, int window) {
    return window > 0 && window < len - last ? last + window : len;
}

// One head of one row, `[len, dim]`, in memory.
template <class T>
struct Head {
    T *values;
    i64 stride;
    int len, dim;
    bool aligned;
};

template <class T>
DEVICE Head<T> head_of(T *x, const Tile &tile, int heads, int head, int dim) {
    const i64 stride = i64(heads) * dim;
    return Head<T>{x + tile.start * stride + head * dim, stride, tile.len, dim, dim % 8 == 0 && aligned16(x)};
}

// Elements between rows of a tile in shared memory.
template <int D>
constexpr int PITCH = D + 8;

// Starts to copy ROWS tokens from `first` on into a tile of D features; what is not there is zero.
template <int ROWS, int D, int THREADS>
DEVICE void load_tile(bf16 *tile, const Head<const bf16> &head, int first) {
    constexpr int CHUNKS = D / 8;
    if (!head.aligned) {
        for (int i = threadIdx.x; i < ROWS * D; i += THREADS) {
            const int row = i / D, column = i % D;
            const bool there = GUARD(first + row < head.len) && GUARD(column < head.dim);
            tile[row * PITCH<D> + column] = there ? head.values[(first + row) * head.stride + column] : bf16{0};
        }
    } else if constexpr (THREADS % CHUNKS == 0) {
        // A thread has one column, so that addresses are sums.
        constexpr int STEP = THREADS / CHUNKS;
        static_assert(ROWS % STEP == 0, "threads have as many rows each");
        const int column = threadIdx.x % CHUNKS * 8;
        if (!GUARD(column < head.dim)) {
            for (int row = threadIdx.x / CHUNKS; row < ROWS; row += STEP) copy_async(tile + row * PITCH<D> + column, head.values, 0);
            return;
        }
        int row = threadIdx.x / CHUNKS;
        bf16 *to = tile + row * PITCH<D> + column;
        const bf16 *from = head.values + (first + row) * head.stride + column;
        UNROLL for (int i = 0; i < ROWS / STEP; ++i) {
            const bool there = GUARD(first + row < head.len);
            copy_async(to, there ? from : head.values, there ? 16 : 0);
            row += STEP;
            to += STEP * PITCH<D>;
            from += STEP * head.stride;
        }
    } else {
        for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
            const int row = i / CHUNKS, column = i % CHUNKS * 8;
            const bool there = GUARD(first + row < head.len) && GUARD(column < head.dim);
            const bf16 *from = head.values + (there ? (first + row) * head.stride + column : 0);
            copy_async(tile + row * PITCH<D> + column, from, there ? 16 : 0);
        }
    }
}

// Writes ROWS tokens from `first` on, of WIDTH features each, from a tile with the pitch of D, as number `rank` of
// `threads`.
template <int ROWS, int D, int WIDTH>
DEVICE void store_tile(const bf16 *tile, const Head<bf16> &head, int first, int rank, int threads) {
    constexpr int CHUNKS = WIDTH / 8;
    for (int i = rank; i < ROWS * CHUNKS; i += threads) {
        const int row = i / CHUNKS, column = i % CHUNKS * 8;
        if (!GUARD(first + row < head.len) || !GUARD(column < head.dim)) continue;
        const bf16 *from = tile + row * PITCH<D> + column;
        bf16 *there = head.values + (first + row) * head.stride + column;
        if (head.aligned) {
            *reinterpret_cast<Words *>(there) = *reinterpret_cast<const Words *>(from);
        } else {
            for (int j = 0; j < 8 && GUARD(column + j < head.dim); ++j) there[j] = from[j];
        }
    }
}

// Fragments of tiles in shared memory, 16 x 16 of them at a time. Rows are of the left side, or of what is summed
// over on the right side: `load_matrices_transposed` then.
template <int D>
DEVICE const bf16 *fragment(const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    return tile + (row + lane % 16) * PITCH<D> + column + lane / 16 * 8;
}

// The same for the right side, where rows are its columns.
template <int D>
DEVICE const bf16 *fragment_right(const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    return tile + (row + lane % 8 + lane / 16 * 8) * PITCH<D> + column + lane / 8 % 2 * 8;
}

// sums[n] += left [16, D] right^T, of right [8 * BLOCKS, D], for pairs of blocks that `wanted(pair)`.
template <int D, int BLOCKS, class F>
DEVICE void multiply_tiles(float (&sums)[BLOCKS][4], const bf16 *left, const bf16 *right, F wanted) {
    UNROLL for (int k = 0; k < D; k += 16) {
        u32 a[4];
        load_matrices(a, fragment<D>(left, 0, k));
        UNROLL for (int pair = 0; pair < BLOCKS / 2; ++pair) {
            if (!wanted(pair)) continue;
            u32 b[4];
            load_matrices(b, fragment_right<D>(right, pair * 16, k));
            multiply_add(sums[2 * pair], a, b[0], b[1]);
            multiply_add(sums[2 * pair + 1], a, b[2], b[3]);
        }
    }
}

// sums[n] += left [16, 8 * BLOCKS] right, of right [8 * BLOCKS, 8 * N] from column `first` on in rows of D,
// for pairs of blocks that `wanted(pair)`. The left side is in fragments of a product, and rounded; it has GROUPS
// times 16 rows.
template <int D, int GROUPS, int BLOCKS, int N, class F>
DEVICE void multiply_rounded(float (&sums)[GROUPS][N][4], const float (&left)[GROUPS][BLOCKS][4], const bf16 *right, int first,
                             F wanted) {
    UNROLL for (int pair = 0; pair < BLOCKS / 2; ++pair) {
        if (!wanted(pair)) continue;
        u32 a[GROUPS][4];
        UNROLL for (int group = 0; group < GROUPS; ++group) {
            const float(&l)[4] = left[group][2 * pair], (&r)[4] = left[group][2 * pair + 1];
            a[group][0] = pack_bf16(l[0], l[1]);
            a[group][1] = pack_bf16(l[2], l[3]);
            a[group][2] = pack_bf16(r[0], r[1]);
            a[group][3] = pack_bf16(r[2], r[3]);
        }
        UNROLL for (int n = 0; n < N / 2; ++n) {
            u32 b[4];
            load_matrices_transposed(b, fragment<D>(right, pair * 16, first + n * 16));
            UNROLL for (int group = 0; group < GROUPS; ++group) {
                multiply_add(sums[group][2 * n], a[group], b[0], b[1]);
                multiply_add(sums[group][2 * n + 1], a[group], b[2], b[3]);
            }
        }
    }
}

// The same of 16 rows.
template <int D, int BLOCKS, int N, class F>
DEVICE void multiply_rounded(float (&sums)[N][4], const float (&left)[BLOCKS][4], const bf16 *right, int first, F wanted) {
    using Sums = float[1][N][4];
    using Left = const float[1][BLOCKS][4];
    multiply_rounded<D, 1, BLOCKS, N>(reinterpret_cast<Sums &>(sums), reinterpret_cast<Left &>(left), right, first, wanted);
}

// Rounds a fragment's sums times a factor for each of its two rows into 16 rows of a tile, from column `first` on.
template <int D, int N>
DEVICE void round_to_tile(bf16 *tile, int first, const float (&sums)[N][4], float factor_low, float factor_high) {
    const int lane = threadIdx.x % 32;
    bf16 *at = tile + lane / 4 * PITCH<D> + first + lane % 4 * 2;
    UNROLL for (int n = 0; n < N; ++n) {
        *reinterpret_cast<u32 *>(at + n * 8) = pack_bf16(sums[n][0] * factor_low, sums[n][1] * factor_low);
        *reinterpret_cast<u32 *>(at + n * 8 + 8 * PITCH<D>) = pack_bf16(sums[n][2] * factor_high, sums[n][3] * factor_high);
    }
}

// tanh by a fast exponential: to 2e-7, absolutely.
DEVICE float tanh_fast(float x) { return 1.0f - 2.0f * reciprocal(exp2_fast(2.0f * LOG2_E * x) + 1.0f); }

// A probability, given a product of a query and a key and the query's log-sum-exp to base 2; and by what its
// gradient is to be multiplied because of the soft cap.
struct Probability {
    float p, slope;
};

DEVICE Probability probability(float product, float lse2, float scale, float cap) {
    if (cap > 0.0f) {
        const float t = tanh_fast(product * (scale / cap));
        return Probability{exp2_fast(t * (cap * LOG2_E) - lse2), 1.0f - t * t};
    }
    return Probability{exp2_fast(product * (scale * LOG2_E) - lse2), 1.0f};
}
