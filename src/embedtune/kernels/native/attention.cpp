// Packed attention: softmax(scale * Q K^T) V within each sequence, forward and backward.
//
// A task is a sequence and a key head with all its query heads; one thread computes it in a fixed order, so the result
// does not depend on how many threads there are. Rows (queries) and keys go in blocks, with a running maximum over the
// blocks of keys (Milakov & Gimelshein 2018; Dao 2023, algorithm 1). What is kept is the logarithm of each row's sum;
// the backward pass computes the probabilities again from it (Dao 2023, algorithm 2).
#include "vectors.h"

#include <math.h>

namespace {

constexpr int64_t ROWS = 48, KEYS = 256;  // of a block; KEYS <= STEP
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

struct View {
    void* at;
    int64_t token, head;  // elements from one token to the next, from one head to the next
};

}  // namespace

// As native.py fills it in.
struct Attention {
    int64_t sequences, heads, key_heads, size, longest, causal, window, scratch_step, threads;
    double scale;
    const int64_t* starts;  // (sequences + 1)
    const int64_t* order;   // in which sequences are taken
    View query, key, value, out, grad, grad_query, grad_key, grad_value;
    float* lse;      // (tokens, heads), to base 2
    float* scratch;  // `scratch_step` floats a thread
    int64_t next_task, next_worker;
};

