// Causal attention in f32, both ways: for checks rather than for speed, without tensor cores.
//
// A block has 16 tokens of a row and a head, and goes through tiles of 16 of the other side. Eight threads share
// a token.
#include "attention.h"

constexpr int SIDE = 16, THREADS = 128, SHARERS = THREADS / SIDE, SCORES = SIDE * (SIDE + 1);
// Features that a thread may have of its token: of 256 at most.
constexpr int FEATURES = 256 / SHARERS;

// The quarter of a tile of 64 tokens that a block has; it may be beyond the row's end.
DEVICE Tile quarter_at(const int *tiles, int index) {
    Tile tile = tile_at(tiles, index / 4);
    tile.first += index % 4 * SIDE;
    return tile;
}

// Copies 16 tokens of a head, from `first` on; rows in shared memory are of dim + 1.
DEVICE void load_side(float *to, const float *x, const Tile &tile, int first, int heads, int head, int dim) {
    const float *from = x + (i64(tile.start) * heads + head) * dim;
    for (int i = threadIdx.x; GUARD(i < SIDE * dim); i += THREADS) {
        const int row = i / dim, column = i % dim;
        const bool there = GUARD(first + row < tile.len);
        to[row * (dim + 1) + column] = there ? from[i64(first + row) * heads * dim + column] : 0.0f;
    }
}

// Writes this thread's features of its token.
DEVICE void store_side(float *x, const float (&values)[FEATURES], const Tile &tile, int heads, int head, int dim) {
    const int row = tile.first + threadIdx.x / SHARERS;
    if (!GUARD(row < tile.len)) return;
    float *to = x + ((i64(tile.start) + row) * heads + head) * dim;
    UNROLL for (int i = 0; i < FEATURES; ++i) {
        const int feature = i * SHARERS + threadIdx.x % SHARERS;
        if (GUARD(feature < dim)) to[feature] = values[i];
    }
}

DEVICE float dot(const float *a, const float *b, int dim) {
    float sum = 0.0f;
    for (int i = 0; i < dim; ++i) sum += a[i] * b[i];
    return sum;
}

// values[i] += the product of row `row` of `factors` and the thread's features of `rows`.
DEVICE void add_product(float (&values)[FEATURES], const float *factors, int step, const float *rows, int dim) {
    UNROLL for (int i = 0; i < FEATURES; ++i) {
        const int feature = i * SHARERS + threadIdx.x % SHARERS;
        if (feature < dim) {
            float sum = 0.0f;
            for (int j = 0; j < SIDE; ++j) sum += factors[j * step] * rows[j * (dim + 1) + feature];
            values[i] += sum;
        }
    }
}

