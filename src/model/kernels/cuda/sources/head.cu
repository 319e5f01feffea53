// The output head, between its products: log-sum-exps and targets of a tile of logits, and their gradient.
#include "device.h"

// A part of a sum of exponentials: `sum` of e^(logit - max). The largest adds exactly 1, so that a sum is at
// least 1, and no log-prob above 0.
struct Part {
    float max, sum;
};

template <int N>
DEVICE Part with(Part part, const float (&logits)[N]) {
    float max = part.max;
    UNROLL for (int i = 0; i < N; ++i) max = fmaxf(max, logits[i]);
    float sum = part.max == max ? part.sum : part.sum * expf(part.max - max);
    UNROLL for (int i = 0; i < N; ++i) sum += expf(logits[i] - max);
    return Part{max, sum};
}

// The sum of a part counted from `max`, which is no less than its own.
DEVICE float counted_from(Part part, float max) { return part.sum == 0.0f ? 0.0f : part.sum * expf(part.max - max); }

KERNEL(256)
log_sum_exp_tile(const float *logits, const u32 *targets, float *max, double *sum, float *target_logit, int, int entries,
                 int stride, int start, float cap, int first) {
    SHARED_ARRAY(Part, parts, 8);
    const i64 row = blockIdx.x;
    const bool aligned = stride % 4 == 0 && aligned16(logits);
    logits += row * stride;
    Part part{-INFINITE, 0.0f};
    const int whole = aligned ? entries / 4 * 4 : 0;
    for (int at = threadIdx.x * 4; GUARD(at < whole); at += 256 * 4) {
        float four[4];
        load(logits + at, four);
        UNROLL for (int i = 0; i < 4; ++i) four[i] = soft_capped(four[i], cap);
        part = with(part, four);
    }
    for (int at = whole + threadIdx.x; GUARD(at < entries); at += 256) {
        const float one[1] = {soft_capped(logits[at], cap)};
        part = with(part, one);
    }
    const float of_warp = warp_max(part.max);
    part = Part{of_warp, warp_sum(counted_from(part, of_warp))};
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = part;
    __syncthreads();
    if (threadIdx.x != 0) return;
    float largest = parts[0].max;
    for (int i = 1; i < 8; ++i) largest = fmaxf(largest, parts[i].max);
    double total = 0;
    for (int i = 0; i < 8; ++i) total += double(counted_from(parts[i], largest));
    if (first == 0) {
        const float before = max[row], both = fmaxf(before, largest);
        total = sum[row] * exp(double(before) - double(both)) + total * exp(double(largest) - double(both));
        largest = both;
    }
    max[row] = largest;
    sum[row] = total;
    const i64 target = i64(targets[row]) - start;
    if (GUARD(target >= 0) && GUARD(target < entries)) target_logit[row] = soft_capped(logits[target], cap);
}
REGISTER(log_sum_exp_tile)

KERNEL(256)
log_sum_exp_finish(const float *max, const double *sum, const float *target_logit, float *log_probs,
                   double *log_normalizers, int n) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (!GUARD(row < n)) return;
    const double normalizer = double(max[row]) + log(sum[row]);
    log_probs[row] = float(double(target_logit[row]) - normalizer);
    if (log_normalizers != nullptr) log_normalizers[row] = normalizer;
}
REGISTER(log_sum_exp_finish)

template <class T>
DEVICE void softmax_gradient(const float *logits, const u32 *targets, const double *log_normalizers,
                             const float *weights, const float *slope_terms, T *d_logits, int entries, int stride,
                             int d_stride, int start, float cap) {
    const i64 row = blockIdx.x;
    const bool vectors = entries % VECTOR<T> == 0 && stride % 4 == 0 && d_stride % VECTOR<T> == 0 &&
                         aligned16(logits, d_logits);
    logits += row * stride;
    d_logits += row * d_stride;
    // The fraction that f32 can't hold of the log-sum-exp goes into the factor.
    const double normalizer = log_normalizers[row];
    const float shift = float(normalizer);
    const float factor = expf(float(double(shift) - normalizer)) * slope_terms[row];
    const i64 target = i64(targets[row]) - start;
    const float weight = weights[row];
    for_row<T>(entries, vectors, threadIdx.x, blockDim.x, [&](auto many, int at) {
        constexpr int N = decltype(many)::count;
        float values[N];
        load_floats(logits + at, values);
        UNROLL for (int i = 0; i < N; ++i) {
            const float logit = soft_capped(values[i], cap);
            const float d = expf(logit - shift) * factor - (at + i == target ? weight : 0.0f);
            values[i] = cap > 0.0f ? d * soft_cap_slope(logit, cap) : d;
        }
        store(d_logits + at, values);
    });
}
KERNEL_OF_BOTH(256, softmax_gradient,
               (const float *logits, const u32 *targets, const double *log_normalizers, const float *weights,
                const float *slope_terms, T *d_logits, int, int entries, int stride, int d_stride, int start, float cap),
               (logits, targets, log_normalizers, weights, slope_terms, d_logits, entries, stride, d_stride, start,
                cap))
