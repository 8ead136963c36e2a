// Search of the nearest entries, level by level: one product gives the distances of many frames to all entries.
//
// In bytes or bfloats that product says only which entries come into question: by Cauchy and Schwarz, rounding x to x' and c to c'
// changes x.c by no more than |x - x'| |c| + |x'| |c - c'|. Entries that may be as near as the nearest are compared again in
// floats, so that the codes are those of floats.

constexpr int FRAMES_AT_ONCE = 84;

#if HAS_BYTES
// Frames times a panel of entries.
struct ByteTile {
    const uint32_t *rows[MOST_ROWS]; // four bytes of a frame in each word, 128 too large
    float scales[MOST_ROWS], doubts[MOST_ROWS];
    float *distances, *least;
    int64_t pitch;
};

struct ByteEntries {
    const float *panel;
    const int32_t *starts;
    const float *scales, *norms, *lengths;
};

template <int ROWS> static void multiply_bytes(const ByteTile &tile, int64_t words, const ByteEntries &entries) {
    Ints sums[ROWS][PANEL];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL; v++) sums[i][v] = *(const Ints *)(entries.starts + v * LANES);
    add_products<ROWS, PANEL, true>(tile.rows, words, entries.panel, sums);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
        Floats least = load(tile.least + i * LANES);
#pragma GCC unroll 4
        for (int v = 0; v < PANEL; v++) {
            const int at = v * LANES;
            const Floats product = __builtin_convertvector(sums[i][v], Floats) * (load(entries.scales + at) * tile.scales[i]);
            const Floats distance = load(entries.norms + at) + product;
            store(tile.distances + i * tile.pitch + at, distance);
            least = smaller(least, distance + load(entries.lengths + at) * tile.doubts[i]);
        }
        store(tile.least + i * LANES, least);
    }
}

typedef void (*MultiplyBytes)(const ByteTile &, int64_t, const ByteEntries &);
static constexpr int BYTE_ROWS = rows_at_once(PANEL);
static constexpr MultiplyBytes MULTIPLY_BYTES[BYTE_ROWS + 1] = {nullptr, multiply_bytes<1>, multiply_bytes<2>,
    multiply_bytes<3>, multiply_bytes<4>, multiply_bytes<5>, multiply_bytes<6>};
static_assert(BYTE_ROWS == 6, "one function for each number of rows");

// To bytes, 128 too large, for values that fill whole vectors; the scale.
static float quantize_to_bytes(const float *from, int width, uint8_t *to) {
    Floats most = all(1e-30f);
    for (int i = 0; i < width; i += LANES) most = larger(most, (Floats)_mm512_abs_ps((__m512)load(from + i)));
    const float largest = _mm512_reduce_max_ps((__m512)most);
    const Floats inverse = all(127.f / largest);
    for (int i = 0; i < width; i += LANES) {
        const __m512i rounded = _mm512_cvtps_epi32((__m512)(load(from + i) * inverse));
        _mm_storeu_si128((__m128i *)(to + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, _mm512_set1_epi32(128))));
    }
    return largest / 127.f;
}
#endif

struct Searcher {
    const Search &search;
    float *residual, *relative, *distances;
    char *rounded; // `relative` as it is multiplied, where that is not in floats
    float *scales; // of a frame's bytes
    float *doubts; // of a frame: times an entry's length, what rounding changes their distance by at most
    float *least;  // of a frame's distances and doubts, lane by lane
    int *entries;  // that come into question, frame after frame
    int *begins;   // where those of a frame begin

    void run(int64_t first, int64_t frames) {
        memcpy(residual, search.latents + first * search.width, frames * search.width * 4);
        for (int level = 0; level < search.levels; level++) {
            subtract_centre(level, frames);
            measure_distances(level, frames);
            find_entries(level, frames);
            for (int64_t frame = 0; frame < frames; frame++) {
                const int code = nearest(level, frame);
                search.codes[(first + frame) * search.levels + level] = code;
                const float *vector = entry_of(level, code);
                float *left = residual + frame * search.width;
                for (int i = 0; i < search.width; i++) left[i] -= vector[i];
            }
        }
    }