KERNEL(THREADS)
attention_forward_f32(const float *q, const float *k, const float *v, float *out, float *lse, const int *tiles,
                      int tokens, int heads, int kv_heads, int head_dim, int v_head_dim, float scale, float cap,
                      int window) {
    const int pitch = head_dim + 1, v_pitch = v_head_dim + 1;
    DYNAMIC_SHARED(memory, sizeof(float) * (2 * SIDE * pitch + SIDE * v_pitch + SCORES + 3 * SIDE));
    float *const q_side = reinterpret_cast<float *>(memory), *const k_side = q_side + SIDE * pitch;
    float *const v_side = k_side + SIDE * pitch, *const scores = v_side + SIDE * v_pitch;
    // Of each query: the largest score so far, the sum of e^(score - it), and how much the last tile shrank it.
    float *const largest = scores + SCORES, *const total = largest + SIDE, *const shrink = total + SIDE;

    const Tile tile = quarter_at(tiles, blockIdx.x);
    if (tile.first >= tile.len) return;
    const int head = blockIdx.y, kv_head = head / (heads / kv_heads), mine = threadIdx.x / SHARERS;
    load_side(q_side, q, tile, tile.first, heads, head, head_dim);
    if (threadIdx.x < SIDE) {
        largest[threadIdx.x] = -INFINITE;
        total[threadIdx.x] = 0.0f;
    }
    float sums[FEATURES] = {};
    const int end = tile.first + SIDE < tile.len ? tile.first + SIDE : tile.len;
    for (int key = first_key<SIDE>(tile.first, window); key < end; key += SIDE) {
        __syncthreads();
        load_side(k_side, k, tile, key, kv_heads, kv_head, head_dim);
        load_side(v_side, v, tile, key, kv_heads, kv_head, v_head_dim);
        __syncthreads();
        for (int i = threadIdx.x % SHARERS; i < SIDE; i += SHARERS) {
            const float score = soft_capped(dot(q_side + mine * pitch, k_side + i * pitch, head_dim) * scale, cap);
            scores[mine * (SIDE + 1) + i] = sees(tile.first + mine, key + i, window) ? score : -INFINITE;
        }
        __syncthreads();
        if (threadIdx.x < SIDE) {
            float *const row = scores + threadIdx.x * (SIDE + 1), before = largest[threadIdx.x];
            float max = before;
            for (int i = 0; i < SIDE; ++i) max = fmaxf(max, row[i]);
            const float shift = max == -INFINITE ? 0.0f : max;
            float sum = 0.0f;
            for (int i = 0; i < SIDE; ++i) sum += row[i] = expf(row[i] - shift);
            largest[threadIdx.x] = max;
            shrink[threadIdx.x] = expf(before - shift);
            total[threadIdx.x] = total[threadIdx.x] * shrink[threadIdx.x] + sum;
        }
        __syncthreads();
        UNROLL for (int i = 0; i < FEATURES; ++i) sums[i] *= shrink[mine];
        add_product(sums, scores + mine * (SIDE + 1), 1, v_side, v_head_dim);
    }
    const float inverse = 1.0f / total[mine];
    UNROLL for (int i = 0; i < FEATURES; ++i) sums[i] *= inverse;
    if (out != nullptr) store_side(out, sums, tile, heads, head, v_head_dim);
    if (lse != nullptr && threadIdx.x < SIDE && GUARD(tile.first + int(threadIdx.x) < tile.len)) {
        lse[i64(head) * tokens + tile.start + tile.first + threadIdx.x] =
            largest[threadIdx.x] + logf(total[threadIdx.x]);
    }
}
REGISTER(attention_forward_f32)

// Shared memory of both backwards.
struct Sides {
    float *q, *k, *v, *d, *p, *ds, *lse, *delta;
};

DEVICE Sides sides(int head_dim, int v_head_dim) {
    const int side = SIDE * (head_dim + 1), v_side = SIDE * (v_head_dim + 1);
    DYNAMIC_SHARED(memory, sizeof(float) * (2 * side + 2 * v_side + 2 * SCORES + 2 * SIDE));
    float *at = reinterpret_cast<float *>(memory);
    Sides s;
    s.q = at;
    s.k = s.q + side;
    s.v = s.k + side;
    s.d = s.v + v_side;
    s.p = s.d + v_side;
    s.ds = s.p + SCORES;
    s.lse = s.ds + SCORES;
    s.delta = s.lse + SIDE;
    return s;
}

DEVICE void load_rows(const Sides &s, const float *lse, const float *delta, const Tile &tile, int query, int head,
                      int tokens) {
    if (threadIdx.x < SIDE) {
        const bool there = GUARD(query + int(threadIdx.x) < tile.len);
        const i64 at = i64(head) * tokens + tile.start + query + threadIdx.x;
        s.lse[threadIdx.x] = there ? lse[at] : 0.0f;
        s.delta[threadIdx.x] = there ? delta[at] : 0.0f;
    }
}

