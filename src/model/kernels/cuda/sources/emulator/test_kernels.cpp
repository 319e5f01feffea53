// Checks every kernel, in the emulator, against plain loops in f64.
//
//   test_kernels [--full] [--only PART_OF_A_NAME] [--seeds N] [--stop]     # --stop: at the first failure
//
// Buffers end where memory that can't be touched begins, and outputs start as NaN. Every launch is made with
// several schedules, which have to give the same bits.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

extern "C" {
int remit_emulate(const char *, const unsigned *, const unsigned *, unsigned, void **, unsigned long long);
const char *remit_emulated_error();
const char *remit_emulated_signature(const char *);
const char *remit_emulated_kernel(unsigned);
}

namespace {

using Values = std::vector<double>;
using i64 = long long;
using u32 = unsigned;

struct bf16 {
    uint16_t bits;
};

double wide(float x) { return x; }
double wide(double x) { return x; }
double wide(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

template <class T>
T narrow(double x) {
    return T(x);
}
template <>
bf16 narrow<bf16>(double x) {
    const float value = float(x);
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bf16{uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

int failures = 0, checks = 0, seeds = 2;
bool full = false, stop = false;
std::string only, running;
std::vector<std::string> launched;

void fail(const std::string &what) {
    ++failures;
    if (failures <= 30) std::printf("FAILED %s: %s\n", running.c_str(), what.c_str());
    if (stop) std::exit(1);
}

// Elements that end at a page's end, behind which nothing may be touched, with a known pattern before them.
template <class T>
class Buffer {
  public:
    explicit Buffer(size_t n) : size(n) {
        const size_t bytes = n * sizeof(T);
        room = (bytes + 4095) / 4096 * 4096 + 4096;
        memory = static_cast<unsigned char *>(
            mmap(nullptr, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (memory == MAP_FAILED || mprotect(memory + room, 4096, PROT_NONE) != 0) std::abort();
        memset(memory, 0xff, room);
        data = reinterpret_cast<T *>(memory + room - bytes);
    }
    Buffer(const Values &values, int) : Buffer(values.size()) {
        for (size_t i = 0; i < size; ++i) data[i] = narrow<T>(values[i]);
    }
    explicit Buffer(const std::vector<T> &values) : Buffer(values.size()) {
        if (size != 0) memcpy(data, values.data(), size * sizeof(T));
    }
    Buffer(const Buffer &) = delete;
    ~Buffer() {
        const unsigned char *start = reinterpret_cast<unsigned char *>(data);
        for (const unsigned char *at = memory; at < start; ++at) {
            if (*at != 0xff) {
                fail("memory before a buffer was written");
                break;
            }
        }
        munmap(memory, room + 4096);
    }
    Values values() const {
        Values all(size);
        for (size_t i = 0; i < size; ++i) all[i] = wide(data[i]);
        return all;
    }
    std::vector<unsigned char> bits() const {
        const unsigned char *start = reinterpret_cast<const unsigned char *>(data);
        return {start, start + size * sizeof(T)};
    }

    T *data;
    size_t size;

  private:
    unsigned char *memory;
    size_t room;
};

struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 1) {}
    uint64_t next() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state;
    }
    double uniform() { return double(next() >> 11) / double(1ull << 53); }
    double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }
    int pick(int low, int high) { return low + int(next() >> 33) % (high - low + 1); }
};

// Normal values that T holds exactly.
template <class T>
Values noise(Random &random, size_t n, double scale = 1) {
    Values values(n);
    for (double &value : values) value = wide(narrow<T>(random.normal() * scale));
    return values;
}

template <class T>
constexpr bool is_bf16 = std::is_same<T, bf16>::value;
template <class T>
const char *suffix() {
    return is_bf16<T> ? "_bf16" : "_f32";
}
// Error that is allowed of a value that is rounded once, and of one computed from rounded ones.
template <class T>
constexpr double once = is_bf16<T> ? 4e-3 : 2e-6;
template <class T>
constexpr double often = is_bf16<T> ? 2.5e-2 : 2e-5;

// Compares rows of `width` values: the error of each against the size of the row and of all.
void compare(const char *what, const Values &found, const Values &expected, size_t width, double tolerance) {
    ++checks;
    double all = 0;
    for (double value : expected) all += value * value;
    all = std::sqrt(all / std::max<size_t>(1, expected.size()) * width);
    for (size_t row = 0; row * width < expected.size(); ++row) {
        double error = 0, size = 0;
        for (size_t i = row * width; i < (row + 1) * width; ++i) {
            const double apart = found[i] - expected[i];
            error += apart * apart;
            size += expected[i] * expected[i];
        }
        if (!(std::sqrt(error) <= tolerance * (std::sqrt(size) + 0.3 * all) + 3e-6)) {
            char text[160];
            std::snprintf(text, sizeof text, "%s: row %zu of %zu is %.3g off, of size %.3g", what, row,
                          expected.size() / width, std::sqrt(error), std::sqrt(size));
            fail(text);
            return;
        }
    }
}

template <class T>
char letter() {
    if (std::is_pointer<T>::value || std::is_null_pointer<T>::value) return 'p';
    if (std::is_same<T, int>::value) return 'i';
    if (std::is_same<T, u32>::value) return 'u';
    if (std::is_same<T, i64>::value) return 'q';
    return 'f';
}

template <class... A>
bool launch(const std::string &kernel, std::vector<unsigned> grid, unsigned block, size_t shared, uint64_t seed,
            A... arguments) {
    grid.resize(3, 1);
    const unsigned blocks[3] = {block, 1, 1};
    const std::string signature = {letter<A>()...};
    if (std::find(launched.begin(), launched.end(), kernel) == launched.end()) launched.push_back(kernel);
    const char *expected = remit_emulated_signature(kernel.c_str());
    if (expected == nullptr || signature != expected) {
        fail(kernel + " takes " + (expected == nullptr ? "nothing" : expected) + ", not " + signature);
        return false;
    }
    void *pointers[] = {static_cast<void *>(&arguments)...};
    const int status = remit_emulate(kernel.c_str(), grid.data(), blocks, unsigned(shared), pointers, seed);
    if (status != 0) fail("status " + std::to_string(status) + ": " + remit_emulated_error());
    return status == 0;
}

// Runs with every seed; `run` returns bits, which have to be the same.
void with_seeds(const std::function<std::vector<unsigned char>(uint64_t)> &run) {
    std::vector<unsigned char> first;
    for (int seed = 0; seed < seeds; ++seed) {
        auto bits = run(uint64_t(seed) * 77 + 1);
        if (seed == 0) first = std::move(bits);
        else if (bits != first) fail("two schedules give different bits");
    }
}

template <class... B>
std::vector<unsigned char> all_bits(const B &...buffers) {
    std::vector<unsigned char> all;
    auto add = [&](const std::vector<unsigned char> &bits) { all.insert(all.end(), bits.begin(), bits.end()); };
    (add(buffers.bits()), ...);
    return all;
}

unsigned ceil_div(i64 a, i64 b) { return unsigned((a + b - 1) / b); }
unsigned blocks(i64 n) { return std::max(1u, ceil_div(n, 2048)); }

#include "test_simple.h"
#include "test_attention.h"

}  // namespace

int main(int count, char **words) {
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        if (word == "--full") full = true;
        else if (word == "--stop") stop = true;
        else if (word == "--only" && i + 1 < count) only = words[++i];
        else if (word == "--seeds" && i + 1 < count) seeds = std::atoi(words[++i]);
        else {
            std::fprintf(stderr, "test_kernels: unknown option %s\n", word.c_str());
            return 2;
        }
    }
    test_simple();
    test_attention();
    if (only.empty()) {
        running = "all kernels";
        for (unsigned i = 0; remit_emulated_kernel(i) != nullptr; ++i) {
            const std::string name = remit_emulated_kernel(i);
            const bool is_tested = std::find(launched.begin(), launched.end(), name) != launched.end();
            if (!is_tested) fail("no test launches " + name);
        }
    }
    std::printf("test_kernels: %d checks of %zu kernels, %d failed\n", checks, launched.size(), failures);
    return failures == 0 ? 0 : 1;
}
