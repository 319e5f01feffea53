// Causal attention in bf16, forward: out = softmax(cap(scale q k^T)) v, and the log-sum-exps of the scores.
#include "attention.h"

constexpr int THREADS = 128;

template <int D, int DV>
DEVICE void attention_forward(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *lse, const int *tiles,
                              const Attention &shape) {
    // A warp has GROUPS times 16 queries, and reads fragments of keys and values once for all of them: with one group
    // shared memory, of which a cycle gives 128 bytes, would be slower than the tensor cores that it feeds.
    constexpr int GROUPS = D <= 128 ? 2 : 1, MINE = 16 * GROUPS, QUERIES = MINE * THREADS / 32;
    constexpr int N = D < 128 ? 64 : D == 128 ? 48 : 32;
    constexpr bool Q_IN_REGISTERS = D <= 64;
    constexpr int KV = N * (PITCH<D> + PITCH<DV>);
    DYNAMIC_SHARED(memory, sizeof(bf16) * (QUERIES * PITCH<D> + 2 * KV));
    bf16 *const q_tile = reinterpret_cast<bf16 *>(memory), *const kv_tiles = q_tile + QUERIES * PITCH<D>;

    const Tile tile = tile_at(tiles, blockIdx.x);
    const int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads);
    const Head<const bf16> q_head = head_of(q, tile, shape.heads, head, shape.head_dim);
    const Head<const bf16> k_head = head_of(k, tile, shape.kv_heads, kv_head, shape.head_dim);
    const Head<const bf16> v_head = head_of(v, tile, shape.kv_heads, kv_head, shape.v_head_dim);
    const bool wants_out = out != nullptr;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int query = tile.first + MINE * warp, last_query = query + MINE - 1;  // the warp's
    bf16 *const my_q = q_tile + MINE * warp * PITCH<D>;
    const int end = tile.first + QUERIES < tile.len ? tile.first + QUERIES : tile.len;

    auto load = [&](int key, int buffer) {
        bf16 *const to = kv_tiles + buffer * KV;
        load_tile<N, D, THREADS>(to, k_head, key);
        if (wants_out) load_tile<N, DV, THREADS>(to + N * PITCH<D>, v_head, key);
    };
    load_tile<QUERIES, D, THREADS>(q_tile, q_head, tile.first);
    int key = first_key<N>(tile.first, shape.window);
    load(key, 0);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();

    u32 q_fragments[Q_IN_REGISTERS ? D / 16 : 1][GROUPS][4];
    auto load_queries = [&](u32(&to)[GROUPS][4], int i) {
        UNROLL for (int group = 0; group < GROUPS; ++group) {
            load_matrices(to[group], fragment<D>(my_q, group * 16, i * 16));
        }
    };
    if constexpr (Q_IN_REGISTERS) {
        UNROLL for (int i = 0; i < D / 16; ++i) load_queries(q_fragments[i], i);
    }
    float sums[GROUPS][DV / 8][4] = {};
    // Of the lane's two queries of a group: the largest score so far, and the sum of 2^(score - it).
    float largest[GROUPS][2], total[GROUPS][2];
    UNROLL for (int group = 0; group < GROUPS; ++group) {
        UNROLL for (int side = 0; side < 2; ++side) {
            largest[group][side] = -INFINITE;
            total[group][side] = 0.0f;
        }
    }
    const float factor = shape.cap > 0.0f ? LOG2_E * shape.cap : LOG2_E * shape.scale;

    for (int buffer = 0;; key += N, buffer ^= 1) {
        const bool is_last = key + N >= end;
        if (!is_last) load(key + N, buffer ^ 1);
        commit_copies();
        const bf16 *const k_tile = kv_tiles + buffer * KV, *const v_tile = k_tile + N * PITCH<D>;
        auto compute = [&](auto masked) {
            constexpr bool MASKED = decltype(masked)::count != 0;
            // Pairs of blocks with a key that the warp sees.
            auto wanted = [&](int pair) { return !MASKED || key + 16 * pair <= last_query; };
            float scores[GROUPS][N / 8][4] = {};
            UNROLL for (int i = 0; i < D / 16; ++i) {
                u32 loaded[GROUPS][4];
                if constexpr (!Q_IN_REGISTERS) load_queries(loaded, i);
                const u32(&a)[GROUPS][4] = Q_IN_REGISTERS ? q_fragments[Q_IN_REGISTERS ? i : 0] : loaded;
                UNROLL for (int pair = 0; pair < N / 16; ++pair) {
                    if (!wanted(pair)) continue;
                    u32 b[4];
                    load_matrices(b, fragment_right<D>(k_tile, pair * 16, i * 16));
                    UNROLL for (int group = 0; group < GROUPS; ++group) {
                        multiply_add(scores[group][2 * pair], a[group], b[0], b[1]);
                        multiply_add(scores[group][2 * pair + 1], a[group], b[2], b[3]);
                    }
                }
            }
            UNROLL for (int group = 0; group < GROUPS; ++group) {
                float(&mine)[N / 8][4] = scores[group];
                if (shape.cap > 0.0f) {
                    const float inner = shape.scale / shape.cap;
                    UNROLL for (int n = 0; n < N / 8; ++n) {
                        UNROLL for (int i = 0; i < 4; ++i) mine[n][i] = tanh_fast(mine[n][i] * inner);
                    }
                }
                if constexpr (MASKED) {
                    UNROLL for (int n = 0; n < N / 8; ++n) {
                        UNROLL for (int i = 0; i < 4; ++i) {
                            const int my_query = query + 16 * group + lane / 4 + i / 2 * 8;
                            const int my_key = key + n * 8 + lane % 4 * 2 + i % 2;
                            if (!sees(my_query, my_key, shape.window)) mine[n][i] = -INFINITE;
                        }
                    }
                }
                UNROLL for (int side = 0; side < 2; ++side) {
                    float max = largest[group][side];
                    UNROLL for (int n = 0; n < N / 8; ++n) max = fmaxf(max, fmaxf(mine[n][2 * side], mine[n][2 * side + 1]));
                    max = fmaxf(max, shuffle_xor(max, 1));
                    max = fmaxf(max, shuffle_xor(max, 2));
                    // No key seen so far: nothing is subtracted, and all exponentials are zero.
                    const float shift = max == -INFINITE ? 0.0f : max * factor;
                    const float shrink = exp2_fast(largest[group][side] * factor - shift);
                    largest[group][side] = max;
                    float sum = 0.0f;
                    UNROLL for (int n = 0; n < N / 8; ++n) {
                        UNROLL for (int i = 2 * side; i < 2 * side + 2; ++i) {
                            mine[n][i] = exp2_fast(mine[n][i] * factor - shift);
                            sum += mine[n][i];
                        }
                    }
                    total[group][side] = total[group][side] * shrink + sum;
                    UNROLL for (int n = 0; n < DV / 8; ++n) {
                        sums[group][n][2 * side] *= shrink;
                        sums[group][n][2 * side + 1] *= shrink;
                    }
                }
            }
            if (wants_out) multiply_rounded<DV>(sums, scores, v_tile, 0, wanted);
        };
        const bool hides = NEEDED(key + N - 1 > query) || NEEDED(shape.window > 0 && key + shape.window <= last_query);
        // A warp may have no query in the row, or none that sees this tile.
        if (query < tile.len && key <= last_query) {
            if (hides) {
                compute(Many<1>{});
            } else {
                compute(Many<0>{});
            }
        }
        if (is_last) break;
        wait_for_copies<0>();
        __syncthreads();
    }

    if (query >= tile.len) return;
    UNROLL for (int group = 0; group < GROUPS; ++group) {
        UNROLL for (int side = 0; side < 2; ++side) {
            float &sum = total[group][side];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            const int my_query = query + 16 * group + lane / 4 + 8 * side;
            if (lse != nullptr && lane % 4 == 0 && GUARD(my_query < tile.len)) {
                lse[i64(head) * shape.tokens + tile.start + my_query] = largest[group][side] * factor * LN_2 + logf(sum);
            }
        }
    }
    if (!wants_out) return;
    // By way of the warp's own part of the queries' tile, for whole lines of memory.
    UNROLL for (int group = 0; group < GROUPS; ++group) {
        bf16 *const to = my_q + 16 * group * PITCH<D>;
        round_to_tile<D>(to, 0, sums[group], 1.0f / total[group][0], 1.0f / total[group][1]);
    }
    __syncwarp();
    static_assert(DV <= D, "the output goes where the queries were");
    const Head<bf16> out_head = head_of(out, tile, shape.heads, head, shape.v_head_dim);
    store_tile<MINE, D, DV>(my_q, out_head, query, lane, 32);
}

#define ATTENTION_FORWARD(name, D, DV)                                                                            \
    KERNEL(THREADS)                                                                                               \
    name(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *lse, const int *tiles, int tokens,        \
         int heads, int kv_heads, int head_dim, int v_head_dim, float scale, float cap, int window) {             \
        const Attention shape{tokens, heads, kv_heads, head_dim, v_head_dim, scale, cap, window};                 \
        attention_forward<D, DV>(q, k, v, out, lse, tiles, shape);                                                \
    }                                                                                                             \
    REGISTER(name)

ATTENTION_FORWARD(attention_forward_bf16_32, 32, 32)
ATTENTION_FORWARD(attention_forward_bf16_64, 64, 64)
ATTENTION_FORWARD(attention_forward_bf16_96, 96, 96)
ATTENTION_FORWARD(attention_forward_bf16_128, 128, 128)
ATTENTION_FORWARD(attention_forward_bf16_192, 192, 192)
ATTENTION_FORWARD(attention_forward_bf16_192_128, 192, 128)
ATTENTION_FORWARD(attention_forward_bf16_256, 256, 256)
