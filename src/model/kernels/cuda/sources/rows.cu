// Rows of features: looked up, copied, added.
#include "device.h"

template <class T>
DEVICE void copy_row(const T *from, T *to, int width, float scale) {
    const bool vectors = width % VECTOR<T> == 0 && aligned16(from, to);
    for_row<T>(width, vectors, threadIdx.x, blockDim.x, [&](auto many, int at) {
        constexpr int N = decltype(many)::count;
        float values[N];
        load(from + at, values);
        UNROLL for (int i = 0; i < N; ++i) values[i] *= scale;
        store(to + at, values);
    });
}

template <class T>
DEVICE void embedding(const T *table, const u32 *ids, T *out, int width, float scale) {
    const i64 token = blockIdx.x;
    copy_row(table + i64(ids[token]) * width, out + token * width, width, scale);
}
KERNEL_OF_BOTH(128, embedding, (const T *table, const u32 *ids, T *out, int, int width, float scale),
               (table, ids, out, width, scale))

// A block for each id that occurs: no two add to one row, and each adds in the order of the tokens.
template <class T>
DEVICE void embedding_backward(float *d_table, const T *dx, const u32 *distinct_ids, const u32 *starts,
                               const u32 *tokens_by_id, int width, float scale) {
    const int feature = blockIdx.y * blockDim.x + threadIdx.x;
    if (!GUARD(feature < width)) return;
    float *sum = d_table + i64(distinct_ids[blockIdx.x]) * width + feature;
    float total = *sum;
    for (u32 i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; ++i) {
        total += widened(dx[i64(tokens_by_id[i]) * width + feature]) * scale;
    }
    *sum = total;
}
KERNEL_OF_BOTH(256, embedding_backward,
               (float *d_table, const T *dx, const u32 *distinct_ids, const u32 *starts, const u32 *tokens_by_id,
                int width, float scale),
               (d_table, dx, distinct_ids, starts, tokens_by_id, width, scale))

template <class T>
DEVICE void gather_rows(const T *x, const u32 *positions, T *out, int width) {
    const i64 row = blockIdx.x;
    copy_row(x + i64(positions[row]) * width, out + row * width, width, 1.0f);
}
KERNEL_OF_BOTH(128, gather_rows, (const T *x, const u32 *positions, T *out, int, int width),
               (x, positions, out, width))

template <class T>
DEVICE void scatter_rows(const T *rows, const u32 *positions, T *x, int width) {
    const i64 row = blockIdx.x;
    copy_row(rows + row * width, x + i64(positions[row]) * width, width, 1.0f);
}
KERNEL_OF_BOTH(128, scatter_rows, (const T *rows, const u32 *positions, T *x, int, int width),
               (rows, positions, x, width))

template <class T>
DEVICE void add_bias(T *y, const float *bias, int tokens, int width) {
    const bool vectors = width % VECTOR<T> == 0 && aligned16(y, bias);
    for_elements<T>(i64(tokens) * width, vectors, [&](auto many, i64 at) {
        constexpr int N = decltype(many)::count;
        float values[N], added[N];
        load(y + at, values);
        load_floats(bias + at % width, added);
        UNROLL for (int i = 0; i < N; ++i) values[i] += added[i];
        store(y + at, values);
    });
}
KERNEL_OF_BOTH(256, add_bias, (T * y, const float *bias, int tokens, int width), (y, bias, tokens, width))

template <class T>
DEVICE void bias_backward(const T *dy, float *partials, int tokens, int width, int tokens_per_part) {
    const int feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (!GUARD(feature < width)) return;
    float total = 0.0f;
    const i64 first = i64(blockIdx.y) * tokens_per_part;
    for (i64 token = first; token < first + tokens_per_part && GUARD(token < tokens); ++token) {
        total += widened(dy[token * width + feature]);
    }
    partials[i64(blockIdx.y) * width + feature] = total;
}
KERNEL_OF_BOTH(256, bias_backward, (const T *dy, float *partials, int tokens, int width, int tokens_per_part),
               (dy, partials, tokens, width, tokens_per_part))

KERNEL(256) sum_partials(const float *partials, float *sum, int parts, int width) {
    const int feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (!GUARD(feature < width)) return;
    float total = sum[feature];
    for (int part = 0; part < parts; ++part) total += partials[i64(part) * width + feature];
    sum[feature] = total;
}
REGISTER(sum_partials)

// Multi-head latent attention: a head's key is its own features, then the rotated ones that all heads share.

