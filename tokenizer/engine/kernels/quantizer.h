// Search of the nearest entries, level by level: one product gives the distances of many frames to all entries.
//
// In bfloats or integers that product says only which entries come into question: by Cauchy and Schwarz, rounding x to x' and
// c to c' changes x.c by no more than |x - x'| |c| + |x'| |c - c'|. Whatever lies within twice that of the smallest is
// compared again in floats, so that the codes are those of floats.

constexpr int FRAMES_AT_ONCE = 84;

static float smallest(const float *values, int count) {
    Floats least[4] = {all(3e38f), all(3e38f), all(3e38f), all(3e38f)};
    int i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int part = 0; part < 4; part++) least[part] = smaller(least[part], load(values + i + part * LANES));
    const Floats all_parts = smaller(smaller(least[0], least[1]), smaller(least[2], least[3]));
    float value = 3e38f;
    for (int lane = 0; lane < LANES; lane++) value = all_parts[lane] < value ? all_parts[lane] : value;
    for (; i < count; i++) value = values[i] < value ? values[i] : value;
    return value;
}

struct Searcher {
    const Search &search;
    const int64_t pitch; // of a row of distances, in floats
    float *residual, *relative, *distances;
    char *rounded; // `relative` in two bytes a value, where these are multiplied
    float *scales; // of a frame's integers

    void run(int64_t first, int64_t frames) {
        memcpy(residual, search.latents + first * search.width, frames * search.width * 4);
        for (int level = 0; level < search.levels; level++) {
            subtract_centre(level, frames);
            measure_distances(level, frames);
            int64_t *codes = search.codes + first * search.levels + level;
            for (int64_t frame = 0; frame < frames; frame++) codes[frame * search.levels] = nearest(level, frame);
            for (int64_t frame = 0; frame < frames; frame++) {
                const float *vector = entry_of(level, (int)codes[frame * search.levels]);
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
#if HAS_INTEGERS
            if (search.entry_scales) scales[frame] = quantize(to, search.width, (int16_t *)rounded + frame * search.width);
#endif
        }
    }

    void round_to_bfloats(const float *from, bfloat *to) const {
        for (int i = 0; i < search.width; i += LANES) store(to + i, load(from + i, search.width - i), search.width - i);
    }

    bool is_rounded() const { return search.narrow || search.entry_scales; }

    // Some of a frame's values as they were rounded.
    Floats rounded_values(int64_t frame, int first, int count) const {
        const int64_t at = frame * search.width + first;
#if HAS_INTEGERS
        if (search.entry_scales) {
            const __m256i integers = _mm256_loadu_si256((const __m256i *)((const int16_t *)rounded + at));
            return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(integers)) * scales[frame];
        }
#endif
        return load((const bfloat *)rounded + at, count);
    }

#if HAS_INTEGERS
    void measure_in_integers(int level, int64_t frames) {
        const int words = search.width / 2;
        const int64_t entries_before = (int64_t)level * search.entries;
        for (int column = 0; column < search.entries; column += PANEL_FLOATS) {
            const int left = search.entries - column, vectors = left >= PANEL_FLOATS ? PANEL : (left + LANES - 1) / LANES;
            const int at_once = rows_at_once(vectors);
            const float *panel = (const float *)search.packed[level] + (int64_t)column * words;
            for (int64_t first = 0; first < frames; first += at_once) {
                const int size = frames - first < at_once ? (int)(frames - first) : at_once;
                IntegerTile tile;
                tile.from = search.norms + entries_before + column, tile.from_pitch = 0;
                tile.to = distances + first * pitch + column, tile.pitch = pitch;
                for (int i = 0; i < size; i++) {
                    tile.rows[i] = (const uint32_t *)((const int16_t *)rounded + (first + i) * search.width);
                    tile.scales[i] = scales[first + i];
                }
                MULTIPLY_INTEGERS[vectors][size](tile, words, panel, search.entry_scales + entries_before + column);
            }
        }
    }
#endif