    void subtract_centre(int level, int64_t frames) {
        const float *centre = search.centres + (int64_t)level * search.width;
        for (int64_t frame = 0; frame < frames; frame++) {
            float *to = relative + frame * search.width;
            for (int i = 0; i < search.width; i++) to[i] = residual[frame * search.width + i] - centre[i];
            if (search.narrow) round_to_bfloats(to, (bfloat *)rounded + frame * search.width);
#if HAS_BYTES
            if (search.entry_scales) scales[frame] = quantize_to_bytes(to, search.width, (uint8_t *)rounded + frame * search.width);
#endif
            doubts[frame] = is_rounded() ? doubt(level, frame) : 0.f;
        }
    }

    void round_to_bfloats(const float *from, bfloat *to) const {
        for (int i = 0; i < search.width; i += LANES) store(to + i, load(from + i, search.width - i), search.width - i);
    }

    bool is_rounded() const { return search.narrow || search.entry_scales; }

    // Some of a frame's values as they were rounded.
    Floats rounded_values(int64_t frame, int first, int count) const {
        const int64_t at = frame * search.width + first;
#if HAS_BYTES
        if (search.entry_scales) {
            const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)((const uint8_t *)rounded + at)));
            return (Floats)_mm512_cvtepi32_ps(_mm512_sub_epi32(bytes, _mm512_set1_epi32(128))) * scales[frame];
        }
#endif
        return load((const bfloat *)rounded + at, count);
    }

    // The last term is for the rounding of the sums themselves.
    float doubt(int level, int64_t frame) const {
        Floats length = {}, rounding = {};
        for (int i = 0; i < search.width; i += LANES) {
            const int count = search.width - i;
            const Floats whole = load(relative + frame * search.width + i, count), part = rounded_values(frame, i, count);
            length += part * part;
            rounding += (whole - part) * (whole - part);
        }
        const float norm = __builtin_sqrtf(sum(length)), lost = __builtin_sqrtf(sum(rounding));
        return lost + norm * (search.roundings[level] + 2e-5f);
    }

#if HAS_BYTES
    void measure_in_bytes(int level, int64_t frames) {
        const int words = search.width / 4;
        for (int64_t i = 0; i < frames * LANES; i += LANES) store(least + i, all(3e38f));
        for (int column = 0; column < search.pitch; column += PANEL_FLOATS) {
            const int64_t at = level * search.pitch + column;
            const ByteEntries entries = {(const float *)search.packed[level] + (int64_t)column * words, search.starts + at,
                                         search.entry_scales + at, search.norms + at, search.lengths + at};
            for (int64_t first = 0; first < frames; first += BYTE_ROWS) {
                const int size = frames - first < BYTE_ROWS ? (int)(frames - first) : BYTE_ROWS;
                ByteTile tile;
                tile.distances = distances + first * search.pitch + column, tile.pitch = search.pitch;
                tile.least = least + first * LANES;
                for (int i = 0; i < size; i++) {
                    tile.rows[i] = (const uint32_t *)((const uint8_t *)rounded + (first + i) * search.width);
                    tile.scales[i] = scales[first + i], tile.doubts[i] = doubts[first + i];
                }
                MULTIPLY_BYTES[size](tile, words, entries);
            }
        }
    }
