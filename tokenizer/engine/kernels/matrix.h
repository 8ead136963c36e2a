// Products of many rows with packed weights, a few rows and columns at a time so that all sums stay in registers.
//
// Weights lie in panels of PANEL vectors of columns; within a panel, word after word of the rows. A word is a float, or two
// bfloats that lie side by side: one instruction multiplies both. Rows need not be apart: those of a convolution overlap.

constexpr int PANEL = LANES == 16 ? 4 : 2;
constexpr int PANEL_FLOATS = PANEL * LANES;
constexpr int MOST_ROWS = 14;
constexpr int MOST_SEGMENTS = 32;
constexpr int CACHED_WORDS = 256; // of each row at a time, where many rows share a panel: 64 KiB of weights stay in the cache
constexpr int SHARED_ROWS = 504;

constexpr int rows_at_once(int vectors) {
    int rows = (REGISTERS - 1 - vectors) / vectors;
    return rows > MOST_ROWS ? MOST_ROWS : rows;
}

// The words of each row that are summed before they are added to the others. It depends on nothing else, so that a row's sums are
// the same, to the last bit, with any number of other rows.
constexpr int words_at_once(int words) { return words <= CACHED_WORDS * 3 / 2 ? words : CACHED_WORDS; }

struct Packed {
    const float *panels;
    int columns, words;
};

// Where the rows of a product lie: `steps` of every stream, each made of segments.
struct Rows {
    int num_segments = 0;
    const char *base[MOST_SEGMENTS];
    int64_t stream_pitch[MOST_SEGMENTS], step_pitch[MOST_SEGMENTS]; // bytes
    int words[MOST_SEGMENTS];
    int64_t steps = 0;

    void add(const void *first, int64_t stream_bytes, int64_t step_bytes, int num_words) {
        base[num_segments] = (const char *)first;
        stream_pitch[num_segments] = stream_bytes;
        step_pitch[num_segments] = step_bytes;
        words[num_segments++] = num_words;
    }
    const uint32_t *row(int segment, int64_t stream, int64_t step) const {
        return (const uint32_t *)(base[segment] + stream * stream_pitch[segment] + step * step_pitch[segment]);
    }
    int64_t stream_of(int64_t row) const { return row < steps ? 0 : row / steps; } // mostly it is the first, and needs no division
    int total_words() const {
        int total = 0;
        for (int i = 0; i < num_segments; i++) total += words[i];
        return total;
    }
};

template <bool NARROW> static inline Floats fused(Floats total, uint32_t word, Floats weights) {
    if constexpr (NARROW) {
#if HAS_BFLOAT
        return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)weights, (__m512bh)_mm512_set1_epi32((int)word));
#endif
    }
    float value;
    memcpy(&value, &word, 4);
    return total + weights * value;
}

struct Tile { // where the sums of some rows begin, and where they go
    const float *from;
    float *to;
    int64_t from_pitch, pitch; // floats from one row to the next
};

// What some words of ROWS rows add to VECTORS vectors of columns.
template <int ROWS, int VECTORS, bool NARROW>
static void multiply(const uint32_t *const (*parts)[MOST_ROWS], const int *words, int num_parts, const float *panel, const Tile &tile) {
    Floats sums[ROWS][VECTORS] = {}; // added to what is there at the end: sums of sums round less than one long sum
    for (int part = 0; part < num_parts; part++) {
        const uint32_t *rows[ROWS];
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) rows[i] = parts[part][i];
        for (int64_t word = 0; word < words[part]; word++, panel += VECTORS * LANES) {
            Floats weights[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) weights[v] = load(panel + v * LANES);
#pragma GCC unroll 16
            for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++) sums[i][v] = fused<NARROW>(sums[i][v], rows[i][word], weights[v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) store(tile.to + i * tile.pitch + v * LANES, load(tile.from + i * tile.from_pitch + v * LANES) + sums[i][v]);
}

typedef void (*Multiply)(const uint32_t *const (*)[MOST_ROWS], const int *, int, const float *, const Tile &);

template <int ROWS, int VECTORS, bool NARROW> static constexpr Multiply chosen() {
    if constexpr (ROWS <= rows_at_once(VECTORS) && VECTORS <= PANEL) return multiply<ROWS, VECTORS, NARROW>;
    return nullptr;
}
#define BY_ROWS(V) {nullptr, chosen<1, V, NARROW>(), chosen<2, V, NARROW>(), chosen<3, V, NARROW>(), chosen<4, V, NARROW>(), \
    chosen<5, V, NARROW>(), chosen<6, V, NARROW>(), chosen<7, V, NARROW>(), chosen<8, V, NARROW>(), chosen<9, V, NARROW>(), \
    chosen<10, V, NARROW>(), chosen<11, V, NARROW>(), chosen<12, V, NARROW>(), chosen<13, V, NARROW>(), chosen<14, V, NARROW>()}
