// What each instruction set offers to the dispatcher.
#pragma once
#include "program.h"
#include <stdlib.h>
#include <string.h>

enum Result { DONE = 0, TOO_SHORT = 1, NO_MEMORY = 2 };
enum { MOST_BUFFERS = 512 };

// Memory of one thread, kept between calls: asking the system for it each time would cost more than some layers.
struct Arena {
    char *memory = nullptr;
    size_t size = 0, used = 0, wanted = 0;
    char *more[64]; // what did not fit this time; the next call finds one piece that is large enough
    int num_more = 0;
    bool failed = false;

    void begin();
    char *take(int64_t bytes);
    ~Arena();
};

struct Level {
    int (*run)(const Call &, Arena &);
    int (*search)(const Search &, Arena &);
    int64_t (*output_rows)(const Call &, int64_t input_rows);
    int64_t (*packed_floats)(int columns, int words);
    void (*pack)(const float *weights, int columns, int depth, int narrow, float *packed);
    int64_t (*compact_floats)(int columns, int depth, int bytes);
    void (*pack_compact)(const float *weights, int columns, int depth, int bytes, float *packed);
    void (*unpack_fixed)(const float *packed, int columns, int depth, float *weights);
};

// A library has the dispatcher and one of these; the others are null.
extern const Level LEVEL_avx2 __attribute__((weak)), LEVEL_avx512 __attribute__((weak)), LEVEL_avx512_vnni __attribute__((weak)),
    LEVEL_avx512_bf16 __attribute__((weak)), LEVEL_amx __attribute__((weak));