#endif

    void measure_distances(int level, int64_t frames) {
#if HAS_BYTES
        if (search.entry_scales) return measure_in_bytes(level, frames);
#endif
        const int bytes = search.narrow ? 2 : 4, words = search.width * bytes / 4;
        Rows rows;
        rows.steps = frames;
        rows.add(search.narrow ? (const void *)rounded : relative, 0, search.width * bytes, words);
        const Packed packed = {(const float *)search.packed[level], (int)search.pitch, words};
        const Stored stored = {search.norms + level * search.pitch, distances, search.pitch};
#if HAS_BFLOAT
        if (search.narrow) matrix<true>(rows, frames, packed, stored);
#endif
        if (!search.narrow) matrix<false>(rows, frames, packed, stored);
        const float *lengths = search.lengths + level * search.pitch;
        for (int64_t frame = 0; frame < frames; frame++) {
            const float *values = distances + frame * search.pitch;
            Floats smallest = all(3e38f);
            for (int64_t i = 0; i < search.pitch; i += LANES)
                smallest = smaller(smallest, load(values + i) + load(lengths + i) * doubts[frame]);
            store(least + frame * LANES, smallest);
        }
    }

    const float *entry_of(int level, int entry) const {
        return search.codebooks + ((int64_t)level * search.entries + entry) * search.width;
    }

    // Entries that may be nearest. Their values are asked for, so that they are there when they are compared.
    void find_entries(int level, int64_t frames) {
        const float *lengths = search.lengths + level * search.pitch;
        const float sums = is_rounded() ? 1e-5f * search.longest[level] * search.longest[level] : 0.f;
        int found = 0;
        for (int64_t frame = 0; frame < frames; frame++) {
            const float *values = distances + frame * search.pitch;
            const Floats limit = all(smallest_of(load(least + frame * LANES)) + sums);
            begins[frame] = found;
            for (int first = 0; first < search.pitch; first += 64) {
                uint64_t near = 0;
                for (int i = 0; i < 64; i += LANES) {
                    const Floats at_best = load(values + first + i) - load(lengths + first + i) * doubts[frame];
                    near |= (uint64_t)at_most(at_best, limit) << i;
                }
                for (; near; near &= near - 1) {
                    const int entry = first + __builtin_ctzll(near);
                    const float *vector = entry_of(level, entry);
                    for (int i = 0; i < search.width; i += 16) __builtin_prefetch(vector + i);
                    entries[found++] = entry;
                }
            }
        }
        begins[frames] = found;
    }

    // The first one of equals wins, as in torch.
    int nearest(int level, int64_t frame) const {
        const int begin = begins[frame], end = begins[frame + 1];
        if (end == begin) return 0; // nothing is nearest to what is no number
        if (end - begin == 1) return entries[begin];
        int best = 0;
        float smallest = 3e38f;
        for (int i = begin; i < end; i++) {
            const int entry = entries[i];
            const float value = is_rounded() ? distance(level, frame, entry) : distances[frame * search.pitch + entry];
            if (value < smallest) smallest = value, best = entry;
        }
        return best;
    }

    static float smallest_of(Floats values) {
#if LANES == 16
        return _mm512_reduce_min_ps((__m512)values);
#else
        float smallest = values[0];
        for (int lane = 1; lane < LANES; lane++) smallest = values[lane] < smallest ? values[lane] : smallest;
        return smallest;
#endif
    }

    // A bit for each lane.
    static uint32_t at_most(Floats values, Floats limit) {
#if LANES == 16
        return _mm512_cmp_ps_mask((__m512)values, (__m512)limit, _CMP_LE_OQ);
#else
        return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)values, (__m256)limit, _CMP_LE_OQ));
#endif
    }

    float distance(int level, int64_t frame, int entry) const {
        const float *vector = entry_of(level, entry), *centre = search.centres + (int64_t)level * search.width;
        Floats total = {};
        for (int i = 0; i < search.width; i += LANES) {
            const int count = search.width - i;
            total += load(relative + frame * search.width + i, count) * (load(vector + i, count) - load(centre + i, count));
        }
        return search.norms[level * search.pitch + entry] - 2.f * sum(total);
    }
};

static int search(const Search &search, Arena &arena) {
    arena.begin();
    const int64_t values = FRAMES_AT_ONCE * (int64_t)search.width * 4;
    Searcher searcher = {search,
                         (float *)arena.take(values),
                         (float *)arena.take(values),
                         (float *)arena.take(FRAMES_AT_ONCE * search.pitch * 4),
                         arena.take(values),
                         (float *)arena.take(FRAMES_AT_ONCE * 4),
                         (float *)arena.take(FRAMES_AT_ONCE * 4),
                         (float *)arena.take(FRAMES_AT_ONCE * LANES * 4),
                         (int *)arena.take(FRAMES_AT_ONCE * search.pitch * 4),
                         (int *)arena.take((FRAMES_AT_ONCE + 1) * 4)};
    if (arena.failed) return NO_MEMORY;
    for (int64_t first = 0; first < search.frames; first += FRAMES_AT_ONCE)
        searcher.run(first, search.frames - first < FRAMES_AT_ONCE ? search.frames - first : FRAMES_AT_ONCE);
    return DONE;
}
