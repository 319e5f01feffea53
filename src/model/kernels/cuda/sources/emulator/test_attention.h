// Attention, both ways: part of test_kernels.cpp.
#pragma once

struct AttentionCase {
    std::vector<int> rows;
    int heads, kv_heads, dim, v_dim;
    double scale, cap;
    int window;

    std::string name() const {
        std::string text = "rows";
        for (int row : rows) text += " " + std::to_string(row);
        return text + ", heads " + std::to_string(heads) + "/" + std::to_string(kv_heads) + ", dims " + std::to_string(dim) +
               "/" + std::to_string(v_dim) + ", cap " + std::to_string(cap) + ", window " + std::to_string(window);
    }
};

struct AttentionResult {
    Values out, lse, dq, dk, dv;
};

AttentionResult attention_reference(const AttentionCase &c, const Values &q, const Values &k, const Values &v,
                                    const Values &d_out) {
    int tokens = 0;
    for (int row : c.rows) tokens += row;
    AttentionResult r;
    r.out.assign(size_t(tokens) * c.heads * c.v_dim, 0);
    r.lse.assign(size_t(tokens) * c.heads, 0);
    r.dq.assign(q.size(), 0);
    r.dk.assign(k.size(), 0);
    r.dv.assign(v.size(), 0);
    int start = 0;
    for (int len : c.rows) {
        for (int h = 0; h < c.heads; ++h) {
            const int kv = h / (c.heads / c.kv_heads);
            for (int query = 0; query < len; ++query) {
                const int first = c.window > 0 ? std::max(0, query + 1 - c.window) : 0;
                const double *one = &q[(size_t(start + query) * c.heads + h) * c.dim];
                const double *d = &d_out[(size_t(start + query) * c.heads + h) * c.v_dim];
                double *out = &r.out[(size_t(start + query) * c.heads + h) * c.v_dim];
                Values score, slope, p;
                double max = -INFINITY, sum = 0, delta = 0;
                for (int key = first; key <= query; ++key) {
                    const double *other = &k[(size_t(start + key) * c.kv_heads + kv) * c.dim];
                    double s = 0;
                    for (int i = 0; i < c.dim; ++i) s += one[i] * other[i];
                    s *= c.scale;
                    const double t = c.cap > 0 ? std::tanh(s / c.cap) : 0;
                    score.push_back(c.cap > 0 ? c.cap * t : s);
                    slope.push_back(1 - t * t);
                    max = std::max(max, score.back());
                }
                for (double s : score) sum += std::exp(s - max);
                for (double s : score) p.push_back(std::exp(s - max) / sum);
                r.lse[size_t(h) * tokens + start + query] = max + std::log(sum);
                for (int key = first; key <= query; ++key) {
                    const double *value = &v[(size_t(start + key) * c.kv_heads + kv) * c.v_dim];
                    for (int i = 0; i < c.v_dim; ++i) out[i] += p[key - first] * value[i];
                }
                for (int i = 0; i < c.v_dim; ++i) delta += d[i] * out[i];
                for (int key = first; key <= query; ++key) {
                    const size_t at = size_t(start + key) * c.kv_heads + kv;
                    double dp = 0;
                    for (int i = 0; i < c.v_dim; ++i) dp += d[i] * v[at * c.v_dim + i];
                    const double ds = p[key - first] * (dp - delta) * slope[key - first] * c.scale;
                    for (int i = 0; i < c.v_dim; ++i) r.dv[at * c.v_dim + i] += p[key - first] * d[i];
                    for (int i = 0; i < c.dim; ++i) {
                        r.dk[at * c.dim + i] += ds * one[i];
                        r.dq[(size_t(start + query) * c.heads + h) * c.dim + i] += ds * k[at * c.dim + i];
                    }
                }
            }
        }
        start += len;
    }
    return r;
}

// The launch contract of README.md.
struct AttentionKernels {
    std::string name;
    size_t forward, backward_kv, backward_q;
    unsigned kv_threads;
    int forward_tile;
};

