// Products of 16-bit integers, where two of them are multiplied as fast as one float: "fast" on processors with products of integers,
// but with none of bfloats that is worth it.
//
// A row of values becomes integers of up to MOST_INTEGER times a scale of its own, just before it is multiplied; a column's weights are
// integers times a scale of theirs. Sums of a part, up to INTEGER_VALUES of one row, are exact in 32 bits, for which the column's scale
// was chosen; parts are added as floats. So a row's sums depend on no other row. Where windows are whole strides long, the rows of a
// stride count as one: fewer and longer parts.

constexpr int MOST_INTEGER = 8191;
constexpr int INTEGER_VALUES = 256;
constexpr int INTEGER_BYTES = 1 << 19; // of rows as integers, about, that panels share
constexpr int INTEGER_SEGMENTS = 4;
constexpr int INTEGER_PARTS = 128;
#define HAS_INTEGERS (HAS_BYTES && !HAS_BFLOAT)

// Some of the values of one row of a window.
struct IntegerPart {
    int segment, tap, first, words;
};

struct IntegerShape {
    int num_segments, stride, num_parts = 0;
    int width[INTEGER_SEGMENTS], taps[INTEGER_SEGMENTS];
    int64_t window_bytes = 0; // of a window's own rows
    IntegerPart parts[INTEGER_PARTS];

    explicit IntegerShape(int row_width) : num_segments(0), stride(1) { add(row_width, 1); }
    IntegerShape(const Call &call, const Operation &op) : num_segments(0) {
        bool whole = true;
        for (int s = 0; s < op.num_segments; s++)
            whole = whole && op.segments[s].length % (op.stride * call.buffers[op.segments[s].buffer].width) == 0;
        stride = whole ? 1 : op.stride;
        for (int s = 0; s < op.num_segments; s++) {
            const int row_width = call.buffers[op.segments[s].buffer].width * (whole ? op.stride : 1);
            add(row_width, op.segments[s].length / row_width);
        }
    }
    void add(int row_width, int num_taps) {
        const int s = num_segments++;
        width[s] = row_width;
        taps[s] = num_taps;
        window_bytes += (int64_t)(num_taps > stride ? num_taps : stride) * (row_width * 2 + 4);
        for (int tap = 0; tap < num_taps; tap++)
            for (int first = 0; first < row_width; first += INTEGER_VALUES) {
                const int values = row_width - first < INTEGER_VALUES ? row_width - first : INTEGER_VALUES;
                parts[num_parts++] = {s, tap, first, values / 2};
            }
    }
    int64_t windows_at_once() const {
        const int64_t windows = INTEGER_BYTES / window_bytes / 42 * 42;
        return windows < 42 ? 42 : windows > SHARED_ROWS ? SHARED_ROWS : windows;
    }
    int64_t bytes() const { return windows_at_once() * window_bytes + INTEGER_SEGMENTS * 64; }
};

#if HAS_BYTES
// Adds what some words of ROWS rows make with a panel: a word is two integers, or four bytes, those of a row without their sign.
template <int ROWS, int VECTORS, bool BYTES>
static inline __attribute__((always_inline)) void add_products(const uint32_t *const *from, int64_t words, const float *panel, Ints (&sums)[ROWS][VECTORS]) {
    const uint32_t *rows[ROWS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) rows[i] = from[i];
    for (int64_t word = 0; word < words; word++, panel += VECTORS * LANES) {
        __m512i weights[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) weights[v] = _mm512_loadu_si512(panel + v * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
            const __m512i own = _mm512_set1_epi32((int)rows[i][word]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                const __m512i sum = (__m512i)sums[i][v];
                sums[i][v] = (Ints)(BYTES ? _mm512_dpbusd_epi32(sum, own, weights[v]) : _mm512_dpwssd_epi32(sum, own, weights[v]));
            }
        }
    }
}
#endif

#if HAS_INTEGERS
// To integers, for values that fill whole vectors; the scale.
static float quantize(const float *from, int width, int16_t *to) {
    __m512 most = _mm512_set1_ps(1e-30f), other = most;
    for (int i = 0; i < width; i += LANES) { // by turns: neither waits for the one before
        const __m512 next = _mm512_max_ps(other, _mm512_abs_ps((__m512)load(from + i)));
        other = most;
        most = next;
    }
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(most, other));
    const Floats inverse = all(MOST_INTEGER / largest);
    for (int i = 0; i < width; i += LANES) {
        const __m512i rounded = _mm512_cvtps_epi32((__m512)(load(from + i) * inverse));
        _mm256_storeu_si256((__m256i *)(to + i), _mm512_cvtepi32_epi16(rounded));
    }
    return largest / MOST_INTEGER;
}

// The rows of some windows as integers.
struct IntegerRows {
    int16_t *values[INTEGER_SEGMENTS];
    float *scales[INTEGER_SEGMENTS];
    int32_t row[INTEGER_SEGMENTS][SHARED_ROWS]; // of a window's first tap

