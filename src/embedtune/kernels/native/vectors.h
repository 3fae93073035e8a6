// Vectors of the widest kind that the CPU has, matrix products in registers, and half precision.
//
// Everything is computed in fp32. Nothing here knows what is multiplied.
#pragma once

#include <stdint.h>
#include <string.h>

#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Ints __attribute__((vector_size(LANES * 4)));
typedef float Four __attribute__((vector_size(16)));

// Floats that one vector fills, on any CPU: rows are padded to it.
constexpr int64_t LINE = 16;

INLINE int64_t padded(int64_t count, int64_t to = LINE) { return (count + to - 1) / to * to; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename To, typename From> INLINE To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "of the same size");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

INLINE Floats load(const float* from) {
    Floats x;
    memcpy(&x, from, sizeof(x));
    return x;
}
INLINE void store(float* to, Floats x) { memcpy(to, &x, sizeof(x)); }
INLINE Floats all(float x) { return Floats{} + x; }
INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

INLINE float sum(Floats x) {
    Four parts[LANES / 4], total;
    memcpy(parts, &x, sizeof(x));
    total = parts[0];
    for (int i = 1; i < LANES / 4; i++) total += parts[i];
    return (total[0] + total[1]) + (total[2] + total[3]);
}
INLINE float peak(Floats x) {
    Four parts[LANES / 4], top;
    memcpy(parts, &x, sizeof(x));
    top = parts[0];
    for (int i = 1; i < LANES / 4; i++) top = parts[i] > top ? parts[i] : top;
    const float a = top[0] > top[1] ? top[0] : top[1], b = top[2] > top[3] ? top[2] : top[3];
    return a > b ? a : b;
}

// 2^x, to less than 2 units in the last place; below 2^-126 it is 0, a NaN stays one. The polynomial is that of
// Cephes' exp2f (Moshier), on [-0.5, 0.5].
INLINE Floats exp2(Floats x) {
    const Floats from = x > 128.0f ? all(128.0f) : x;
    const Floats shifted = from + 12582912.0f;  // 1.5 * 2^23: the whole part, rounded, in the last bits
    const Floats rest = from - (shifted - 12582912.0f);
    Floats y = rest * 1.535336188319500e-4f + 1.339887440266574e-3f;
    y = y * rest + 9.618437357674640e-3f;
    y = y * rest + 5.550332471162809e-2f;
    y = y * rest + 2.402264791363012e-1f;
    y = y * rest + 6.931472028550421e-1f;
    y = y * rest + 1.0f;
    const Ints power = (bits<Ints>(shifted) << 23) + (127 << 23);  // the shift throws the rest of 1.5 * 2^23 away
    return from < -126.0f ? all(0.0f) : y * bits<Floats>(power);
}

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

typedef uint16_t Shorts __attribute__((vector_size(LANES * 2)));

INLINE Floats wide(Shorts x, BFloat16) { return bits<Floats>(__builtin_convertvector(x, Ints) << 16); }
INLINE Floats wide(Shorts x, Float16) {
    const Ints from = __builtin_convertvector(x, Ints), size = (from & 0x7fff) << 13;
    const Ints scaled = bits<Ints>(bits<Floats>(size) * 0x1p112f);  // the bias of the exponent, subnormal numbers too
    const Ints special = size >= (0x7c00u << 13) ? Ints{} + 0x7f800000u : Ints{};
    return bits<Floats>(scaled | special | (from & 0x8000) << 16);
}

// Rounded to the nearest, ties to even.
INLINE Shorts narrow(Floats x, BFloat16) {
    const Ints from = bits<Ints>(x), rounded = (from + 0x7fff + ((from >> 16) & 1)) >> 16;
    return __builtin_convertvector((from & 0x7fffffff) > 0x7f800000u ? (from >> 16) | 0x40 : rounded, Shorts);
}
INLINE Shorts narrow(Floats x, Float16) {
    const Ints sign = bits<Ints>(x) & 0x80000000u, size = bits<Ints>(x) ^ sign;
    const Ints normal = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
    const Ints subnormal = bits<Ints>(bits<Floats>(size) + 0.5f) - 0x3f000000u;  // 0.5's last bit is fp16's
    const Ints special = size > 0x7f800000u ? Ints{} + 0x7e00u : Ints{} + 0x7c00u;
    const Ints finite = size < (113u << 23) ? subnormal : normal;
    return __builtin_convertvector((size >= (143u << 23) ? special : finite) | sign >> 16, Shorts);
}

