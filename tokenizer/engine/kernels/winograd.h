// Windows multiplied together: neighbours see mostly the same rows, so mixtures of rows, each multiplied once, make all of them.
//
// A unit is what the next window has that this one has not: a row, or as many as the stride. WINDOWS windows of UNITS units see
// PRODUCTS = WINDOWS + UNITS - 1 units x. Each product is one of MIX x times weights that Python mixed alike; UNMIX of the products
// are the windows' results. Four windows of two units need 5 products in place of 8, four of three units 6 in place of 12; rounding
// of what is mixed counts for about 2.4 times as much. Two windows need 3 of 4, and 4 of 6, and lose next to nothing.
// Source: Winograd, Arithmetic Complexity of Computations, 1980; the points are 0, 1, -1, 1/2, -2 and infinity, as many as are needed.

constexpr int MOST_PRODUCTS = 6;
constexpr int MOST_SETS = SHARED_ROWS / MOST_PRODUCTS; // windows that are made together, at a time: the sums of their products fit
constexpr int MIXED_BYTES = 1 << 18;                   // of mixtures, about, that panels share
constexpr int SETS_IN_TURN = 4;                        // whose results are finished while they are in the nearest cache

template <int WINDOWS, int UNITS> struct Mixing;
template <> struct Mixing<2, 2> {
    static constexpr float MIX[3][3] = {{1, -1, 0}, {0, 1, 0}, {0, 1, -1}};
    static constexpr float UNMIX[2][3] = {{1, 1, 0}, {0, 1, -1}};
};
template <> struct Mixing<2, 3> {
    static constexpr float MIX[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
    static constexpr float UNMIX[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
};
template <> struct Mixing<4, 2> {
    static constexpr float MIX[5][5] = {{1, -2, -1, 2, 0}, {0, -1, 1, 2, 0}, {0, -1, 3, -2, 0}, {0, 1, 0, -1, 0}, {0, 1, -2, -1, 2}};
    static constexpr float UNMIX[4][5] = {{1, 1, 1, 1, 0}, {0, 1, -1, .5f, 0}, {0, 1, 1, .25f, 0}, {0, 1, -1, .125f, 1}};
};
template <> struct Mixing<4, 3> {
    static constexpr float MIX[6][6] = {{2, -3, -4, 3, 2, 0}, {0, -2, 1, 5, 2, 0}, {0, -2, 5, -1, -2, 0},
                                        {0, 2, 1, -2, -1, 0}, {0, 1, -2, -1, 2, 0}, {0, 2, -3, -4, 3, 2}};
    static constexpr float UNMIX[4][6] = {{1, 1, 1, 1, 1, 0}, {0, 1, -1, .5f, -2, 0}, {0, 1, 1, .25f, 4, 0}, {0, 1, -1, .125f, -8, 1}};
};

template <int COUNT> static inline __attribute__((always_inline)) Floats mixture(const float (&shares)[COUNT], const Floats *of) {
    Floats total = {};
    bool first = true;
#pragma GCC unroll 6
    for (int i = 0; i < COUNT; i++) {
        if (shares[i] == 0) continue;
        total = first ? of[i] * shares[i] : total + of[i] * shares[i];
        first = false;
    }
    return total;
}

// The mixtures of `count` sets of windows from one on, product after product, each of `width` values.
template <int WINDOWS, int UNITS, class Value>
static void mix_units(const Rows &rows, int64_t first, int64_t count, int width, void *mixed) {
    constexpr int PRODUCTS = WINDOWS + UNITS - 1;
    const int64_t sets_of_stream = rows.steps / WINDOWS, next = count * width;
    int64_t stream = first / sets_of_stream, set = first - stream * sets_of_stream;
    for (Value *to = (Value *)mixed; count; count--, to += width) {
        const Value *unit = (const Value *)rows.row(0, stream, WINDOWS * set);
        for (int at = 0; at < width; at += LANES) {
            Floats units[PRODUCTS];
#pragma GCC unroll 6
            for (int i = 0; i < PRODUCTS; i++) units[i] = load(unit + i * width + at);
#pragma GCC unroll 6
            for (int i = 0; i < PRODUCTS; i++) store(to + i * next + at, mixture(Mixing<WINDOWS, UNITS>::MIX[i], units));
        }
        if (++set == sets_of_stream) set = 0, stream++;
    }
}

// The results of each window from its set's sums of products, which lie `next` apart.
template <int WINDOWS, int UNITS>
static void unmix_sums(const float *sums, int64_t next, int64_t count, int vectors, const float *bias, float *results) {
    constexpr int PRODUCTS = WINDOWS + UNITS - 1;
    const int width = vectors * LANES;
    for (; count; count--, sums += width, results += WINDOWS * width)
        for (int at = 0; at < width; at += LANES) {
            Floats products[PRODUCTS];
#pragma GCC unroll 6
            for (int i = 0; i < PRODUCTS; i++) products[i] = load(sums + i * next + at);
#pragma GCC unroll 4
            for (int i = 0; i < WINDOWS; i++)
                store(results + i * width + at, mixture(Mixing<WINDOWS, UNITS>::UNMIX[i], products) + load(bias + at));
        }
}

struct Winograd {
    int windows, products;
    void (*mix)(const Rows &, int64_t, int64_t, int, void *);
    void (*unmix)(const float *, int64_t, int64_t, int, const float *, float *);

    template <int WINDOWS, int UNITS, class Value> static Winograd of() {
        return {WINDOWS, WINDOWS + UNITS - 1, mix_units<WINDOWS, UNITS, Value>, unmix_sums<WINDOWS, UNITS>};
    }
    template <class Value> static Winograd of(const Operation &op) {
        if (op.windows == 2) return op.units == 2 ? of<2, 2, Value>() : of<2, 3, Value>();
        return op.units == 2 ? of<4, 2, Value>() : of<4, 3, Value>();
    }
};

// What an operation needs for its mixtures, how many sets are mixed at a time, and where everything lies.
struct MixedMemory {
    int products, width; // values of a unit
    int64_t sets, value_bytes;

    MixedMemory(const Call &call, const Operation &op) : products(op.windows + op.units - 1), width(op.segments[0].length / op.units) {
        value_bytes = op.unit_scales || call.buffers[op.segments[0].buffer].narrow ? 2 : 4;
        const int64_t most = MIXED_BYTES / (products * width * value_bytes) / 42 * 42;
        sets = most < 42 ? 42 : most > MOST_SETS ? MOST_SETS : most;
    }
    int64_t mixed_bytes() const { return sets * products * width * value_bytes; }
    int64_t scale_bytes() const { return sets * products * (int64_t)sizeof(float); }
    int64_t bytes() const { return mixed_bytes() + scale_bytes() + products * width * (int64_t)sizeof(float); }
};

// Sums of one product's mixtures with a panel, all sets, [sets, vectors].
template <bool NARROW>
static void multiply_mixed(const void *mixed, int64_t sets, const Packed &panel, int64_t first_row, float *sums) {
    static const float zeros[PANEL_FLOATS] = {};
    Rows rows;
    rows.steps = sets;
    rows.add((const float *)mixed + first_row * panel.words, 0, panel.words * 4, panel.words);
    matrix<NARROW>(rows, sets, panel, Stored{zeros, sums, panel.columns});
}

#if HAS_INTEGERS
// As floats first: a mixture has a scale of its own.
static void mix_to_integers(const Winograd &winograd, const Rows &rows, int64_t first, int64_t sets, int width, char *mixed, float *scales, float *floats) {
    for (int64_t set = 0; set < sets; set++) {
        winograd.mix(rows, first + set, 1, width, floats);
        for (int product = 0; product < winograd.products; product++) {
            const int64_t row = product * sets + set;
            scales[row] = quantize(floats + product * width, width, (int16_t *)mixed + row * width);
        }
    }
}

static void multiply_mixed_integers(const void *mixed, const float *scales, int64_t sets, const Packed &panel, const float *column_scales, int64_t first_row, float *sums) {
    static const float zeros[PANEL_FLOATS] = {};
    const int width = 2 * panel.words, vectors = panel.columns / LANES, at_once = rows_at_once(vectors);
    const float *weights = panel.panels;
    for (int begin = 0; begin < width; begin += INTEGER_VALUES) {
        const int words = (width - begin < INTEGER_VALUES ? width - begin : INTEGER_VALUES) / 2;
        for (int64_t first = 0; first < sets; first += at_once) {
            const int size = sets - first < at_once ? (int)(sets - first) : at_once;
            IntegerTile tile;
            tile.to = sums + first * panel.columns, tile.pitch = panel.columns;
            tile.from = begin ? tile.to : zeros, tile.from_pitch = begin ? tile.pitch : 0;
            for (int i = 0; i < size; i++) {
                const int64_t row = first_row + first + i;
                tile.rows[i] = (const uint32_t *)((const int16_t *)mixed + row * width + begin);
                tile.scales[i] = scales[row];
            }
            MULTIPLY_INTEGERS[vectors][size](tile, words, weights, column_scales);
        }
        weights += (int64_t)words * panel.columns;
    }
}
#endif

// As matrix, for windows of one segment, whole sets of each stream.
template <bool NARROW, class Finish>
static void winograd_matrix(const Program &program, const Operation &op, const Rows &rows, const Finish &finish) {
    const MixedMemory memory(*program.call, op);
    const Winograd winograd = NARROW ? Winograd::of<bfloat>(op) : Winograd::of<float>(op);
    const int unit_words = (int)(memory.width * memory.value_bytes / 4), padded = (op.columns + PANEL_FLOATS - 1) / PANEL_FLOATS * PANEL_FLOATS;
    const int64_t count = program.streams * (rows.steps / winograd.windows), product_floats = packed_floats(op.columns, unit_words);
    char *mixed = (char *)program.mixed;
    float *sums = program.scratch;
    for (int64_t begin = 0; begin < count; begin += memory.sets) {
        const int64_t sets = count - begin < memory.sets ? count - begin : memory.sets;
#if HAS_INTEGERS
        float *scales = (float *)(mixed + memory.mixed_bytes());
        if (op.unit_scales) mix_to_integers(winograd, rows, begin, sets, memory.width, mixed, scales, scales + memory.sets * memory.products);
        else
#endif
            winograd.mix(rows, begin, sets, memory.width, mixed);
        for (int column = 0; column < op.columns; column += PANEL_FLOATS) {
            const int left = op.columns - column, vectors = left >= PANEL_FLOATS ? PANEL : (left + LANES - 1) / LANES;
            const int64_t next = sets * vectors * LANES;
            for (int product = 0; product < winograd.products; product++) {
                const float *weights = (const float *)op.unit_weights + product * product_floats + (int64_t)column * unit_words;
                const Packed panel = {weights, vectors * LANES, unit_words};
#if HAS_INTEGERS
                if (op.unit_scales) {
                    multiply_mixed_integers(mixed, scales, sets, panel, op.unit_scales + product * padded + column, product * sets, sums + product * next);
                    continue;
                }
#endif
                multiply_mixed<NARROW>(mixed, sets, panel, product * sets, sums + product * next);
            }
            float results[4 * SETS_IN_TURN * PANEL_FLOATS];
            for (int64_t set = 0; set < sets; set += SETS_IN_TURN) {
                const int size = (int)(sets - set < SETS_IN_TURN ? sets - set : SETS_IN_TURN);
                winograd.unmix(sums + set * vectors * LANES, next, size, vectors, op.bias + column, results);
                finish(results, winograd.windows * (begin + set), winograd.windows * size, column, vectors);
            }
        }
    }
}