template <bool NARROW> constexpr Multiply MULTIPLY[5][MOST_ROWS + 1] = {{}, BY_ROWS(1), BY_ROWS(2), BY_ROWS(3), BY_ROWS(4)};
#undef BY_ROWS

// Words of the rows that are multiplied before the next panel's, cut where a segment ends.
struct Parts {
    int count = 0, segment[2 * MOST_SEGMENTS], first[2 * MOST_SEGMENTS], words[2 * MOST_SEGMENTS];

    void find(const Rows &rows, int begin, int end) {
        count = 0;
        for (int s = 0, at = 0; s < rows.num_segments; at += rows.words[s++]) {
            int from = begin > at ? begin : at, to = end < at + rows.words[s] ? end : at + rows.words[s];
            if (from >= to) continue;
            segment[count] = s;
            first[count] = from - at;
            words[count++] = to - from;
        }
    }
};

template <bool NARROW>
static void multiply_in_vectors(const Rows &rows, const Parts &parts, int64_t first, int count, int vectors, const float *panel, const Tile &tile) {
    const uint32_t *pointers[2 * MOST_SEGMENTS][MOST_ROWS];
    const int64_t first_stream = rows.stream_of(first);
    for (int part = 0; part < parts.count; part++) {
        const int segment = parts.segment[part];
        int64_t stream = first_stream, step = first - stream * rows.steps;
        const uint32_t *row = rows.row(segment, stream, step) + parts.first[part];
        for (int i = 0; i < count; i++) {
            pointers[part][i] = row;
            row = (const uint32_t *)((const char *)row + rows.step_pitch[segment]);
            if (++step == rows.steps) row = rows.row(segment, ++stream, step = 0) + parts.first[part];
        }
    }
    MULTIPLY<NARROW>[vectors][count](pointers, parts.words, parts.count, panel, tile);
}

#if HAS_TILES
#include "tiles.h"

static bool fit_tiles(const Parts &parts) {
    bool fit = true;
    for (int part = 0; part < parts.count; part++) fit = fit && parts.words[part] % TILE == 0;
    return fit;
}
#endif

template <bool NARROW>
static void multiply_tile(const Rows &rows, const Parts &parts, int64_t first, int count, int vectors, const float *panel, const Tile &tile) {
#if HAS_TILES
    if (NARROW && fit_tiles(parts)) { // whatever the rows, so that their sums do not depend on what they stand beside
        for (int done = 0; done < count;) {
            const int64_t stream = rows.stream_of(first + done), step = first + done - stream * rows.steps;
            const int64_t apart = rows.steps == 1 ? count - done : rows.steps - step; // rows that lie one pitch apart
            const int size = apart < count - done ? (int)apart : count - done;
            Tile sums = {tile.from + done * tile.from_pitch, tile.to + done * tile.pitch, tile.from_pitch, tile.pitch};
            const float *weights = panel;
            for (int part = 0; part < parts.count; part++) {
                const int segment = parts.segment[part];
                const int64_t pitch = rows.steps == 1 ? rows.stream_pitch[segment] : rows.step_pitch[segment];
                const char *from = (const char *)(rows.row(segment, stream, step) + parts.first[part]);
                multiply_in_tiles(from, pitch, size, parts.words[part], weights, vectors, sums);
                weights += (int64_t)parts.words[part] * vectors * LANES;
                sums.from = sums.to, sums.from_pitch = sums.pitch;
            }
            done += size;
        }
        return;
    }
#endif
    const int most = rows_at_once(vectors);
    for (int done = 0; done < count; done += most) {
        const Tile part = {tile.from + done * tile.from_pitch, tile.to + done * tile.pitch, tile.from_pitch, tile.pitch};
        multiply_in_vectors<NARROW>(rows, parts, first + done, count - done < most ? count - done : most, vectors, panel, part);
    }
}

// Sums that start from a bias and go through `finish(tile, row, rows, column, vectors)` once they are complete.
template <class Finish> struct Finished {
    const float *bias;
    float *scratch; // of SHARED_ROWS rows and one panel
    Finish finish;

    Tile tile(int64_t, int64_t row_in_block, int column, int vectors, bool first) const {
        float *to = scratch + row_in_block * vectors * LANES;
        return first ? Tile{bias + column, to, 0, vectors * LANES} : Tile{to, to, vectors * LANES, vectors * LANES};
    }
};

