// Products of windows in pairs: two neighbours see mostly the same rows, so sums and differences of rows, each multiplied once,
// make both. Windows of two units need three products in place of four, those of three units four in place of six:
//
//     y0 = (x0 - x1) w0 + x1 (w0 + w1)                              y1 = x1 (w0 + w1) - (x1 - x2) w1
//     y0 = (x0 - x2) w0 + (x1 + x2) w+ + (x2 - x1) w-               y1 = (x1 + x2) w+ - (x2 - x1) w- - (x1 - x3) w2
//
// where w+ and w- are (w0 + w2 + w1) / 2 and (w0 + w2 - w1) / 2. A unit is what the next window has that this one has not: a row,
// or as many as the stride. Source: Winograd, Arithmetic Complexity of Computations, 1980: F(2, 2) and F(2, 3).

constexpr int MOST_PRODUCTS = 4;
constexpr int MOST_PAIRS = SHARED_ROWS / MOST_PRODUCTS; // at a time: their sums fit where those of SHARED_ROWS rows do
constexpr int MIXED_BYTES = 1 << 18;                    // of sums and differences, about, that panels share

static int64_t pairs_at_once(int units, int unit_words) {
    const int64_t pairs = MIXED_BYTES / ((units + 1) * unit_words * 4) / 42 * 42;
    return pairs < 42 ? 42 : pairs > MOST_PAIRS ? MOST_PAIRS : pairs;
}

static int64_t mixed_bytes(int units, int unit_words) { return pairs_at_once(units, unit_words) * (units + 1) * unit_words * 4; }

// The sums and differences of `count` pairs, product after product.
template <class Value> static void mix(const Rows &rows, int64_t first, int64_t count, int units, int width, Value *mixed) {
    const int64_t pairs_of_stream = rows.steps / 2, next = count * width;
    int64_t stream = first / pairs_of_stream, pair = first - stream * pairs_of_stream;
    for (int64_t i = 0; i < count; i++, mixed += width) {
        const Value *x = (const Value *)rows.row(0, stream, 2 * pair);
        for (int at = 0; at < width; at += LANES, x += LANES) {
            Value *to = mixed + at;
            const Floats x0 = load(x), x1 = load(x + width), x2 = load(x + 2 * width);
            if (units == 2) {
                store(to, x0 - x1);
                store(to + next, x1);
                store(to + 2 * next, x1 - x2);
            } else {
                store(to, x0 - x2);
                store(to + next, x1 + x2);
                store(to + 2 * next, x2 - x1);
                store(to + 3 * next, x1 - load(x + 3 * width));
            }
        }
        if (++pair == pairs_of_stream) pair = 0, stream++;
    }
}

// The two results of each pair, from its products.
static void unmix(const float *sums, int64_t next, int units, int64_t count, int vectors, const float *bias, float *results) {
    const int width = vectors * LANES;
    for (int64_t i = 0; i < count; i++, sums += width, results += 2 * width)
        for (int at = 0; at < width; at += LANES) {
            const float *from = sums + at;
            const Floats first = load(from), second = load(from + next), third = load(from + 2 * next), start = load(bias + at);
            store(results + at, units == 2 ? first + second + start : first + (second + third) + start);
            store(results + width + at, units == 2 ? second - third + start : (second - third) - load(from + 3 * next) + start);
        }
}

// As matrix, for windows of one segment, an even number of each stream.
template <bool NARROW, class Finish>
static void paired_matrix(const Rows &rows, int64_t streams, int units, const Packed &weights, const float *bias, void *mixed, float *sums, const Finish &finish) {
    static const float zeros[PANEL_FLOATS] = {};
    constexpr int TOGETHER = 8; // pairs whose results are finished while they are in the nearest cache
    const int unit_words = weights.words, products = units + 1;
    const int64_t count = streams * (rows.steps / 2), most = pairs_at_once(units, unit_words);
    const int64_t product_floats = packed_floats(weights.columns, unit_words);
    for (int64_t begin = 0; begin < count; begin += most) {
        const int64_t pairs = count - begin < most ? count - begin : most;
        if constexpr (NARROW) mix(rows, begin, pairs, units, 2 * unit_words, (bfloat *)mixed);
        else mix(rows, begin, pairs, units, unit_words, (float *)mixed);
        for (int column = 0; column < weights.columns; column += PANEL_FLOATS) {
            const int left = weights.columns - column, vectors = left >= PANEL_FLOATS ? PANEL : (left + LANES - 1) / LANES;
            const int64_t next = pairs * vectors * LANES;
            for (int product = 0; product < products; product++) {
                Rows part;
                part.steps = pairs;
                part.add((const float *)mixed + product * pairs * unit_words, 0, unit_words * 4, unit_words);
                const float *panel = weights.panels + product * product_floats + (int64_t)column * unit_words;
                matrix<NARROW>(part, pairs, {panel, vectors * LANES, unit_words}, Stored{zeros, sums + product * next, vectors * LANES});
            }
            float results[2 * TOGETHER * PANEL_FLOATS];
            for (int64_t pair = 0; pair < pairs; pair += TOGETHER) {
                const int size = (int)(pairs - pair < TOGETHER ? pairs - pair : TOGETHER);
                unmix(sums + pair * vectors * LANES, next, units, size, vectors, bias + column, results);
                finish(results, 2 * (begin + pair), 2 * size, column, vectors);
            }
        }
    }
}