// P and dS of 16 queries from `query` on, and 16 keys from `key` on: rows of queries.
DEVICE void probabilities(const Sides &s, int query, int key, int head_dim, int v_head_dim, float scale, float cap,
                          int window) {
    const int mine = threadIdx.x / SHARERS;
    for (int i = threadIdx.x % SHARERS; i < SIDE; i += SHARERS) {
        const float product = dot(s.q + mine * (head_dim + 1), s.k + i * (head_dim + 1), head_dim);
        const float dp = dot(s.d + mine * (v_head_dim + 1), s.v + i * (v_head_dim + 1), v_head_dim);
        const float score = soft_capped(product * scale, cap);
        const float p = sees(query + mine, key + i, window) ? expf(score - s.lse[mine]) : 0.0f;
        const float slope = cap > 0.0f ? soft_cap_slope(score, cap) : 1.0f;
        s.p[mine * (SIDE + 1) + i] = p;
        s.ds[mine * (SIDE + 1) + i] = p * (dp - s.delta[mine]) * slope * scale;
    }
}

KERNEL(THREADS)
attention_backward_kv_f32(const float *q, const float *k, const float *v, const float *d_out, const float *lse,
                          const float *delta, float *dk, float *dv, const int *tiles, int tokens, int heads,
                          int kv_heads, int head_dim, int v_head_dim, float scale, float cap, int window) {
    const Sides s = sides(head_dim, v_head_dim);
    const Tile tile = quarter_at(tiles, blockIdx.x);
    if (tile.first >= tile.len) return;
    const int kv_head = blockIdx.y, group = heads / kv_heads, mine = threadIdx.x / SHARERS;
    load_side(s.k, k, tile, tile.first, kv_heads, kv_head, head_dim);
    load_side(s.v, v, tile, tile.first, kv_heads, kv_head, v_head_dim);
    float dk_sums[FEATURES] = {}, dv_sums[FEATURES] = {};
    const int end = end_of_queries(tile.first + SIDE - 1, tile.len, window);
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int query = tile.first; query < end; query += SIDE) {
            __syncthreads();
            load_side(s.q, q, tile, query, heads, head, head_dim);
            load_side(s.d, d_out, tile, query, heads, head, v_head_dim);
            load_rows(s, lse, delta, tile, query, head, tokens);
            __syncthreads();
            probabilities(s, query, tile.first, head_dim, v_head_dim, scale, cap, window);
            __syncthreads();
            add_product(dv_sums, s.p + mine, SIDE + 1, s.d, v_head_dim);
            add_product(dk_sums, s.ds + mine, SIDE + 1, s.q, head_dim);
        }
    }
    store_side(dk, dk_sums, tile, kv_heads, kv_head, head_dim);
    store_side(dv, dv_sums, tile, kv_heads, kv_head, v_head_dim);
}
REGISTER(attention_backward_kv_f32)

KERNEL(THREADS)
attention_backward_q_f32(const float *q, const float *k, const float *v, const float *d_out, const float *lse,
                         const float *delta, float *dq, const int *tiles, int tokens, int heads, int kv_heads,
                         int head_dim, int v_head_dim, float scale, float cap, int window) {
    const Sides s = sides(head_dim, v_head_dim);
    const Tile tile = quarter_at(tiles, blockIdx.x);
    if (tile.first >= tile.len) return;
    const int head = blockIdx.y, kv_head = head / (heads / kv_heads), mine = threadIdx.x / SHARERS;
    load_side(s.q, q, tile, tile.first, heads, head, head_dim);
    load_side(s.d, d_out, tile, tile.first, heads, head, v_head_dim);
    load_rows(s, lse, delta, tile, tile.first, head, tokens);
    float sums[FEATURES] = {};
    const int end = tile.first + SIDE < tile.len ? tile.first + SIDE : tile.len;
    for (int key = first_key<SIDE>(tile.first, window); key < end; key += SIDE) {
        __syncthreads();
        load_side(s.k, k, tile, key, kv_heads, kv_head, head_dim);
        load_side(s.v, v, tile, key, kv_heads, kv_head, v_head_dim);
        __syncthreads();
        probabilities(s, tile.first, key, head_dim, v_head_dim, scale, cap, window);
        __syncthreads();
        add_product(sums, s.ds + mine * (SIDE + 1), 1, s.k, head_dim);
    }
    store_side(dq, sums, tile, heads, head, head_dim);
}
REGISTER(attention_backward_q_f32)