namespace {

template <typename T> INLINE T* row(const View& view, int64_t token, int64_t head) {
    return static_cast<T*>(view.at) + token * view.token + head * view.head;
}

// Floats from one row of a (size, length) matrix to the next: an odd number of cache lines.
INLINE int64_t turned_step(int64_t length) {
    const int64_t lines = padded(length) / LINE;
    return (lines | 1) * LINE;
}

// A row that is wanted soon, on its way from memory while something else is computed. Past the end it does no harm.
template <typename T> INLINE void expect(const View& view, int64_t token, int64_t head, int64_t size) {
    const char* from = reinterpret_cast<const char*>(row<T>(view, token, head));
    for (int64_t at = 0; at < size * int64_t(sizeof(T)); at += 64) __builtin_prefetch(from + at, 0, 2);
}

struct Scratch {
    float* next;
    float* take(int64_t floats) {
        float* taken = next;
        next += floats;
        return taken;
    }
};

INLINE int64_t scratch_floats(int64_t length, int64_t size, bool backward) {
    const int64_t turned = size * turned_step(length), straight = length * padded(size), block = ROWS * STEP;
    return LINE + (backward ? 2 * turned + 3 * straight + 5 * block : turned + straight + 3 * block);
}

// One head of a sequence as a (size, length) matrix, with zeros behind its last column.
// `ahead` is how many heads further on this thread will be next, as a rule.
template <typename T> void fetch_turned(const View& view, int64_t start, int64_t length, int64_t head, int64_t ahead,
                                        int64_t size, float* to) {
    float some[LINE][STEP];
    const int64_t step = turned_step(length);
    for (int64_t token = 0; token < padded(length); token += LINE) {
        const int64_t count = least(LINE, length - token);
        for (int64_t i = 0; i < count; i++) {
            fetch(row<T>(view, start + token + i, head), size, 1, some[i]);
            expect<T>(view, start + token + i, head + ahead, size);
        }
        for (int64_t i = count; i < LINE; i++) memset(some[i], 0, size * sizeof(float));
        for (int64_t d = 0; d < size; d++)
            for (int64_t i = 0; i < LINE; i++) to[d * step + token + i] = some[i][d];
    }
}

template <typename T> void fetch_rows(const View& view, int64_t start, int64_t count, int64_t head, int64_t ahead,
                                      int64_t size, float factor, float* to, int64_t step) {
    for (int64_t i = 0; i < count; i++) {
        fetch(row<T>(view, start + i, head), size, factor, to + i * step);
        expect<T>(view, start + i, head + ahead, size);
    }
}

template <typename T> void put_rows(const float* from, int64_t step, const View& view, int64_t start, int64_t count,
                                    int64_t head, int64_t size, float factor) {
    for (int64_t i = 0; i < count; i++) put(from + i * step, size, factor, row<T>(view, start + i, head));
}

struct Range {
    int64_t low, high;
};

// The keys that rows `first` to `stop` see between them, from a whole vector on.
INLINE Range seen(const Attention& of, int64_t first, int64_t stop, int64_t length) {
    Range range = {0, length};
    if (of.window) range = {most(0, first - of.window + 1) / LINE * LINE, least(length, stop - 1 + of.window)};
    if (of.causal) range.high = least(range.high, stop);
    return range;
}

// Scores of a row that it must not see become -inf, so that their exponential is 0; so does what fills the last vector.
INLINE void hide(const Attention& of, int64_t at, int64_t first_key, int64_t keys, int64_t length, float* scores) {
    int64_t low = 0, high = length;
    if (of.window) low = most(0, at - of.window + 1), high = least(length, at + of.window);
    if (of.causal) high = least(high, at + 1);
    low = least(low - first_key, keys), high = most(0, least(high - first_key, keys));
    for (int64_t j = 0; j < low; j++) scores[j] = -INFINITY;
    for (int64_t j = high; j < padded(keys, LANES); j++) scores[j] = -INFINITY;
}

// Scores to base 2 become exponentials; the row's output so far shrinks with the new maximum.
INLINE void softmax(float* scores, int64_t keys, bool first, float& top, float& total, float* out, int64_t size) {
    Floats tops = load(scores);
    for (int64_t j = LANES; j < keys; j += LANES) tops = larger(load(scores + j), tops);
    const float before = top, now = peak(tops);
    top = now > before ? now : before;
    const float base = top == -INFINITY ? 0 : top;  // a row that has seen nothing yet has nothing to take off
    Floats sums = {};
    for (int64_t j = 0; j < keys; j += LANES) {
        const Floats exponentials = exp2(load(scores + j) - base);
        store(scores + j, exponentials);
        sums += exponentials;
    }
    if (first) {
        total = sum(sums);
        return;
    }
    const float shrink = exp2(all(before - base))[0];
    total = total * shrink + sum(sums);
    if (shrink == 1) return;
    for (int64_t d = 0; d < size; d++) out[d] *= shrink;
}

template <typename T> void forward_task(const Attention& of, int64_t start, int64_t length, int64_t key_head,
                                        Scratch scratch) {
    const int64_t size = of.size, wide_size = padded(size), step = turned_step(length), share = of.heads / of.key_heads;
    const int64_t ahead = share > 1 ? 1 : of.threads;
    float *key = scratch.take(size * step), *value = scratch.take(length * wide_size);
    float *query = scratch.take(ROWS * STEP), *scores = scratch.take(ROWS * STEP), *out = scratch.take(ROWS * STEP);
    fetch_turned<T>(of.key, start, length, key_head, of.threads, size, key);
    fetch_rows<T>(of.value, start, length, key_head, of.threads, size, 1, value, wide_size);
    for (int64_t head = key_head * share; head < (key_head + 1) * share; head++)
        for (int64_t first = 0; first < length; first += ROWS) {
            const int64_t rows = least(ROWS, length - first);
            const Range range = seen(of, first, first + rows, length);
            float tops[ROWS], totals[ROWS];
            for (int64_t i = 0; i < rows; i++) tops[i] = -INFINITY, totals[i] = 0;
            fetch_rows<T>(of.query, start + first, rows, head, ahead, size, float(of.scale) * LOG2E, query, STEP);
            for (int64_t i = 0; i < rows; i++) expect<T>(of.out, start + first + i, head, size);
            for (int64_t at = range.low; at < range.high; at += KEYS) {
                const int64_t keys = least(KEYS, range.high - at);
                const bool fresh = at == range.low;
                multiply<false>(rows, keys, size, query, key + at, step, scores, STEP, false);
                for (int64_t i = 0; i < rows; i++) {
                    hide(of, first + i, at, keys, length, scores + i * STEP);
                    softmax(scores + i * STEP, keys, fresh, tops[i], totals[i], out + i * STEP, size);
                }
                multiply<false>(rows, size, keys, scores, value + at * wide_size, wide_size, out, STEP, !fresh);
            }
            for (int64_t i = 0; i < rows; i++) {
                put(out + i * STEP, size, 1 / totals[i], row<T>(of.out, start + first + i, head));
                of.lse[(start + first + i) * of.heads + head] = tops[i] + log2f(totals[i]);
            }
        }
}

// Probabilities from scores, and the gradient of the scores from that of the probabilities, in place.
INLINE void gradient(float* scores, float* grads, int64_t keys, float lse, float delta) {
    for (int64_t j = 0; j < keys; j += LANES) {
        const Floats probabilities = exp2(load(scores + j) - lse);
        store(scores + j, probabilities);
        store(grads + j, probabilities * (load(grads + j) - delta));
    }
}

// rowsum(dO * O), which is what the softmax takes off the gradient of each probability (Dao 2023, eq. 4).
template <typename T> INLINE float grad_times_out(const float* grad, const T* out, int64_t size) {
    float wide_out[STEP];
    fetch(out, size, 1, wide_out);
    Floats sums = {};
    for (int64_t d = 0; d < size; d += LANES) sums += load(grad + d) * load(wide_out + d);
    return sum(sums);
}

template <typename T> void backward_task(const Attention& of, int64_t start, int64_t length, int64_t key_head,
                                         Scratch scratch) {
    const int64_t size = of.size, wide_size = padded(size), step = turned_step(length), share = of.heads / of.key_heads;
    const int64_t ahead = share > 1 ? 1 : of.threads;
    float *key_turned = scratch.take(size * step), *value_turned = scratch.take(size * step);
    float* key = scratch.take(length * wide_size);
    float *grad_key = scratch.take(length * wide_size), *grad_value = scratch.take(length * wide_size);
    float *query = scratch.take(ROWS * STEP), *grad = scratch.take(ROWS * STEP);
    float* grad_query = scratch.take(ROWS * STEP);
    float *scores = scratch.take(ROWS * STEP), *grad_scores = scratch.take(ROWS * STEP);
    fetch_turned<T>(of.key, start, length, key_head, of.threads, size, key_turned);
    fetch_turned<T>(of.value, start, length, key_head, of.threads, size, value_turned);
    fetch_rows<T>(of.key, start, length, key_head, of.threads, size, 1, key, wide_size);
    for (int64_t i = 0; i < length; i++) {
        expect<T>(of.grad_key, start + i, key_head, size);
        expect<T>(of.grad_value, start + i, key_head, size);
    }
    memset(grad_key, 0, length * wide_size * sizeof(float));
    memset(grad_value, 0, length * wide_size * sizeof(float));
    for (int64_t head = key_head * share; head < (key_head + 1) * share; head++)
        for (int64_t first = 0; first < length; first += ROWS) {
            const int64_t rows = least(ROWS, length - first), token = start + first;
            const Range range = seen(of, first, first + rows, length);
            float deltas[ROWS];
            fetch_rows<T>(of.query, token, rows, head, ahead, size, float(of.scale) * LOG2E, query, STEP);
            fetch_rows<T>(of.grad, token, rows, head, ahead, size, 1, grad, STEP);
            for (int64_t i = 0; i < rows; i++) {
                deltas[i] = grad_times_out(grad + i * STEP, row<T>(of.out, token + i, head), size);
                expect<T>(of.out, token + i, head + ahead, size);
                expect<T>(of.grad_query, token + i, head, size);
            }
            for (int64_t at = range.low; at < range.high; at += KEYS) {
                const int64_t keys = least(KEYS, range.high - at);
                multiply<false>(rows, keys, size, query, key_turned + at, step, scores, STEP, false);
                multiply<false>(rows, keys, size, grad, value_turned + at, step, grad_scores, STEP, false);
                for (int64_t i = 0; i < rows; i++) {
                    hide(of, first + i, at, keys, length, scores + i * STEP);
                    gradient(scores + i * STEP, grad_scores + i * STEP, keys, of.lse[(token + i) * of.heads + head],
                             deltas[i]);
                }
                float *of_key = grad_key + at * wide_size, *of_value = grad_value + at * wide_size;
                multiply<true>(keys, size, rows, scores, grad, STEP, of_value, wide_size, true);
                multiply<true>(keys, size, rows, grad_scores, query, STEP, of_key, wide_size, true);
                multiply<false>(rows, size, keys, grad_scores, key + at * wide_size, wide_size, grad_query, STEP,
                                at != range.low);
            }
            put_rows<T>(grad_query, STEP, of.grad_query, token, rows, head, size, float(of.scale));
        }
    // The query that was multiplied has the scale and log2(e) in it.
    put_rows<T>(grad_key, wide_size, of.grad_key, start, length, key_head, size, LN2);
    put_rows<T>(grad_value, wide_size, of.grad_value, start, length, key_head, size, 1);
}

template <typename T, bool BACKWARD> void work(void* argument) {
    Attention& of = *static_cast<Attention*>(argument);
    const int64_t worker = __atomic_fetch_add(&of.next_worker, 1, __ATOMIC_RELAXED);
    float* scratch = of.scratch + worker * of.scratch_step;
    const uintptr_t past = reinterpret_cast<uintptr_t>(scratch) % (LINE * sizeof(float));
    if (past) scratch += (LINE * sizeof(float) - past) / sizeof(float);
    for (;;) {
        const int64_t task = __atomic_fetch_add(&of.next_task, 1, __ATOMIC_RELAXED);
        if (task >= of.sequences * of.key_heads) return;
        const int64_t sequence = of.order[task / of.key_heads], key_head = task % of.key_heads;
        const int64_t start = of.starts[sequence], length = of.starts[sequence + 1] - start;
        if (BACKWARD) backward_task<T>(of, start, length, key_head, Scratch{scratch});
        else forward_task<T>(of, start, length, key_head, Scratch{scratch});
    }
}

typedef void (*Work)(void*);
const Work WORK[3][2] = {
    {work<float, false>, work<float, true>},
    {work<BFloat16, false>, work<BFloat16, true>},
    {work<Float16, false>, work<Float16, true>},
};

}  // namespace

