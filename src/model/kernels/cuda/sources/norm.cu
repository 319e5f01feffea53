// RMS norms, rotary position embedding, and one after the other.
//
// y = x r (offset + w) with r = 1 / sqrt(mean(x^2) + eps); with g = dy (offset + w), dx = r g - x r^3 (g . x) / n.
#include "device.h"

// Up to this width a warp has a row, beyond it a block.
constexpr int WARP_WIDTH = 512;
constexpr int WARPS = 8;

// The threads that share a row: a warp or the block.
struct Team {
    bool is_warp;
    int number, count, rank, size;
};

DEVICE Team team_for(int width) {
    const int thread = threadIdx.x;
    if (width <= WARP_WIDTH) return Team{true, thread / 32, WARPS, thread % 32, 32};
    return Team{false, 0, 1, thread, WARPS * 32};
}

// Sums over the team, which all its threads get. `partial` is as in `block_sum`.
DEVICE float team_sum(const Team &team, float value, float *partial) {
    return team.is_warp ? warp_sum(value) : block_sum(value, partial);
}

DEVICE float inverse_rms(float squares, int width, float eps) { return 1.0f / sqrtf(squares / float(width) + eps); }

// Normalizes `x`, or what `x` becomes when `addend` is added.
template <bool ADD, class T>
DEVICE void norm(T *x, const T *addend, const float *w, T *y, int rows, int width, float eps, float offset) {
    SHARED_ARRAY(float, partial, WARPS);
    const Team team = team_for(width);
    const i64 row = i64(blockIdx.x) * team.count + team.number;
    if (!GUARD(row < rows)) return;
    const bool vectors = width % VECTOR<T> == 0 && aligned16(x, ADD ? addend : x, w, y);
    x += row * width;
    y += row * width;
    if (ADD) addend += row * width;
    float squares = 0.0f;
    for_row<T>(width, vectors, team.rank, team.size, [&](auto many, int at) {
        constexpr int N = decltype(many)::count;
        float values[N];
        load(x + at, values);
        if constexpr (ADD) {
            float added[N];
            load(addend + at, added);
            UNROLL for (int i = 0; i < N; ++i) values[i] = widened(rounded<T>(values[i] + added[i]));
            store(x + at, values);
        }
        UNROLL for (int i = 0; i < N; ++i) squares += values[i] * values[i];
    });
    const float r = inverse_rms(team_sum(team, squares, partial), width, eps);
    for_row<T>(width, vectors, team.rank, team.size, [&](auto many, int at) {
        constexpr int N = decltype(many)::count;
        float values[N], weights[N];
        load(x + at, values);
        load_floats(w + at, weights);
        UNROLL for (int i = 0; i < N; ++i) values[i] *= r * (offset + weights[i]);
        store(y + at, values);
    });
}

template <class T>
DEVICE void rms_norm(const T *x, const float *w, T *y, int rows, int width, float eps, float offset) {
    norm<false>(const_cast<T *>(x), static_cast<const T *>(nullptr), w, y, rows, width, eps, offset);
}
KERNEL_OF_BOTH(256, rms_norm, (const T *x, const float *w, T *y, int rows, int width, float eps, float offset),
               (x, w, y, rows, width, eps, offset))

template <class T>
DEVICE void add_rms_norm(T *x, const T *addend, const float *w, T *y, int rows, int width, float eps, float offset) {
    norm<true>(x, addend, w, y, rows, width, eps, offset);
}
KERNEL_OF_BOTH(256, add_rms_norm,
               (T * x, const T *addend, const float *w, T *y, int rows, int width, float eps, float offset),
               (x, addend, w, y, rows, width, eps, offset))

// Where a rotation reads and what it rotates. Pairs of features are `half` apart or neighbours.
struct Rotation {
    const float *cos, *sin;
    const u32 *positions;
    int head_dim, first, half;
    bool interleaved;
};

DEVICE i64 table_row(const Rotation &rotation, i64 token) {
    const i64 row = rotation.positions == nullptr ? token : i64(rotation.positions[token]);
    return row * rotation.half;
}

// N pairs of features of a row, or N features that are not rotated (`angle` is negative, b unused).
struct Slot {
    int a, b, angle;
};

// A head's pairs come first, then its other features.
template <int N>
DEVICE Slot slot(const Rotation &rotation, int number) {
    const int pairs = rotation.half / N, slots = rotation.head_dim / N - pairs;
    const int head = number / slots * rotation.head_dim, i = number % slots;
    if (i < pairs) {
        const int a = head + rotation.first + (rotation.interleaved ? 2 * i : i * N);
        return Slot{a, a + (rotation.interleaved ? 1 : rotation.half), i * N};
    }
    const int rest = (i - pairs) * N;
    return Slot{head + (rest < rotation.first ? rest : rest + 2 * rotation.half), 0, -1};
}

