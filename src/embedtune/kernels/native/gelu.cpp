// The exact GELU, x * Phi(x), together with its backward, in one pass over memory.
#include "vectors.h"

#include <stddef.h>

namespace {

constexpr int64_t CHUNK = 8192;  // values that a thread takes at a time

struct Both {
    Floats below, density;  // Phi(x), and the normal density
};

// Phi by Abramowitz & Stegun's 7.1.26: its error is below 1e-7, and shrinks with the density where Phi is near 0.
INLINE Both normal(Floats x) {
    const Floats size = x < 0.0f ? -x : x;
    const Floats t = 1.0f / (size * (0.3275911f * 0.7071067811865476f) + 1.0f);
    Floats y = t * 1.061405429f - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    const Floats bell = exp2(x * x * -0.7213475204444817f);  // e^(-x^2 / 2)
    const Floats tail = y * t * bell * 0.5f;
    return {x < 0.0f ? tail : 1.0f - tail, bell * 0.3989422804014327f};
}

}  // namespace

// As native.py fills it in.
struct Gelu {
    const void *x, *grad;
    void *out, *grad_x;  // `grad_x` may be `grad`
    int64_t count, next_chunk;
};

namespace {

template <typename T> INLINE void vector(const T* x, const T* grad, T* out, T* grad_x) {
    const Floats value = load(x), of_out = load(grad);
    const Both at_value = normal(value);
    store(out, value * at_value.below);
    store(grad_x, of_out * (at_value.below + value * at_value.density));
}

template <typename T> void work(void* argument) {
    Gelu& of = *static_cast<Gelu*>(argument);
    const T *x = static_cast<const T*>(of.x), *grad = static_cast<const T*>(of.grad);
    T *out = static_cast<T*>(of.out), *grad_x = static_cast<T*>(of.grad_x);
    for (;;) {
        int64_t at = CHUNK * __atomic_fetch_add(&of.next_chunk, 1, __ATOMIC_RELAXED);
        if (at >= of.count) return;
        const int64_t stop = least(at + CHUNK, of.count);
        for (; at + LANES <= stop; at += LANES) vector(x + at, grad + at, out + at, grad_x + at);
        if (at == stop) continue;
        const size_t rest = (stop - at) * sizeof(T);
        T some[4][LANES] = {};
        memcpy(some[0], x + at, rest), memcpy(some[1], grad + at, rest);
        vector(some[0], some[1], some[2], some[3]);
        memcpy(out + at, some[2], rest), memcpy(grad_x + at, some[3], rest);
    }
}

typedef void (*Work)(void*);
const Work WORK[3] = {work<float>, work<BFloat16>, work<Float16>};

}  // namespace

// `parallel` is GOMP_parallel of the OpenMP library that torch uses. dtype: 0 fp32, 1 bf16, 2 fp16.
extern "C" void gelu_and_backward(Gelu* of, int64_t dtype, int64_t threads,
                                  void (*parallel)(Work, void*, unsigned, unsigned)) {
    const Work work = WORK[dtype];
    threads = least(threads, (of->count + CHUNK - 1) / CHUNK);
    if (threads > 1) parallel(work, of, unsigned(threads), 0);
    else work(of);
}