AttentionKernels attention_kernels(bool in_bf16, int dim, int v_dim) {
    if (!in_bf16) {
        const size_t d = dim + 1, v = v_dim + 1;
        const size_t backward = 4 * (32 * d + 32 * v + 2 * 16 * 17 + 32);
        return {"_f32", 4 * (16 * d + 16 * d + 16 * v + 16 * 17 + 48), backward, backward, 128, 64};
    }
    std::string name;
    size_t d = 0, v = 0;
    for (int size : {32, 64, 96, 128, 192, 256}) {
        if (std::max(dim, v_dim) > size) continue;
        d = v = size;
        name = std::to_string(size);
        break;
    }
    if (dim > 128 && dim <= 192 && v_dim <= 128) d = 192, v = 128, name = "192_128";
    auto bytes = [](size_t n, size_t d) { return n * (d + 8) * 2; };
    const size_t n = d < 128 ? 64 : d == 128 ? 48 : 32, m = d <= 64 ? 64 : 32, both = bytes(64, d) + bytes(64, v);
    const int tile = d <= 128 ? 128 : 64;
    return {"_bf16_" + name, bytes(tile, d) + 2 * (bytes(n, d) + bytes(n, v)),
            both + 2 * (bytes(m, d) + bytes(m, v) + 8 * m), both + 2 * (bytes(m, d) + bytes(m, v)),
            d > 128 ? 256u : 128u, tile};
}

std::vector<int> tiles_of(const std::vector<int> &rows, int size) {
    std::vector<int> tiles;
    int start = 0;
    for (int len : rows) {
        for (int first = 0; first < len; first += size) tiles.insert(tiles.end(), {start, len, first, 0});
        start += len;
    }
    return tiles;
}

// Runs all kernels, each with one schedule.
template <class T>
struct AttentionRun {
    Buffer<T> out, dq, dk, dv;
    Buffer<float> lse, delta, lse_alone;

    AttentionRun(const AttentionCase &c, const Values &q_values, const Values &k_values, const Values &v_values,
                 const Values &d_values, uint64_t seed)
        : out(d_values.size()),
          dq(q_values.size()),
          dk(k_values.size()),
          dv(v_values.size()),
          lse(q_values.size() / c.dim),
          delta(q_values.size() / c.dim),
          lse_alone(q_values.size() / c.dim) {
        const AttentionKernels kernels = attention_kernels(is_bf16<T>, c.dim, c.v_dim);
        Buffer<T> q(q_values, 0), k(k_values, 0), v(v_values, 0), d_out(d_values, 0);
        Buffer<int> tiles(tiles_of(c.rows, 64)), forward_tiles(tiles_of(c.rows, kernels.forward_tile));
        const int tokens = int(q_values.size()) / c.dim / c.heads;
        const unsigned parts = is_bf16<T> ? 1 : 4;
        const unsigned n = unsigned(tiles.size / 4) * parts, forward_n = unsigned(forward_tiles.size / 4) * parts;
        const unsigned heads = unsigned(c.heads), kv_heads = unsigned(c.kv_heads);
        const float scale = float(c.scale), cap = float(c.cap);
        const std::string forward = "attention_forward" + kernels.name;
        if (!launch(forward, {forward_n, heads}, 128, kernels.forward, seed, q.data, k.data, v.data, out.data, lse.data,
                    forward_tiles.data, tokens, c.heads, c.kv_heads, c.dim, c.v_dim, scale, cap, c.window))
            return;
        launch(forward, {forward_n, heads}, 128, kernels.forward, seed, q.data, k.data, v.data, static_cast<T *>(nullptr),
               lse_alone.data, forward_tiles.data, tokens, c.heads, c.kv_heads, c.dim, c.v_dim, scale, cap, c.window);
        launch(std::string("attention_delta") + suffix<T>(), {ceil_div(i64(tokens) * c.heads, 8)}, 256, 0, seed, d_out.data,
               out.data, delta.data, tokens, c.heads, c.v_dim);
        launch("attention_backward_kv" + kernels.name, {n, kv_heads}, kernels.kv_threads, kernels.backward_kv, seed,
               q.data, k.data, v.data, d_out.data, lse.data, delta.data, dk.data, dv.data, tiles.data, tokens, c.heads,
               c.kv_heads, c.dim, c.v_dim, scale, cap, c.window);
        launch("attention_backward_q" + kernels.name, {n, heads}, 128, kernels.backward_q, seed, q.data, k.data, v.data,
               d_out.data, lse.data, delta.data, dq.data, tiles.data, tokens, c.heads, c.kv_heads, c.dim, c.v_dim, scale,
               cap, c.window);
    }

    std::vector<unsigned char> bits() const { return all_bits(out, lse, delta, dq, dk, dv); }
};

