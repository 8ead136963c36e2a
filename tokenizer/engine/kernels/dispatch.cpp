// The functions that Python calls: which instruction sets this machine has, and the kernels of each.
#include "level.h"
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

void Arena::begin() {
    for (int i = 0; i < num_more; i++) free(more[i]);
    num_more = 0;
    failed = false;
    if (wanted > size) {
        free(memory);
        memory = (char *)aligned_alloc(4096, wanted);
        size = memory ? wanted : 0;
    }
    used = wanted = 0;
}

char *Arena::take(int64_t bytes) {
    const size_t whole = ((size_t)bytes + 4095) / 4096 * 4096 + 4096;
    wanted += whole;
    if (used + whole <= size) {
        used += whole;
        return memory + used - whole;
    }
    char *piece = num_more < 64 ? (char *)aligned_alloc(4096, whole) : nullptr;
    if (piece) more[num_more++] = piece;
    else failed = true;
    return piece;
}

Arena::~Arena() {
    wanted = 0;
    begin();
    free(memory);
}

static thread_local Arena arena;
static const Level *const LEVELS[] = {&LEVEL_avx2, &LEVEL_avx512, &LEVEL_avx512_vnni, &LEVEL_avx512_bf16, &LEVEL_amx};

// The system gives the memory for tiles only to processes that ask.
static bool may_use_tiles() {
#if EMULATED_TILES
    return true;
#elif defined(__linux__)
    const int request_permission = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

extern "C" {
// Levels from 0 up to the one returned run here; -1: none does.
int quantone_best_level(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return -1;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl"))
        return 0;
    if (!__builtin_cpu_supports("avx512vnni")) return 1;
    if (!__builtin_cpu_supports("avx512bf16")) return 2;
    return may_use_tiles() ? 4 : 3;
}

// The one to use where nobody asks for another. Intel's vectors multiply bfloats at half the rate of floats, AMD's at twice.
int quantone_usual_level(void) {
    const int best = quantone_best_level();
    return best == 3 && __builtin_cpu_is("intel") ? 2 : best;
}

int64_t quantone_packed_floats(int level, int columns, int words) { return LEVELS[level]->packed_floats(columns, words); }

void quantone_pack(int level, const float *weights, int columns, int depth, int narrow, float *packed) {
    LEVELS[level]->pack(weights, columns, depth, narrow, packed);
}

int64_t quantone_compact_floats(int level, int columns, int depth, int bytes) {
    return LEVELS[level]->compact_floats(columns, depth, bytes);
}

void quantone_pack_compact(int level, const float *weights, int columns, int depth, int bytes, float *packed) {
    LEVELS[level]->pack_compact(weights, columns, depth, bytes, packed);
}

void quantone_unpack_fixed(int level, const float *packed, int columns, int depth, float *weights) {
    LEVELS[level]->unpack_fixed(packed, columns, depth, weights);
}

int64_t quantone_output_rows(int level, const Call *call, int64_t input_rows) { return LEVELS[level]->output_rows(*call, input_rows); }

int quantone_run(int level, const Call *call) { return LEVELS[level]->run(*call, arena); }

int quantone_search(int level, const Search *search) { return LEVELS[level]->search(*search, arena); }
}