template <typename T> INLINE Floats load(const T* from) {
    Shorts x;
    memcpy(&x, from, sizeof(x));
    return wide(x, T{});
}
template <typename T> INLINE void store(T* to, Floats x) {
    const Shorts rounded = narrow(x, T{});
    memcpy(to, &rounded, sizeof(rounded));
}

// A row of `count` values times a factor, in fp32, with zeros up to a whole line.
template <typename T> INLINE void fetch(const T* from, int64_t count, float factor, float* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(from + i) * factor);
    if (i < count) {
        T rest[LANES] = {};
        memcpy(rest, from + i, (count - i) * sizeof(T));
        store(to + i, load(rest) * factor);
        i += LANES;
    }
    for (; i < padded(count); i += LANES) store(to + i, Floats{});
}
template <typename T> INLINE void put(const float* from, int64_t count, float factor, T* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(from + i) * factor);
    if (i < count) {
        T rest[LANES];
        store(rest, load(from + i) * factor);
        memcpy(to + i, rest, (count - i) * sizeof(T));
    }
}

// Floats from one row of a left-hand matrix to the next. Fixed, so that a product needs one pointer for all its rows;
// an odd number of cache lines, so that rows do not push one another out of the cache.
constexpr int64_t STEP = 256 + LINE;

// A tile of C (+)= A B, held in registers. A is (ROWS, depth), or `TURNED` (depth, ROWS).
template <int ROWS, int COLUMNS, bool TURNED>
INLINE void tile(int64_t depth, const float* a, const float* b, int64_t b_step, float* c, int64_t c_step, bool add) {
    Floats sums[ROWS][COLUMNS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) sums[r][v] = add ? load(c + r * c_step + v * LANES) : Floats{};
    for (int64_t k = 0; k < depth; k++) {
        Floats right[COLUMNS];
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) right[v] = load(b + k * b_step + v * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const float left = TURNED ? a[k * STEP + r] : a[r * STEP + k];
#pragma GCC unroll 4
            for (int v = 0; v < COLUMNS; v++) sums[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) store(c + r * c_step + v * LANES, sums[r][v]);
}

// The last rows of a panel, fewer than a whole tile has.
template <int ROWS, int COLUMNS, bool TURNED> struct Rest {
    static void run(int64_t rows, int64_t depth, const float* a, const float* b, int64_t b_step, float* c,
                    int64_t c_step, bool add) {
        if (rows == ROWS) tile<ROWS, COLUMNS, TURNED>(depth, a, b, b_step, c, c_step, add);
        else Rest<ROWS - 1, COLUMNS, TURNED>::run(rows, depth, a, b, b_step, c, c_step, add);
    }
};
template <int COLUMNS, bool TURNED> struct Rest<0, COLUMNS, TURNED> {
    static void run(int64_t, int64_t, const float*, const float*, int64_t, float*, int64_t, bool) {}
};

// Columns of C that are so many vectors wide.
template <int COLUMNS, bool TURNED>
void panel(int64_t rows, int64_t depth, const float* a, const float* b, int64_t b_step, float* c,
                  int64_t c_step, bool add) {
    constexpr int fit = (REGISTERS - REGISTERS / 8 - COLUMNS) / COLUMNS, ROWS = fit > 12 ? 12 : fit;
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS)
        tile<ROWS, COLUMNS, TURNED>(depth, a + row * (TURNED ? 1 : STEP), b, b_step, c + row * c_step, c_step, add);
    Rest<ROWS - 1, COLUMNS, TURNED>::run(rows - row, depth, a + row * (TURNED ? 1 : STEP), b, b_step,
                                         c + row * c_step, c_step, add);
}

// C (+)= A B for `rows` rows and `columns` columns, which are padded to whole vectors.
template <bool TURNED>
void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, const float* b, int64_t b_step,
                     float* c, int64_t c_step, bool add) {
    int64_t left = padded(columns, LANES) / LANES;
    while (left > 0) {
        constexpr int64_t widest = REGISTERS == 32 ? 4 : 2;
        const int64_t width = left == widest + 1 && widest > 2 ? 3 : least(left, widest);
        if (width == 4) panel<widest, TURNED>(rows, depth, a, b, b_step, c, c_step, add);
        else if (width == 3) panel<widest - 1, TURNED>(rows, depth, a, b, b_step, c, c_step, add);
        else if (width == 2) panel<2, TURNED>(rows, depth, a, b, b_step, c, c_step, add);
        else panel<1, TURNED>(rows, depth, a, b, b_step, c, c_step, add);
        b += width * LANES, c += width * LANES, left -= width;
    }
}

}  // namespace
