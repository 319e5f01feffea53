// What handles each element by itself.
#include "device.h"

template <class T, class U>
DEVICE void add_to(T *sum, const U *addend, i64 n) {
    constexpr bool same = sizeof(T) == sizeof(U);
    for_elements<T>(n, same && aligned16(sum, addend), [&](auto many, i64 at) {
        constexpr int N = decltype(many)::count;
        if constexpr (same || N == 1) {
            float a[N], b[N];
            load(sum + at, a);
            load(addend + at, b);
            UNROLL for (int i = 0; i < N; ++i) a[i] += b[i];
            store(sum + at, a);
        }
    });
}

template <class T>
DEVICE void add_assign(T *sum, const T *addend, i64 n) {
    add_to(sum, addend, n);
}
KERNEL_OF_BOTH(256, add_assign, (T * sum, const T *addend, i64 n), (sum, addend, n))

KERNEL(256) add_assign_f32_from_bf16(float *sum, const bf16 *addend, i64 n) { add_to(sum, addend, n); }
REGISTER(add_assign_f32_from_bf16)

template <class T>
DEVICE void zero(T *x, i64 n) {
    for_elements<T>(n, aligned16(x), [&](auto many, i64 at) {
        float zeros[decltype(many)::count] = {};
        store(x + at, zeros);
    });
}
KERNEL_OF_BOTH(256, zero, (T * x, i64 n), (x, n))

template <class From, class To>
DEVICE void convert(const From *from, To *to, i64 n) {
    const i64 step = i64(gridDim.x) * blockDim.x;
    for (i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x; GUARD(at < n); at += step) {
        to[at] = rounded<To>(widened(from[at]));
    }
}
KERNEL(256) convert_f32_to_bf16(const float *from, bf16 *to, i64 n) { convert(from, to, n); }
REGISTER(convert_f32_to_bf16)
KERNEL(256) convert_bf16_to_f32(const bf16 *from, float *to, i64 n) { convert(from, to, n); }
REGISTER(convert_bf16_to_f32)

// Activations are x s, with s the sigmoid of `2 u(x)`: for SiLU `2 u = x`, for GELU's approximation by tanh
// `u = sqrt(2 / pi) (x + 0.044715 x^3)`, since `(1 + tanh u) / 2 = sigmoid(2 u)`.
struct Curve {
    float value, slope;
};

DEVICE Curve curve(float x, int activation) {
    float argument = x, slope = 1.0f;
    if (activation == 1) {
        constexpr float ROOT2 = 2.0f * 0.797884561f, CUBIC = 0.044715f;
        argument = ROOT2 * (x + CUBIC * x * x * x);
        slope = ROOT2 * (1.0f + 3.0f * CUBIC * x * x);
    }
    const float s = sigmoid(argument);
    return Curve{x * s, s * (1.0f + x * (1.0f - s) * slope)};
}

template <class T>
DEVICE void glu(const T *gate, const T *up, T *out, i64 n, int activation) {
    for_elements<T>(n, aligned16(gate, up, out), [&](auto many, i64 at) {
        constexpr int N = decltype(many)::count;
        float g[N], u[N];
        load(gate + at, g);
        load(up + at, u);
        UNROLL for (int i = 0; i < N; ++i) u[i] *= curve(g[i], activation).value;
        store(out + at, u);
    });
}
KERNEL_OF_BOTH(256, glu, (const T *gate, const T *up, T *out, i64 n, int activation), (gate, up, out, n, activation))

template <class T>
DEVICE void glu_backward(const T *dy, T *gate, T *up, i64 n, int activation) {
    for_elements<T>(n, aligned16(dy, gate, up), [&](auto many, i64 at) {
        constexpr int N = decltype(many)::count;
        float d[N], g[N], u[N];
        load(dy + at, d);
        load(gate + at, g);
        load(up + at, u);
        UNROLL for (int i = 0; i < N; ++i) {
            const Curve c = curve(g[i], activation);
            g[i] = d[i] * u[i] * c.slope;
            u[i] = d[i] * c.value;
        }
        store(gate + at, g);
        store(up + at, u);
    });
}
KERNEL_OF_BOTH(256, glu_backward, (const T *dy, T *gate, T *up, i64 n, int activation), (dy, gate, up, n, activation))

KERNEL(256)
adamw(float *parameter, bf16 *rounded_parameter, float *gradient, float *first, float *second, i64 n,
      float gradient_scale, float keep, float step_size, float root_correction, float beta1, float beta2, float eps) {
    const bool aligned = aligned16(parameter, gradient, first, second);
    for_elements<float>(n, aligned, [&](auto many, i64 at) {
        constexpr int N = decltype(many)::count;
        float p[N], g[N], m[N], v[N];
        load(parameter + at, p);
        load(gradient + at, g);
        load(first + at, m);
        load(second + at, v);
        UNROLL for (int i = 0; i < N; ++i) {
            const float scaled = g[i] * gradient_scale;
            m[i] += (scaled - m[i]) * (1.0f - beta1);
            v[i] = v[i] * beta2 + scaled * scaled * (1.0f - beta2);
            const float root = sqrtf(v[i]) / root_correction + eps;
            p[i] = p[i] * keep - step_size * m[i] / root;
            g[i] = 0.0f;
        }
        store(parameter + at, p);
        store(gradient + at, g);
        store(first + at, m);
        store(second + at, v);
        if (rounded_parameter != nullptr) {
            UNROLL for (int i = 0; i < N; ++i) rounded_parameter[at + i] = rounded<bf16>(p[i]);
        }
    });
}
REGISTER(adamw)