template <class T>
void attention_case(const AttentionCase &c, uint64_t seed) {
    running = "attention" + attention_kernels(is_bf16<T>, c.dim, c.v_dim).name + ", " + c.name();
    if (running.find(only) == std::string::npos) return;
    Random random(seed);
    size_t tokens = 0;
    for (int row : c.rows) tokens += row;
    const Values q = noise<T>(random, tokens * c.heads * c.dim), k = noise<T>(random, tokens * c.kv_heads * c.dim);
    const Values v = noise<T>(random, tokens * c.kv_heads * c.v_dim);
    const Values d_out = noise<T>(random, tokens * c.heads * c.v_dim);
    const AttentionResult expected = attention_reference(c, q, k, v, d_out);
    with_seeds([&](uint64_t schedule) {
        const AttentionRun<T> run(c, q, k, v, d_out, schedule);
        compare("out", run.out.values(), expected.out, c.v_dim, often<T> / 2);
        // Products of bf16 are exact in f32: only their sum is not.
        compare("lse", run.lse.values(), expected.lse, 1, 3e-5);
        if (run.lse.bits() != run.lse_alone.bits()) fail("log-sum-exps alone differ");
        compare("dq", run.dq.values(), expected.dq, c.dim, often<T>);
        compare("dk", run.dk.values(), expected.dk, c.dim, often<T>);
        compare("dv", run.dv.values(), expected.dv, c.v_dim, often<T>);
        return run.bits();
    });
    // The last row alone has the same bits as among others.
    if (c.rows.size() < 2) return;
    AttentionCase alone = c;
    alone.rows = {c.rows.back()};
    auto tail = [&](const Values &values) {
        const size_t n = values.size() / tokens * c.rows.back();
        return Values(values.end() - n, values.end());
    };
    const AttentionRun<T> run(alone, tail(q), tail(k), tail(v), tail(d_out), 5);
    const AttentionRun<T> among(c, q, k, v, d_out, 6);
    auto same = [&](const char *what, const auto &one, const auto &all) {
        const auto a = one.bits(), b = all.bits();
        if (!std::equal(a.begin(), a.end(), b.end() - a.size())) fail(std::string(what) + " of a row depends on other rows");
    };
    same("out", run.out, among.out);
    same("dq", run.dq, among.dq);
    same("dk", run.dk, among.dk);
    same("dv", run.dv, among.dv);
}

void test_attention() {
    const std::vector<AttentionCase> cases = {
        // Whole and partial tiles, and every size of head.
        {{1, 2, 63}, 2, 1, 16, 16, 0.25, 0, 0},
        {{64, 65}, 2, 2, 32, 32, 0.2, 0, 0},
        {{150, 5}, 4, 1, 20, 12, 0.25, 0, 7},
        {{129, 3}, 4, 2, 64, 64, 0.125, 2, 0},
        {{127}, 1, 1, 80, 96, 0.11, 0, 40},
        {{130, 66}, 1, 1, 128, 128, 0.09, 0, 0},
        {{66, 33}, 1, 1, 192, 192, 0.07, 3, 33},
        {{67}, 2, 1, 192, 128, 0.07, 0, 0},
        {{34, 40}, 1, 1, 256, 256, 0.06, 0, 20},
    };
    const std::vector<AttentionCase> more = {
        {{200, 65, 1}, 4, 4, 64, 64, 0.125, 0, 0},
        {{200}, 8, 1, 64, 48, 0.125, 0, 64},
        {{200}, 8, 2, 32, 32, 0.2, 1.5, 65},
        {{63, 64, 65, 127, 128, 129}, 1, 1, 24, 32, 0.2, 0, 1},
        {{65, 130}, 2, 1, 128, 128, 0.09, 2, 63},
        {{200}, 2, 1, 100, 90, 0.1, 0, 100},
        {{130}, 2, 2, 160, 120, 0.08, 0, 50},
        {{130, 1}, 2, 1, 256, 250, 0.06, 2, 0},
        {{129}, 1, 1, 90, 256, 0.1, 0, 31},
        {{200, 2}, 1, 1, 180, 190, 0.07, 0, 0},
    };
    uint64_t seed = 1;
    auto both = [&](const AttentionCase &c) {
        attention_case<bf16>(c, ++seed);
        attention_case<float>(c, ++seed);
    };
    for (const AttentionCase &c : cases) both(c);
    if (!full) return;
    for (const AttentionCase &c : more) both(c);
}