// Sums that are stored as they are, and start from a bias or, where there is none, from what is stored there.
// Rows of `values` end with a whole vector.
struct Stored {
    const float *bias;
    float *values;
    int64_t pitch;

    Tile tile(int64_t row, int64_t, int column, int, bool first) const {
        float *to = values + row * pitch + column;
        return first && bias ? Tile{bias + column, to, 0, pitch} : Tile{to, to, pitch, pitch};
    }
    static void finish(const float *, int64_t, int, int, int) {}
};

// rows [M, K] times weights [K, N].
template <bool NARROW, class Target>
static void matrix(const Rows &rows, int64_t count, const Packed &weights, const Target &target, bool backwards = false) {
    const int64_t weight_bytes = (int64_t)weights.words * weights.columns * 4;
    int64_t shared = weight_bytes > 1 << 19 ? SHARED_ROWS : (1 << 16) / (weights.words + 1) / 84 * 84;
    shared = shared < 84 ? 84 : shared > SHARED_ROWS ? SHARED_ROWS : shared;
    const int num_panels = (weights.columns + PANEL_FLOATS - 1) / PANEL_FLOATS;
    Parts parts;
    for (int64_t begin = 0; begin < count; begin += shared) {
        const int64_t end = begin + shared < count ? begin + shared : count;
        for (int panel_number = 0; panel_number < num_panels; panel_number++) {
            const int column = (backwards ? num_panels - 1 - panel_number : panel_number) * PANEL_FLOATS;
            const int left = weights.columns - column;
            const int vectors = left >= PANEL_FLOATS ? PANEL : (left + LANES - 1) / LANES;
#if HAS_TILES
            const int most = NARROW ? TILED_ROWS : rows_at_once(vectors);
#else
            const int most = rows_at_once(vectors);
#endif
            const int64_t num_tiles = (end - begin + most - 1) / most;
            const int least = (int)((end - begin) / num_tiles), larger_tiles = (int)((end - begin) % num_tiles);
            const int step = words_at_once(weights.words);
            const bool together = step == weights.words;
            const float *panel = weights.panels + (int64_t)column * weights.words;
            for (int word = 0; word < weights.words; word += step) {
                const int stop = word + step < weights.words ? word + step : weights.words;
                parts.find(rows, word, stop);
                int64_t first = begin;
                for (int64_t number = 0; number < num_tiles; number++) { // tiles of nearly one size
                    const int size = least + (number < larger_tiles);
                    const Tile tile = target.tile(first, together ? 0 : first - begin, column, vectors, word == 0);
                    multiply_tile<NARROW>(rows, parts, first, size, vectors, panel + (int64_t)word * vectors * LANES, tile);
                    if (stop == weights.words) target.finish(tile.to, first, size, column, vectors);
                    first += size;
                }
            }
        }
    }
}

// The few columns of a last layer: each value is a sum over a row's words, in plain order [N, K].
template <bool NARROW> static float row_times(const Rows &rows, int64_t stream, int64_t step, const uint32_t *weights) {
    Floats total = {}, other = {};
    for (int s = 0; s < rows.num_segments; weights += rows.words[s++]) {
        const float *row = (const float *)rows.row(s, stream, step), *values = (const float *)weights;
        for (int word = 0; word < rows.words[s]; word += LANES) {
            Floats a = load(row + word, rows.words[s] - word), b = load(values + word, rows.words[s] - word);
            if constexpr (NARROW) {
#if HAS_BFLOAT
                total = (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#endif
            } else {
                total += a * b;
            }
            Floats swap = total;
            total = other;
            other = swap;
        }
    }
    return sum(total + other);
}

static int64_t packed_floats(int columns, int words) {
    return (int64_t)((columns + LANES - 1) / LANES) * LANES * words;
}

// weights [N, K] to panels; what fills the last vector is zero. Two values of a row share a word where they are narrow.
static void pack(const float *weights, int columns, int depth, int narrow, float *packed) {
    const int words = narrow ? depth / 2 : depth;
    memset(packed, 0, packed_floats(columns, words) * 4);
    for (int column = 0; column < columns; column++) {
        const int panel = column / PANEL_FLOATS * PANEL_FLOATS, rest = (columns + LANES - 1) / LANES * LANES - panel;
        const int width = rest < PANEL_FLOATS ? rest : PANEL_FLOATS;
        for (int word = 0; word < words; word++) {
            float *at = packed + (int64_t)panel * words + (int64_t)word * width + column - panel;
            const float *value = weights + (int64_t)column * depth + (narrow ? 2 * word : word);
            if (!narrow) {
                *at = *value;
                continue;
            }
            float pair[LANES] = {value[0], value[1]};
            store((bfloat *)at, load(pair), 2);
        }
    }
}