template <int N>
DEVICE int slots_in(const Rotation &rotation, int width) {
    return width / rotation.head_dim * (rotation.head_dim / N - rotation.half / N);
}

// Whether slots of VECTOR<T> features are possible, given pointers that are aligned.
template <class T>
DEVICE bool in_vectors(const Rotation &rotation, bool aligned) {
    return aligned && !rotation.interleaved && (rotation.head_dim | rotation.first | rotation.half) % VECTOR<T> == 0;
}

// (a, b) to (a cos - b sin, b cos + a sin).
template <int N>
DEVICE void rotate(float (&a)[N], float (&b)[N], const float *cos, const float *sin, float sign) {
    float c[N], s[N];
    load_floats(cos, c);
    load_floats(sin, s);
    UNROLL for (int i = 0; i < N; ++i) {
        const float before = a[i], turned = s[i] * sign;
        a[i] = before * c[i] - b[i] * turned;
        b[i] = b[i] * c[i] + before * turned;
    }
}

template <int N, class T>
DEVICE void rope_slots(const T *x, T *y, const Rotation &rotation, int tokens, int heads, float sign) {
    const int width = heads * rotation.head_dim, slots = slots_in<N>(rotation, width);
    const i64 step = i64(gridDim.x) * blockDim.x;
    for (i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x; GUARD(i < i64(tokens) * slots); i += step) {
        const i64 token = i / slots;
        const Slot s = slot<N>(rotation, int(i % slots));
        float a[N], b[N];
        load(x + token * width + s.a, a);
        if (s.angle >= 0) {
            load(x + token * width + s.b, b);
            const i64 at = table_row(rotation, token) + s.angle;
            rotate(a, b, rotation.cos + at, rotation.sin + at, sign);
            store(y + token * width + s.b, b);
        }
        store(y + token * width + s.a, a);
    }
}

template <class T>
DEVICE void rope(const T *x, T *y, const Rotation &rotation, int tokens, int heads, float sign) {
    if (in_vectors<T>(rotation, aligned16(x, y, rotation.cos, rotation.sin))) {
        rope_slots<VECTOR<T>>(x, y, rotation, tokens, heads, sign);
    } else {
        rope_slots<1>(x, y, rotation, tokens, heads, sign);
    }
}
KERNEL_OF_BOTH(256, rope,
               (const T *x, T *y, const float *cos, const float *sin, const u32 *positions, int tokens, int heads,
                int head_dim, int first, int half, int interleaved, float sign),
               (x, y, Rotation{cos, sin, positions, head_dim, first, half, interleaved != 0}, tokens, heads, sign))

template <int N, class T>
DEVICE void norm_rope_slots(const T *x, const float *w, T *y, const Rotation &rotation, i64 angles, const Team &team,
                            int width, float r, float offset) {
    const int slots = slots_in<N>(rotation, width);
    for (int i = team.rank; GUARD(i < slots); i += team.size) {
        const Slot s = slot<N>(rotation, i);
        float a[N], b[N], weights[N];
        load(x + s.a, a);
        load_floats(w + s.a, weights);
        UNROLL for (int j = 0; j < N; ++j) a[j] *= r * (offset + weights[j]);
        if (s.angle >= 0) {
            load(x + s.b, b);
            load_floats(w + s.b, weights);
            UNROLL for (int j = 0; j < N; ++j) b[j] *= r * (offset + weights[j]);
            rotate(a, b, rotation.cos + angles + s.angle, rotation.sin + angles + s.angle, 1.0f);
            store(y + s.b, b);
        }
        store(y + s.a, a);
    }
}

template <class T>
DEVICE void norm_rope(const T *x, const float *w, T *y, const Rotation &rotation, int rows, int width,
                      int rows_per_token, float eps, float offset) {
    SHARED_ARRAY(float, partial, WARPS);
    const Team team = team_for(width);
    const i64 row = i64(blockIdx.x) * team.count + team.number;
    if (!GUARD(row < rows)) return;
    const bool aligned = aligned16(x, w, y, rotation.cos, rotation.sin);
    const bool vectors = in_vectors<T>(rotation, aligned);
    x += row * width;
    y += row * width;
    float squares = 0.0f;
    for_row<T>(width, vectors, team.rank, team.size, [&](auto many, int at) {
        constexpr int N = decltype(many)::count;
        float values[N];
        load(x + at, values);
        UNROLL for (int i = 0; i < N; ++i) squares += values[i] * values[i];
    });
    // Nothing is written before all have read, so that y may be x.
    const float r = inverse_rms(team_sum(team, squares, partial), width, eps);
    const i64 angles = table_row(rotation, row / rows_per_token);
    if (vectors) {
        norm_rope_slots<VECTOR<T>>(x, w, y, rotation, angles, team, width, r, offset);
    } else {
        norm_rope_slots<1>(x, w, y, rotation, angles, team, width, r, offset);
    }
}
KERNEL_OF_BOTH(256, norm_rope,
               (const T *x, const float *w, T *y, const float *cos, const float *sin, const u32 *positions, int rows,
                int width, int rows_per_token, int head_dim, int first, int half, int interleaved, float eps,
                float offset),
               (x, w, y, Rotation{cos, sin, positions, head_dim, first, half, interleaved != 0}, rows, width,
                rows_per_token, eps, offset))