    void measure_distances(int level, int64_t frames) {
#if HAS_INTEGERS
        if (search.entry_scales) return measure_in_integers(level, frames);
#endif
        const int bytes = search.narrow ? 2 : 4, words = search.width * bytes / 4;
        Rows rows;
        rows.steps = frames;
        rows.add(search.narrow ? (const void *)rounded : relative, 0, search.width * bytes, words);
        const Packed packed = {(const float *)search.packed[level], search.entries, words};
        const float *norms = search.norms + (int64_t)level * search.entries;
#if HAS_BFLOAT
        if (search.narrow) return matrix<true>(rows, frames, packed, Stored{norms, distances, pitch});
#endif
        matrix<false>(rows, frames, packed, Stored{norms, distances, pitch});
    }

    const float *entry_of(int level, int entry) const {
        return search.codebooks + ((int64_t)level * search.entries + entry) * search.width;
    }

    // The first one of equals wins, as in torch.
    int nearest(int level, int64_t frame) const {
        const float *values = distances + frame * pitch;
        const Floats limit = all(smallest(values, search.entries) + (is_rounded() ? doubt(level, frame) : 0.f));
        int best = 0, others = 0;
        float least = 3e38f;
        for (int first = 0; first < search.entries; first += LANES) {
            for (uint32_t lanes = mask(load(values + first) <= limit); lanes; lanes &= lanes - 1) {
                const int entry = first + __builtin_ctz(lanes);
                if (entry >= search.entries) break;
                if (others++ == 0) { // mostly it stays the only one
                    best = entry;
                    __builtin_prefetch(entry_of(level, entry));
                    continue;
                }
                if (others == 2) least = is_rounded() ? distance(level, frame, best) : values[best];
                const float value = is_rounded() ? distance(level, frame, entry) : values[entry];
                if (value < least) least = value, best = entry;
            }
        }
        return best;
    }

    static uint32_t mask(Ints lanes) {
#if LANES == 16
        return (uint32_t)_mm512_movepi32_mask((__m512i)lanes);
#else
        return (uint32_t)_mm256_movemask_ps((__m256)lanes);
#endif
    }

    float doubt(int level, int64_t frame) const {
        Floats length = {}, rounding = {};
        for (int i = 0; i < search.width; i += LANES) {
            const int count = search.width - i;
            const Floats whole = load(relative + frame * search.width + i, count), part = rounded_values(frame, i, count);
            length += part * part;
            rounding += (whole - part) * (whole - part);
        }
        const float norm = __builtin_sqrtf(sum(length)), lost = __builtin_sqrtf(sum(rounding)), longest = search.longest[level];
        const float sums = 4e-5f * norm * longest + 1e-5f * longest * longest; // rounding of the sums themselves
        return 2.f * (lost * longest + norm * search.roundings[level]) + sums;
    }

    float distance(int level, int64_t frame, int entry) const {
        const float *vector = entry_of(level, entry), *centre = search.centres + (int64_t)level * search.width;
        Floats total = {};
        for (int i = 0; i < search.width; i += LANES) {
            const int count = search.width - i;
            total += load(relative + frame * search.width + i, count) * (load(vector + i, count) - load(centre + i, count));
        }
        return search.norms[(int64_t)level * search.entries + entry] - 2.f * sum(total);
    }
};

static int search(const Search &search, Arena &arena) {
    arena.begin();
    const int64_t values = FRAMES_AT_ONCE * (int64_t)search.width * 4;
    const int64_t pitch = (search.entries + LANES - 1) / LANES * LANES;
    Searcher searcher = {search,
                         pitch,
                         (float *)arena.take(values),
                         (float *)arena.take(values),
                         (float *)arena.take(FRAMES_AT_ONCE * pitch * 4),
                         arena.take(values),
                         (float *)arena.take(FRAMES_AT_ONCE * 4)};
    if (arena.failed) return NO_MEMORY;
    for (int64_t first = 0; first < search.frames; first += FRAMES_AT_ONCE)
        searcher.run(first, search.frames - first < FRAMES_AT_ONCE ? search.frames - first : FRAMES_AT_ONCE);
    return DONE;
}
