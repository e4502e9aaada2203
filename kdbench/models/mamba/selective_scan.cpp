// The selective scan of Mamba (Gu and Dao 2023), forward and backward, in single precision on CPU cores.
//
// Tensors are laid out by tokens: u, delta, z, out (batch, length, channels) and B, C (batch, length, states). u, delta, z,
// B and C may be slices of wider rows: a row is `stride` floats after the one before it, and sequences follow each other.
//
// A vector holds LANES neighbouring channels; the states of a group of channels stay in the cache while it walks over
// the tokens. The backward pass computes the states again. Sums over channels (dB, dC) are kept per lane and per part of
// the channels, sums over the batch (dA, dD, dbias) per sequence: no result depends on the number of threads.
//
// No headers of PyTorch, so one source serves every version of it.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

inline Vector all(float x) { return x - Vector{}; }

// `count` channels; the lanes beyond are zero, and zeros add nothing to any sum below.
inline Vector load(const float* from, int count) {
    Vector x{};
    if (count == LANES) std::memcpy(&x, from, sizeof x);
    else std::memcpy(&x, from, sizeof(float) * count);
    return x;
}

inline void store(float* to, const Vector& x, int count) {
    if (count == LANES) std::memcpy(to, &x, sizeof x);
    else std::memcpy(to, &x, sizeof(float) * count);
}

inline float sum(const Vector& x) {
    float total = 0;
    for (int i = 0; i < LANES; ++i) total += x[i];
    return total;
}

// e^x: x = k ln 2 + r with |r| <= ln 2 / 2, and the Taylor series of e^r (relative error below 2e-7). Saturates at e^-87
// and e^88; a NaN stays one.
inline Vector exp(Vector x) {
    x = x < -87.0f ? all(-87.0f) : x;
    x = x > 88.0f ? all(88.0f) : x;
    const Vector scaled = x * 1.44269504f;
    const Integers k = __builtin_convertvector(scaled + (scaled < 0.0f ? all(-0.5f) : all(0.5f)), Integers);
    const Vector whole = __builtin_convertvector(k, Vector);
    const Vector r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vector p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Integers power = (k + 127) << 23;
    Vector two_to_k;
    std::memcpy(&two_to_k, &power, sizeof power);
    return p * two_to_k;
}

// log(1 + e^x) = max(x, 0) + log(1 + e) with e = e^-|x|, and log(1 + e) = 2 atanh(s) with s = e / (2 + e) <= 1/3.
inline Vector softplus(const Vector& x) {
    const Vector e = exp(x < 0.0f ? x : -x);
    const Vector s = e / (2.0f + e), q = s * s;
    Vector p = q * (1.0f / 15) + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 0.2f;
    p = p * q + 1.0f / 3;
    p = p * q + 1.0f;
    return (x < 0.0f ? Vector{} : x) + 2.0f * s * p;
}

inline Vector sigmoid(const Vector& x) { return 1.0f / (1.0f + exp(-x)); }

struct Shape {
    int64_t batch, length, channels, states;
    int64_t stride_u, stride_delta, stride_B, stride_C, stride_z;
};

struct Inputs {
    const float *u, *delta, *A, *B, *C, *D, *z, *bias;
};

struct Gradients {
    float *u, *delta, *A, *B, *C, *D, *z, *bias;
};

// Runs task(i) for i < tasks on up to `threads` threads.
template <class Task>
void parallel(int64_t tasks, int64_t threads, const Task& task) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t i; (i = next++) < tasks;) task(i);
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < std::min(threads, tasks); ++i) others.emplace_back(work);
    work();
    for (auto& other : others) other.join();
}

// A of the channels of one group, transposed: one vector for each state.
void load_A(const Shape& s, const Inputs& in, int64_t channel, int count, Vector* A) {
    for (int64_t n = 0; n < s.states; ++n) {
        A[n] = Vector{};
        for (int i = 0; i < count; ++i) A[n][i] = in.A[(channel + i) * s.states + n];
    }
}

void forward_group(const Shape& s, const Inputs& in, int64_t b, int64_t channel, int count, float* out, Vector* scratch) {
    Vector *A = scratch, *h = scratch + s.states;
    load_A(s, in, channel, count, A);
    std::fill(h, h + s.states, Vector{});
    const Vector bias = load(in.bias + channel, count), D = load(in.D + channel, count);
    for (int64_t t = 0; t < s.length; ++t) {
        const int64_t row = b * s.length + t;
        const float *B = in.B + row * s.stride_B, *C = in.C + row * s.stride_C;
        const Vector u = load(in.u + row * s.stride_u + channel, count);
        const Vector z = load(in.z + row * s.stride_z + channel, count);
        const Vector delta = softplus(load(in.delta + row * s.stride_delta + channel, count) + bias);
        const Vector w = delta * u;
        Vector y = D * u;
        for (int64_t n = 0; n < s.states; ++n) {
            h[n] = exp(delta * A[n]) * h[n] + w * B[n];
            y += h[n] * C[n];
        }
        store(out + row * s.channels + channel, y * z * sigmoid(z), count);
    }
}

