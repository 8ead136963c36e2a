// Recurrent weights in fewer bytes. A frame of one stream reads all of them, and they come from the last cache more slowly than
// they are multiplied: what counts is how many bytes they take.
//
// Fixed: 24 bits of a number between -1 and 1 times a power of two of its column, about as close as floats are to the column's
// largest weight. Four vectors lie in three: three have their 24 bits in one each; the fourth is in the bytes left over there.
// Bytes: 8 bits times a number of its column. What they are multiplied by has 15 bits, in two bytes.
//
// Packed: a scale for each column, for bytes also what is added to each column, then panel after panel.

constexpr int COMPACT_PANEL = 4 * LANES; // columns
constexpr int COMPACT_ROWS = 3;          // of the past that share a panel, at most
constexpr float BYTES_SCALE = 127 * 128; // a value of 1 in 15 bits
#define HAS_FIXED (LANES == 16)

struct Compact {
    const float *scales, *offsets;
    const char *panels;
    int columns, depth;

    Compact(const void *packed, int columns, int depth, bool bytes)
        : scales((const float *)packed), offsets(scales + columns), panels((const char *)(scales + (bytes ? 2 : 1) * columns)),
          columns(columns), depth(depth) {}
};

// Floats that they take; 0: this level does not have them, or they do not come in whole panels.
static int64_t compact_floats(int columns, int depth, int bytes) {
    const bool known = bytes ? HAS_BYTES && depth % 4 == 0 : HAS_FIXED;
    if (!known || columns % COMPACT_PANEL != 0) return 0;
    return bytes ? 2 * columns + (int64_t)columns * depth / 4 : columns + (int64_t)columns * depth / 4 * 3;
}

static float largest_of(const float *values, int count) {
    float largest = 0;
    for (int i = 0; i < count; i++) largest = largest > __builtin_fabsf(values[i]) ? largest : __builtin_fabsf(values[i]);
    return largest;
}

// To 24 bits, less what stands below them.
static int32_t rounded_fixed(double value, uint32_t below) {
    const int32_t upper = (int32_t)__builtin_floor((value - below) / 256 + 0.5);
    return upper < 1 << 23 ? upper : (1 << 23) - 1;
}

static void pack_fixed(const float *weights, int columns, int depth, float *packed) {
    int32_t *to = (int32_t *)(packed + columns);
    for (int column = 0; column < columns; column++) {
        const float largest = largest_of(weights + (int64_t)column * depth, depth);
        int exponent;
        __builtin_frexp(largest, &exponent);
        packed[column] = largest > 0 ? (float)__builtin_ldexp(1, exponent - 31) : 0; // zeros, whatever the bytes say
    }
    for (int panel = 0; panel < columns; panel += COMPACT_PANEL)
        for (int word = 0; word < depth; word++, to += 3 * LANES)
            for (int lane = 0; lane < LANES; lane++) {
                const auto wanted = [&](int vector) {
                    const int column = panel + vector * LANES + lane;
                    return packed[column] > 0 ? (double)weights[(int64_t)column * depth + word] / packed[column] : 0;
                };
                const uint32_t fourth = (uint32_t)rounded_fixed(wanted(3), 0);
                for (int vector = 0; vector < 3; vector++) {
                    const uint32_t rest = fourth >> (16 - 8 * vector) & 0xff;
                    to[vector * LANES + lane] = (int32_t)((uint32_t)rounded_fixed(wanted(vector), rest) << 8 | rest);
                }
            }
}

// The four vectors of a panel's word.
static inline void read_fixed(const int32_t *word, Floats *values) {
    const Ints a = *(const Ints *)word, b = *(const Ints *)(word + LANES), c = *(const Ints *)(word + 2 * LANES);
    const Ints fourth = a << 24 | (b << 16 & 0xff0000) | (c << 8 & 0xff00);
    values[0] = __builtin_convertvector(a, Floats);
    values[1] = __builtin_convertvector(b, Floats);
    values[2] = __builtin_convertvector(c, Floats);
    values[3] = __builtin_convertvector(fourth, Floats);
}

// What they are as floats, [columns, depth]: many streams, which read those, have the very sums of few.
static void unpack_fixed(const float *packed, int columns, int depth, float *weights) {
    const int32_t *from = (const int32_t *)(packed + columns);
    for (int panel = 0; panel < columns; panel += COMPACT_PANEL)
        for (int word = 0; word < depth; word++, from += 3 * LANES) {
            Floats values[4];
            read_fixed(from, values);
            for (int i = 0; i < COMPACT_PANEL; i++) {
                const int column = panel + i;
                weights[(int64_t)column * depth + word] = values[i / LANES][i % LANES] * packed[column];
            }
        }
}

