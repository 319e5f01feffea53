// The gradient of queries of causal attention in bf16, and the row sums that both backwards need.
//
// dq = scale dS k, with dS as for keys and values. A block has 64 queries and goes through the keys that they see.
#include "attention.h"

constexpr int THREADS = 128;

template <int D, int DV>
DEVICE void attention_backward_q(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_out, const float *lse,
                                 const float *delta, bf16 *dq, const int *tiles, const Attention &shape) {
    constexpr int N = D <= 64 ? 64 : 32;
    constexpr int KV = N * (PITCH<D> + PITCH<DV>);
    DYNAMIC_SHARED(memory, sizeof(bf16) * (TILE * (PITCH<D> + PITCH<DV>) + 2 * KV));
    bf16 *const q_tile = reinterpret_cast<bf16 *>(memory), *const d_tile = q_tile + TILE * PITCH<D>;
    bf16 *const kv_tiles = d_tile + TILE * PITCH<DV>;

    const Tile tile = tile_at(tiles, blockIdx.x);
    const int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads);
    const Head<const bf16> k_head = head_of(k, tile, shape.kv_heads, kv_head, shape.head_dim);
    const Head<const bf16> v_head = head_of(v, tile, shape.kv_heads, kv_head, shape.v_head_dim);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int query = tile.first + 16 * warp;  // the warp's first
    bf16 *const my_q = q_tile + 16 * warp * PITCH<D>;
    const bf16 *const my_d = d_tile + 16 * warp * PITCH<DV>;
    const int end = tile.first + TILE < tile.len ? tile.first + TILE : tile.len;

    auto load = [&](int key, int buffer) {
        bf16 *const to = kv_tiles + buffer * KV;
        load_tile<N, D, THREADS>(to, k_head, key);
        load_tile<N, DV, THREADS>(to + N * PITCH<D>, v_head, key);
    };
    load_tile<TILE, D, THREADS>(q_tile, head_of(q, tile, shape.heads, head, shape.head_dim), tile.first);
    load_tile<TILE, DV, THREADS>(d_tile, head_of(d_out, tile, shape.heads, head, shape.v_head_dim), tile.first);
    int key = first_key<N>(tile.first, shape.window);
    load(key, 0);
    commit_copies();
    // Of the lane's two queries.
    float my_lse[2], my_delta[2];
    for (int side = 0; side < 2; ++side) {
        const int my_query = query + lane / 4 + 8 * side;
        const bool there = GUARD(my_query < tile.len);
        const i64 at = i64(head) * shape.tokens + tile.start + my_query;
        my_lse[side] = there ? lse[at] * LOG2_E : 0.0f;
        my_delta[side] = there ? delta[at] : 0.0f;
    }

    float sums[D / 8][4] = {};
    for (int buffer = 0; key < end; key += N, buffer ^= 1) {
        wait_for_copies<0>();
        __syncthreads();
        if (key + N < end) load(key + N, buffer ^ 1);
        commit_copies();
        // A warp may have no query in the row, or none that sees this tile.
        if (query >= tile.len || key > query + 15) continue;
        const bf16 *const k_tile = kv_tiles + buffer * KV, *const v_tile = k_tile + N * PITCH<D>;
        auto compute = [&](auto masked) {
            constexpr bool MASKED = decltype(masked)::count != 0;
            auto wanted = [&](int pair) { return !MASKED || key + 16 * pair <= query + 15; };
            float p[N / 8][4] = {}, ds[N / 8][4] = {};
            multiply_tiles<D>(p, my_q, k_tile, wanted);
            multiply_tiles<DV>(ds, my_d, v_tile, wanted);
            UNROLL for (int n = 0; n < N / 8; ++n) {
                UNROLL for (int i = 0; i < 4; ++i) {
                    const int my_key = key + n * 8 + lane % 4 * 2 + i % 2;
                    Probability one = probability(p[n][i], my_lse[i / 2], shape.scale, shape.cap);
                    if (MASKED && !sees(query + lane / 4 + i / 2 * 8, my_key, shape.window)) one.p = 0.0f;
                    ds[n][i] = one.p * (ds[n][i] - my_delta[i / 2]) * one.slope;
                }
            }
            multiply_rounded<D>(sums, ds, k_tile, 0, wanted);
        };
        const bool hides = NEEDED(key + N - 1 > query) || NEEDED(shape.window > 0 && key + shape.window <= query + 15);
        if (hides) {
            compute(Many<1>{});
        } else {
            compute(Many<0>{});
        }
    }

    if (query >= tile.len) return;
    // By way of the warp's own part of the queries' tile, for whole lines of memory.
    round_to_tile<D>(my_q, 0, sums, shape.scale, shape.scale);
    __syncwarp();
    store_tile<16, D, D>(my_q, head_of(dq, tile, shape.heads, head, shape.head_dim), query, lane, 32);
}

#define ATTENTION_BACKWARD_Q(name, D, DV)                                                                        \
    KERNEL(THREADS)                                                                                              \
    name(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_out, const float *lse, const float *delta,   \
         bf16 *dq, const int *tiles, int tokens, int heads, int kv_heads, int head_dim, int v_head_dim,          \
         float scale, float cap, int window) {                                                                   \
        const Attention shape{tokens, heads, kv_heads, head_dim, v_head_dim, scale, cap, window};                \
        attention_backward_q<D, DV>(q, k, v, d_out, lse, delta, dq, tiles, shape);                               \
    }                                                                                                            \
    REGISTER(name)

ATTENTION_BACKWARD_Q(attention_backward_q_bf16_32, 32, 32)
ATTENTION_BACKWARD_Q(attention_backward_q_bf16_64, 64, 64)
ATTENTION_BACKWARD_Q(attention_backward_q_bf16_96, 96, 96)
ATTENTION_BACKWARD_Q(attention_backward_q_bf16_128, 128, 128)
ATTENTION_BACKWARD_Q(attention_backward_q_bf16_192, 192, 192)
ATTENTION_BACKWARD_Q(attention_backward_q_bf16_192_128, 192, 128)
ATTENTION_BACKWARD_Q(attention_backward_q_bf16_256, 256, 256)

// delta = sum of d_out out over a head's features, a warp for each token and head.
template <class T>
DEVICE void attention_delta(const T *d_out, const T *out, float *delta, int tokens, int heads, int v_head_dim) {
    const i64 i = i64(blockIdx.x) * 8 + threadIdx.x / 32;
    if (!GUARD(i < i64(tokens) * heads)) return;
    const bool vectors = v_head_dim % VECTOR<T> == 0 && aligned16(d_out, out);
    float sum = 0.0f;
    for_row<T>(v_head_dim, vectors, threadIdx.x % 32, 32, [&](auto many, int at) {
        constexpr int N = decltype(many)::count;
        float a[N], b[N];
        load(d_out + i * v_head_dim + at, a);
        load(out + i * v_head_dim + at, b);
        UNROLL for (int j = 0; j < N; ++j) sum += a[j] * b[j];
    });
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[i % heads * tokens + i / heads] = sum;
}
KERNEL_OF_BOTH(256, attention_delta,
               (const T *d_out, const T *out, float *delta, int tokens, int heads, int v_head_dim),
               (d_out, out, delta, tokens, heads, v_head_dim))