extern "C" {

// Floats of scratch that a thread needs.
int64_t attention_scratch(int64_t longest, int64_t size, int64_t backward) {
    return scratch_floats(longest, size, backward);
}

// `parallel` is GOMP_parallel of the OpenMP library that torch uses. dtype: 0 fp32, 1 bf16, 2 fp16.
void attention(Attention* of, int64_t dtype, int64_t backward, int64_t threads,
               void (*parallel)(Work, void*, unsigned, unsigned)) {
    const Work work = WORK[dtype][backward];
    if (threads > 1) parallel(work, of, unsigned(threads), 0);
    else work(of);
}

// For the tests.
void exp2_values(const float* from, float* to, int64_t count) {
    for (int64_t i = 0; i + LANES <= count; i += LANES) store(to + i, exp2(load(from + i)));
}
void round_trip(int64_t dtype, const float* from, float* to, int64_t count) {
    BFloat16 b[LINE];
    Float16 h[LINE];
    for (int64_t i = 0; i < count; i += LINE) {
        const int64_t some = least(LINE, count - i);
        float line[LINE] = {};
        memcpy(line, from + i, some * sizeof(float));
        put(line, LINE, 1, b), put(line, LINE, 1, h);
        if (dtype == 1) fetch(b, LINE, 1, line);
        else fetch(h, LINE, 1, line);
        memcpy(to + i, line, some * sizeof(float));
    }
}

}  // extern "C"
