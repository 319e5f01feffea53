// Gradients of keys and values of causal attention in bf16.
//
// With P the probabilities and dP = d_out v^T: dS = P (dP - delta) slope, dv = P^T d_out, dk = scale dS^T q. A block
// has 64 keys of a head and goes through all queries of the heads that share it, in order: nothing is added to
// memory. All is computed transposed, so that a warp's rows are keys, and P and dS never leave its registers.
#include "attention.h"

template <int D, int DV, int SLICES>
DEVICE void attention_backward_kv(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_out, const float *lse,
                                  const float *delta, bf16 *dk, bf16 *dv, const int *tiles, const Attention &shape) {
    // Queries of a tile.
    constexpr int M = D <= 64 ? 64 : 32;
    // Warps that share 16 keys, each with its part of the features of dk and dv.
    constexpr int THREADS = 128 * SLICES, MINE = D / SLICES, MINE_V = DV / SLICES;
    constexpr int BUFFER = M * (PITCH<D> + PITCH<DV>) + M * 2 * 2;
    DYNAMIC_SHARED(memory, sizeof(bf16) * (TILE * (PITCH<D> + PITCH<DV>) + 2 * BUFFER));
    bf16 *const k_tile = reinterpret_cast<bf16 *>(memory), *const v_tile = k_tile + TILE * PITCH<D>;
    bf16 *const buffers = v_tile + TILE * PITCH<DV>;

    const Tile tile = tile_at(tiles, blockIdx.x);
    const int kv_head = blockIdx.y, group = shape.heads / shape.kv_heads;
    const int warp = threadIdx.x / 32 % 4, slice = threadIdx.x / 128, lane = threadIdx.x % 32;
    const int key = tile.first + 16 * warp;  // the warp's first
    const bf16 *const my_k = k_tile + 16 * warp * PITCH<D>, *const my_v = v_tile + 16 * warp * PITCH<DV>;

    const int end = end_of_queries(tile.first + TILE - 1, tile.len, shape.window);
    // Tiles of queries of all heads of the group, one head after the other.
    const int per_head = (end - tile.first + M - 1) / M, steps = per_head * group;
    auto load = [&](int step, int buffer) {
        const int head = kv_head * group + step / per_head, query = tile.first + step % per_head * M;
        bf16 *const to = buffers + buffer * BUFFER;
        load_tile<M, D, THREADS>(to, head_of(q, tile, shape.heads, head, shape.head_dim), query);
        load_tile<M, DV, THREADS>(to + M * PITCH<D>, head_of(d_out, tile, shape.heads, head, shape.v_head_dim), query);
        float *const rows = reinterpret_cast<float *>(to + M * (PITCH<D> + PITCH<DV>));
        for (int i = threadIdx.x; i < M; i += THREADS) {
            const bool there = GUARD(query + i < tile.len);
            const i64 at = i64(head) * shape.tokens + tile.start + query + i;
            rows[i] = there ? lse[at] * LOG2_E : 0.0f;
            rows[M + i] = there ? delta[at] : 0.0f;
        }
    };
    load_tile<TILE, D, THREADS>(k_tile, head_of(k, tile, shape.kv_heads, kv_head, shape.head_dim), tile.first);
    load_tile<TILE, DV, THREADS>(v_tile, head_of(v, tile, shape.kv_heads, kv_head, shape.v_head_dim), tile.first);
    load(0, 0);
    commit_copies();

    float dk_sums[MINE / 8][4] = {}, dv_sums[MINE_V / 8][4] = {};
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<0>();
        __syncthreads();
        if (step + 1 < steps) load(step + 1, (step + 1) % 2);
        commit_copies();
        const int query = tile.first + step % per_head * M;
        // A warp may have no key in the row, or none that this tile sees.
        if (key >= tile.len || query + M <= key) continue;
        const bf16 *const q_tile = buffers + step % 2 * BUFFER, *const d_tile = q_tile + M * PITCH<D>;
        const float *const rows = reinterpret_cast<const float *>(d_tile + M * PITCH<DV>);
        auto compute = [&](auto masked) {
            constexpr bool MASKED = decltype(masked)::count != 0;
            // Pairs of blocks with a query that sees a key of the warp.
            auto wanted = [&](int pair) { return !MASKED || query + 16 * pair + 15 >= key; };
            float p[M / 8][4] = {}, ds[M / 8][4] = {};
            multiply_tiles<D>(p, my_k, q_tile, wanted);
            multiply_tiles<DV>(ds, my_v, d_tile, wanted);
            UNROLL for (int n = 0; n < M / 8; ++n) {
                UNROLL for (int i = 0; i < 4; ++i) {
                    const int at = n * 8 + lane % 4 * 2 + i % 2;
                    Probability one = probability(p[n][i], rows[at], shape.scale, shape.cap);
                    if (MASKED && !sees(query + at, key + lane / 4 + i / 2 * 8, shape.window)) one.p = 0.0f;
                    p[n][i] = one.p;
                    ds[n][i] = one.p * (ds[n][i] - rows[M + at]) * one.slope;
                }
            }
            multiply_rounded<DV>(dv_sums, p, d_tile, slice * MINE_V, wanted);
            multiply_rounded<D>(dk_sums, ds, q_tile, slice * MINE, wanted);
        };
        const bool hides = NEEDED(query < key + 15) || NEEDED(shape.window > 0 && key + shape.window <= query + M - 1);
        if (hides) {
            compute(Many<1>{});
        } else {
            compute(Many<0>{});
        }
    }

    // By way of the tiles of keys and values, for whole lines of memory.
    __syncthreads();
    round_to_tile<D>(k_tile + 16 * warp * PITCH<D>, slice * MINE, dk_sums, shape.scale, shape.scale);
    round_to_tile<DV>(v_tile + 16 * warp * PITCH<DV>, slice * MINE_V, dv_sums, 1.0f, 1.0f);
    __syncthreads();
    const Head<bf16> dk_head = head_of(dk, tile, shape.kv_heads, kv_head, shape.head_dim);
    const Head<bf16> dv_head = head_of(dv, tile, shape.kv_heads, kv_head, shape.v_head_dim);
    store_tile<TILE, D, D>(k_tile, dk_head, tile.first, threadIdx.x, THREADS);
    store_tile<TILE, DV, DV>(v_tile, dv_head, tile.first, threadIdx.x, THREADS);
}