template <int N, class T>
DEVICE void mla_of_token(const T *kv, const T *k_rope, T *keys, T *values, int heads, int nope, int rope, int value) {
    const int key = nope + rope, own = nope + value;
    float features[N];
    for (int at = threadIdx.x * N; GUARD(at < heads * key); at += blockDim.x * N) {
        const int head = at / key, feature = at % key;
        load(feature < nope ? kv + head * own + feature : k_rope + (feature - nope), features);
        store(keys + at, features);
    }
    for (int at = threadIdx.x * N; GUARD(at < heads * value); at += blockDim.x * N) {
        load(kv + at / value * own + nope + at % value, features);
        store(values + at, features);
    }
}

template <class T>
DEVICE void mla(const T *kv, const T *k_rope, T *keys, T *values, int heads, int nope, int rope, int value) {
    const i64 token = blockIdx.x;
    kv += token * heads * (nope + value);
    k_rope += token * rope;
    keys += token * heads * (nope + rope);
    values += token * heads * value;
    constexpr int V = VECTOR<T>;
    if ((nope | rope | value) % V == 0 && aligned16(kv, k_rope, keys, values)) {
        mla_of_token<V>(kv, k_rope, keys, values, heads, nope, rope, value);
    } else {
        mla_of_token<1>(kv, k_rope, keys, values, heads, nope, rope, value);
    }
}
KERNEL_OF_BOTH(128, mla,
               (const T *kv, const T *k_rope, T *keys, T *values, int, int heads, int nope, int rope, int value),
               (kv, k_rope, keys, values, heads, nope, rope, value))

template <int N, class T>
DEVICE void mla_backward_of_token(const T *d_keys, const T *d_values, T *d_kv, T *d_k_rope, int heads, int nope,
                                  int rope, int value) {
    const int key = nope + rope, own = nope + value;
    float features[N];
    for (int at = threadIdx.x * N; GUARD(at < heads * own); at += blockDim.x * N) {
        const int head = at / own, feature = at % own;
        load(feature < nope ? d_keys + head * key + feature : d_values + head * value + (feature - nope), features);
        store(d_kv + at, features);
    }
    for (int at = threadIdx.x * N; GUARD(at < rope); at += blockDim.x * N) {
        float sum[N] = {};
        for (int head = 0; head < heads; ++head) {
            load(d_keys + head * key + nope + at, features);
            UNROLL for (int i = 0; i < N; ++i) sum[i] += features[i];
        }
        store(d_k_rope + at, sum);
    }
}

template <class T>
DEVICE void mla_backward(const T *d_keys, const T *d_values, T *d_kv, T *d_k_rope, int heads, int nope, int rope,
                         int value) {
    const i64 token = blockIdx.x;
    d_keys += token * heads * (nope + rope);
    d_values += token * heads * value;
    d_kv += token * heads * (nope + value);
    d_k_rope += token * rope;
    constexpr int V = VECTOR<T>;
    if ((nope | rope | value) % V == 0 && aligned16(d_keys, d_values, d_kv, d_k_rope)) {
        mla_backward_of_token<V>(d_keys, d_values, d_kv, d_k_rope, heads, nope, rope, value);
    } else {
        mla_backward_of_token<1>(d_keys, d_values, d_kv, d_k_rope, heads, nope, rope, value);
    }
}
KERNEL_OF_BOTH(128, mla_backward,
               (const T *d_keys, const T *d_values, T *d_kv, T *d_k_rope, int, int heads, int nope, int rope,
                int value),
               (d_keys, d_values, d_kv, d_k_rope, heads, nope, rope, value))

// Sums of squares in two passes, in f64.

KERNEL(256) sum_of_squares(const float *x, double *partials, i64 n) {
    SHARED_ARRAY(double, of_warps, 8);
    constexpr int PART = 65536;
    x += blockIdx.x * i64(PART);
    const int count = int(n - blockIdx.x * i64(PART) < PART ? n - blockIdx.x * i64(PART) : PART);
    double total = 0;
    const int whole = aligned16(x) ? count / 4 * 4 : 0;
    for (int at = threadIdx.x * 4; GUARD(at < whole); at += 256 * 4) {
        float values[4];
        load(x + at, values);
        UNROLL for (int i = 0; i < 4; ++i) total += double(values[i]) * double(values[i]);
    }
    for (int at = whole + threadIdx.x; GUARD(at < count); at += 256) total += double(x[at]) * double(x[at]);
    total = block_sum(total, of_warps);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}
REGISTER(sum_of_squares)

KERNEL(256) sum_doubles(const double *partials, double *sum, int parts) {
    SHARED_ARRAY(double, of_warps, 8);
    double total = 0;
    for (int part = threadIdx.x; GUARD(part < parts); part += 256) total += partials[part];
    total = block_sum(total, of_warps);
    if (threadIdx.x == 0) *sum = total;
}
REGISTER(sum_doubles)
