// All kernels but those of attention: part of test_kernels.cpp.
#pragma once

bool begin(const std::string &name) {
    running = name;
    return only.empty() || running.find(only) != std::string::npos;
}

// Grids that leave each thread one element, and some.
const std::vector<unsigned> GRIDS = {1, 3};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double activated(double x, int activation) {
    if (activation == 0) return x * sigmoid(x);
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

double slope_of(double x, int activation) {
    const double step = 1e-5;
    return (activated(x + step, activation) - activated(x - step, activation)) / (2 * step);
}

template <class T>
void test_elements(size_t n, uint64_t seed) {
    const std::string tail = std::string(suffix<T>()) + ", n " + std::to_string(n);
    Random random(seed);
    const Values a = noise<T>(random, n), b = noise<T>(random, n), c = noise<T>(random, n);
    Values expected(n), other(n);
    for (unsigned grid : GRIDS) {
        if (begin("add_assign" + tail)) {
            for (size_t i = 0; i < n; ++i) expected[i] = a[i] + b[i];
            with_seeds([&](uint64_t schedule) {
                Buffer<T> sum(a, 0), addend(b, 0);
                launch(std::string("add_assign") + suffix<T>(), {grid}, 256, 0, schedule, sum.data, addend.data, i64(n));
                compare("sum", sum.values(), expected, 1, once<T>);
                return sum.bits();
            });
        }
        if (begin("zero" + tail)) {
            Buffer<T> x(n);
            launch(std::string("zero") + suffix<T>(), {grid}, 256, 0, 1, x.data, i64(n));
            compare("x", x.values(), Values(n), 1, 0);
        }
        for (int activation : {0, 1}) {
            if (begin("glu" + tail)) {
                for (size_t i = 0; i < n; ++i) expected[i] = activated(a[i], activation) * b[i];
                Buffer<T> gate(a, 0), up(b, 0), out(n);
                launch(std::string("glu") + suffix<T>(), {grid}, 256, 0, 1, gate.data, up.data, out.data, i64(n), activation);
                compare("out", out.values(), expected, 1, once<T>);
                launch(std::string("glu") + suffix<T>(), {grid}, 256, 0, 2, gate.data, up.data, gate.data, i64(n), activation);
                if (gate.bits() != out.bits()) fail("in place differs");
            }
            if (begin("glu_backward" + tail)) {
                for (size_t i = 0; i < n; ++i) {
                    expected[i] = c[i] * b[i] * slope_of(a[i], activation);
                    other[i] = c[i] * activated(a[i], activation);
                }
                Buffer<T> dy(c, 0), gate(a, 0), up(b, 0);
                launch(std::string("glu_backward") + suffix<T>(), {grid}, 256, 0, 1, dy.data, gate.data, up.data, i64(n),
                       activation);
                compare("d_gate", gate.values(), expected, 1, once<T>);
                compare("d_up", up.values(), other, 1, once<T>);
            }
        }
    }
}

void test_conversions(size_t n, uint64_t seed) {
    Random random(seed);
    const Values a = noise<float>(random, n), b = noise<bf16>(random, n);
    for (unsigned grid : GRIDS) {
        if (begin("add_assign_f32_from_bf16, n " + std::to_string(n))) {
            Values expected(n);
            for (size_t i = 0; i < n; ++i) expected[i] = a[i] + b[i];
            Buffer<float> sum(a, 0);
            Buffer<bf16> addend(b, 0);
            launch("add_assign_f32_from_bf16", {grid}, 256, 0, 1, sum.data, addend.data, i64(n));
            compare("sum", sum.values(), expected, 1, once<float>);
        }
        if (begin("convert, n " + std::to_string(n))) {
            Buffer<float> from(a, 0), back(n);
            Buffer<bf16> to(n), expected(a, 0);
            launch("convert_f32_to_bf16", {grid}, 256, 0, 1, from.data, to.data, i64(n));
            if (to.bits() != expected.bits()) fail("rounded otherwise");
            launch("convert_bf16_to_f32", {grid}, 256, 0, 1, to.data, back.data, i64(n));
            if (back.values() != to.values()) fail("widened otherwise");
        }
        if (begin("adamw, n " + std::to_string(n))) {
            const float scale = 0.5f, keep = 0.99f, step = 0.01f, root = 0.3f, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
            Values p = noise<float>(random, n), g = noise<float>(random, n), m = noise<float>(random, n);
            Values v = noise<float>(random, n);
            for (double &value : v) value = float(value * value);
            for (bool rounds : {true, false}) {
                Buffer<float> parameter(p, 0), gradient(g, 0), first(m, 0), second(v, 0);
                Buffer<bf16> rounded(n);
                launch("adamw", {grid}, 256, 0, 1, parameter.data, rounds ? rounded.data : nullptr, gradient.data,
                       first.data, second.data, i64(n), scale, keep, step, root, beta1, beta2, eps);
                Values pe(n), me(n), ve(n);
                for (size_t i = 0; i < n; ++i) {
                    const double d = g[i] * scale;
                    me[i] = m[i] + (d - m[i]) * (1 - double(beta1));
                    ve[i] = v[i] * beta2 + d * d * (1 - double(beta2));
                    pe[i] = p[i] * keep - step * me[i] / (std::sqrt(ve[i]) / root + eps);
                }
                compare("parameter", parameter.values(), pe, 1, once<float>);
                compare("first moment", first.values(), me, 1, once<float>);
                compare("second moment", second.values(), ve, 1, once<float>);
                compare("gradient", gradient.values(), Values(n), 1, 0);
                Buffer<bf16> expected(parameter.values(), 0), untouched(n);
                if (rounded.bits() != (rounds ? expected : untouched).bits()) fail("the rounded copy is another");
            }
        }
    }
}

template <class T>
void test_rows(int tokens, int width, uint64_t seed) {
    const std::string tail = std::string(suffix<T>()) + ", tokens " + std::to_string(tokens) + ", width " + std::to_string(width);
    Random random(seed);
    const int vocab = 5;
    std::vector<u32> ids, positions;
    for (int i = 0; i < tokens; ++i) ids.push_back(u32(random.pick(0, vocab - 1)));
    for (int i = 0; i < tokens; ++i) positions.push_back(u32(i));
    for (int i = tokens - 1; i > 0; --i) std::swap(positions[i], positions[random.pick(0, i)]);
    const Values table = noise<T>(random, size_t(vocab) * width), x = noise<T>(random, size_t(tokens) * width);
    const int taken = (tokens + 1) / 2;
    positions.resize(taken);
    const unsigned grid = unsigned(tokens);
    if (begin("embedding" + tail)) {
        Values expected;
        for (u32 id : ids) {
            for (int i = 0; i < width; ++i) expected.push_back(table[id * width + i] * 2.5);
        }
        Buffer<T> from(table, 0), out(expected.size());
        Buffer<u32> tokens_ids(ids);
        launch(std::string("embedding") + suffix<T>(), {grid}, 128, 0, 1, from.data, tokens_ids.data, out.data, tokens, width, 2.5f);
        compare("out", out.values(), expected, 1, once<T>);
    }
    if (begin("embedding_backward" + tail)) {
        const Values before = noise<float>(random, size_t(vocab) * width);
        Values expected = before;
        for (int token = 0; token < tokens; ++token) {
            for (int i = 0; i < width; ++i) expected[ids[token] * width + i] += x[size_t(token) * width + i] * 2.5;
        }
        std::vector<u32> distinct, starts, by_id;
        for (u32 id = 0; id < u32(vocab); ++id) {
            if (std::find(ids.begin(), ids.end(), id) == ids.end()) continue;
            distinct.push_back(id);
            starts.push_back(u32(by_id.size()));
            for (int token = 0; token < tokens; ++token) {
                if (ids[token] == id) by_id.push_back(u32(token));
            }
        }
        starts.push_back(u32(by_id.size()));
        Buffer<float> sum(before, 0);
        Buffer<T> dx(x, 0);
        Buffer<u32> distinct_ids(distinct), start(starts), sorted(by_id);
        launch(std::string("embedding_backward") + suffix<T>(), {unsigned(distinct.size()), ceil_div(width, 256)}, 256, 0, 1,
               sum.data, dx.data, distinct_ids.data, start.data, sorted.data, width, 2.5f);
        compare("d_table", sum.values(), expected, 1, once<float>);
    }
    if (begin("gather_rows, scatter_rows" + tail)) {
        Values expected, spread = x;
        for (u32 position : positions) expected.insert(expected.end(), &x[position * width], &x[position * width] + width);
        Buffer<T> from(x, 0), rows(expected.size()), back(x.size());
        Buffer<u32> at(positions);
        launch(std::string("gather_rows") + suffix<T>(), {unsigned(taken)}, 128, 0, 1, from.data, at.data, rows.data, taken, width);
        compare("rows", rows.values(), expected, width, 0);
        launch(std::string("scatter_rows") + suffix<T>(), {unsigned(taken)}, 128, 0, 1, rows.data, at.data, back.data, taken, width);
        for (int token = 0; token < tokens; ++token) {
            const bool is_taken = std::find(positions.begin(), positions.end(), u32(token)) != positions.end();
            for (int i = 0; i < width; ++i) {
                const double found = wide(back.data[size_t(token) * width + i]);
                if (is_taken ? found != x[size_t(token) * width + i] : found == found) return fail("scattered otherwise");
            }
        }
    }
    if (begin("add_bias" + tail)) {
        const Values bias = noise<float>(random, width);
        Values expected = x;
        for (size_t i = 0; i < x.size(); ++i) expected[i] += bias[i % width];
        for (unsigned blocks : GRIDS) {
            Buffer<T> y(x, 0);
            Buffer<float> b(bias, 0);
            launch(std::string("add_bias") + suffix<T>(), {blocks}, 256, 0, 1, y.data, b.data, tokens, width);
            compare("y", y.values(), expected, 1, once<T>);
        }
    }
    if (begin("bias_backward" + tail)) {
        const Values before = noise<float>(random, width);
        Values expected = before;
        for (size_t i = 0; i < x.size(); ++i) expected[i % width] += x[i];
        for (int per_part : {3, 1000}) {
            const unsigned parts = ceil_div(tokens, per_part), columns = ceil_div(width, 256);
            Buffer<T> dy(x, 0);
            Buffer<float> partials(size_t(parts) * width), sum(before, 0);
            launch(std::string("bias_backward") + suffix<T>(), {columns, parts}, 256, 0, 1, dy.data, partials.data, tokens,
                   width, per_part);
            launch("sum_partials", {columns}, 256, 0, 1, partials.data, sum.data, int(parts), width);
            compare("d_bias", sum.values(), expected, 1, 1e-5);
        }
    }
}

template <class T>
void test_mla(int tokens, int heads, int nope, int rope, int value, uint64_t seed) {
    const std::string tail = std::string(suffix<T>()) + ", dims " + std::to_string(nope) + " " + std::to_string(rope) + " " +
                             std::to_string(value);
    Random random(seed);
    const int key = nope + rope, own = nope + value;
    const size_t n = size_t(tokens) * heads;
    if (begin("mla" + tail)) {
        const Values kv = noise<T>(random, n * own), shared = noise<T>(random, size_t(tokens) * rope);
        Values keys(n * key), values(n * value);
        for (size_t i = 0; i < n; ++i) {
            for (int j = 0; j < key; ++j) keys[i * key + j] = j < nope ? kv[i * own + j] : shared[i / heads * rope + j - nope];
            for (int j = 0; j < value; ++j) values[i * value + j] = kv[i * own + nope + j];
        }
        Buffer<T> from(kv, 0), rotated(shared, 0), k(keys.size()), v(values.size());
        launch(std::string("mla") + suffix<T>(), {unsigned(tokens)}, 128, 0, 1, from.data, rotated.data, k.data, v.data, tokens,
               heads, nope, rope, value);
        compare("keys", k.values(), keys, key, 0);
        compare("values", v.values(), values, value, 0);
    }
    if (begin("mla_backward" + tail)) {
        const Values dk = noise<T>(random, n * key), dv = noise<T>(random, n * value);
        Values d_kv(n * own), d_shared(size_t(tokens) * rope);
        for (size_t i = 0; i < n; ++i) {
            for (int j = 0; j < own; ++j) d_kv[i * own + j] = j < nope ? dk[i * key + j] : dv[i * value + j - nope];
            for (int j = 0; j < rope; ++j) d_shared[i / heads * rope + j] += dk[i * key + nope + j];
        }
        Buffer<T> d_keys(dk, 0), d_values(dv, 0), found(d_kv.size()), found_shared(d_shared.size());
        launch(std::string("mla_backward") + suffix<T>(), {unsigned(tokens)}, 128, 0, 1, d_keys.data, d_values.data, found.data,
               found_shared.data, tokens, heads, nope, rope, value);
        compare("d_kv", found.values(), d_kv, own, 0);
        compare("d_k_rope", found_shared.values(), d_shared, 1, once<T>);
    }
}

void test_sums(size_t n, uint64_t seed) {
    if (!begin("sum_of_squares, n " + std::to_string(n))) return;
    Random random(seed);
    const Values x = noise<float>(random, n);
    double expected = 0;
    for (double value : x) expected += value * value;
    const unsigned parts = ceil_div(i64(n), 65536);
    with_seeds([&](uint64_t schedule) {
        Buffer<float> values(x, 0);
        Buffer<double> partials(parts), sum(1);
        launch("sum_of_squares", {parts}, 256, 0, schedule, values.data, partials.data, i64(n));
        launch("sum_doubles", {1}, 256, 0, schedule, partials.data, sum.data, int(parts));
        compare("sum", sum.values(), {expected}, 1, 1e-12);
        return sum.bits();
    });
}

void test_many_doubles() {
    if (!begin("sum_doubles")) return;
    Random random(3);
    const Values x = noise<double>(random, 1000);
    double expected = 0;
    for (double value : x) expected += value;
    with_seeds([&](uint64_t schedule) {
        Buffer<double> partials(x), sum(1);
        launch("sum_doubles", {1}, 256, 0, schedule, partials.data, sum.data, 1000);
        compare("sum", sum.values(), {expected}, 1, 1e-12);
        return sum.bits();
    });
}

struct Turn {
    int head_dim, first, half;
    bool interleaved;
};

// Rotates the features of one token in place; back if `sign` is -1.
void turn(double *x, int width, const Turn &t, const double *cos, const double *sin, double sign) {
    for (int head = 0; head < width; head += t.head_dim) {
        for (int i = 0; i < t.half; ++i) {
            const int a = head + t.first + (t.interleaved ? 2 * i : i), b = a + (t.interleaved ? 1 : t.half);
            const double before = x[a], s = sin[i] * sign;
            x[a] = before * cos[i] - x[b] * s;
            x[b] = x[b] * cos[i] + before * s;
        }
    }
}

// What norms are tested with: `rows` of `width`, `per_token` of them for each token.
template <class T>
struct NormCase {
    int rows, width, per_token;
    Turn t;
    float eps, offset;
    Values x, y, dy, w, before, cos, sin;
    std::vector<u32> positions;

    NormCase(int tokens, int per_token, int heads, const Turn &t, bool places, uint64_t seed)
        : rows(tokens * per_token), width(heads * t.head_dim), per_token(per_token), t(t), eps(1e-2f) {
        Random random(seed);
        offset = float(seed % 2);
        const size_t n = size_t(rows) * width;
        x = noise<T>(random, n);
        y = noise<T>(random, n);
        dy = noise<T>(random, n);
        before = noise<T>(random, n);
        w = noise<float>(random, width);
        const int positions_in_table = places ? 4 : tokens;
        cos = noise<float>(random, size_t(positions_in_table) * t.half);
        sin = noise<float>(random, cos.size());
        if (places) {
            for (int i = 0; i < tokens; ++i) positions.push_back(u32(random.pick(0, 3)));
        }
    }

    size_t angles(size_t row) const {
        const size_t token = row / per_token;
        return (positions.empty() ? token : positions[token]) * t.half;
    }

    // The norm of rows of `values`, and the factors that it multiplied by.
    Values normed(const Values &values, Values &r) const {
        Values y(values.size());
        r.assign(rows, 0);
        for (int row = 0; row < rows; ++row) {
            double squares = 0;
            for (int i = 0; i < width; ++i) squares += values[size_t(row) * width + i] * values[size_t(row) * width + i];
            r[row] = 1 / std::sqrt(squares / width + eps);
            for (int i = 0; i < width; ++i) y[size_t(row) * width + i] = values[size_t(row) * width + i] * r[row] * (offset + w[i]);
        }
        return y;
    }

    // The gradients of x and w, given that of the norm.
    void backward(const Values &dy, Values &dx, Values &dw) const {
        Values r;
        normed(x, r);
        dx.assign(x.size(), 0);
        dw.assign(width, 0);
        for (int row = 0; row < rows; ++row) {
            const size_t at = size_t(row) * width;
            double dot = 0;
            for (int i = 0; i < width; ++i) dot += dy[at + i] * (offset + w[i]) * x[at + i];
            for (int i = 0; i < width; ++i) {
                dw[i] += dy[at + i] * x[at + i] * r[row];
                dx[at + i] = r[row] * dy[at + i] * (offset + w[i]) - x[at + i] * r[row] * r[row] * r[row] * dot / width;
            }
        }
    }
};

template <class T>
void test_norm(const NormCase<T> &c) {
    const std::string tail = std::string(suffix<T>()) + ", rows " + std::to_string(c.rows) + ", width " + std::to_string(c.width);
    const unsigned grid = c.width <= 512 ? ceil_div(c.rows, 8) : unsigned(c.rows);
    const size_t n = c.x.size(), shared = size_t(4) * c.width * (c.width <= 512 ? 8 : 1);
    Values r;
    if (begin("rms_norm" + tail)) {
        const Values expected = c.normed(c.x, r);
        with_seeds([&](uint64_t schedule) {
            Buffer<T> x(c.x, 0), y(n);
            Buffer<float> w(c.w, 0);
            launch(std::string("rms_norm") + suffix<T>(), {grid}, 256, 0, schedule, x.data, w.data, y.data, c.rows, c.width,
                   c.eps, c.offset);
            compare("y", y.values(), expected, c.width, once<T>);
            launch(std::string("rms_norm") + suffix<T>(), {grid}, 256, 0, schedule, x.data, w.data, x.data, c.rows, c.width,
                   c.eps, c.offset);
            if (x.bits() != y.bits()) fail("in place differs");
            return y.bits();
        });
    }
    if (begin("add_rms_norm" + tail)) {
        Values sum(n);
        for (size_t i = 0; i < n; ++i) sum[i] = wide(narrow<T>(float(c.x[i]) + float(c.y[i])));
        const Values expected = c.normed(sum, r);
        with_seeds([&](uint64_t schedule) {
            Buffer<T> x(c.x, 0), addend(c.y, 0), y(n);
            Buffer<float> w(c.w, 0);
            launch(std::string("add_rms_norm") + suffix<T>(), {grid}, 256, 0, schedule, x.data, addend.data, w.data, y.data,
                   c.rows, c.width, c.eps, c.offset);
            compare("sum", x.values(), sum, c.width, 0);
            compare("y", y.values(), expected, c.width, once<T>);
            Buffer<T> again(c.x, 0);
            launch(std::string("add_rms_norm") + suffix<T>(), {grid}, 256, 0, schedule, again.data, addend.data, w.data,
                   addend.data, c.rows, c.width, c.eps, c.offset);
            if (addend.bits() != y.bits()) fail("in place differs");
            return y.bits();
        });
    }
    for (int accumulate : {0, 1}) {
        for (int per_part : {3, 8, 1000}) {
            if (!begin("rms_norm_backward" + tail)) continue;
            const unsigned parts = ceil_div(c.rows, per_part);
            Values dx, dw;
            c.backward(c.dy, dx, dw);
            if (accumulate != 0) {
                for (size_t i = 0; i < n; ++i) dx[i] += c.before[i];
            }
            with_seeds([&](uint64_t schedule) {
                Buffer<T> dy(c.dy, 0), x(c.x, 0), found(n), before(c.before, 0);
                Buffer<float> w(c.w, 0), partials(size_t(parts) * c.width), sum(Values(c.width), 0);
                T *into = accumulate != 0 ? before.data : found.data;
                launch(std::string("rms_norm_backward") + suffix<T>(), {parts}, 256, shared, schedule, dy.data, x.data, w.data,
                       into, partials.data, c.rows, c.width, c.eps, c.offset, accumulate, per_part);
                launch("sum_partials", {ceil_div(c.width, 256)}, 256, 0, schedule, partials.data, sum.data, int(parts), c.width);
                compare("dx", (accumulate != 0 ? before : found).values(), dx, c.width, once<T>);
                compare("dw", sum.values(), dw, c.width, 1e-5);
                return all_bits(found, before, partials);
            });
        }
    }
}

template <class T>
void test_rotation(const NormCase<T> &c) {
    const std::string tail = std::string(suffix<T>()) + ", rows " + std::to_string(c.rows) + ", width " + std::to_string(c.width) +
                             ", head " + std::to_string(c.t.head_dim) + " first " + std::to_string(c.t.first) + " half " +
                             std::to_string(c.t.half) + (c.t.interleaved ? " interleaved" : "");
    const size_t n = c.x.size(), shared = size_t(4) * c.width * (c.width <= 512 ? 8 : 1);
    const int tokens = c.rows / c.per_token, heads = c.per_token * c.width / c.t.head_dim, interleaved = c.t.interleaved;
    const unsigned grid = c.width <= 512 ? ceil_div(c.rows, 8) : unsigned(c.rows);
    auto turned = [&](Values values, double sign) {
        for (int row = 0; row < c.rows; ++row) {
            const size_t at = c.angles(row);
            turn(&values[size_t(row) * c.width], c.width, c.t, &c.cos[at], &c.sin[at], sign);
        }
        return values;
    };
    Buffer<float> cos(c.cos, 0), sin(c.sin, 0), w(c.w, 0);
    Buffer<u32> places(c.positions);
    const u32 *positions = c.positions.empty() ? nullptr : places.data;
    for (float sign : {1.0f, -1.0f}) {
        if (!begin("rope" + tail)) continue;
        const Values expected = turned(c.x, sign);
        Buffer<T> x(c.x, 0), y(n);
        launch(std::string("rope") + suffix<T>(), {ceil_div(i64(tokens) * heads, 8)}, 256, 0, 1, x.data, y.data, cos.data, sin.data,
               positions, tokens, heads, c.t.head_dim, c.t.first, c.t.half, interleaved, sign);
        compare("y", y.values(), expected, c.width, once<T>);
        launch(std::string("rope") + suffix<T>(), {1}, 256, 0, 1, x.data, x.data, cos.data, sin.data, positions, tokens, heads,
               c.t.head_dim, c.t.first, c.t.half, interleaved, sign);
        if (x.bits() != y.bits()) fail("in place differs");
    }
    Values r;
    if (begin("norm_rope" + tail)) {
        const Values expected = turned(c.normed(c.x, r), 1);
        with_seeds([&](uint64_t schedule) {
            Buffer<T> x(c.x, 0), y(n);
            launch(std::string("norm_rope") + suffix<T>(), {grid}, 256, 0, schedule, x.data, w.data, y.data, cos.data, sin.data,
                   positions, c.rows, c.width, c.per_token, c.t.head_dim, c.t.first, c.t.half, interleaved, c.eps, c.offset);
            compare("y", y.values(), expected, c.width, once<T>);
            launch(std::string("norm_rope") + suffix<T>(), {grid}, 256, 0, schedule, x.data, w.data, x.data, cos.data, sin.data,
                   positions, c.rows, c.width, c.per_token, c.t.head_dim, c.t.first, c.t.half, interleaved, c.eps, c.offset);
            if (x.bits() != y.bits()) fail("in place differs");
            return y.bits();
        });
    }
    for (int per_part : {3, 1000}) {
        if (!begin("norm_rope_backward" + tail)) continue;
        const unsigned parts = ceil_div(c.rows, per_part);
        Values dx, dw;
        c.backward(turned(c.dy, -1), dx, dw);
        with_seeds([&](uint64_t schedule) {
            Buffer<T> dy(c.dy, 0), x(c.x, 0), found(n);
            Buffer<float> partials(size_t(parts) * c.width), sum(Values(c.width), 0);
            for (T *into : {found.data, dy.data}) {
                launch(std::string("norm_rope_backward") + suffix<T>(), {parts}, 256, shared, schedule, dy.data, x.data, w.data,
                       into, partials.data, cos.data, sin.data, positions, c.rows, c.width, c.per_token, c.t.head_dim, c.t.first,
                       c.t.half, interleaved, c.eps, c.offset, per_part);
            }
            launch("sum_partials", {ceil_div(c.width, 256)}, 256, 0, schedule, partials.data, sum.data, int(parts), c.width);
            compare("dx", found.values(), dx, c.width, once<T>);
            compare("dw", sum.values(), dw, c.width, 1e-5);
            if (found.bits() != dy.bits()) fail("in place differs");
            return all_bits(found, partials);
        });
    }
}

template <class T>
void test_head(int n, int vocab, int tile, int stride, float cap, uint64_t seed) {
    const std::string tail = std::string(suffix<T>()) + ", targets " + std::to_string(n) + ", vocabulary " + std::to_string(vocab) +
                             ", tiles of " + std::to_string(tile);
    if (!begin("head: log_sum_exp, softmax_gradient" + tail)) return;
    Random random(seed);
    Values logits = noise<float>(random, size_t(n) * vocab, 4), weights = noise<float>(random, n), terms = noise<float>(random, n);
    std::vector<u32> targets;
    for (int i = 0; i < n; ++i) targets.push_back(u32(i == 0 ? vocab - 1 : random.pick(0, vocab - 1)));
    // One far above all others: a log-prob of nearly zero.
    logits[targets[n - 1] + size_t(n - 1) * vocab] = 60;
    Values log_probs(n), normalizers(n), d(logits.size());
    for (int row = 0; row < n; ++row) {
        auto capped = [&](int i) {
            const double x = logits[size_t(row) * vocab + i];
            return cap > 0 ? cap * std::tanh(x / cap) : x;
        };
        double max = -INFINITY, sum = 0;
        for (int i = 0; i < vocab; ++i) max = std::max(max, capped(i));
        for (int i = 0; i < vocab; ++i) sum += std::exp(capped(i) - max);
        normalizers[row] = max + std::log(sum);
        log_probs[row] = capped(int(targets[row])) - normalizers[row];
        for (int i = 0; i < vocab; ++i) {
            const double p = std::exp(capped(i) - normalizers[row]), t = cap > 0 ? capped(i) / cap : 0;
            d[size_t(row) * vocab + i] = (p * terms[row] - (i == int(targets[row]) ? weights[row] : 0)) * (1 - t * t);
        }
    }
    with_seeds([&](uint64_t schedule) {
        Buffer<u32> ids(targets);
        Buffer<float> max(n), target_logit(n), found(n), alone(n), weight(weights, 0), term(terms, 0);
        Buffer<double> sum(n), normalizer(n);
        std::vector<unsigned char> bits;
        for (int start = 0; start < vocab; start += tile) {
            const int entries = std::min(tile, vocab - start);
            Buffer<float> part(size_t(n - 1) * stride + entries);
            for (int row = 0; row < n; ++row) {
                for (int i = 0; i < entries; ++i) part.data[size_t(row) * stride + i] = float(logits[size_t(row) * vocab + start + i]);
            }
            launch("log_sum_exp_tile", {unsigned(n)}, 256, 0, schedule, part.data, ids.data, max.data, sum.data, target_logit.data, n,
                   entries, stride, start, cap, int(start == 0));
        }
        launch("log_sum_exp_finish", {ceil_div(n, 256)}, 256, 0, schedule, max.data, sum.data, target_logit.data, found.data,
               normalizer.data, n);
        launch("log_sum_exp_finish", {ceil_div(n, 256)}, 256, 0, schedule, max.data, sum.data, target_logit.data, alone.data,
               static_cast<double *>(nullptr), n);
        compare("log_probs", found.values(), log_probs, 1, 1e-6);
        compare("log_normalizers", normalizer.values(), normalizers, 1, 1e-6);
        if (found.bits() != alone.bits()) fail("log-probs alone differ");
        for (double value : found.values()) {
            if (!(value <= 0)) fail("a log-prob above 0");
        }
        bits = all_bits(found, normalizer);
        for (int start = 0; start < vocab; start += tile) {
            const int entries = std::min(tile, vocab - start);
            Values expected;
            Buffer<float> part(size_t(n - 1) * stride + entries);
            for (int row = 0; row < n; ++row) {
                for (int i = 0; i < entries; ++i) {
                    part.data[size_t(row) * stride + i] = float(logits[size_t(row) * vocab + start + i]);
                    expected.push_back(d[size_t(row) * vocab + start + i]);
                }
            }
            Buffer<T> gradient(expected.size());
            launch(std::string("softmax_gradient") + suffix<T>(), {unsigned(n)}, 256, 0, schedule, part.data, ids.data,
                   normalizer.data, weight.data, term.data, gradient.data, n, entries, stride, entries, start, cap);
            compare("d_logits", gradient.values(), expected, entries, once<T>);
            const auto more = gradient.bits();
            bits.insert(bits.end(), more.begin(), more.end());
            if (is_bf16<T>) continue;
            launch("softmax_gradient_f32", {unsigned(n)}, 256, 0, schedule, part.data, ids.data, normalizer.data, weight.data,
                   term.data, part.data, n, entries, stride, stride, start, cap);
            for (int i = 0; i < entries; ++i) {
                if (part.data[i] != float(wide(gradient.data[i]))) return fail("in place differs"), bits;
            }
        }
        return bits;
    });
}

template <class T>
void test_simple_of() {
    for (size_t n : {1, 7, 16, 255, 1000, 4101}) test_elements<T>(n, n);
    test_rows<T>(1, 1, 1);
    test_rows<T>(9, 40, 2);
    test_rows<T>(20, 264, 3);
    test_rows<T>(7, 1030, 4);
    test_mla<T>(3, 2, 8, 16, 24, 1);
    test_mla<T>(5, 3, 3, 2, 5, 2);
    test_mla<T>(2, 16, 128, 64, 128, 3);
    uint64_t seed = 1;
    for (int width : {1, 40, 128, 511, 512, 520, 1030}) {
        for (int rows : {1, 9, 20}) test_norm(NormCase<T>(rows, 1, 1, Turn{width, 0, width / 2, false}, false, ++seed));
    }
    for (bool places : {false, true}) {
        for (const Turn &t : {Turn{32, 0, 16, false}, Turn{24, 8, 8, false}, Turn{11, 2, 3, false}, Turn{14, 0, 7, true},
                              Turn{12, 3, 4, true}}) {
            test_rotation(NormCase<T>(5, 3, 1, t, places, ++seed));
            test_rotation(NormCase<T>(7, 1, 3, t, places, ++seed));
        }
        test_rotation(NormCase<T>(5, 1, 9, Turn{64, 0, 32, false}, places, ++seed));
        test_rotation(NormCase<T>(4, 1, 60, Turn{10, 2, 3, true}, places, ++seed));
    }
    for (float cap : {0.0f, 5.0f}) {
        test_head<T>(3, 64, 64, 64, cap, ++seed);
        test_head<T>(5, 1000, 333, 340, cap, ++seed);
        test_head<T>(2, 3000, 2048, 2048, cap, ++seed);
        test_head<T>(300, 7, 2, 5, cap, ++seed);
    }
}

void test_simple() {
    test_simple_of<bf16>();
    test_simple_of<float>();
    for (size_t n : {1, 7, 16, 255, 1000, 4101}) test_conversions(n, n);
    for (size_t n : {1, 1000, 65536, 65537, 200000}) test_sums(n, n);
    test_many_doubles();
}