// Over a row.
struct Sums {
    float squares, dot;
};

// Sums of two values over the team; `partial` has two for each warp.
DEVICE Sums team_sums(const Team &team, Sums sums, float *partial) {
    sums.squares = warp_sum(sums.squares);
    sums.dot = warp_sum(sums.dot);
    if (team.is_warp) return sums;
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
        partial[2 * warp] = sums.squares;
        partial[2 * warp + 1] = sums.dot;
    }
    __syncthreads();
    Sums total{0.0f, 0.0f};
    for (int i = 0; i < WARPS; ++i) {
        total.squares += partial[2 * i];
        total.dot += partial[2 * i + 1];
    }
    return total;
}

// What the gradients of a row's features have in common.
struct Factors {
    // 1 / rms, and (g . x) r^3 / n.
    float r, of_x, offset;
    // Whether dx is added to; whether this is the team's first row, so that dw is begun.
    bool accumulate, begins;
};

// The gradient of N features of a row: of x, given that of y, and added to a sum that of the weight.
template <int N, class T>
DEVICE void features_backward(const float (&dy)[N], const float (&x)[N], const float *w, T *dx, float *dw,
                              const Factors &f) {
    float weights[N], d[N];
    load_floats(w, weights);
    if (f.accumulate) load(dx, d);
    UNROLL for (int i = 0; i < N; ++i) {
        const float gradient = f.r * dy[i] * (f.offset + weights[i]) - x[i] * f.of_x;
        d[i] = f.accumulate ? d[i] + gradient : gradient;
        dw[i] = (f.begins ? 0.0f : dw[i]) + dy[i] * x[i] * f.r;
    }
    store(dx, d);
}

template <int N>
DEVICE void add_sums(Sums &sums, const float (&dy)[N], const float (&x)[N], const float *w, float offset) {
    float weights[N];
    load_floats(w, weights);
    UNROLL for (int i = 0; i < N; ++i) {
        sums.squares += x[i] * x[i];
        sums.dot += dy[i] * (offset + weights[i]) * x[i];
    }
}

// Rows of a plain norm.
template <class T>
struct PlainRow {
    const T *dy, *x;
    T *dx;
    const float *w;
    int width;
    bool vectors;

    __device__ __forceinline__ void start(i64 row) {
        dy += row * width;
        x += row * width;
        dx += row * width;
    }

    __device__ __forceinline__ void sum(const Team &team, Sums &sums, float offset) const {
        for_row<T>(width, vectors, team.rank, team.size, [&](auto many, int at) {
            constexpr int N = decltype(many)::count;
            float d[N], values[N];
            load(dy + at, d);
            load(x + at, values);
            add_sums(sums, d, values, w + at, offset);
        });
    }

    __device__ __forceinline__ void finish(const Team &team, float *dw, const Factors &factors) const {
        for_row<T>(width, vectors, team.rank, team.size, [&](auto many, int at) {
            constexpr int N = decltype(many)::count;
            float d[N], values[N];
            load(dy + at, d);
            load(x + at, values);
            features_backward(d, values, w + at, dx + at, dw + at, factors);
        });
    }
};

// Rows of a norm that a rotation follows, whose gradient is turned back first.
template <class T>
struct RotatedRow {
    const T *dy, *x;
    T *dx;
    const float *w;
    int width, rows_per_token;
    bool vectors;
    Rotation rotation;
    i64 angles;

    __device__ __forceinline__ void start(i64 row) {
        dy += row * width;
        x += row * width;
        dx += row * width;
        angles = table_row(rotation, row / rows_per_token);
    }