#define ATTENTION_BACKWARD_KV(name, D, DV, SLICES, BLOCKS)                                                             \
    KERNEL(128 * SLICES, BLOCKS)                                                                                       \
    name(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_out, const float *lse, const float *delta,    \
         bf16 *dk, bf16 *dv, const int *tiles, int tokens, int heads, int kv_heads, int head_dim, int v_head_dim, \
         float scale, float cap, int window) {                                                                    \
        const Attention shape{tokens, heads, kv_heads, head_dim, v_head_dim, scale, cap, window};                 \
        attention_backward_kv<D, DV, SLICES>(q, k, v, d_out, lse, delta, dk, dv, tiles, shape);                   \
    }                                                                                                             \
    REGISTER(name)

ATTENTION_BACKWARD_KV(attention_backward_kv_bf16_32, 32, 32, 1, 2)
ATTENTION_BACKWARD_KV(attention_backward_kv_bf16_64, 64, 64, 1, 2)
ATTENTION_BACKWARD_KV(attention_backward_kv_bf16_96, 96, 96, 1, 2)
ATTENTION_BACKWARD_KV(attention_backward_kv_bf16_128, 128, 128, 1, 2)
ATTENTION_BACKWARD_KV(attention_backward_kv_bf16_192, 192, 192, 2, 1)
ATTENTION_BACKWARD_KV(attention_backward_kv_bf16_192_128, 192, 128, 2, 1)
ATTENTION_BACKWARD_KV(attention_backward_kv_bf16_256, 256, 256, 2, 1)