static void pack_bytes(const float *weights, int columns, int depth, float *packed) {
    int8_t *to = (int8_t *)(packed + 2 * columns);
    for (int column = 0; column < columns; column++) {
        const float *from = weights + (int64_t)column * depth, scale = largest_of(from, depth) / 127;
        const int panel = column / COMPACT_PANEL;
        int total = 0;
        for (int i = 0; i < depth; i++) {
            const int value = scale > 0 ? (int)__builtin_floorf(from[i] / scale + 0.5f) : 0;
            to[(int64_t)panel * COMPACT_PANEL * depth + (i / 4 * COMPACT_PANEL + column % COMPACT_PANEL) * 4 + i % 4] = (int8_t)value;
            total += value;
        }
        packed[column] = scale / BYTES_SCALE;
        packed[columns + column] = -128.f * 128.f * (float)total * packed[column]; // upper bytes are 128 too large
    }
}

static void pack_compact(const float *weights, int columns, int depth, int bytes, float *packed) {
    if (bytes) pack_bytes(weights, columns, depth, packed);
    else pack_fixed(weights, columns, depth, packed);
}

// Rows of the past, as they are multiplied: floats, or all upper and all lower bytes of each.
struct Past {
    const char *rows;
    int64_t row_bytes;
};

#if HAS_FIXED
template <int ROWS> static void add_fixed(const Past &past, const Compact &weights, int column, float *gates, int64_t pitch) {
    const float *rows[ROWS];
    for (int i = 0; i < ROWS; i++) rows[i] = (const float *)(past.rows + i * past.row_bytes);
    const int32_t *panel = (const int32_t *)weights.panels + (int64_t)column / 4 * 3 * weights.depth;
    const int step = words_at_once(weights.depth);
    for (int begin = 0; begin < weights.depth; begin += step) { // as `matrix` sums
        const int end = begin + step < weights.depth ? begin + step : weights.depth;
        Floats sums[ROWS][4] = {};
        for (int64_t word = begin; word < end; word++, panel += 3 * LANES) {
            Floats values[4];
            read_fixed(panel, values);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
#pragma GCC unroll 4
                for (int i = 0; i < ROWS; i++) sums[i][v] += values[v] * rows[i][word];
        }
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                float *to = gates + i * pitch + column + v * LANES;
                store(to, load(to) + sums[i][v] * load(weights.scales + column + v * LANES));
            }
    }
}
#else
template <int> static void add_fixed(const Past &, const Compact &, int, float *, int64_t) {}
#endif

#if HAS_BYTES
template <int ROWS> static void add_bytes(const Past &past, const Compact &weights, int column, float *gates, int64_t pitch) {
    Ints upper[ROWS][4] = {}, lower[ROWS][4] = {};
    const int words = weights.depth / 4;
    const char *panel = weights.panels + (int64_t)column * weights.depth;
    const int32_t *rows[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++) rows[i] = (const int32_t *)(past.rows + i * past.row_bytes);
    for (int64_t word = 0; word < words; word++, panel += 4 * COMPACT_PANEL) {
        __m512i values[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) values[v] = _mm512_loadu_si512(panel + v * 64);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) {
            const __m512i high = _mm512_set1_epi32(rows[i][word]), low = _mm512_set1_epi32(rows[i][words + word]);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                upper[i][v] = (Ints)_mm512_dpbusd_epi32((__m512i)upper[i][v], high, values[v]);
                lower[i][v] = (Ints)_mm512_dpbusd_epi32((__m512i)lower[i][v], low, values[v]);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            const int at = column + v * LANES;
            const Floats sum = __builtin_convertvector(upper[i][v], Floats) * 128.f + __builtin_convertvector(lower[i][v], Floats);
            float *to = gates + i * pitch + at;
            store(to, load(to) + sum * load(weights.scales + at) + load(weights.offsets + at));
        }
}
#else
template <int> static void add_bytes(const Past &, const Compact &, int, float *, int64_t) {}
#endif

typedef void (*AddPanel)(const Past &, const Compact &, int, float *, int64_t);

// What the past of `count` rows adds to their gates.
static void add_past(Past past, int64_t count, const Compact &weights, bool bytes, float *gates, int64_t pitch, bool backwards) {
    static constexpr AddPanel ADD[2][COMPACT_ROWS] = {{add_fixed<1>, add_fixed<2>, add_fixed<3>}, {add_bytes<1>, add_bytes<2>, add_bytes<3>}};
    const int num_panels = weights.columns / COMPACT_PANEL;
    for (int number = 0; number < num_panels; number++) {
        const int column = (backwards ? num_panels - 1 - number : number) * COMPACT_PANEL;
        for (int64_t first = 0; first < count; first += COMPACT_ROWS) {
            const int rows = count - first < COMPACT_ROWS ? (int)(count - first) : COMPACT_ROWS;
            const Past some = {past.rows + first * past.row_bytes, past.row_bytes};
            ADD[bytes][rows - 1](some, weights, column, gates + first * pitch, pitch);
        }
    }
}

// Values between -1 and 1 to 15 bits: 7 with their sign, and 128 more; then the 7 below.
static inline void store_bytes(uint8_t *upper, uint8_t *lower, Floats value) {
    typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1)));
    const Ints number = __builtin_convertvector(value * BYTES_SCALE + 12582912.f - 12582912.f, Ints);
    *(Bytes *)upper = __builtin_convertvector((number >> 7) + 128, Bytes);
    *(Bytes *)lower = __builtin_convertvector(number & 127, Bytes);
}