    IntegerRows(const Rows &rows, const IntegerShape &shape, int64_t begin, int64_t count, char *memory) {
        const int stride = shape.stride;
        for (int s = 0; s < shape.num_segments; s++) {
            const int64_t most = count * (shape.taps[s] > stride ? shape.taps[s] : stride);
            scales[s] = (float *)memory;
            values[s] = (int16_t *)(memory + (most * 4 + 63) / 64 * 64);
            memory = (char *)(values[s] + most * shape.width[s]);
            for (int64_t done = 0, at = 0; done < count;) {
                const int64_t stream = rows.stream_of(begin + done), step = begin + done - stream * rows.steps;
                const int64_t left = rows.steps - step, windows = left < count - done ? left : count - done;
                const float *from = (const float *)rows.row(s, stream, step);
                for (int64_t window = 0; window < windows; window++) row[s][done + window] = (int32_t)(at + window * stride);
                const int64_t needed = (windows - 1) * stride + shape.taps[s];
                for (int64_t i = 0; i < needed; i++, at++)
                    scales[s][at] = quantize(from + i * shape.width[s], shape.width[s], values[s] + at * shape.width[s]);
                done += windows;
            }
        }
    }
};

struct IntegerTile {
    const uint32_t *rows[MOST_ROWS];
    float scales[MOST_ROWS];
    const float *from;
    float *to;
    int64_t from_pitch, pitch;
};

template <int ROWS, int VECTORS>
static void multiply_integers(const IntegerTile &tile, int64_t words, const float *panel, const float *column_scales) {
    Ints sums[ROWS][VECTORS] = {};
    add_products<ROWS, VECTORS, false>(tile.rows, words, panel, sums);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            const Floats sum = __builtin_convertvector(sums[i][v], Floats) * (load(column_scales + v * LANES) * tile.scales[i]);
            store(tile.to + i * tile.pitch + v * LANES, load(tile.from + i * tile.from_pitch + v * LANES) + sum);
        }
}

typedef void (*MultiplyIntegers)(const IntegerTile &, int64_t, const float *, const float *);
template <int ROWS, int VECTORS> static constexpr MultiplyIntegers chosen_integers() {
    if constexpr (ROWS <= rows_at_once(VECTORS)) return multiply_integers<ROWS, VECTORS>;
    return nullptr;
}
#define BY_ROWS(V) {nullptr, chosen_integers<1, V>(), chosen_integers<2, V>(), chosen_integers<3, V>(), chosen_integers<4, V>(), \
    chosen_integers<5, V>(), chosen_integers<6, V>(), chosen_integers<7, V>(), chosen_integers<8, V>(), chosen_integers<9, V>(), \
    chosen_integers<10, V>(), chosen_integers<11, V>(), chosen_integers<12, V>(), chosen_integers<13, V>(), chosen_integers<14, V>()}
static constexpr MultiplyIntegers MULTIPLY_INTEGERS[PANEL + 1][MOST_ROWS + 1] = {{}, BY_ROWS(1), BY_ROWS(2), BY_ROWS(3), BY_ROWS(4)};
#undef BY_ROWS

struct IntegerWeights {
    Packed packed;
    const float *column_scales, *bias;
};

// As matrix, for windows of rows that fill whole vectors.
template <class Finish>
static void integer_matrix(const Program &program, const IntegerShape &shape, const Rows &rows, const IntegerWeights &own_weights, const Finish &finish) {
    const Packed &weights = own_weights.packed;
    const int64_t total = rows.steps * program.streams, most = shape.windows_at_once();
    const int words = weights.words / 2;
    for (int64_t begin = 0; begin < total; begin += most) {
        const int64_t count = total - begin < most ? total - begin : most;
        const IntegerRows own(rows, shape, begin, count, (char *)program.mixed);
        for (int column = 0; column < weights.columns; column += PANEL_FLOATS) {
            const int left = weights.columns - column, vectors = left >= PANEL_FLOATS ? PANEL : (left + LANES - 1) / LANES;
            const int at_once = rows_at_once(vectors);
            const float *panel = weights.panels + (int64_t)column * words;
            for (int number = 0; number < shape.num_parts; number++) {
                const IntegerPart &part = shape.parts[number];
                const int s = part.segment, width = shape.width[s];
                for (int64_t first = 0; first < count; first += at_once) {
                    const int size = count - first < at_once ? (int)(count - first) : at_once;
                    IntegerTile tile;
                    tile.to = program.scratch + first * vectors * LANES, tile.pitch = vectors * LANES;
                    tile.from = number ? tile.to : own_weights.bias + column, tile.from_pitch = number ? tile.pitch : 0;
                    for (int i = 0; i < size; i++) {
                        const int64_t row = own.row[s][first + i] + part.tap;
                        tile.rows[i] = (const uint32_t *)(own.values[s] + row * width + part.first);
                        tile.scales[i] = own.scales[s][row];
                    }
                    MULTIPLY_INTEGERS[vectors][size](tile, part.words, panel, own_weights.column_scales + column);
                    if (number == shape.num_parts - 1) finish(tile.to, begin + first, size, column, vectors);
                }
                panel += (int64_t)part.words * vectors * LANES;
            }
        }
    }
}
#endif
