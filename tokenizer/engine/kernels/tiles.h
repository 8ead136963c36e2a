// Products of bfloats by AMX: 16 rows of 16 words with 16 words of 16 columns at once.
//
// A panel's words are what a tile of weights is: its rows lie a panel's width apart. EMULATED_TILES is for tests on machines
// without AMX: the same calls, in plain C++.

constexpr int TILE = 16; // rows, words and columns
constexpr int TILED_ROWS = 2 * TILE;

#if EMULATED_TILES
static thread_local uint32_t tile_values[8][TILE][TILE];
static thread_local int tile_rows[8];

static float tile_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static void tile_load(int tile, const void *p, int64_t pitch) {
    for (int i = 0; i < tile_rows[tile]; i++) memcpy(tile_values[tile][i], (const char *)p + i * pitch, 64);
}
static void tile_store(int tile, void *p, int64_t pitch) {
    for (int i = 0; i < tile_rows[tile]; i++) memcpy((char *)p + i * pitch, tile_values[tile][i], 64);
}
static void tile_multiply(int sums, int rows, int weights) {
    for (int i = 0; i < tile_rows[sums]; i++)
        for (int column = 0; column < TILE; column++) {
            float total = tile_float(tile_values[sums][i][column]);
            for (int word = 0; word < tile_rows[weights]; word++) {
                const uint32_t a = tile_values[rows][i][word], b = tile_values[weights][word][column];
                total += tile_float(a << 16) * tile_float(b << 16) + tile_float(a & 0xffff0000u) * tile_float(b & 0xffff0000u);
            }
            memcpy(&tile_values[sums][i][column], &total, 4);
        }
}
static void tile_release() {}
#else
#define tile_load(tile, p, pitch) _tile_loadd(tile, p, pitch)
#define tile_store(tile, p, pitch) _tile_stored(tile, p, pitch)
#define tile_multiply(sums, rows, weights) _tile_dpbf16ps(sums, rows, weights)
#define tile_release() _tile_release()
#endif

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights. Other libraries set tiles up as they like: nothing is kept between calls.
static void configure_tiles(int upper_rows, int lower_rows) {
    struct alignas(64) {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } settings;
    for (int tile = 0; tile < 8; tile++) {
        const bool upper = tile == 0 || tile == 1 || tile == 4, lower = tile == 2 || tile == 3 || tile == 5;
        settings.bytes[tile] = 64;
        settings.rows[tile] = upper ? upper_rows : lower && lower_rows ? lower_rows : TILE;
#if EMULATED_TILES
        tile_rows[tile] = settings.rows[tile];
#endif
    }
#if !EMULATED_TILES
    _tile_loadconfig(&settings);
#endif
}

template <bool LOWER, bool BOTH>
static void multiply_tiles(const char *rows, int64_t pitch, int words, const float *panel, int vectors, const Tile &tile) {
    const float *from = tile.from + TILE * tile.from_pitch;
    float *to = tile.to + TILE * tile.pitch;
    tile_load(0, tile.from, tile.from_pitch * 4);
    if constexpr (BOTH) tile_load(1, tile.from + TILE, tile.from_pitch * 4);
    if constexpr (LOWER) tile_load(2, from, tile.from_pitch * 4);
    if constexpr (LOWER && BOTH) tile_load(3, from + TILE, tile.from_pitch * 4);
    for (int word = 0; word < words; word += TILE) {
        const float *weights = panel + (int64_t)word * vectors * TILE;
        tile_load(4, rows + word * 4, pitch);
        tile_load(6, weights, vectors * 64);
        tile_multiply(0, 4, 6);
        if constexpr (LOWER) {
            tile_load(5, rows + TILE * pitch + word * 4, pitch);
            tile_multiply(2, 5, 6);
        }
        if constexpr (BOTH) {
            tile_load(7, weights + TILE, vectors * 64);
            tile_multiply(1, 4, 7);
            if constexpr (LOWER) tile_multiply(3, 5, 7);
        }
    }
    tile_store(0, tile.to, tile.pitch * 4);
    if constexpr (BOTH) tile_store(1, tile.to + TILE, tile.pitch * 4);
    if constexpr (LOWER) tile_store(2, to, tile.pitch * 4);
    if constexpr (LOWER && BOTH) tile_store(3, to + TILE, tile.pitch * 4);
}

// What some words of up to TILED_ROWS rows add to a panel's columns. The rows lie one pitch apart.
static void multiply_in_tiles(const char *rows, int64_t pitch, int count, int words, const float *panel, int vectors, Tile tile) {
    const bool lower = count > TILE;
    configure_tiles(lower ? TILE : count, lower ? count - TILE : 0);
    for (int vector = 0; vector < vectors; vector += 2) {
        const bool both = vector + 1 < vectors;
        const auto multiply = lower ? (both ? multiply_tiles<true, true> : multiply_tiles<true, false>)
                                    : (both ? multiply_tiles<false, true> : multiply_tiles<false, false>);
        multiply(rows, pitch, words, panel + vector * TILE, vectors, tile);
        tile.from += 2 * TILE;
        tile.to += 2 * TILE;
    }
    tile_release();
}