    // Calls `body(features at, dy turned back, x)` for all features that this thread has.
    template <int N, class F>
    __device__ __forceinline__ void each(const Team &team, F body) const {
        const int slots = slots_in<N>(rotation, width);
        for (int i = team.rank; GUARD(i < slots); i += team.size) {
            const Slot s = slot<N>(rotation, i);
            float da[N], db[N], values[N];
            load(dy + s.a, da);
            if (s.angle >= 0) {
                load(dy + s.b, db);
                rotate(da, db, rotation.cos + angles + s.angle, rotation.sin + angles + s.angle, -1.0f);
                load(x + s.b, values);
                body(s.b, db, values);
            }
            load(x + s.a, values);
            body(s.a, da, values);
        }
    }

    __device__ __forceinline__ void sum(const Team &team, Sums &sums, float offset) const {
        const auto body = [&](int at, const auto &d, const auto &values) { add_sums(sums, d, values, w + at, offset); };
        if (vectors) {
            each<VECTOR<T>>(team, body);
        } else {
            each<1>(team, body);
        }
    }

    __device__ __forceinline__ void finish(const Team &team, float *dw, const Factors &factors) const {
        const auto body = [&](int at, const auto &d, const auto &values) {
            features_backward(d, values, w + at, dx + at, dw + at, factors);
        };
        if (vectors) {
            each<VECTOR<T>>(team, body);
        } else {
            each<1>(team, body);
        }
    }
};

// What all backwards of norms share: a block has `rows_per_part` rows, one after the other, or eight at a time.
template <class Row>
DEVICE void rows_backward(const Row &first, float *partials, int rows, int width, float eps, float offset,
                          bool accumulate, int rows_per_part) {
    SHARED_ARRAY(float, partial, 2 * 2 * WARPS);
    const Team team = team_for(width);
    DYNAMIC_SHARED(memory, sizeof(float) * width * team.count);
    // A thread only touches the sums of its own features before the end.
    float *sums_of_teams = reinterpret_cast<float *>(memory);
    float *dw = sums_of_teams + team.number * width;
    const i64 start = i64(blockIdx.x) * rows_per_part;
    const i64 end = start + rows_per_part < rows ? start + rows_per_part : rows;
    int turn = 0;
    const i64 mine = start + team.number;
    for (i64 row = mine; row < end; row += team.count) {
        Row one = first;
        one.start(row);
        Sums sums{0.0f, 0.0f};
        one.sum(team, sums, offset);
        sums = team_sums(team, sums, partial + turn * 2 * WARPS);
        turn ^= 1;
        const float r = inverse_rms(sums.squares, width, eps);
        one.finish(team, dw, Factors{r, sums.dot * r * r * r / float(width), offset, accumulate, row == mine});
    }
    const int teams = end - start < team.count ? int(end - start) : team.count;
    __syncthreads();
    for (int at = threadIdx.x; GUARD(at < width); at += blockDim.x) {
        float total = 0.0f;
        for (int i = 0; GUARD(i < teams); ++i) total += sums_of_teams[i * width + at];
        partials[i64(blockIdx.x) * width + at] = total;
    }
}

template <class T>
DEVICE void rms_norm_backward(const T *dy, const T *x, const float *w, T *dx, float *partials, int rows, int width,
                              float eps, float offset, int accumulate, int rows_per_part) {
    const bool vectors = width % VECTOR<T> == 0 && aligned16(dy, x, dx, w);
    rows_backward(PlainRow<T>{dy, x, dx, w, width, vectors}, partials, rows, width, eps, offset, accumulate != 0,
                  rows_per_part);
}
KERNEL_OF_BOTH(256, rms_norm_backward,
               (const T *dy, const T *x, const float *w, T *dx, float *partials, int rows, int width, float eps,
                float offset, int accumulate, int rows_per_part),
               (dy, x, w, dx, partials, rows, width, eps, offset, accumulate, rows_per_part))

template <class T>
DEVICE void norm_rope_backward(const T *dy, const T *x, const float *w, T *dx, float *partials,
                               const Rotation &rotation, int rows, int width, int rows_per_token, float eps,
                               float offset, int rows_per_part) {
    const bool vectors = in_vectors<T>(rotation, aligned16(dy, x, dx, w, rotation.cos, rotation.sin));
    rows_backward(RotatedRow<T>{dy, x, dx, w, width, rows_per_token, vectors, rotation, 0}, partials, rows, width, eps,
                  offset, false, rows_per_part);
}
#define THREE_BLOCKS 256, 3
KERNEL_OF_BOTH(THREE_BLOCKS, norm_rope_backward,
               (const T *dy, const T *x, const float *w, T *dx, float *partials, const float *cos, const float *sin,
                const u32 *positions, int rows, int width, int rows_per_token, int head_dim, int first, int half,
                int interleaved, float eps, float offset, int rows_per_part),
               (dy, x, w, dx, partials, Rotation{cos, sin, positions, head_dim, first, half, interleaved != 0}, rows,
                width, rows_per_token, eps, offset, rows_per_part))