// `dB` and `dC` are sums per lane, (length, states), which the groups of one sequence add to.
void backward_group(
    const Shape& s, const Inputs& in, const float* dout, const Gradients& d, int64_t b, int64_t channel, int count,
    Vector* dB, Vector* dC, Vector* scratch
) {
    const int64_t N = s.states;
    Vector *A = scratch, *g = A + N, *dA = g + N, *h = dA + N, *a = h + (s.length + 1) * N, *y = a + s.length * N;
    load_A(s, in, channel, count, A);
    std::fill(g, h + N, Vector{});  // g, dA, and the state before the first token
    const Vector bias = load(in.bias + channel, count), D = load(in.D + channel, count);
    for (int64_t t = 0; t < s.length; ++t) {
        const int64_t row = b * s.length + t;
        const float *B = in.B + row * s.stride_B, *C = in.C + row * s.stride_C;
        const Vector u = load(in.u + row * s.stride_u + channel, count);
        const Vector delta = softplus(load(in.delta + row * s.stride_delta + channel, count) + bias);
        const Vector w = delta * u;
        Vector answer = D * u;
        for (int64_t n = 0; n < N; ++n) {
            const Vector decay = exp(delta * A[n]);
            const Vector state = decay * h[t * N + n] + w * B[n];
            a[t * N + n] = decay;
            h[(t + 1) * N + n] = state;
            answer += state * C[n];
        }
        y[t] = answer;
    }
    Vector dD{}, dbias{};
    for (int64_t t = s.length - 1; t >= 0; --t) {
        const int64_t row = b * s.length + t;
        const float *B = in.B + row * s.stride_B, *C = in.C + row * s.stride_C;
        const Vector u = load(in.u + row * s.stride_u + channel, count);
        const Vector z = load(in.z + row * s.stride_z + channel, count);
        const Vector given = load(dout + row * s.channels + channel, count);
        const Vector raw = load(in.delta + row * s.stride_delta + channel, count) + bias;
        const Vector delta = softplus(raw), w = delta * u, gate = sigmoid(z);
        const Vector dy = given * z * gate;
        Vector dw{}, ddelta{};
        for (int64_t n = 0; n < N; ++n) {
            Vector gradient = g[n] + dy * C[n];
            dC[t * N + n] += dy * h[(t + 1) * N + n];
            dB[t * N + n] += w * gradient;
            dw += gradient * B[n];
            gradient *= a[t * N + n];
            g[n] = gradient;
            const Vector exponent = gradient * h[t * N + n];  // gradient of delta_t A
            ddelta += exponent * A[n];
            dA[n] += exponent * delta;
        }
        ddelta = (ddelta + dw * u) * sigmoid(raw);
        dD += dy * u;
        dbias += ddelta;
        const int64_t at = row * s.channels + channel;
        store(d.u + at, dw * delta + dy * D, count);
        store(d.delta + at, ddelta, count);
        store(d.z + at, given * y[t] * gate * (1.0f + z * (1.0f - gate)), count);
    }
    const int64_t sums = b * s.channels + channel;
    store(d.D + sums, dD, count);
    store(d.bias + sums, dbias, count);
    for (int64_t n = 0; n < N; ++n)
        for (int i = 0; i < count; ++i) d.A[(sums + i) * N + n] = dA[n][i];
}

// Calls group(channel, count) for the channels of part `part` of `parts`.
template <class Group>
void groups(int64_t channels, int64_t part, int64_t parts, const Group& group) {
    const int64_t number = (channels + LANES - 1) / LANES;
    for (int64_t i = number * part / parts; i < number * (part + 1) / parts; ++i)
        group(i * LANES, static_cast<int>(std::min<int64_t>(LANES, channels - i * LANES)));
}

}  // namespace

extern "C" {

// out (batch, length, channels) = scan * silu(z). A (channels, states); D, bias (channels).
void kdbench_scan_forward(const Shape* s, const Inputs* in, float* out, int64_t parts, int64_t threads) {
    parallel(s->batch * parts, threads, [&](int64_t task) {
        std::vector<Vector> scratch(2 * s->states);
        groups(s->channels, task % parts, parts, [&](int64_t channel, int count) {
            forward_group(*s, *in, task / parts, channel, count, out, scratch.data());
        });
    });
}

// Gradients: u, delta, z (batch, length, channels); A (batch, channels, states) and D, bias (batch, channels), to be
// summed over the batch; B, C (parts, batch, length, states), to be summed over the parts. dout (batch, length, channels).
void kdbench_scan_backward(
    const Shape* s, const Inputs* in, const float* dout, const Gradients* d, int64_t parts, int64_t threads
) {
    const int64_t size = s->length * s->states;
    parallel(s->batch * parts, threads, [&](int64_t task) {
        const int64_t b = task / parts, part = task % parts;
        std::vector<Vector> scratch(4 * size + 4 * s->states + s->length);
        Vector *dB = scratch.data(), *dC = dB + size;
        groups(s->channels, part, parts, [&](int64_t channel, int count) {
            backward_group(*s, *in, dout, *d, b, channel, count, dB, dC, dC + size);
        });
        const int64_t at = (part * s->batch + b) * size;
        for (int64_t i = 0; i < size; ++i) {
            d->B[at + i] = sum(dB[i]);
            d->C[at + i] = sum(dC[i]);
        }
    });
}
}
